//! Sandboxes of one function as their workers see them: placed, ready, gone, lost, found again.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{
    Address, Cause, DataPlaneId, Fault, RevisionId, SandboxId, StartFailure, StartPhases, WorkerId,
    control::{
        Measure,
        cluster::Cluster,
        fleet::Want,
        function::{Failure, Function},
        sandbox::{Reason, Sandbox, Stage},
        timers::Timer,
    },
    frame::{SandboxReport, Share},
};

impl Function {
    /// One more sandbox of a revision is wanted. `cause` is the data plane whose demand wants it.
    pub(crate) fn want(
        &mut self,
        c: &mut Cluster,
        number: u32,
        reason: Reason,
        cause: Option<DataPlaneId>,
    ) {
        let Some(revision) = self.revision(number) else { return };
        let spec = Arc::clone(&revision.spec);
        let settings = if self.is_rolling_out(number) {
            self.coming_settings()
        } else {
            &self.record.settings
        };
        let start_timeout = settings.start_timeout;
        let id = c.new_sandbox();
        let decide = cause.and_then(|cause| self.decided_after(c, cause));
        let revision = RevisionId { function: self.id(), number };
        let want = Want {
            sandbox: id,
            revision,
            name: self.record.name.clone(),
            spec: Arc::clone(&spec),
            start_timeout,
            urgent: reason == Reason::Queued,
            decided: c.now,
        };
        self.activate().insert(Sandbox {
            id,
            number,
            concurrency: spec.concurrency,
            protocol: spec.sandbox.protocol,
            stage: Stage::Wanted,
            reason,
            worker: None,
            decided: c.now,
            address: None,
            phases: decide.map(|decide| Box::new(StartPhases { decide, ..StartPhases::default() })),
            holders: SmallVec::new(),
            cause,
            lost: false,
            leaving: false,
            unsure: None,
            astray: false,
            timed: false,
        });
        c.measure(Measure::StartDecided);
        c.fleet.want(c.now, want);
    }

    /// How long ago the demand of a data plane, from which a start is decided now, reached us.
    fn decided_after(&self, c: &Cluster, cause: DataPlaneId) -> Option<Duration> {
        let level = self.active.as_deref()?.levels.get(cause)?;
        Some(c.now.since(level.heard))
    }

    /// The fleet found a worker for it.
    pub(crate) fn placed(&mut self, sandbox: SandboxId, worker: WorkerId, waited: Duration) {
        self.activate().change(sandbox, |entry| {
            entry.stage = Stage::Starting;
            entry.worker = Some(worker);
            entry.phases.get_or_insert_default().place = waited;
        });
    }

    /// It listens.
    pub(crate) fn ready(
        &mut self,
        c: &mut Cluster,
        sandbox: SandboxId,
        address: Address,
        phases: StartPhases,
    ) {
        let now = c.now;
        c.fleet.ready(now, sandbox);
        let Some(active) = self.active.as_deref_mut() else { return };
        let worker = active.sandboxes.get(&sandbox).and_then(|entry| entry.worker);
        if let Some(worker) = worker
            && !c.is_address_free(&(worker, address.clone()), sandbox)
        {
            // Its worker forgot, as after a reboot, that the address is not free yet: who holds slots
            // of the one before would reach this one.
            active.change(sandbox, |entry| entry.address = Some(address));
            self.recall(c, sandbox);
            self.roll_out(c);
            return;
        }
        let became = active.change(sandbox, |entry| {
            let known = entry.phases.as_ref().map(|phases| (phases.decide, phases.place));
            let (decide, place) = known.unwrap_or_default();
            entry.address = Some(address);
            (entry.stage == Stage::Starting).then(|| {
                entry.stage = Stage::Ready;
                let measured = StartPhases { decide: Duration::ZERO, place, ..phases };
                let wire = now.since(entry.decided).saturating_sub(measured.total());
                **entry.phases.get_or_insert_default() = StartPhases { decide, wire, ..measured };
                (entry.decided, entry.number)
            })
        });
        // Else it was told to stop meanwhile, and that order is on its way.
        let Some(Some((decided, number))) = became else { return };
        let took = now.since(decided);
        // The artifact's fetch happens once per worker and says nothing about the next start.
        active.start_time.add(took.saturating_sub(phases.fetch));
        active.crashes.in_row = 0;
        active.crashes.last = None;
        active.crashes.back_off = Duration::ZERO;
        c.timers.cancel(Timer::Probe(self.id()));
        c.measure(Measure::SandboxReady { took });
        self.put_to_use(c, sandbox, number);
    }

