//! Changes of one function's record, one write on its way at a time.
//!
//! An operation is planned against the durable record only when the write before it is settled, so
//! that a refused write needs no undoing. What depends on a write happens when it is durable.
//!
//! A write whose outcome is unknown is written again, whole, until it is known; who asked for it
//! hears at once that it is in doubt. Writing the same record twice changes nothing.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Digest, FunctionRecord, RequestId, RevisionId, RevisionRecord, RevisionState, SandboxId,
    Settings, Spec, StartFailure, Target, Write, WriteToken,
    control::{
        Answer, Effect, Outcome, REWRITE, Refusal,
        cluster::{Author, Cluster},
        function::Function,
        timers::Timer,
    },
};

/// Revisions kept of a function.
const KEPT: usize = 10;

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
    /// The tag of this revision's image stands for this digest from now on.
    Pin {
        number: u32,
        digest: Digest,
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
            Self::Switch { .. } | Self::Pin { .. } | Self::Fail { .. } => None,
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

impl Function {
    pub(crate) fn enqueue(&mut self, c: &mut Cluster, op: Op) {
        if let Op::Deploy { spec, .. } = &op {
            // Held from here on, so that nobody discards it while the write is on its way.
            c.artifacts.hold(spec.artifact);
        }
        self.requeue(c, op);
    }

    /// A worker found out what the tag of a revision's image stands for. The first one to say so settles it
    /// for all sandboxes of the revision.
    pub(crate) fn image_resolved(&mut self, c: &mut Cluster, sandbox: SandboxId, digest: Digest) {
        let entry = self.active.as_deref().and_then(|active| active.sandboxes.get(&sandbox));
        let Some(number) = entry.map(|entry| entry.number) else { return };
        let unresolved = self.revision(number).is_some_and(|r| r.spec.unresolved_image().is_some());
        if unresolved && !self.is_pinning(number) {
            self.enqueue(c, Op::Pin { number, digest });
        }
    }

    /// Whether a digest of a revision's image is on its way to the store.
    pub(crate) fn is_pinning(&self, number: u32) -> bool {
        let Some(active) = self.active.as_deref() else { return false };
        let ops = active.writing.iter().map(|writing| &writing.op).chain(&active.ops);
        ops.into_iter().any(|op| matches!(op, Op::Pin { number: n, .. } if *n == number))
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
                self.refuse_waiting(c);
            }
        }
        self.next_op(c);
    }

    /// Nobody waits for a store that does not take the write before: nothing of these was tried.
    fn refuse_waiting(&mut self, c: &mut Cluster) {
        let ops = std::mem::take(&mut self.activate().ops);
        let (asked, own): (VecDeque<Op>, _) =
            ops.into_iter().partition(|op| op.request().is_some());
        self.activate().ops = own;
        for op in asked {
            self.let_go(c, &op);
            if let Some(request) = op.request() {
                c.reply(request, Err(Refusal::StoreUnavailable));
            }
        }
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
        if self.record.settings.min < before.settings.min {
            self.unpin(c);
            self.offer_unheld(c);
        }
        if self.record.settings.max < before.settings.max {
            self.shrink(c);
        }
        match op {
            Op::Fail { number, failure } => self.settle_revision(c, number, Some(&failure)),
            Op::Deploy { .. }
            | Op::Rollback { .. }
            | Op::Switch { .. }
            | Op::Pin { .. }
            | Op::Delete { .. } => {}
        }
        self.overtake(c);
        if let Some(number) = begins {
            self.begin_rollout(c, number);
        }
        if switched {
            self.switched(c);
        }
        let going = self.record.revisions.iter().any(|r| r.state.is_going());
        if going && self.active.as_ref().is_some_and(|active| active.rollout.is_none()) {
            // An earlier leader began it, and it was not taken up yet.
            c.look_at(self.id());
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
            Op::Pin { number, digest } => {
                let mut record = FunctionRecord::clone(&self.record);
                let revision = record.revisions.iter_mut().find(|r| r.number == *number);
                let Some(revision) = revision.filter(|r| r.spec.unresolved_image().is_some())
                else {
                    return Plan::Void;
                };
                revision.spec = Arc::new(revision.spec.pinned(*digest));
                Plan::Write { record: Some(record), answer: None, begins: None }
            }
            Op::Fail { number, failure } => {
                let mut record = FunctionRecord::clone(&self.record);
                let revision = record.revisions.iter_mut().find(|r| r.number == *number);
                let Some(revision) = revision.filter(|r| r.state.is_going()) else {
                    return Plan::Void;
                };
                revision.state = RevisionState::Failed;
                revision.failure = Some(failure.clone());
                record.next = None;
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
        let going = revisions.iter().find(|r| r.state.is_going());
        let live = self.record.targets.first().and_then(|t| self.revision(t.revision));
        let same = |r: &&RevisionRecord| &r.spec == spec;
        let mut record = FunctionRecord::clone(&self.record);
        let settings_differ = self.coming_settings() != settings;
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
                // What runs may be of a number that the store, restored from an older copy, forgot.
                let booked = self.active.iter().flat_map(|active| active.sandboxes.values());
                let booked = booked.map(|sandbox| sandbox.number);
                let claimed = c.claims.values().flatten().map(|claim| claim.revision);
                let claimed = claimed.filter(|id| id.function == self.id()).map(|id| id.number);
                let forgotten = booked.chain(claimed);
                let number = revisions.iter().map(|r| r.number).chain(forgotten).max();
                let number = number.unwrap_or(0) + 1;
                record.revisions.push(RevisionRecord {
                    number,
                    spec: Arc::clone(spec),
                    state: RevisionState::Checking,
                    created_ms: wall_ms,
                    failure: None,
                    born: c.epoch(),
                });
                if !check {
                    make_live(&mut record, number);
                }
                prune(&mut record);
                begins = Some(number);
                number
            }
        };
        let going = record.revisions.iter().any(|r| r.state.is_going());
        if going && !record.targets.is_empty() {
            record.next = (&record.settings != settings).then(|| Arc::clone(settings));
        } else {
            record.settings = Arc::clone(settings);
            record.next = None;
        }
        let answer = Some(answer_of(&record, number));
        Plan::Write { record: Some(record), answer, begins }
    }

    /// The settings that hold once the deploy that is going on is live, or those that hold.
    pub(crate) fn coming_settings(&self) -> &Arc<Settings> {
        self.record.next.as_ref().unwrap_or(&self.record.settings)
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
        let going = self.record.revisions.iter().find(|r| r.state.is_going());
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

    /// What waited behind the delete of the name, for whoever has the name next. What the deleted
    /// function's own deploy came to is nothing to the next one.
    pub(crate) fn take_ops(&mut self) -> VecDeque<Op> {
        let active = self.active.as_deref_mut().filter(|active| active.writing.is_none());
        let ops = active.map(|active| std::mem::take(&mut active.ops)).unwrap_or_default();
        ops.into_iter().filter(|op| op.request().is_some()).collect()
    }

    /// Whether a write's outcome is not known, or it waits to be written again: nothing new is
    /// taken on until it is durable.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.active
            .as_ref()
            .and_then(|active| active.writing.as_ref())
            .is_some_and(|writing| writing.in_doubt || writing.token.is_none())
    }
}

