//! A worker: the sandboxes of one machine, their ports, artifacts and limits.

mod event;

pub use event::{Adopted, CreateSandbox, Effect, Event};

use crate::{Digest, Time, frame::Capacity};

/// What a worker machine is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is offered to the control plane.
    pub capacity: Capacity,
    /// Ports for sandboxes: first and last. Outside the ephemeral range.
    pub ports: (u16, u16),
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    config: Config,
}

impl Worker {
    /// A worker with what its runtime still has and what its disk holds.
    #[must_use]
    pub fn new(now: Time, config: Config, adopted: Vec<Adopted>, artifacts: Vec<Digest>) -> Self {
        let _ = (now, adopted, artifacts);
        Self { config }
    }

    /// The world says something.
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
