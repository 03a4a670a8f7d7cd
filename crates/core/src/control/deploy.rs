//! Changes of one function's record, one write on its way at a time, and the deploy that follows a
//! new revision.
//!
//! An operation is planned against the durable record only when the write before it is settled, so
//! that a refused write needs no undoing. What depends on a write happens when it is durable.
//!
//! A write whose outcome is unknown is written again, whole, until it is known; who asked for it
//! hears at once that it is in doubt. Writing the same record twice changes nothing.
//!
//! ```text
//! Checking --ready--> Building --capacity--> Switching --durable--> Applying --applied--> done
//!     \--start failed--> Failed (written), the live revision stays
//! ```

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    Cause, DataPlaneId, Fault, FunctionRecord, RequestId, RevisionId, RevisionRecord,
    RevisionState, SandboxId, Settings, Spec, StartFailure, Target, Time, Write, WriteToken,
    control::{
        Answer, Effect, Outcome, Refusal,
        cluster::{Author, Cluster},
        function::Function,
        sandbox::{Reason, Stage},
        timers::Timer,
    },
    frame::ToDataPlane,
};

/// Revisions kept of a function.
const KEPT: usize = 10;
/// A deploy waits so long for data planes to apply the switch.
const APPLY: Duration = Duration::from_secs(2);
/// A write is tried again after this.
const REWRITE: Duration = Duration::from_secs(1);
/// Failed starts in a row, by fault of workers or while building up, that fail a deploy.
const TRIES: u32 = 3;

/// A change of the record.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Deploy {
        request: RequestId,
        spec: Arc<Spec>,
        settings: Arc<Settings>,
        check: bool,
        wall_ms: u64,
    },
    Rollback {
        request: RequestId,
        to: Option<u32>,
    },
    Delete {
        request: RequestId,
    },
    /// Invocations go to this revision from now on.
    Switch {
        number: u32,
    },
    /// This revision's check failed.
    Fail {
        number: u32,
        failure: StartFailure,
    },
}

impl Op {
    /// Who waits for it.
    pub(crate) const fn request(&self) -> Option<RequestId> {
        match self {
            Self::Deploy { request, .. }
            | Self::Rollback { request, .. }
            | Self::Delete { request } => Some(*request),
            Self::Switch { .. } | Self::Fail { .. } => None,
        }
    }
}

/// A write on its way.
#[derive(Debug)]
pub(crate) struct Writing {
    /// `None` while it waits to be written again.
    token: Option<WriteToken>,
    op: Op,
    /// The record as it will be; `None` deletes it.
    record: Option<Arc<FunctionRecord>>,
    /// The answer, once durable.
    answer: Option<Answer>,
    /// The revision that is rolled out once durable.
    begins: Option<u32>,
    /// Its outcome was unknown: whoever asked has heard so.
    in_doubt: bool,
}

/// What an operation comes to.
enum Plan {
    /// Nothing needs to be written.
    Done(Result<Answer, Refusal>),
    /// This needs to be written; `begins` is the revision whose rollout starts then.
    Write { record: Option<FunctionRecord>, answer: Option<Answer>, begins: Option<u32> },
    /// It has lost its point.
    Void,
}

