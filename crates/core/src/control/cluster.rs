//! What all functions share: peers, fleet, timers, the way out, and what leads from a write or a
//! caller back to a function.
//!
//! It decides nothing about a single function; a [`super::function::Function`] is handed it with
//! each event. Every map here is bounded by what is active, never by how many functions exist,
//! but for the artifacts that their revisions name.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    Address, DataPlaneId, Digest, Epoch, FunctionId, FunctionRecord, Office, RequestId, RevisionId,
    SandboxId, Time, WorkerId, Write, WriteToken,
    control::{
        Answer, Effect, Measure, Refusal,
        fleet::Fleet,
        peers::Peers,
        sandbox::Sandbox,
        timers::{Timer, Timers},
    },
    frame::{Share, ToDataPlane},
    policy::kpa::STABLE_WINDOW,
};

/// Callers that may wait for a revision at once, in the whole cluster.
pub(crate) const MAX_WAITERS: u32 = 10_000;

/// An address that a data plane may still know is not used again for so long.
const ADDRESS_REST: Duration = Duration::from_secs(15 * 60);

/// Epochs are the high part of a catalogue version, the store's revision the low part: it grows
/// over leaders and stores alike.
const VERSION_BITS: u32 = 40;

/// Who made a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    Function(FunctionId),
    DataPlane(DataPlaneId),
    Tokens,
}

/// What a data plane says that it holds of a sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) by: DataPlaneId,
    pub(crate) revision: RevisionId,
    pub(crate) share: Share,
    pub(crate) pinned: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) office: Office,
    pub(crate) now: Time,
    /// When what a data plane said last reached the control plane.
    pub(crate) heard: Time,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) fleet: Fleet,
    pub(crate) peers: Peers,
    pub(crate) timers: Timers,
    /// Addresses that rest: their sandbox does not run at its worker any more, as far as is known,
    /// and slots of it may be held.
    pub(crate) addresses: BTreeMap<(WorkerId, Address), SandboxId>,
    /// Workers that were removed while addresses of theirs rest: their machines may come back as
    /// others.
    removed: BTreeSet<WorkerId>,
    /// Those of them whose sandbox left the books while a data plane may still know the address, and
    /// until when they are kept: as long as their worker keeps them.
    kept_addresses: VecDeque<(Time, SandboxId, (WorkerId, Address))>,
    /// Slots that data planes hold of sandboxes that no worker has reported yet.
    pub(crate) claims: BTreeMap<SandboxId, Vec<Claim>>,
    /// Sandboxes that a data plane gave back as not to be used again, while their worker had not
    /// attached yet. Forgotten when every worker has.
    pub(crate) condemned: BTreeSet<SandboxId>,
    /// Sandboxes that were to end when they left the books, on workers that were away: should they
    /// come back, an execution that was given up may still run in them. Forgotten when the worker
    /// has said what it has.
    pub(crate) left_behind: BTreeMap<WorkerId, BTreeSet<SandboxId>>,
    /// Adopted sandboxes whose slots may be held by a data plane that has not attached yet.
    pub(crate) unsure: BTreeSet<SandboxId>,
    pub(crate) artifacts: Artifacts,
    /// Peers are still attaching: nothing is recalled or stopped.
    pub(crate) recovering: bool,
    /// From here on the windows may scale down.
    pub(crate) steady_from: Time,
    /// Functions to look at when there is time for it.
    pub(crate) attention: BTreeSet<FunctionId>,
    /// Functions whose starts wait for room.
    pub(crate) starved: BTreeSet<FunctionId>,
    /// Functions with sandboxes to spare, and since when.
    pub(crate) spare: BTreeSet<(Time, FunctionId)>,
    /// Active functions by what they carry.
    pub(crate) busiest: BTreeSet<(u32, FunctionId)>,
    /// Sandboxes that were told to stop and are not gone.
    pub(crate) stopping: u32,
    /// Sandboxes recalled to make room, on their way back.
    pub(crate) lent: u32,
    /// Something changed that may let a starved function start.
    pub(crate) reclaim: bool,
    /// Who waits for which function's revision.
    pub(crate) waiters: BTreeMap<RequestId, FunctionId>,
    pub(crate) writes: BTreeMap<WriteToken, Author>,
    pub(crate) resigning: bool,
    /// The last terms of this store, oldest first.
    pub(crate) terms: Vec<Epoch>,
    /// The highest revision of the store that was told.
    stored: u64,
    version: u64,
    next_sandbox: u64,
    next_write: u64,
}