    /// A sandbox became ready, or was found ready: it serves, waits for the switch, or goes.
    pub(crate) fn put_to_use(&mut self, c: &mut Cluster, sandbox: SandboxId, number: u32) {
        if self.is_target(number) {
            self.serve(c);
            self.share_open(c, sandbox);
            self.offer(c, sandbox);
        } else if self.is_rolling_out(number) {
            self.roll_out(c);
        } else if c.recovering {
            c.look_at(self.id());
        } else {
            self.recall(c, sandbox);
        }
    }

    /// A sandbox without a limit is granted to every data plane that has invocations.
    fn share_open(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let Some(active) = self.active.as_deref() else { return };
        let Some(entry) = active.sandboxes.get(&sandbox) else { return };
        if entry.concurrency > 0 || entry.free() == 0 {
            return;
        }
        let busy: Vec<DataPlaneId> = active
            .levels
            .iter()
            .filter(|(id, level)| level.demand.busy > 0 && entry.held_by(*id) == 0)
            .map(|(id, _)| id)
            .filter(|id| c.peers.may_hold(*id))
            .collect();
        for data_plane in busy {
            self.grant(c, sandbox, data_plane, 1);
        }
    }

    /// Its worker would not start it. Nobody's failure: another start is decided if it is wanted.
    pub(crate) fn refused(&mut self, c: &mut Cluster, sandbox: SandboxId, why: String) {
        let Some(active) = self.active.as_deref_mut() else { return };
        if let Some(entry) = active.sandboxes.get(&sandbox) {
            let (worker, number) = (entry.worker, entry.number);
            let cause = Cause::CreateFailed { message: why.clone() };
            let failure = StartFailure { cause, fault: Fault::Worker, log_tail: Vec::new() };
            // It is tried again until it is taken or nobody wants it: told once.
            if active.failures.front().is_none_or(|last| last.failure != failure) {
                active.remember_failure(Failure { at: c.now, sandbox, worker, failure });
            }
            self.rollout_refused(number, why);
        }
        c.fleet.failed(c.now, sandbox, None);
        self.not_started(c, sandbox);
    }

    /// It was never started, by nobody's fault.
    pub(crate) fn not_started(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        self.bury(c, sandbox);
        self.roll_out(c);
    }

    /// It is gone, for whatever reason.
    pub(crate) fn gone(&mut self, c: &mut Cluster, sandbox: SandboxId, failure: StartFailure) {
        let id = self.id();
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(entry) = active.sandboxes.get(&sandbox) else { return };
        let (stage, worker, number) = (entry.stage, entry.worker, entry.number);
        let age = c.now.since(entry.decided);
        let remembered = Failure { at: c.now, sandbox, worker, failure: failure.clone() };
        match stage {
            Stage::Wanted | Stage::Starting => {
                active.remember_failure(remembered);
                c.measure(Measure::StartFailed { fault: failure.fault });
                c.fleet.failed(c.now, sandbox, Some(failure.fault));
                c.reclaim = true;
                self.drop_sandbox(c, sandbox);
                self.start_failed(c, number, failure);
            }
            Stage::Ready | Stage::Recalling => {
                if failure.cause != Cause::Stopped {
                    active.remember_failure(remembered);
                    if failure.fault == Fault::Function
                        && let Some(at) = active.crashes.count_exit(c.now, age)
                    {
                        c.timers.set(Timer::Restart(id), at);
                    }
                }
                // Known to be gone, not only lost: its address may be used again.
                active.change(sandbox, |entry| entry.stage = Stage::Gone);
                self.bury(c, sandbox);
                self.rollout_exited(c, number, failure);
            }
            Stage::Stopping | Stage::Gone => {
                // It ended by itself before it heard that it should: a data plane that could not
                // reach it any more has told of it first.
                if stage == Stage::Stopping && failure.cause != Cause::Stopped {
                    active.remember_failure(remembered);
                }
                self.bury(c, sandbox);
            }
        }
    }

