//! What decides how many sandboxes one function has, as one contract: a policy is told facts and
//! levels by value and answers with numbers and times. It starts and stops nothing itself.
//!
//! Sandboxes are spoken of by *rank*. Late binding gives each invocation the most recently used
//! free sandbox, so the sandbox of rank `n` is in use exactly while at least `n` invocations are in
//! the house, queued ones included: it falls idle when the level falls below `n` and is needed when
//! it comes back to `n`. Each rank so has idle periods of its own, short ones the first and ever
//! longer ones the higher ranks, and a policy decides for each for how long waiting for the next
//! call is worth a sandbox.
//!
//! What ships implements this trait: [`Adaptive`](super::adaptive::Adaptive) and
//! [`Fixed`](super::keep_alive::Fixed). Rivals and ablations implement it in the policy
//! laboratory of the simulator.

use std::{fmt::Debug, time::Duration};

use crate::Time;

/// A function's levels at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Now.
    pub now: Time,
    /// Invocations that wait for a slot.
    pub queued: u32,
    /// Invocations in sandboxes.
    pub busy: u32,
    /// Sandboxes that are ready and have nothing to do.
    pub idle: u32,
    /// Sandboxes that are starting.
    pub starting: u32,
}

impl Levels {
    /// Invocations in the house: this many ranks are in use.
    #[must_use]
    pub const fn present(&self) -> u32 {
        self.queued.saturating_add(self.busy)
    }

    /// Sandboxes, those that are starting included.
    #[must_use]
    pub const fn sandboxes(&self) -> u32 {
        self.busy.saturating_add(self.idle).saturating_add(self.starting)
    }
}

/// What becomes of a sandbox that has just fallen idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// It goes when it has been idle for so long.
    pub keep: Duration,
    /// Whether and when one is started ahead of the call that is expected.
    pub ahead: Option<Ahead>,
}

impl Hold {
    /// Kept for so long, and nothing after that.
    #[must_use]
    pub const fn keep(keep: Duration) -> Self {
        Self { keep, ahead: None }
    }
}

/// A start for a call that is expected, in times since the rank fell idle. Void as soon as the rank
/// is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The start is made then.
    pub from: Duration,
    /// The sandbox goes then, if nobody came.
    pub until: Duration,
}

/// How many sandboxes there should be, for those who decide that from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Fewer are too few: the rest is started.
    pub at_least: u32,
    /// More are too many: the rest goes.
    pub at_most: u32,
}

impl Wanted {
    /// Exactly so many.
    #[must_use]
    pub const fn exactly(count: u32) -> Self {
        Self { at_least: count, at_most: count }
    }
}

/// A function's scaling, see the module. Levels are those after the fact.
pub trait Scaling: Debug + Send {
    /// An invocation came: it is in the levels, bound or queued.
    fn arrived(&mut self, levels: &Levels);

    /// An invocation ended that had a slot for `ran`; the first who waits has its slot now.
    fn finished(&mut self, levels: &Levels, ran: Duration);

    /// A start that was decided `took` ago has led to a ready sandbox; the first who waits has it.
    fn started(&mut self, levels: &Levels, took: Duration);

    /// Invocations wait: how many starts should be outstanding for them.
    fn starts(&mut self, levels: &Levels) -> u32;

    /// The sandbox of this rank (from 1) has fallen idle, or became ready without being needed.
    fn hold(&mut self, levels: &Levels, rank: u32) -> Hold;

    /// Time has passed: only asked of those who decide at intervals. `None` leaves all as it is.
    fn tick(&mut self, levels: &Levels) -> Option<Wanted> {
        let _nothing_to_learn = levels;
        None
    }
}
