//! One worker in the books: its state, what it offers and what is reserved there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::pools::Entry;
use crate::{
    Bytes, Digest, Duty, Isolation, MilliCpu, Resources, RuntimeKind, SandboxId, Spec, StreamId,
    Time, WorkerRecord,
    control::{WorkerSummary, posting::Posting},
    frame::{Capacity, Incarnation, Load},
    policy::placement::Candidate,
};

/// First back-off of a quarantine; each further one without a success between doubles it (design,
/// section 4: start failures).
pub(super) const QUARANTINE_FIRST: Duration = Duration::from_secs(1);
/// The longest back-off.
pub(super) const QUARANTINE_LONGEST: Duration = Duration::from_secs(60);
/// Worker-class failures in a row that lead there.
pub(super) const QUARANTINE_AFTER: u32 = 3;

/// Whether a worker is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Recorded by an earlier leader; it has not attached to this one yet.
    Joining,
    /// Its stream is open and it is heard.
    Live,
    /// Its stream is broken, or it is silent.
    Suspect,
    /// For too long.
    Lost,
}

/// What one sandbox needs of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    pub(super) runtime: RuntimeKind,
    pub(super) isolation: Option<Isolation>,
    pub(super) memory: u64,
    pub(super) cpu: u64,
}

impl Need {
    pub(super) fn of(spec: &Spec) -> Self {
        Self {
            runtime: spec.sandbox.runtime,
            isolation: spec.sandbox.isolation,
            memory: spec.resources.memory.0,
            cpu: u64::from(spec.resources.cpu.0),
        }
    }
}

/// What is reserved on a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) memory: u64,
    pub(super) cpu: u64,
    pub(super) sandboxes: u32,
    /// Start tokens.
    pub(super) starting: u32,
}

/// How much of an image a worker has fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetching {
    pub(super) fetched: Bytes,
    pub(super) all: Bytes,
    pub(super) told: Time,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Worker {
    /// As it was recorded first; what is wanted of it since is in its posting.
    pub(super) record: WorkerRecord,
    /// What operators want of it.
    pub(super) posting: Posting,
    /// The stream on which it said `Hello`.
    pub(super) stream: Option<StreamId>,
    pub(super) incarnation: Incarnation,
    pub(super) health: Health,
    pub(super) heard: Time,
    /// Since when it counts as joining or suspect.
    pub(super) since: Time,
    /// Nothing until it attached to this leader.
    pub(super) capacity: Option<Capacity>,
    pub(super) load: Load,
    pub(super) used: Used,
    pub(super) sandboxes: BTreeSet<SandboxId>,
    pub(super) artifacts: BTreeSet<Digest>,
    /// What it fetches, as it told last.
    pub(super) fetching: BTreeMap<Digest, Fetching>,
    /// Addresses released while it was away.
    pub(super) releases: VecDeque<SandboxId>,
    /// Worker-class failures in a row.
    pub(super) failures: u32,
    /// The length of its next quarantine.
    pub(super) backoff: Duration,
    /// In quarantine until then.
    pub(super) quarantine: Option<Time>,
    /// It refused a start: nothing is sent there until then.
    pub(super) refused: Option<Time>,
    /// When its record is written again.
    pub(super) rewrite: Option<Time>,
    /// Where it stands in the indexes.
    pub(super) entry: Option<Entry>,
    /// Its one entry among the timers.
    pub(super) timer: Option<Time>,
    /// Starts that wait until they fit here and keep others from taking the room.
    pub(super) earmarks: u32,
}

impl Worker {
    pub(super) fn new(now: Time, record: WorkerRecord) -> Self {
        Self {
            posting: Posting::new(record.duty()),
            record,
            stream: None,
            incarnation: Incarnation::default(),
            health: Health::Joining,
            heard: now,
            since: now,
            capacity: None,
            load: Load::default(),
            used: Used::default(),
            sandboxes: BTreeSet::new(),
            artifacts: BTreeSet::new(),
            fetching: BTreeMap::new(),
            releases: VecDeque::new(),
            failures: 0,
            backoff: QUARANTINE_FIRST,
            quarantine: None,
            refused: None,
            rewrite: None,
            entry: None,
            timer: None,
            earmarks: 0,
        }
    }

    /// Sandboxes may be placed here, as far as its state goes.
    pub(super) fn is_ready(&self) -> bool {
        self.health == Health::Live && self.posting.is_in_use() && self.quarantine.is_none()
    }

    /// A start may be sent now.
    pub(super) fn is_open(&self) -> bool {
        self.is_ready() && self.refused.is_none() && self.used.starting < self.tokens()
    }

    /// Starts that may be outstanding: after a quarantine one, until it succeeds.
    pub(super) fn tokens(&self) -> u32 {
        let offered = self.capacity.as_ref().map_or(0, |capacity| capacity.starts);
        if self.failures >= QUARANTINE_AFTER { offered.min(1) } else { offered }
    }

