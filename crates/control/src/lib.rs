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

mod api;
pub mod blobs;
mod bulk;
mod compat;
mod metrics;
mod owner;
mod recorder;
pub mod store;
mod streams;
pub mod token;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use dirigent_core::{
    Office, Records, Time,
    control::Control,
    frame::{
        FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
        ToWorker, ToWorkerBulk,
    },
    recording::{Began, Entry, FORMAT},
};
use dirigent_service::{
    Clock, Dialer, LockError, OnCancel, OnError, StateLock, Tasks, acceptor, listen,
    listen::ListenError, state,
};

pub use metrics::PageSource;

use crate::{
    api::{Api, Facts},
    blobs::Blobs,
    bulk::Bulk,
    compat::Images,
    metrics::Metrics,
    owner::{Handle, Owner},
    recorder::Recorder,
    store::{MemoryStore, RedbStore, Store, StoreError, Writer},
    streams::Offers,
    token::{Token, TokenError},
};

/// What a control plane is started with.
#[derive(Clone)]
pub struct Config {
    /// The state directory; made if needed, and locked.
    pub state: PathBuf,
    /// Where the API listens: loopback only, since it speaks no TLS.
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
    /// Metrics of other roles of this process, added to `/metrics`.
    pub pages: Vec<PageSource>,
}

/// Where records are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// In the file `store.redb` of the state directory.
    #[default]
    Redb,
    /// Nowhere: they are forgotten at the end.
    Memory,
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
    /// The cluster and this term of office.
    pub office: Office,
    /// How workers reach it.
    pub workers: Dialer<FromWorker, ToWorker>,
    /// How workers' second connections reach it.
    pub workers_bulk: Dialer<FromWorkerBulk, ToWorkerBulk>,
    /// How data planes reach it.
    pub data_planes: Dialer<FromDataPlane, ToDataPlane>,
    /// How data planes' second connections reach it.
    pub data_planes_bulk: Dialer<FromDataPlaneBulk, ToDataPlaneBulk>,
    /// What the store has done and holds.
    pub store: store::Counts,
    functions: Arc<OnceLock<SocketAddr>>,
}

