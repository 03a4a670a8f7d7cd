//! Indexes over the workers, so that a start is placed without looking at all of them.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexSet;

use super::worker::{Need, Worker};
use crate::{
    Digest, RuntimeKind, WorkerId,
    control::ids::IdMap,
    policy::placement::{Candidate, Field},
};

/// For each runtime, the workers that offer it.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: BTreeMap<RuntimeKind, Pool>,
    holders: BTreeMap<Digest, IndexSet<WorkerId>>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Workers to which a start may be sent now, for drawing by number.
    open: IndexSet<WorkerId>,
    /// The same, by free memory.
    open_by_memory: BTreeSet<(u64, WorkerId)>,
    /// All that are ready, with or without a start token.
    ready_by_memory: BTreeSet<(u64, WorkerId)>,
}

/// A worker's entry in the indexes, while it is ready.
#[derive(Debug)]
pub(super) struct Entry {
    kinds: Vec<RuntimeKind>,
    place: Place,
}

/// Where it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Free memory.
    free: u64,
    open: bool,
}

impl Pool {
    fn put(&mut self, id: WorkerId, old: Option<Place>, new: Option<Place>) {
        reorder(&mut self.ready_by_memory, id, old, new);
        let open = |place: &Place| place.open;
        let (old, new) = (old.filter(open), new.filter(open));
        reorder(&mut self.open_by_memory, id, old, new);
        // One that stays open keeps its number: nothing else moves then.
        match (old, new) {
            (None, Some(_)) => {
                self.open.insert(id);
            }
            (Some(_), None) => {
                self.open.swap_remove(&id);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

fn reorder(
    order: &mut BTreeSet<(u64, WorkerId)>,
    id: WorkerId,
    old: Option<Place>,
    new: Option<Place>,
) {
    let (old, new) = (old.map(|place| place.free), new.map(|place| place.free));
    if old != new {
        old.map(|free| order.remove(&(free, id)));
        new.map(|free| order.insert((free, id)));
    }
}

impl Pools {
    /// Brings a worker's place up to date.
    pub(super) fn update(&mut self, worker: &mut Worker) {
        let id = worker.record.id;
        let offer = worker.capacity.as_ref().filter(|_| worker.is_ready());
        let kinds = || offer.into_iter().flat_map(|offer| &offer.runtimes).map(|(kind, _)| *kind);
        let new = offer.map(|_| Place { free: worker.memory_free(), open: worker.is_open() });
        if let Some(entry) = &mut worker.entry
            && let Some(new) = new
            && entry.kinds.iter().copied().eq(kinds())
        {
            let old = std::mem::replace(&mut entry.place, new);
            for kind in entry.kinds.iter().filter(|_| old != new) {
                if let Some(pool) = self.pools.get_mut(kind) {
                    pool.put(id, Some(old), Some(new));
                }
            }
            return;
        }
        let old = worker.entry.take();
        if let Some(entry) = &old {
            for kind in &entry.kinds {
                let stays = new.filter(|_| kinds().any(|other| other == *kind));
                if let Some(pool) = self.pools.get_mut(kind) {
                    pool.put(id, Some(entry.place), stays);
                }
            }
        }
        let kinds: Vec<RuntimeKind> = kinds().collect();
        let Some(place) = new else { return };
        for kind in &kinds {
            if !old.iter().any(|old| old.kinds.contains(kind)) {
                self.pools.entry(*kind).or_default().put(id, None, Some(place));
            }
        }
        worker.entry = Some(Entry { kinds, place });
    }

    /// An artifact is held by a worker, or no longer.
    pub(super) fn hold(&mut self, worker: WorkerId, digest: Digest, held: bool) {
        if held {
            self.holders.entry(digest).or_default().insert(worker);
        } else if let Some(holders) = self.holders.get_mut(&digest) {
            holders.swap_remove(&worker);
            if holders.is_empty() {
                self.holders.remove(&digest);
            }
        }
    }

    /// A ready worker with room, start tokens aside.
    pub(super) fn with_room(
        &self,
        workers: &IdMap<WorkerId, Worker>,
        need: &Need,
    ) -> Option<WorkerId> {
        let pool = self.pools.get(&need.runtime)?;
        pool.ready_by_memory
            .range((need.memory, WorkerId(0))..)
            .map(|(_, id)| *id)
            .find(|id| workers.get(id).is_some_and(|worker| worker.has_room(need)))
    }

    /// Ready workers that offer a runtime, most free memory first.
    pub(super) fn roomiest(&self, runtime: RuntimeKind) -> impl Iterator<Item = WorkerId> {
        let pool = self.pools.get(&runtime);
        pool.into_iter().flat_map(|pool| pool.ready_by_memory.iter().rev().map(|(_, id)| *id))
    }

    /// Every worker to which a start may be sent now.
    pub(super) fn open(&self) -> impl Iterator<Item = WorkerId> {
        self.pools.values().flat_map(|pool| pool.open.iter().copied())
    }

    pub(super) fn view<'a>(
        &'a self,
        workers: &'a IdMap<WorkerId, Worker>,
        need: Need,
        artifact: Option<Digest>,
        first: bool,
    ) -> View<'a> {
        View {
            workers,
            pool: self.pools.get(&need.runtime),
            holders: artifact.as_ref().and_then(|digest| self.holders.get(digest)),
            need,
            artifact,
            first,
        }
    }
}

/// The field as one start sees it.
pub(super) struct View<'a> {
    workers: &'a IdMap<WorkerId, Worker>,
    pool: Option<&'a Pool>,
    holders: Option<&'a IndexSet<WorkerId>>,
    need: Need,
    artifact: Option<Digest>,
    /// It is its function's first sandbox: room that is set aside is open to it.
    first: bool,
}

impl View<'_> {
    fn look(&self, id: WorkerId) -> Option<Candidate> {
        let worker = self.workers.get(&id)?;
        let allowed =
            worker.is_open() && worker.has_room(&self.need) && (self.first || worker.earmarks == 0);
        allowed.then(|| worker.candidate(self.artifact.as_ref()))
    }
}

impl Field for View<'_> {
    fn len(&self) -> usize {
        self.pool.map_or(0, |pool| pool.open.len())
    }

    fn at(&self, index: usize) -> Option<Candidate> {
        self.look(*self.pool?.open.get_index(index)?)
    }

    fn holders(&self) -> usize {
        self.holders.map_or(0, IndexSet::len)
    }

    fn holder(&self, index: usize) -> Option<Candidate> {
        self.look(*self.holders?.get_index(index)?)
    }

    fn tightest(&self) -> Option<Candidate> {
        self.pool?
            .open_by_memory
            .range((self.need.memory, WorkerId(0))..)
            .find_map(|(_, id)| self.look(*id))
    }
}
