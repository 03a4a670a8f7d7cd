//! Images: what is in an archive or comes from a registry, checked before containerd sees a byte of
//! it.
//!
//! An image is a configuration and layers. Every layer is read once: its bytes are hashed as they
//! are packed and as they unpack, its entries are looked at, its size is bounded, and what passes goes
//! to containerd in the same pass, which applies it on the layers below.
//!
//! Refused: entries that lead out of the root, digests that are not those that were promised, layers
//! that unpack out of proportion, images for other systems.

pub(super) mod archive;
pub(super) mod config;
pub(super) mod layer;

use dirigent_core::{Bytes, Digest, Fault, worker::ArtifactFailure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::config::Program;

/// What an image may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// All layers, unpacked.
    pub(super) bytes: u64,
    /// Entries of all layers.
    pub(super) entries: u64,
    /// How many times larger than packed a layer may be, judged beyond the first 64 MiB.
    pub(super) ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 1_000_000, ratio: 200 }
    }
}

/// An image that containerd holds for us, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Image {
    /// What it is asked for by: the artifact that it came as, or its manifest's digest.
    pub(super) digest: Digest,
    /// Its snapshot, with all layers.
    pub(super) chain: String,
    /// What is run.
    pub(super) program: Program,
    /// Its layers, unpacked.
    pub(super) bytes: u64,
    /// The tag by which it was asked of its registry, and when.
    pub(super) tag: Option<(String, u64)>,
    /// Since when no revision needs it, by the machine's clock.
    #[serde(default)]
    pub(super) unneeded_since_ms: Option<u64>,
}

/// Layers that follow each other, by the digests of what they unpack to: the name of a snapshot
/// is made of all of them, as every client of containerd does it.
pub(super) fn chain(below: Option<&str>, layer: Digest) -> String {
    match below {
        None => layer.to_string(),
        Some(below) => Digest(Sha256::digest(format!("{below} {layer}")).into()).to_string(),
    }
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    /// The bytes are not those that were promised.
    #[error("{what} is {found}, not {expected}: it was damaged on its way")]
    Mismatch {
        /// Of what.
        what: String,
        /// The promise.
        expected: String,
        /// What the bytes say.
        found: String,
    },
    /// It is not an image of a form that is understood.
    #[error("not an image: {0}")]
    Format(String),
    /// It is an image, and not accepted.
    #[error("refused: {0}")]
    Refused(String),
    /// Larger than what is accepted.
    #[error("refused: its layers unpack to more than {0}")]
    TooLarge(Bytes),
    /// The registry does not give it.
    #[error("{message}")]
    Registry {
        /// What it said, and what to do.
        message: String,
        /// Whether another worker would be told the same.
        fault: Fault,
    },
    /// A disk of the machine is full.
    #[error("no space left on {0}")]
    Full(String),
    /// The machine cannot.
    #[error("{0}")]
    Machine(String),
}

impl ImageError {
    pub(super) fn io(what: &str, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full(format!("the worker's disk for {what}: free some"))
            }
            _ => Self::Machine(format!("{what}: {error}")),
        }
    }

    /// The function's where every worker would find the same.
    pub(super) fn failure(&self) -> ArtifactFailure {
        let fault = match self {
            Self::Format(_) | Self::Refused(_) | Self::TooLarge(_) => Fault::Function,
            Self::Registry { fault, .. } => *fault,
            // As for artifacts: the disk may have done it.
            Self::Mismatch { .. } | Self::Full(_) | Self::Machine(_) => Fault::Worker,
        };
        ArtifactFailure::new(format!("image: {self}"), fault)
    }
}

impl From<dirigent_containerd::Failure> for ImageError {
    fn from(failure: dirigent_containerd::Failure) -> Self {
        if failure.message.contains("no space left on device") {
            return Self::Full(format!("containerd's disk: free some ({failure})"));
        }
        Self::Machine(failure.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_as_the_specification_says() {
        let layer = |text: &str| Digest(Sha256::digest(text).into());
        let (one, two) = (layer("one"), layer("two"));
        assert_eq!(chain(None, one), one.to_string());
        let both = Digest(Sha256::digest(format!("{one} {two}")).into());
        assert_eq!(chain(Some(&chain(None, one)), two), both.to_string());
    }

    #[test]
    fn whose_fault_it_is_follows_from_who_would_find_the_same() {
        assert_eq!(ImageError::Refused(String::new()).failure().fault, Fault::Function);
        assert_eq!(ImageError::Machine(String::new()).failure().fault, Fault::Worker);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(ImageError::io("a layer", &full).failure().message.contains("free some"));
    }
}
