//! A worker: drives `core::worker::Worker` with the runtimes that work here.
//!
//! ```text
//!   control plane                                     runtimes
//!        |  frames            +-------------+  events    |
//!       link  <------------>  |   machine   |  <---------+
//!        |                    | (one task)  |  orders    |
//!       bulk  <-- wanted ---  +-------------+  --------->+
//!        +---- archives -->
//! ```
//!
//! One task owns the machine and never waits for anybody but the disk, when it writes down whom it
//! obeys. The link and the bulk connection are dialled again, with a jittered back-off, whenever
//! they break; sandboxes go on meanwhile.
//!
//! Refused: to decide anything. What fits, which port, which artifact is needed, when to stop: all
//! that is the machine's.

mod backoff;
mod bulk;
mod capacity;
mod driver;
mod durability;
mod fetch;
mod identity;
mod ingress;
mod link;
mod load;
mod ports;

pub use capacity::{CapacityError, Settings};
pub use durability::Durability;
pub use identity::StateError;
pub use ingress::Ingress;
pub use load::Meter;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{
    RuntimeKind, Time,
    frame::{Capacity, FromWorker, FromWorkerBulk, ToWorker, ToWorkerBulk},
    worker::{Adopted, Left, Worker},
};
use dirigent_runtime::{Event, Facts, Runtime};
use dirigent_service::{Clock, Dialer, Limits, OnCancel, OnError, Tasks, outbox};
use tokio::sync::mpsc;

use driver::{Driver, Input, Runtimes, Shell};
use identity::Identity;
use ports::KnownPorts;

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The worker's own directory, made if it is not there.
    pub state: PathBuf,
    /// What it offers.
    pub settings: Settings,
    /// What its files outlive.
    pub durability: Durability,
    /// What data planes reach its sandboxes through, if not directly.
    pub ingress: Option<Ingress>,
    /// How it sees what the machine does; workers of one process share one.
    pub meter: Meter,
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What it may use cannot be found out, or makes no sense.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// Its directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A runtime cannot tell what an earlier life left.
    #[error("the {kind} runtime cannot recover what it left: {error}")]
    Recover {
        /// Which.
        kind: RuntimeKind,
        /// Why.
        error: std::io::Error,
    },
    /// No runtime works here.
    #[error("no runtime works on this machine: {}", missing.join("; "))]
    NoRuntime {
        /// Why, a line each.
        missing: Vec<String>,
    },
}

/// A worker that runs. Dropping it changes nothing: its tasks end with `Tasks`.
#[derive(Debug)]
pub struct Running {
    /// What it offers to the control plane.
    pub capacity: Capacity,
    /// What each runtime can do here.
    pub facts: Vec<Facts>,
    /// Sandboxes of an earlier life that were taken over.
    pub adopted: usize,
    inputs: mpsc::Sender<Input>,
    name_taken: Arc<AtomicBool>,
}

/// Events that wait for the machine. Full makes runtimes and the link wait, which they can.
const INPUTS: usize = 1024;

