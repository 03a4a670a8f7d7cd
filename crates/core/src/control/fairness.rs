//! A function without any sandbox, on full workers, beside functions that have many.
//!
//! Idle sandboxes were called back already and did not suffice. Functions that wait get one sandbox
//! each before any gets its next, so those that have the most give one up: it is drained like any
//! other, its invocations end, and its room is set aside for the one that waits. No function is
//! brought below one sandbox, or below its `min`.

use std::collections::BTreeMap;

use crate::{
    FunctionId, Resources, SandboxId, WorkerId,
    control::{
        Control,
        cluster::Cluster,
        fleet::Promise,
        function::{Decided, Function, Grounds},
        sandbox::Stage,
    },
};

/// Room counted in whatever units.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    memory: u64,
    cpu: u64,
    sandboxes: u32,
}

impl Room {
    fn add(&mut self, resources: &Resources) {
        self.memory = self.memory.saturating_add(resources.memory.0);
        self.cpu = self.cpu.saturating_add(u64::from(resources.cpu.0));
        self.sandboxes += 1;
    }

    /// At least one sandbox must go: the worker may be full by number.
    fn covers(&self, missing: &Resources) -> bool {
        self.sandboxes > 0
            && self.memory >= missing.memory.0
            && self.cpu >= u64::from(missing.cpu.0)
    }
}

impl Control {
    /// Makes the largest functions give up sandboxes on workers that are set aside.
    pub(super) fn give_way(&mut self) {
        for Promise { function: id, worker, missing } in self.cluster.fleet.promises() {
            for (home, sandbox) in self.victims(worker, &missing) {
                if let Some(function) = self.functions.get_mut(&home) {
                    function.give_up(&mut self.cluster, sandbox, id);
                }
            }
        }
    }

    /// Which sandboxes of a worker go so that so much comes free, beyond what is leaving already.
    fn victims(&self, worker: WorkerId, missing: &Resources) -> Vec<(FunctionId, SandboxId)> {
        let mut coming = Room::default();
        let mut present: BTreeMap<FunctionId, Vec<(SandboxId, Resources)>> = BTreeMap::new();
        for sandbox in self.cluster.fleet.on(worker) {
            let Some(home) = self.cluster.fleet.home(sandbox) else { continue };
            let Some(function) = self.functions.get(&home) else { continue };
            let entry = function.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
            let Some(entry) = entry else { continue };
            let revision = function.revision(entry.number);
            let resources = revision.map(|r| r.spec.resources).unwrap_or_default();
            match entry.stage {
                Stage::Recalling | Stage::Stopping => coming.add(&resources),
                Stage::Ready if !entry.lost && function.is_target(entry.number) => {
                    present.entry(home).or_default().push((sandbox, resources));
                }
                Stage::Wanted | Stage::Starting | Stage::Ready | Stage::Gone => {}
            }
        }
        // By how many a function exceeds what it is left with.
        let mut excess: BTreeMap<FunctionId, u32> = present
            .keys()
            .map(|id| (*id, self.functions.get(id).map_or(0, Function::excess)))
            .collect();
        let mut victims = Vec::new();
        while !coming.covers(missing) {
            let largest = present
                .iter()
                .filter(|(_, sandboxes)| !sandboxes.is_empty())
                .filter_map(|(id, _)| Some((*excess.get(id)?, *id)))
                .max();
            let Some((1.., id)) = largest else { break };
            let Some((sandbox, resources)) = present.get_mut(&id).and_then(Vec::pop) else { break };
            if let Some(excess) = excess.get_mut(&id) {
                *excess -= 1;
            }
            coming.add(&resources);
            victims.push((id, sandbox));
        }
        if coming.covers(missing) { victims } else { Vec::new() }
    }
}

impl Function {
    /// The memory of one of its sandboxes, as a measure of what it takes and gives.
    pub(super) fn weight(&self) -> u64 {
        let newest = self.record.revisions.last().map(|revision| revision.number);
        let revision = self.next_target().or(newest).and_then(|number| self.revision(number));
        revision.map_or(0, |revision| revision.spec.resources.memory.0).max(1)
    }

    /// Ready sandboxes beyond one, and beyond `min`.
    fn excess(&self) -> u32 {
        let Some(active) = self.active.as_deref().filter(|active| active.rollout.is_none()) else {
            return 0;
        };
        let ready = active.books.tally_of(&self.record.targets).ready;
        ready.saturating_sub(self.record.settings.min.max(1))
    }

    /// Gives a sandbox up for a function that has none.
    fn give_up(&mut self, c: &mut Cluster, sandbox: SandboxId, to: FunctionId) {
        let targets = &self.record.targets;
        if let Some(active) = self.active.as_deref_mut() {
            let from = active.books.tally_of(targets).ready;
            active.remember_decision(Decided {
                at: c.now,
                from,
                to: from.saturating_sub(1),
                grounds: Grounds::Fairness { sandbox, to },
            });
        }
        self.recall(c, sandbox);
    }
}
