//! The deploy that follows a new revision of one function.
//!
//! ```text
//! Checking --ready--> Building --capacity--> Switching --durable--> Applying --applied--> done
//!     \--start failed--> Failed (written), the live revision stays
//! ```
//!
//! Nothing of the new revision is granted before the switch is durable; then data planes hear of
//! it, get its slots, and are asked for those of the old one, in this order.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    Cause, DataPlaneId, Fault, RevisionId, RevisionRecord, RevisionState, SandboxId, StartFailure,
    Time,
    control::{
        Answer, Refusal,
        cluster::Cluster,
        function::{Decided, Function, Grounds},
        record::Op,
        sandbox::{Reason, Stage},
        timers::Timer,
    },
    frame::ToDataPlane,
};

/// A deploy waits so long for data planes to apply the switch.
const APPLY: Duration = Duration::from_secs(2);
/// Failed starts in a row, by fault of workers or while building up, that fail a deploy.
const TRIES: u32 = 3;

/// A deploy that is going on.
#[derive(Debug)]
pub(crate) struct Rollout {
    pub(crate) number: u32,
    pub(crate) phase: Phase,
    /// Failed starts in a row.
    failed: u32,
    /// Why the last worker asked would not start it, if one was asked.
    refused: Option<String>,
    /// Its first sandbox finds no room: one of the live revision goes for it.
    pub(crate) makes_room: bool,
}

/// Where a deploy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its first sandbox is starting.
    Checking { until: Time },
    /// It gets as many sandboxes as the live one has.
    Building { until: Time },
    /// The switch, or the failure, is being written.
    Switching,
    /// Data planes apply the switch.
    Applying { version: u64, missing: BTreeSet<DataPlaneId>, until: Time },
}

impl Function {
    pub(crate) fn is_rolling_out(&self, number: u32) -> bool {
        self.active
            .as_ref()
            .and_then(|active| active.rollout.as_ref())
            .is_some_and(|rollout| rollout.number == number)
    }

    /// The state of a revision as it is now; records keep only what must survive a leader.
    pub(crate) fn state_of(&self, revision: &RevisionRecord) -> RevisionState {
        let active = self.active.as_deref();
        let rollout = active.and_then(|active| active.rollout.as_ref());
        match (revision.state, rollout) {
            (state, Some(rollout)) if rollout.number == revision.number => match rollout.phase {
                Phase::Building { .. } | Phase::Switching => RevisionState::Ready,
                Phase::Checking { .. } | Phase::Applying { .. } => state,
            },
            (RevisionState::Retired, _)
                if active.is_some_and(|active| {
                    active.sandboxes.values().any(|s| s.number == revision.number)
                }) =>
            {
                RevisionState::Retiring
            }
            (state, _) => state,
        }
    }

    /// A deploy that is not the record's any more is over.
    pub(crate) fn overtake(&mut self, c: &mut Cluster) {
        let Some(rollout) = self.active.as_deref().and_then(|a| a.rollout.as_ref()) else { return };
        let number = rollout.number;
        let state = self.revision(number).map(|r| r.state);
        let goes_on = state.is_some_and(RevisionState::is_going) || self.is_target(number);
        if !goes_on {
            self.settle_revision(c, number, None);
        }
    }

    /// The rollout of a revision is over: who waited hears it, and what is not a target goes.
    pub(crate) fn settle_revision(
        &mut self,
        c: &mut Cluster,
        number: u32,
        failure: Option<&StartFailure>,
    ) {
        let id = self.id();
        let state = self.revision(number).map_or(RevisionState::Retired, |r| r.state);
        let active = self.activate();
        if active.rollout.as_ref().is_some_and(|rollout| rollout.number == number) {
            active.rollout = None;
            c.timers.cancel(Timer::Rollout(id));
        }
        let revision = RevisionId { function: id, number };
        let (heard, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut active.waiters).into_iter().partition(|(_, n)| *n == number);
        active.waiters = waiting;
        for (request, _) in heard {
            c.waiters.remove(&request);
            let failure = failure.cloned();
            c.reply(request, Ok(Answer::Settled { revision, state, failure }));
        }
        self.recall_strays(c);
    }

