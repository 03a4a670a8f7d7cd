//! The sandboxes of which a gate holds slots, filed so that the hot path never searches: free ones
//! by last use, idle ones by how long they have been idle.
//!
//! Two intrusive lists run through one slab, so that binding and finishing an invocation link and
//! unlink without allocating. Sandboxes granted without a limit are kept by how busy they are.

#![expect(clippy::indexing_slicing, reason = "a slab's keys come from its own index and lists")]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use slab::Slab;

use crate::{
    Address, Protocol, RevisionId, RevisionView, SandboxId, Serial, StartPhases, Time,
    frame::{Grant, Share, WhyReturned},
};

/// Where a sandbox stands with this gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Invocations are bound to it, if its revision is a target.
    Serving,
    /// Nothing is bound to it any more; what is held goes back when the last invocation in it has
    /// ended.
    Leaving(WhyReturned),
}

/// A sandbox and what is held of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) sandbox: SandboxId,
    pub(super) revision: RevisionId,
    pub(super) address: Arc<Address>,
    pub(super) protocol: Protocol,
    /// Of the whole sandbox, not only of what is held here; 0 is no limit.
    pub(super) concurrency: u32,
    /// Slots held, busy ones included. Without meaning if `open`.
    pub(super) slots: u32,
    pub(super) open: bool,
    pub(super) busy: u32,
    pub(super) serial: Serial,
    pub(super) pinned: bool,
    /// For the first invocation bound to it.
    pub(super) start: Option<StartPhases>,
    pub(super) stage: Stage,
    /// Since when nothing runs in it, or its last grant if that was later.
    pub(super) idle_since: Time,
    /// The number of its last use; 0 if it was never used.
    used: u64,
    /// Its revision's place among the targets.
    target: Option<usize>,
    /// Its key in its target's `open` set, while it is filed there.
    key: Option<OpenKey>,
    free_links: Links,
    idle_links: Links,
}

/// Least busy first, among those the most recently used.
type OpenKey = (u32, Reverse<u64>, usize);

impl Held {
    /// How much of it is held.
    pub(super) fn share(&self) -> Share {
        if self.open { Share::Open } else { Share::Slots(self.slots) }
    }

    /// What it counts in a demand's `held`: slots, or one for an open grant.
    pub(super) fn weight(&self) -> u32 {
        if self.open { 1 } else { self.slots }
    }

    /// Slots that are not busy; at most one is of use to a caller who asks for an open one.
    pub(super) fn idle_slots(&self) -> u32 {
        if self.open { u32::from(self.busy == 0) } else { self.slots - self.busy }
    }

    /// What it counts in `busy_serving`.
    fn limited_busy(&self) -> u32 {
        if self.is_serving() && !self.open { self.busy } else { 0 }
    }

    /// What it counts in `spare`.
    fn spare(&self) -> u64 {
        if self.is_serving() { u64::from(self.idle_slots()) } else { 0 }
    }

    fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    fn is_free(&self) -> bool {
        self.is_serving() && self.target.is_some() && (self.open || self.busy < self.slots)
    }
}

/// A place in one list.
#[derive(Clone, Copy, Debug, Default)]
struct Links {
    prev: Option<usize>,
    next: Option<usize>,
    linked: bool,
}

/// Which of the two lists that run through a sandbox.
#[derive(Clone, Copy, Debug)]
enum Lane {
    Free,
    Idle,
}

/// A doubly linked list through the slab.
#[derive(Debug)]
struct List {
    lane: Lane,
    first: Option<usize>,
    last: Option<usize>,
}

impl List {
    fn new(lane: Lane) -> Self {
        Self { lane, first: None, last: None }
    }