/// A deploy that is going on.
#[derive(Debug)]
pub(crate) struct Rollout {
    pub(crate) number: u32,
    pub(crate) phase: Phase,
    /// Failed starts in a row.
    failed: u32,
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

impl Rollout {
    /// Whether a recorded revision is on its way to be live.
    pub(crate) const fn is_going(state: RevisionState) -> bool {
        matches!(state, RevisionState::Pending | RevisionState::Checking | RevisionState::Ready)
    }
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
                    active.sandboxes.values().any(|s| s.revision.number == revision.number)
                }) =>
            {
                RevisionState::Retiring
            }
            (state, _) => state,
        }
    }

    // ------------------------------------------------------------------------ operations, writes

    pub(crate) fn enqueue(&mut self, c: &mut Cluster, op: Op) {
        if let Op::Deploy { spec, .. } = &op {
            // Held from here on, so that nobody discards it while the write is on its way.
            c.artifacts.hold(spec.artifact);
        }
        self.requeue(c, op);
    }

    /// Like `enqueue`, for an operation that was queued before and holds its artifact.
    pub(crate) fn requeue(&mut self, c: &mut Cluster, op: Op) {
        self.activate().ops.push_back(op);
        self.next_op(c);
    }

    /// Plans operations until one needs a write.
    fn next_op(&mut self, c: &mut Cluster) {
        loop {
            let Some(active) = self.active.as_deref_mut() else { return };
            if active.writing.is_some() || active.deleted {
                return;
            }
            let Some(op) = active.ops.pop_front() else { return };
            match self.plan(c, &op) {
                Plan::Void => {}
                Plan::Done(result) => {
                    self.let_go(c, &op);
                    if let Some(request) = op.request() {
                        c.reply(request, result);
                    }
                }
                Plan::Write { record, answer, begins } => {
                    let record = record.map(Arc::new);
                    let in_doubt = false;
                    let writing = Writing { token: None, op, record, answer, begins, in_doubt };
                    self.activate().writing = Some(writing);
                    self.write(c);
                }
            }
        }
    }

    /// Sends the write that is due, for the first time or again.
    pub(crate) fn write(&mut self, c: &mut Cluster) {
        let id = self.id();
        let Some(writing) = self.active.as_deref_mut().and_then(|a| a.writing.as_mut()) else {
            return;
        };
        if writing.token.is_none() {
            let write = match &writing.record {
                Some(record) => Write::PutFunction(Arc::clone(record)),
                None => Write::DeleteFunction(id),
            };
            writing.token = Some(c.persist(Author::Function(id), write));
        }
    }

    /// The store answered.
    pub(crate) fn written(&mut self, c: &mut Cluster, token: WriteToken, outcome: Outcome) {
        let id = self.id();
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(mut writing) = active.writing.take_if(|w| w.token == Some(token)) else { return };
        match outcome {
            Outcome::Ok { revision } => {
                self.version = c.raise_version(revision);
                self.durable(c, writing);
            }
            Outcome::Refused if !writing.in_doubt && writing.op.request().is_some() => {
                self.let_go(c, &writing.op);
                if let Some(request) = writing.op.request() {
                    c.reply(request, Err(Refusal::StoreUnavailable));
                }
            }
            Outcome::Refused | Outcome::Unknown => {
                if let Some(request) = writing.op.request()
                    && !writing.in_doubt
                {
                    c.reply(request, Err(Refusal::InDoubt));
                    writing.in_doubt = true;
                }
                writing.token = None;
                active.writing = Some(writing);
                c.timers.set(Timer::Rewrite(id), c.now.after(REWRITE));
            }
        }
        self.next_op(c);
    }

    /// An operation that is over no longer holds its artifact.
    fn let_go(&self, c: &mut Cluster, op: &Op) {
        if let Op::Deploy { spec, .. } = op {
            let unused = c.artifacts.release(spec.artifact);
            discard(c, unused.into_iter().collect());
        }
    }

    fn durable(&mut self, c: &mut Cluster, writing: Writing) {
        let Writing { op, record, answer, begins, in_doubt, .. } = writing;
        let reply = |c: &mut Cluster, answer: Option<Answer>| {
            if let (Some(request), Some(answer), false) = (op.request(), answer, in_doubt) {
                c.reply(request, Ok(answer));
            }
        };
        let Some(record) = record else {
            let unused = c.artifacts.release_all(&self.record);
            discard(c, unused);
            reply(c, answer);
            self.deleted(c);
            return;
        };
        c.artifacts.hold_all(&record);
        let before = std::mem::replace(&mut self.record, record);
        let mut unused = c.artifacts.release_all(&before);
        if let Op::Deploy { spec, .. } = &op {
            unused.extend(c.artifacts.release(spec.artifact));
        }
        self.activate().unborn = false;
        reply(c, answer);
        let switched = before.targets != self.record.targets;
        if switched || before.settings != self.record.settings || before.revisions.is_empty() {
            self.publish(c);
        }
        match op {
            Op::Fail { number, failure } => self.settle_revision(c, number, Some(&failure)),
            Op::Deploy { .. } | Op::Rollback { .. } | Op::Switch { .. } | Op::Delete { .. } => {}
        }
        self.overtake(c);
        if let Some(number) = begins {
            self.begin_rollout(c, number);
        }
        if switched {
            self.switched(c);
        }
        discard(c, unused);
        self.roll_out(c);
    }

    fn plan(&self, c: &Cluster, op: &Op) -> Plan {
        match op {
            Op::Deploy { spec, settings, check, wall_ms, .. } => {
                self.plan_deploy(c, spec, settings, *check, *wall_ms)
            }
            Op::Rollback { to, .. } => self.plan_rollback(*to),
            Op::Delete { .. } => Plan::Write {
                record: None,
                answer: Some(Answer::Deleted { function: self.id() }),
                begins: None,
            },
            Op::Switch { number } => {
                let mut record = FunctionRecord::clone(&self.record);
                if !self.is_rolling_out(*number) || !make_live(&mut record, *number) {
                    return Plan::Void;
                }
                Plan::Write { record: Some(record), answer: None, begins: None }
            }
            Op::Fail { number, failure } => {
                let mut record = FunctionRecord::clone(&self.record);
                let revision = record.revisions.iter_mut().find(|r| r.number == *number);
                let Some(revision) = revision.filter(|r| Rollout::is_going(r.state)) else {
                    return Plan::Void;
                };
                revision.state = RevisionState::Failed;
                revision.failure = Some(failure.clone());
                Plan::Write { record: Some(record), answer: None, begins: None }
            }
        }
    }

    fn plan_deploy(
        &self,
        c: &Cluster,
        spec: &Arc<Spec>,
        settings: &Arc<Settings>,
        check: bool,
        wall_ms: u64,
    ) -> Plan {
        let revisions = &self.record.revisions;
        let going = revisions.iter().find(|r| Rollout::is_going(r.state));
        let live = self.record.targets.first().and_then(|t| self.revision(t.revision));
        let same = |r: &&RevisionRecord| &r.spec == spec;
        let mut record = FunctionRecord::clone(&self.record);
        record.settings = Arc::clone(settings);
        let settings_differ = &self.record.settings != settings;
        let begins;
        let number = match (going, live) {
            // It is on its way already.
            (Some(going), _) if same(&going) => {
                let at_once = !check && make_live(&mut record, going.number);
                if !at_once && !settings_differ {
                    return Plan::Done(Ok(self.answer(going.number, false)));
                }
                begins = at_once.then_some(going.number);
                going.number
            }
            (going, Some(live)) if same(&live) => {
                if going.is_none() && !settings_differ {
                    return Plan::Done(Ok(self.answer(live.number, false)));
                }
                // Going back to what is live ends the deploy that was going on.
                retire_going(&mut record);
                begins = None;
                live.number
            }
            (_, _) => {
                if let Err(message) = c.fleet.possible(spec) {
                    return Plan::Done(Err(Refusal::Impossible { message }));
                }
                retire_going(&mut record);
                let number = revisions.iter().map(|r| r.number).max().unwrap_or(0) + 1;
                record.revisions.push(RevisionRecord {
                    number,
                    spec: Arc::clone(spec),
                    state: RevisionState::Checking,
                    created_ms: wall_ms,
                    failure: None,
                });
                if !check {
                    make_live(&mut record, number);
                }
                prune(&mut record);
                begins = Some(number);
                number
            }
        };
        let answer = Some(answer_of(&record, number));
        Plan::Write { record: Some(record), answer, begins }
    }

    fn plan_rollback(&self, to: Option<u32>) -> Plan {
        let live = self.record.targets.first().map(|target| target.revision);
        let back = || {
            let earlier = self.record.revisions.iter().rev();
            earlier
                .filter(|r| live.is_some_and(|live| r.number < live))
                .find(|r| r.state != RevisionState::Failed)
                .map(|r| r.number)
        };
        let number = to.or_else(back).unwrap_or(0);
        if self.revision(number).is_none() {
            let name = self.record.name.clone();
            return Plan::Done(Err(Refusal::NoRevision { name, number }));
        }
        let going = self.record.revisions.iter().find(|r| Rollout::is_going(r.state));
        if going.map_or(live, |going| Some(going.number)) == Some(number) {
            return Plan::Done(Ok(self.answer(number, false)));
        }
        let mut record = FunctionRecord::clone(&self.record);
        retire_going(&mut record);
        if live != Some(number) {
            for revision in record.revisions.iter_mut().filter(|r| r.number == number) {
                revision.state = RevisionState::Checking;
                revision.failure = None;
            }
        }
        let begins = (live != Some(number)).then_some(number);
        let answer = Some(answer_of(&record, number));
        Plan::Write { record: Some(record), answer, begins }
    }

    fn answer(&self, number: u32, changed: bool) -> Answer {
        let state = self.revision(number).map_or(RevisionState::Retired, |r| self.state_of(r));
        Answer::Deployed {
            name: self.record.name.clone(),
            revision: RevisionId { function: self.id(), number },
            state,
            changed,
        }
    }

    // ------------------------------------------------------------------------ the deploy gate

    /// A deploy that is not the record's any more is over.
    fn overtake(&mut self, c: &mut Cluster) {
        let Some(rollout) = self.active.as_deref().and_then(|a| a.rollout.as_ref()) else { return };
        let number = rollout.number;
        let state = self.revision(number).map(|r| r.state);
        let goes_on = state.is_some_and(Rollout::is_going) || self.is_target(number);
        if !goes_on {
            self.settle_revision(c, number, None);
        }
    }

    /// The rollout of a revision is over: who waited hears it, and what is not a target goes.
    fn settle_revision(&mut self, c: &mut Cluster, number: u32, failure: Option<&StartFailure>) {
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
        let until = c.now.after(self.record.settings.start_timeout);
        let phase = Phase::Checking { until };
        c.timers.set(Timer::Rollout(self.id()), until);
        let active = self.activate();
        active.rollout = Some(Rollout { number, phase, failed: 0, makes_room: false });
        // What was wrong with an earlier revision says nothing of this one.
        active.crashes = super::function::Crashes::default();
    }

    /// Takes the deploy as far as it goes now.
    pub(crate) fn roll_out(&mut self, c: &mut Cluster) {
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
            Phase::Checking { .. } => {
                let until = c.now.after(self.record.settings.start_timeout);
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
        let (min, max) = (self.record.settings.min, self.record.settings.max);
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
        if new.ready >= goal || active.no_room || late {
            rollout.phase = Phase::Switching;
            c.timers.cancel(Timer::Rollout(self.id()));
            self.enqueue(c, Op::Switch { number });
            return;
        }
        for _ in new.ready + new.starting..goal {
            self.want(c, number, Reason::Deploy, None);
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
        let timeout = self.record.settings.start_timeout;
        let Some(active) = self.active.as_deref_mut() else { return };
        let Some(rollout) = active.rollout.as_mut() else { return };
        let number = rollout.number;
        match &mut rollout.phase {
            Phase::Checking { .. } if active.books.wanted.is_empty() => {
                // It has a worker: that one keeps the start's own time-out and reports it.
                c.timers.set(Timer::Rollout(self.id()), c.now.after(timeout));
            }
            Phase::Checking { .. } => {
                let message = format!(
                    "no worker had room for a sandbox of it within {timeout:?}; `dirigent workers` \
                     shows what is reserved"
                );
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
        } else if self.recall_idle(c, n, None) == 0
            && let Some((&holder, level)) = self
                .activate()
                .levels
                .iter_mut()
                .filter(|(id, level)| level.books > 0 && c.peers.is_attached(**id))
                .max_by_key(|(_, level)| level.books)
        {
            level.recalling += n;
            c.tell(holder, ToDataPlane::Recall { function, n, idle_only: false });
        }
    }

    /// A data plane binds nothing to other revisions than those of this version any more.
    pub(crate) fn applied(&mut self, c: &mut Cluster, by: DataPlaneId, heard: Option<u64>) {
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
    fn switched(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_deref() else { return };
        let mut held: Vec<(u32, DataPlaneId)> = active
            .levels
            .iter()
            .filter(|(id, level)| level.books > 0 && c.peers.is_attached(**id))
            .map(|(id, level)| (level.books, *id))
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
        let missing = c.peers.subscribed(&self.record.name).collect();
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
                let number = s.revision.number;
                active.deleted || !(self.is_target(number) || self.is_rolling_out(number))
            })
            .map(|s| s.id)
            .collect();
        for sandbox in strays {
            self.recall(c, sandbox);
        }
    }

    /// The delete is durable: the name is free, and everything is called back.
    fn deleted(&mut self, c: &mut Cluster) {
        let id = self.id();
        let active = self.activate();
        active.deleted = true;
        active.rollout = None;
        let waiters = std::mem::take(&mut active.waiters);
        c.timers.cancel(Timer::Rollout(id));
        for (request, _) in waiters {
            c.waiters.remove(&request);
            let name = self.record.name.clone();
            c.reply(request, Err(Refusal::NotFound { name }));
        }
        self.publish(c);
        self.recall_strays(c);
    }

    /// What waited behind the delete of the name, for whoever has the name next.
    pub(crate) fn take_ops(&mut self) -> VecDeque<Op> {
        self.active
            .as_deref_mut()
            .filter(|active| active.writing.is_none())
            .map(|active| std::mem::take(&mut active.ops))
            .unwrap_or_default()
    }

    /// Whether a write's outcome is not known: nothing new is taken on until it is.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.active
            .as_ref()
            .and_then(|active| active.writing.as_ref())
            .is_some_and(|writing| writing.in_doubt)
    }
}

