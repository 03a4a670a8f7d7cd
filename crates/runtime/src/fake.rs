//! A runtime without sandboxes: each is a listener in this process that answers HTTP itself.
//!
//! For tests of the other parts and for studies of scale. Starts take as long as a seeded
//! distribution says, and fail on request, by [`FakeConfig`] or by the function's environment:
//!
//! | variable | effect |
//! |---|---|
//! | `FAKE_START_MS=N` | listens N ms after its creation |
//! | `FAKE_FAIL=create` | cannot be created, the worker's fault |
//! | `FAKE_FAIL=never_listen` | runs without ever listening |
//! | `FAKE_FAIL=exit:N` | exits with status N before it listens |
//! | `FAKE_FAIL=oom` | goes over its memory limit before it listens |
//! | `FAKE_EXIT_AFTER_MS=N` | exits with status 0, N ms after it listened |
//! | `FAKE_IGNORE_TERM=1` | does not end before its grace is over |
//!
//! What it answers is in [`answer`](self). Each sandbox counts the invocations in it at once, so
//! that it can bear witness whether `concurrency` was kept: [`FakeRuntime::witness`].

mod answer;
mod log;
mod sandbox;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dirigent_core::{
    Address, Digest, Fault, Isolation, RuntimeKind, SandboxId,
    frame::{LogLine, LogQuery, SandboxReport, StartSandbox},
    worker::{Adopted, ArtifactFailure, CreateSandbox},
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Event, Facts, Runtime};
use sandbox::Order;

/// How the fake behaves.
#[derive(Clone, Debug)]
pub struct FakeConfig {
    /// Where sandboxes listen.
    pub address: Ipv4Addr,
    /// From the order to the program's execution.
    pub create: Distribution,
    /// From execution to listening.
    pub init: Distribution,
    /// Every so manieth creation fails by the worker's fault; 0 is none.
    pub fail_every: u64,
    /// What the distributions are drawn with: the same seed gives the same sequence.
    pub seed: u64,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            create: Distribution::Fixed(Duration::ZERO),
            init: Distribution::Fixed(Duration::ZERO),
            fail_every: 0,
            seed: 1,
        }
    }
}

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Always so long.
    Fixed(Duration),
    /// Anything between the two, as likely.
    Uniform(Duration, Duration),
    /// A logarithmic normal distribution, as start times mostly have.
    LogNormal {
        /// Half of them are shorter.
        median: Duration,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
}

/// What the fake saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// Sandboxes that were ordered, failed ones included.
    pub created: u64,
    /// Invocations that were begun.
    pub invocations: u64,
    /// Invocations that were answered.
    pub answered: u64,
    /// Invocations that began while the sandbox had `concurrency` others: must be none.
    pub violations: u64,
    /// The most sandboxes at once.
    pub most_sandboxes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct FakeRuntime {
    world: Arc<World>,
    /// Whether dropping this ends the sandboxes: not once another has taken over.
    owner: std::sync::atomic::AtomicBool,
}

/// What outlives the worker's hold on it, as the keeper and its sandboxes do.
#[derive(Debug)]
struct World {
    config: FakeConfig,
    handle: Handle,
    events: Mutex<mpsc::Sender<Event>>,
    state: Mutex<State>,
    log: log::Log,
    counts: Counts,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct State {
    sandboxes: BTreeMap<SandboxId, Entry>,
    /// Those that ended since the last worker went and before the next one asked.
    ended: Vec<Adopted>,
    /// Whether the next worker has yet to ask.
    taken_over: bool,
    artifacts: BTreeSet<Digest>,
    random: Random,
}

impl State {
    /// It has ended.
    fn forget(&mut self, sandbox: SandboxId) {
        if let Some(entry) = self.sandboxes.remove(&sandbox)
            && self.taken_over
        {
            self.ended.push(adopted(sandbox, &entry));
        }
    }
}

/// A sandbox as the runtime sees it.
#[derive(Debug)]
struct Entry {
    order: StartSandbox,
    port: u16,
    address: Option<Address>,
    stopping: bool,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug, Default)]
struct Counts {
    created: AtomicU64,
    invocations: AtomicU64,
    answered: AtomicU64,
    violations: AtomicU64,
    most_sandboxes: AtomicU64,
}

impl FakeRuntime {
    /// A runtime that reports to `events`. To be called within a tokio runtime, where its
    /// sandboxes run until this is dropped.
    #[must_use]
    pub fn start(config: FakeConfig, events: mpsc::Sender<Event>) -> Arc<Self> {
        let random = Random(config.seed);
        let state = State {
            sandboxes: BTreeMap::new(),
            ended: Vec::new(),
            taken_over: false,
            artifacts: BTreeSet::new(),
            random,
        };
        Self::of(Arc::new(World {
            config,
            handle: Handle::current(),
            events: Mutex::new(events),
            state: Mutex::new(state),
            log: log::Log::default(),
            counts: Counts::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// The runtime as a restarted worker would find it: the sandboxes go on, and from now on
    /// report to `events`.
    #[must_use]
    pub fn taken_over(&self, events: mpsc::Sender<Event>) -> Arc<Self> {
        self.owner.store(false, Ordering::Relaxed);
        lock(&self.world.state).taken_over = true;
        *lock(&self.world.events) = events;
        Self::of(Arc::clone(&self.world))
    }

    fn of(world: Arc<World>) -> Arc<Self> {
        Arc::new(Self { world, owner: true.into() })
    }

    /// What was seen so far.
    #[must_use]
    pub fn witness(&self) -> Witness {
        let counts = &self.world.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Witness {
            created: read(&counts.created),
            invocations: read(&counts.invocations),
            answered: read(&counts.answered),
            violations: read(&counts.violations),
            most_sandboxes: read(&counts.most_sandboxes),
        }
    }

    /// Sandboxes that are there now.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<SandboxId> {
        lock(&self.world.state).sandboxes.keys().copied().collect()
    }
}

impl Drop for FakeRuntime {
    fn drop(&mut self) {
        if self.owner.load(Ordering::Relaxed) {
            self.world.stop.cancel();
        }
    }
}

impl World {
    async fn report(&self, event: Event) {
        let events = lock(&self.events).clone();
        // Nobody listens: the worker is being restarted or is gone. It asks when it is back.
        if events.send(event).await.is_err() {
            tracing::trace!("an event of the fake runtime is not heard");
        }
    }

    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        };
        self.tasks.spawn_on(task, &self.handle);
    }
}

impl Runtime for FakeRuntime {
    fn facts(&self) -> Facts {
        let level = Some(Isolation::Plain);
        Facts { kind: RuntimeKind::Fake, best: level, usual: level, missing: Vec::new() }
    }

