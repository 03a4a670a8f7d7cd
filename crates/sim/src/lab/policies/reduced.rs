//! Ablations: a policy without one of the things that make it what it is.

use std::time::Duration;

use dirigent_core::policy::scaling::{Hold, Levels, Scaling, Wanted};

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Starts are made at ticks; only the first one, from zero, is made at once.
    Events,
    /// A function without any sandbox gets one, however many wait; more when that one is ready.
    QueueSizedStarts,
}

/// A policy that lacks something.
#[derive(Debug)]
pub struct Reduced<P> {
    policy: P,
    lack: Lack,
}

impl<P> Reduced<P> {
    /// This policy without that.
    #[must_use]
    pub const fn new(policy: P, lack: Lack) -> Self {
        Self { policy, lack }
    }
}

impl<P: Scaling> Scaling for Reduced<P> {
    fn arrived(&mut self, levels: &Levels) {
        self.policy.arrived(levels);
    }

    fn finished(&mut self, levels: &Levels, ran: Duration) {
        self.policy.finished(levels, ran);
    }

    fn started(&mut self, levels: &Levels, took: Duration) {
        self.policy.started(levels, took);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        let wanted = self.policy.starts(levels);
        let none = levels.busy + levels.idle == 0;
        match self.lack {
            Lack::Events if levels.sandboxes() == 0 => wanted.min(1),
            Lack::Events => levels.starting,
            Lack::QueueSizedStarts if none => wanted.min(1),
            Lack::QueueSizedStarts => wanted,
        }
    }

    fn hold(&mut self, levels: &Levels, rank: u32) -> Hold {
        self.policy.hold(levels, rank)
    }

    fn tick(&mut self, levels: &Levels) -> Option<Wanted> {
        let wanted = self.policy.tick(levels);
        if self.lack != Lack::Events {
            return wanted;
        }
        let now = levels.busy + levels.idle + self.policy.starts(levels).max(levels.starting);
        let Wanted { at_least, at_most } =
            wanted.unwrap_or(Wanted { at_least: 0, at_most: u32::MAX });
        Some(Wanted { at_least: at_least.max(now), at_most: at_most.max(now) })
    }
}

/// A policy with the starts of another: the published windows with starts sized by the queue.
#[derive(Debug)]
pub struct StartsOf<P, S> {
    policy: P,
    starts: S,
}

impl<P, S> StartsOf<P, S> {
    /// This policy with the starts of that one.
    #[must_use]
    pub const fn new(policy: P, starts: S) -> Self {
        Self { policy, starts }
    }
}

impl<P: Scaling, S: Scaling> Scaling for StartsOf<P, S> {
    fn arrived(&mut self, levels: &Levels) {
        self.policy.arrived(levels);
        self.starts.arrived(levels);
    }

    fn finished(&mut self, levels: &Levels, ran: Duration) {
        self.policy.finished(levels, ran);
        self.starts.finished(levels, ran);
    }

    fn started(&mut self, levels: &Levels, took: Duration) {
        self.policy.started(levels, took);
        self.starts.started(levels, took);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        self.policy.starts(levels).max(self.starts.starts(levels))
    }

    fn hold(&mut self, levels: &Levels, rank: u32) -> Hold {
        self.policy.hold(levels, rank)
    }

    fn tick(&mut self, levels: &Levels) -> Option<Wanted> {
        self.policy.tick(levels)
    }
}
