//! The container runtime: sandboxes are OCI containers that a containerd of this machine runs.
//!
//! ```text
//! worker -- (this thread) --gRPC--> containerd: images, records (and, by its tasks, shims)
//!                | \--(process runtime)-- keeper -- crun or runc -- function
//!                 \------ pidfd, pipes by name ------------------------/
//! ```
//!
//! containerd holds what outlives a worker: images as snapshots under leases, records of sandboxes with
//! labels that say whose they are and what was ordered. The OCI runtime is executed by the keeper
//! (`bundle.rs`), or by containerd's task service (`made.rs`). From here a sandbox's first process is
//! watched and signalled by its pidfd and its output read from named pipes, so that neither ends nor
//! stops depend on containerd answering, and a containerd that is restarted or killed costs the starts of that moment and
//! nothing that runs.
//!
//! One thread does it all (`driver.rs`), with a task for each sandbox (`life.rs`), so that what is told
//! of a sandbox is told in order.

mod ahead;
mod bundle;
mod driver;
mod image;
mod images;
mod kept;
mod life;
mod made;
mod network;
mod output;
mod program;
mod recover;
mod registry;
mod removal;
mod scratch;
mod spec;

pub use kept::Keep;
pub use registry::Registry;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use dirigent_core::{
    Bytes, Digest, Fault, Isolation, Pull, RuntimeKind, SandboxId, StartFailure,
    frame::{LogLine, LogQuery},
    worker::{Adopted, ArtifactFailure, CreateSandbox},
};
use tokio::sync::mpsc;

use crate::{Event, Facts, Runtime, logs, process::Spaces};
use driver::{Order, Start};
use kept::Stock;
use network::Offer;

/// The label of everything that is ours in containerd; its value tells workers of one machine apart.
const DIRECTORY: &str = "dirigent.worker";
/// The label of a sandbox with what is known of it.
const SANDBOX: &str = "dirigent.sandbox";
/// The label of one that has a network of its own.
const NETWORK: &str = "dirigent.network";

/// The runtime handler that every containerd has.
const HANDLER: &str = "io.containerd.runc.v2";

/// How the container runtime works.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// The worker's part of the state directory: records of images, pipes and logs go here.
    pub directory: PathBuf,
    /// Where containerd listens.
    pub socket: PathBuf,
    /// The namespace of containerd to use: its other users have others.
    pub namespace: String,
    /// The snapshotter of containerd that holds the images' files.
    pub snapshotter: String,
    /// The runtime handler of containerd, where a function does not name one.
    pub handler: String,
    /// The program that a handler of the `runc` kind is to run; if nothing is said, crun where it is
    /// installed and works, else containerd's choice.
    pub program: Option<String>,
    /// How registries are spoken to, by their names with port, as references have them.
    pub registries: BTreeMap<String, Registry>,
    /// Where sandboxes listen that have the machine's network: an address of this machine that data
    /// planes reach.
    pub address: Ipv4Addr,
    /// Where sandboxes get networks of their own from; without it they have the machine's.
    pub spaces: Option<Spaces>,
    /// Sandboxes with less are refused, and nothing is offered if all containers give less.
    pub min_isolation: Isolation,
    /// Processes in one sandbox.
    pub processes: u32,
    /// Of one log file; a function has two.
    pub log_file: Bytes,
    /// Of all log files.
    pub log_total: Bytes,
    /// Sandboxes that wait to be started, of functions that scale: a first process each, and a shim,
    /// some 15 MiB of memory, where they are containerd's tasks.
    pub ahead: usize,
    /// Sandboxes that are removed from containerd at once: more would keep starts waiting.
    pub removals: usize,
    /// When images go that no revision needs any more.
    pub keep: Keep,
    /// Where what sandboxes write to their root goes.
    pub writes: Writes,
    /// Who runs sandboxes of the `runc` kind.
    pub tasks: Tasks,
}

/// Who runs sandboxes of the `runc` kind: those of the default handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tasks {
    /// The keeper executes the program itself. Without a keeper, or where what sandboxes write is not
    /// in memory, it is `Containerd`.
    Keeper,
    /// containerd's task service, with a shim for each sandbox.
    Containerd,
}

/// Where what sandboxes write to their root goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Into memory, as theirs: half of the limit at most. With a snapshotter whose images are no
    /// directories, such as `devmapper`, it is `Disk`.
    Memory,
    /// Into a snapshot on containerd's disk, which nothing bounds.
    Disk,
}

impl ContainerConfig {
    /// The defaults, for a directory.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "dirigent".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            handler: HANDLER.to_owned(),
            program: None,
            registries: BTreeMap::new(),
            address: Ipv4Addr::LOCALHOST,
            spaces: None,
            min_isolation: Isolation::Plain,
            processes: 1024,
            log_file: Bytes::mib(8),
            log_total: Bytes::mib(512),
            ahead: 4,
            removals: 4,
            keep: Keep::default(),
            writes: Writes::Memory,
            tasks: Tasks::Keeper,
        }
    }

    fn offer(&self) -> Offer {
        let Self { spaces, min_isolation: least, address, .. } = self;
        Offer { spaces: spaces.clone(), least: *least, address: *address }
    }
}

/// Orders that the thread has not taken yet; far more than a worker has sandboxes.
const ORDERS: usize = 1 << 16;

/// How long taking stock may take at a start.
const RECOVERY: Duration = Duration::from_secs(60);

