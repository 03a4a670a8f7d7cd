//! Every fault planted on purpose is caught, and by the invariant that it is there for: none of them
//! is blind.

#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use dirigent_sim::{Options, Plant, invariants, run};

const SEEDS: u64 = 200;

/// Which invariants complained, each with the first seed, until the one that is expected has.
fn complaints(plant: Plant) -> BTreeMap<&'static str, u64> {
    let mut found = BTreeMap::new();
    for seed in 1..=SEEDS {
        let report = run(Options { seed, plant: Some(plant), log: false });
        if let Some(violation) = report.violation {
            found.entry(violation.invariant).or_insert(seed);
        }
        if found.contains_key(plant.caught_by()) {
            break;
        }
    }
    found
}

#[test]
fn every_planted_fault_is_caught_by_its_invariant_and_every_invariant_catches_one() {
    // Plants that break a machine's own assertion would print a trace for each seed.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(&plant) = Plant::ALL.get(next.fetch_add(1, Relaxed)) {
            found.push((plant, complaints(plant)));
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut found: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let _default = std::panic::take_hook();
    found.sort_by_key(|(plant, _)| *plant);
    for (plant, complaints) in &found {
        println!("{plant:?}: {complaints:?}");
    }
    let missed: Vec<Plant> = found
        .iter()
        .filter(|(plant, complaints)| !complaints.contains_key(plant.caught_by()))
        .map(|(plant, _)| *plant)
        .collect();
    assert!(missed.is_empty(), "not caught in {SEEDS} seeds: {missed:?}");
    let catchers: BTreeSet<_> = Plant::ALL.into_iter().map(Plant::caught_by).collect();
    let all: BTreeSet<_> = invariants::NAMES.into_iter().collect();
    assert_eq!(catchers, all, "each invariant has a fault planted that it must see");
}
