//! The workers: who is there, what each has room for, and where a sandbox is started.
//!
//! The fleet is the register of sandboxes: whose each is, and where. It books memory, processors, a
//! place and a start token for each from its placement on. It knows nothing of demand, slots or
//! revisions' lives: it is told which sandboxes are wanted and says which worker got the order. It
//! never gives up a booking by itself: a sandbox is gone, and forgotten, when the control machine
//! says so, also on a worker that is lost.
//!
//! The work of one call is bounded: what a freed worker makes possible beyond that is done by
//! `expire`, for which `deadline` asks at once.

mod peers;
mod placing;
mod pools;
mod posting;
#[cfg(test)]
mod props;
mod storm;
#[cfg(test)]
mod tests;
mod waiting;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use self::{
    peers::Connection,
    pools::Pools,
    storm::Storm,
    waiting::Waiting,
    worker::{Fetching, Health, Need, Worker},
};
use crate::{
    Bytes, DataPlaneId, Digest, Fault, FunctionId, FunctionName, Isolation, MilliCpu, Office,
    RequestId, Resources, RevisionId, SandboxId, Spec, StreamId, Time, WorkerId, WorkerRecord,
    Write, WriteToken,
    control::{Answer, Refusal, WorkerSummary, ids::IdMap},
    frame::{SandboxReport, ToWorker},
    policy::placement::{Placement, TwoChoices},
};

/// Write tokens of the fleet have this bit, so that nobody else's are mistaken for them.
pub(crate) const TOKEN_BIT: u64 = 1 << 63;

/// Addresses to release that are kept for a worker that is away; beyond that the oldest are left to
/// the worker's own limit of 15 minutes.
const RELEASES_KEPT: usize = 10_000;

/// Images of one worker of which it is remembered how much is fetched; of more nothing is shown.
const MAX_FETCHING: usize = 64;

/// For how long what a worker told of a fetch is shown; it tells once a second.
const FETCHING: Duration = Duration::from_secs(5);

/// After a refusal the worker's own books differ from these: nothing is sent there for this long.
/// Ours: a quarter of a beat, short beside a caller's patience.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// A sandbox that is wanted and has no worker yet.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    /// Its id.
    pub(crate) sandbox: SandboxId,
    /// What runs in it.
    pub(crate) revision: RevisionId,
    /// The function's name.
    pub(crate) name: FunctionName,
    /// What it needs.
    pub(crate) spec: Arc<Spec>,
    /// From create to listening.
    pub(crate) start_timeout: Duration,
    /// Queued callers wait for it.
    pub(crate) urgent: bool,
    /// When it was decided.
    pub(crate) decided: Time,
}

/// What the fleet has to say, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// A worker said what it has, and what of it is missing by the books. No leader has recorded a
    /// stranger: what it runs is older than the store's memory of it.
    Joined {
        worker: WorkerId,
        sandboxes: Vec<SandboxReport>,
        missing: BTreeSet<SandboxId>,
        is_stranger: bool,
    },
    /// A wanted sandbox has a worker; the order to start it was sent just before.
    Placed { sandbox: SandboxId, worker: WorkerId, waited: Duration },
    /// A function waits because no worker has room.
    NoRoom { function: FunctionId, need: Resources },
    /// It no longer waits for room.
    RoomAgain { function: FunctionId },
    /// A worker is lost, with these sandboxes.
    Lost { worker: WorkerId, sandboxes: Vec<SandboxId> },
    /// Workers of these sandboxes are drained from now on, or no longer.
    Leaving { sandboxes: Vec<SandboxId>, leaving: bool },
    /// A worker is forgotten, and what was still in the books of it is gone.
    Removed { worker: WorkerId, sandboxes: BTreeSet<SandboxId> },
    /// Answer a user.
    Reply { to: RequestId, result: Result<Answer, Refusal> },
    /// Say this to a worker.
    Send { stream: StreamId, frame: ToWorker },
    /// Write this; the answer goes to `persisted`.
    Persist { token: WriteToken, write: Write },
    /// Close this stream.
    Close { stream: StreamId, reason: String },
}

