//! The artifacts of a cluster: each control plane has a directory, and a deploy is recorded only when
//! a majority of them holds its artifact. Who leads and lacks one has it from another.
//!
//! Refused: saying whether an artifact is needed. The records say so: a leader's are in its machine,
//! who stands by reads them now and then.

use std::{fmt, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use dirigent_core::{Digest, office};
use futures_util::Stream;
use tokio::{
    fs::File,
    runtime,
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use crate::{
    blobs::Blobs,
    owner::Handle,
    store::etcd::{Chair, Member},
};

/// Until another control plane holds an artifact, which it fetches: 512 MiB over a slow network.
const KEPT_WITHIN: Duration = Duration::from_secs(60);
/// Until another one's artifact is here.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// How often uploads that nothing refers to are looked for.
const COLLECT: Duration = Duration::from_secs(300);
/// How often all records are read to see what is needed.
const READ_EVERY: Duration = Duration::from_secs(3600);

/// What another control plane answers.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;
/// The bytes of an artifact.
pub type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// How a control plane reaches the others.
pub trait Others: Send + Sync + 'static {
    /// Tells what is heard of the leader at an address, until it is dropped.
    fn line(
        &self,
        leader: SocketAddr,
        told: mpsc::Sender<office::Event>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Has the one at `at` keep an artifact, which it reads at `from`.
    fn keep(&self, at: SocketAddr, digest: Digest, from: SocketAddr) -> Answer<()>;

    /// Reads an artifact of the one at `at`.
    fn read(&self, at: SocketAddr, digest: Digest) -> Answer<Pieces>;
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Artifacts {
    pub(crate) blobs: Blobs,
    shared: Option<Arc<Copies>>,
}

struct Copies {
    chair: Chair,
    others: Arc<dyn Others>,
    /// One artifact at a time is fetched: whoever waits for the same one finds it here then.
    fetching: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifacts").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

/// Why an artifact is not safe yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the artifact is held by {held} of {all} control planes, and a majority must hold it: {why}"
)]
pub(crate) struct TooFew {
    held: usize,
    all: usize,
    why: String,
}

impl Artifacts {
    /// Those of a control plane that has no others.
    pub(crate) const fn alone(blobs: Blobs) -> Self {
        Self { blobs, shared: None }
    }

    pub(crate) fn shared(blobs: Blobs, chair: Chair, others: Arc<dyn Others>) -> Self {
        let fetching = tokio::sync::Mutex::default();
        Self { blobs, shared: Some(Arc::new(Copies { chair, others, fetching })) }
    }

    /// Makes sure that a majority of the control planes holds an artifact that is held here. The others
    /// are asked each time: what they held an hour ago they may have removed since.
    pub(crate) async fn spread(&self, digest: Digest) -> Result<(), TooFew> {
        match &self.shared {
            Some(shared) => shared.spread(digest).await,
            None => Ok(()),
        }
    }

    /// No longer needed.
    pub(crate) fn discard(&self, digests: &[Digest]) {
        self.blobs.discard(digests);
    }

    /// Opens an artifact, which may have to be fetched first.
    pub(crate) async fn open(&self, digest: Digest) -> io::Result<File> {
        match (self.blobs.read(digest).await, &self.shared) {
            (Err(error), Some(shared)) if error.kind() == io::ErrorKind::NotFound => {
                shared.fetch(&self.blobs, digest).await?;
                self.blobs.read(digest).await
            }
            (opened, _) => opened,
        }
    }

    /// The bytes of an artifact that is held here, for another control plane.
    ///
    /// # Errors
    /// If it is not, or cannot be read.
    pub async fn read(&self, digest: Digest) -> io::Result<File> {
        self.blobs.read(digest).await
    }

    /// Keeps an artifact that another control plane holds, as it asks for.
    ///
    /// # Errors
    /// If it cannot be had from there, or not be kept.
    pub async fn keep(&self, digest: Digest, from: SocketAddr) -> Result<(), String> {
        if self.blobs.touch(digest) {
            return Ok(());
        }
        let shared = self.shared.as_ref().ok_or("this control plane has no others")?;
        let _one = shared.fetching.lock().await;
        if self.blobs.touch(digest) {
            return Ok(());
        }
        shared.fetch_from(&self.blobs, digest, from).await
    }
}

/// Collects what is not needed, and has what is lacking from others, as long as it is waited for.
pub(crate) async fn tend(artifacts: Artifacts, owner: Handle) {
    let mut read = None::<Instant>;
    loop {
        sleep(COLLECT).await;
        let leads = owner.sitting().is_some();
        if artifacts.shared.is_some() && read.is_none_or(|at| at.elapsed() >= READ_EVERY) {
            match artifacts.reconcile(leads).await {
                Ok(()) => read = Some(Instant::now()),
                Err(error) => {
                    tracing::info!(%error, "artifacts are not compared with the records now");
                }
            }
        }
        if leads {
            artifacts.collect().await;
        }
    }
}

impl Artifacts {
    async fn collect(&self) {
        let blobs = self.blobs.clone();
        if let Err(error) = spawn_blocking(move || blobs.collect()).await {
            tracing::warn!(%error, "artifacts were not collected");
        }
    }

    /// Compares what is held with the records: every control plane comes to hold what is needed. Who
    /// does not lead drops the rest, since it learns of no deploy.
    async fn reconcile(&self, leads: bool) -> Result<(), String> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let (chair, runtime) = (shared.chair.clone(), runtime::Handle::current());
        let records = spawn_blocking(move || chair.records(&runtime)).await;
        let records =
            records.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())?;
        let needed = Blobs::needed(&records);
        if !leads {
            let blobs = self.blobs.clone();
            let referred = spawn_blocking(move || blobs.refer(&records)).await;
            let referred = referred.map_err(|panic| panic.to_string())?;
            referred.map_err(|error| error.to_string())?;
            self.collect().await;
        }
        for &digest in &needed {
            if self.blobs.size(digest).is_none()
                && let Err(error) = shared.fetch(&self.blobs, digest).await
            {
                tracing::warn!(%digest, %error, "an artifact that is needed is lacking here");
            }
        }
        // What was fetched, now or when it was opened, came as an upload does.
        self.blobs.need(&needed);
        Ok(())
    }
}

