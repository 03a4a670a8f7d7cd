//! No epoch is given twice, not even by a store that was restored from an older copy: the ids made in
//! it would be.

use dirigent_core::Epoch;

use crate::world::World;

pub(super) const NAME: &str = "epoch_given_once";

impl World {
    /// A control plane takes office.
    pub(crate) fn epoch_given(&mut self, epoch: Epoch) {
        let first = self.witness.epochs.insert(epoch);
        self.hold(NAME, first, |_| format!("epoch {epoch} is given a second time"));
    }
}
