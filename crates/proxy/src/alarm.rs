//! A timer for deadlines that nearly always are met: hardly anything is done for those.
//!
//! It is set for a moment that was right once, and moved only when that has come or a deadline got
//! earlier. It is registered with a task once, not each time that the task looks at it.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Who is woken when it goes off.
    wakes: Option<Waker>,
}

impl Alarm {
    /// Set for that moment.
    pub(crate) fn at(moment: Instant) -> Self {
        Self { sleep: Some(Box::pin(sleep_until(moment))), wakes: None }
    }

    /// Moves it.
    pub(crate) fn set(&mut self, moment: Instant) {
        self.wakes = None;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(moment),
            None => *self = Self::at(moment),
        }
    }

    /// Moves it if that is earlier.
    pub(crate) fn set_earlier(&mut self, moment: Instant) {
        if self.sleep.as_ref().is_none_or(|sleep| moment < sleep.deadline()) {
            self.set(moment);
        }
    }

    /// Ready once the moment that it is set for has come.
    pub(crate) fn poll_off(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sleep) = &mut self.sleep else { return Poll::Pending };
        let known = self.wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        let off = sleep.as_mut().poll(cx);
        self.wakes = off.is_pending().then(|| cx.waker().clone());
        off
    }

    /// Ready once `deadline` has passed.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.set_earlier(deadline);
        while self.poll_off(cx).is_ready() {
            if self.sleep.as_ref().is_none_or(|sleep| sleep.deadline() >= deadline) {
                return Poll::Ready(());
            }
            self.set(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_goes_off_at_the_deadline_given_last() {
        let begun = Instant::now();
        let mut alarm = Alarm::default();
        let mut looks = 0;
        poll_fn(|cx| {
            looks += 1;
            alarm.poll_until(cx, begun + SECOND * looks.min(3))
        })
        .await;
        assert_eq!((begun.elapsed(), looks), (3 * SECOND, 4));
        let far = poll_fn(|cx| Poll::Ready(alarm.poll_until(cx, begun + 10 * SECOND))).await;
        assert!(far.is_pending());
        poll_fn(|cx| alarm.poll_until(cx, begun + 5 * SECOND)).await;
        assert_eq!(begun.elapsed(), 5 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_the_task_that_looked_last() {
        let begun = Instant::now();
        let mut alarm = Alarm::at(begun + SECOND);
        let mut nobody = Context::from_waker(Waker::noop());
        assert!(alarm.poll_off(&mut nobody).is_pending());
        poll_fn(|cx| alarm.poll_off(cx)).await;
        assert_eq!(begun.elapsed(), SECOND);
    }
}