/// Sandboxes as OCI containers.
pub struct ContainerRuntime {
    logs: PathBuf,
    stock: Stock,
    /// Whether containerd answered, so that what is left there can be taken stock of.
    is_connected: bool,
    /// Why nothing is offered; empty if something is.
    missing: Vec<String>,
    offer: Offer,
    orders: mpsc::Sender<Order>,
    events: mpsc::Sender<Event>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for ContainerRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerRuntime").field("missing", &self.missing).finish_non_exhaustive()
    }
}

impl ContainerRuntime {
    /// Connects to containerd. Where none answers the runtime is there all the same and says so in
    /// its [`Facts`]. Blocking.
    ///
    /// # Errors
    /// If the directory cannot be used, or no thread be started.
    pub fn start(config: ContainerConfig, events: mpsc::Sender<Event>) -> io::Result<Arc<Self>> {
        crate::keeper::private_directory(&config.directory)?;
        let directory = std::fs::canonicalize(&config.directory)?;
        let logs = directory.join("logs");
        crate::keeper::private_directory(&logs)?;
        let config = ContainerConfig { directory, ..config };
        let offer = config.offer();
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (started, start) = std_mpsc::channel();
        let stock = Stock::default();
        let world = Start { config, events: events.clone(), inbox, stock: stock.clone(), started };
        let thread = std::thread::Builder::new()
            .name("container-runtime".to_owned())
            .spawn(move || driver::run(world))?;
        let missing = start
            .recv()
            .unwrap_or_else(|_dropped| Err(io::Error::other("the runtime's thread ended")))?;
        let is_connected = missing.is_empty();
        let missing = offer.falls_short().map_or(missing, |why| vec![why]);
        Ok(Arc::new(Self {
            logs,
            stock,
            is_connected,
            missing,
            offer,
            orders,
            events,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Kill whatever is left; for a clean exit, after the sandboxes were destroyed. Blocking.
    pub fn close(&self) {
        self.end(Order::Close);
    }

    /// Let go of the sandboxes, which go on, as the death of this process would. Blocking.
    pub fn detach(&self) {
        self.end(Order::Detach);
    }

    fn end(&self, order: Order) {
        self.order(order);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the container runtime's thread panicked");
        }
    }

    fn order(&self, order: Order) {
        if let Err(error) = self.orders.try_send(order) {
            // It ended, or has panicked; or a worker has more sandboxes than it can have.
            tracing::error!(%error, "the container runtime does not take an order");
        }
    }
}

impl Runtime for ContainerRuntime {
    fn facts(&self) -> Facts {
        if !self.missing.is_empty() {
            let missing = self.missing.clone();
            return Facts { kind: RuntimeKind::Container, best: None, usual: None, missing };
        }
        self.offer.facts()
    }

    fn recover(&self) -> io::Result<Vec<Adopted>> {
        // What an earlier life was let start goes on, as processes do.
        if !self.is_connected {
            return Ok(Vec::new());
        }
        let (answer, found) = std_mpsc::channel();
        self.order(Order::Recover { answer });
        found.recv_timeout(RECOVERY).map_err(|_late| {
            io::Error::other("containerd does not say in time what runs: look at its log")
        })?
    }

    fn artifacts(&self) -> Vec<Digest> {
        self.stock.held()
    }

    fn unpack(&self, digest: Digest, path: PathBuf) {
        if self.missing.is_empty() {
            return self.order(Order::Import { digest, path });
        }
        let failure = ArtifactFailure::new(self.missing.join("; "), Fault::Worker);
        self.report(Event::Unpacked { digest, result: Err(failure) });
    }

    fn resolve(&self, sandbox: SandboxId, image: &str, pull: Pull) -> Result<(), ArtifactFailure> {
        self.works()?;
        self.order(Order::Resolve { sandbox, image: image.to_owned(), pull });
        Ok(())
    }

    fn pull(&self, digest: Digest, image: &str) -> Result<(), ArtifactFailure> {
        self.works()?;
        self.order(Order::Pull { digest, image: image.to_owned() });
        Ok(())
    }

    fn discard(&self, digest: Digest) {
        self.order(Order::Discard { digest });
    }

    fn revive(&self, digest: Digest) -> bool {
        let is_kept = self.stock.withdraw(digest);
        if is_kept {
            self.order(Order::Revive { digest });
        }
        is_kept
    }

    fn create(&self, create: CreateSandbox) {
        if self.missing.is_empty() {
            return self.order(Order::Create(Box::new(create)));
        }
        let message = self.missing.join("; ");
        let cause = dirigent_core::Cause::CreateFailed { message };
        let failure = StartFailure { cause, fault: Fault::Worker, log_tail: Vec::new() };
        self.report(Event::Gone { sandbox: create.order.sandbox, failure });
    }

    fn destroy(&self, sandbox: SandboxId, grace: Duration) {
        self.order(Order::Destroy { sandbox, grace });
    }

    fn logs(&self, query: LogQuery, lines: mpsc::Sender<Vec<LogLine>>) {
        logs::read(&self.logs, &query, &lines);
    }
}

impl ContainerRuntime {
    fn works(&self) -> Result<(), ArtifactFailure> {
        if self.missing.is_empty() {
            return Ok(());
        }
        Err(ArtifactFailure::new(self.missing.join("; "), Fault::Worker))
    }

    /// Where there is no thread to report.
    fn report(&self, event: Event) {
        if let Err(error) = self.events.try_send(event) {
            tracing::warn!(%error, "an event of the container runtime is not heard");
        }
    }
}

impl Drop for ContainerRuntime {
    fn drop(&mut self) {
        // The thread ends with the last sender of orders; its sandboxes go on.
    }
}
