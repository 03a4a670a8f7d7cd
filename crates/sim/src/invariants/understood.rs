//! Nobody is told what its version does not know: not what is wanted of it, not the tokens, and not of
//! a function whose callers it would not check.

use dirigent_core::{StreamId, frame::ToDataPlane};

use crate::world::World;

pub(super) const NAME: &str = "understood";

impl World {
    /// Something is said between a control plane and a data plane one of which is a version older.
    pub(crate) fn check_understood(&mut self, stream: StreamId, known: bool, frame: &ToDataPlane) {
        self.hold(NAME, known, |_| format!("on {stream} is said {frame:?}"));
    }
}
