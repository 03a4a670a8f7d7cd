//! Slots of one function: granted, returned, recalled, claimed.
//!
//! The sum granted of a sandbox never exceeds its concurrency. Drain, scale-down, redeploy and
//! moving capacity are one operation: recall, then wait for what comes back. A sandbox is told to
//! stop only when nobody holds a slot of it, or its drain took too long.

use std::{cmp::Reverse, time::Duration};

use crate::{
    DataPlaneId, FunctionId, RevisionId, SandboxId,
    control::{
        Measure,
        cluster::{Claim, Cluster},
        function::{Decided, Function, Grounds},
        levels::Level,
        sandbox::{Holder, Sandbox, Stage},
        timers::Timer,
    },
    frame::{Demand, Grant, Returned, Share, ToDataPlane, WhyReturned},
};

/// Slots that were moved are not moved again before the invocations they were moved for could use
/// them.
const REST: Duration = Duration::from_millis(10);

impl Function {
    /// Changes the level of a data plane, made if there is none.
    pub(crate) fn level<R>(
        &mut self,
        c: &mut Cluster,
        data_plane: DataPlaneId,
        change: impl FnOnce(&mut Level) -> R,
    ) -> R {
        let id = self.id();
        let levels = &mut self.activate().levels;
        if !levels.contains(data_plane) {
            levels.insert(data_plane, Level::new(c.now, nothing(id)));
            if let Some(peer) = c.peers.get_mut(data_plane) {
                peer.functions.insert(id);
            }
        }
        levels.change(data_plane, change).expect("it was there or was made")
    }

    /// Gives slots of a ready sandbox to a data plane that is attached.
    pub(crate) fn grant(
        &mut self,
        c: &mut Cluster,
        sandbox: SandboxId,
        to: DataPlaneId,
        slots: u32,
    ) {
        let pinned = self.is_one_of_min();
        let Some(peer) = c.peers.get_mut(to) else { return };
        let serial = peer.next_serial();
        self.level(c, to, |level| level.books += slots);
        let function = self.id();
        let active = self.activate();
        let frame = active.change(sandbox, |entry| {
            c.untime(entry);
            debug_assert!(slots > 0 && slots <= entry.free(), "granted more than is free");
            match entry.holders.iter_mut().find(|(id, _)| *id == to) {
                Some((_, holder)) => {
                    holder.slots += slots;
                    holder.pinned = pinned;
                }
                None => entry.holders.push((to, Holder { slots, pinned })),
            }
            Some(Grant {
                sandbox,
                revision: RevisionId { function, number: entry.number },
                address: entry.address.clone()?,
                protocol: entry.protocol,
                share: entry.share(slots),
                serial,
                pinned,
                start: entry.phases.take().map(|phases| *phases),
            })
        });
        if let Some(Some(grant)) = frame {
            c.tell(to, ToDataPlane::Grant(Box::new(grant)));
        }
    }

    /// Whether a sandbox that is ready now is needed for `min`: then keep-alive does not apply.
    fn is_one_of_min(&self) -> bool {
        let min = self.record.settings.min;
        min > 0
            && !self.is_deleted()
            && self
                .active
                .as_ref()
                .is_some_and(|active| active.books.tally_of(&self.record.targets).ready <= min)
    }

    /// A ready sandbox that nobody waits for: to whom would it be useful?
    pub(crate) fn offer(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        self.offer_to_others(c, sandbox, None);
    }

    /// Like `offer`, but not to the data plane that gave it back.
    fn offer_to_others(&mut self, c: &mut Cluster, sandbox: SandboxId, not: Option<DataPlaneId>) {
        let Some(entry) = self.active.as_ref().and_then(|a| a.sandboxes.get(&sandbox)) else {
            return;
        };
        let (free, cause) = (entry.free(), entry.cause);
        if free == 0 || !entry.holders.is_empty() || !self.is_target(entry.number) {
            return;
        }
        let (name, auth) = (&self.record.name, self.record.settings.auth);
        let may_hold = |id: &DataPlaneId| {
            Some(*id) != not && c.peers.stays(*id) && c.peers.may_hold_of(*id, name, auth)
        };
        let to = cause.filter(may_hold).or_else(|| c.peers.subscribed(name).find(may_hold));
        if let Some(to) = to {
            self.grant(c, sandbox, to, free);
        } else if !self.is_one_of_min() {
            self.keep(c, sandbox);
        }
    }

