//! Where two leaders act at once, cut off from each other, the slots of a sandbox that both have given
//! to those who are attached to them are not more than it has: each held slot is in the books of one.

use std::collections::BTreeMap;

use dirigent_core::SandboxId;

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "one_leader_per_slot";

impl World {
    pub(crate) fn check_leaders(&mut self) {
        let leaders = self.controls.iter().filter(|c| c.leads.is_some()).count();
        if leaders < 2 {
            return;
        }
        let mut held: BTreeMap<SandboxId, (u32, Vec<String>)> = BTreeMap::new();
        let mut by_several = false;
        for (control, c) in self.controls.iter().enumerate() {
            let booked = c.leads.iter().flat_map(|machine| machine.booked());
            for entry in booked.filter(|entry| entry.concurrency > 0) {
                for (id, slots) in entry.holders {
                    let Some(plane) = self.plane_of(control, id) else { continue };
                    if self.attached_to(plane) != Some(control) {
                        continue;
                    }
                    let at = &self.planes;
                    let forgotten =
                        at.get(plane).is_some_and(|p| p.forgotten.contains(&entry.sandbox));
                    if forgotten {
                        continue;
                    }
                    let (sum, who) = held.entry(entry.sandbox).or_default();
                    *sum += slots;
                    who.push(format!("{slots} of plane{plane} at control{control}"));
                    by_several = true;
                }
            }
        }
        let limit = |sandbox| self.find_sandbox(sandbox).map(|one| one.concurrency);
        let over = held.into_iter().find(|(sandbox, (sum, _))| {
            limit(*sandbox).is_some_and(|limit| limit > 0 && *sum > limit)
        });
        if by_several {
            self.hold(NAME, over.is_none(), |_| format!("{over:?}"));
        }
    }

    /// The control plane that a data plane has accepted.
    fn attached_to(&self, plane: usize) -> Option<usize> {
        let p = self.planes.get(plane).filter(|p| p.up && p.attached)?;
        self.net.streams.get(&p.stream?).filter(|s| s.peer == Host::Plane(plane)).map(|s| s.control)
    }
}