impl Cluster {
    pub(crate) fn new(now: Time, office: Office, fleet: Fleet, peers: Peers) -> Self {
        Self {
            office,
            now,
            heard: now,
            effects: VecDeque::new(),
            fleet,
            peers,
            timers: Timers::default(),
            addresses: BTreeMap::new(),
            removed: BTreeSet::new(),
            kept_addresses: VecDeque::new(),
            claims: BTreeMap::new(),
            condemned: BTreeSet::new(),
            left_behind: BTreeMap::new(),
            unsure: BTreeSet::new(),
            artifacts: Artifacts::default(),
            recovering: true,
            steady_from: now.after(STABLE_WINDOW),
            attention: BTreeSet::new(),
            starved: BTreeSet::new(),
            spare: BTreeSet::new(),
            busiest: BTreeSet::new(),
            stopping: 0,
            lent: 0,
            reclaim: false,
            waiters: BTreeMap::new(),
            writes: BTreeMap::new(),
            resigning: false,
            terms: Vec::new(),
            stored: 0,
            version: office.epoch.term() << VERSION_BITS,
            next_sandbox: 0,
            next_write: 0,
        }
    }

    pub(crate) const fn epoch(&self) -> Epoch {
        self.office.epoch
    }

    /// Stop leading; the next term must be above `shown`.
    pub(crate) fn resign(&mut self, shown: Epoch) {
        if !std::mem::replace(&mut self.resigning, true) {
            self.effects.push_back(Effect::Resign { shown });
        }
    }

    /// The store is at this revision. It only grows: if it went back, the store is not the one that
    /// this leader took office in, but an older copy of it.
    pub(crate) fn store_is_at(&mut self, revision: u64) {
        if revision < self.stored {
            self.resign(self.office.epoch);
        }
        self.stored = self.stored.max(revision);
    }

    /// Whether an id was made in a history that the store has lost.
    pub(crate) fn is_lost_history(&self, made: Epoch) -> bool {
        let remembered = self.terms.first().is_some_and(|oldest| *oldest <= made);
        remembered && !self.terms.contains(&made)
    }

    /// The newest version of the catalogue.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// The version of a change that the store took at `revision`.
    pub(crate) fn raise_version(&mut self, revision: u64) -> u64 {
        let stored = (self.office.epoch.term() << VERSION_BITS).saturating_add(revision);
        self.version = stored.max(self.version + 1);
        self.version
    }

    pub(crate) fn new_sandbox(&mut self) -> SandboxId {
        self.next_sandbox += 1;
        SandboxId::new(self.epoch(), self.next_sandbox)
    }

    /// Ids that peers report are not made again, should a store ever lose its epoch.
    pub(crate) fn saw_sandbox(&mut self, sandbox: SandboxId) {
        if sandbox.epoch == self.epoch() {
            self.next_sandbox = self.next_sandbox.max(sandbox.counter);
        }
    }

    /// An address is not to be used by another sandbox.
    pub(crate) fn rest_address(&mut self, place: (WorkerId, Address), sandbox: SandboxId) {
        self.addresses.entry(place).or_insert(sandbox);
    }

    /// Somebody may still know the address of a sandbox that leaves the books.
    pub(crate) fn keep_address(&mut self, place: (WorkerId, Address), sandbox: SandboxId) {
        self.rest_address(place.clone(), sandbox);
        self.kept_addresses.push_back((self.now.after(ADDRESS_REST), sandbox, place));
    }

    /// Nobody knows the address of a sandbox any more.
    pub(crate) fn free_address(&mut self, place: &(WorkerId, Address), sandbox: SandboxId) {
        if self.addresses.get(place) == Some(&sandbox) {
            self.addresses.remove(place);
        }
    }

    /// Whether an address is not that of another sandbox, which somebody may mean by it.
    pub(crate) fn is_address_free(
        &mut self,
        place: &(WorkerId, Address),
        sandbox: SandboxId,
    ) -> bool {
        while let Some((_, owner, old)) =
            self.kept_addresses.pop_front_if(|(until, _, _)| *until <= self.now)
        {
            // It may have come back with its worker.
            if self.fleet.home(owner).is_none() {
                self.free_address(&old, owner);
            }
        }
        let taken = |place: &(WorkerId, Address)| {
            self.addresses.get(place).is_some_and(|owner| *owner != sandbox)
        };
        let mut of_removed = self.removed.iter().map(|worker| (*worker, place.1.clone()));
        !taken(place) && !of_removed.any(|place| taken(&place))
    }