/// Invocations go to this revision; true if they did not before.
fn make_live(record: &mut FunctionRecord, number: u32) -> bool {
    if !record.revisions.iter().any(|revision| revision.number == number) {
        return false;
    }
    for revision in &mut record.revisions {
        if revision.number == number {
            revision.state = RevisionState::Live;
            revision.failure = None;
        } else if revision.state == RevisionState::Live {
            revision.state = RevisionState::Retired;
        }
    }
    let targets = vec![Target { revision: number, weight: 100 }];
    let changes = record.targets != targets;
    record.targets = targets;
    changes
}

/// A deploy that is going on is given up.
fn retire_going(record: &mut FunctionRecord) {
    for revision in record.revisions.iter_mut().filter(|r| Rollout::is_going(r.state)) {
        revision.state = RevisionState::Retired;
    }
}

/// The oldest revisions go, but never a target or the newest.
fn prune(record: &mut FunctionRecord) {
    while record.revisions.len() > KEPT {
        let newest = record.revisions.len() - 1;
        let oldest = record.revisions.iter().take(newest).position(|revision| {
            !record.targets.iter().any(|target| target.revision == revision.number)
        });
        let Some(oldest) = oldest else { return };
        record.revisions.remove(oldest);
    }
}

fn answer_of(record: &FunctionRecord, number: u32) -> Answer {
    let revision = record.revisions.iter().find(|r| r.number == number);
    Answer::Deployed {
        name: record.name.clone(),
        revision: RevisionId { function: record.id, number },
        state: revision.map_or(RevisionState::Retired, |r| r.state),
        changed: true,
    }
}

fn discard(c: &mut Cluster, digests: Vec<crate::Digest>) {
    if !digests.is_empty() {
        c.fleet.discard(&digests);
        c.effects.push_back(Effect::DiscardArtifacts { digests });
    }
}