    pub(crate) fn begin_rollout(&mut self, c: &mut Cluster, number: u32) {
        if let Some(other) = self.active.as_ref().and_then(|a| a.rollout.as_ref()).map(|r| r.number)
            && other != number
        {
            self.activate().rollout = None;
            self.settle_revision(c, other, None);
        }
        let until = c.now.after(self.coming_settings().start_timeout);
        let phase = Phase::Checking { until };
        c.timers.set(Timer::Rollout(self.id()), until);
        let active = self.activate();
        active.rollout =
            Some(Rollout { number, phase, failed: 0, refused: None, makes_room: false });
        // What was wrong with an earlier revision says nothing of this one.
        active.crashes = super::function::Crashes::default();
    }

    /// Takes the deploy as far as it goes now.
    pub(crate) fn roll_out(&mut self, c: &mut Cluster) {
        let start_timeout = self.coming_settings().start_timeout;
        let rolled_out = self.active.as_deref().and_then(|active| active.rollout.as_ref());
        let is_pinning = rolled_out.is_some_and(|rollout| self.is_pinning(rollout.number));
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(rollout) = active.rollout.as_mut() else { return };
        let number = rollout.number;
        let tally = active.books.tally(number);
        match rollout.phase.clone() {
            Phase::Checking { .. } if tally.ready == 0 => {
                if tally.starting == 0 {
                    self.want(c, number, Reason::Deploy, None);
                }
            }
            // More of it are made of the same image as the first one.
            Phase::Checking { .. } if is_pinning => {}
            Phase::Checking { .. } => {
                let until = c.now.after(start_timeout);
                rollout.phase = Phase::Building { until };
                rollout.failed = 0;
                c.timers.set(Timer::Rollout(self.id()), until);
                self.build_up(c, number);
            }
            Phase::Building { .. } => self.build_up(c, number),
            Phase::Switching => {}
            Phase::Applying { missing, .. } => {
                if missing.is_empty() {
                    self.settle_revision(c, number, None);
                }
            }
        }
    }

    /// As many sandboxes as the live revision has, then the switch; what finds no room is replaced
    /// one for one after it.
    fn build_up(&mut self, c: &mut Cluster, number: u32) {
        let (min, max) = (self.coming_settings().min, self.coming_settings().max);
        let Some(active) = self.active.as_deref_mut() else { return };
        let old = active.books.tally_of(&self.record.targets);
        let new = active.books.tally(number);
        let goal = (old.ready + old.starting).max(min).min(max).max(1);
        let now = c.now;
        let Some(rollout) = active.rollout.as_mut() else { return };
        let late = matches!(rollout.phase, Phase::Building { until } if until <= now);
        if late && new.ready == 0 {
            let last = active.failures.front().map(|failure| failure.failure.clone());
            let cause = Cause::CreateFailed { message: "it did not stay ready".to_owned() };
            let fault = Fault::Function;
            let unknown = || StartFailure { cause, fault, log_tail: Vec::new() };
            self.fail_rollout(c, last.unwrap_or_else(unknown));
            return;
        }
        // With fewer than the live revision has, if it must be; never with none.
        if new.ready >= goal || new.ready > 0 && (active.no_room || late) {
            rollout.phase = Phase::Switching;
            c.timers.cancel(Timer::Rollout(self.id()));
            self.enqueue(c, Op::Switch { number });
            return;
        }
        let have = new.ready + new.starting;
        if have < goal {
            let grounds = Grounds::Deploy { number, live: old.ready + old.starting };
            active.remember_decision(Decided { at: now, from: have, to: goal, grounds });
        }
        for _ in have..goal {
            self.want(c, number, Reason::Deploy, None);
        }
    }

