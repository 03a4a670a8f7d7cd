//! The images that containerd holds for this worker: their snapshots, each under a lease, so that
//! containerd's garbage collector leaves them for as long as we want them and no longer.
//!
//! What containerd cannot tell, what is run and as whom, is in `DIR/images/<64 hex>.json`. An image
//! is held when that file is there and its snapshot is; whatever else is found at a start is the rest of
//! an import that was cut off, and removed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use dirigent_containerd::{
    Client, Failure,
    api::containerd::{
        services::{
            content::v1::{AbortRequest, WriteAction, WriteContentRequest},
            diff::v1::ApplyRequest,
            leases::v1::{
                AddResourceRequest, CreateRequest, DeleteRequest, DeleteResourceRequest,
                ListRequest, Resource,
            },
            snapshots::v1::{
                CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest,
                RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
            },
        },
        types::{Descriptor, Mount},
    },
};
use dirigent_core::{Digest, Fault, Pull};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    ContainerConfig, DIRECTORY,
    image::{
        Image, ImageError, Limits, archive, chain,
        config::{Config, Seen},
        layer::{self, Allowance, Packed},
    },
    registry::{Registry, Remote, Tell, tagged},
};

/// A layer is applied by containerd in one call, and what nobody holds is collected in one.
const APPLY: Duration = Duration::from_secs(600);

/// Pieces of a layer on their way to containerd.
const PIECES: usize = 4;

/// What the layers of an image in containerd are called, unpacked.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// See the module.
#[derive(Debug)]
pub(super) struct Images {
    client: Client,
    snapshotter: String,
    directory: PathBuf,
    registries: BTreeMap<String, Registry>,
    /// What is ours in containerd begins with it.
    mark: String,
    held: RefCell<BTreeMap<Digest, Rc<Image>>>,
    /// Those that no revision needs any more.
    kept: RefCell<BTreeMap<Digest, Rc<Image>>>,
    /// One import at a time: they take a core and the disk each.
    importing: tokio::sync::Mutex<()>,
}

impl Images {
    pub(super) fn new(client: Client, config: &ContainerConfig, mark: &str) -> io::Result<Self> {
        let directory = config.directory.join("images");
        crate::keeper::private_directory(&directory)?;
        Ok(Self {
            client,
            snapshotter: config.snapshotter.clone(),
            directory,
            registries: config.registries.clone(),
            mark: mark.to_owned(),
            held: RefCell::default(),
            kept: RefCell::default(),
            importing: tokio::sync::Mutex::new(()),
        })
    }

