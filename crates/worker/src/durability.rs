//! What of a worker outlives it.

use std::{io, path::Path};

use dirigent_service::state::atomic_write;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What it has to know in its next life, also after a power failure: it is on the disk before
    /// anything depends on it.
    #[default]
    Host,
    /// Nothing. For one whose sandboxes end with its process, so that its next life has nothing to be
    /// careful of; and a thousand of them, with files each, spend more time on those than on all else
    /// while they attach.
    None,
}

impl Durability {
    /// Replaces a file, whole or not at all.
    pub(crate) fn write(self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Host => atomic_write(path, bytes, 0o600),
            Self::None => Ok(()),
        }
    }
}
