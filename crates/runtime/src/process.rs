//! The process runtime: sandboxes are processes of this machine, kept by the keeper.
//!
//! Here is what needs no parenthood: what to start, readiness, deadlines, artifacts, reading logs.
//! One thread owns it all (`driver.rs`), so that what is told of a sandbox is told in order.

mod bundles;
pub(crate) mod driver;
mod link;
pub(crate) mod listeners;
mod spaces;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dirigent_core::{
    Bytes, Cause, Digest, Fault, Isolation, Listen, RuntimeKind, SandboxId, StartFailure,
    frame::{LogLine, LogQuery, SandboxReport, StartSandbox},
    worker::{Adopted, ArtifactFailure, CreateSandbox},
};
use ipnet::{IpNet, Ipv4Net};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::mpsc;

use crate::{
    Event, Facts, Runtime,
    artifact::ArtifactStore,
    claim::Claim,
    keeper::{
        Options,
        launch::PATH,
        protocol::{Abilities, Network, Start, ToKeeper, Welcome},
    },
    logs,
};
pub use bundles::{End, Execute, First, Layered, Makes};
use driver::{Driver, Entry, Order};
use link::Link;
use listeners::Listeners;
use spaces::Ledger;
pub use spaces::{Lent, Spaces};

/// How the process runtime works.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// The worker's part of the state directory: artifacts, logs and the keeper's files go here.
    pub directory: PathBuf,
    /// The program that calls [`crate::keeper::main`], and what comes before the keeper's own
    /// arguments: usually this binary and the word `keeper`.
    pub keeper_command: Vec<String>,
    /// The strongest isolation to use; for tests and for machines where `basic` gets in the way.
    pub max_isolation: Isolation,
    /// Sandboxes with less are refused.
    pub min_isolation: Isolation,
    /// Sandboxes kept prepared.
    pub parked: usize,
    /// Networks of their own kept prepared; each costs the kernel some 200 KiB.
    pub spaces: usize,
    /// Where sandboxes with a network of their own get their addresses; if none is given, one is
    /// chosen that the machine does not use.
    pub range: Option<Ipv4Net>,
    /// Hosts that those do not reach, such as control planes'; nor do they reach this one.
    pub forbidden: Vec<Ipv4Addr>,
    /// As root, sandboxes get uids from here on, 65,536 of them. The default is a range that no
    /// allocation of uids in use hands out.
    pub uid_base: u32,
    /// Processes in one sandbox.
    pub processes: u32,
    /// Of one log file; a function has two.
    pub log_file: Bytes,
    /// Of all log files.
    pub log_total: Bytes,
    /// How long a keeper stays that has neither sandboxes nor a worker.
    pub keeper_idle: Duration,
    /// How long sandboxes go on without a worker: nobody stops, counts or describes them.
    pub abandoned_after: Duration,
    /// Where sandboxes listen: an address of this machine that data planes reach.
    pub address: Ipv4Addr,
    /// Other hosts that may connect to them; as an ordinary user, any may.
    pub admitted: Vec<IpNet>,
    /// Ports of this machine that sandboxes must not reach, such as the API's.
    pub protected_ports: Vec<u16>,
    /// Ports of sandboxes, first and last: neither other hosts, but for those that are admitted, nor
    /// other sandboxes reach them.
    pub ports: (u16, u16),
    /// How often the network rules are made anew, as whoever reloads a firewall flushes them.
    pub rules_every: Duration,
}

impl ProcessConfig {
    /// The defaults, for a directory and a keeper.
    #[must_use]
    pub fn new(directory: &Path, keeper_command: Vec<String>) -> Self {
        Self {
            directory: directory.to_owned(),
            keeper_command,
            max_isolation: Isolation::Strict,
            min_isolation: Isolation::Plain,
            parked: 8,
            spaces: 32,
            range: None,
            forbidden: Vec::new(),
            uid_base: 1_900_000_000,
            processes: 1024,
            log_file: Bytes::mib(8),
            log_total: Bytes::mib(512),
            keeper_idle: Duration::from_secs(600),
            abandoned_after: Duration::from_secs(3600),
            address: Ipv4Addr::LOCALHOST,
            admitted: Vec::new(),
            protected_ports: Vec::new(),
            ports: (20_000, 29_999),
            rules_every: Duration::from_secs(60),
        }
    }