/// Invocations go to this revision, by the settings that came with it; true if they did not before.
fn make_live(record: &mut FunctionRecord, number: u32) -> bool {
    if !record.revisions.iter().any(|revision| revision.number == number) {
        return false;
    }
    for revision in &mut record.revisions {
        if revision.number == number {
            if revision.state.is_going()
                && let Some(settings) = record.next.take()
            {
                record.settings = settings;
            }
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
    record.next = None;
    for revision in record.revisions.iter_mut().filter(|r| r.state.is_going()) {
        revision.state = RevisionState::Retired;
    }
}

/// The oldest revisions go, first those that failed, to which nobody can go back; but never a target
/// or the newest.
fn prune(record: &mut FunctionRecord) {
    while record.revisions.len() > KEPT {
        let newest = record.revisions.len() - 1;
        let may_go = |revision: &RevisionRecord| {
            !record.targets.iter().any(|target| target.revision == revision.number)
        };
        let failed = |revision: &RevisionRecord| revision.state == RevisionState::Failed;
        let older = || record.revisions.iter().take(newest);
        let oldest = older()
            .position(|revision| may_go(revision) && failed(revision))
            .or_else(|| older().position(may_go));
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

fn discard(c: &mut Cluster, digests: Vec<Digest>) {
    if !digests.is_empty() {
        c.fleet.discard(&digests);
        c.effects.push_back(Effect::DiscardArtifacts { digests });
    }
}
