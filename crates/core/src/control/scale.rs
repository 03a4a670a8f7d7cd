//! How many sandboxes a function has: decided when a fact arrives, from levels, so that deciding
//! twice changes nothing.
//!
//! Queued invocations are served from free slots, then from slots that idle at other data planes,
//! then by starts that pay off. What data planes expect is started ahead. Windows work between the first sandbox and the last; keep-alive
//! brings sandboxes back one by one; `min` is kept from the moment of deployment.

use std::cmp::Reverse;

use crate::{
    DataPlaneId, KeepAlive, SandboxId, Time,
    control::{
        cluster::Cluster,
        function::{Decided, Function, Grounds},
        levels::Level,
        sandbox::{Reason, Tally},
        timers::Timer,
    },
    frame::{Demand, Status, ToDataPlane},
    policy::{
        kpa::{EVALUATION_INTERVAL, Kpa},
        starts::{Inputs, outstanding},
    },
};

/// A data plane that first heard of a function at most so many nanoseconds ago has no status from before.
const NEWBORN: u64 = 1_000_000_000;

/// A data plane with a queue.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    data_plane: DataPlaneId,
    /// Invocations for which no slot is on its way.
    unserved: u32,
}

impl Function {
    /// A data plane said what it wants. `fresh`: it attached just now, so that what its counters
    /// say of the past was another leader's business.
    pub(crate) fn demanded(
        &mut self,
        c: &mut Cluster,
        from: DataPlaneId,
        demand: &Demand,
        fresh: bool,
    ) {
        let (now, heard) = (c.now, c.heard);
        let level = self.active.as_deref().and_then(|active| active.levels.get(from));
        let is_hidden = level.is_some_and(|level| level.counts_from > 0);
        if is_hidden || !c.peers.may_serve(from, self.record.settings.auth) {
            return;
        }
        let before = self.level(c, from, |level| {
            let first = level.demand.elapsed == 0;
            if fresh || (first && demand.elapsed > NEWBORN) {
                // What it was told by an earlier leader, or before a silence, is not known.
                level.told = None;
            }
            if demand.busy == 0 {
                // Only busy slots are owed.
                level.owed = 0;
            }
            if demand.queued == 0 && demand.idle > 0 {
                level.sought = false;
            }
            level.at = now;
            level.heard = heard;
            std::mem::replace(&mut level.demand, *demand)
        });
        let learned = self.record.settings.keep_alive == KeepAlive::Auto;
        let active = self.activate();
        let counters = !fresh && before.elapsed <= demand.elapsed;
        if counters {
            let arrived = demand.arrivals_total.saturating_sub(before.arrivals_total);
            active.arrivals += arrived;
            active.crashes.called |= arrived > 0;
            let finished = demand.finished_total.saturating_sub(before.finished_total);
            let busy = demand.busy_integral.saturating_sub(before.busy_integral);
            if let Some(service) = busy.checked_div(finished) {
                active.service_time.add(std::time::Duration::from_nanos(service));
            }
        }
        // A learned keep-alive is the data planes' business, and the windows' work with it.
        if learned {
            active.kpa = None;
        } else {
            let kpa = active.kpa.get_or_insert_with(|| Box::new(Kpa::new(now)));
            kpa.observe(now, from, demand);
        }
    }

    /// Brings everything in line with what is known now.
    pub(crate) fn settle(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_deref() else { return };
        if !active.unborn && !active.deleted {
            self.serve(c);
            let missing = self.fetch_idle(c);
            self.start_for(c, &missing);
            if !missing.is_empty() {
                self.share(c);
            }
            self.leave_workers(c);
            self.tell_status(c);
            self.note_spare(c);
            self.keep_time(c);
        }
        self.tidy(c);
    }

