//! What users ask for.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    FunctionId, FunctionName, FunctionRecord, RequestId, RevisionId, RevisionState, Settings, Spec,
    control::{
        Answer, Call, Control, Refusal, cluster::MAX_WAITERS, function::Function, record::Op,
        tokens::Change,
    },
};

/// Operations that may wait for a write of one function.
const MAX_OPS: u32 = 64;

impl Control {
    pub(super) fn asked(&mut self, request: RequestId, call: Call, wall_ms: u64) {
        let result = match call {
            Call::Deploy { name, spec, settings, check } => {
                self.deploy(&name, Op::Deploy { request, spec, settings, check, wall_ms });
                return;
            }
            Call::Rollback { name, to } => {
                return self.operate(&name, Op::Rollback { request, to });
            }
            Call::Delete { name } => return self.operate(&name, Op::Delete { request }),
            Call::AwaitRevision { revision } => match self.await_revision(request, revision) {
                Some(result) => result,
                None => return,
            },
            Call::List { after, limit } => Ok(Answer::Functions(self.list(after, limit))),
            Call::Describe { name } => self.describe(&name),
            Call::Environment { name, revision } => self.environment(&name, revision),
            Call::Workers => Ok(Answer::Workers(self.cluster.fleet.summaries())),
            Call::DescribeWorker { name } => self.describe_worker(&name),
            Call::DataPlanes => Ok(Answer::DataPlanes(self.data_planes())),
            Call::Order { whom, duty } => return self.order(request, whom, duty),
            Call::Remove { whom, force } => return self.remove(request, whom, force),
            Call::Top { limit } => Ok(Answer::Top(self.top(limit))),
            Call::Tokens => Ok(Answer::Tokens(self.tokens.known().all().to_vec())),
            Call::MakeToken { token } => {
                return self.change_tokens(request, Change::Make(token), wall_ms);
            }
            Call::RevokeToken { name } => {
                return self.change_tokens(request, Change::Revoke(name), wall_ms);
            }
        };
        self.cluster.reply(request, result);
    }

    fn change_tokens(&mut self, request: RequestId, change: Change, wall_ms: u64) {
        let refusal = self.tokens.change(&mut self.cluster, request, change, wall_ms);
        if let Some(refusal) = refusal {
            self.cluster.reply(request, Err(refusal));
        }
    }

    pub(super) fn asker_left(&mut self, request: RequestId) {
        let Some(id) = self.cluster.waiters.remove(&request) else { return };
        if let Some(active) = self.functions.get_mut(&id).and_then(|f| f.active.as_deref_mut()) {
            active.waiters.retain(|(waiter, _)| *waiter != request);
        }
        self.settle(id);
    }

    fn deploy(&mut self, name: &FunctionName, op: Op) {
        let op = match op {
            Op::Deploy { request, spec, settings, check, wall_ms } => {
                let spec: Arc<Spec> = self.specs.intern(&spec);
                let settings: Arc<Settings> = self.settings.intern(&settings);
                Op::Deploy { request, spec, settings, check, wall_ms }
            }
            op @ (Op::Rollback { .. }
            | Op::Delete { .. }
            | Op::Switch { .. }
            | Op::Pin { .. }
            | Op::Fail { .. }) => op,
        };
        let id = match self.names.get(name) {
            Some(&id) => id,
            None => self.conceive(name),
        };
        self.take_on(id, op);
    }

    /// A function that nobody but its deployer knows, until its record is durable.
    fn conceive(&mut self, name: &FunctionName) -> FunctionId {
        self.next_function += 1;
        let id = FunctionId::new(self.cluster.epoch(), self.next_function);
        let record = FunctionRecord {
            id,
            name: name.clone(),
            settings: self.settings.intern(&Arc::new(Settings::default())),
            next: None,
            revisions: Vec::new(),
            targets: Vec::new(),
        };
        let mut function = Function::new(Arc::new(record), self.cluster.version());
        function.activate().unborn = true;
        self.functions.insert(id, function);
        self.names.insert(name.clone(), id);
        id
    }

    fn operate(&mut self, name: &FunctionName, op: Op) {
        match self.names.get(name) {
            Some(&id) if self.is_known(id) || matches!(op, Op::Delete { .. }) => {
                self.take_on(id, op);
            }
            _ => {
                if let Some(request) = op.request() {
                    let name = name.clone();
                    self.cluster.reply(request, Err(Refusal::NotFound { name }));
                }
            }
        }
    }

    fn is_known(&self, id: FunctionId) -> bool {
        self.functions
            .get(&id)
            .is_some_and(|f| f.active.as_ref().is_none_or(|active| !active.unborn))
    }

    fn take_on(&mut self, id: FunctionId, op: Op) {
        let Some(function) = self.functions.get_mut(&id) else { return };
        let waiting = function.active.as_ref().map_or(0, |active| active.ops.len());
        let refusal = if function.is_in_doubt() {
            Some(Refusal::StoreUnavailable)
        } else if waiting >= MAX_OPS as usize {
            Some(Refusal::Busy { limit: MAX_OPS })
        } else {
            None
        };
        match (refusal, op.request()) {
            (Some(refusal), Some(request)) => self.cluster.reply(request, Err(refusal)),
            (_, _) => function.enqueue(&mut self.cluster, op),
        }
        self.settle(id);
    }

    /// A name came free with operations waiting for it: they go on with the name's next function.
    pub(super) fn pass_on(&mut self, name: &FunctionName, ops: VecDeque<Op>) {
        for op in ops {
            let is_deploy = matches!(op, Op::Deploy { .. });
            let id = match self.names.get(name) {
                Some(&id) => Some(id),
                None => is_deploy.then(|| self.conceive(name)),
            };
            match id.and_then(|id| self.functions.get_mut(&id)) {
                Some(function) => function.requeue(&mut self.cluster, op),
                None => {
                    if let Some(request) = op.request() {
                        let name = name.clone();
                        self.cluster.reply(request, Err(Refusal::NotFound { name }));
                    }
                }
            }
        }
        if let Some(&id) = self.names.get(name) {
            self.settle(id);
        }
    }

    /// The answer, if it can be given now.
    fn await_revision(
        &mut self,
        request: RequestId,
        revision: RevisionId,
    ) -> Option<Result<Answer, Refusal>> {
        let settled = |state, failure| Some(Ok(Answer::Settled { revision, state, failure }));
        let id = revision.function;
        let Some(function) = self.functions.get_mut(&id) else {
            return settled(RevisionState::Retired, None);
        };
        let number = revision.number;
        let known = function.revision(number).map(|r| (r.state, r.failure.clone()));
        let (state, failure) = known.unwrap_or((RevisionState::Retired, None));
        let deleted = function.active.as_ref().is_some_and(|active| active.deleted);
        if deleted || (!function.is_rolling_out(number) && !state.is_going()) {
            return settled(state, failure);
        }
        if self.cluster.waiters.len() >= MAX_WAITERS as usize {
            return Some(Err(Refusal::Busy { limit: MAX_WAITERS }));
        }
        self.cluster.waiters.insert(request, id);
        function.activate().waiters.push((request, number));
        None
    }
}
