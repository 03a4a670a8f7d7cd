//! Bars, and `dirigent-sim scale`: what the leader's machine costs at the size that it is designed for.

use std::{process::ExitCode, time::Duration};

use dirigent_sim::scale::{Big, Size, records, resident};

const MANY: u64 = 1_000_000;
const FEW: u64 = 1000;
const WORKERS: u64 = 5000;
const PLANES: u64 = 100;
/// Enough to be weighed.
const MANY_PLANES: u64 = 10_000;
const SANDBOXES: u64 = 100_000;
/// Functions that are called while the others idle.
const CALLED: u64 = 1000;
const CALLS: u64 = 20_000;
const BLOCKS: u64 = 9;

/// What must hold.
#[derive(Debug, Default)]
pub(crate) struct Bars {
    all: u32,
    hold: u32,
}

impl Bars {
    pub(crate) fn judge(&mut self, holds: bool, text: &str) {
        self.all += 1;
        self.hold += u32::from(holds);
        println!("{} {text}", if holds { "ok  " } else { "FAIL" });
    }

    /// Says how many hold.
    pub(crate) fn verdict(&self) -> ExitCode {
        println!("{} of {} bars hold", self.hold, self.all);
        if self.hold == self.all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The processor time of this thread: others who use the machine do not count.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Measures, and says whether every bar holds.
pub(crate) fn scale() -> ExitCode {
    let mut bars = Bars::default();
    // First, while nothing was freed yet that could be used again unseen.
    let (worker, plane) = peers();
    println!("     {worker} bytes per worker, {plane} bytes per data plane, both idle");
    sandboxes(&mut bars);
    let before = resident();
    let records_of_many = records(MANY);
    let alone = resident().saturating_sub(before);
    let size = Size { functions: MANY, workers: WORKERS, planes: PLANES };
    let started = cpu();
    let mut many = Big::new(size, records_of_many);
    println!(
        "     {MANY} functions, {WORKERS} workers, {PLANES} data planes: loaded in {:?}",
        cpu().saturating_sub(started)
    );
    let weight = resident().saturating_sub(before) / MANY;
    let text = format!(
        "{weight} bytes per idle function (its record alone {}), at most 1024",
        alone / MANY
    );
    bars.judge(weight <= 1024, &text);

    let mut few = Big::new(Size { functions: FEW, ..size }, records(FEW));
    compare(&mut bars, &mut few, &mut many);
    drop(few);
    burst(&mut bars, &mut many);
    bars.verdict()
}

/// The same calls among few functions and among many, in interleaved blocks.
fn compare(bars: &mut Bars, few: &mut Big, many: &mut Big) {
    let mut ratios = Vec::new();
    let mut rates = Vec::new();
    let mut per_event = Vec::new();
    calls(few);
    calls(many);
    for _ in 0..BLOCKS {
        let (small, _) = calls(few);
        let before = many.events;
        let (large, starts) = calls(many);
        per_event.push(large.as_nanos() / u128::from(many.events - before).max(1));
        ratios.push(large.as_nanos() * 1000 / small.as_nanos().max(1));
        rates.push(u128::from(CALLS) * 1_000_000_000 / starts.as_nanos().max(1));
    }
    let event = median(&mut per_event).unwrap_or(0);
    println!(
        "     {event} ns of processor time per event among {MANY} functions (blocks {per_event:?})"
    );
    let ratio = median(&mut ratios).unwrap_or(u128::MAX);
    let rate = median(&mut rates).unwrap_or(0);
    let text = format!(
        "one call among {MANY} functions costs {}.{:03} x one among {FEW} (blocks {:?}), at most 1.2",
        ratio / 1000,
        ratio % 1000,
        ratios
    );
    bars.judge(ratio <= 1200, &text);
    bars.judge(
        rate >= 150_000,
        &format!("{rate} starts/s decided, placed and granted, at least 150000"),
    );
}

/// Calls from queueing to the end of their sandboxes: the time for all of it, and for what leads to
/// a slot.
fn calls(big: &mut Big) -> (Duration, Duration) {
    let (mut whole, mut starts) = (Duration::ZERO, Duration::ZERO);
    // Few enough at once that start tokens and room are no question.
    for round in 0..CALLS / CALLED {
        let began = cpu();
        let held: Vec<_> = (0..CALLED)
            .filter_map(|n| big.cold_start(big.plane(n + round), big.function(n * 997)))
            .collect();
        starts += cpu().saturating_sub(began);
        for held in held {
            big.call(held);
        }
        whole += cpu().saturating_sub(began);
    }
    (whole, starts)
}

/// 100,000 calls queue at once, of 10,000 functions.
fn burst(bars: &mut Bars, big: &mut Big) {
    let mut starts = Vec::new();
    let began = cpu();
    for n in 0..10_000 {
        starts.extend(big.demand(big.plane(n), big.function(n * 97), [10, 0, 0]));
    }
    let decided = cpu().saturating_sub(began);
    let events = starts.len();
    let text =
        format!("a burst of 100000 calls: {events} starts ordered in {decided:?}, at most 1 s");
    bars.judge(decided < Duration::from_secs(1) && events == 100_000, &text);
}

/// What a worker and a data plane weigh of which nothing is wanted yet.
fn peers() -> (u64, u64) {
    let size = Size { functions: 1, workers: 0, planes: 0 };
    let weigh = |size: Size, all: u64| {
        let before = resident();
        let big = Big::new(size, records(1));
        let weight = resident().saturating_sub(before) / all;
        // Kept: what the next one weighs must not fit in what this one leaves.
        (weight, big)
    };
    let (worker, _workers) = weigh(Size { workers: WORKERS, ..size }, WORKERS);
    let (plane, _planes) = weigh(Size { planes: MANY_PLANES, ..size }, MANY_PLANES);
    (worker, plane)
}

/// What a live sandbox weighs.
fn sandboxes(bars: &mut Bars) {
    let size = Size { functions: FEW, workers: WORKERS, planes: PLANES };
    let mut big = Big::new(size, records(FEW));
    let before = resident();
    let live = fill(&mut big, SANDBOXES);
    let weight = resident().saturating_sub(before) / live.max(1);
    let text = format!("{weight} bytes per live sandbox ({live} of them), at most 500");
    bars.judge(weight <= 500 && live == SANDBOXES, &text);
}

/// So many sandboxes that are ready and held.
fn fill(big: &mut Big, sandboxes: u64) -> u64 {
    let each = u32::try_from(sandboxes / FEW).unwrap_or(u32::MAX);
    for n in 0..FEW {
        let (plane, function) = (big.plane(n), big.function(n));
        for started in big.demand(plane, function, [each, 0, 0]) {
            big.ready(started);
        }
        big.demand(plane, function, [0, each, each]);
    }
    big.live() as u64
}

/// Sorts them, and gives the one in the middle.
fn median(all: &mut [u128]) -> Option<u128> {
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}
