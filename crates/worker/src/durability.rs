//! What a worker's files outlive.

use std::{io, path::Path};

use dirigent_service::state::{atomic_write, unforced_write};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A power failure: they are on the disk before anything depends on them.
    #[default]
    Host,
    /// The worker's process. Enough for one whose sandboxes end with its process; and a thousand of
    /// them on one disk, which at the next leader have to write at the same moment, would wait for it
    /// one after the other.
    Process,
}

impl Durability {
    /// Replaces a file, whole or not at all.
    pub(crate) fn write(self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Host => atomic_write(path, bytes, 0o600),
            Self::Process => unforced_write(path, bytes, 0o600),
        }
    }
}