    /// Finds what an earlier life left, and removes what is half done.
    pub(super) async fn recover(&self) -> Result<(), ImageError> {
        let error = |error: io::Error| ImageError::io("the images' directory", &error);
        let (mut held, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for entry in std::fs::read_dir(&self.directory).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let image = std::fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Image>(&bytes).ok());
            match image {
                Some(image) if self.has(&image.chain).await? => {
                    let needed = image.unneeded_since_ms.is_none();
                    let place = if needed { &mut held } else { &mut kept };
                    place.insert(image.digest, Rc::new(image));
                }
                // Layers of a pull that was cut off are in a directory.
                _ if path.is_dir() => std::fs::remove_dir_all(&path).map_err(error)?,
                _ => std::fs::remove_file(&path).map_err(error)?,
            }
        }
        let filters = vec![format!("labels.\"{DIRECTORY}\"=={}", self.mark)];
        let leases = self.client.leases().list(ListRequest { filters }).await;
        let leases = leases.map_err(|status| self.client.failure(&status))?.into_inner().leases;
        let wanted: Vec<String> =
            held.keys().chain(kept.keys()).map(|digest| self.lease(*digest)).collect();
        for lease in leases {
            if !wanted.contains(&lease.id) {
                self.release(&lease.id).await?;
            }
        }
        self.held.replace(held);
        self.kept.replace(kept);
        Ok(())
    }

    pub(super) fn get(&self, digest: Digest) -> Option<Rc<Image>> {
        self.held.borrow().get(&digest).cloned()
    }

    pub(super) fn list(&self) -> Vec<Digest> {
        self.held.borrow().keys().copied().collect()
    }

    /// What reads an image's files is called so in containerd.
    pub(super) fn view(&self, image: &Image) -> String {
        format!("{}-view-{}", self.mark, image.digest.hex())
    }

    /// What containerd would mount to read an image's files: asked each time, as who has emptied its
    /// directory may have others in the same places.
    pub(super) async fn mounts(&self, image: &Image) -> Result<Vec<Mount>, Failure> {
        let (snapshotter, key) = (self.snapshotter.clone(), self.view(image));
        let mounts = MountsRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        match self.client.snapshots().mounts(mounts.clone()).await {
            Ok(mounts) => return Ok(mounts.into_inner().mounts),
            Err(status) => match self.client.failure(&status) {
                failure if failure.is_not_found() => {}
                failure => return Err(failure),
            },
        }
        // The first sandbox of this image. Held as the image is, and with each sandbox that has it.
        let client = self.client.under(&self.lease(image.digest))?;
        let (parent, labels) = (image.chain.clone(), HashMap::new());
        let view = ViewSnapshotRequest { snapshotter, key, parent, labels };
        match client.snapshots().view(view).await {
            Ok(made) => return Ok(made.into_inner().mounts),
            Err(status) => match client.failure(&status) {
                failure if failure.is_exists() => {}
                failure => return Err(failure),
            },
        }
        let mounts = client.snapshots().mounts(mounts).await;
        Ok(mounts.map_err(|status| client.failure(&status))?.into_inner().mounts)
    }

    /// Since when nobody needs them, and which.
    pub(super) fn kept(&self) -> Vec<(u64, Digest)> {
        let kept = self.kept.borrow();
        kept.values().map(|one| (one.unneeded_since_ms.unwrap_or_default(), one.digest)).collect()
    }

    pub(super) fn keeps_any(&self) -> bool {
        !self.kept.borrow().is_empty()
    }

    /// No revision needs it any more; whether it is kept.
    pub(super) fn set_aside(&self, digest: Digest) -> bool {
        let Some(image) = self.get(digest) else { return false };
        // Later than all that went before it, also within a millisecond: the oldest goes first.
        let last = self.kept.borrow().values().filter_map(|image| image.unneeded_since_ms).max();
        let since = wall_ms().max(last.map_or(0, |last| last.saturating_add(1)));
        let image = Image { unneeded_since_ms: Some(since), ..Image::clone(&image) };
        if let Err(error) = self.remember(&image) {
            // Not even so little can be written.
            tracing::warn!(%digest, %error, "an image that nobody needs cannot be kept");
            return false;
        }
        self.held.borrow_mut().remove(&digest);
        self.kept.borrow_mut().insert(digest, Rc::new(image));
        true
    }

    /// It is needed again; whether it was kept.
    pub(super) fn take_back(&self, digest: Digest) -> Result<bool, ImageError> {
        let Some(image) = self.kept.borrow().get(&digest).cloned() else { return Ok(false) };
        self.keep(Image { unneeded_since_ms: None, ..Image::clone(&image) })?;
        self.kept.borrow_mut().remove(&digest);
        Ok(true)
    }

    async fn has(&self, name: &str) -> Result<bool, Failure> {
        let snapshotter = self.snapshotter.clone();
        let stat = StatSnapshotRequest { snapshotter, key: name.to_owned() };
        match self.client.snapshots().stat(stat).await {
            Ok(_found) => Ok(true),
            Err(status) => match self.client.failure(&status) {
                failure if failure.is_not_found() => Ok(false),
                failure => Err(failure),
            },
        }
    }

    fn lease(&self, digest: Digest) -> String {
        format!("{}-image-{}", self.mark, digest.to_string().replace(':', "-"))
    }

    fn file(&self, digest: Digest) -> PathBuf {
        self.directory.join(format!("{}.json", digest.hex()))
    }

    /// Takes the image in an archive, whose bytes must be `digest`, unless it is held already.
    pub(super) async fn import(&self, digest: Digest, path: &Path) -> Result<(), ImageError> {
        let _alone = self.importing.lock().await;
        if self.get(digest).is_some() {
            return Ok(());
        }
        let path = path.to_owned();
        let open = move || archive::open(&path, digest, Limits::default());
        let contents = blocking(open).await?;
        self.take(digest, &contents.config, &contents.layers, None).await
    }

    /// What the tag of an image stands for, here or at its registry.
    pub(super) async fn resolve(&self, image: &str, pull: Pull) -> Result<Digest, ImageError> {
        // Whoever writes a digest has settled it.
        if let Some((_, digest)) = image.split_once('@') {
            return digest.parse().map_err(|_other_kind| {
                ImageError::Refused(format!("`{image}` has a digest that is not SHA-256"))
            });
        }
        let newest = |of: &RefCell<BTreeMap<Digest, Rc<Image>>>| {
            let of = of.borrow();
            let tagged = of.values().filter_map(|image| Some((image.tag.as_ref()?, image.digest)));
            let of_it = tagged.filter(|((tag, _), _)| tag == image);
            of_it.max_by_key(|((_, at_ms), _)| *at_ms).map(|(_, digest)| digest)
        };
        let here = match pull {
            // What nobody needed for a while may be an old one; where none is asked it is better than none.
            Pull::Never => newest(&self.held).or_else(|| newest(&self.kept)),
            Pull::Missing | Pull::Always => newest(&self.held),
        };
        match (pull, here) {
            (Pull::Missing | Pull::Never, Some(digest)) => Ok(digest),
            (Pull::Never, None) => Err(ImageError::Registry {
                message: format!("`{image}` is not on this worker, and `sandbox.pull` is `never`"),
                fault: Fault::Worker,
            }),
            (Pull::Missing | Pull::Always, _) => {
                Remote::new(image, &self.registries)?.digest().await
            }
        }
    }

    /// Gets the image with this digest from its registry, unless it is held already.
    pub(super) async fn pull(
        &self,
        digest: Digest,
        image: &str,
        tell: Tell<'_>,
    ) -> Result<(), ImageError> {
        let _alone = self.importing.lock().await;
        if self.get(digest).is_some() {
            return Ok(());
        }
        let remote = Remote::new(image, &self.registries)?;
        let pulled = remote.pull(digest, &self.directory, Limits::default(), tell).await?;
        let tag = (tagged(image).to_owned(), wall_ms());
        self.take(digest, &pulled.config, &pulled.layers, Some(tag)).await
    }

    /// Takes an image whose layers are files here.
    async fn take(
        &self,
        digest: Digest,
        config: &[u8],
        layers: &[Packed],
        tag: Option<(String, u64)>,
    ) -> Result<(), ImageError> {
        let lease = self.lease(digest);
        let labels = HashMap::from([(DIRECTORY.to_owned(), self.mark.clone())]);
        let create = CreateRequest { id: lease.clone(), labels };
        match self.client.leases().create(create).await {
            Ok(_made) => {}
            Err(status) => match self.client.failure(&status) {
                failure if failure.is_exists() => {}
                failure => return Err(failure.into()),
            },
        }
        let taken = match self.unpack(digest, &lease, config, layers).await {
            Ok(image) => self.keep(Image { tag, ..image }),
            Err(error) => Err(error),
        };
        if taken.is_err()
            && let Err(error) = self.release(&lease).await
        {
            tracing::warn!(%digest, %error, "the rest of an image stays until the next start");
        }
        taken
    }

    async fn unpack(
        &self,
        digest: Digest,
        lease: &str,
        config: &[u8],
        layers: &[Packed],
    ) -> Result<Image, ImageError> {
        let config = Config::parse(config)?;
        let promised = config.layers().to_vec();
        if promised.is_empty() || promised.len() != layers.len() {
            let (has, says) = (layers.len(), promised.len());
            let message = format!("it has {has} layers, and its configuration says {says}");
            return Err(ImageError::Format(message));
        }
        let client = self.client.under(lease)?;
        let mut seen = Seen::default();
        let mut allowance = Allowance::new(Limits::default());
        let mut below: Option<String> = None;
        for (packed, layer) in layers.iter().zip(promised) {
            let name = chain(below.as_deref(), layer);
            // First: what is there, or comes meanwhile, may be another worker's, and go with theirs.
            self.hold(lease, "content", &layer.to_string()).await?;
            self.hold(lease, &format!("snapshots/{}", self.snapshotter), &name).await?;
            let there = self.has(&name).await?;
            (seen, allowance) =
                self.pass(&client, packed, layer, !there, (seen, allowance)).await?;
            if !there {
                self.apply(&client, layer, below.as_deref(), &name).await?;
            }
            self.let_go(lease, "content", &layer.to_string()).await?;
            below = Some(name);
        }
        let chain = below.unwrap_or_default();
        let bytes = allowance.bytes();
        let program = config.program(&seen)?;
        Ok(Image { digest, chain, program, bytes, tag: None, unneeded_since_ms: None })
    }

    fn keep(&self, image: Image) -> Result<(), ImageError> {
        self.remember(&image).map_err(|error| ImageError::io("the image's record", &error))?;
        self.held.borrow_mut().insert(image.digest, Rc::new(image));
        Ok(())
    }

    /// Durable, whole or not at all.
    fn remember(&self, image: &Image) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer(&mut file, image)?;
        file.as_file().sync_all()?;
        file.persist(self.file(image.digest)).map_err(|error| error.error)?;
        std::fs::File::open(&self.directory)?.sync_all()
    }

    /// Reads a layer, and gives its bytes to containerd if it lacks them.
    async fn pass(
        &self,
        client: &Client,
        packed: &Packed,
        layer: Digest,
        is_new: bool,
        (mut seen, mut allowance): (Seen, Allowance),
    ) -> Result<(Seen, Allowance), ImageError> {
        let (out, pieces) = mpsc::channel::<Bytes>(PIECES);
        let packed = packed.clone();
        let reading = blocking(move || {
            let out = is_new.then_some(out);
            layer::read(&packed, layer, &mut allowance, &mut seen, out)?;
            Ok((seen, allowance))
        });
        if !is_new {
            return reading.await;
        }
        let (read, written) = tokio::join!(reading, self.write(client, layer, pieces));
        // What is wrong with the layer is why it was not written, and not the other way round.
        match (read, written) {
            (Ok(read), Ok(())) => Ok(read),
            (Err(ImageError::Format(_)), Err(failure)) => Err(failure.into()),
            (Err(error), _) => Err(error),
            (Ok(_), Err(failure)) => Err(failure.into()),
        }
    }

    /// Streams content; it is committed, by its digest, when all pieces have come.
    async fn write(
        &self,
        client: &Client,
        digest: Digest,
        mut pieces: mpsc::Receiver<Bytes>,
    ) -> Result<(), Failure> {
        let (requests, stream) = mpsc::channel(1);
        let reference = format!("{}-{digest}", self.mark);
        let request = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
            action: action.into(),
            r#ref: reference.clone(),
            offset,
            data,
            ..WriteContentRequest::default()
        };
        let send = async {
            let mut offset = 0;
            while let Some(piece) = pieces.recv().await {
                let length = i64::try_from(piece.len()).unwrap_or(i64::MAX);
                let data = request(WriteAction::Write, offset, piece.into());
                if requests.send(data).await.is_err() {
                    return;
                }
                offset += length;
            }
            let mut commit = request(WriteAction::Commit, offset, Vec::new());
            commit.total = offset;
            commit.expected = digest.to_string();
            // Whoever does not take it has answered why.
            drop(requests.send(commit).await);
            drop(requests);
        };
        let receive = async {
            let mut content = client.within(APPLY).content();
            let mut answers = content.write(ReceiverStream::new(stream)).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if answer.action() == WriteAction::Commit {
                    return Ok(());
                }
            }
            Err(tonic::Status::aborted("containerd ended the write of a layer"))
        };
        // What a write that was cut off left would have to be gone on with.
        drop(client.content().abort(AbortRequest { r#ref: reference.clone() }).await);
        let ((), written) = tokio::join!(send, receive);
        match written.map_err(|status: tonic::Status| client.failure(&status)) {
            Err(failure) if failure.is_exists() => Ok(()),
            written => written,
        }
    }

    /// Makes a snapshot of a layer on those below.
    async fn apply(
        &self,
        client: &Client,
        layer: Digest,
        below: Option<&str>,
        name: &str,
    ) -> Result<(), Failure> {
        let failed = |status: tonic::Status| client.failure(&status);
        let snapshotter = self.snapshotter.clone();
        let key = format!("{}-import-{layer}", self.mark);
        let remove = RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        // What an import that was cut off left.
        drop(client.snapshots().remove(remove.clone()).await);
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: below.unwrap_or_default().to_owned(),
            labels: HashMap::new(),
        };
        let mounts = client.snapshots().prepare(prepare).await.map_err(failed)?.into_inner().mounts;
        let diff = Descriptor {
            media_type: LAYER.to_owned(),
            digest: layer.to_string(),
            ..Descriptor::default()
        };
        let apply = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
        let applied = client.within(APPLY).diff().apply(apply).await.map_err(failed);
        let commit = CommitSnapshotRequest {
            snapshotter,
            name: name.to_owned(),
            key,
            labels: HashMap::new(),
        };
        let committed = match applied {
            Ok(_applied) => client.snapshots().commit(commit).await.map_err(failed).map(drop),
            Err(failure) => Err(failure),
        };
        match committed {
            Ok(()) => Ok(()),
            Err(failure) => {
                drop(client.snapshots().remove(remove).await);
                // Somebody else was first with the same layers.
                if failure.is_exists() { Ok(()) } else { Err(failure) }
            }
        }
    }

    async fn hold(&self, lease: &str, kind: &str, id: &str) -> Result<(), Failure> {
        let resource = Some(Resource { id: id.to_owned(), r#type: kind.to_owned() });
        let add = AddResourceRequest { id: lease.to_owned(), resource };
        let added = self.client.leases().add_resource(add).await;
        added.map(drop).map_err(|status| self.client.failure(&status))
    }

    async fn let_go(&self, lease: &str, kind: &str, id: &str) -> Result<(), Failure> {
        let resource = Some(Resource { id: id.to_owned(), r#type: kind.to_owned() });
        let delete = DeleteResourceRequest { id: lease.to_owned(), resource };
        let deleted = self.client.leases().delete_resource(delete).await;
        absent(deleted.map(drop).map_err(|status| self.client.failure(&status)))
    }

    async fn release(&self, lease: &str) -> Result<(), Failure> {
        // Else it is collected some hundred calls later.
        let delete = DeleteRequest { id: lease.to_owned(), sync: true };
        let deleted = self.client.within(APPLY).leases().delete(delete).await;
        absent(deleted.map(drop).map_err(|status| self.client.failure(&status)))
    }

    /// Not found from now on; whether it was. What containerd has of it goes by [`Images::let_go_of`].
    pub(super) fn forget(&self, digest: Digest) -> bool {
        let held = self.held.borrow_mut().remove(&digest);
        let found = held.or_else(|| self.kept.borrow_mut().remove(&digest)).is_some();
        if found && let Err(error) = std::fs::remove_file(self.file(digest)) {
            tracing::warn!(%digest, %error, "the record of an image stays");
        }
        found
    }

    /// Releases what containerd has of an image that was forgotten, unless it is here again.
    pub(super) async fn let_go_of(&self, digest: Digest) {
        // Else one that is being taken again would lose its lease.
        let _alone = self.importing.lock().await;
        if self.get(digest).is_some() {
            return;
        }
        if let Err(error) = self.release(&self.lease(digest)).await {
            tracing::warn!(%digest, %error, "an image stays until the next start");
        }
    }
}

pub(super) fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Not being there is what was wanted.
pub(super) fn absent(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.is_not_found() => Ok(()),
        result => result,
    }
}

/// Does on a thread of its own what takes the disk or a core.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ImageError::Machine(format!("it was not read: {error}"))))
}
