//! No peer obeys an epoch below the highest that it ever obeyed, over its restarts.

use dirigent_core::StreamId;

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "epochs_only_grow";

impl World {
    /// A peer accepted the leader at the other end of a stream.
    pub(crate) fn obeyed(&mut self, peer: Host, stream: StreamId) {
        let Some(epoch) = self.net.streams.get(&stream).map(|s| s.epoch) else { return };
        let highest = self.witness.highest.entry(peer).or_default();
        let before = *highest;
        *highest = before.max(epoch);
        self.hold(NAME, epoch >= before, |_| {
            format!("{peer:?} obeys epoch {epoch} after {before}")
        });
    }
}