impl Running {
    /// Tell where functions are called, which is known only when a data plane listens. The first
    /// address stays.
    pub fn set_functions(&self, mut address: SocketAddr) {
        if address.ip().is_unspecified() {
            // Every address of this host; users of this API are on it.
            let loopback: IpAddr = match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
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
    #[error("the API listens on loopback only, since it speaks no TLS; {listen} is not loopback")]
    NotLoopback {
        /// What was asked for.
        listen: SocketAddr,
    },
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

/// How often uploads that nothing refers to are looked for.
const COLLECT: Duration = Duration::from_secs(300);

/// Start a control plane: take the state directory and office, listen, and accept peers. It stops
/// when `tasks` are told to.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn start(config: Config, tasks: &Tasks) -> Result<Running, StartError> {
    if !config.listen.ip().is_loopback() {
        return Err(StartError::NotLoopback { listen: config.listen });
    }
    let dir = config.state.clone();
    let unusable = |source| StartError::State { dir: dir.clone(), source };
    state::private_dir(&dir).map_err(unusable)?;
    let lock = StateLock::acquire(&dir, "--state")?;
    let listener = listen::bind(config.listen, &config.listen_flag).await?;
    let address = listener.local_addr().map_err(unusable)?;
    let token_path = dir.join("token");
    let token = Token::load_or_make(&token_path)?;
    let (store, office, records) = take_office(&config).await?;
    let blobs =
        Blobs::open(&dir.join("blobs"), config.artifact_limit, &records).map_err(unusable)?;

    let (writer, answers) = Writer::start(store, lock, tasks);
    let counts = writer.counts();
    let metrics = Arc::new(Metrics::new(office.epoch, counts.clone()));
    let (owner, inputs) = Handle::new();
    let clock = Clock::new();
    let (machine, recorder) = machine(&config, clock, office, records)?;
    let owned = Owner {
        machine,
        recorder,
        clock,
        inputs,
        writer,
        answers,
        blobs: blobs.clone(),
        metrics: Arc::clone(&metrics),
        tasks: tasks.clone(),
        asked: std::collections::HashMap::new(),
        speakers: std::collections::HashMap::new(),
    };
    tasks.spawn("control machine", OnError::StopRole, OnCancel::Wait, owned.run());

    let offers = Offers::default();
    let bulk = Bulk::default();
    let (workers, accepted) = acceptor("worker");
    streams::accept_workers(accepted, owner.clone(), offers.clone(), tasks);
    let (workers_bulk, accepted) = acceptor("worker");
    bulk.accept_workers(accepted, &blobs, tasks);
    let (data_planes, accepted) = acceptor("data plane");
    streams::accept_data_planes(accepted, owner.clone(), tasks);
    let (data_planes_bulk, accepted) = acceptor("data plane");
    bulk.accept_data_planes(accepted, tasks);
    collect(&blobs, tasks);

    let functions = Arc::new(OnceLock::new());
    let api = api::Shared {
        owner,
        token,
        blobs,
        bulk,
        offers,
        metrics,
        pages: config.pages,
        facts: Facts {
            version: config.version,
            office,
            started_ms: Clock::wall_ms(),
            state: dir.clone(),
        },
        functions: Arc::clone(&functions),
        compat: config.compat.map(Images::new),
        shutdown: tasks.shutdown().clone(),
    };
    api::server::serve(listener, api::router(Api { shared: Arc::new(api) }), tasks);
    announce(&dir, address, tasks).map_err(unusable)?;
    Ok(Running {
        api: address,
        token_path,
        office,
        workers,
        workers_bulk,
        data_planes,
        data_planes_bulk,
        store: counts,
        functions,
    })
}

async fn take_office(config: &Config) -> Result<(Box<dyn Store>, Office, Records), StartError> {
    let path = config.state.join("store.redb");
    let mut store: Box<dyn Store> = match config.store {
        StoreKind::Redb => Box::new(RedbStore::new(&path)),
        StoreKind::Memory => Box::new(MemoryStore::default()),
    };
    // Reading a large store takes a good part of a second.
    let taken = tokio::task::spawn_blocking(move || {
        let taken = store.take_office();
        taken.map(|(office, records)| (store, office, records))
    });
    match taken.await {
        Ok(taken) => Ok(taken?),
        Err(error) => {
            let place = path.display().to_string();
            Err(StoreError::Io { place, source: error.into() }.into())
        }
    }
}

/// The machine, and who records it if that is wanted.
fn machine(
    config: &Config,
    clock: Clock,
    office: Office,
    records: Records,
) -> Result<(Control, Option<Recorder>), StartError> {
    let unusable = |source| StartError::State { dir: config.state.clone(), source };
    let began = Began {
        format: FORMAT,
        program: config.version.clone(),
        wall_ms: Clock::wall_ms(),
        at: Time(clock.nanos()),
        office,
        seed: seed().map_err(unusable)?,
        records,
    };
    let recorder = match &config.record {
        None => None,
        Some(dir) => Some(
            Recorder::start(dir, Entry::Began(Box::new(began.clone())))
                .map_err(|source| StartError::Record { dir: dir.clone(), source })?,
        ),
    };
    Ok((began.machine(), recorder))
}

/// Of the machine's random source.
fn seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    random(&mut seed)?;
    Ok(u64::from_le_bytes(seed))
}

/// Write the API's URL where the command line finds it, and remove it at the end.
fn announce(dir: &Path, address: SocketAddr, tasks: &Tasks) -> io::Result<()> {
    let path = dir.join("api");
    state::atomic_write(&path, format!("http://{address}\n").as_bytes(), 0o600)?;
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("api file", OnError::Log, OnCancel::Wait, async move {
        shutdown.cancelled().await;
        std::fs::remove_file(&path)
    });
    Ok(())
}

fn collect(blobs: &Blobs, tasks: &Tasks) {
    let collecting = collecting(blobs.clone());
    tasks.spawn("collect artifacts", OnError::StopRole, OnCancel::Abort, collecting);
}

async fn collecting(blobs: Blobs) -> Result<(), tokio::task::JoinError> {
    loop {
        tokio::time::sleep(COLLECT).await;
        let blobs = blobs.clone();
        tokio::task::spawn_blocking(move || blobs.collect()).await?;
    }
}

/// Fill `bytes` from the kernel's random source.
fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}
