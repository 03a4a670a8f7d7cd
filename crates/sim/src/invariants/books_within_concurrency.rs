//! In no leader's books are more slots of a sandbox held than it has, nor do the data planes that
//! live hold more of it together. What a data plane holds that the store was made to forget is not counted
//! until it has given it back.

use std::collections::BTreeMap;

use dirigent_core::{SandboxId, frame::Share};

use crate::world::World;

pub(super) const NAME: &str = "books_within_concurrency";

impl World {
    pub(super) fn check_books(&mut self) {
        let mut over = None;
        let mut seen = false;
        for machine in self.controls.iter().filter_map(|c| c.leads.as_ref()) {
            for booked in machine.booked() {
                let held: u32 = booked.holders.iter().map(|(_, slots)| slots).sum();
                seen |= held > 0;
                if booked.concurrency > 0 && held > booked.concurrency {
                    over = Some(format!("{:?} booked: {booked:?}", machine.epoch()));
                }
            }
        }
        let mut held: BTreeMap<SandboxId, u32> = BTreeMap::new();
        for (plane, p) in self.planes.iter().enumerate().filter(|(_, p)| p.up) {
            for holding in p.gates.values().flat_map(|f| f.gate.holdings()) {
                // What it was barred from it holds in vain.
                let barred = self.find_sandbox(holding.sandbox).is_some_and(|one| one.bars(plane));
                let forgotten = p.forgotten.contains(&holding.sandbox);
                if let (Share::Slots(slots), false) = (holding.share, barred || forgotten) {
                    *held.entry(holding.sandbox).or_default() += slots;
                }
            }
        }
        for (sandbox, held) in held {
            let limit = self.find_sandbox(sandbox).map(|one| one.concurrency);
            if limit.is_some_and(|limit| limit > 0 && held > limit) {
                over = Some(format!("{held} slots of {sandbox} are held, it has {limit:?}"));
            }
        }
        if seen || over.is_some() {
            self.hold(NAME, over.is_none(), |_| over.unwrap_or_default());
        }
    }
}
