//! A sandbox as the control plane knows it, and the books of its slots.
//!
//! Nothing here is durable: workers and data planes tell it again to the next leader.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use crate::{
    Address, DataPlaneId, Protocol, SandboxId, StartPhases, Target, Time, WorkerId, frame::Share,
};

/// The life of a sandbox.
///
/// ```text
/// Wanted -> Starting -> Ready -> Recalling -> Stopping -> Gone
/// ```
/// `Gone` is kept only while somebody still holds slots of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has no worker yet.
    Wanted,
    /// Its worker was told to start it.
    Starting,
    /// It listens.
    Ready,
    /// Its slots were called back.
    Recalling,
    /// Its worker was told to stop it.
    Stopping,
    /// It runs no more.
    Gone,
}

impl Stage {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Recalling => "recalling",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
        }
    }
}

/// Why a sandbox was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Invocations are queued.
    Queued,
    /// The function has fewer than `min`.
    Min,
    /// A data plane expects to need it.
    Expected,
    /// The windows say so.
    Windows,
    /// A deploy checks its revision or builds up its capacity.
    Deploy,
    /// Its like is on a worker that is drained.
    Moving,
    /// A worker had it already.
    Adopted,
}

/// What a data plane holds of a sandbox. An open grant counts as one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub(crate) slots: u32,
    /// Keep-alive does not apply there, as far as is known.
    pub(crate) pinned: bool,
}

/// See the module.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each may be so while the others are or are not")]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    /// Its revision's.
    pub(crate) number: u32,
    /// 0 is no limit.
    pub(crate) concurrency: u32,
    pub(crate) protocol: Protocol,
    pub(crate) stage: Stage,
    pub(crate) reason: Reason,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) decided: Time,
    pub(crate) address: Option<Address>,
    /// Told with its first grant.
    pub(crate) phases: Option<Box<StartPhases>>,
    /// One entry per data plane that holds slots: nearly always one.
    pub(crate) holders: SmallVec<[(DataPlaneId, Holder); 1]>,
    /// Whose demand made it.
    pub(crate) cause: Option<DataPlaneId>,
    /// Its worker was lost: no capacity, but who holds slots may still reach it.
    pub(crate) lost: bool,
    /// Its worker is being drained: it serves those who hold it until there is another one, and
    /// nobody new.
    pub(crate) leaving: bool,
    /// Somebody that has not attached yet may hold slots of it: not those of whom its worker has
    /// made sure that nothing is left there.
    pub(crate) unsure: Option<Vec<DataPlaneId>>,
    /// A data plane from which its slots were taken without its saying so may still know the
    /// address.
    pub(crate) astray: bool,
    /// It may have a timer.
    pub(crate) timed: bool,
}

impl Sandbox {
    /// Nobody holds slots of it, nor can somebody who has not attached yet.
    pub(crate) fn is_unheld(&self) -> bool {
        self.holders.is_empty() && self.unsure.is_none()
    }

    /// Slots of it that come back are granted to nobody: its worker is lost or drained, or somebody
    /// who has not attached may hold them.
    pub(crate) const fn is_withheld(&self) -> bool {
        self.lost || self.leaving || self.unsure.is_some()
    }

    pub(crate) fn held(&self) -> u32 {
        self.holders.iter().map(|(_, holder)| holder.slots).sum()
    }

    pub(crate) fn held_by(&self, data_plane: DataPlaneId) -> u32 {
        self.holders.iter().find(|(id, _)| *id == data_plane).map_or(0, |(_, h)| h.slots)
    }

    /// Slots that can be granted. An open sandbox always has one, for who does not hold it.
    pub(crate) fn free(&self) -> u32 {
        if self.stage != Stage::Ready || self.is_withheld() {
            0
        } else if self.concurrency == 0 {
            1
        } else {
            self.concurrency.saturating_sub(self.held())
        }
    }

    pub(crate) fn share(&self, slots: u32) -> Share {
        if self.concurrency == 0 { Share::Open } else { Share::Slots(slots) }
    }

    pub(crate) fn slots_in(&self, share: Share) -> u32 {
        match share {
            Share::Slots(slots) if self.concurrency > 0 => slots,
            Share::Slots(_) | Share::Open => 1,
        }
    }

    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check(&self) {
        assert!(
            self.concurrency == 0 || self.held() <= self.concurrency,
            "{} has {} slots and {} are granted",
            self.id,
            self.concurrency,
            self.held()
        );
        assert!(self.holders.iter().all(|(_, holder)| holder.slots > 0));
        assert!(self.stage != Stage::Wanted || (self.worker.is_none() && self.holders.is_empty()));
        assert!(self.stage != Stage::Ready || self.address.is_some(), "{} has no address", self.id);
        assert!(self.stage != Stage::Gone || !self.holders.is_empty(), "{} is left over", self.id);
    }
}

/// Sandboxes of one revision that count as its capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) ready: u32,
    /// Wanted ones included.
    pub(crate) starting: u32,
}

