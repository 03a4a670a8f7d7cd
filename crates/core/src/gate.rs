//! The gate of one function in one data plane: its queue and the slots it holds. The hot path.

mod event;

pub use event::{Attempt, Binding, Effect, Event, Finish, Refusal, Verdict};

use std::sync::Arc;

use crate::{
    FunctionView, InvocationId, Time,
    frame::{Demand, Holding, Status},
};

/// See the module.
#[derive(Debug)]
pub struct Gate {
    view: Arc<FunctionView>,
}

impl Gate {
    /// A gate for a function just resolved, with nothing held.
    #[must_use]
    pub fn new(now: Time, version: u64, view: Arc<FunctionView>) -> Self {
        let _ = (now, version);
        Self { view }
    }

    /// An invocation asks for a slot.
    pub fn admit(&mut self, now: Time, invocation: InvocationId, attempt: Attempt) -> Verdict {
        let _ = (now, invocation, attempt);
        Verdict::Queued
    }

    /// The world says something.
    pub fn handle(&mut self, now: Time, event: Event) {
        let _ = (now, event);
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

    /// The function as last configured.
    #[must_use]
    pub fn view(&self) -> &Arc<FunctionView> {
        &self.view
    }

    /// Why invocations wait, as last told: decides the code when a queue deadline passes.
    #[must_use]
    pub fn status(&self) -> &Status {
        const FLOWING: &Status = &Status::Flowing;
        FLOWING
    }

    /// Whether nothing is held, queued or bound, so that the gate may be dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        true
    }

    /// What the data plane's `Hello` says of this function.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        Vec::new()
    }

    /// The demand as of now.
    #[must_use]
    pub fn demand(&self, now: Time) -> Demand {
        let _ = now;
        Demand {
            function: self.view.id,
            queued: 0,
            oldest_wait: std::time::Duration::ZERO,
            held: 0,
            busy: 0,
            busy_integral: 0,
            elapsed: 0,
            arrivals_total: 0,
            finished_total: 0,
        }
    }
}