    /// Data planes with a queue, the longest waiting first.
    fn waiting(&self, c: &Cluster) -> Vec<Waiting> {
        let active = self.active.as_deref().filter(|active| active.levels.queued() > 0);
        let Some(active) = active else { return Vec::new() };
        let open = self.target_concurrency() == 0;
        let auth = self.record.settings.auth;
        let may_serve = |id| c.peers.may_hold(id) && c.peers.may_serve(id, auth);
        let mut waiting: Vec<(Time, Waiting)> = active
            .levels
            .uneasy()
            .filter(|(id, level)| level.demand.queued > 0 && may_serve(*id))
            .map(|(data_plane, level)| {
                let unserved = level.unserved(open);
                (level.waits_since(), Waiting { data_plane, unserved })
            })
            .filter(|(_, waiting)| waiting.unserved > 0)
            .collect();
        waiting.sort_unstable_by_key(|(since, waiting)| (*since, waiting.data_plane));
        waiting.into_iter().map(|(_, waiting)| waiting).collect()
    }

    /// Of the target that gets the next sandbox.
    pub(crate) fn target_concurrency(&self) -> u32 {
        self.next_target()
            .and_then(|number| self.revision(number))
            .map_or(1, |revision| revision.spec.concurrency)
    }

    /// The target that has the fewest sandboxes for its weight.
    pub(crate) fn next_target(&self) -> Option<u32> {
        let tally = |number| {
            let tally = self.active.as_ref().map_or_else(Tally::default, |a| a.books.tally(number));
            u64::from(tally.ready + tally.starting)
        };
        let targets = self.record.targets.iter().filter(|target| target.weight > 0);
        targets
            .min_by_key(|t| (tally(t.revision) + 1) * 1_000_000 / u64::from(t.weight))
            .map(|target| target.revision)
    }

    /// Queued invocations get free slots.
    pub(crate) fn serve(&mut self, c: &mut Cluster) {
        if self.active.as_ref().is_none_or(|a| a.deleted || a.books.free.is_empty()) {
            return;
        }
        let waiting = self.waiting(c);
        let alone = waiting.len() == 1;
        for Waiting { data_plane, mut unserved } in waiting {
            while unserved > 0 {
                let Some((sandbox, free, open)) = self.pick_free(c, data_plane) else { break };
                // With nobody else waiting a whole sandbox stays together.
                let slots = if alone { free } else { free.min(unserved) };
                self.grant(c, sandbox, data_plane, slots);
                // Without a limit it gets its share of every sandbox.
                unserved = unserved.saturating_sub(if open { 0 } else { slots });
            }
        }
    }

    /// A sandbox with free slots for a data plane: on a suspect worker only if there is no other.
    fn pick_free(&self, c: &Cluster, to: DataPlaneId) -> Option<(SandboxId, u32, bool)> {
        let active = self.active.as_deref()?;
        let mut second_best = None;
        for target in &self.record.targets {
            let number = target.revision;
            let range = (number, SandboxId::new(crate::Epoch(0), 0))..;
            for &(_, id) in active.books.free.range(range).take_while(|(n, _)| *n == number) {
                let Some(entry) = active.sandboxes.get(&id) else { continue };
                let open = entry.concurrency == 0;
                if open && entry.held_by(to) > 0 {
                    continue;
                }
                let found = (id, entry.free(), open);
                if !entry.worker.is_some_and(|worker| c.fleet.is_suspect(worker)) {
                    return Some(found);
                }
                second_best.get_or_insert(found);
            }
        }
        second_best
    }

    /// Idle slots of other data planes are called back for those that wait. Gives back what is
    /// still missing then, with the data plane that misses it.
    fn fetch_idle(&mut self, c: &mut Cluster) -> Vec<Waiting> {
        let mut missing = self.waiting(c);
        if missing.is_empty() || self.active.as_ref().is_none_or(|active| active.levels.len() < 2) {
            return missing;
        }
        let mut coming = self.coming();
        for waiting in &mut missing {
            let served = waiting.unserved.min(coming);
            coming -= served;
            waiting.unserved -= served;
            if waiting.unserved > 0 {
                waiting.unserved -= self.fetch_from_others(c, waiting.unserved, waiting.data_plane);
            }
        }
        missing.retain(|waiting| waiting.unserved > 0);
        missing
    }