/// Counts and indexes over a function's sandboxes, so that no event walks all of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    /// By revision; a handful at most.
    tallies: Vec<(u32, Tally)>,
    /// Those with free slots, by revision.
    pub(crate) free: BTreeSet<(u32, SandboxId)>,
    /// Those that nobody holds and that are ready.
    pub(crate) unheld: BTreeSet<SandboxId>,
    /// Those without a worker.
    pub(crate) wanted: BTreeSet<SandboxId>,
    /// Those of which slots that come back are granted to nobody.
    withheld: BTreeSet<SandboxId>,
    /// Those that are to leave a worker and were not called back yet.
    pub(crate) leaving: BTreeSet<SandboxId>,
}

/// Where a sandbox stands in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether it counts, and as ready.
    counts: Option<bool>,
    /// Whether it has free slots, and all of them.
    free: Option<bool>,
    wanted: bool,
    withheld: bool,
    leaving: bool,
}

impl Standing {
    pub(crate) fn of(sandbox: &Sandbox) -> Self {
        let free = (sandbox.free() > 0).then_some(sandbox.holders.is_empty());
        let counts = match sandbox.stage {
            _ if sandbox.lost || sandbox.leaving => None,
            Stage::Wanted | Stage::Starting => Some(false),
            Stage::Ready => Some(true),
            Stage::Recalling | Stage::Stopping | Stage::Gone => None,
        };
        let (wanted, withheld) = (sandbox.stage == Stage::Wanted, sandbox.is_withheld());
        let stays = matches!(sandbox.stage, Stage::Starting | Stage::Ready) && !sandbox.lost;
        Self { counts, free, wanted, withheld, leaving: sandbox.leaving && stays }
    }
}

impl Books {
    pub(crate) fn enter(&mut self, sandbox: &Sandbox) {
        self.change(sandbox, None, Some(Standing::of(sandbox)));
    }

    pub(crate) fn strike(&mut self, sandbox: &Sandbox) {
        self.change(sandbox, Some(Standing::of(sandbox)), None);
    }

    /// A sandbox stands elsewhere from now on. Most of what changes about one changes little here.
    pub(crate) fn change(
        &mut self,
        sandbox: &Sandbox,
        old: Option<Standing>,
        new: Option<Standing>,
    ) {
        if old == new {
            return;
        }
        let (id, number) = (sandbox.id, sandbox.number);
        let counts = |standing: Option<Standing>| standing.and_then(|standing| standing.counts);
        if counts(old) != counts(new) {
            if let Some(ready) = counts(old) {
                *self.count(number, ready) -= 1;
            }
            if let Some(ready) = counts(new) {
                *self.count(number, ready) += 1;
            }
            self.tallies.retain(|(_, tally)| *tally != Tally::default());
        }
        let is =
            |standing: Option<Standing>, which: fn(Standing) -> bool| standing.is_some_and(which);
        list(
            &mut self.free,
            (number, id),
            is(old, |s| s.free.is_some()),
            is(new, |s| s.free.is_some()),
        );
        list(
            &mut self.unheld,
            id,
            is(old, |s| s.free == Some(true)),
            is(new, |s| s.free == Some(true)),
        );
        list(&mut self.wanted, id, is(old, |s| s.wanted), is(new, |s| s.wanted));
        list(&mut self.withheld, id, is(old, |s| s.withheld), is(new, |s| s.withheld));
        list(&mut self.leaving, id, is(old, |s| s.leaving), is(new, |s| s.leaving));
    }

    /// Those of which slots that come back are granted to nobody.
    pub(crate) const fn withheld(&self) -> &BTreeSet<SandboxId> {
        &self.withheld
    }

    fn count(&mut self, number: u32, ready: bool) -> &mut u32 {
        let tally = self.tally_mut(number);
        if ready { &mut tally.ready } else { &mut tally.starting }
    }

    fn tally_mut(&mut self, number: u32) -> &mut Tally {
        let at = match self.tallies.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => at,
            Err(at) => {
                self.tallies.insert(at, (number, Tally::default()));
                at
            }
        };
        &mut self.tallies.get_mut(at).expect("it was found or inserted there").1
    }

    pub(crate) fn tally(&self, number: u32) -> Tally {
        self.tallies.iter().find(|(n, _)| *n == number).map_or_else(Tally::default, |(_, t)| *t)
    }

    pub(crate) fn tally_of(&self, targets: &[Target]) -> Tally {
        targets.iter().map(|target| self.tally(target.revision)).fold(
            Tally::default(),
            |sum, tally| Tally {
                ready: sum.ready + tally.ready,
                starting: sum.starting + tally.starting,
            },
        )
    }
}

/// Puts an entry on a list, or takes it off.
fn list<T: Ord>(list: &mut BTreeSet<T>, entry: T, was: bool, is: bool) {
    if is && !was {
        list.insert(entry);
    } else if was && !is {
        list.remove(&entry);
    }
}