/// A worker set aside for a function's first sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) function: FunctionId,
    pub(crate) worker: WorkerId,
    /// What must come free there; nothing, if it is full by the number of sandboxes.
    pub(crate) missing: Resources,
}

/// A sandbox that was given a worker.
#[derive(Debug)]
struct Booking {
    worker: WorkerId,
    function: FunctionId,
    memory: u64,
    cpu: u32,
    /// It has a start token.
    starting: bool,
    /// It takes no room any more.
    gone: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Fleet {
    office: Office,
    /// The time of the last call that told it.
    now: Time,
    placement: Box<dyn Placement>,
    workers: IdMap<WorkerId, Worker>,
    names: BTreeMap<Arc<str>, WorkerId>,
    connections: IdMap<StreamId, Connection>,
    /// Streams without a `Hello`, oldest first, and until when they may be.
    greetings: VecDeque<(Time, StreamId)>,
    sandboxes: BTreeMap<SandboxId, Booking>,
    /// Those that were told to stop and are not gone: said again if their worker returns with them.
    stops: BTreeMap<SandboxId, Duration>,
    /// Sandboxes that take room, by function.
    functions: BTreeMap<FunctionId, u32>,
    pools: Pools,
    waiting: Waiting,
    /// Functions of which `NoRoom` was said last.
    roomless: BTreeSet<FunctionId>,
    /// Workers with room set aside for a start that waits.
    earmarked: BTreeSet<WorkerId>,
    /// Starts given out to what callers wait for, since the last one for which nobody waits.
    urgent_in_a_row: u32,
    /// Workers that changed while something waits.
    changed: BTreeSet<WorkerId>,
    storm: Storm,
    /// Workers that are live or suspect.
    present: usize,
    /// Recorded workers that have not attached to this leader.
    awaited: BTreeSet<WorkerId>,
    timers: BTreeSet<(Time, WorkerId)>,
    /// Whose record each is.
    writes: BTreeMap<WriteToken, WorkerId>,
    tokens: u64,
    last_worker: u64,
    /// Records of removed workers that keep a number until there is a newer one.
    tombstones: Vec<WorkerId>,
    outputs: VecDeque<Output>,
}

impl Fleet {
    /// A leader's fleet: these workers are expected to attach.
    pub(crate) fn new(now: Time, seed: u64, office: Office, records: Vec<WorkerRecord>) -> Self {
        let mut fleet = Self {
            office,
            now,
            placement: Box::new(TwoChoices::new(seed)),
            workers: IdMap::default(),
            names: BTreeMap::new(),
            connections: IdMap::default(),
            greetings: VecDeque::new(),
            sandboxes: BTreeMap::new(),
            stops: BTreeMap::new(),
            functions: BTreeMap::new(),
            pools: Pools::default(),
            waiting: Waiting::default(),
            roomless: BTreeSet::new(),
            earmarked: BTreeSet::new(),
            urgent_in_a_row: 0,
            changed: BTreeSet::new(),
            storm: Storm::default(),
            present: 0,
            awaited: BTreeSet::new(),
            timers: BTreeSet::new(),
            writes: BTreeMap::new(),
            tokens: 0,
            last_worker: 0,
            tombstones: Vec::new(),
            outputs: VecDeque::new(),
        };
        for record in records {
            let id = record.id;
            fleet.last_worker = fleet.last_worker.max(id.0);
            if record.removed {
                fleet.tombstones.push(id);
                continue;
            }
            fleet.names.insert(record.name.clone(), id);
            fleet.workers.insert(id, Worker::new(now, record));
            fleet.awaited.insert(id);
            fleet.rearm(id);
        }
        fleet
    }

