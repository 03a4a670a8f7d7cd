//! One run of one seed, from its first step to its verdict.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    faults::FAULTS,
    invariants::{NAMES, Violation},
    plant::Plant,
    world::{Counts, World},
};

/// What a run is made from: the same options give the same run, step by step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// A fault planted on purpose.
    pub plant: Option<Plant>,
    /// Keep the text of what happened.
    pub log: bool,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of everything that happened.
    pub hash: u64,
    /// What was done.
    pub counts: Counts,
    /// How often the premise of each invariant was met.
    pub premises: BTreeMap<&'static str, u64>,
    /// The invariant that did not hold, if any.
    pub violation: Option<Violation>,
    /// What happened, if it was asked for.
    pub log: Option<String>,
}

/// Runs a seed.
#[must_use]
pub fn run(options: Options) -> Report {
    let mut world = World::new(options.seed, options.plant, options.log);
    // A machine's own assertion is an invariant like the others.
    let ran = catch_unwind(AssertUnwindSafe(|| {
        while world.step() {}
        if world.witness.violation.is_none() {
            world.check_rest();
        }
    }));
    let panicked = ran.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Violation { invariant: "a machine's own", what: text.unwrap_or_default() }
    });
    Report {
        hash: world.trace.hash,
        premises: std::mem::take(&mut world.witness.premises),
        violation: panicked.or_else(|| world.witness.violation.take()),
        log: world.trace.log.take(),
        counts: world.counts,
    }
}

/// What many runs met together.
#[derive(Debug, Default)]
pub struct Totals {
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How often the premise of each invariant was met.
    pub premises: BTreeMap<&'static str, u64>,
    /// What else is to happen in some run.
    pub met: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// One more run.
    pub fn add(&mut self, report: &Report) {
        let met = report.counts.met();
        for (all, one) in [
            (&mut self.faults, &report.counts.faults),
            (&mut self.premises, &report.premises),
            (&mut self.met, &met.into_iter().collect()),
        ] {
            for (name, count) in one {
                *all.entry(*name).or_default() += count;
            }
        }
    }

    /// Invariants that no run put to the test.
    #[must_use]
    pub fn untested(&self) -> Vec<&'static str> {
        NAMES.into_iter().filter(|name| !self.premises.contains_key(name)).collect()
    }

    /// Faults and other things that no run met.
    #[must_use]
    pub fn unmet(&self) -> Vec<&'static str> {
        let faults = FAULTS.into_iter().filter(|kind| !self.faults.contains_key(kind));
        let others = self.met.iter().filter(|(_, count)| **count == 0).map(|(what, _)| *what);
        faults.chain(others).collect()
    }
}

impl Report {
    /// What to tell of a run that failed: where, and the one command that replays it.
    #[must_use]
    pub fn complaint(&self, seed: u64) -> Option<String> {
        let violation = self.violation.as_ref()?;
        Some(format!(
            "seed={seed} step={} {}: {}\n  replay: cargo xtask sim --seed {seed} --log",
            self.counts.steps, violation.invariant, violation.what
        ))
    }
}