    fn options(&self) -> io::Result<Options> {
        Ok(Options {
            directory: std::path::absolute(&self.directory)?,
            parked: self.parked,
            uid_base: self.uid_base,
            processes: self.processes,
            log_file: self.log_file.0,
            log_total: self.log_total.0,
            idle_ms: milliseconds(self.keeper_idle),
            abandoned_ms: milliseconds(self.abandoned_after),
            max_isolation: self.max_isolation,
            range: self.range,
            spaces: self.spaces,
            network: Network {
                address: self.address,
                ports: self.ports,
                admitted: self.admitted.clone(),
                protected_ports: self.protected_ports.clone(),
                forbidden: self.forbidden.clone(),
            },
            rules_ms: milliseconds(self.rules_every),
        })
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Orders that the driver has not taken yet; far more than sandboxes that a worker may have. Full
/// makes callers wait.
const ORDERS: usize = 1 << 16;

/// Sandboxes as processes of this machine.
pub struct ProcessRuntime {
    shared: Arc<Shared>,
    /// What the keeper had at the start, until it is asked for.
    found: Mutex<Option<Welcome>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for ProcessRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessRuntime")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// What callers and the driver share.
struct Shared {
    config: ProcessConfig,
    store: ArtifactStore,
    link: Link,
    abilities: Mutex<Abilities>,
    orders: std_mpsc::SyncSender<Order>,
    wake: rustix::fd::OwnedFd,
    listeners: Mutex<Listeners>,
    spaces: Ledger,
    bundles: bundles::Ledger,
    closing: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole: a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Tell the driver, and wake it.
    fn order(&self, order: Order) {
        if self.orders.send(order).is_ok()
            && let Err(error) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes())
        {
            tracing::warn!(%error, "the runtime's thread cannot be woken");
        }
    }

    fn report(&self, event: Event) {
        self.order(Order::Report(event));
    }
}

impl ProcessRuntime {
    /// Connect to the keeper of this state directory, which is started if there is none. Blocking.
    ///
    /// # Errors
    /// If there is no keeper and none can be started, or it speaks another version.
    pub fn start(config: ProcessConfig, events: mpsc::Sender<Event>) -> io::Result<Arc<Self>> {
        let options = config.options()?;
        // The store makes its directories for everybody to read; those above are ours.
        crate::keeper::private_directory(&options.directory)?;
        let store = ArtifactStore::open(&options.directory.join("artifacts"))?;
        let (stream, welcome) = link::connect(&config.keeper_command, &options)?;
        let (orders, inbox) = std_mpsc::sync_channel(ORDERS);
        let shared = Arc::new(Shared {
            store,
            link: Link::new(&stream)?,
            abilities: Mutex::new(welcome.abilities.clone()),
            orders,
            listeners: Mutex::new(Listeners::new(config.address)),
            spaces: Ledger::default(),
            bundles: bundles::Ledger::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            closing: AtomicBool::new(false),
            config,
        });
        shared.bundles.found(welcome.bundles.clone());
        shared.spaces.found(welcome.lent.clone());
        let driver = Driver::new(Arc::clone(&shared), options, stream, inbox, events, &welcome)?;
        let thread = std::thread::Builder::new()
            .name("process-runtime".to_owned())
            .spawn(move || driver.run())?;
        Ok(Arc::new(Self {
            shared,
            found: Mutex::new(Some(welcome)),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Kill whatever is left and let the keeper end; for a clean exit, after the sandboxes were
    /// destroyed. Blocking.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        if let Err(error) = self.shared.link.send(&ToKeeper::Exit) {
            tracing::debug!(%error, "there is no keeper");
        }
        self.shared.order(Order::Close);
        self.join();
    }

    /// Let go of the keeper and its sandboxes, which go on, as the death of this process would.
    /// Blocking.
    pub fn detach(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.link.close();
        self.join();
    }

    /// Networks for sandboxes of other runtimes on this machine, and the keeper's hands.
    #[must_use]
    pub fn spaces(&self) -> Spaces {
        Spaces::new(&self.shared)
    }

    fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the runtime's thread panicked");
        }
    }

    /// The level for a spec, or why it cannot be had.
    fn level(&self, wanted: Option<Isolation>) -> Result<Isolation, (String, Fault)> {
        let ProcessConfig { min_isolation, max_isolation, .. } = self.shared.config;
        let abilities = lock(&self.shared.abilities).clone();
        let best = usual(&abilities).min(max_isolation);
        let level = wanted.unwrap_or(best);
        let Abilities { no_strict, no_basic, basic_lacks, .. } = abilities;
        if level > best {
            let why = if level == Isolation::Strict { no_strict } else { no_basic };
            let why = why.unwrap_or_else(|| "switched off by configuration".to_owned());
            return Err((format!("isolation `{level}` does not work here: {why}"), Fault::Worker));
        }
        // A demand is met in full or refused.
        let demanded = wanted.unwrap_or(Isolation::Plain).max(min_isolation);
        if demanded >= Isolation::Basic && !basic_lacks.is_empty() {
            let lacks = basic_lacks.join("; ");
            let message = format!("isolation `basic` is not complete here: {lacks}");
            return Err((message, Fault::Worker));
        }
        if level < min_isolation {
            let fault = if wanted.is_some() { Fault::Function } else { Fault::Worker };
            let message = format!(
                "isolation `{level}` is less than the `{min_isolation}` that this worker demands"
            );
            return Err((message, fault));
        }
        Ok(level)
    }

    /// Everything that the keeper needs for a start.
    fn plan(&self, create: &CreateSandbox) -> Result<Start, StartFailure> {
        let fail = |message: String, fault| StartFailure {
            cause: Cause::CreateFailed { message },
            fault,
            log_tail: Vec::new(),
        };
        let StartSandbox { sandbox, revision, spec, .. } = &create.order;
        // A policy is kept to in a network of its own only.
        let wanted = match spec.sandbox.network {
            Some(_) => Some(Isolation::Strict),
            None => spec.sandbox.isolation,
        };
        let isolation = self.level(wanted).map_err(|(message, fault)| fail(message, fault))?;
        let artifact = match &spec.artifact {
            None => None,
            Some(digest) => Some(self.shared.store.path(digest).ok_or_else(|| {
                fail(format!("artifact {digest} is not unpacked here"), Fault::Worker)
            })?),
        };
        let pass_listener = spec.sandbox.listen == Listen::Fd;
        // In a network of its own every address is its own.
        let host = match isolation {
            Isolation::Strict => Ipv4Addr::UNSPECIFIED,
            Isolation::Plain | Isolation::Basic => self.shared.config.address,
        };
        Ok(Start {
            adopted: Adopted {
                report: SandboxReport {
                    sandbox: *sandbox,
                    revision: *revision,
                    memory: spec.resources.memory,
                    cpu: spec.resources.cpu,
                    address: None,
                    stopping: false,
                },
                port: Some(create.port),
                artifact: spec.artifact,
            },
            isolation,
            builtin: spec.sandbox.command.first().is_some_and(|program| program == "dirigent"),
            command: spec.sandbox.command.clone(),
            environment: environment(create, host),
            artifact,
            port: create.port,
            pass_listener,
            outbound: spec.sandbox.network.clone().unwrap_or_default(),
        })
    }
}

/// What a function gets that demands nothing.
const fn usual(abilities: &Abilities) -> Isolation {
    match (&abilities.no_basic, &abilities.no_strict) {
        (Some(_), _) => Isolation::Plain,
        (None, Some(_)) => Isolation::Basic,
        (None, None) => Isolation::Strict,
    }
}

/// What a function finds in its environment: defaults, then the user's, then the contract.
fn environment(create: &CreateSandbox, address: Ipv4Addr) -> Vec<(String, String)> {
    let spec = &create.order.spec;
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
    set("PATH", PATH.to_owned());
    set("LANG", "C.UTF-8".to_owned());
    for (name, value) in &spec.env {
        set(name, value.clone());
    }
    for (name, value) in contract(create, SocketAddrV4::new(address, create.port)) {
        set(name, value);
    }
    if spec.sandbox.listen == Listen::Fd {
        set("LISTEN_FDS", "1".to_owned());
    }
    all.into_iter().collect()
}

/// What every function is told, whatever runs it.
pub(crate) fn contract(create: &CreateSandbox, at: SocketAddrV4) -> [(&'static str, String); 5] {
    let StartSandbox { revision, name, .. } = &create.order;
    [
        ("PORT", at.port().to_string()),
        ("HOST", at.ip().to_string()),
        ("K_SERVICE", name.name().to_owned()),
        ("K_REVISION", format!("{}-{:05}", name.name(), revision.number)),
        ("K_CONFIGURATION", name.name().to_owned()),
    ]
}

impl Runtime for ProcessRuntime {
    fn facts(&self) -> Facts {
        let abilities = lock(&self.shared.abilities).clone();
        let mut missing = Vec::new();
        let usual = usual(&abilities);
        missing.extend(abilities.no_basic.map(|why| format!("basic: {why}")));
        missing.extend(abilities.no_strict.map(|why| format!("strict: {why}")));
        let complete = abilities.basic_lacks.is_empty();
        let best = if complete { usual } else { Isolation::Plain };
        missing.extend(abilities.basic_lacks);
        missing.extend(abilities.missing);
        Facts { kind: RuntimeKind::Process, best: Some(best), usual: Some(usual), missing }
    }

    fn recover(&self) -> io::Result<Vec<Adopted>> {
        let Some(Welcome { sandboxes, ended, .. }) = lock(&self.found).take() else {
            return Ok(Vec::new());
        };
        let (mut running, half_made): (Vec<_>, Vec<_>) =
            sandboxes.into_iter().partition(|adopted| adopted.report.address.is_some());
        running.extend(ended.into_iter().map(|one| one.adopted));
        let (done, wait) = std_mpsc::channel();
        self.shared.order(Order::Remove {
            sandboxes: half_made.iter().map(|adopted| adopted.report.sandbox).collect(),
            done,
        });
        wait.recv_timeout(Duration::from_secs(30)).map_err(|_timeout| {
            io::Error::other("sandboxes that were being started when the worker ended do not end")
        })?;
        Ok(running)
    }

    fn artifacts(&self) -> Vec<Digest> {
        self.shared.store.list().unwrap_or_else(|error| {
            tracing::warn!(%error, "artifacts cannot be listed");
            Vec::new()
        })
    }

    fn unpack(&self, digest: Digest, path: PathBuf) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let result = shared.store.unpack(digest, &path).map_err(|error| error.failure());
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an unpacked archive stays");
            }
            shared.report(Event::Unpacked { digest, result });
        };
        if let Err(error) = std::thread::Builder::new().name("unpack".to_owned()).spawn(work) {
            let failure = ArtifactFailure::new(error.to_string(), Fault::Worker);
            self.shared.report(Event::Unpacked { digest, result: Err(failure) });
        }
    }