    /// A sandbox of the revision that is being rolled out was ready and ended: before the switch that
    /// is as good as a start that failed.
    pub(crate) fn rollout_exited(&mut self, c: &mut Cluster, number: u32, failure: StartFailure) {
        let rollout = self.active.as_deref().and_then(|active| active.rollout.as_ref());
        let building = rollout.is_some_and(|rollout| {
            rollout.number == number && matches!(rollout.phase, Phase::Building { .. })
        });
        if building && failure.cause != Cause::Stopped {
            self.rollout_start_failed(c, failure);
        } else {
            self.roll_out(c);
        }
    }

    /// A start of the revision that is being rolled out failed.
    pub(crate) fn rollout_start_failed(&mut self, c: &mut Cluster, failure: StartFailure) {
        let Some(rollout) = self.active.as_deref_mut().and_then(|a| a.rollout.as_mut()) else {
            return;
        };
        rollout.failed += 1;
        let at_once = failure.fault == Fault::Function
            && matches!(rollout.phase, Phase::Checking { .. })
            || rollout.failed >= TRIES;
        let undecided = matches!(rollout.phase, Phase::Checking { .. } | Phase::Building { .. });
        if at_once && undecided {
            self.fail_rollout(c, failure);
        } else {
            self.roll_out(c);
        }
    }

    /// A worker would not start a sandbox of the revision that is being rolled out.
    pub(crate) fn rollout_refused(&mut self, number: u32, why: String) {
        let rollout = self.active.as_deref_mut().and_then(|active| active.rollout.as_mut());
        if let Some(rollout) = rollout.filter(|rollout| rollout.number == number) {
            rollout.refused = Some(why);
        }
    }

    fn fail_rollout(&mut self, c: &mut Cluster, failure: StartFailure) {
        let id = self.id();
        let Some(rollout) = self.active.as_deref_mut().and_then(|a| a.rollout.as_mut()) else {
            return;
        };
        let number = rollout.number;
        rollout.phase = Phase::Switching;
        c.timers.cancel(Timer::Rollout(id));
        self.enqueue(c, Op::Fail { number, failure });
    }

    /// The deploy waited long enough.
    pub(crate) fn rollout_late(&mut self, c: &mut Cluster) {
        let timeout = self.coming_settings().start_timeout;
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(rollout) = active.rollout.as_mut() else { return };
        let number = rollout.number;
        match &mut rollout.phase {
            Phase::Checking { .. } if active.books.wanted.is_empty() => {
                // It has a worker: that one keeps the start's own time-out and reports it. If it was
                // told to stop, there is another one.
                c.timers.set(Timer::Rollout(self.id()), c.now.after(timeout));
                self.roll_out(c);
            }
            Phase::Checking { .. } => {
                let mut message = format!(
                    "no worker had room for a sandbox of it within {timeout:?}; `dirigent workers` \
                     shows what is reserved"
                );
                if let Some(why) = &rollout.refused {
                    message = format!("{message}; the last one asked said: {why}");
                }
                let cause = Cause::CreateFailed { message };
                let failure = StartFailure { cause, fault: Fault::Worker, log_tail: Vec::new() };
                self.fail_rollout(c, failure);
            }
            Phase::Building { .. } => self.build_up(c, number),
            Phase::Switching => {}
            Phase::Applying { missing, .. } => {
                missing.clear();
                self.roll_out(c);
            }
        }
    }

    /// No worker has room for the first sandbox, and nobody else has one to spare: one of the live
    /// revision is given up for it, an idle one if there is one.
    pub(crate) fn make_room(&mut self, c: &mut Cluster) {
        let function = self.id();
        let n = self.target_concurrency().max(1);
        let Some(active) = self.active.as_deref_mut() else { return };
        let unheld = active.books.unheld.first().copied();
        let Some(rollout) = active.rollout.as_mut() else { return };
        if !matches!(rollout.phase, Phase::Checking { .. }) || rollout.makes_room {
            return;
        }
        rollout.makes_room = true;
        if let Some(sandbox) = unheld {
            self.stop(c, sandbox);
        } else if self.recall_idle(c, n) == 0
            && let Some((holder, _)) = self
                .activate()
                .levels
                .holding()
                .filter(|(id, _)| c.peers.is_attached(*id))
                .max_by_key(|(_, level)| level.books)
        {
            self.level(c, holder, |level| level.recalling += n);
            c.tell(holder, ToDataPlane::Recall { function, n, idle_only: false });
        }
    }

