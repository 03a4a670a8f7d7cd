//! Artifacts in a directory, each file named by the SHA-256 of its bytes.
//!
//! An upload is streamed into a file of its own, verified, made durable and only then given its
//! name; half an upload is never seen and is removed at the next start. An artifact that no
//! revision refers to is removed when the control machine says so, or an hour after its upload.
//! While a deploy is on its way its artifact is pinned, so that a discard cannot overtake it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dirigent_core::{Digest, Records};
use futures_util::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, time::Instant};

/// How long an upload that nothing refers to is kept.
pub const UNREFERENCED: Duration = Duration::from_secs(3600);

/// The artifacts of this control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    limit: u64,
    uploads: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Held without a revision that refers to them, and since when.
    unreferenced: BTreeMap<Digest, Instant>,
    /// Deploys on their way, by artifact.
    pins: BTreeMap<Digest, u32>,
}

/// Why an upload is not kept.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// It is larger than allowed.
    #[error("the artifact is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The bytes are not those named.
    #[error("the bytes sent have the digest {actual}, not {wanted}")]
    Mismatch {
        /// What was named.
        wanted: Digest,
        /// What was sent.
        actual: Digest,
    },
    /// The sender stopped.
    #[error("the upload broke off: {message}")]
    Broken {
        /// Why.
        message: String,
    },
    /// The disk does not take it.
    #[error("the artifact cannot be stored: {source}")]
    Disk {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for PutError {
    fn from(source: io::Error) -> Self {
        Self::Disk { source }
    }
}

impl Blobs {
    /// The artifacts in `dir`, which is made if needed; leftovers of broken uploads are removed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        dirigent_service::state::private_dir(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(UPLOAD.as_bytes()) {
                fs::remove_file(entry.path())?;
            }
        }
        let shared = Shared {
            dir: dir.to_owned(),
            limit,
            uploads: AtomicU64::new(0),
            state: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Reads an artifact in `dir` and compares it with its name; its size. Blocks.
    ///
    /// # Errors
    /// Those of the file system, or that it is not what it is called.
    pub fn verify(dir: &Path, digest: Digest) -> io::Result<u64> {
        let mut file = fs::File::open(dir.join(digest.hex()))?;
        let mut hasher = Sha256::new();
        let size = io::copy(&mut file, &mut hasher)?;
        let actual = Digest(hasher.finalize().into());
        if actual == digest {
            return Ok(size);
        }
        let text = format!("its bytes have the digest {actual}: the file is damaged");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }

    /// The artifacts that these records refer to. Images of registries are none: they stay there, and
    /// workers have them from there.
    #[must_use]
    pub fn needed(records: &Records) -> BTreeSet<Digest> {
        let revisions = records.functions.iter().flat_map(|function| &function.revisions);
        let sent = revisions.filter(|revision| revision.spec.sandbox.registry_image().is_none());
        sent.filter_map(|revision| revision.spec.artifact).collect()
    }

    /// What these `records`, which have just been read, do not refer to has an hour to live, from the
    /// time when that was seen first. Blocks on the file system.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn refer(&self, records: &Records) -> io::Result<()> {
        let referred = Self::needed(records);
        let mut state = self.lock();
        let known = std::mem::take(&mut state.unreferenced);
        for entry in fs::read_dir(&self.shared.dir)? {
            let name = entry?.file_name();
            let digest = name.to_str().and_then(|name| format!("sha256:{name}").parse().ok());
            if let Some(digest) = digest.filter(|digest| !referred.contains(digest)) {
                let since = known.get(&digest).copied().unwrap_or_else(Instant::now);
                state.unreferenced.insert(digest, since);
            }
        }
        Ok(())
    }

    /// Something refers to these for certain, as records say that have just been read: what of them was
    /// fetched from another control plane does not go after an hour.
    pub(crate) fn need(&self, needed: &BTreeSet<Digest>) {
        self.lock().unreferenced.retain(|digest, _since| !needed.contains(digest));
    }

    /// The size of an artifact, if it is held.
    #[must_use]
    pub fn size(&self, digest: Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|meta| meta.len())
    }

    /// Whether an artifact is held; if so, it is as if it had just been uploaded.
    #[must_use]
    pub fn touch(&self, digest: Digest) -> bool {
        // Looked up under the lock under which files are removed.
        let mut state = self.lock();
        if let Some(since) = state.unreferenced.get_mut(&digest) {
            *since = Instant::now();
        }
        self.size(digest).is_some()
    }

    /// The largest artifact allowed.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// Open an artifact for reading.
    ///
    /// # Errors
    /// If it is not held, or cannot be read.
    pub async fn read(&self, digest: Digest) -> io::Result<tokio::fs::File> {
        tokio::fs::File::open(self.path(digest)).await
    }

    /// Keep the bytes of `body` if they are those that `digest` names; their number.
    ///
    /// # Errors
    /// Why they are not kept.
    pub async fn put<E: std::fmt::Display>(
        &self,
        digest: Digest,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, PutError> {
        let number = self.shared.uploads.fetch_add(1, Ordering::Relaxed);
        let upload = Upload { path: self.shared.dir.join(format!("{UPLOAD}{number}")) };
        let mut file = tokio::fs::File::create(&upload.path).await?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut body = std::pin::pin!(body);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| PutError::Broken { message: error.to_string() })?;
            size += piece.len() as u64;
            if size > self.shared.limit {
                return Err(PutError::TooLarge { limit: self.shared.limit });
            }
            hasher.update(&piece);
            file.write_all(&piece).await?;
        }
        let actual = Digest(hasher.finalize().into());
        if actual != digest {
            return Err(PutError::Mismatch { wanted: digest, actual });
        }
        // A write is done behind our back; `sync_all` would forget that it failed.
        file.flush().await?;
        file.sync_all().await?;
        drop(file);
        self.keep(digest, &upload.path).await?;
        Ok(size)
    }

    async fn keep(&self, digest: Digest, upload: &Path) -> io::Result<()> {
        let path = self.path(digest);
        if !tokio::fs::try_exists(&path).await? {
            // Before the rename: from then on a collection may look at it.
            self.lock().unreferenced.insert(digest, Instant::now());
        }
        tokio::fs::rename(upload, &path).await?;
        let synced =
            tokio::task::spawn_blocking(move || dirigent_service::state::sync_parent(&path));
        synced.await.map_err(io::Error::other)?
    }

    /// Keep an artifact while a deploy that needs it is on its way; `None` if it is not held.
    #[must_use]
    pub fn pin(&self, digest: Digest) -> Option<Pin> {
        let mut state = self.lock();
        // Looked up under the lock under which files are removed.
        self.size(digest)?;
        *state.pins.entry(digest).or_default() += 1;
        drop(state);
        Some(Pin { blobs: self.clone(), digest, was_unreferenced: false })
    }

    /// No revision needs these: they are removed, unless a deploy on its way does. Blocks on the
    /// file system.
    pub fn discard(&self, digests: &[Digest]) {
        let mut state = self.lock();
        for digest in digests {
            if state.pins.contains_key(digest) {
                state.unreferenced.insert(*digest, Instant::now());
            } else {
                state.unreferenced.remove(digest);
                self.remove(*digest);
            }
        }
    }

    /// Remove what nothing has referred to for an hour. Blocks on the file system.
    pub fn collect(&self) {
        let mut state = self.lock();
        let State { unreferenced, pins } = &mut *state;
        unreferenced.retain(|digest, since| {
            let old = since.elapsed() >= UNREFERENCED && !pins.contains_key(digest);
            if old {
                self.remove(*digest);
            }
            !old
        });
    }

    fn remove(&self, digest: Digest) {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%digest, %error, "artifact cannot be removed");
            }
            _ => tracing::info!(%digest, "artifact removed"),
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.shared.dir.join(digest.hex())
    }

    /// Whether it has an hour to live.
    #[cfg(test)]
    pub(crate) fn is_unreferenced(&self, digest: Digest) -> bool {
        self.lock().unreferenced.contains_key(&digest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An artifact held for a deploy on its way.
#[derive(Debug)]
pub struct Pin {
    blobs: Blobs,
    digest: Digest,
    /// Nothing referred to it before this deploy.
    was_unreferenced: bool,
}

impl Pin {
    /// The deploy is about to be recorded: a revision may refer to the artifact from now on,
    /// whether or not anybody waits for the answer.
    pub fn refer(&mut self) {
        self.was_unreferenced |= self.blobs.lock().unreferenced.remove(&self.digest).is_some();
    }

    /// The deploy is not recorded.
    pub fn refused(self) {
        if self.was_unreferenced {
            self.blobs.lock().unreferenced.insert(self.digest, Instant::now());
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.blobs.lock();
        if let Some(pins) = state.pins.get_mut(&self.digest) {
            *pins -= 1;
            if *pins == 0 {
                state.pins.remove(&self.digest);
            }
        }
    }
}

/// What the names of unfinished uploads start with.
const UPLOAD: &str = ".upload-";

/// An unfinished upload: removed unless it got its name.
struct Upload {
    path: PathBuf,
}

impl Drop for Upload {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "upload cannot be removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    fn body(pieces: &[&'static str]) -> impl Stream<Item = Result<Bytes, io::Error>> + use<> {
        let pieces: Vec<_> = pieces.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
        stream::iter(pieces)
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn what_is_kept_is_what_was_named() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        assert_eq!(blobs.put(digest(b"abcdef"), body(&["abc", "def"])).await.unwrap(), 6);
        assert_eq!(blobs.size(digest(b"abcdef")), Some(6));

        let wrong = blobs.put(digest(b"other"), body(&["abc"])).await.unwrap_err();
        assert!(matches!(wrong, PutError::Mismatch { .. }), "{wrong}");
        let large = blobs.put(digest(b"abcdefabcdef"), body(&["abcdef", "abcdef"])).await;
        assert!(matches!(large, Err(PutError::TooLarge { limit: 10 })));
        let broken = stream::iter([Ok(Bytes::new()), Err(io::Error::other("left"))]);
        assert!(matches!(blobs.put(digest(b""), broken).await, Err(PutError::Broken { .. })));
        assert_eq!(files(dir.path()), 1);
    }

    #[tokio::test]
    async fn what_a_full_disk_did_not_take_is_not_kept() {
        // /dev/full fails each write as a full disk does.
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        let upload = dir.path().join(format!("{UPLOAD}0"));
        std::os::unix::fs::symlink("/dev/full", upload).unwrap();
        let error = blobs.put(digest(b"abc"), body(&["abc"])).await.unwrap_err();
        assert!(error.to_string().contains("space"), "{error}");
        assert_eq!((blobs.size(digest(b"abc")), files(dir.path())), (None, 0));
    }

    #[tokio::test]
    async fn a_pinned_artifact_outlives_a_discard() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        let digest = digest(b"abc");
        blobs.put(digest, body(&["abc"])).await.unwrap();
        let mut pin = blobs.pin(digest).unwrap();
        blobs.discard(&[digest]);
        assert_eq!(blobs.size(digest), Some(3));
        pin.refer();
        drop(pin);
        blobs.discard(&[digest]);
        assert_eq!(blobs.size(digest), None);
        assert!(blobs.pin(digest).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_that_nothing_refers_to_go_after_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        for text in ["one", "two"] {
            blobs.put(digest(text.as_bytes()), body(&[text])).await.unwrap();
        }
        // Its client leaves before it hears whether the deploy is recorded.
        blobs.pin(digest(b"two")).unwrap().refer();
        let mut refused = blobs.pin(digest(b"one")).unwrap();
        refused.refer();
        refused.refused();
        tokio::time::advance(UNREFERENCED - Duration::from_secs(1)).await;
        blobs.collect();
        assert_eq!(files(dir.path()), 2);
        tokio::time::advance(Duration::from_secs(1)).await;
        blobs.collect();
        assert_eq!(blobs.size(digest(b"one")), None);
        assert_eq!(blobs.size(digest(b"two")), Some(3));
    }

    #[tokio::test]
    async fn leftovers_of_uploads_are_removed_at_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".upload-7"), b"half").unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        assert_eq!(files(dir.path()), 0);
        blobs.put(digest(b"x"), body(&["x"])).await.unwrap();
    }
}
