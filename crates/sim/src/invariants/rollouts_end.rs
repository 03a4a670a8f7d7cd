//! After healing no revision is on its way to be live for longer than its starts may take: it is live, or
//! it failed, or a newer one took its place.
//!
//! In some clusters every function is deployed anew after the healing, in the others what was begun during
//! the faults must come to its end by itself.

use std::{collections::BTreeMap, time::Duration};

use dirigent_core::RevisionId;

use crate::world::World;

pub(super) const NAME: &str = "rollouts_end";

/// Three starts of 2 s for the check and three more for its capacity, as long for those that wait for
/// room, 2 s until data planes have applied the switch, and some for the store.
const LONGEST: Duration = Duration::from_secs(2 * 3 * 2 + 2 * 2 + 2 + 4);
/// A leader begins when it is recovered.
const RECOVERED: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn check_rollouts(&mut self) {
        // By now everybody has found the one in office.
        if self.leader().is_none() || !self.settled_since_healing(RECOVERED) {
            return;
        }
        let now = self.now;
        let before = std::mem::take(&mut self.witness.rolling);
        let mut rolling = BTreeMap::new();
        for record in self.store.state.functions.values() {
            for revision in &record.revisions {
                if revision.state.is_going() {
                    let revision = RevisionId { function: record.id, number: revision.number };
                    let since = before.get(&revision).copied().unwrap_or(now);
                    rolling.insert(revision, since.max(self.operators.led_since.after(RECOVERED)));
                }
            }
        }
        let old = rolling.iter().find(|(_, since)| now.since(**since) > LONGEST);
        let old = old.map(|(revision, since)| format!("{revision} since {since}"));
        let seen = !rolling.is_empty();
        self.witness.rolling = rolling;
        if seen {
            self.hold(NAME, old.is_none(), |world| {
                format!("still on its way: {old:?}: {:?}", world.store.state.functions)
            });
        }
    }
}