    fn discard(&self, digest: Digest) {
        // Renamed here, in the order in which artifacts are asked for and discarded: whoever wants
        // it next must not find what is about to go.
        let away = match self.shared.store.discard(&digest) {
            Ok(Some(away)) => away,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%digest, %error, "an artifact stays"),
        };
        let work = move || {
            if let Err(error) = std::fs::remove_dir_all(away) {
                tracing::warn!(%digest, %error, "parts of an artifact stay");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("discard".to_owned()).spawn(work) {
            tracing::warn!(%digest, %error, "an artifact stays");
        }
    }

    fn create(&self, create: CreateSandbox) {
        let sandbox = create.order.sandbox;
        let port = create.port;
        if lock(&self.shared.listeners).at(port).is_some() {
            self.shared.order(Order::Occupied { port });
            return self.shared.report(Event::PortTaken { sandbox, port });
        }
        let Ok(claim) = Claim::for_start(port) else {
            return self.shared.report(Event::PortTaken { sandbox, port });
        };
        let start = match self.plan(&create) {
            Ok(start) => start,
            Err(failure) => return self.shared.report(Event::Gone { sandbox, failure }),
        };
        let entry = Entry::new(&start, claim, create.order.start_timeout, Instant::now());
        // The driver knows of it before the keeper can answer; it is woken by that answer.
        if self.shared.orders.send(Order::Expect { sandbox, entry: Box::new(entry) }).is_err() {
            return;
        }
        if let Err(error) = self.shared.link.send(&ToKeeper::Start(Box::new(start))) {
            self.shared.order(Order::Unsent { sandbox, error: error.to_string() });
        }
    }

    fn destroy(&self, sandbox: SandboxId, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        if let Err(error) = self.shared.link.send(&ToKeeper::Stop { sandbox, grace_ms }) {
            // Its sandboxes end with the keeper; the driver tells of them.
            tracing::debug!(%sandbox, %error, "there is no keeper");
        }
    }

    fn logs(&self, query: LogQuery, lines: mpsc::Sender<Vec<LogLine>>) {
        logs::read(&self.shared.config.directory.join("logs"), &query, &lines);
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        // The thread ends when it sees that; what it holds is closed with it.
        self.shared.closing.store(true, Ordering::Release);
        self.shared.link.close();
    }
}