impl Copies {
    /// The other control planes, where they can be reached, and how many there are with this one.
    async fn others(&self) -> Result<(Vec<(Member, SocketAddr)>, usize), String> {
        let members = self.chair.members().await.map_err(|error| error.to_string())?;
        let own = self.chair.member();
        let others: Vec<Member> =
            members.into_iter().filter(|member| member.name != own.name).collect();
        let all = others.len() + 1;
        let reachable = others.into_iter().filter_map(|member| {
            let address = member.peers.parse().ok()?;
            Some((member, address))
        });
        Ok((reachable.collect(), all))
    }

    async fn spread(&self, digest: Digest) -> Result<(), TooFew> {
        let unknown = |why| TooFew { held: 1, all: 1, why };
        let (others, all) = self.others().await.map_err(unknown)?;
        let own = self.chair.member().peers.parse();
        let own: SocketAddr =
            own.map_err(|error: std::net::AddrParseError| unknown(error.to_string()))?;
        let (needed, mut held, mut why) = (all / 2 + 1, 1, "none was asked".to_owned());
        let mut asked = JoinSet::new();
        for (member, at) in others {
            let keeping = self.others.keep(at, digest, own);
            asked.spawn(async move {
                let kept = timeout(KEPT_WITHIN, keeping).await;
                kept.unwrap_or_else(|_elapsed| Err("it takes too long".to_owned()))
                    .map_err(|why| format!("{}: {why}", member.name))
            });
        }
        while held < needed
            && let Some(kept) = asked.join_next().await
        {
            match kept {
                Ok(Ok(())) => held += 1,
                Ok(Err(error)) => why = error,
                Err(panic) => why = panic.to_string(),
            }
        }
        if held < needed { Err(TooFew { held, all, why }) } else { Ok(()) }
    }

    /// From any control plane that holds it.
    async fn fetch(&self, blobs: &Blobs, digest: Digest) -> io::Result<()> {
        let _one = self.fetching.lock().await;
        if blobs.size(digest).is_some() {
            return Ok(());
        }
        let (others, _) = self.others().await.map_err(io::Error::other)?;
        let mut why = "no other control plane holds it".to_owned();
        for (member, at) in others {
            match self.fetch_from(blobs, digest, at).await {
                Ok(()) => {
                    tracing::info!(%digest, from = member.name, "artifact fetched");
                    return Ok(());
                }
                Err(error) => why = format!("{}: {error}", member.name),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, why))
    }

