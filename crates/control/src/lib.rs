//! The control plane's shell: one task owns the pure machine of `dirigent-core`; around it the
//! HTTP API, the streams of workers and data planes, the store and the artifacts.
//!
//! ```text
//! users -- api ----\                      /-- store (its own thread)
//! workers ----------> owner: the machine ---- outboxes -> workers, data planes
//! data planes ------/                     \-- artifacts, metrics
//! ```
//!
//! The owner never waits for anybody. Nothing is written on the path of an invocation.

#[cfg(feature = "ablations")]
mod ablation;
mod api;
pub mod blobs;
mod bulk;
mod compat;
pub mod copies;
pub mod membership;
mod metrics;
pub mod office;
mod owner;
mod recorder;
mod refusals;
pub mod store;
mod streams;
mod term;
pub mod token;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use dirigent_core::{
    Epoch, Office, Records,
    frame::{
        FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
        ToWorker, ToWorkerBulk,
    },
};
use dirigent_service::{
    Clock, Dialer, LockError, OnCancel, OnError, StateLock, Tasks, acceptor, listen,
    listen::ListenError, state,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub use metrics::PageSource;

use crate::{
    api::{Api, Facts},
    blobs::Blobs,
    bulk::Bulk,
    compat::Images,
    copies::{Artifacts, Others},
    membership::{Membership, MembershipError},
    metrics::Metrics,
    office::{Contest, Shared, Stand},
    owner::{Handle, Sitting},
    refusals::Refusals,
    store::{
        Counts, MemoryStore, RedbStore, SCHEMA, Store, StoreError,
        etcd::{self, Chair, Member},
    },
    streams::Offers,
    term::Chambers,
    token::{Token, TokenError},
};

/// What a control plane is started with.
#[derive(Clone)]
pub struct Config {
    /// The state directory; made if needed, and locked.
    pub state: PathBuf,
    /// Where the API listens: on loopback, or with the certificate of a cluster anywhere.
    pub listen: SocketAddr,
    /// The flag that users change `listen` with, for the message when the port is taken.
    pub listen_flag: String,
    /// The program's version, as shown.
    pub version: String,
    /// Where records are kept.
    pub store: StoreKind,
    /// An artifact's size at most, in bytes.
    pub artifact_limit: u64,
    /// The artifact's form registration, with the commands that stand for images; `None` if it is
    /// not offered.
    pub compat: Option<BTreeMap<String, Vec<String>>>,
    /// A directory for a recording of everything that the machine is told and orders; `None` if
    /// none is made.
    pub record: Option<PathBuf>,
    /// How long the certificates are valid that it signs, if it does.
    pub certificate_life: Duration,
    /// Metrics of other roles of this process, added to `/metrics`.
    pub pages: Vec<PageSource>,
}

/// Where records are kept.
#[derive(Clone, Debug, Default)]
pub enum StoreKind {
    /// In the file `store.redb` of the state directory.
    #[default]
    Redb,
    /// Nowhere: they are forgotten at the end.
    Memory,
    /// In etcd, for several control planes of which one leads.
    Etcd(Box<Shared>),
}

impl Config {
    /// The usual values, on this state directory.
    #[must_use]
    pub fn new(state: PathBuf) -> Self {
        Self {
            state,
            listen: ([127, 0, 0, 1], 9091).into(),
            listen_flag: "--api".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: StoreKind::Redb,
            artifact_limit: 512 << 20,
            compat: None,
            record: None,
            certificate_life: membership::LIFE,
            pages: Vec::new(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("state", &self.state)
            .field("listen", &self.listen)
            .field("store", &self.store)
            .field("artifact_limit", &self.artifact_limit)
            .field("compat", &self.compat)
            .field("record", &self.record)
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}

/// A control plane that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where the API listens.
    pub api: SocketAddr,
    /// The file with the API's token.
    pub token_path: PathBuf,
    /// The epoch in which it leads, while it does.
    pub leads: watch::Receiver<Option<Epoch>>,
    /// The members of the cluster, if certificates count here.
    pub membership: Option<Membership>,
    /// How workers reach it.
    pub workers: Dialer<FromWorker, ToWorker>,
    /// How workers' second connections reach it.
    pub workers_bulk: Dialer<FromWorkerBulk, ToWorkerBulk>,
    /// How data planes reach it.
    pub data_planes: Dialer<FromDataPlane, ToDataPlane>,
    /// How data planes' second connections reach it.
    pub data_planes_bulk: Dialer<FromDataPlaneBulk, ToDataPlaneBulk>,
    /// The artifacts, for other control planes.
    pub artifacts: Artifacts,
    /// What the store has done and holds.
    pub store: Counts,
    functions: Arc<OnceLock<SocketAddr>>,
}

impl Running {
    /// The API's URL.
    #[must_use]
    pub fn api_url(&self) -> String {
        url(self.api, self.membership.as_ref())
    }

    /// Tell where functions are called, which is known only when a data plane listens. The first
    /// address stays.
    pub fn set_functions(&self, address: SocketAddr) {
        let address = reachable(address);
        let known = self.functions.get_or_init(|| address);
        if *known != address {
            tracing::warn!(%known, %address, "functions are called elsewhere already");
        }
    }
}

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The API would be open to others without TLS.
    #[error(
        "{listen} is not loopback, where the API listens only with a certificate: make a cluster of {} first, `dirigent cluster init`",
        dir.display()
    )]
    NotLoopback {
        /// What was asked for.
        listen: SocketAddr,
        /// The state directory.
        dir: PathBuf,
    },
    /// The cluster's certificates cannot be used.
    #[error("the certificates of the cluster cannot be used")]
    Membership(#[from] MembershipError),
    /// The state directory is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The API cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No recording can be made.
    #[error("no recording can be made in {}", dir.display())]
    Record {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("the state directory {} cannot be used", dir.display())]
    State {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Start a control plane: take the state directory, listen, and take office, or stand by where others
/// may lead; accept peers. It stops when `tasks` are told to.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn start(config: Config, tasks: &Tasks) -> Result<Running, StartError> {
    let dir = config.state.clone();
    let unusable = |source| StartError::State { dir: dir.clone(), source };
    let (lock, membership, listener) = move_in(&config).await?;
    let address = listener.local_addr().map_err(unusable)?;
    let token_path = dir.join("token");
    let token = Token::load_or_make(&token_path)?;
    let blobs = Blobs::open(&dir.join("blobs"), config.artifact_limit).map_err(unusable)?;

    let seat = seat(&config, address)?;
    let refusals = refusals(membership.as_ref(), seat.as_ref(), tasks).await;
    let artifacts = artifacts(blobs, seat.as_ref());
    let counts = Counts::default();
    let metrics = Arc::new(Metrics::new(counts.clone()));
    let (sits, sitting) = watch::channel(None::<Sitting>);
    let (leading, leads) = watch::channel(None);
    let (tokens, admitted) = watch::channel(None);
    let (stand, stands) = watch::channel(Stand::default());
    // With a store of its own it is this program's.
    let format = Arc::new(AtomicU64::new(if seat.is_some() { 0 } else { SCHEMA }));
    let chambers = Chambers {
        state: dir.clone(),
        version: config.version.clone(),
        record: config.record.clone(),
        clock: Clock::new(),
        artifacts: artifacts.clone(),
        metrics: Arc::clone(&metrics),
        counts: counts.clone(),
        lock: Arc::new(lock),
        own_token: token.hash(),
        format: Arc::clone(&format),
        sitting: sits,
        leads: leading,
        tokens,
        tasks: tasks.clone(),
    };
    sit(&config, seat, chambers, stand, tasks).await?;

    let (owner, bulk, offers) = (Handle::new(sitting), Bulk::default(), Offers::default());
    let doors = Doors::open(&owner, &offers, &bulk, &artifacts, tasks);
    let tending = copies::tend(artifacts.clone(), owner.clone());
    tasks.run("tend artifacts", OnCancel::Abort, tending);
    let functions = Arc::new(OnceLock::new());
    let api = api::Shared {
        owner,
        token,
        artifacts: artifacts.clone(),
        tokens: admitted,
        format,
        bulk,
        offers,
        metrics,
        pages: config.pages,
        facts: Facts {
            version: config.version,
            started_ms: Clock::wall_ms(),
            state: dir.clone(),
            stand: matches!(config.store, StoreKind::Etcd(_)).then_some(stands),
        },
        membership: membership.clone(),
        refusals,
        functions: Arc::clone(&functions),
        compat: config.compat.map(Images::new),
        shutdown: tasks.shutdown().clone(),
    };
    let files = membership.as_ref().map(|membership| membership.kept_renewed(tasks));
    api::server::serve(listener, api::router(Api { shared: Arc::new(api) }), files, tasks);
    announce(&dir, &url(address, membership.as_ref()), tasks).map_err(unusable)?;
    let Doors { workers, workers_bulk, data_planes, data_planes_bulk } = doors;
    Ok(Running {
        api: address,
        token_path,
        leads,
        membership,
        workers,
        workers_bulk,
        data_planes,
        data_planes_bulk,
        artifacts,
        store: counts,
        functions,
    })
}

/// Takes the state directory and the API's address, which is off loopback only with a certificate.
async fn move_in(
    config: &Config,
) -> Result<(StateLock, Option<Membership>, TcpListener), StartError> {
    let dir = &config.state;
    let unusable = |source| StartError::State { dir: dir.clone(), source };
    state::private_dir(dir).map_err(unusable)?;
    let lock = StateLock::acquire(dir, "--state")?;
    let membership = Membership::open(dir, config.certificate_life)?;
    if membership.is_none() && !config.listen.ip().is_loopback() {
        return Err(StartError::NotLoopback { listen: config.listen, dir: dir.clone() });
    }
    let listener = listen::bind(config.listen, &config.listen_flag).await?;
    Ok((lock, membership, listener))
}

/// A seat among other control planes, and how these are reached.
struct Seat {
    chair: Chair,
    others: Arc<dyn Others>,
}

/// The one of this control plane, if there are others.
fn seat(config: &Config, api: SocketAddr) -> Result<Option<Seat>, StartError> {
    let StoreKind::Etcd(shared) = &config.store else { return Ok(None) };
    let member = Member {
        name: shared.name.clone(),
        peers: shared.peers.to_string(),
        api: advertised(api, shared.peers).to_string(),
        version: config.version.clone(),
        format: SCHEMA,
    };
    let (chair, others) = (etcd::chair(&shared.etcd, member)?, Arc::clone(&shared.others));
    Ok(Some(Seat { chair, others }))
}

/// Those of this control plane, and of the others where there are any.
fn artifacts(blobs: Blobs, seat: Option<&Seat>) -> Artifacts {
    match seat {
        Some(Seat { chair, others }) => Artifacts::shared(blobs, chair.clone(), Arc::clone(others)),
        None => Artifacts::alone(blobs),
    }
}

/// What several control planes with certificates tell each other.
async fn refusals(
    membership: Option<&Membership>,
    seat: Option<&Seat>,
    tasks: &Tasks,
) -> Option<Refusals> {
    let (membership, chair) = (membership?.clone(), seat?.chair.clone());
    Some(Refusals::start(membership, chair, tasks).await)
}

/// Take office, or begin to stand by.
async fn sit(
    config: &Config,
    seat: Option<Seat>,
    chambers: Chambers,
    stand: watch::Sender<Stand>,
    tasks: &Tasks,
) -> Result<(), StartError> {
    if let Some(Seat { chair, others }) = seat {
        let clock = chambers.clock;
        let contest = Contest { chair, others, clock, stand, chambers };
        tasks.spawn("office", OnError::StopRole, OnCancel::Wait, contest.run());
        return Ok(());
    }
    let path = config.state.join("store.redb");
    let kept = MemoryStore::default();
    let open: OpenStore = match config.store {
        StoreKind::Redb | StoreKind::Etcd(_) => Box::new(move || Box::new(RedbStore::new(&path))),
        StoreKind::Memory => Box::new(move || Box::new(kept.clone())),
    };
    let (store, office, records) = take_office(open(), Epoch(0)).await?;
    let begun = chambers.begin(store, office, records, CancellationToken::new()).await?;
    chambers.open(&begun);
    let alone = chambers.lead_alone(begun, open);
    tasks.spawn("control machine", OnError::StopRole, OnCancel::Wait, alone);
    Ok(())
}

/// Where other hosts meet an API that listens on all addresses of this one: where they meet its peers.
fn advertised(mut api: SocketAddr, peers: SocketAddr) -> SocketAddr {
    if api.ip().is_unspecified() {
        api.set_ip(peers.ip());
    }
    api
}

/// Opens the store of its own that a control plane has.
pub(crate) type OpenStore = Box<dyn Fn() -> Box<dyn Store> + Send + Sync>;

/// The next term is above the last one, and above `shown`.
async fn take_office(
    mut store: Box<dyn Store>,
    shown: Epoch,
) -> Result<(Box<dyn Store>, Office, Records), StoreError> {
    // Reading a large store takes a good part of a second.
    let taken = tokio::task::spawn_blocking(move || {
        let taken = store.take_office(shown);
        taken.map(|(office, records)| (store, office, records))
    });
    taken.await.unwrap_or_else(|panic| {
        Err(StoreError::Io { place: "the store".to_owned(), source: panic.into() })
    })
}

/// Where peers are accepted.
struct Doors {
    workers: Dialer<FromWorker, ToWorker>,
    workers_bulk: Dialer<FromWorkerBulk, ToWorkerBulk>,
    data_planes: Dialer<FromDataPlane, ToDataPlane>,
    data_planes_bulk: Dialer<FromDataPlaneBulk, ToDataPlaneBulk>,
}

impl Doors {
    fn open(
        owner: &Handle,
        offers: &Offers,
        bulk: &Bulk,
        artifacts: &Artifacts,
        tasks: &Tasks,
    ) -> Self {
        let (workers, accepted) = acceptor("worker");
        streams::accept_workers(accepted, owner.clone(), offers.clone(), tasks);
        let (workers_bulk, accepted) = acceptor("worker");
        bulk.accept_workers(accepted, artifacts, tasks);
        let (data_planes, accepted) = acceptor("data plane");
        streams::accept_data_planes(accepted, owner.clone(), tasks);
        let (data_planes_bulk, accepted) = acceptor("data plane");
        bulk.accept_data_planes(accepted, tasks);
        Self { workers, workers_bulk, data_planes, data_planes_bulk }
    }
}

/// The URL of an API at this address, as users of this host call it.
fn url(address: SocketAddr, membership: Option<&Membership>) -> String {
    let scheme = if membership.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", reachable(address))
}

/// Every address of this host includes its loopback's.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    address
}

/// Write the API's URL where the command line finds it, and remove it at the end.
fn announce(dir: &Path, url: &str, tasks: &Tasks) -> io::Result<()> {
    let path = dir.join("api");
    state::atomic_write(&path, format!("{url}\n").as_bytes(), 0o600)?;
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("api file", OnError::Log, OnCancel::Wait, async move {
        shutdown.cancelled().await;
        std::fs::remove_file(&path)
    });
    Ok(())
}

/// Fill `bytes` from the kernel's random source.
fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}
