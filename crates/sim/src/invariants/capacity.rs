//! The sandboxes of a worker never reserve more memory than it has.

use dirigent_core::SandboxId;

use crate::world::World;

pub(super) const NAME: &str = "capacity";

impl World {
    /// A sandbox is about to be created.
    pub(crate) fn created(&mut self, worker: usize, sandbox: SandboxId) {
        self.check_started_once(sandbox);
        let Some(w) = self.workers.get(worker) else { return };
        let (have, used) = (w.memory.0, w.sandboxes.values().map(|s| s.memory.0).sum::<u64>());
        // It is not among them yet, and all are of one size.
        let next = w.sandboxes.values().next().map_or(0, |s| s.memory.0);
        self.hold(NAME, used + next <= have, |_| {
            format!("worker{worker} has {have} bytes, {used} reserved before {sandbox}")
        });
    }
}