    fn cpu_offered(capacity: &Capacity) -> u64 {
        u64::from(capacity.cpu.0) * u64::from(capacity.cpu_overcommit.max(1))
    }

    pub(super) fn memory_free(&self) -> u64 {
        self.capacity
            .as_ref()
            .map_or(0, |capacity| capacity.memory.0.saturating_sub(self.used.memory))
    }

    /// The best isolation offered for a runtime.
    pub(super) fn isolation(&self, runtime: RuntimeKind) -> Option<Isolation> {
        let capacity = self.capacity.as_ref()?;
        capacity.runtimes.iter().filter(|(kind, _)| *kind == runtime).map(|(_, best)| *best).max()
    }

    /// Whether it could ever run this, were it empty.
    pub(super) fn could_run(&self, need: &Need) -> bool {
        self.fits_beside(need, Used::default())
    }

    /// Whether there is room for it now, start tokens aside.
    pub(super) fn has_room(&self, need: &Need) -> bool {
        self.fits_beside(need, self.used)
    }

    fn fits_beside(&self, need: &Need, used: Used) -> bool {
        let Some(capacity) = &self.capacity else { return false };
        used.sandboxes < capacity.sandboxes
            && used.memory.saturating_add(need.memory) <= capacity.memory.0
            && used.cpu.saturating_add(need.cpu) <= Self::cpu_offered(capacity)
            && self
                .isolation(need.runtime)
                .is_some_and(|best| need.isolation.is_none_or(|demanded| demanded <= best))
    }

    /// What would have to come free for it.
    pub(super) fn missing_for(&self, need: &Need) -> Option<Resources> {
        let capacity = self.capacity.as_ref()?;
        let cpu_free = Self::cpu_offered(capacity).saturating_sub(self.used.cpu);
        let cpu = u32::try_from(need.cpu.saturating_sub(cpu_free)).unwrap_or(u32::MAX);
        let memory = Bytes(need.memory.saturating_sub(self.memory_free()));
        Some(Resources { cpu: MilliCpu(cpu), memory })
    }

    /// How it looks to a placement policy.
    pub(super) fn candidate(&self, artifact: Option<&Digest>) -> Candidate {
        let milli = |part: u64, whole: u64| {
            let share = part.saturating_mul(1000) / whole.max(1);
            u32::try_from(share).unwrap_or(u32::MAX)
        };
        let (memory, cpu, cores, sandboxes) =
            self.capacity.as_ref().map_or((0, 0, 0, 0), |capacity| {
                let cores = u64::from(capacity.cpu.0);
                (capacity.memory.0, Self::cpu_offered(capacity), cores, capacity.sandboxes)
            });
        let memory_milli = milli(self.used.memory, memory);
        let cpu_milli = milli(self.used.cpu, cpu);
        let load_milli = [
            memory_milli,
            cpu_milli,
            milli(u64::from(self.load.cpu_used.0), cores),
            milli(u64::from(self.used.sandboxes), u64::from(sandboxes)),
            milli(u64::from(self.used.starting), u64::from(self.tokens())),
        ]
        .into_iter()
        .max()
        .unwrap_or(0);
        Candidate {
            worker: self.record.id,
            load_milli,
            memory_milli,
            cpu_milli,
            holds_artifact: artifact.is_none_or(|digest| self.artifacts.contains(digest)),
        }
    }

    /// When something about it is due next.
    pub(super) fn due(&self, suspect: Duration, lost: Duration) -> Option<Time> {
        let health = match self.health {
            Health::Live => Some(self.heard.after(suspect)),
            Health::Joining | Health::Suspect => Some(self.since.after(lost)),
            Health::Lost => None,
        };
        [health, self.quarantine, self.refused, self.rewrite].into_iter().flatten().min()
    }

    const fn state(&self) -> &'static str {
        match (self.health, self.posting.duty()) {
            (Health::Joining, _) => "joining",
            (Health::Suspect, _) => "suspect",
            (Health::Lost, _) => "lost",
            (Health::Live, Duty::Draining) if self.used.sandboxes == 0 => "drained",
            (Health::Live, Duty::Draining) => "draining",
            (Health::Live, Duty::Cordoned) => "cordoned",
            (Health::Live, Duty::InUse) if self.quarantine.is_some() => "quarantined",
            (Health::Live, Duty::InUse) => "ready",
        }
    }

    pub(super) fn summary(&self) -> WorkerSummary {
        let (memory, cpu) = self
            .capacity
            .as_ref()
            .map_or((Bytes(0), 0), |capacity| (capacity.memory, Self::cpu_offered(capacity)));
        let cores = |cpu: u64| MilliCpu(u32::try_from(cpu).unwrap_or(u32::MAX));
        WorkerSummary {
            id: self.record.id,
            name: self.record.name.clone(),
            state: self.state().to_owned(),
            duty: self.posting.duty(),
            sandboxes: self.used.sandboxes,
            memory: (Bytes(self.used.memory), memory),
            cpu: (cores(self.used.cpu), cores(cpu)),
            starting: self.used.starting,
        }
    }
}