    /// A worker's record is forgotten, its addresses are not.
    pub(crate) fn worker_removed(&mut self, worker: WorkerId) {
        self.left_behind.remove(&worker);
        self.removed.insert(worker);
        let resting: BTreeSet<WorkerId> =
            self.addresses.keys().map(|(worker, _)| *worker).collect();
        self.removed.retain(|worker| resting.contains(worker));
    }

    /// Sets a timer of a sandbox.
    pub(crate) fn time(&mut self, entry: &mut Sandbox, timer: Timer, at: Time) {
        self.timers.set(timer, at);
        entry.timed = true;
    }

    /// Cancels the timers of a sandbox. Most have none.
    pub(crate) fn untime(&mut self, entry: &mut Sandbox) {
        if std::mem::take(&mut entry.timed) {
            self.timers.cancel(Timer::Drained(entry.id));
            self.timers.cancel(Timer::Idle(entry.id));
        }
    }

    pub(crate) fn persist(&mut self, author: Author, write: Write) -> WriteToken {
        self.next_write += 1;
        let token = WriteToken(self.next_write);
        self.writes.insert(token, author);
        self.effects.push_back(Effect::Persist { token, write });
        token
    }

    pub(crate) fn reply(&mut self, to: RequestId, result: Result<Answer, Refusal>) {
        self.effects.push_back(Effect::Reply { to, result });
    }

    pub(crate) fn measure(&mut self, measure: Measure) {
        self.effects.push_back(Effect::Measure(measure));
    }

    /// Says it if the data plane is attached; else it is told everything when it attaches.
    pub(crate) fn tell(&mut self, data_plane: DataPlaneId, frame: ToDataPlane) {
        if let Some(stream) = self.peers.stream_of(data_plane) {
            self.effects.push_back(Effect::ToDataPlane { stream, frame });
        }
    }

    /// A look at this function later, when there is time.
    pub(crate) fn look_at(&mut self, function: FunctionId) {
        self.attention.insert(function);
        self.timers.start(Timer::Attention, self.now);
    }
}

/// How many revisions name each artifact.
#[derive(Debug, Default)]
pub(crate) struct Artifacts {
    used: BTreeMap<Digest, u32>,
}

impl Artifacts {
    pub(crate) fn hold(&mut self, digest: Option<Digest>) {
        if let Some(digest) = digest {
            *self.used.entry(digest).or_default() += 1;
        }
    }

    /// The digest, if nobody needs it any more.
    pub(crate) fn release(&mut self, digest: Option<Digest>) -> Option<Digest> {
        let digest = digest?;
        let used = self.used.get_mut(&digest)?;
        *used -= 1;
        if *used > 0 {
            return None;
        }
        self.used.remove(&digest);
        Some(digest)
    }

    pub(crate) fn is_used(&self, digest: Digest) -> bool {
        self.used.contains_key(&digest)
    }

    pub(crate) fn hold_all(&mut self, record: &FunctionRecord) {
        for revision in &record.revisions {
            self.hold(revision.spec.artifact);
        }
    }

    /// What nobody needs any more once `record` is forgotten.
    pub(crate) fn release_all(&mut self, record: &FunctionRecord) -> Vec<Digest> {
        record.revisions.iter().filter_map(|r| self.release(r.spec.artifact)).collect()
    }
}

/// Keeps one copy of contents that many functions share. It remembers only the last few: functions
/// registered together tend to be alike, and a lookup must not cost more than the registration.
#[derive(Debug)]
pub(crate) struct Interner<T> {
    recent: VecDeque<Arc<T>>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { recent: VecDeque::new() }
    }
}

impl<T: PartialEq> Interner<T> {
    const REMEMBERED: usize = 8;

    pub(crate) fn intern(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.recent.iter().find(|known| known == &value) {
            return Arc::clone(known);
        }
        if self.recent.len() == Self::REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(Arc::clone(value));
        Arc::clone(value)
    }
}
