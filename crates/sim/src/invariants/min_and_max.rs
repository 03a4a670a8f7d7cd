//! Once settled every function has its `min`, if a revision of it ever was live, and never more than its
//! `max`.

use crate::world::World;

pub(super) const NAME: &str = "min_and_max";

impl World {
    pub(super) fn check_min_and_max(&mut self) {
        let records: Vec<_> = self.store.state.functions.values().cloned().collect();
        for record in records {
            let count = self
                .workers
                .iter()
                .flat_map(|w| w.sandboxes.values())
                .filter(|s| s.revision.function == record.id && s.listens)
                .count();
            let is_live = !record.targets.is_empty();
            let min = if is_live { record.settings.min as usize } else { 0 };
            let max = record.settings.max as usize;
            self.hold(NAME, (min..=max).contains(&count), |_| {
                format!("{} has {count} sandboxes, min {min}, max {max}", record.name)
            });
        }
    }
}
