//! A deploy that was acknowledged is in the store, whichever control planes died and whichever minority
//! of the store's disks was lost since.

use crate::world::World;

pub(super) const NAME: &str = "acknowledged_deploys_last";

impl World {
    pub(super) fn check_acknowledged(&mut self) {
        let mut missing = None;
        for (name, revision) in &self.users.acknowledged {
            if !self.store.state.has(*revision) {
                let record = self.store.state.functions.get(&revision.function);
                missing = Some(format!("{revision} of {name} was acknowledged: {record:?}"));
            }
        }
        if !self.users.acknowledged.is_empty() {
            self.hold(NAME, missing.is_none(), |_| missing.unwrap_or_default());
        }
    }
}