    /// A sandbox that nobody holds goes at the end of its keep-alive.
    pub(crate) fn keep(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let until = c.now.after(self.record.settings.keep_alive.unheld());
        self.activate().change(sandbox, |entry| c.time(entry, Timer::Idle(sandbox), until));
    }

    /// A sandbox that nobody held was idle for its keep-alive.
    pub(crate) fn idled(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let unheld =
            self.active.as_ref().is_some_and(|active| active.books.unheld.contains(&sandbox));
        if unheld && !c.recovering && !self.is_one_of_min() {
            self.keep_alive_over(c, sandbox);
            self.stop(c, sandbox);
        }
    }

    /// Slots came back.
    pub(crate) fn returned(&mut self, c: &mut Cluster, from: DataPlaneId, returned: &Returned) {
        let sandbox = returned.sandbox;
        let Some(share) = self.take_back(from, sandbox, Some(returned.share)) else { return };
        let (recalled, shared) =
            self.level(c, from, |level| (level.recalling > 0, level.answered(share)));
        self.settle_lent(c);
        if matches!(returned.why, WhyReturned::Unreachable | WhyReturned::Closing) {
            self.recall(c, sandbox);
        }
        if shared && self.keep_shared(c, sandbox) {
            return;
        }
        if returned.why == WhyReturned::Drained && self.pass_to_others(c, sandbox, from) {
            return;
        }
        let before = self.holders(sandbox);
        self.after_return(c, sandbox, Some(from), recalled);
        if recalled {
            for (data_plane, slots) in self.holders(sandbox) {
                if !before.contains(&(data_plane, slots)) {
                    self.rest(c, data_plane);
                }
            }
        }
    }

    /// A data plane that leaves gave back what nobody had asked for: the sandbox is of use to others
    /// still. False if it is to end, or others hold it too.
    fn pass_to_others(&mut self, c: &mut Cluster, sandbox: SandboxId, from: DataPlaneId) -> bool {
        let unheld = |function: &Self| {
            function.active.as_ref().is_some_and(|a| a.books.unheld.contains(&sandbox))
        };
        let target = self.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
        if !unheld(self) || !target.is_some_and(|entry| self.is_target(entry.number)) {
            return false;
        }
        self.serve(c);
        if unheld(self) {
            self.offer_to_others(c, sandbox, Some(from));
        }
        true
    }

    /// Slots that a data plane gave back are not in these books; it may have been asked for some.
    pub(crate) fn answered(&mut self, c: &mut Cluster, from: DataPlaneId, slots: u32) {
        self.level(c, from, |level| level.answered(slots));
        self.settle_lent(c);
    }

    fn holders(&self, sandbox: SandboxId) -> Vec<(DataPlaneId, u32)> {
        let entry = self.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
        let holders = entry.into_iter().flat_map(|entry| &entry.holders);
        holders.map(|(id, holder)| (*id, holder.slots)).collect()
    }

    /// Takes slots off a holder's account: all of them if `share` is `None`. `None` if it had none.
    pub(crate) fn take_back(
        &mut self,
        from: DataPlaneId,
        sandbox: SandboxId,
        share: Option<Share>,
    ) -> Option<u32> {
        let active = self.active.as_deref_mut()?;
        let taken = active.change(sandbox, |entry| {
            let at = entry.holders.iter().position(|(id, _)| *id == from)?;
            let (_, holder) = entry.holders.get_mut(at)?;
            let held = holder.slots;
            let taken = match share {
                Some(Share::Slots(slots)) if entry.concurrency > 0 => slots.min(held),
                Some(Share::Slots(_) | Share::Open) | None => held,
            };
            holder.slots -= taken;
            if holder.slots == 0 {
                entry.holders.swap_remove(at);
            }
            Some(taken)
        })??;
        active.levels.change(from, |level| level.books -= taken);
        (taken > 0).then_some(taken)
    }

