//! Nothing reaches another sandbox than the one it was bound to, and nothing is bound to a revision
//! that is no target any more, as far as its data plane was told.

use dirigent_core::{SandboxId, gate::Binding};

use crate::{agenda::Attempted, world::World};

pub(super) const NAME: &str = "right_sandbox";

impl World {
    pub(super) fn check_right_sandbox(
        &mut self,
        at: Attempted,
        binding: &Binding,
        worker: usize,
        reached: SandboxId,
    ) {
        let wanted = binding.sandbox;
        self.hold(NAME, reached == wanted, |_| {
            format!("{at:?} was bound to {wanted} and reached {reached} on worker{worker}")
        });
    }

    /// A gate bound an invocation.
    pub(crate) fn bound_to(&mut self, plane: usize, binding: &Binding) {
        let (sandbox, revision) = (binding.sandbox, binding.revision);
        let gate = self.planes.get(plane).and_then(|p| p.gates.get(&revision.function));
        let is_target =
            gate.is_some_and(|f| f.gate.view().targets.iter().any(|target| target.id == revision));
        self.hold(NAME, is_target, |_| format!("plane{plane} bound to {revision}, no target"));
        self.check_not_returned(plane, sandbox);
    }
}
