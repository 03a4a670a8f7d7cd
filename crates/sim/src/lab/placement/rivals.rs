//! Who else chooses: what the published artifact offers by these names, as they are meant.

use dirigent_core::{
    WorkerId,
    policy::{
        placement::{Candidate, Field, Placement},
        random::Pcg,
    },
};

/// Any worker, whatever its load: the artifact's default. If the start does not fit there, another draw
/// would be as good as the index.
#[derive(Clone, Debug)]
pub(super) struct Random {
    random: Pcg,
}

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self { random: Pcg::new(seed) }
    }
}

impl Placement for Random {
    fn choose(&mut self, field: &dyn Field) -> Option<WorkerId> {
        let drawn = field.at(self.random.below(field.len()));
        drawn.or_else(|| field.tightest()).map(|candidate| candidate.worker)
    }
}

/// One after the other, by their ids.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundRobin {
    last: Option<WorkerId>,
}

impl Placement for RoundRobin {
    fn choose(&mut self, field: &dyn Field) -> Option<WorkerId> {
        let all = || (0..field.len()).filter_map(|index| field.at(index)).map(|one| one.worker);
        let next = all().filter(|worker| self.last.is_none_or(|last| *worker > last)).min();
        self.last = next.or_else(|| all().min());
        self.last
    }
}

/// The default scores of Kubernetes' scheduler, as the artifact has them: `LeastAllocated`, the mean of
/// the free shares of memory and processors, and `BalancedAllocation`, which is the greater the
/// closer both are; with `ImageLocality`, which the artifact leaves out, for who holds the artifact.
/// It looks at all workers, and takes one of the best.
#[derive(Clone, Debug)]
pub(super) struct Kubernetes;

/// `ImageLocality`'s whole score is for an image of 1 GB; ours are far below that. A quarter of it.
const LOCALITY: u32 = 250;

impl Kubernetes {
    fn score(candidate: &Candidate) -> u32 {
        let (memory, cpu) = (candidate.memory_milli.min(1000), candidate.cpu_milli.min(1000));
        let least = (1000 - memory).midpoint(1000 - cpu);
        // Of two shares the standard deviation is half of their difference.
        let balanced = 1000 - memory.abs_diff(cpu) / 2;
        least + balanced + if candidate.holds_artifact { LOCALITY } else { 0 }
    }
}

impl Placement for Kubernetes {
    fn choose(&mut self, field: &dyn Field) -> Option<WorkerId> {
        let all = (0..field.len()).filter_map(|index| field.at(index));
        all.max_by_key(Self::score).map(|candidate| candidate.worker)
    }
}
