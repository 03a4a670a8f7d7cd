//! A sandbox is started once: never again after it was stopped.

use dirigent_core::SandboxId;

use crate::world::World;

pub(super) const NAME: &str = "started_once";

impl World {
    pub(super) fn check_started_once(&mut self, sandbox: SandboxId) {
        let first = self.witness.started.insert(sandbox);
        self.hold(NAME, first, |_| format!("{sandbox} is started a second time"));
    }
}
