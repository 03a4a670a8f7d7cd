//! What users are shown. Values of a function's environment are secrets and are left out, but where
//! they alone are asked for.

use std::{ops::Bound, sync::Arc};

use crate::{
    FunctionName, Spec, Target,
    control::{
        Answer, Control, Decision, FailureDescription, FetchDescription, FunctionDescription,
        FunctionSummary, Refusal, RevisionDescription, SandboxDescription, cluster::Cluster,
        function::Function, sandbox::Tally,
    },
};

/// Functions in one answer at most.
const MAX_LIMIT: u32 = 1000;

impl Control {
    pub(super) fn list(&self, after: Option<FunctionName>, limit: u32) -> Vec<FunctionSummary> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.names
            .range((from, Bound::Unbounded))
            .filter_map(|(_, id)| self.functions.get(id))
            .filter(|function| !function.record.revisions.is_empty())
            .take(limit.min(MAX_LIMIT) as usize)
            .map(Function::summary)
            .collect()
    }

    pub(super) fn top(&self, limit: u32) -> Vec<FunctionSummary> {
        self.cluster
            .busiest
            .iter()
            .rev()
            .take(limit.min(MAX_LIMIT) as usize)
            .filter_map(|(_, id)| self.functions.get(id))
            .map(Function::summary)
            .collect()
    }

    pub(super) fn describe(&self, name: &FunctionName) -> Result<Answer, Refusal> {
        self.names
            .get(name)
            .and_then(|id| self.functions.get(id))
            .filter(|function| !function.record.revisions.is_empty())
            .map(|function| Answer::Function(Box::new(function.description(&self.cluster))))
            .ok_or_else(|| Refusal::NotFound { name: name.clone() })
    }

    /// The one answer that has them: for who copies a function elsewhere.
    pub(super) fn environment(&self, name: &FunctionName, number: u32) -> Result<Answer, Refusal> {
        let function = self.names.get(name).and_then(|id| self.functions.get(id));
        let function = function.ok_or_else(|| Refusal::NotFound { name: name.clone() })?;
        let revision = function.revision(number);
        revision
            .map(|revision| Answer::Environment(revision.spec.env.clone()))
            .ok_or_else(|| Refusal::NoRevision { name: name.clone(), number })
    }
}

impl Function {
    fn summary(&self) -> FunctionSummary {
        let active = self.active.as_deref();
        let tally = active.map_or_else(Tally::default, |active| {
            let all: Vec<Target> = self
                .record
                .revisions
                .iter()
                .map(|r| Target { revision: r.number, weight: 0 })
                .collect();
            active.books.tally_of(&all)
        });
        FunctionSummary {
            name: self.record.name.clone(),
            id: self.id(),
            newest: self
                .record
                .revisions
                .last()
                .map_or((0, crate::RevisionState::Retired), |r| (r.number, self.state_of(r))),
            targets: self.record.targets.clone(),
            ready: tally.ready,
            starting: tally.starting,
            busy: active.map_or(0, |active| active.levels.busy()),
            queued: active.map_or(0, |active| active.levels.queued()),
            arrivals_total: active.map_or(0, |active| active.arrivals),
        }
    }

    fn description(&self, c: &Cluster) -> FunctionDescription {
        let now = c.now;
        let weight = |number| {
            let target = self.record.targets.iter().find(|t| t.revision == number);
            target.map_or(0, |target| target.weight)
        };
        let revisions = self.record.revisions.iter().map(|revision| RevisionDescription {
            number: revision.number,
            state: self.state_of(revision),
            weight: weight(revision.number),
            created_ms: revision.created_ms,
            spec: without_secrets(&revision.spec),
            failure: revision.failure.clone(),
        });
        let fetching = self.record.revisions.iter().flat_map(|revision| {
            let fetchers = revision.spec.artifact.into_iter();
            let fetchers = fetchers.flat_map(|digest| c.fleet.fetchers(digest));
            fetchers.map(|(worker, fetched, all)| FetchDescription {
                revision: revision.number,
                worker: Arc::clone(worker),
                fetched,
                all,
            })
        });
        let active = self.active.as_deref();
        let sandboxes = active.into_iter().flat_map(|active| active.sandboxes.values());
        let failures = active.into_iter().flat_map(|active| &active.failures);
        let decisions = active.into_iter().flat_map(|active| &active.decisions);
        FunctionDescription {
            summary: self.summary(),
            settings: Arc::clone(&self.record.settings),
            revisions: revisions.collect(),
            sandboxes: sandboxes
                .take(MAX_LIMIT as usize)
                .map(|sandbox| SandboxDescription {
                    id: sandbox.id,
                    revision: sandbox.number,
                    state: sandbox.stage.name().to_owned(),
                    worker: sandbox.worker,
                    address: sandbox.address.clone(),
                    holders: sandbox.holders.iter().map(|(id, _)| *id).collect(),
                    age: now.since(sandbox.decided),
                })
                .collect(),
            fetching: fetching.collect(),
            failures: failures
                .map(|failure| FailureDescription {
                    ago: now.since(failure.at),
                    sandbox: failure.sandbox,
                    worker: failure.worker,
                    failure: failure.failure.clone(),
                })
                .collect(),
            decisions: decisions
                .map(|decided| Decision {
                    ago: now.since(decided.at),
                    from: decided.from,
                    to: decided.to,
                    rule: decided.grounds.rule().to_owned(),
                    inputs: decided.grounds.explain(),
                })
                .collect(),
            status: self.status(),
        }
    }
}

fn without_secrets(spec: &Arc<Spec>) -> Arc<Spec> {
    if spec.env.is_empty() {
        return Arc::clone(spec);
    }
    let mut shown = Spec::clone(spec);
    shown.env.values_mut().for_each(String::clear);
    Arc::new(shown)
}
