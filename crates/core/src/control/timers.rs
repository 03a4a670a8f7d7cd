//! The deadlines of the control machine, in one ordered structure: the next one is read in no time,
//! and a function without one costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::{DataPlaneId, FunctionId, SandboxId, Time};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Peers that have not attached by now are not waited for any more.
    Recovered,
    /// Functions that need a look, some at a time.
    Attention,
    /// A function's windows are read.
    Windows(FunctionId),
    /// A crash loop's next start may be tried.
    Probe(FunctionId),
    /// Sandboxes of `min` that kept exiting may be started again.
    Restart(FunctionId),
    /// Slots that were moved have rested.
    Rested(FunctionId),
    /// A deploy does not wait any longer for what it waits for.
    Rollout(FunctionId),
    /// A write is tried again.
    Rewrite(FunctionId),
    /// What was learned of a function is forgotten.
    Quiet(FunctionId),
    /// A drain does not wait any longer.
    Drained(SandboxId),
    /// A sandbox that nobody holds was idle for long enough.
    Idle(SandboxId),
    /// Data planes that have not attached by now keep no sandbox of the function any longer.
    Doubted(FunctionId),
    /// A data plane has been silent for as long as an invocation of the function may take.
    Silent(FunctionId, DataPlaneId),
    /// Sandboxes on workers that are drained do not wait any longer for those that replace them.
    Moving(FunctionId),
    /// A data plane's record is written again.
    RewritePeer(DataPlaneId),
    /// The tokens are written again.
    RewriteTokens,
}

/// See the module. Each timer is set at most once; setting it again moves it. Those that are looked
/// at with each event of a function are armed: the function itself knows when they are due.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Time, Timer)>,
    set: BTreeMap<Timer, Time>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Time) {
        if let Some(before) = self.set.insert(timer, at) {
            self.order.remove(&(before, timer));
        }
        self.order.insert((at, timer));
    }

    /// Sets it unless it is set already, to whichever time.
    pub(crate) fn start(&mut self, timer: Timer, at: Time) {
        if !self.set.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    /// Sets a timer whose time its owner remembers, unless it is set already.
    pub(crate) fn arm(&mut self, armed: &mut Option<Time>, timer: Timer, at: Time) {
        if armed.is_none() {
            *armed = Some(at);
            self.order.insert((at, timer));
        }
    }

    /// Cancels such a timer.
    pub(crate) fn disarm(&mut self, armed: &mut Option<Time>, timer: Timer) {
        if let Some(at) = armed.take() {
            self.order.remove(&(at, timer));
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.set.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    /// How many are set or armed.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.order.first().map(|&(at, _)| at)
    }

    pub(crate) fn pop_due(&mut self, now: Time) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        if at > now {
            return None;
        }
        self.order.pop_first();
        self.set.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Epoch;

    #[test]
    fn timers_come_in_order_and_once() {
        let function = FunctionId::new(Epoch(1), 1);
        let mut timers = Timers::default();
        timers.set(Timer::Probe(function), Time(30));
        timers.set(Timer::Quiet(function), Time(20));
        timers.set(Timer::Probe(function), Time(10));
        timers.start(Timer::Probe(function), Time(5));
        assert_eq!(timers.next(), Some(Time(10)));
        assert_eq!(timers.pop_due(Time(9)), None);
        assert_eq!(timers.pop_due(Time(50)), Some(Timer::Probe(function)));
        assert_eq!(timers.pop_due(Time(50)), Some(Timer::Quiet(function)));
        assert_eq!((timers.pop_due(Time(50)), timers.next()), (None, None));
        timers.set(Timer::Attention, Time(1));
        timers.cancel(Timer::Attention);
        assert_eq!(timers.next(), None);
    }
}
