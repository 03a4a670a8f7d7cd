//! One run of one seed, from its first step to its verdict.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    invariants::Violation,
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
