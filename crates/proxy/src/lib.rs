//! The data plane's shell: HTTP in, sandboxes out.
//!
//! A client's connection is served by one task on one thread, which does everything for its
//! invocations: it finds the function, calls its gate under a short lock, and drives the connection
//! to the sandbox. So a warm invocation changes neither task nor thread, and takes no lock but its
//! function's. Connections are spread over the threads when they come.
//!
//! ```text
//! server  accepts          wire + scan   what of a client's bytes is let through
//! invoke  an invocation    attempt       on one sandbox    upstream   connections to sandboxes
//! slot    gate + waiters   lease         a slot in use     catalogue  functions by name
//! tokens  who may call
//! control the stream to the control plane                  timers     when gates want to be called
//! ```
//!
//! It decides nothing: which sandbox serves is the gate's business (`dirigent_core::gate`), how many
//! there are is the control plane's.

mod alarm;
mod attempt;
mod body;
mod call;
mod catalogue;
mod config;
mod control;
#[cfg(test)]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
mod errors;
mod failure_log;
mod headers;
mod ids;
mod invoke;
mod lease;
mod leave;
mod metrics;
mod records;
mod scan;
mod server;
mod slot;
mod source;
mod streams;
mod timers;
mod tokens;
mod upgrade;
mod upstream;
mod websocket;
mod windows;
mod wire;

pub use config::{Config, Limits, loopback};
pub use upstream::{Opening, Tunnels};

use std::{
    borrow::Cow,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use dirigent_core::{
    Duty, FunctionId, InvocationId, Time,
    frame::{FromDataPlane, FromDataPlaneBulk, InvocationRecord, ToDataPlane, ToDataPlaneBulk},
    name::HostRules,
};
use dirigent_service::{Clock, Cores, Dialer, OnCancel, OnError, Outbox, Tasks, listen};
use ipnet::IpNet;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use catalogue::Catalogue;
use control::Memory;
use failure_log::{Failed, FailureLog};
use metrics::Metrics;
use records::{Record, Records};
use source::Budget;
use timers::Timers;
use tokens::Tokens;

/// Why a data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port cannot be had.
    #[error(transparent)]
    Listen(#[from] listen::ListenError),
    /// The state directory cannot be used.
    #[error("the data plane's state cannot be used")]
    State(#[source] io::Error),
    /// The threads that serve connections cannot be had.
    #[error("the data plane's threads cannot be started")]
    Cores(#[source] io::Error),
}

/// A data plane that serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where functions are called.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

/// Starts a data plane; it accepts connections when this returns.
///
/// # Errors
/// If its port or its state directory cannot be had.
pub async fn start(
    config: Config,
    frames: Dialer<FromDataPlane, ToDataPlane>,
    bulk: Dialer<FromDataPlaneBulk, ToDataPlaneBulk>,
    tasks: &Tasks,
) -> Result<Running, StartError> {
    let memory = Memory::open(config.state.as_deref()).map_err(StartError::State)?;
    let listener = listen::bind(config.listen, config.flag).await?;
    let address = listener.local_addr().map_err(StartError::State)?;
    let cores = Cores::start("data-plane", config.cores).map_err(StartError::Cores)?;
    let Config { hosts, trusted_proxies, takes_orders, tunnels, clock, limits, .. } = config;
    let shared = Arc::new(Shared {
        clock,
        limits,
        hosts,
        trusted_proxies,
        tunnels,
        catalogue: Catalogue::new(),
        tokens: Tokens::default(),
        timers: Timers::default(),
        records: Records::new(limits.records, clock),
        failures: FailureLog::default(),
        metrics: Metrics::new(),
        budget: Arc::new(Budget::new(limits.replay_bytes_total)),
        ahead: Arc::new(Budget::new(limits.ahead_bytes_total)),
        stream: ArcSwapOption::empty(),
        attached: AtomicBool::new(false),
        met: AtomicBool::new(false),
        name_taken: AtomicBool::new(false),
        invocations: AtomicU64::new(0),
        in_flight: AtomicUsize::new(0),
        open: AtomicUsize::new(0),
        closed: Notify::new(),
        draining: CancellationToken::new(),
        is_draining: AtomicBool::new(false),
        is_leaving: AtomicBool::new(false),
        orders: leave::Orders::new(takes_orders),
        beside: Stoppable(tasks.clone()),
        tasks: tasks.clone(),
        cores,
    });
    let (stop, ending) = (tasks.shutdown().clone(), Arc::clone(&shared));
    tasks.run("data plane: stop", OnCancel::Wait, async move {
        stop.cancelled().await;
        ending.begin_drain();
    });
    tasks.run("data plane: timers", OnCancel::Abort, Timers::run(Arc::clone(&shared)));
    tasks.run("data plane: sweep", OnCancel::Abort, sweep(Arc::clone(&shared)));
    tasks.run("data plane: failures", OnCancel::Wait, FailureLog::run(Arc::clone(&shared)));
    let stream = control::run(Arc::clone(&shared), frames, memory);
    tasks.spawn("data plane: control stream", OnError::StopRole, OnCancel::Abort, stream);
    let bulk = control::run_bulk(Arc::clone(&shared), bulk);
    tasks.run("data plane: bulk stream", OnCancel::Abort, bulk);
    server::start(&shared, listener).map_err(StartError::Cores)?;
    Ok(Running { address, shared })
}

impl Running {
    /// Whether a control plane is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.shared.is_attached()
    }

    /// Whether it has ended because another data plane has its name, and lives.
    #[must_use]
    pub fn is_name_taken(&self) -> bool {
        self.shared.name_taken.load(Relaxed)
    }

    /// Whether calls are to come here: it has met a control plane, and does not leave. Without one
    /// for a while it goes on.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let shared = &self.shared;
        let leaves = shared.is_leaving.load(Relaxed) || shared.is_draining.load(Relaxed);
        shared.met.load(Relaxed) && !leaves && shared.orders.duty() == Duty::InUse
    }

    /// From now on it says that it is not ready, and takes calls all the same: whatever stands
    /// before it needs a moment to see that. To be drained then.
    pub fn leave(&self) {
        self.shared.is_leaving.store(true, Relaxed);
    }

    /// The page for Prometheus.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        let shared = &self.shared;
        let now = shared.now();
        let levels = shared.catalogue.functions().into_iter().map(|slot| {
            let demand = slot.demand(now);
            (slot.name.clone(), demand.queued, demand.busy)
        });
        shared.metrics.page(levels, shared.in_flight.load(Relaxed))
    }

    /// What is remembered of the invocation with this request id.
    #[must_use]
    pub fn find_invocation(&self, request_id: &str) -> Option<InvocationRecord> {
        self.shared.records.find(request_id)
    }

    /// Accepts nothing more, tells clients so, and waits until every invocation is answered, at
    /// most until `deadline`. Whether all were. What is left ends with the tasks.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.shared.begin_drain();
        let all = server::wait_until_closed(&self.shared, deadline).await;
        leave::give_back(&self.shared).await;
        all
    }

    /// What operators want of it, as the control plane said last.
    #[must_use]
    pub fn orders(&self) -> watch::Receiver<Duty> {
        self.shared.orders.watch()
    }
}