    /// What becomes of a sandbox of which slots came back; whether they were recalled, which is a
    /// decision that was told then.
    pub(crate) fn after_return(
        &mut self,
        c: &mut Cluster,
        sandbox: SandboxId,
        from: Option<DataPlaneId>,
        recalled: bool,
    ) {
        let Some(entry) = self.active.as_ref().and_then(|a| a.sandboxes.get(&sandbox)) else {
            return;
        };
        let (stage, unheld, returned) = (entry.stage, entry.is_unheld(), entry.holders.is_empty());
        match stage {
            Stage::Recalling if unheld => self.stop(c, sandbox),
            Stage::Gone if returned => self.drop_sandbox(c, sandbox),
            Stage::Ready if entry.lost && returned => self.bury(c, sandbox),
            Stage::Ready if unheld && self.makes_room() => self.stop(c, sandbox),
            Stage::Ready => {
                self.serve(c);
                let still_unheld =
                    self.active.as_ref().is_some_and(|a| a.books.unheld.contains(&sandbox));
                if still_unheld {
                    self.keep_or_stop(c, sandbox, from, recalled);
                }
            }
            Stage::Recalling => self.make_sure(c, sandbox),
            Stage::Wanted | Stage::Starting | Stage::Stopping | Stage::Gone => {}
        }
    }

    /// Whether one sandbox is to go for the first one of a new revision.
    fn makes_room(&mut self) -> bool {
        let rollout = self.active.as_deref_mut().and_then(|active| active.rollout.as_mut());
        rollout.is_some_and(|rollout| std::mem::take(&mut rollout.makes_room))
    }

    /// All slots of a sandbox are back and nobody waits: it is one of `min`, or it goes.
    fn keep_or_stop(
        &mut self,
        c: &mut Cluster,
        sandbox: SandboxId,
        from: Option<DataPlaneId>,
        recalled: bool,
    ) {
        if self.is_one_of_min() {
            let active = self.activate();
            active.change(sandbox, |entry| entry.cause = from.or(entry.cause));
            self.offer(c, sandbox);
        } else if c.recovering {
            // Nothing is stopped before everybody has said what is wanted.
            c.look_at(self.id());
        } else {
            if !recalled {
                self.keep_alive_over(c, sandbox);
            }
            self.stop(c, sandbox);
        }
    }

    fn keep_alive_over(&mut self, c: &Cluster, sandbox: SandboxId) {
        let targets = &self.record.targets;
        let keep_alive = self.record.settings.keep_alive;
        if let Some(active) = self.active.as_deref_mut() {
            let ready = active.books.tally_of(targets).ready;
            active.remember_decision(Decided {
                at: c.now,
                from: ready,
                to: ready.saturating_sub(1),
                grounds: Grounds::KeepAlive { sandbox, keep_alive },
            });
        }
    }

    /// An answer to a recall by number: so many were in use after all.
    pub(crate) fn kept(&mut self, c: &mut Cluster, from: DataPlaneId, n: u32) {
        let now = c.now;
        self.level(c, from, |level| {
            level.answered(n);
            level.sought = true;
            // The level heard last is out of date: nothing there counts as idle until the next one.
            level.demand.idle = 0;
            // Those who wait have waited for longer since it was heard.
            let since = level.waits_since();
            level.demand.oldest_wait = now.since(since);
            level.at = now;
        });
        self.settle_lent(c);
    }

    /// What was lent to make room is back, or was kept.
    pub(crate) fn settle_lent(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_deref_mut() else { return };
        if active.lent > 0 && active.levels.iter().all(|(_, level)| level.recalling == 0) {
            c.lent = c.lent.saturating_sub(active.lent);
            active.lent = 0;
            c.reclaim = true;
        }
    }

    /// Data planes of which slots may be called back, those with the most idle ones first.
    fn lenders(&self, c: &Cluster, spared: Option<DataPlaneId>) -> Vec<DataPlaneId> {
        let levels = self.active.iter().flat_map(|active| active.levels.holding());
        let mut lenders: Vec<(u32, DataPlaneId)> = levels
            .filter(|(id, level)| {
                Some(*id) != spared && level.rest_until <= c.now && c.peers.is_attached(*id)
            })
            .map(|(id, level)| (level.idle(), id))
            .collect();
        lenders.sort_unstable_by(|a, b| b.cmp(a));
        lenders.into_iter().map(|(_, id)| id).collect()
    }