    fn start_failed(&mut self, c: &mut Cluster, number: u32, failure: StartFailure) {
        if !self.is_target(number) {
            if self.is_rolling_out(number) {
                self.rollout_start_failed(c, failure);
            }
            return;
        }
        let id = self.id();
        let crashes = &mut self.activate().crashes;
        if failure.fault == Fault::Function {
            crashes.count(c.now);
        }
        if crashes.looping() {
            let at = crashes.probe_at;
            c.timers.set(Timer::Probe(id), at);
        }
        self.activate().crashes.last = Some(failure);
    }

    /// Its worker does not answer. Who holds slots may still reach it; it counts for nothing.
    pub(crate) fn lost(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(entry) = active.sandboxes.get(&sandbox) else { return };
        let held = !entry.holders.is_empty();
        match entry.stage {
            Stage::Ready | Stage::Recalling if held => {
                active.change(sandbox, |entry| entry.lost = true);
                self.rest_address(c, sandbox);
                // Its worker may have been asked for that, and not have heard it.
                self.make_sure(c, sandbox);
            }
            Stage::Wanted | Stage::Gone => {}
            Stage::Starting | Stage::Ready | Stage::Recalling | Stage::Stopping => {
                let worker = entry.worker;
                active.remember_failure(Failure {
                    at: c.now,
                    sandbox,
                    worker,
                    failure: worker_lost(),
                });
                self.bury(c, sandbox);
            }
        }
        self.roll_out(c);
    }

    /// Its worker is back with it.
    pub(crate) fn found(&mut self, c: &mut Cluster, sandbox: SandboxId, report: &SandboxReport) {
        let Some(active) = self.active.as_deref_mut() else { return };
        let was_lost = active.change(sandbox, |entry| std::mem::take(&mut entry.lost));
        let Some(entry) = active.sandboxes.get(&sandbox) else { return };
        match (entry.stage, &report.address) {
            // The frame that said so was lost with the stream.
            (Stage::Starting, Some(address)) => {
                let address = address.clone();
                self.ready(c, sandbox, address, StartPhases::default());
            }
            (Stage::Gone, _) => {
                // It was given up while its worker was away, which was not told.
                let grace = self.record.settings.grace;
                active.change(sandbox, |entry| entry.stage = Stage::Stopping);
                c.stopping += 1;
                c.fleet.stop(sandbox, grace);
            }
            (Stage::Ready, _) if report.stopping => {
                // An earlier leader told it to.
                self.recall(c, sandbox);
            }
            (Stage::Ready, _) if was_lost == Some(true) => {
                let (number, unheld) = (entry.number, entry.holders.is_empty());
                if unheld {
                    self.put_to_use(c, sandbox, number);
                }
                // Others were started in its place.
                self.shrink(c);
            }
            _ => {}
        }
        self.make_sure(c, sandbox);
    }

    /// Whether a sandbox is of a history that the store has lost, restored from an older copy: what it
    /// runs is not what the record says of its revision, or may be in the hands of a data plane that
    /// is not recorded.
    pub(crate) fn is_of_lost_history(&self, c: &Cluster, sandbox: SandboxId, number: u32) -> bool {
        let born = self.revision(number).map(|revision| revision.born);
        c.is_lost_history(sandbox.epoch) || born.is_some_and(|born| sandbox.epoch < born)
    }