    /// Starts what pays off for those that wait, and what `min` wants; withdraws what has no
    /// worker yet and is not wanted any more.
    fn start_for(&mut self, c: &mut Cluster, missing: &[Waiting]) {
        let Some(active) = self.active.as_deref() else { return };
        if self.record.targets.is_empty() {
            return;
        }
        let settings = &self.record.settings;
        let tally = active.books.tally_of(&self.record.targets);
        let concurrency = self.target_concurrency();
        let inputs = Inputs {
            queued: missing.iter().fold(0, |sum, w| sum.saturating_add(w.unserved)),
            slots: tally.ready.saturating_mul(concurrency.max(1)),
            concurrency,
            service: active.service_time.get(),
            start: active.start_time.get(),
        };
        let for_queue = outstanding(&inputs);
        let mut for_min = settings.min.saturating_sub(tally.ready);
        if c.recovering && for_min > 0 {
            // Some may be running where nobody has said so yet.
            c.attention.insert(self.id());
            for_min = 0;
        }
        if active.crashes.min_at > c.now {
            for_min = 0;
        }
        let expected = self.expected(c);
        let for_expected = expected.iter().fold(0, |sum, (_, n)| u32::saturating_add(sum, *n));
        let room = settings.max.saturating_sub(tally.ready);
        let mut wanted = for_queue.max(for_min).max(for_expected);
        let max = (wanted > room).then_some(settings.max);
        let (reason, grounds) = if for_queue >= for_min && for_queue >= for_expected {
            (Reason::Queued, Grounds::Queued { inputs, max })
        } else if for_min >= for_expected {
            (Reason::Min, Grounds::Min { min: settings.min, ready: tally.ready, max })
        } else {
            (Reason::Expected, Grounds::Expected { sandboxes: for_expected, max })
        };
        wanted = wanted.min(room);
        if active.crashes.looping() {
            // One at a time, when its time has come and somebody called since.
            let called = wanted > 0 || active.crashes.called;
            let due = called && active.crashes.probe_at <= c.now;
            wanted = u32::from(due || tally.starting > 0).min(room);
        }
        self.hasten(c, for_queue.min(wanted), tally.starting);
        if wanted > tally.starting {
            self.activate().crashes.called = false;
            let causes =
                if reason == Reason::Expected { expected } else { causes(missing, concurrency) };
            self.start(c, wanted - tally.starting, reason, &causes);
            self.explain(c, tally, wanted, grounds);
        } else {
            self.withdraw(c, tally.starting - wanted, for_min > 0);
        }
    }

    /// Sandboxes that data planes expect to need soon, and nobody waits for yet. None while starts
    /// fail, or may have been made for the same by another leader.
    fn expected(&self, c: &mut Cluster) -> Vec<(DataPlaneId, u32)> {
        let active = self
            .active
            .as_deref()
            .filter(|active| active.levels.expected() > 0 && !active.crashes.looping());
        let Some(active) = active else { return Vec::new() };
        if c.recovering {
            // Who expects something says so once.
            c.attention.insert(self.id());
            return Vec::new();
        }
        let (auth, concurrency) = (self.record.settings.auth, self.target_concurrency().max(1));
        let serves = |id| c.peers.stays(id) && c.peers.may_hold(id) && c.peers.may_serve(id, auth);
        let expecting =
            active.levels.iter().filter(|(id, level)| level.expected() > 0 && serves(*id));
        expecting.map(|(id, level)| (id, level.expected().div_ceil(concurrency))).collect()
    }

    /// So many callers' starts are wanted: of those under way that no worker has yet and that
    /// nobody waited for until now, as many as it takes get the place of a start that is waited
    /// for.
    fn hasten(&mut self, c: &mut Cluster, urgent: u32, starting: u32) {
        let Some(active) = self.active.as_deref_mut() else { return };
        if urgent == 0 || active.books.wanted.is_empty() {
            return;
        }
        let calm: Vec<SandboxId> = active
            .books
            .wanted
            .iter()
            .filter(|id| {
                active.sandboxes.get(id).is_some_and(|sandbox| {
                    let number = sandbox.number;
                    sandbox.reason != Reason::Queued
                        && self.record.targets.iter().any(|target| target.revision == number)
                })
            })
            .copied()
            .collect();
        let others = starting.saturating_sub(u32::try_from(calm.len()).unwrap_or(u32::MAX));
        for sandbox in calm.into_iter().take(urgent.saturating_sub(others) as usize) {
            if c.fleet.hasten(c.now, sandbox) {
                active.change(sandbox, |entry| entry.reason = Reason::Queued);
            }
        }
    }

