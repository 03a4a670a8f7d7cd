//! Which worker a sandbox is started on.
//!
//! The field shows only workers that may be chosen now: ready, with a start token, offering the
//! runtime. Whether the start fits is asked one by one, so that a policy that looks at two of five
//! thousand costs two looks.

use std::fmt;

use super::random::Pcg;
use crate::WorkerId;

/// A worker on which the start fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub worker: WorkerId,
    /// The largest of its shares in use (memory, processors, sandboxes, start tokens), in
    /// thousandths.
    pub load_milli: u32,
    /// Share of its memory reserved, in thousandths.
    pub memory_milli: u32,
    /// Share of its processors reserved, overcommit included, in thousandths.
    pub cpu_milli: u32,
    /// Whether it holds the artifact wanted, or none is wanted.
    pub holds_artifact: bool,
}

/// The workers that a start may go to.
pub trait Field {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them by its number; `None` if the start does not fit there.
    fn at(&self, index: usize) -> Option<Candidate>;

    /// How many workers hold the artifact wanted, whether the start may go there or not; 0 if none
    /// is wanted.
    fn holders(&self) -> usize;

    /// One of those by its number; `None` if the start may not go there or does not fit.
    fn holder(&self, index: usize) -> Option<Candidate>;

    /// The one on which the start fits most tightly, looked up in an index rather than by looking
    /// at all; `None` exactly if it fits nowhere.
    fn tightest(&self) -> Option<Candidate>;
}

/// A way to choose.
pub trait Placement: fmt::Debug + Send {
    /// A worker; `None` only if the start fits nowhere.
    fn choose(&mut self, field: &dyn Field) -> Option<WorkerId>;
}

/// How much more loaded a holder of the artifact may be and still be preferred, in thousandths of a
/// worker. Ours: fetching costs far more than sharing the processors a little longer, but a single
/// holder must not take a whole burst.
pub const HOLDER_ADVANTAGE_MILLI: u32 = 250;

/// Two random choices, the less loaded wins (Mitzenmacher, "The Power of Two Choices", 2001), among
/// all and, where there is an artifact, among its holders. Where none of the samples fits, the
/// tightest fit.
#[derive(Clone, Debug)]
pub struct TwoChoices {
    random: Pcg,
}

impl TwoChoices {
    /// With its own random source.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { random: Pcg::new(seed) }
    }

    /// Two different numbers below `bound`, as far as there are.
    fn pair(&mut self, bound: usize) -> impl Iterator<Item = usize> + use<> {
        let first = (bound > 0).then(|| self.random.below(bound));
        let second = first.filter(|_| bound > 1).map(|first| {
            let other = self.random.below(bound - 1);
            if other >= first { other + 1 } else { other }
        });
        first.into_iter().chain(second)
    }
}

impl Placement for TwoChoices {
    fn choose(&mut self, field: &dyn Field) -> Option<WorkerId> {
        let among_all = self.pair(field.len());
        let among_holders = self.pair(field.holders());
        let cost = |candidate: &Candidate| {
            let fetch = if candidate.holds_artifact { 0 } else { HOLDER_ADVANTAGE_MILLI };
            // Equals go by the order of the draw; an order by id would load the first workers.
            candidate.load_milli.saturating_add(fetch)
        };
        among_all
            .filter_map(|index| field.at(index))
            .chain(among_holders.filter_map(|index| field.holder(index)))
            .min_by_key(cost)
            .or_else(|| field.tightest())
            .map(|candidate| candidate.worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates, `None` where the start does not fit.
    struct Fixed(Vec<Option<Candidate>>);

    impl Field for Fixed {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn at(&self, index: usize) -> Option<Candidate> {
            self.0.get(index).copied().flatten()
        }
        fn holders(&self) -> usize {
            self.0.iter().flatten().filter(|candidate| candidate.holds_artifact).count()
        }
        fn holder(&self, index: usize) -> Option<Candidate> {
            self.0.iter().flatten().filter(|candidate| candidate.holds_artifact).nth(index).copied()
        }
        fn tightest(&self) -> Option<Candidate> {
            self.0.iter().flatten().max_by_key(|candidate| candidate.memory_milli).copied()
        }
    }

    fn candidate(worker: u64, load_milli: u32, holds_artifact: bool) -> Candidate {
        let (memory_milli, cpu_milli) = (load_milli, load_milli);
        Candidate { worker: WorkerId(worker), load_milli, memory_milli, cpu_milli, holds_artifact }
    }

    #[test]
    fn of_two_workers_the_less_loaded_is_taken() {
        let field = Fixed(vec![Some(candidate(1, 500, false)), Some(candidate(2, 400, false))]);
        for seed in 0..20 {
            assert_eq!(TwoChoices::new(seed).choose(&field), Some(WorkerId(2)));
        }
    }

    #[test]
    fn a_holder_of_the_artifact_is_preferred_until_it_is_much_more_loaded() {
        let mut workers: Vec<_> = (0..100).map(|n| Some(candidate(n, 100, false))).collect();
        workers.push(Some(candidate(500, 349, true)));
        assert_eq!(TwoChoices::new(3).choose(&Fixed(workers.clone())), Some(WorkerId(500)));
        workers.pop();
        workers.push(Some(candidate(500, 351, true)));
        assert_ne!(TwoChoices::new(3).choose(&Fixed(workers)), Some(WorkerId(500)));
    }

    #[test]
    fn where_the_samples_do_not_fit_the_index_is_asked() {
        let mut workers = vec![None; 1000];
        workers.push(Some(candidate(7, 900, false)));
        assert_eq!(TwoChoices::new(1).choose(&Fixed(workers)), Some(WorkerId(7)));
        assert_eq!(TwoChoices::new(1).choose(&Fixed(vec![None; 10])), None);
        assert_eq!(TwoChoices::new(1).choose(&Fixed(Vec::new())), None);
    }

    #[test]
    fn many_choices_spread_over_equal_workers() {
        let workers: Vec<_> = (0..10).map(|n| Some(candidate(n, 0, false))).collect();
        let (field, mut placement) = (Fixed(workers), TwoChoices::new(9));
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            let WorkerId(worker) = placement.choose(&field).unwrap();
            *counts.get_mut(usize::try_from(worker).unwrap()).unwrap() += 1;
        }
        assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
    }
}
