//! After healing no slot stays idle at one data plane while invocations of its function queue at
//! another, for longer than it takes to move it: until the next demand is told (1 s), four round
//! trips, and the rest that a moved slot is given (at most 5 s here, the longest service time).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use dirigent_core::{FunctionId, SandboxId, frame::Share};

use crate::world::World;

pub(super) const NAME: &str = "idle_beside_queue";

/// Sweeps come every 250 ms.
const SWEEPS: u32 = 26;

impl World {
    pub(super) fn check_idle_beside_queue(&mut self) {
        if !self.settled_since_healing(Duration::from_secs(10)) {
            self.witness.starving.clear();
            return;
        }
        let before = std::mem::take(&mut self.witness.starving);
        let mut longest = None;
        let mut now = BTreeMap::new();
        for (plane, sandbox, function) in self.idle_slots() {
            let waits = self.planes.iter().enumerate().any(|(other, p)| {
                let gate = p.gates.get(&function).filter(|_| other != plane && p.attached);
                gate.is_some_and(|f| f.gate.demand(self.now).queued > 0)
            });
            if waits {
                let sweeps = before.get(&(plane, sandbox)).copied().unwrap_or(0) + 1;
                longest = longest.max(Some((sweeps, sandbox, function)));
                now.insert((plane, sandbox), sweeps);
            }
        }
        self.witness.starving = now;
        if let Some((sweeps, sandbox, function)) = longest {
            self.hold(NAME, sweeps < SWEEPS, |_| {
                format!("{sandbox} is idle while invocations of {function} queue elsewhere")
            });
        }
    }

    /// Which data plane holds idle slots of which sandbox.
    fn idle_slots(&self) -> BTreeSet<(usize, SandboxId, FunctionId)> {
        let mut idle = BTreeSet::new();
        for (plane, p) in self.planes.iter().enumerate().filter(|(_, p)| p.attached) {
            for (&function, f) in p.gates.iter().filter(|(_, f)| !f.retired) {
                for held in f.gate.holdings() {
                    let target = f.gate.view().targets.iter().any(|t| t.id == held.revision);
                    let free = matches!(held.share, Share::Slots(slots) if slots > held.busy);
                    if target && free && !held.draining {
                        idle.insert((plane, held.sandbox, function));
                    }
                }
            }
        }
        idle
    }
}
