//! Artifacts: a function's files, packed by who deploys, unpacked once by each worker.
//!
//! An artifact is an archive (tar, or tar in zstd) whose only name is the SHA-256 of its bytes.
//! [`ArtifactStore`] keeps one directory per artifact: `DIR/<64 hex>/`. A directory with such a
//! name is complete and durable; work in progress has a name that begins with a dot and is removed
//! by the next [`ArtifactStore::open`].
//!
//! It refuses everything by which an archive could reach out of its directory or exhaust the
//! disk: see [`UnpackError`]. All functions here block.

mod ignore;
mod links;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

pub use pack::{PackError, Packed, pack};

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use dirigent_core::{Bytes, Digest, Fault, worker::ArtifactFailure};

/// What an archive may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and links, those that are only implied included.
    pub entries: usize,
    /// Bytes of the unpacked archive.
    pub bytes: u64,
    /// How many times larger than the archive its contents may be, judged beyond the first 64 MiB.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 100_000, bytes: 2 << 30, ratio: 200 }
    }
}

/// The longest path within an artifact.
const MAX_PATH: usize = 1024;
/// The longest name of one file, as most file systems have it.
const MAX_NAME: usize = 255;

/// The unpacked artifacts of one worker.
#[derive(Debug)]
pub struct ArtifactStore {
    dir: PathBuf,
    limits: Limits,
    /// Tells temporary directories of this process apart.
    next: AtomicU64,
}

impl ArtifactStore {
    /// The store in `dir`, which is made if it is not there. What an earlier life left half done
    /// is removed.
    ///
    /// # Errors
    /// If the directory cannot be made, read or cleaned.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::with_limits(dir, Limits::default())
    }

    /// As [`Self::open`], with other limits.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_limits(dir: &Path, limits: Limits) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), limits, next: AtomicU64::new(1) })
    }

    /// Where the files of an artifact are, if it is unpacked.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.dir.join(hex(digest));
        path.is_dir().then_some(path)
    }

    /// Artifacts that are unpacked and complete.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            // Names that are no digest are not ours: left alone.
            if let Some(digest) = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok())
            {
                digests.push(digest);
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// Unpack an archive as `digest`. It is there whole, and on disk, or not at all. Does nothing
    /// if it is there already; the archive stays where it is.
    ///
    /// # Errors
    /// If the archive is not the artifact of that name, is refused, or there is no room.
    pub fn unpack(&self, digest: Digest, archive: &Path) -> Result<(), UnpackError> {
        if self.path(&digest).is_some() {
            return Ok(());
        }
        let temporary = self.temporary("unpack");
        let result = self.unpack_at(digest, archive, &temporary);
        if result.is_err()
            && let Err(error) = fs::remove_dir_all(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %temporary.display(), %error, "a half-unpacked artifact is left");
        }
        result
    }

    fn unpack_at(&self, digest: Digest, archive: &Path, at: &Path) -> Result<(), UnpackError> {
        fs::DirBuilder::new().mode(0o755).create(at).map_err(|e| UnpackError::io(at, e))?;
        unpack::unpack(digest, archive, at, self.limits)?;
        // One call makes the whole tree durable; an fsync per file would cost as many commits.
        let root = fs::File::open(at).map_err(|e| UnpackError::io(at, e))?;
        rustix::fs::syncfs(&root).map_err(|e| UnpackError::io(at, e.into()))?;
        let target = self.dir.join(hex(&digest));
        match fs::rename(at, &target) {
            Ok(()) => {}
            // Somebody else was first with the same bytes.
            Err(_) if target.is_dir() => {
                return fs::remove_dir_all(at).map_err(|e| UnpackError::io(at, e));
            }
            Err(error) => return Err(UnpackError::io(&target, error)),
        }
        fs::File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| UnpackError::io(&self.dir, e))
    }

    /// Take an artifact away, if it is there, so that it is not found any more; what is returned
    /// is still to be removed, which may take long. The next `open` removes it otherwise.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn discard(&self, digest: &Digest) -> io::Result<Option<PathBuf>> {
        let away = self.temporary("discard");
        match fs::rename(self.dir.join(hex(digest)), &away) {
            Ok(()) => Ok(Some(away)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn temporary(&self, what: &str) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!(".{what}-{}-{n}", std::process::id()))
    }
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are not those that were deployed.
    #[error("the archive is {found}, not {expected}: it was damaged on its way")]
    Mismatch {
        /// The name it was asked by.
        expected: Digest,
        /// What its bytes say.
        found: Digest,
    },
    /// It is not an archive of a form that is understood.
    #[error("not a tar archive, plain or in zstd: {0}")]
    Format(String),
    /// An entry is not accepted.
    #[error("refused: `{entry}` {why}")]
    Refused {
        /// Its name in the archive.
        entry: String,
        /// What is wrong with it.
        why: Refusal,
    },
    /// Too many files.
    #[error("refused: more than {limit} files and directories")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Too large when unpacked.
    #[error("refused: larger than {limit} when unpacked")]
    TooLarge {
        /// The limit.
        limit: Bytes,
    },
    /// It grows out of proportion: made to exhaust the disk.
    #[error("refused: unpacks to more than {ratio} times its size")]
    Bomb {
        /// The limit.
        ratio: u64,
    },
    /// The disk is full.
    #[error("no space left on the disk of {}: free some, or move the state directory", path.display())]
    NoSpace {
        /// Where it was to go.
        path: PathBuf,
    },
    /// The worker's disk failed us.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
}

impl UnpackError {
    fn io(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned() }
            }
            _ => Self::Io { path: path.to_owned(), error },
        }
    }

    /// What is told of it. An archive that every worker refuses is the function's fault.
    #[must_use]
    pub fn failure(&self) -> ArtifactFailure {
        let fault = match self {
            Self::Format(_)
            | Self::Refused { .. }
            | Self::TooMany { .. }
            | Self::TooLarge { .. }
            | Self::Bomb { .. } => Fault::Function,
            Self::Mismatch { .. } | Self::NoSpace { .. } | Self::Io { .. } => Fault::Worker,
        };
        ArtifactFailure::new(self.to_string(), fault)
    }
}

/// What is wrong with an entry of an archive, or a file to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An absolute path, or one with `..`.
    Outside,
    /// A link whose target is not within the artifact, or that leads nowhere but in a circle.
    LinkOutside,
    /// A hard link to something that is not a file before it in the archive.
    BadHardLink,
    /// A name or path that is too long.
    TooLong,
    /// An empty name, or one with a zero byte.
    BadName,
    /// There already.
    Twice,
    /// Below something that is not a directory.
    NotBelowDirectory,
    /// A device, pipe or socket.
    Special,
    /// A form of tar that is not understood.
    Unsupported,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outside => "is an absolute path or has `..` in it",
            Self::LinkOutside => "is a link that leads out of the artifact or in a circle",
            Self::BadHardLink => "is a hard link to no file that came before it",
            Self::TooLong => "has a name over 255 bytes or a path over 1024 bytes",
            Self::BadName => "has an empty name or one with a zero byte",
            Self::Twice => "is in the archive twice",
            Self::NotBelowDirectory => "lies below something that is not a directory",
            Self::Special => "is a device, pipe or socket",
            Self::Unsupported => "is of a kind that is not supported (sparse, multi-volume, ...)",
        })
    }
}

fn hex(digest: &Digest) -> String {
    digest.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
        for nibble in [byte >> 4, byte & 15] {
            hex.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
        hex
    })
}