    async fn fetch_from(
        &self,
        blobs: &Blobs,
        digest: Digest,
        at: SocketAddr,
    ) -> Result<(), String> {
        let fetching = async {
            let pieces = self.others.read(at, digest).await?;
            // Its bytes are hashed on the way, so that nobody has to be believed.
            blobs.put(digest, pieces).await.map_err(|error| error.to_string())
        };
        let fetched = timeout(READ_WITHIN, fetching).await;
        fetched.unwrap_or_else(|_elapsed| Err("it takes too long".to_owned())).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use dirigent_bench::etcd::Etcd;
    use dirigent_core::Write;
    use futures_util::stream;
    use sha2::Digest as _;

    use super::*;
    use crate::store::{
        EtcdStore, SCHEMA, Store as _,
        etcd::{EtcdConfig, chair},
        tests::function,
    };

    /// Directories at addresses; one that is not there is a control plane that is dead.
    #[derive(Default)]
    struct Street(Mutex<BTreeMap<SocketAddr, Artifacts>>);

    impl Street {
        fn at(&self, at: SocketAddr) -> Result<Artifacts, String> {
            let street = self.0.lock().unwrap();
            street.get(&at).cloned().ok_or_else(|| format!("{at} is dead"))
        }
    }

    impl Others for Arc<Street> {
        fn line(
            &self,
            _leader: SocketAddr,
            _told: mpsc::Sender<office::Event>,
        ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(std::future::pending())
        }

        fn keep(&self, at: SocketAddr, digest: Digest, from: SocketAddr) -> Answer<()> {
            let other = self.at(at);
            Box::pin(async move { other?.keep(digest, from).await })
        }

        fn read(&self, at: SocketAddr, digest: Digest) -> Answer<Pieces> {
            let other = self.at(at);
            Box::pin(async move {
                let file = other?.read(digest).await.map_err(|error| error.to_string())?;
                let pieces: Pieces = Box::pin(tokio_util::io::ReaderStream::new(file));
                Ok(pieces)
            })
        }
    }

    struct House {
        artifacts: Artifacts,
        chair: Chair,
        address: SocketAddr,
        _dir: tempfile::TempDir,
    }

    async fn house(etcd: &Etcd, street: &Arc<Street>, number: u16) -> House {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], number));
        let config =
            EtcdConfig { members: etcd.addresses(), tls: None, prefix: "/houses".to_owned() };
        let (name, peers) = (format!("c{number}"), address.to_string());
        let member = Member { name, peers, format: SCHEMA, ..Member::default() };
        let chair = chair(&config, member).unwrap();
        chair.enrol().await.unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 20).unwrap();
        let others = Arc::new(Arc::clone(street));
        let artifacts = Artifacts::shared(blobs, chair.clone(), others);
        street.0.lock().unwrap().insert(address, artifacts.clone());
        House { artifacts, chair, address, _dir: dir }
    }

    impl House {
        async fn upload(&self) -> Digest {
            let digest = Digest(sha2::Sha256::digest(b"files").into());
            let body = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"files"))]);
            self.artifacts.blobs.put(digest, body).await.unwrap();
            digest
        }

        fn holds(&self, digest: Digest) -> bool {
            self.artifacts.blobs.size(digest).is_some()
        }
    }

    /// Three control planes, of which the first holds what is returned.
    async fn three(etcd: &Etcd, street: &Arc<Street>) -> ([House; 3], Digest) {
        let houses = [
            house(etcd, street, 1).await,
            house(etcd, street, 2).await,
            house(etcd, street, 3).await,
        ];
        let digest = houses[0].upload().await;
        (houses, digest)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_majority_holds_what_is_recorded_and_the_rest_gets_it_in_time() {
        if !Etcd::is_installed() {
            return println!("{}", Etcd::MISSING);
        }
        let scratch = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(scratch.path(), 1).unwrap();
        let street = Arc::new(Street::default());
        let ([one, two, three], digest) = three(&etcd, &street).await;

        // Alone it is a minority.
        let dead: Vec<_> = [&two, &three]
            .map(|house| street.0.lock().unwrap().remove_entry(&house.address).unwrap())
            .into();
        let error = one.artifacts.spread(digest).await.unwrap_err();
        assert_eq!((error.held, error.all), (1, 3), "{error}");
        street.0.lock().unwrap().extend(dead);
        one.artifacts.spread(digest).await.unwrap();
        assert!(two.holds(digest) || three.holds(digest));

        // Its record refers to it: whoever lacks it has it from another, by hand or in time.
        let mut record = function(1);
        let spec = Arc::make_mut(&mut record.revisions[0].spec);
        spec.artifact = Some(digest);
        let (runtime, seat) = (runtime::Handle::current(), one.chair.clone());
        let written = spawn_blocking(move || {
            let mut store = EtcdStore::new(seat, None, runtime);
            store.take_office(dirigent_core::Epoch(0)).unwrap();
            store.apply(&[Write::PutFunction(record.into())]).unwrap()
        });
        assert_eq!(written.await.unwrap().writes, 1);
        for house in [&two, &three] {
            house.artifacts.blobs.discard(&[digest]);
            assert!(!house.holds(digest));
        }
        two.artifacts.open(digest).await.unwrap();
        assert!(two.holds(digest));
        // It stays, also with one that leads and never asks again what nothing refers to.
        two.artifacts.reconcile(true).await.unwrap();
        three.artifacts.reconcile(false).await.unwrap();
        assert!(three.holds(digest));
        for house in [&two, &three] {
            assert!(!house.artifacts.blobs.is_unreferenced(digest));
        }
        // What no other holds is told.
        let lost = Digest([9; 32]);
        let error = one.artifacts.open(lost).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_majority_held_once_is_asked_for_again() {
        if !Etcd::is_installed() {
            return println!("{}", Etcd::MISSING);
        }
        let scratch = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(scratch.path(), 1).unwrap();
        let street = Arc::new(Street::default());
        let ([one, two, three], digest) = three(&etcd, &street).await;
        one.artifacts.spread(digest).await.unwrap();
        // Another one led meanwhile, and the last revision that needed it was removed.
        for house in [&one, &two, &three] {
            house.artifacts.blobs.discard(&[digest]);
        }
        one.upload().await;
        one.artifacts.spread(digest).await.unwrap();
        assert!(two.holds(digest) || three.holds(digest));
        // They cannot be asked any more.
        street.0.lock().unwrap().clear();
        let error = one.artifacts.spread(digest).await.unwrap_err();
        assert_eq!((error.held, error.all), (1, 3), "{error}");
    }
}