    /// Idle slots that would be of use elsewhere: those of withheld sandboxes are not. Which ones a
    /// data plane gives back is its own choice, so all of them are taken off.
    fn usable_idle(&self, data_plane: DataPlaneId) -> u32 {
        let Some(active) = self.active.as_deref() else { return 0 };
        let idle = active.levels.get(data_plane).map_or(0, |level| level.idle());
        let withheld = active.books.withheld().iter().filter_map(|id| active.sandboxes.get(id));
        withheld.map(|sandbox| sandbox.held_by(data_plane)).fold(idle, u32::saturating_sub)
    }

    /// Calls back up to `slots` idle slots. Gives back how many it asked for.
    pub(crate) fn recall_idle(&mut self, c: &mut Cluster, slots: u32) -> u32 {
        let mut missing = slots;
        for lender in self.lenders(c, None) {
            let n = self.usable_idle(lender).min(missing);
            missing -= n;
            self.recall_from(c, lender, n, 0);
        }
        slots - missing
    }

    /// Calls back up to `slots` idle slots for who waits. What a data plane said last may be a
    /// second old, so it is asked for more than it is known to have: who has none says so, and tells
    /// at once when it has. Gives back how many are known to come.
    pub(crate) fn fetch_from_others(
        &mut self,
        c: &mut Cluster,
        slots: u32,
        waits: DataPlaneId,
    ) -> u32 {
        let mut missing = slots;
        for lender in self.lenders(c, Some(waits)) {
            let usable = self.usable_idle(lender);
            let (known, hoped) = self.level(c, lender, |level| {
                let known = usable.min(missing);
                let asked = level.recalling > 0 || level.sought || level.demand.queued > 0;
                let hoped = if asked { 0 } else { level.books.min(missing).saturating_sub(known) };
                (known, hoped)
            });
            missing -= known;
            self.recall_from(c, lender, known, hoped);
        }
        slots - missing
    }

    fn recall_from(&mut self, c: &mut Cluster, lender: DataPlaneId, known: u32, hoped: u32) {
        let n = known + hoped;
        if n > 0 {
            self.level(c, lender, |level| {
                level.recalling += n;
                level.hoped += hoped;
            });
            let function = self.id();
            c.tell(lender, ToDataPlane::Recall { function, n, idle_only: true });
        }
    }

    /// Slots just moved to a data plane rest there.
    pub(crate) fn rest(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        let rest = self
            .active
            .as_ref()
            .and_then(|active| active.service_time.get())
            .map_or(REST, |service| service.max(REST));
        let until = c.now.after(rest);
        self.level(c, data_plane, |level| level.rest_until = until);
        self.time_rests(c);
    }

    /// The next rest that ends.
    pub(crate) fn time_rests(&mut self, c: &mut Cluster) {
        let levels = self.active.iter().flat_map(|active| active.levels.iter());
        if let Some(next) = levels.map(|(_, level)| level.rest_until).filter(|at| *at > c.now).min()
        {
            c.timers.set(Timer::Rested(self.id()), next);
        }
    }

    /// Calls a whole sandbox back; it stops when all slots are here.
    pub(crate) fn recall(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let settings = &self.record.settings;
        // An invocation may take its whole timeout, and a begun response or an upgraded connection
        // the drain's on top of it.
        let limit = settings.timeout.saturating_add(settings.drain_timeout);
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(entry) = active.sandboxes.get(&sandbox) else { return };
        match entry.stage {
            Stage::Wanted => {
                if c.fleet.withdraw(sandbox) {
                    self.drop_sandbox(c, sandbox);
                } else {
                    // It has a worker already, which is about to be heard.
                    c.look_at(self.id());
                }
            }
            Stage::Starting => self.stop(c, sandbox),
            Stage::Ready => {
                active.change(sandbox, |entry| entry.stage = Stage::Recalling);
                self.tell_holders(c, sandbox);
                if self.activate().sandboxes.get(&sandbox).is_some_and(|s| s.is_unheld()) {
                    self.stop(c, sandbox);
                } else {
                    let until = c.now.after(limit);
                    self.activate().change(sandbox, |entry| {
                        c.time(entry, Timer::Drained(sandbox), until);
                    });
                    // Those who have been silent for long will not answer.
                    self.make_sure(c, sandbox);
                }
            }
            Stage::Recalling | Stage::Stopping | Stage::Gone => {}
        }
    }