/// What the parts of a data plane share.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    limits: Limits,
    hosts: HostRules,
    trusted_proxies: Vec<IpNet>,
    /// To sandboxes whose workers encrypt.
    tunnels: Option<Arc<dyn Tunnels>>,
    catalogue: Catalogue,
    tokens: Tokens,
    timers: Timers,
    records: Records,
    failures: FailureLog,
    metrics: Metrics,
    /// For bodies kept for other attempts.
    budget: Arc<Budget>,
    /// For bodies of HTTP/2 that nobody reads yet.
    ahead: Arc<Budget>,
    stream: ArcSwapOption<Stream>,
    attached: AtomicBool,
    /// Whether a control plane was ever attached.
    met: AtomicBool,
    /// Set once it gives up.
    name_taken: AtomicBool,
    invocations: AtomicU64,
    in_flight: AtomicUsize,
    /// Client connections and tunnels.
    open: AtomicUsize,
    closed: Notify,
    is_leaving: AtomicBool,
    orders: leave::Orders,
    draining: CancellationToken,
    /// As the token says, without its lock; set before it.
    is_draining: AtomicBool,
    beside: Stoppable,
    tasks: Tasks,
    cores: Cores,
}

/// The stream to the control plane.
#[derive(Debug)]
struct Stream {
    number: u64,
    out: Outbox<FunctionId, FromDataPlane>,
}

impl Shared {
    fn now(&self) -> Time {
        Time(self.clock.nanos())
    }

    /// Whether what it says of the hops before it is believed.
    fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    fn kept_nanos(&self) -> u64 {
        u64::try_from(self.limits.kept_idle.as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_attached(&self) -> bool {
        self.attached.load(Relaxed)
    }

    fn begin_drain(&self) {
        self.is_draining.store(true, Release);
        self.draining.cancel();
    }

    /// Keeps what became of an invocation, and has it in the log if it failed.
    fn remember(&self, record: Record, why: Cow<'static, str>) {
        if let Some(code) = record.failure() {
            let (status, request_id) = (record.status, record.request_id.clone());
            let failed = Failed { status, request_id, why, is_fault: record.is_fault() };
            self.failures.note(record.function(), code, failed);
        }
        self.records.put(record);
    }

    fn next_invocation(&self) -> InvocationId {
        InvocationId(self.invocations.fetch_add(1, Relaxed) + 1)
    }

    /// Says something on the stream with this number; if that is over, it need not be said.
    fn say(&self, number: u64, frame: FromDataPlane) {
        let stream = self.stream.load();
        let Some(stream) = &*stream else { return };
        if stream.number != number {
            return;
        }
        let key = match &frame {
            FromDataPlane::Demand(demand) => Some(demand.function),
            _ => None,
        };
        if let Err(error) = stream.out.push(key, size_of::<FromDataPlane>(), frame) {
            tracing::debug!(%error, "the stream is over");
        }
    }

    /// Says something on the stream that there is.
    fn say_now(&self, frame: FromDataPlane) {
        let number = self.stream.load().as_ref().map(|stream| stream.number);
        if let Some(number) = number {
            self.say(number, frame);
        }
    }
}

/// Starts tasks that end with the role, each with a token of its own: looking at a shared one takes
/// a lock that all of them would share.
#[derive(Clone, Debug)]
struct Stoppable(Tasks);

impl Stoppable {
    fn run<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.0.shutdown().child_token();
        self.0.run(name, OnCancel::Wait, async move {
            tokio::select! {
                biased;
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn sweep(shared: Arc<Shared>) {
    let every = (shared.limits.forget_after / 16).max(Duration::from_millis(10));
    loop {
        tokio::time::sleep(every).await;
        shared.catalogue.sweep(&shared);
    }
}
