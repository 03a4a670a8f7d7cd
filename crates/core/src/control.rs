//! The control plane's decisions: functions, scale, placement, slots, peers. One per cluster.

mod event;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the control machine that owns it is being built")
)]
mod fleet;

pub use event::{
    Answer, Call, Decision, Effect, Event, FailureDescription, FunctionDescription,
    FunctionSummary, Measure, Outcome, Refusal, RevisionDescription, SandboxDescription,
    WorkerSummary,
};

use crate::{Office, Records, Time};

/// What a control machine is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The right to lead.
    pub office: Office,
    /// Seeds the machine's own random source (placement).
    pub seed: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Control {
    config: Config,
}

impl Control {
    /// A leader that has just taken office over these records; it is recovering until the recorded
    /// peers have attached, or 3 s.
    #[must_use]
    pub fn new(now: Time, config: Config, records: Records) -> Self {
        let _ = (now, records);
        Self { config }
    }

    /// The world, or a user, says something.
    pub fn handle(&mut self, now: Time, event: Event) {
        let _ = (now, event, &self.config);
    }

    /// A deadline may have passed.
    pub fn expire(&mut self, now: Time) {
        let _ = now;
    }

    /// When to call `expire`.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// What to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        None
    }
}