    /// A worker has a sandbox that is in nobody's books: it is adopted, and judged when everybody
    /// has attached.
    pub(crate) fn adopt(
        &mut self,
        c: &mut Cluster,
        worker: WorkerId,
        report: &SandboxReport,
        is_stranger: bool,
    ) {
        let claims = c.claims.remove(&report.sandbox).unwrap_or_default();
        let (number, sandbox) = (report.revision.number, report.sandbox);
        let known = self.revision(number).map(|r| (r.spec.concurrency, r.spec.sandbox.protocol));
        // Of a revision that is not kept any more only what is claimed is known.
        let claimed = claims.iter().map(|claim| match claim.share {
            Share::Slots(slots) => slots,
            Share::Open => 1,
        });
        let (concurrency, protocol) =
            known.unwrap_or_else(|| (claimed.sum::<u32>().max(1), crate::Protocol::default()));
        let stage = match (&report.address, report.stopping) {
            (_, true) => Stage::Stopping,
            (None, false) => Stage::Starting,
            (Some(_), false) => Stage::Ready,
        };
        if stage == Stage::Stopping {
            c.stopping += 1;
        }
        let unsure = !c.peers.all_heard();
        if unsure {
            c.unsure.insert(sandbox);
        }
        c.saw_sandbox(sandbox);
        self.activate().insert(Sandbox {
            id: sandbox,
            number,
            concurrency,
            protocol,
            stage,
            reason: Reason::Adopted,
            worker: Some(worker),
            decided: c.now,
            address: report.address.clone(),
            phases: None,
            holders: SmallVec::new(),
            cause: None,
            lost: false,
            leaving: c.fleet.is_drained(worker),
            unsure: unsure.then(Vec::new),
            astray: false,
            timed: false,
        });
        for claim in claims {
            self.claim(c, sandbox, claim);
        }
        let left_behind = c.left_behind.get(&worker).is_some_and(|all| all.contains(&sandbox));
        let lost = is_stranger || self.is_of_lost_history(c, sandbox, number);
        let condemned = c.condemned.remove(&sandbox) || left_behind || lost;
        if (stage == Stage::Ready && condemned) || (stage == Stage::Starting && lost) {
            self.recall(c, sandbox);
        } else if stage == Stage::Ready {
            self.put_to_use(c, sandbox, number);
        }
        c.look_at(self.id());
    }

    /// Everybody has attached: what is not needed goes, what is missing is started.
    pub(crate) fn judge(&mut self, c: &mut Cluster) {
        if c.recovering {
            return;
        }
        if let Some(going) =
            self.record.revisions.iter().find(|r| r.state.is_going()).map(|r| r.number)
            && !self.is_deleted()
            && !self.active.as_ref().is_some_and(|a| a.rollout.is_some() || a.writing.is_some())
        {
            // An earlier leader began it.
            self.begin_rollout(c, going);
            self.roll_out(c);
        }
        self.activate();
        self.recall_strays(c);
        self.doubt(c);
        self.unpin(c);
        self.shrink(c);
        self.offer_unheld(c);
    }

    /// Ready sandboxes that nobody holds are offered to who may want them.
    pub(crate) fn offer_unheld(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_ref() else { return };
        let unheld: Vec<SandboxId> = active.books.unheld.iter().copied().collect();
        for sandbox in unheld {
            self.offer(c, sandbox);
        }
    }

    /// It was only kept for somebody who had not attached.
    fn after_sure(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let entry = self.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
        if entry.is_some_and(|entry| entry.stage == Stage::Recalling && entry.is_unheld()) {
            self.stop(c, sandbox);
        }
    }

    /// Nobody who may hold slots of it is missing any more.
    pub(crate) fn sure(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        c.unsure.remove(&sandbox);
        if let Some(active) = self.active.as_deref_mut() {
            active.change(sandbox, |entry| entry.unsure = None);
            c.look_at(self.id());
            self.after_sure(c, sandbox);
        }
    }
}

/// The failure of a sandbox whose worker came back without it, or not at all.
pub(crate) const fn worker_lost() -> StartFailure {
    StartFailure { cause: Cause::WorkerLost, fault: Fault::Worker, log_tail: Vec::new() }
}
