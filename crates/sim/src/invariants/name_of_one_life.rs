//! A worker that is heard, and a data plane that is attached, keep their name and stream, whoever
//! comes with the same name.

use dirigent_core::StreamId;

use crate::world::World;

pub(super) const NAME: &str = "name_of_one_life";

impl World {
    /// A leader was told by a twin who it is.
    pub(crate) fn check_name(&mut self, twin: StreamId, rival: StreamId) {
        let open = |stream| self.net.streams.get(&stream).is_some_and(|s| s.control_open);
        let holds = !open(twin) && open(rival);
        self.hold(NAME, holds, |_| format!("the twin on {twin} took the place of {rival}"));
    }
}
