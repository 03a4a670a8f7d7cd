//! Every fault planted on purpose is caught: the invariants are not blind.

#![cfg(test)]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dirigent_sim::{Options, Plant, run};

const SEEDS: u64 = 1000;

/// The seed that caught it, and the invariant.
fn caught(plant: Plant) -> Option<(u64, &'static str)> {
    (1..=SEEDS).find_map(|seed| {
        let report = run(Options { seed, plant: Some(plant), log: false });
        Some((seed, report.violation?.invariant))
    })
}

#[test]
fn every_planted_fault_is_caught() {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(&plant) = Plant::ALL.get(next.fetch_add(1, Relaxed)) {
            found.push((plant, caught(plant)));
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (plant, caught) in &found {
        println!("{plant:?}: {caught:?}");
    }
    let missed: Vec<Plant> = found.iter().filter(|(_, c)| c.is_none()).map(|(p, _)| *p).collect();
    assert!(missed.is_empty(), "not caught in {SEEDS} seeds: {missed:?}");
}