    /// `min` was lowered: sandboxes that would never be given back are called back.
    pub(crate) fn unpin(&mut self, c: &mut Cluster) {
        let min = self.record.settings.min as usize;
        let Some(active) = self.active.as_deref() else { return };
        let pinned: Vec<SandboxId> = active
            .sandboxes
            .values()
            .filter(|s| s.stage == Stage::Ready && !s.leaving && self.is_target(s.number))
            .filter(|s| s.holders.iter().any(|(_, holder)| holder.pinned))
            .map(|s| s.id)
            .skip(min)
            .collect();
        for sandbox in pinned {
            self.recall(c, sandbox);
        }
    }

    /// There may be more than `max`: what is beyond it is called back, first what serves nobody yet,
    /// then the newest.
    pub(crate) fn shrink(&mut self, c: &mut Cluster) {
        let max = self.record.settings.max;
        let Some(active) = self.active.as_deref() else { return };
        let tally = active.books.tally_of(&self.record.targets);
        let surplus = tally.ready.saturating_add(tally.starting).saturating_sub(max);
        if surplus == 0 || self.is_deleted() {
            return;
        }
        if c.recovering {
            c.look_at(self.id());
            return;
        }
        let mut present: Vec<_> = active
            .sandboxes
            .values()
            .filter(|s| matches!(s.stage, Stage::Wanted | Stage::Starting | Stage::Ready))
            .filter(|s| !s.lost && !s.leaving && self.is_target(s.number))
            .map(|s| (s.stage == Stage::Ready, !s.is_unheld(), Reverse(s.id)))
            .collect();
        present.sort_unstable();
        for (_, _, Reverse(sandbox)) in present.into_iter().take(surplus as usize) {
            self.recall(c, sandbox);
        }
    }

    /// Tells who holds slots of a sandbox that is leaving or gone.
    pub(crate) fn tell_holders(&self, c: &mut Cluster, sandbox: SandboxId) {
        let Some(entry) = self.active.as_ref().and_then(|a| a.sandboxes.get(&sandbox)) else {
            return;
        };
        let gone = entry.stage == Stage::Gone;
        for (data_plane, _) in &entry.holders {
            c.tell(*data_plane, ToDataPlane::RecallSandbox { sandbox, gone });
        }
    }

    /// Tells its worker to stop it.
    pub(crate) fn stop(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let grace = self.record.settings.grace;
        let Some(active) = self.active.as_deref_mut() else { return };
        if active.sandboxes.get(&sandbox).is_some_and(|entry| entry.lost) {
            // Nobody is there to be told; should it come back, it is stopped then.
            self.bury(c, sandbox);
            return;
        }
        let before = active.change(sandbox, |entry| {
            c.untime(entry);
            std::mem::replace(&mut entry.stage, Stage::Stopping)
        });
        let Some(before) = before else { return };
        debug_assert!(!matches!(before, Stage::Wanted | Stage::Gone), "nothing to stop");
        if before != Stage::Stopping {
            c.stopping += 1;
            c.measure(Measure::SandboxStopped);
        }
        c.fleet.stop(sandbox, grace);
    }

    /// Its worker does not run it any more, as far as is known, and slots of it are held.
    pub(crate) fn rest_address(&self, c: &mut Cluster, sandbox: SandboxId) {
        let entry = self.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
        if let Some(place) = entry.and_then(|entry| entry.worker.zip(entry.address.clone())) {
            c.rest_address(place, sandbox);
        }
    }

    /// It runs no more: it leaves the books when nobody holds slots of it.
    pub(crate) fn bury(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(entry) = active.sandboxes.get_mut(&sandbox) else { return };
        let (stage, held) = (entry.stage, !entry.holders.is_empty());
        if stage == Stage::Stopping {
            c.stopping = c.stopping.saturating_sub(1);
        }
        c.untime(entry);
        c.fleet.gone(c.now, sandbox);
        c.reclaim = true;
        if held {
            active.change(sandbox, |entry| entry.stage = Stage::Gone);
            self.rest_address(c, sandbox);
            self.tell_holders(c, sandbox);
            self.make_sure(c, sandbox);
        } else {
            self.drop_sandbox(c, sandbox);
        }
    }