    /// Its sandbox listens: the start token comes free.
    pub(crate) fn ready(&mut self, now: Time, sandbox: SandboxId) {
        self.now = now;
        let Some(booking) = self.sandboxes.get_mut(&sandbox) else { return };
        let started = std::mem::replace(&mut booking.starting, false);
        let id = booking.worker;
        self.touch(id, |worker| {
            if started {
                worker.used.starting = worker.used.starting.saturating_sub(1);
                worker.failures = 0;
                worker.backoff = worker::QUARANTINE_FIRST;
            }
        });
        self.pump(now);
    }

    /// A start failed, or (`None`) was refused: token and room come free.
    pub(crate) fn failed(&mut self, now: Time, sandbox: SandboxId, fault: Option<Fault>) {
        self.now = now;
        self.forget_waiting(sandbox);
        if let Some(id) = self.unbook(sandbox) {
            if let Some(worker) = self.workers.get_mut(&id) {
                match fault {
                    None => worker.refused = Some(now.after(REFUSED_PAUSE)),
                    Some(Fault::Function) => {}
                    Some(Fault::Worker) => {
                        worker.failures = worker.failures.saturating_add(1);
                        if worker.failures >= worker::QUARANTINE_AFTER
                            && worker.quarantine.is_none()
                        {
                            worker.quarantine = Some(now.after(worker.backoff));
                            worker.backoff = (worker.backoff * 2).min(worker::QUARANTINE_LONGEST);
                        }
                    }
                }
            }
            self.rearm(id);
            self.touched(id);
        }
        self.pump(now);
    }

    /// A sandbox is gone, or given up: its room comes free.
    pub(crate) fn gone(&mut self, now: Time, sandbox: SandboxId) {
        self.now = now;
        self.forget_waiting(sandbox);
        self.unbook(sandbox);
        self.pump(now);
    }

    /// It leaves the books of the control machine.
    pub(crate) fn forget(&mut self, sandbox: SandboxId) {
        if let Some(booking) = self.sandboxes.remove(&sandbox) {
            debug_assert!(booking.gone, "{sandbox} still takes room");
            if let Some(worker) = self.workers.get_mut(&booking.worker) {
                worker.sandboxes.remove(&sandbox);
            }
        }
    }

    /// Whose a sandbox is, from its being wanted to its being forgotten.
    pub(crate) fn home(&self, sandbox: SandboxId) -> Option<FunctionId> {
        let placed = self.sandboxes.get(&sandbox).map(|booking| booking.function);
        placed.or_else(|| self.waiting.home(sandbox))
    }

    /// Whose a sandbox is, if this worker was given it.
    pub(crate) fn home_on(&self, worker: WorkerId, sandbox: SandboxId) -> Option<FunctionId> {
        let booking = self.sandboxes.get(&sandbox)?;
        (booking.worker == worker).then_some(booking.function)
    }

    /// The sandboxes that a worker was given, those included that are gone and not forgotten.
    pub(crate) fn on(&self, worker: WorkerId) -> impl Iterator<Item = SandboxId> + '_ {
        self.workers.get(&worker).into_iter().flat_map(|worker| worker.sandboxes.iter().copied())
    }

    /// How many sandboxes are not forgotten.
    pub(crate) fn known(&self) -> usize {
        self.sandboxes.len() + self.waiting.len()
    }

    /// Tells a sandbox to stop: now, or when its worker returns with it.
    pub(crate) fn stop(&mut self, sandbox: SandboxId, grace: Duration) {
        let Some(booking) = self.sandboxes.get(&sandbox).filter(|booking| !booking.gone) else {
            return;
        };
        self.stops.insert(sandbox, grace);
        if let Some(stream) = self.workers.get(&booking.worker).and_then(|worker| worker.stream) {
            let frame = ToWorker::StopSandbox { sandbox, grace };
            self.outputs.push_back(Output::Send { stream, frame });
        }
    }

    /// Has a data plane barred from a sandbox; if its worker is away, that is said when it returns.
    pub(crate) fn settle(&mut self, sandbox: SandboxId, data_plane: DataPlaneId) {
        let booking = self.sandboxes.get(&sandbox).filter(|booking| !booking.gone);
        let worker = booking.and_then(|booking| self.workers.get(&booking.worker));
        if let Some(stream) = worker.and_then(|worker| worker.stream) {
            let frame = ToWorker::Settle { sandbox, data_plane };
            self.outputs.push_back(Output::Send { stream, frame });
        }
    }