    fn links<'a>(&self, slab: &'a mut Slab<Held>, at: usize) -> &'a mut Links {
        let held = &mut slab[at];
        match self.lane {
            Lane::Free => &mut held.free_links,
            Lane::Idle => &mut held.idle_links,
        }
    }

    fn push_front(&mut self, slab: &mut Slab<Held>, at: usize) {
        let next = self.first.replace(at);
        *self.links(slab, at) = Links { prev: None, next, linked: true };
        match next {
            Some(next) => self.links(slab, next).prev = Some(at),
            None => self.last = Some(at),
        }
    }

    fn push_back(&mut self, slab: &mut Slab<Held>, at: usize) {
        let prev = self.last.replace(at);
        *self.links(slab, at) = Links { prev, next: None, linked: true };
        match prev {
            Some(prev) => self.links(slab, prev).next = Some(at),
            None => self.first = Some(at),
        }
    }

    fn unlink(&mut self, slab: &mut Slab<Held>, at: usize) {
        let Links { prev, next, linked } = std::mem::take(self.links(slab, at));
        if !linked {
            return;
        }
        match prev {
            Some(prev) => self.links(slab, prev).next = next,
            None => self.first = next,
        }
        match next {
            Some(next) => self.links(slab, next).prev = prev,
            None => self.last = prev,
        }
    }
}

/// A revision to which invocations may be bound.
#[derive(Debug)]
struct Target {
    view: RevisionView,
    /// Smooth weighted round robin: the one with the highest credit is next.
    credit: i64,
    /// Sandboxes with a free slot, most recently used first.
    free: List,
    /// Sandboxes without a limit.
    open: BTreeSet<OpenKey>,
}

/// Everything held.
#[derive(Debug)]
pub(super) struct Holdings {
    slab: Slab<Held>,
    index: BTreeMap<SandboxId, usize>,
    targets: Vec<Target>,
    /// Serving sandboxes with nothing in them, longest idle first.
    idle: List,
    /// Those of them that keep-alive does not touch.
    pinned: List,
    uses: u64,
    /// Slots (and open sandboxes) held. Wider than what one grant may bring: frames are not trusted.
    held: u64,
    /// Of those, what nothing uses in sandboxes that are serving.
    spare: u64,
    /// Invocations in sandboxes.
    busy: u32,
    /// Invocations in limited sandboxes that are serving.
    busy_serving: u32,
    /// Serving sandboxes of target revisions.
    bindable: usize,
}

impl Holdings {
    pub(super) fn new(targets: &[RevisionView]) -> Self {
        let mut holdings = Self {
            slab: Slab::new(),
            index: BTreeMap::new(),
            targets: Vec::new(),
            idle: List::new(Lane::Idle),
            pinned: List::new(Lane::Idle),
            uses: 0,
            held: 0,
            spare: 0,
            busy: 0,
            busy_serving: 0,
            bindable: 0,
        };
        holdings.retarget(targets);
        holdings
    }

    pub(super) fn held(&self) -> u32 {
        u32::try_from(self.held).unwrap_or(u32::MAX)
    }

    /// Slots (and open sandboxes) that nothing uses and that could be given back.
    pub(super) fn idle(&self) -> u32 {
        u32::try_from(self.spare).unwrap_or(u32::MAX)
    }

    pub(super) fn busy(&self) -> u32 {
        self.busy
    }

    pub(super) fn busy_serving(&self) -> u32 {
        self.busy_serving
    }

    pub(super) fn bindable(&self) -> usize {
        self.bindable
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    pub(super) fn find(&self, sandbox: SandboxId) -> Option<usize> {
        self.index.get(&sandbox).copied()
    }

    pub(super) fn at(&self, at: usize) -> &Held {
        &self.slab[at]
    }

    /// In the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Held)> {
        self.index.values().map(|&at| (at, &self.slab[at]))
    }

    /// Whether an invocation may be bound to this one, now or when a slot of it is free.
    pub(super) fn is_bindable(&self, at: usize) -> bool {
        let held = &self.slab[at];
        held.is_serving() && held.target.is_some()
    }

    /// The idle sandbox that reaches its keep-alive first.
    pub(super) fn longest_idle(&self) -> Option<(usize, Time)> {
        self.idle.first.map(|at| (at, self.slab[at].idle_since))
    }

