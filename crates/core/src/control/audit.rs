//! The books, laid open for whoever checks them from outside: the simulator's invariants.

use std::collections::BTreeSet;

use crate::{
    DataPlaneId, Epoch, FunctionId, RevisionId, SandboxId, Time, WorkerId,
    control::{Control, WorkerSummary},
};

/// A sandbox in the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booked {
    /// Which.
    pub sandbox: SandboxId,
    /// What runs in it.
    pub revision: RevisionId,
    /// Slots; 0 is no limit.
    pub concurrency: u32,
    /// `wanted`, `starting`, `ready`, `recalling`, `stopping` or `gone`.
    pub stage: &'static str,
    /// Where it is, from its placement on.
    pub worker: Option<WorkerId>,
    /// Its worker does not answer.
    pub lost: bool,
    /// Data planes that have not attached to this leader may hold slots of it.
    pub unsure: bool,
    /// Who holds how many of its slots.
    pub holders: Vec<(DataPlaneId, u32)>,
}

/// How many objects of each kind are remembered: what must be bounded by what lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Functions, those included that were deleted and are not over.
    pub functions: usize,
    /// Their names.
    pub names: usize,
    /// Data planes.
    pub data_planes: usize,
    /// Names that they are subscribed to.
    pub subscribed: usize,
    /// Deadlines.
    pub timers: usize,
    /// Functions with active state.
    pub active: usize,
    /// Sandboxes.
    pub sandboxes: usize,
    /// Slots claimed of sandboxes that no worker reported.
    pub claims: usize,
    /// Addresses that rest, of sandboxes that are in the books.
    pub addresses: usize,
    /// Sandboxes that were to end on workers that are away.
    pub left_behind: usize,
    /// Writes on their way.
    pub writes: usize,
    /// Users who wait for a revision.
    pub waiters: usize,
}

impl Control {
    /// The term of office.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.cluster.epoch()
    }

    /// Every sandbox in the books.
    #[must_use]
    pub fn booked(&self) -> Vec<Booked> {
        let active = self.functions.iter().filter_map(|(id, f)| Some((*id, f.active.as_deref()?)));
        active
            .flat_map(|(function, active)| active.sandboxes.values().map(move |s| (function, s)))
            .map(|(function, entry)| Booked {
                sandbox: entry.id,
                revision: RevisionId { function, number: entry.number },
                concurrency: entry.concurrency,
                stage: entry.stage.name(),
                worker: entry.worker,
                lost: entry.lost,
                unsure: entry.unsure.is_some(),
                holders: entry.holders.iter().map(|(id, held)| (*id, held.slots)).collect(),
            })
            .collect()
    }

    /// The name of a data plane in these books.
    #[must_use]
    pub fn data_plane(&self, id: DataPlaneId) -> Option<&str> {
        self.cluster.peers.get(id).map(|peer| &*peer.name)
    }

    /// Whether a data plane is attached to this leader.
    #[must_use]
    pub fn is_attached(&self, id: DataPlaneId) -> bool {
        self.cluster.peers.is_attached(id)
    }

    /// The workers with what is reserved on them.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerSummary> {
        self.cluster.fleet.summaries()
    }

    /// Whether slots of a sandbox that come back are granted to nobody: its worker is lost, or
    /// somebody who has not attached may hold them.
    #[must_use]
    pub fn withholds(&self, sandbox: SandboxId) -> bool {
        let home = self.cluster.fleet.home(sandbox).and_then(|home| self.functions.get(&home));
        let active = home.and_then(|function| function.active.as_deref());
        let entry = active.and_then(|active| active.sandboxes.get(&sandbox));
        entry.is_none_or(|entry| entry.is_withheld())
    }

    /// Until when slots that were moved to a data plane rest there.
    #[must_use]
    pub fn rests_until(&self, function: FunctionId, data_plane: &str) -> Time {
        let Some(data_plane) = self.cluster.peers.id_of(data_plane) else { return Time::ZERO };
        let active = self.functions.get(&function).and_then(|f| f.active.as_deref());
        let level = active.and_then(|active| active.levels.get(data_plane));
        level.map_or(Time::ZERO, |level| level.rest_until)
    }

    /// See [`Remembered`].
    #[must_use]
    pub fn remembered(&self) -> Remembered {
        let peers = &self.cluster.peers;
        Remembered {
            functions: self.functions.len(),
            names: self.names.len(),
            data_planes: peers.iter().count(),
            subscribed: peers.iter().map(|(_, peer)| peer.names.len()).sum(),
            timers: self.cluster.timers.len(),
            active: self.functions.values().filter(|f| f.active.is_some()).count(),
            sandboxes: self.cluster.fleet.known(),
            addresses: {
                let fleet = &self.cluster.fleet;
                self.cluster.addresses.values().filter(|id| fleet.home(**id).is_some()).count()
            },
            claims: self.cluster.claims.len(),
            left_behind: self.cluster.left_behind.values().map(BTreeSet::len).sum(),
            writes: self.cluster.writes.len(),
            waiters: self.cluster.waiters.len(),
        }
    }
}
