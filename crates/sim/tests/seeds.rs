//! 200 clusters with faults, and the same cluster twice.

#![cfg(test)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dirigent_sim::{Options, Report, Totals, run};

const SEEDS: u64 = 200;

/// Every seed once, on all cores.
fn run_all() -> Vec<(u64, Report)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(1);
    let work = || {
        let mut reports = Vec::new();
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed > SEEDS {
                return reports;
            }
            reports.push((seed, run(Options { seed, ..Options::default() })));
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_invariant_holds_in_200_clusters_and_each_was_put_to_the_test() {
    let reports = run_all();
    let complaints: Vec<String> =
        reports.iter().filter_map(|(seed, report)| report.complaint(*seed)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));

    let sum = |of: fn(&Report) -> u64| reports.iter().map(|(_, r)| of(r)).sum::<u64>();
    assert!(sum(|r| r.counts.steps) >= 20_000 * SEEDS, "{} steps", sum(|r| r.counts.steps));
    assert!(sum(|r| r.counts.calls) >= 2000 * SEEDS, "{} calls", sum(|r| r.counts.calls));
    assert!(sum(|r| r.counts.faults.values().sum()) >= 5 * SEEDS, "too few faults");
    assert!(sum(|r| r.counts.faults.len() as u64) >= 3 * SEEDS, "too few kinds of faults");

    assert!(sum(|r| r.counts.postings) >= 5 * SEEDS, "{}", sum(|r| r.counts.postings));
    assert!(sum(|r| r.counts.removals) >= SEEDS / 4, "{}", sum(|r| r.counts.removals));
    assert!(sum(|r| r.counts.departures) >= SEEDS / 2, "{}", sum(|r| r.counts.departures));

    let mut totals = Totals::default();
    reports.iter().for_each(|(_, report)| totals.add(report));
    assert!(totals.unmet().is_empty(), "no seed met {:?}", totals.unmet());
    assert!(totals.untested().is_empty(), "no seed put to the test {:?}", totals.untested());
}

#[test]
fn one_seed_gives_one_course_step_by_step() {
    for seed in [1, 2, 77] {
        let first = run(Options { seed, ..Options::default() });
        let second = run(Options { seed, log: true, ..Options::default() });
        assert_eq!(first.hash, second.hash, "the log changes nothing, nor does anything else");
        assert_eq!(first.counts, second.counts);
    }
    let hashes = [1, 2].map(|seed| run(Options { seed, ..Options::default() }).hash);
    assert_ne!(hashes[0], hashes[1]);
}
