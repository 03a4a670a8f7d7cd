//! When nobody calls, only what `min` asks for is left running.

use crate::world::World;

pub(super) const NAME: &str = "to_zero";

impl World {
    pub(super) fn check_to_zero(&mut self) {
        let wanted: u32 =
            self.store.state.functions.values().map(|record| record.settings.min).sum();
        let running: usize = self.workers.iter().map(|w| w.sandboxes.len()).sum();
        self.hold(NAME, running <= wanted as usize, |world| {
            let ids: Vec<_> = world
                .workers
                .iter()
                .flat_map(|w| w.sandboxes.iter().map(|(id, s)| (*id, s.revision)))
                .collect();
            let leader = world.leader().and_then(|c| world.controls.get(c));
            let booked = leader.and_then(|c| c.leads.as_ref()).map(|m| m.booked());
            format!("{running} run, {wanted} are wanted: {ids:?}; booked: {booked:?}")
        });
    }
}