/// Start a worker. Returns when it has taken stock of what an earlier life left; it attaches to
/// the control plane by itself, now or whenever there is one.
///
/// # Errors
/// If it cannot be started; nothing of it runs then.
pub async fn start(
    config: Config,
    runtimes: Vec<(Arc<dyn Runtime>, mpsc::Receiver<Event>)>,
    dialer: Dialer<FromWorker, ToWorker>,
    bulk_dialer: Dialer<FromWorkerBulk, ToWorkerBulk>,
    tasks: &Tasks,
) -> Result<Running, StartError> {
    let facts: Vec<Facts> = runtimes.iter().map(|(runtime, _)| runtime.facts()).collect();
    let capacity = capacity::offered(&config.settings, &facts)?;
    if capacity.runtimes.is_empty() {
        let missing = facts.into_iter().flat_map(|facts| facts.missing).collect();
        return Err(StartError::NoRuntime { missing });
    }
    let identity = Identity::open(&config.state, config.durability)?;
    let ports = KnownPorts::open(&config.state, config.durability).map_err(StateError::Io)?;
    ports.force(tasks);
    let incoming = fetch::Incoming::open(&config.state)?;
    let (inputs, receiver) = mpsc::channel(INPUTS);
    let mut by_kind = Vec::new();
    let mut adopted = Vec::new();
    let mut artifacts = Vec::new();
    for ((runtime, events), facts) in runtimes.into_iter().zip(&facts) {
        let (mut found, held) = recover(Arc::clone(&runtime), facts.kind).await?;
        if let Some(ingress) = &config.ingress {
            for Adopted { report, .. } in &mut found {
                let address = report.address.take();
                report.address = address.map(|own| ingress.put(report.sandbox, own));
            }
        }
        adopted.extend(found.into_iter().map(|found| (facts.kind, found)));
        artifacts.extend(held);
        tasks.run("runtime events", OnCancel::Abort, relay(events, inputs.clone()));
        by_kind.push((facts.kind, runtime));
    }
    artifacts.sort_unstable();
    artifacts.dedup();
    let runtimes = Runtimes::new(by_kind);
    let clock = Clock::new();
    let machine = Worker::new(
        Time(clock.nanos()),
        dirigent_core::worker::Config {
            capacity: capacity.clone(),
            ports: (config.settings.first_port, config.settings.last_port),
        },
        Left {
            adopted: adopted.iter().map(|(_, found)| found.clone()).collect(),
            artifacts,
            ports: ports.all(),
        },
    );
    let (wanted, wants) = outbox(Limits::default());
    let bulk = bulk::Bulk::new(bulk_dialer, incoming, runtimes.all(), inputs.clone(), wants);
    let at = adopted.len();
    let shell = Shell { identity, ports, runtimes, ingress: config.ingress };
    let driver = Driver::new(machine, clock, shell, wanted, &adopted);
    let (link, name_taken) = (driver.link_token(), driver.name_taken());
    tasks.spawn("worker", OnError::StopRole, OnCancel::Abort, driver.run(receiver));
    tasks.run("worker link", OnCancel::Abort, link::keep(dialer, inputs.clone(), link));
    tasks.run("worker bulk", OnCancel::Abort, bulk.run());
    tasks.run("worker load", OnCancel::Abort, load::sample(config.meter, inputs.clone()));
    Ok(Running { capacity, facts, adopted: at, inputs, name_taken })
}

async fn recover(
    runtime: Arc<dyn Runtime>,
    kind: RuntimeKind,
) -> Result<(Vec<Adopted>, Vec<dirigent_core::Digest>), StartError> {
    let found = tokio::task::spawn_blocking(move || Ok((runtime.recover()?, runtime.artifacts())));
    let found = found.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    found.map_err(|error| StartError::Recover { kind, error })
}

async fn relay(mut events: mpsc::Receiver<Event>, inputs: mpsc::Sender<Input>) {
    while let Some(event) = events.recv().await {
        if inputs.send(Input::Runtime(event)).await.is_err() {
            return;
        }
    }
}

impl Running {
    /// Whether it has ended because another worker has its name, and lives.
    #[must_use]
    pub fn is_name_taken(&self) -> bool {
        self.name_taken.load(Relaxed)
    }

    /// Leave the control plane and destroy every sandbox; how many are left at the deadline.
    /// To be called before the tasks are stopped.
    pub async fn stop_all(&self, deadline: Duration) -> usize {
        // The last part of the time is for those who ignored SIGTERM.
        let grace = deadline.saturating_sub(Duration::from_secs(2)).max(deadline / 2);
        let over = tokio::time::Instant::now() + deadline;
        let (done, left) = tokio::sync::watch::channel(usize::MAX);
        let order = Input::StopAll { grace, left: done };
        if self.inputs.send(order).await.is_err() {
            return 0;
        }
        let mut waiting = left.clone();
        let gone = waiting.wait_for(|left| *left == 0);
        // An error says that the worker's task ended: nobody is left to count.
        match tokio::time::timeout_at(over, gone).await {
            Ok(_) => 0,
            Err(_elapsed) => *left.borrow(),
        }
    }
}
