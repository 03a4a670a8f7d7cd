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
            let at = self
                .workers
                .iter()
                .enumerate()
                .find(|(n, _)| *summary.name == *format!("{:?}", Host::Worker(*n)));
            // Who left is not asked, and what it had is of no use.
            if at.is_some_and(|(n, _)| self.left.contains(&Host::Worker(n))) {
                continue;
            }
            let truth = at.map_or(0, |(_, w)| w.sandboxes.values().map(|s| s.memory.0).sum());
            let booked = summary.memory.0.0;
            self.hold(NAME, booked == truth, |_| {
                format!("{}: {booked} bytes reserved, {truth} in use; {summary:?}", summary.name)
            });
        }
    }
}
