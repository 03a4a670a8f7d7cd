//! One function: its record, and while there is anything to do for it, its active state.
//!
//! A function that nobody calls is a record, a version and a null pointer. The active state is made
//! by the first event that needs it and dropped when nothing is left in it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Display,
    sync::Arc,
    time::Duration,
};

use crate::{
    FunctionId, FunctionName, FunctionRecord, FunctionView, KeepAlive, RequestId, RevisionId,
    RevisionRecord, RevisionView, SandboxId, StartFailure, Time, WorkerId,
    control::{
        cluster::Cluster,
        deploy::Rollout,
        levels::Levels,
        moving::Moving,
        record::{Op, Writing},
        sandbox::{Books, Sandbox, Standing},
        timers::Timer,
    },
    frame::{Status, ToDataPlane},
    policy::{
        ewma::Ewma,
        kpa::{Desired, Kpa},
        starts::Inputs,
    },
};

/// Failures remembered of a function.
const FAILURES: usize = 10;
/// Decisions remembered of a function.
const DECISIONS: usize = 20;
/// How long what was learned of a function is kept after it fell silent: longer than the usual
/// pauses between calls, and far shorter than a deployment lives.
const QUIET: Duration = Duration::from_secs(15 * 60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) record: Arc<FunctionRecord>,
    /// The catalogue's version of the record.
    pub(crate) version: u64,
    pub(crate) active: Option<Box<Active>>,
}

/// What is known of a function while something goes on.
#[derive(Debug, Default)]
pub(crate) struct Active {
    /// Its first record is not durable yet: nobody but its deployer knows of it.
    pub(crate) unborn: bool,
    /// It was deleted: the name is somebody else's, and only its sandboxes are still going.
    pub(crate) deleted: bool,
    /// What waits for the write that is on its way.
    pub(crate) ops: VecDeque<Op>,
    pub(crate) writing: Option<Writing>,
    /// The deploy that is going on.
    pub(crate) rollout: Option<Rollout>,
    /// Who waits for which revision.
    pub(crate) waiters: Vec<(RequestId, u32)>,
    /// Boxed: a map makes room for eleven at a time.
    pub(crate) sandboxes: BTreeMap<SandboxId, Box<Sandbox>>,
    pub(crate) books: Books,
    pub(crate) levels: Levels,
    pub(crate) kpa: Option<Box<Kpa>>,
    /// From a start's decision to its readiness.
    pub(crate) start_time: Ewma,
    /// How long an invocation occupies its slot.
    pub(crate) service_time: Ewma,
    /// Invocations since this leader took office.
    pub(crate) arrivals: u64,
    pub(crate) failures: VecDeque<Failure>,
    pub(crate) decisions: VecDeque<Decided>,
    pub(crate) crashes: Crashes,
    /// The fleet has no room for its starts.
    pub(crate) no_room: bool,
    /// Sandboxes recalled to make room for others, on their way back.
    pub(crate) lent: u32,
    /// How its sandboxes leave workers that are drained.
    pub(crate) moving: Option<Moving>,
    /// Its entry among those with sandboxes to spare.
    pub(crate) spare_since: Option<Time>,
    pub(crate) armed: Armed,
    /// Its entry among the busiest.
    pub(crate) load: Option<u32>,
}

/// When those of its timers are due that are looked at with each event.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    pub(crate) quiet: Option<Time>,
    pub(crate) windows: Option<Time>,
}

/// Starts that failed in a row.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    /// By the function's fault, since one was ready.
    pub(crate) in_row: u32,
    /// The last one, of whoever's fault, while none was ready since.
    pub(crate) last: Option<StartFailure>,
    /// No start before this, while looping.
    pub(crate) probe_at: Time,
    pub(crate) back_off: Duration,
    /// Somebody called since the last start.
    pub(crate) called: bool,
    /// Sandboxes in a row that listened and exited soon after.
    exits: u32,
    exit_back_off: Duration,
    /// No start for `min` before this.
    pub(crate) min_at: Time,
}

/// So many failures in a row are a crash loop.
const LOOP: u32 = 3;
/// A sandbox that exits at this age or earlier exited soon after its start. Ours: an order above
/// usual starts, an order below usual keep-alives.
const YOUNG: Duration = Duration::from_secs(10);
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

impl Crashes {
    pub(crate) const fn looping(&self) -> bool {
        self.in_row >= LOOP
    }

