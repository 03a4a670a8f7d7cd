//! Nobody is told what its version does not know: not what is wanted of it, not the tokens, not of a
//! function whose callers it would not check, and not that another one has its name.

use std::fmt::Debug;

use dirigent_core::StreamId;

use crate::world::World;

pub(super) const NAME: &str = "understood";

impl World {
    /// Something is said by a control plane, where it or its peer is a version older.
    pub(crate) fn check_understood(&mut self, stream: StreamId, known: bool, frame: &dyn Debug) {
        self.hold(NAME, known, |_| format!("on {stream} is said {frame:?}"));
    }
}
