//! The handlers in a sandbox are never more than its `concurrency`. The sandbox is the witness.
//! Not counted are overruns: handlers whose caller left and whose grace is over, and those of a
//! data plane that died.

use dirigent_core::SandboxId;

use crate::world::World;

pub(super) const NAME: &str = "concurrency";

impl World {
    pub(crate) fn check_concurrency(&mut self, worker: usize, sandbox: SandboxId) {
        let one = self.workers.get(worker).and_then(|w| w.sandboxes.get(&sandbox));
        let Some(one) = one.filter(|one| one.concurrency > 0) else { return };
        let handlers = one.handlers.values().filter(|handler| !handler.overrun).count();
        let limit = one.concurrency;
        let holds = handlers <= limit as usize;
        self.hold(NAME, holds, |world| {
            let one = world.workers.get(worker).and_then(|w| w.sandboxes.get(&sandbox));
            format!("{sandbox} has {handlers} handlers, its limit is {limit}: {one:?}")
        });
    }
}