    pub(crate) fn count(&mut self, now: Time) {
        self.in_row = self.in_row.saturating_add(1);
        // Starts that were on their way when it began say nothing new.
        if self.looping() && now >= self.probe_at {
            self.back_off = (self.back_off * 2).clamp(FIRST_BACK_OFF, LONGEST_BACK_OFF);
            self.probe_at = now.after(self.back_off);
        }
    }

    /// A sandbox that was ready exited by itself at this age. Callers get a new one at once; when
    /// it keeps happening, `min` gets its own with a back-off only, until when is given back.
    pub(crate) fn count_exit(&mut self, now: Time, age: Duration) -> Option<Time> {
        if age > YOUNG {
            self.exits = 0;
            self.exit_back_off = Duration::ZERO;
            return None;
        }
        self.exits = self.exits.saturating_add(1);
        if self.exits < LOOP || now < self.min_at {
            return None;
        }
        self.exit_back_off = (self.exit_back_off * 2).clamp(FIRST_BACK_OFF, LONGEST_BACK_OFF);
        self.min_at = now.after(self.exit_back_off);
        Some(self.min_at)
    }
}

/// A failure remembered.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) at: Time,
    pub(crate) sandbox: SandboxId,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) failure: StartFailure,
}

/// A decision remembered.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) at: Time,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) grounds: Grounds,
}

/// What a decision was made from. Put into words only when somebody asks: decisions are many.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grounds {
    Queued { inputs: Inputs, max: Option<u32> },
    Min { min: u32, ready: u32, max: Option<u32> },
    Expected { sandboxes: u32, max: Option<u32> },
    Windows(Desired),
    Deploy { number: u32, live: u32 },
    Fairness { sandbox: SandboxId, to: FunctionId },
    KeepAlive { sandbox: SandboxId, keep_alive: KeepAlive },
    Moving { leaving: u32, goal: u32 },
}

impl Grounds {
    pub(crate) const fn rule(&self) -> &'static str {
        match self {
            Self::Queued { max: Some(_), .. }
            | Self::Min { max: Some(_), .. }
            | Self::Expected { max: Some(_), .. } => "max",
            Self::Queued { .. } => "queued",
            Self::Min { .. } => "min",
            Self::Expected { .. } => "expected",
            Self::Windows(desired) => desired.rule(),
            Self::Deploy { .. } => "deploy",
            Self::Fairness { .. } => "fairness",
            Self::KeepAlive { .. } => "keep-alive",
            Self::Moving { .. } => "drain",
        }
    }

    /// The inputs by name.
    pub(crate) fn explain(&self) -> Vec<(String, String)> {
        let named = |name: &str, value: &dyn Display| (name.to_owned(), value.to_string());
        let bounded = |mut inputs: Vec<_>, max: &Option<u32>| {
            inputs.extend(max.map(|max| named("max", &max)));
            inputs
        };
        match self {
            Self::Queued { inputs, max } => bounded(inputs.explain(), max),
            Self::Min { min, ready, max } => {
                bounded(vec![named("min", min), named("ready", ready)], max)
            }
            Self::Expected { sandboxes, max } => {
                bounded(vec![named("expected to be needed soon", sandboxes)], max)
            }
            Self::Windows(desired) => desired.explain(),
            Self::Deploy { number, live } => {
                vec![named("revision", number), named("sandboxes of the live revision", live)]
            }
            Self::Fairness { sandbox, to } => {
                vec![named("sandbox", sandbox), named("waiting without any", to)]
            }
            Self::Moving { leaving, goal } => {
                vec![named("on workers that are drained", leaving), named("wanted", goal)]
            }
            Self::KeepAlive { sandbox, keep_alive } => {
                vec![named("sandbox", sandbox), named("keep_alive", keep_alive)]
            }
        }
    }
}

impl Active {
    pub(crate) fn remember_failure(&mut self, failure: Failure) {
        if self.failures.len() == FAILURES {
            self.failures.pop_back();
        }
        self.failures.push_front(failure);
    }

    /// The same again, as when a start is refused and tried once more, takes the place of the last.
    pub(crate) fn remember_decision(&mut self, decided: Decided) {
        let what = |one: &Decided| (one.from, one.to, one.grounds.rule());
        if self.decisions.front().is_some_and(|last| what(last) == what(&decided)) {
            self.decisions.pop_front();
        }
        if self.decisions.len() == DECISIONS {
            self.decisions.pop_back();
        }
        self.decisions.push_front(decided);
    }