    fn recover(&self) -> std::io::Result<Vec<Adopted>> {
        let mut state = lock(&self.world.state);
        state.taken_over = false;
        let mut found = std::mem::take(&mut state.ended);
        found.extend(state.sandboxes.iter().map(|(sandbox, entry)| adopted(*sandbox, entry)));
        Ok(found)
    }

    fn artifacts(&self) -> Vec<Digest> {
        lock(&self.world.state).artifacts.iter().copied().collect()
    }

    fn unpack(&self, digest: Digest, path: PathBuf) {
        let world = Arc::clone(&self.world);
        self.world.spawn(async move {
            let result = tokio::fs::remove_file(&path).await.map_err(|error| {
                ArtifactFailure::new(format!("{}: {error}", path.display()), Fault::Worker)
            });
            if result.is_ok() {
                lock(&world.state).artifacts.insert(digest);
            }
            world.report(Event::Unpacked { digest, result }).await;
        });
    }

    fn discard(&self, digest: Digest) {
        lock(&self.world.state).artifacts.remove(&digest);
    }

    fn create(&self, create: CreateSandbox) {
        let (sandbox, port) = (create.order.sandbox, create.port);
        if port != 0 && is_taken(self.world.config.address, port) {
            let world = Arc::clone(&self.world);
            let event = Event::PortTaken { sandbox, port };
            return self.world.spawn(async move { world.report(event).await });
        }
        let created = self.world.counts.created.fetch_add(1, Ordering::Relaxed) + 1;
        let (orders, receiver) = mpsc::channel(8);
        let every = self.world.config.fail_every;
        let plan = {
            let mut state = lock(&self.world.state);
            let plan = sandbox::Plan {
                create: self.world.config.create.draw(&mut state.random),
                init: self.world.config.init.draw(&mut state.random),
                fails: every != 0 && created.is_multiple_of(every),
            };
            let CreateSandbox { order, port } = create.clone();
            let entry =
                Entry { order, port, address: None, stopping: false, orders: orders.clone() };
            state.sandboxes.insert(create.order.sandbox, entry);
            let now = state.sandboxes.len() as u64;
            self.world.counts.most_sandboxes.fetch_max(now, Ordering::Relaxed);
            plan
        };
        let world = Arc::clone(&self.world);
        self.world.spawn(sandbox::live(world, create, plan, orders, receiver));
    }

    fn destroy(&self, sandbox: SandboxId, grace: Duration) {
        let mut state = lock(&self.world.state);
        // One that is gone already has been, or is being, reported.
        let Some(entry) = state.sandboxes.get_mut(&sandbox) else { return };
        entry.stopping = true;
        let orders = entry.orders.clone();
        drop(state);
        self.world.spawn(async move {
            if orders.send(Order::Stop { grace }).await.is_err() {
                tracing::trace!(%sandbox, "it was faster");
            }
        });
    }

    fn logs(&self, query: LogQuery, lines: mpsc::Sender<Vec<LogLine>>) {
        self.world.log.read(&query, &lines, &self.world.stop);
    }
}

fn adopted(sandbox: SandboxId, entry: &Entry) -> Adopted {
    let spec = &entry.order.spec;
    Adopted {
        report: SandboxReport {
            sandbox,
            revision: entry.order.revision,
            memory: spec.resources.memory,
            cpu: spec.resources.cpu,
            address: entry.address.clone(),
            stopping: entry.stopping,
        },
        port: (entry.port != 0).then_some(entry.port),
        artifact: spec.artifact,
    }
}

/// Whether somebody listens there: their connections would be taken for the sandbox's.
fn is_taken(address: Ipv4Addr, port: u16) -> bool {
    let bound = std::net::TcpListener::bind((address, port));
    bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

/// A small generator (SplitMix64): enough for start times, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Over 0, at most 1.
    fn unit(&mut self) -> f64 {
        let bits = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        (f64::from(bits) + 1.0) / (f64::from(u32::MAX) + 1.0)
    }
}

impl Distribution {
    fn draw(self, random: &mut Random) -> Duration {
        match self {
            Self::Fixed(time) => time,
            Self::Uniform(from, to) => from + to.saturating_sub(from).mul_f64(random.unit()),
            Self::LogNormal { median, sigma } => {
                let radius = (-2.0 * random.unit().ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
                // Bounded, so that no draw is over what a duration can hold.
                median.mul_f64((sigma * normal).clamp(-10.0, 10.0).exp())
            }
        }
    }
}

/// No code panics while it holds one of these locks; if it did, the state is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
