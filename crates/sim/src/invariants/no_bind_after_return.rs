//! What a data plane has given back it does not bind to, unless it is granted anew.

use dirigent_core::{
    SandboxId,
    frame::{FromDataPlane, Grant},
};

use crate::world::World;

pub(super) const NAME: &str = "no_bind_after_return";

impl World {
    pub(crate) fn granted(&mut self, plane: usize, grant: &Grant) {
        self.witness.returned.remove(&(plane, grant.sandbox));
    }

    /// A gate says something; if it gives back the last of a sandbox, that is over.
    pub(crate) fn given_back(&mut self, plane: usize, frame: &FromDataPlane) {
        let FromDataPlane::Returned(returned) = frame else { return };
        let sandbox = returned.sandbox;
        let gates = self.planes.get(plane).into_iter().flat_map(|p| p.gates.values());
        let held = gates.flat_map(|f| f.gate.holdings()).any(|h| h.sandbox == sandbox);
        if !held {
            self.witness.returned.insert((plane, sandbox));
            if let Some(p) = self.planes.get_mut(plane) {
                p.forgotten.remove(&sandbox);
            }
        }
    }

    pub(super) fn check_not_returned(&mut self, plane: usize, sandbox: SandboxId) {
        let holds = !self.witness.returned.contains(&(plane, sandbox));
        self.hold(NAME, holds, |_| format!("plane{plane} bound to {sandbox}, which it gave back"));
    }
}