    /// Every slot of a sandbox that is gone came back: its address may be used again.
    pub(crate) fn release_address(&mut self, sandbox: SandboxId, worker: WorkerId) {
        let Some(worker) = self.workers.get_mut(&worker) else { return };
        if let Some(stream) = worker.stream {
            let frame = ToWorker::ReleaseAddress { sandbox };
            self.outputs.push_back(Output::Send { stream, frame });
        } else {
            if worker.releases.len() >= RELEASES_KEPT {
                worker.releases.pop_front();
            }
            worker.releases.push_back(sandbox);
        }
    }

    /// Whether any worker could ever run this. As long as a worker's offer is not known, it could.
    ///
    /// # Errors
    /// What no worker offers, and what to do about it.
    pub(crate) fn possible(&self, spec: &Spec) -> Result<(), String> {
        let need = Need::of(spec);
        let unknown = |worker: &Worker| worker.capacity.is_none() && worker.health != Health::Lost;
        let mut could = self.workers.values().map(|w| unknown(w) || w.could_run(&need));
        if self.workers.values().all(|worker| worker.capacity.is_none()) || could.any(|yes| yes) {
            return Ok(());
        }
        Err(self.obstacle(spec, &need))
    }

    /// The first demand that no worker meets.
    fn obstacle(&self, spec: &Spec, need: &Need) -> String {
        let runtime = need.runtime;
        let known = || self.workers.values().filter_map(|worker| worker.capacity.as_ref());
        let best = self.workers.values().filter_map(|worker| worker.isolation(runtime)).max();
        let Some(best) = best else {
            let offered: BTreeSet<String> = known()
                .flat_map(|capacity| capacity.runtimes.iter().map(|(kind, _)| kind.to_string()))
                .collect();
            let offered = offered.into_iter().collect::<Vec<_>>().join(", ");
            // The first worker's reason stands for all: most often they are alike.
            let prefix = format!("{runtime}: ");
            let mut reasons = known().flat_map(|capacity| &capacity.missing);
            let why = reasons
                .find_map(|line| line.strip_prefix(&prefix))
                .unwrap_or("`dirigent doctor` says why it does not work");
            return format!(
                "no worker offers the runtime `{runtime}` (offered: {offered}): {why}; or change \
                 `sandbox.runtime`"
            );
        };
        if let Some(demanded) = need.isolation.filter(|demanded| *demanded > best) {
            return format!(
                "no worker offers isolation `{demanded}` for the runtime `{runtime}`, the best is \
                 `{best}`; lower or remove `sandbox.isolation`, or add a worker that offers it \
                 (`dirigent doctor` says what is missing)"
            );
        }
        let memory = known().map(|capacity| capacity.memory).max().unwrap_or_default();
        if need.memory > memory.0 {
            return format!(
                "`resources.memory` is {} and the largest worker has {}; ask for less, or \
                 add a larger worker",
                Bytes(need.memory),
                memory.rounded()
            );
        }
        let cpu = known().map(|c| c.cpu.0.saturating_mul(c.cpu_overcommit)).max().unwrap_or(0);
        if need.cpu > u64::from(cpu) {
            return format!(
                "`resources.cpu` is {} and the largest worker reserves at most {}, overcommit \
                 included; ask for less, or add a larger worker",
                spec.resources.cpu,
                MilliCpu(cpu)
            );
        }
        let isolation = need
            .isolation
            .map_or(String::new(), |level: Isolation| format!(", isolation `{level}`"));
        format!(
            "no single worker offers the runtime `{runtime}`{isolation}, {} of memory and {} of \
             processors together; ask for less, or add a worker",
            spec.resources.memory, spec.resources.cpu
        )
    }

    /// A deadline may have passed.
    pub(crate) fn expire(&mut self, now: Time) {
        self.now = now;
        self.expire_greetings(now);
        self.expire_workers(now);
        self.weather(now);
        self.pump(now);
    }