    /// It leaves the books.
    pub(crate) fn drop_sandbox(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let Some(mut entry) = self.active.as_deref_mut().and_then(|active| active.remove(sandbox))
        else {
            return;
        };
        c.untime(&mut entry);
        let to_end = matches!(entry.stage, Stage::Recalling | Stage::Stopping | Stage::Gone);
        if let Some(worker) = entry.worker.filter(|worker| to_end && c.fleet.is_away(*worker)) {
            c.left_behind.entry(worker).or_default().insert(sandbox);
        }
        forget_sandbox(c, &entry);
    }

    /// When every slot is claimed, nobody who has not attached can hold one.
    fn sure_if_all_claimed(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let entry = self.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
        let Some(entry) = entry.filter(|entry| entry.unsure.is_some() && entry.concurrency > 0)
        else {
            return;
        };
        // Of a revision that is not kept the concurrency is not known, only what was claimed.
        let known = self.revision(entry.number).is_some();
        if known && entry.held() == entry.concurrency {
            self.sure(c, sandbox);
        }
    }

    /// A data plane says, after its attachment, what it holds of a sandbox of ours.
    pub(crate) fn claim(&mut self, c: &mut Cluster, sandbox: SandboxId, claim: Claim) {
        let Claim { by, revision, share, pinned } = claim;
        let known = self.revision(revision.number).is_some();
        let active = self.activate();
        let claimed = active.change(sandbox, |entry| {
            let slots = entry.slots_in(share);
            if !known && entry.concurrency > 0 {
                // Of a revision that is not kept no more is known than what is claimed.
                entry.concurrency = entry.concurrency.max(entry.held() + slots);
            }
            let room = match entry.concurrency {
                0 => 1,
                concurrency => concurrency.saturating_sub(entry.held()),
            };
            // More than there is room for is what it was granted by nobody: it is not believed.
            let slots = slots.min(room);
            if slots > 0 {
                entry.holders.push((by, Holder { slots, pinned }));
            }
            (slots, matches!(entry.stage, Stage::Recalling | Stage::Stopping | Stage::Gone))
        });
        let Some((slots, leaving)) = claimed else { return };
        if slots > 0 {
            self.level(c, by, |level| level.books += slots);
        }
        self.sure_if_all_claimed(c, sandbox);
        if slots > 0 && !c.peers.is_attached(by) {
            // Its worker attached after it fell silent, perhaps long after.
            self.fell_silent(c, by);
            self.make_sure(c, sandbox);
        }
        if leaving || slots == 0 {
            let gone = self
                .activate()
                .sandboxes
                .get(&sandbox)
                .is_some_and(|entry| entry.stage == Stage::Gone);
            c.tell(by, ToDataPlane::RecallSandbox { sandbox, gone });
        }
    }
}

/// The indexes forget a sandbox; its address may be used again, unless somebody may still know it.
fn forget_sandbox(c: &mut Cluster, entry: &Sandbox) {
    let sandbox = entry.id;
    let astray = entry.astray || entry.unsure.is_some();
    c.fleet.forget(sandbox);
    c.unsure.remove(&sandbox);
    if let Some(place) = entry.worker.zip(entry.address.clone()) {
        if astray {
            c.keep_address(place, sandbox);
        } else {
            c.free_address(&place, sandbox);
        }
    }
    if let Some(worker) = entry.worker.filter(|_| entry.stage != Stage::Ready && !astray) {
        c.fleet.release_address(sandbox, worker);
    }
}

/// A level without anything in it.
pub(crate) const fn nothing(function: FunctionId) -> Demand {
    Demand {
        function,
        queued: 0,
        oldest_wait: Duration::ZERO,
        held: 0,
        idle: 0,
        busy: 0,
        busy_integral: 0,
        elapsed: 0,
        arrivals_total: 0,
        finished_total: 0,
        expected: 0,
    }
}
