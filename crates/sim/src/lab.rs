//! The policy laboratory: whole traces in simulated time, one function at a time, under one policy
//! after the other.
//!
//! The machines of the core decide for clusters that fail; here nothing fails and nothing is
//! scarce, so that what differs is the policy alone. Functions do not meet, which makes a run of
//! eight hours and three million calls a matter of a fraction of a second, and its result
//! independent of the order and the number of threads: everything random about a function comes
//! from its name and the seed.
//!
//! [`world`] runs one function; [`measure`] says what it felt; [`contenders`] names who competes;
//! [`frontier`] says who wins. Where workers are scarce, [`placement`] compares who chooses among them.

pub mod calls;
pub mod command;
pub mod contenders;
pub mod frontier;
pub mod machines;
pub mod measure;
pub mod page;
pub mod placement;
pub mod planes;
pub mod policies;
pub mod world;

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};

use calls::{StartTime, Subject};
use contenders::{Contender, Means};
use machines::Setup;
use measure::{Felt, Figures, Meter};
use world::World;

/// Nanoseconds of a minute.
pub const MINUTE: u64 = 60_000_000_000;

/// A trace in the laboratory, and what is measured of it.
#[derive(Debug)]
pub struct Lab {
    /// Its functions.
    pub subjects: Vec<Subject>,
    /// How long starts take.
    pub start: StartTime,
    /// Of everything random.
    pub seed: u64,
    /// What is measured, in nanoseconds: calls that come within, sandboxes as far as they are.
    /// What lies before it warms up.
    pub window: (u64, u64),
}

impl Lab {
    /// One contender's figures.
    ///
    /// # Errors
    /// If the product's machines refuse something; a policy in the model cannot fail.
    pub fn figures(&self, contender: &Contender) -> Result<Figures> {
        Ok(Figures::of(&self.felt(contender)?))
    }

    /// What each function felt, in their order.
    fn felt(&self, contender: &Contender) -> Result<Vec<Felt>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut felt = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(subject) = self.subjects.get(index) else { return felt };
                felt.push((index, self.run(contender, subject)));
            }
        };
        let mut all: Vec<(usize, Result<Felt>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.flat_map(|felt| felt.expect("a bug in a policy or in the world")).collect()
        });
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, felt)| felt).collect()
    }

    fn run(&self, contender: &Contender, subject: &Subject) -> Result<Felt> {
        let mut random = subject.random(self.seed);
        let (from, to) = self.window;
        let calls = &subject.calls;
        let mut felt = match &contender.means {
            Means::Knowledge => {
                policies::clairvoyant::bound(calls, self.start, &mut random, self.window)
            }
            Means::Policy(rules, make) => {
                let meter = Meter::new(from, to);
                World::new(calls, make(), *rules, self.start, random, meter).run()
            }
            Means::Machines(setup) => {
                let setup = Setup { start: self.start, ..*setup };
                machines::run(calls, setup, random, self.window)
                    .with_context(|| subject.name.clone())?
            }
        };
        felt.memory_mib = subject.memory_mib;
        Ok(felt)
    }
}

#[cfg(test)]
mod tests;