    /// When to call `expire`.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let greeting = self.greetings.front().map(|(at, _)| *at);
        let worker = self.timers.first().map(|(at, _)| *at);
        let work = (!self.changed.is_empty()).then_some(self.now);
        [greeting, worker, work, self.storm.deadline()].into_iter().flatten().min()
    }

    /// What to say, in order.
    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// All workers, fit to be shown.
    pub(crate) fn summaries(&self) -> Vec<WorkerSummary> {
        self.workers.values().map(Worker::summary).collect()
    }

    /// A worker, fit to be shown.
    pub(crate) fn summary(&self, name: &str) -> Option<WorkerSummary> {
        Some(self.workers.get(self.names.get(name)?)?.summary())
    }

    /// The name of a worker that was recorded when this leader took office and has not attached.
    pub(crate) fn awaited(&self) -> Option<&str> {
        self.awaited.iter().find_map(|id| Some(&*self.workers.get(id)?.record.name))
    }

    /// Whether every worker that was recorded when this leader took office has attached.
    pub(crate) fn all_recorded_attached(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Whether a worker is not heard: its slots are used last.
    pub(crate) fn is_suspect(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_none_or(|worker| worker.health != Health::Live)
    }

    /// An artifact is held, or no longer.
    pub(crate) fn artifact(&mut self, stream: StreamId, digest: Digest, held: bool) {
        let Some(id) = self.worker_of(stream) else { return };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.fetching.remove(&digest);
        if held {
            worker.artifacts.insert(digest);
        } else {
            worker.artifacts.remove(&digest);
        }
        self.pools.hold(id, digest, held);
    }

    /// A worker tells how much of an image it has fetched.
    pub(crate) fn fetching(
        &mut self,
        stream: StreamId,
        digest: Digest,
        fetched: Bytes,
        all: Bytes,
    ) {
        let Some(id) = self.worker_of(stream) else { return };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.fetching.len() >= MAX_FETCHING {
            worker.fetching.retain(|_, one| one.told.after(FETCHING) > self.now);
        }
        if worker.fetching.len() < MAX_FETCHING || worker.fetching.contains_key(&digest) {
            worker.fetching.insert(digest, Fetching { fetched, all, told: self.now });
        }
    }

    /// Who fetches this image now, and how much of how much each has. What was not told of for a while
    /// is not fetched any more: a fetch that fails is told of by the starts that needed it.
    pub(crate) fn fetchers(
        &self,
        digest: Digest,
    ) -> impl Iterator<Item = (&Arc<str>, Bytes, Bytes)> {
        self.workers.values().filter_map(move |worker| {
            let Fetching { fetched, all, told } = *worker.fetching.get(&digest)?;
            let is_told = worker.stream.is_some() && told.after(FETCHING) > self.now;
            is_told.then_some((&worker.record.name, fetched, all))
        })
    }

    /// No revision needs these artifacts any more: who holds them hears it.
    pub(crate) fn discard(&mut self, digests: &[Digest]) {
        if digests.is_empty() {
            return;
        }
        for worker in self.workers.values() {
            let held = digests.iter().filter(|digest| worker.artifacts.contains(*digest));
            let digests: Vec<Digest> = held.copied().collect();
            if let Some(stream) = worker.stream.filter(|_| !digests.is_empty()) {
                let frame = ToWorker::DiscardArtifacts { digests };
                self.outputs.push_back(Output::Send { stream, frame });
            }
        }
    }

    /// A worker's place in the indexes is brought up to date; what waits may go there.
    fn touched(&mut self, id: WorkerId) {
        self.touch(id, |_| {});
    }

    /// Changes a worker; see `touched`.
    fn touch<R>(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker) -> R) -> Option<R> {
        let worker = self.workers.get_mut(&id)?;
        let result = change(worker);
        self.pools.update(worker);
        if !self.waiting.is_empty() {
            self.changed.insert(id);
        }
        Some(result)
    }
}