    /// Changes a sandbox and keeps the books of the function in step.
    pub(crate) fn change<R>(
        &mut self,
        sandbox: SandboxId,
        change: impl FnOnce(&mut Sandbox) -> R,
    ) -> Option<R> {
        let entry = self.sandboxes.get_mut(&sandbox)?;
        let before = Standing::of(entry);
        let result = change(entry);
        self.books.change(entry, Some(before), Some(Standing::of(entry)));
        Some(result)
    }

    pub(crate) fn insert(&mut self, sandbox: Sandbox) {
        self.books.enter(&sandbox);
        self.sandboxes.insert(sandbox.id, Box::new(sandbox));
    }

    pub(crate) fn remove(&mut self, sandbox: SandboxId) -> Option<Box<Sandbox>> {
        let removed = self.sandboxes.remove(&sandbox)?;
        self.books.strike(&removed);
        Some(removed)
    }

    /// Nothing goes on.
    fn is_still(&self) -> bool {
        self.sandboxes.is_empty()
            && self.ops.is_empty()
            && self.writing.is_none()
            && self.rollout.is_none()
            && self.waiters.is_empty()
            && self.levels.queued() == 0
            && self.levels.busy() == 0
    }

    /// Nothing was learned either.
    fn is_blank(&self) -> bool {
        self.levels.is_empty() && self.failures.is_empty() && self.decisions.is_empty()
    }
}

impl Function {
    pub(crate) const fn new(record: Arc<FunctionRecord>, version: u64) -> Self {
        Self { record, version, active: None }
    }

    /// Stands for a function of which only sandboxes are left.
    pub(crate) fn ghost(id: FunctionId) -> Self {
        let name = FunctionName::new(crate::name::DEFAULT_NAMESPACE, "deleted")
            .expect("it is a DNS label");
        let record = FunctionRecord {
            id,
            name,
            settings: Arc::default(),
            next: None,
            revisions: Vec::new(),
            targets: Vec::new(),
        };
        let mut function = Self::new(Arc::new(record), 0);
        function.activate().deleted = true;
        function
    }