    /// A data plane binds nothing to other revisions than those of this version any more.
    pub(crate) fn applied(&mut self, c: &mut Cluster, by: DataPlaneId, heard: Option<u64>) {
        self.counts_again(c, by, heard);
        let Some(rollout) = self.active.as_deref_mut().and_then(|a| a.rollout.as_mut()) else {
            return;
        };
        if let Phase::Applying { version, missing, .. } = &mut rollout.phase
            && heard.is_none_or(|heard| heard >= *version)
        {
            missing.remove(&by);
            self.roll_out(c);
        }
    }

    /// The switch is durable and was told: capacity of the new revision is handed out, then that
    /// of the old one is called back.
    pub(crate) fn switched(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_deref() else { return };
        let mut held: Vec<(u32, DataPlaneId)> = active
            .levels
            .holding()
            .filter(|(id, _)| c.peers.is_attached(*id))
            .map(|(id, level)| (level.books, id))
            .collect();
        self.serve(c);
        let unheld: Vec<SandboxId> = self
            .active
            .as_ref()
            .map(|active| active.books.unheld.iter().copied().collect())
            .unwrap_or_default();
        for sandbox in unheld {
            // To whom held most of the old one and has not got its like yet.
            held.sort_unstable();
            if let Some((most, to)) = held.last_mut()
                && *most > 0
            {
                let to = *to;
                let slots = self.activate().change(sandbox, |entry| {
                    entry.cause = Some(to);
                    entry.concurrency.max(1)
                });
                *most = most.saturating_sub(slots.unwrap_or(1));
            }
            self.offer(c, sandbox);
        }
        self.recall_strays(c);
        let Some(target) = self.record.targets.first().copied() else { return };
        if !self.is_rolling_out(target.revision) {
            return;
        }
        let auth = self.record.settings.auth;
        let serves = |id: &DataPlaneId| c.peers.may_serve(*id, auth);
        let missing = c.peers.subscribed(&self.record.name).filter(serves).collect();
        let (version, until) = (self.version, c.now.after(APPLY));
        c.timers.set(Timer::Rollout(self.id()), until);
        if let Some(rollout) = self.activate().rollout.as_mut() {
            rollout.phase = Phase::Applying { version, missing, until };
        }
    }

    /// Sandboxes of revisions that are neither targets nor being rolled out are called back.
    pub(crate) fn recall_strays(&mut self, c: &mut Cluster) {
        if c.recovering {
            c.look_at(self.id());
            return;
        }
        let Some(active) = self.active.as_deref() else { return };
        let strays: Vec<SandboxId> = active
            .sandboxes
            .values()
            .filter(|s| matches!(s.stage, Stage::Ready | Stage::Starting | Stage::Wanted))
            .filter(|s| {
                let number = s.number;
                !self.is_target(number) && !self.is_rolling_out(number)
            })
            .map(|s| s.id)
            .collect();
        for sandbox in strays {
            self.recall(c, sandbox);
        }
    }

    /// The delete is durable: the name is free, and everything is called back.
    pub(crate) fn deleted(&mut self, c: &mut Cluster) {
        let id = self.id();
        let active = self.activate();
        active.deleted = true;
        active.rollout = None;
        let waiters = std::mem::take(&mut active.waiters);
        c.timers.cancel(Timer::Rollout(id));
        c.timers.disarm(&mut active.armed.windows, Timer::Windows(id));
        for (request, _) in waiters {
            c.waiters.remove(&request);
            let name = self.record.name.clone();
            c.reply(request, Err(Refusal::NotFound { name }));
        }
        self.publish(c);
        self.recall_strays(c);
    }
}