    /// Decides so many starts, each for the next of `causes`.
    pub(crate) fn start(
        &mut self,
        c: &mut Cluster,
        n: u32,
        reason: Reason,
        causes: &[(DataPlaneId, u32)],
    ) {
        let mut causes =
            causes.iter().flat_map(|(data_plane, n)| std::iter::repeat_n(*data_plane, *n as usize));
        for _ in 0..n {
            let Some(number) = self.next_target() else { return };
            self.want(c, number, reason, causes.next());
        }
    }

    pub(crate) fn explain(&mut self, c: &Cluster, tally: Tally, starting: u32, grounds: Grounds) {
        let decided = Decided {
            at: c.now,
            from: tally.ready + tally.starting,
            to: tally.ready + starting,
            grounds,
        };
        self.activate().remember_decision(decided);
    }

    /// Up to `surplus` starts that have no worker yet are not wanted any more. Those that the
    /// windows or a deploy decided are not touched.
    fn withdraw(&mut self, c: &mut Cluster, surplus: u32, below_min: bool) {
        let Some(active) = self.active.as_deref() else { return };
        let newest: Vec<SandboxId> = active
            .books
            .wanted
            .iter()
            .rev()
            .filter(|id| {
                active.sandboxes.get(id).is_some_and(|sandbox| match sandbox.reason {
                    Reason::Queued | Reason::Expected => true,
                    Reason::Min => !below_min,
                    Reason::Windows | Reason::Deploy | Reason::Moving | Reason::Adopted => false,
                })
            })
            .take(surplus as usize)
            .copied()
            .collect();
        for sandbox in newest {
            if c.fleet.withdraw(sandbox) {
                self.drop_sandbox(c, sandbox);
            }
        }
    }

    /// Data planes hear why their invocations wait, when that changes.
    fn tell_status(&mut self, c: &mut Cluster) {
        let function = self.id();
        let status = self.status();
        let Some(active) = self.active.as_deref_mut() else { return };
        let levels = &mut active.levels;
        // Who does not wait only needs to hear that an earlier obstacle is gone, or that callers
        // are to be answered at once.
        let stale = |(_, level): &(DataPlaneId, &Level)| level.told.as_ref() != Some(&status);
        let to: Vec<DataPlaneId> = if matches!(status, Status::CrashLoop(_)) {
            levels.iter().filter(stale).map(|(id, _)| id).collect()
        } else {
            levels.uneasy().filter(stale).map(|(id, _)| id).collect()
        };
        for data_plane in to {
            if c.peers.is_attached(data_plane) {
                levels.change(data_plane, |level| level.told = Some(status.clone()));
                c.tell(data_plane, ToDataPlane::Status { function, status: status.clone() });
            }
        }
    }

    /// Sandboxes that could go for others: idle, and above `min`.
    pub(crate) fn spare(&self) -> u32 {
        let Some(active) = self.active.as_deref() else { return 0 };
        if active.levels.queued() > 0 || active.lent > 0 || active.rollout.is_some() {
            return 0;
        }
        let concurrency = self.target_concurrency().max(1);
        let ready = active.books.tally_of(&self.record.targets).ready;
        let idle = active.levels.idle();
        let unheld = u32::try_from(active.books.unheld.len()).unwrap_or(u32::MAX);
        (idle / concurrency + unheld).min(ready.saturating_sub(self.record.settings.min))
    }