    /// Idle sandboxes in the order in which they are given back: longest idle first, pinned last.
    pub(super) fn idle_ones(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for list in [&self.idle, &self.pinned] {
            let mut next = list.first;
            while let Some(at) = next {
                all.push(at);
                next = self.slab[at].idle_links.next;
            }
        }
        all
    }

    /// Serving sandboxes, least recently used first.
    pub(super) fn coldest_first(&self) -> Vec<usize> {
        let mut all: Vec<(u64, usize)> = self
            .slab
            .iter()
            .filter(|(_, held)| held.is_serving())
            .map(|(at, held)| (held.used, at))
            .collect();
        all.sort_unstable();
        all.into_iter().map(|(_, at)| at).collect()
    }

    /// A free slot, other than of `avoid`: the next revision by weight among those that have one,
    /// in it the most recently used sandbox (the least busy, if there is no limit).
    pub(super) fn pick(&mut self, avoid: Option<usize>) -> Option<usize> {
        let (slab, mut total, mut best) = (&self.slab, 0, None);
        for (place, target) in self.targets.iter_mut().enumerate() {
            let Some(at) = target.candidate(slab, avoid) else { continue };
            let weight = i64::from(target.view.weight);
            target.credit += weight;
            total += weight;
            if best.is_none_or(|(credit, _, _)| target.credit > credit) {
                best = Some((target.credit, place, at));
            }
        }
        let (_, place, at) = best?;
        if let Some(target) = self.targets.get_mut(place) {
            target.credit -= total;
        }
        Some(at)
    }

    /// Takes a free slot.
    pub(super) fn bind(&mut self, at: usize) {
        let held = &mut self.slab[at];
        assert!(held.is_free(), "{} was bound without a free slot", held.sandbox);
        self.spare -= held.spare();
        held.busy += 1;
        self.spare += held.spare();
        self.busy += 1;
        if !held.open {
            self.busy_serving += 1;
        }
        self.touch(at);
        self.refile_idle(at, None);
    }

    /// An invocation in it ended.
    pub(super) fn unbind(&mut self, now: Time, at: usize) {
        let held = &mut self.slab[at];
        assert!(held.busy > 0, "an invocation finished in {}, which has none", held.sandbox);
        self.spare -= held.spare();
        held.busy -= 1;
        self.spare += held.spare();
        self.busy -= 1;
        if held.is_serving() && !held.open {
            self.busy_serving -= 1;
        }
        self.touch(at);
        self.refile_idle(at, Some(now));
    }

    /// Adds what is granted. The idle time counts from the last grant.
    pub(super) fn grant(&mut self, now: Time, grant: &Grant, concurrency: u32) -> usize {
        let at = self.find(grant.sandbox).unwrap_or_else(|| self.insert(grant, concurrency));
        self.unfile(at);
        let held = &mut self.slab[at];
        self.held -= u64::from(held.weight());
        self.busy_serving -= held.limited_busy();
        self.spare -= held.spare();
        match grant.share {
            Share::Slots(slots) => held.slots = held.slots.saturating_add(slots),
            Share::Open => held.open = true,
        }
        self.held += u64::from(held.weight());
        self.busy_serving += held.limited_busy();
        self.spare += held.spare();
        held.serial = grant.serial;
        held.pinned = grant.pinned;
        if grant.start.is_some() {
            held.start = grant.start;
        }
        self.refile(at, Place::Back);
        self.refile_idle(at, Some(now));
        at
    }

    /// Nothing more is bound to it. A stronger reason replaces a weaker one.
    pub(super) fn leave(&mut self, at: usize, why: WhyReturned) {
        self.unfile(at);
        let held = &mut self.slab[at];
        match held.stage {
            Stage::Serving => {
                if held.target.is_some() {
                    self.bindable -= 1;
                }
                self.busy_serving -= held.limited_busy();
                self.spare -= held.spare();
                held.stage = Stage::Leaving(why);
            }
            Stage::Leaving(before) if rank(why) > rank(before) => {
                held.stage = Stage::Leaving(why);
            }
            Stage::Leaving(_) => {}
        }
    }

