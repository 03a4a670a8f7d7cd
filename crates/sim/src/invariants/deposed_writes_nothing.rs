//! The store takes no write of a leader whose term is over.

use dirigent_core::{Epoch, Write};

use crate::world::World;

pub(super) const NAME: &str = "deposed_writes_nothing";

impl World {
    /// The store is about to apply a write.
    pub(crate) fn stored(&mut self, epoch: Epoch, write: &Write) {
        let current = self.store.state.seat.epoch;
        self.hold(NAME, current == epoch, |_| {
            format!("epoch {epoch} wrote in epoch {current}: {write:?}")
        });
    }
}