    pub(crate) fn id(&self) -> FunctionId {
        self.record.id
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.deleted)
    }

    pub(crate) fn activate(&mut self) -> &mut Active {
        self.active.get_or_insert_default()
    }

    pub(crate) fn revision(&self, number: u32) -> Option<&RevisionRecord> {
        self.record.revisions.iter().find(|revision| revision.number == number)
    }

    pub(crate) fn has(&self, sandbox: SandboxId) -> bool {
        self.active.as_ref().is_some_and(|active| active.sandboxes.contains_key(&sandbox))
    }

    /// Whether invocations may go to it; nothing of a deleted function is a target.
    pub(crate) fn is_target(&self, number: u32) -> bool {
        !self.is_deleted() && self.record.targets.iter().any(|target| target.revision == number)
    }

    /// The function as data planes see it.
    pub(crate) fn view(&self) -> Arc<FunctionView> {
        let targets = self.record.targets.iter().filter_map(|target| {
            let revision = self.revision(target.revision)?;
            Some(RevisionView {
                id: RevisionId { function: self.id(), number: revision.number },
                weight: target.weight,
                concurrency: revision.spec.concurrency,
                protocol: revision.spec.sandbox.protocol,
            })
        });
        Arc::new(FunctionView {
            id: self.id(),
            name: self.record.name.clone(),
            settings: Arc::clone(&self.record.settings),
            targets: targets.collect(),
        })
    }

    /// Tells everybody who asked for its name what it is now.
    pub(crate) fn publish(&mut self, c: &mut Cluster) {
        let function = (!self.is_deleted()).then(|| self.view());
        let auth = self.record.settings.auth;
        let told: Vec<_> = c.peers.subscribed(&self.record.name).collect();
        for data_plane in told {
            let may_serve = c.peers.may_serve(data_plane, auth);
            if may_serve {
                self.show(data_plane);
            } else {
                self.hide(c, data_plane);
            }
            c.tell(
                data_plane,
                ToDataPlane::Resolved {
                    name: self.record.name.clone(),
                    version: self.version,
                    function: function.clone().filter(|_| may_serve),
                },
            );
        }
    }

    /// Brings its entries in the cluster's indexes up to date, and lets go of what is not needed.
    pub(crate) fn tidy(&mut self, c: &mut Cluster) {
        let id = self.id();
        let Some(active) = self.active.as_deref_mut() else { return };
        let going = u32::try_from(active.sandboxes.len()).unwrap_or(u32::MAX);
        let load =
            active.levels.queued().saturating_add(active.levels.busy()).saturating_add(going);
        let load = (load > 0).then_some(load);
        if active.load != load {
            if let Some(before) = active.load {
                c.busiest.remove(&(before, id));
            }
            if let Some(load) = load {
                c.busiest.insert((load, id));
            }
            active.load = load;
        }
        if active.deleted || active.unborn || !active.is_still() {
            c.timers.disarm(&mut active.armed.quiet, Timer::Quiet(id));
        } else if active.is_blank() {
            self.forget(c);
        } else {
            c.timers.arm(&mut active.armed.quiet, Timer::Quiet(id), c.now.after(QUIET));
        }
    }

    /// It was silent for long: what was learned is dropped.
    pub(crate) fn quiet(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_deref_mut() else { return };
        active.armed.quiet = None;
        if active.is_still() {
            self.forget(c);
        }
    }

    /// Drops the active state, and what leads to it.
    pub(crate) fn forget(&mut self, c: &mut Cluster) {
        let id = self.id();
        let Some(mut active) = self.active.take() else { return };
        c.timers.disarm(&mut active.armed.quiet, Timer::Quiet(id));
        c.timers.disarm(&mut active.armed.windows, Timer::Windows(id));
        for (data_plane, _) in active.levels.iter() {
            if let Some(peer) = c.peers.get_mut(data_plane) {
                peer.functions.remove(&id);
            }
            c.timers.cancel(Timer::Silent(id, data_plane));
        }
        if let Some(since) = active.spare_since {
            c.spare.remove(&(since, id));
        }
        if let Some(load) = active.load {
            c.busiest.remove(&(load, id));
        }
        c.lent = c.lent.saturating_sub(active.lent);
        c.starved.remove(&id);
        for timer in [
            Timer::Probe(id),
            Timer::Restart(id),
            Timer::Rested(id),
            Timer::Rollout(id),
            Timer::Rewrite(id),
            Timer::Doubted(id),
        ] {
            c.timers.cancel(timer);
        }
    }

    /// It was deleted, or its first write refused, and nothing of it is left.
    pub(crate) fn is_over(&self) -> bool {
        self.active.as_ref().is_some_and(|active| {
            (active.deleted || active.unborn)
                && active.sandboxes.is_empty()
                && active.ops.is_empty()
                && active.writing.is_none()
        })
    }

    /// Why its invocations wait, if they do.
    pub(crate) fn status(&self) -> Status {
        let Some(active) = self.active.as_deref() else { return Status::Flowing };
        if let Some(last) = &active.crashes.last
            && active.crashes.looping()
        {
            return Status::CrashLoop(last.clone());
        }
        if self.record.targets.is_empty() {
            // A first revision that failed will not come: callers hear it at once.
            let newest = self.record.revisions.last();
            return match newest.and_then(|revision| revision.failure.as_ref()) {
                Some(failure) if active.rollout.is_none() => Status::CrashLoop(failure.clone()),
                Some(_) | None => Status::NotReady,
            };
        }
        if let Some(last) = &active.crashes.last {
            return Status::StartFailed(last.clone());
        }
        if active.no_room {
            return Status::NoCapacity;
        }
        let tally = active.books.tally_of(&self.record.targets);
        if tally.ready + tally.starting >= self.record.settings.max {
            return Status::AtMax;
        }
        Status::Flowing
    }

    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check(&self) {
        let Some(active) = self.active.as_deref() else { return };
        let mut books = Books::default();
        for sandbox in active.sandboxes.values() {
            sandbox.check();
            books.enter(sandbox);
        }
        assert_eq!(books, active.books, "the books of {} are out of step", self.record.name);
        active.levels.check();
        for (data_plane, level) in active.levels.iter() {
            let held: u32 = active.sandboxes.values().map(|s| s.held_by(data_plane)).sum();
            assert_eq!(held, level.books, "{data_plane} at {}", self.record.name);
        }
        let going = self.record.revisions.iter().filter(|r| r.state.is_going()).count();
        assert!(going <= 1, "{} has {going} deploys going on", self.record.name);
    }
}
