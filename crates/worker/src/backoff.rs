//! How long to wait before dialling again: doubling, with jitter, so that those who lost the same
//! peer do not come back at the same instant.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// A connection that began at `since` is over. One that lasted begins the steps anew; one that
    /// was closed at once is not dialled in a circle.
    pub(crate) fn over(&mut self, since: Instant) {
        if since.elapsed() >= LAST {
            self.next = FIRST;
        }
    }

    /// Between half of the current step and the whole; the next step is twice as long.
    pub(crate) fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LAST);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_double_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new();
        for step in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let step = Duration::from_millis(step);
            let delay = backoff.delay();
            assert!(delay >= step / 2 && delay <= step, "{delay:?} of {step:?}");
        }
        backoff.over(Instant::now());
        assert!(backoff.delay() > FIRST);
        let since = Instant::now();
        tokio::time::advance(LAST).await;
        backoff.over(since);
        assert!(backoff.delay() <= FIRST);
    }
}
