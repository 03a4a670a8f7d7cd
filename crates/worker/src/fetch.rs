//! Artifacts on their way: one file each, written as the pieces come, hashed at the same time.
//!
//! A broken connection loses nothing: the next one goes on at the offset reached. What a crash
//! leaves is removed at the next start.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use dirigent_core::{Digest, Fault, worker::ArtifactFailure};
use dirigent_service::state::private_dir;
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncWriteExt as _};

use crate::identity::StateError;

/// An archive is here, or cannot be had.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    /// The archive, which who unpacks it removes; or what went wrong.
    pub(crate) result: Result<PathBuf, ArtifactFailure>,
}

/// No archive is larger than this, whatever is in it.
const MAX_BYTES: u64 = 2 << 30;

/// See the module.
#[derive(Debug)]
pub(crate) struct Incoming {
    dir: PathBuf,
    max_bytes: u64,
    partial: BTreeMap<Digest, Partial>,
}

#[derive(Debug)]
struct Partial {
    path: PathBuf,
    /// Made with the first piece.
    file: Option<File>,
    hasher: Sha256,
    offset: u64,
}

/// What a piece did.
#[derive(Debug)]
pub(crate) enum Piece {
    /// More is to come.
    More,
    /// It was the last one; the artifact's fetch is over.
    Last(Fetched),
    /// The fetch failed here. More pieces of it may be on their way, so that the connection must
    /// be given up before the artifact is asked for again.
    Failed(Fetched),
    /// Nobody asked for it.
    Stray,
}

impl Incoming {
    pub(crate) fn open(state: &Path) -> Result<Self, StateError> {
        let dir = state.join("incoming");
        let left = match fs::read_dir(&dir) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StateError::Io(error)),
        };
        for entry in left.into_iter().flatten() {
            entry.and_then(|entry| fs::remove_file(entry.path())).map_err(StateError::Io)?;
        }
        Ok(Self { dir, max_bytes: MAX_BYTES, partial: BTreeMap::new() })
    }

    /// An artifact is wanted: where its bytes are to begin.
    pub(crate) fn begin(&mut self, digest: Digest) -> u64 {
        let name = digest.to_string().replace(':', "-");
        let partial = self.partial.entry(digest).or_insert_with(|| Partial {
            path: self.dir.join(name),
            file: None,
            hasher: Sha256::new(),
            offset: 0,
        });
        partial.offset
    }

    /// Everything that is on its way, and where it goes on.
    pub(crate) fn offsets(&self) -> Vec<(Digest, u64)> {
        self.partial.iter().map(|(digest, partial)| (*digest, partial.offset)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// A piece came.
    pub(crate) async fn piece(&mut self, digest: Digest, data: &[u8], end: bool) -> Piece {
        let max = self.max_bytes;
        let Some(partial) = self.partial.get_mut(&digest) else { return Piece::Stray };
        let added = if partial.offset + data.len() as u64 > max {
            Err(ArtifactFailure::new(
                format!("the artifact is larger than {max} bytes"),
                Fault::Function,
            ))
        } else {
            let added = partial.add(data, end).await;
            added.map_err(|error| unwritten(&partial.path, &error))
        };
        match added {
            Ok(()) if !end => Piece::More,
            Ok(()) => Piece::Last(self.last(digest).await),
            Err(failure) => Piece::Failed(self.fail(digest, failure).await),
        }
    }

    /// The control plane does not have it: no worker can get it.
    pub(crate) async fn refused(&mut self, digest: Digest, message: String) -> Option<Fetched> {
        if !self.partial.contains_key(&digest) {
            return None;
        }
        Some(self.fail(digest, ArtifactFailure::new(message, Fault::Function)).await)
    }

    async fn last(&mut self, digest: Digest) -> Fetched {
        let Some(partial) = self.partial.remove(&digest) else {
            let failure = ArtifactFailure::new("it was never asked for", Fault::Worker);
            return Fetched { digest, result: Err(failure) };
        };
        let found = Digest(partial.hasher.finalize().into());
        if found == digest {
            return Fetched { digest, result: Ok(partial.path) };
        }
        discard(&partial.path).await;
        let message = format!("the artifact was damaged on its way: its bytes are {found}");
        // They are hashed as they come: what this machine's disk does to them is found later.
        Fetched { digest, result: Err(ArtifactFailure::new(message, Fault::Function)) }
    }

    async fn fail(&mut self, digest: Digest, failure: ArtifactFailure) -> Fetched {
        if let Some(partial) = self.partial.remove(&digest) {
            discard(&partial.path).await;
        }
        Fetched { digest, result: Err(failure) }
    }
}

impl Partial {
    async fn add(&mut self, data: &[u8], end: bool) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                if let Some(dir) = self.path.parent() {
                    private_dir(dir)?;
                }
                self.file.insert(File::create(&self.path).await?)
            }
        };
        file.write_all(data).await?;
        if end {
            file.flush().await?;
        }
        self.hasher.update(data);
        self.offset += data.len() as u64;
        Ok(())
    }
}