    /// Gives up idle slots, but not the last one: then the sandbox is removed.
    pub(super) fn give_up(&mut self, at: usize, slots: u32) {
        let held = &mut self.slab[at];
        assert!(!held.open && slots <= held.idle_slots(), "a busy slot was given up");
        assert!(slots < held.slots, "the last slot of {} was given up", held.sandbox);
        self.spare -= held.spare();
        held.slots -= slots;
        self.spare += held.spare();
        self.held -= u64::from(slots);
        self.refile(at, Place::Same);
    }

    /// Forgets a sandbox with nothing in it.
    pub(super) fn remove(&mut self, at: usize) {
        self.unfile(at);
        let held = self.slab.remove(at);
        assert!(held.busy == 0, "{} was given back with invocations in it", held.sandbox);
        self.held -= u64::from(held.weight());
        self.spare -= held.spare();
        if held.is_serving() && held.target.is_some() {
            self.bindable -= 1;
        }
        self.index.remove(&held.sandbox);
    }

    /// The phases of its start, once.
    pub(super) fn take_start(&mut self, at: usize) -> Option<StartPhases> {
        self.slab[at].start.take()
    }

    /// A new stream numbers its grants anew.
    pub(super) fn forget_serials(&mut self) {
        self.slab.iter_mut().for_each(|(_, held)| held.serial = Serial::default());
    }

    /// From now on only these revisions are bound. A revision of weight 0 gets nothing.
    pub(super) fn retarget(&mut self, targets: &[RevisionView]) {
        self.targets = targets
            .iter()
            .filter(|view| view.weight > 0)
            .map(|&view| Target {
                view,
                credit: 0,
                free: List::new(Lane::Free),
                open: BTreeSet::new(),
            })
            .collect();
        self.bindable = 0;
        let mut order: Vec<(u64, usize)> =
            self.slab.iter().map(|(at, held)| (held.used, at)).collect();
        order.sort_unstable_by_key(|&(used, at)| (Reverse(used), at));
        for (_, at) in order {
            let held = &mut self.slab[at];
            held.free_links = Links::default();
            held.key = None;
            held.target = self.targets.iter().position(|t| t.view.id == held.revision);
            if let Some(view) = targets.iter().find(|view| view.id == held.revision) {
                held.concurrency = view.concurrency;
            }
            if held.is_serving() && held.target.is_some() {
                self.bindable += 1;
            }
            self.refile(at, Place::Back);
        }
    }

    fn insert(&mut self, grant: &Grant, concurrency: u32) -> usize {
        let target = self.targets.iter().position(|t| t.view.id == grant.revision);
        self.bindable += usize::from(target.is_some());
        let at = self.slab.insert(Held {
            sandbox: grant.sandbox,
            revision: grant.revision,
            address: Arc::new(grant.address.clone()),
            protocol: grant.protocol,
            concurrency,
            slots: 0,
            open: false,
            busy: 0,
            serial: grant.serial,
            pinned: grant.pinned,
            start: None,
            stage: Stage::Serving,
            idle_since: Time::ZERO,
            used: 0,
            target,
            key: None,
            free_links: Links::default(),
            idle_links: Links::default(),
        });
        self.index.insert(grant.sandbox, at);
        at
    }

    fn touch(&mut self, at: usize) {
        self.uses += 1;
        self.slab[at].used = self.uses;
        self.refile(at, Place::Front);
    }

    /// Files it among the free ones if it is one.
    fn refile(&mut self, at: usize, place: Place) {
        let held = &mut self.slab[at];
        let Some(target) = held.target.and_then(|target| self.targets.get_mut(target)) else {
            return;
        };
        if let Some(key) = held.key.take() {
            target.open.remove(&key);
        }
        let free = held.is_free();
        if held.open {
            if free {
                let key = (held.busy, Reverse(held.used), at);
                held.key = Some(key);
                target.open.insert(key);
            }
            return;
        }
        let linked = held.free_links.linked;
        match (free, place) {
            (true, Place::Front) if target.free.first != Some(at) => {
                target.free.unlink(&mut self.slab, at);
                target.free.push_front(&mut self.slab, at);
            }
            (true, Place::Back | Place::Same) if !linked => {
                target.free.push_back(&mut self.slab, at);
            }
            (false, _) if linked => target.free.unlink(&mut self.slab, at),
            (true | false, _) => {}
        }
    }