    /// Keeps its entry among those that can spare something; the longest idle are asked first.
    fn note_spare(&mut self, c: &mut Cluster) {
        let spares = self.spare() > 0;
        let id = self.id();
        let now = c.now;
        let Some(active) = self.active.as_deref_mut() else { return };
        match (spares, active.spare_since) {
            (true, None) => {
                active.spare_since = Some(now);
                c.spare.insert((now, id));
                c.reclaim = true;
            }
            (false, Some(since)) => {
                active.spare_since = None;
                c.spare.remove(&(since, id));
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Gives up to `n` idle sandboxes, so that others can start. Gives back how many will come.
    pub(crate) fn lend(&mut self, c: &mut Cluster, n: u32) -> u32 {
        let n = n.min(self.spare());
        let Some(active) = self.active.as_ref() else { return 0 };
        let unheld: Vec<SandboxId> = active.books.unheld.iter().copied().take(n as usize).collect();
        let mut given = 0;
        for sandbox in unheld {
            self.stop(c, sandbox);
            given += 1;
        }
        if given < n {
            let concurrency = self.target_concurrency().max(1);
            let slots = self.recall_idle(c, (n - given).saturating_mul(concurrency));
            let lent = slots.div_ceil(concurrency);
            if let Some(active) = self.active.as_deref_mut() {
                active.lent += lent;
                c.lent += lent;
            }
            given += lent;
        }
        self.note_spare(c);
        given
    }

    /// The windows are read every 2 s while they may change something.
    fn keep_time(&mut self, c: &mut Cluster) {
        let id = self.id();
        let Some(active) = self.active.as_deref_mut() else { return };
        let tally = active.books.tally_of(&self.record.targets);
        let several = tally.ready + tally.starting > self.record.settings.min.max(1);
        if active.kpa.is_some() && (several || active.levels.queued() > 0) {
            let at = c.now.after(EVALUATION_INTERVAL);
            c.timers.arm(&mut active.armed.windows, Timer::Windows(id), at);
        } else {
            c.timers.disarm(&mut active.armed.windows, Timer::Windows(id));
            if tally == Tally::default() && active.levels.queued() == 0 && active.levels.busy() == 0
            {
                active.kpa = None;
            }
        }
    }

    /// Reads the windows.
    pub(crate) fn read_windows(&mut self, c: &mut Cluster) {
        let concurrency = self.target_concurrency();
        let (min, max) = (self.record.settings.min.max(1), self.record.settings.max);
        let Some(active) = self.active.as_deref_mut() else { return };
        active.armed.windows = None;
        if active.deleted {
            return;
        }
        let tally = active.books.tally_of(&self.record.targets);
        let looping = active.crashes.looping();
        let Some(kpa) = active.kpa.as_mut() else { return };
        let desired = kpa.desired(c.now, concurrency, tally.ready);
        let want = desired.count.min(max).max(min);
        let grow_to = desired.grow_to.min(max);
        let have = tally.ready + tally.starting;
        if grow_to > have && !c.recovering && !looping {
            let busiest = self.busiest_holder();
            let causes: Vec<_> = busiest.map(|id| (id, grow_to - have)).into_iter().collect();
            self.start(c, grow_to - have, Reason::Windows, &causes);
            self.explain(c, tally, grow_to - tally.ready, Grounds::Windows(desired));
        } else if want < tally.ready && !c.recovering && c.now >= c.steady_from {
            let slots = (tally.ready - want).saturating_mul(concurrency.max(1));
            let asked = self.recall_idle(c, slots.saturating_sub(self.coming()));
            if asked > 0 {
                let fewer = asked.div_ceil(concurrency.max(1));
                let after = Tally { ready: tally.ready.saturating_sub(fewer), ..tally };
                self.explain(c, tally, after.starting, Grounds::Windows(desired));
                if let Some(last) = self.activate().decisions.front_mut() {
                    last.to = after.ready + after.starting;
                }
            }
        }
    }

    /// Slots that were recalled by number and are on their way, as far as is known.
    fn coming(&self) -> u32 {
        self.active.as_ref().map_or(0, |active| active.levels.coming())
    }

    pub(crate) fn busiest_holder(&self) -> Option<DataPlaneId> {
        let active = self.active.as_deref()?;
        let busiest = active.levels.iter().max_by_key(|(id, level)| {
            (level.demand.queued.saturating_add(level.demand.busy), Reverse(*id))
        });
        busiest.map(|(id, _)| id)
    }
}

/// For whom starts are made: each data plane gets one per `concurrency` of its queue.
fn causes(missing: &[Waiting], concurrency: u32) -> Vec<(DataPlaneId, u32)> {
    missing.iter().map(|w| (w.data_plane, w.unserved.div_ceil(concurrency.max(1)))).collect()
}