async fn discard(path: &Path) {
    if let Err(error) = tokio::fs::remove_file(path).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a part of an artifact is left");
    }
}

fn unwritten(path: &Path, error: &io::Error) -> ArtifactFailure {
    let dir = path.parent().unwrap_or(path).display();
    let message = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("no space left on the worker's disk for the artifact ({dir}): free some")
        }
        _ => format!("the artifact cannot be stored in {dir}: {error}"),
    };
    ArtifactFailure::new(message, Fault::Worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    #[tokio::test]
    async fn pieces_make_a_file_whose_digest_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::open(dir.path()).unwrap();
        let digest = digest(b"hello");
        assert!(matches!(incoming.piece(digest, b"x", false).await, Piece::Stray));
        assert_eq!(incoming.begin(digest), 0);
        assert!(matches!(incoming.piece(digest, b"hel", false).await, Piece::More));
        assert_eq!(incoming.begin(digest), 3);
        let Piece::Last(fetched) = incoming.piece(digest, b"lo", true).await else { panic!() };
        assert_eq!(fs::read(fetched.result.unwrap()).unwrap(), b"hello");
        assert!(incoming.is_empty());
    }

    #[tokio::test]
    async fn damage_and_excess_are_found_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::open(dir.path()).unwrap();
        let digest = digest(b"hello");
        incoming.begin(digest);
        let Piece::Last(fetched) = incoming.piece(digest, b"help!", true).await else { panic!() };
        let failure = fetched.result.unwrap_err();
        assert!(failure.message.contains("damaged"));
        assert_eq!(failure.fault, Fault::Function);
        incoming.max_bytes = 3;
        incoming.begin(digest);
        let Piece::Failed(fetched) = incoming.piece(digest, b"hello", true).await else { panic!() };
        let failure = fetched.result.unwrap_err();
        assert!(failure.message.contains("larger than 3"));
        assert_eq!(failure.fault, Fault::Function);
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_full_disk_is_told_as_such() {
        // /dev/full fails each write as a full disk does.
        let dir = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::open(dir.path()).unwrap();
        let digest = digest(b"hello");
        incoming.begin(digest);
        fs::create_dir(dir.path().join("incoming")).unwrap();
        let name = digest.to_string().replace(':', "-");
        std::os::unix::fs::symlink("/dev/full", dir.path().join("incoming").join(name)).unwrap();
        let Piece::Failed(fetched) = incoming.piece(digest, b"hello", true).await else { panic!() };
        let failure = fetched.result.unwrap_err();
        assert!(failure.message.contains("no space left"));
        assert_eq!(failure.fault, Fault::Worker);
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("incoming")).unwrap();
        fs::write(dir.path().join("incoming/part"), "x").unwrap();
        Incoming::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
    }
}