    /// Files it among the idle ones if it is one; `since` restarts its idle time.
    fn refile_idle(&mut self, at: usize, since: Option<Time>) {
        let held = &mut self.slab[at];
        let idle = held.busy == 0 && held.is_serving();
        let list = if held.pinned { &mut self.pinned } else { &mut self.idle };
        if !idle {
            list.unlink(&mut self.slab, at);
        } else if let Some(since) = since {
            held.idle_since = since;
            list.unlink(&mut self.slab, at);
            list.push_back(&mut self.slab, at);
        }
    }

    /// Takes it out of every list.
    fn unfile(&mut self, at: usize) {
        let held = &mut self.slab[at];
        let list = if held.pinned { &mut self.pinned } else { &mut self.idle };
        list.unlink(&mut self.slab, at);
        let held = &mut self.slab[at];
        if let Some(target) = held.target.and_then(|target| self.targets.get_mut(target)) {
            if let Some(key) = held.key.take() {
                target.open.remove(&key);
            }
            target.free.unlink(&mut self.slab, at);
        }
    }

    /// Recounts everything.
    pub(super) fn check(&self) {
        let (mut held, mut spare, mut busy, mut serving, mut bindable) = (0_u64, 0, 0, 0, 0);
        assert_eq!(self.slab.len(), self.index.len(), "every sandbox is found by its id");
        for (at, one) in &self.slab {
            assert_eq!(self.find(one.sandbox), Some(at), "{} is found", one.sandbox);
            assert!(one.open || one.busy <= one.slots, "{} is over its slots", one.sandbox);
            assert!(one.open || one.slots > 0, "{} is held without a slot", one.sandbox);
            held += u64::from(one.weight());
            spare += one.spare();
            busy += one.busy;
            serving += one.limited_busy();
            bindable += usize::from(one.is_serving() && one.target.is_some());
            let filed = if one.open { one.key.is_some() } else { one.free_links.linked };
            assert_eq!(filed, one.is_free(), "{} is filed as free if it is", one.sandbox);
            let idle = one.is_serving() && one.busy == 0;
            assert_eq!(one.idle_links.linked, idle, "{} is filed as idle if it is", one.sandbox);
        }
        let counted = (self.held, self.spare, self.busy, self.busy_serving, self.bindable);
        assert_eq!(counted, (held, spare, busy, serving, bindable), "the counters are exact");
        let idle = self.idle_ones();
        let since = |at: &usize| (self.slab[*at].pinned, self.slab[*at].idle_since);
        assert!(idle.is_sorted_by_key(since), "idle ones are in the order of their idleness");
    }
}

/// Where a free sandbox goes among the free ones.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It was just used.
    Front,
    /// It was never used yet.
    Back,
    /// Its use has not changed.
    Same,
}

impl Target {
    fn candidate(&self, slab: &Slab<Held>, avoid: Option<usize>) -> Option<usize> {
        let first = self.free.first;
        let limited = if first.is_some() && first == avoid {
            first.and_then(|at| slab[at].free_links.next)
        } else {
            first
        };
        limited.or_else(|| self.open.iter().map(|&(_, _, at)| at).find(|&at| Some(at) != avoid))
    }
}

/// What must be known of a sandbox that goes back, strongest last: that a handler may still run in
/// it outweighs everything.
fn rank(why: WhyReturned) -> u8 {
    match why {
        WhyReturned::Idle => 0,
        WhyReturned::Drained => 1,
        WhyReturned::Unreachable => 2,
        WhyReturned::Closing => 3,
    }
}
