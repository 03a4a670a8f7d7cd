//! An invocation is executed at most once, unless the retry rules allow it: idempotent, and the
//! first execution broke without a byte of response.

use dirigent_core::{SandboxId, gate::Binding};

use crate::{agenda::Attempted, world::World};

pub(super) const NAME: &str = "at_most_once";

impl World {
    /// An attempt reached a sandbox.
    pub(crate) fn executes(
        &mut self,
        at: Attempted,
        binding: &Binding,
        worker: usize,
        reached: SandboxId,
    ) {
        self.check_right_sandbox(at, binding, worker, reached);
        let idempotent = self.current(at).is_some_and(|call| call.idempotent);
        let before = self.witness.executions.entry(at.invocation).or_default();
        let allowed = before.is_empty() || (before.len() == 1 && idempotent && before[0].1);
        before.push((at.attempt, false));
        let first = before.len() == 1;
        if !first {
            self.hold(NAME, allowed, |world| {
                let runs = world.witness.executions.get(&at.invocation);
                format!("{at:?} (idempotent: {idempotent}) was executed more than once: {runs:?}")
            });
        }
    }

    /// The sandbox of an attempt died under it.
    pub(crate) fn execution_broke(&mut self, at: Attempted) {
        let runs = self.witness.executions.get_mut(&at.invocation);
        for (_, broke) in runs.into_iter().flatten().filter(|(n, _)| *n == at.attempt) {
            *broke = true;
        }
    }
}
