//! When everything is quiet, what the leader has reserved on a worker is what runs there.

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "reservations";

impl World {
    pub(super) fn check_reservations(&mut self) {
        let leader = self.leader().and_then(|c| self.controls.get(c));
        let Some(machine) = leader.and_then(|c| c.leads.as_ref()) else {
            return self.hold(NAME, false, |_| "nobody leads".to_owned());
        };
        for summary in machine.workers() {
            let at = self.worker_named(&summary.name);
            // Who left is not asked, and what it had is of no use.
            if at.is_some_and(|n| self.left.contains(&Host::Worker(n))) {
                continue;
            }
            let truth = at.and_then(|n| self.workers.get(n)).map_or((0, 0, 0), |w| w.reserved());
            let (memory, cpu) = (summary.memory.0.0, u64::from(summary.cpu.0.0));
            let booked = (memory, cpu, u64::from(summary.sandboxes));
            self.hold(NAME, booked == truth, |_| {
                format!("{}: {booked:?} reserved, {truth:?} in use; {summary:?}", summary.name)
            });
        }
    }
}
