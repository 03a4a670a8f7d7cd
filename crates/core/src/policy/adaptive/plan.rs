//! The best plan for an idle sandbox: how long it is held, and when one is started ahead.
//!
//! With `q` the share of a function's calls that the plan leaves cold, and `idle` the share of the
//! rank's time that it spends on an idle sandbox:
//!
//! ```text
//! worth = spared * called * ((1 - tail) * (1 - q) + tail * (1 - q)^n)
//! cost  = price * idle + starts per cycle * price of a start / cycle
//! ```
//!
//! `called` is how often the function is called per horizon, at most 1, and `n` the same between 1
//! and [`Terms::tail_calls`]. Every plan that begins and ends at edges of bins is tried: a few
//! hundred.

use std::time::Duration;

use super::{
    Terms,
    fixed::{ONE, power},
    gaps::{BINS, Gaps},
};

/// What is known of a rank beside its gaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Doublings of slowdown that a ready sandbox spares a call, in 2^-16.
    pub(super) spared: u64,
    /// A start.
    pub(super) start_ms: u64,
    /// A call.
    pub(super) service_ms: u64,
    /// Calls of the function per horizon, in 2^-8.
    pub(super) calls_q8: u64,
    /// The share of the function's calls that need this rank, in 2^-10.
    pub(super) reached_q10: u64,
}

/// A plan, in numbers of edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The sandbox is held until this edge.
    pub(super) keep: u8,
    /// One is started ahead of the first edge and held until the second one.
    pub(super) ahead: Option<(u8, u8)>,
}

/// No start ahead of a call that is expected sooner: it would hardly have gone before.
const AHEAD_MIN: Duration = Duration::from_secs(1);

/// An edge between bins.
#[derive(Clone, Copy, Debug, Default)]
struct Edge {
    number: u8,
    at_ms: u64,
    /// The weight of gaps that end before it.
    below: u64,
    /// Time that passes until it, in weight x milliseconds, as far as gaps have not ended.
    passed: u128,
    /// Whether gaps were seen to end right after it, and right before it.
    begins: bool,
    ends: bool,
}

/// The distribution as a curve, what is not known included.
struct Curve {
    edges: [Edge; BINS + 1],
    /// The weight of all gaps.
    all: u64,
    /// The time of all gaps with the calls after them: of cycles.
    cycles: u128,
}

impl Curve {
    fn of(gaps: &Gaps, facts: &Facts, terms: &Terms) -> Self {
        // Evenly over the octaves, which the first bin is not one of.
        let unknown = terms.prior_milli.saturating_mul(1024) / 1000 / (BINS as u64 - 1);
        let weight =
            |lower: u64, count: u16| u64::from(count) * 1024 + if lower > 0 { unknown } else { 0 };
        let all = gaps.bins().map(|(lower, _, count)| weight(lower, count)).sum::<u64>().max(1);
        let mut edges = [Edge::default(); BINS + 1];
        let (mut below, mut passed, mut ends) = (0, 0, false);
        let bins = gaps.bins().map(Some).chain([None]);
        for ((number, edge), bin) in (0..).zip(&mut edges).zip(bins) {
            let (lower, upper, count) = bin.unwrap_or_default();
            let begins = count > 0;
            *edge = Edge { number, at_ms: lower, below, passed, begins, ends };
            let (inside, width) = (weight(lower, count), u128::from(upper - lower));
            // Gaps that end in a bin end in its middle.
            passed += u128::from(all.saturating_sub(below + inside)) * width
                + u128::from(inside) * width / 2;
            below += inside;
            ends = begins;
        }
        let last = edges.last().map_or(0, |edge| edge.passed);
        let cycles = last + u128::from(all) * u128::from(facts.service_ms);
        Self { edges, all, cycles: cycles.max(1) }
    }
}

/// What a plan does, in weights.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// Gaps that end while there is a sandbox.
    covered: u64,
    /// Time with an idle sandbox.
    idle: u128,
    /// Starts ahead.
    ahead: u64,
}

/// The best plan.
pub(super) fn best(gaps: &Gaps, facts: &Facts, terms: &Terms) -> Plan {
    let curve = Curve::of(gaps, facts, terms);
    let mut best = (i128::MIN, Plan::default());
    let mut consider = |course: Course, plan: Plan| {
        let value = value(&curve, course, facts, terms);
        if value > best.0 {
            best = (value, plan);
        }
        best.1
    };
    let mut held = Edge::default();
    for edge in &curve.edges {
        let course = Course { covered: edge.below, idle: edge.passed, ahead: 0 };
        let plan = Plan { keep: edge.number, ahead: None };
        if consider(course, plan) == plan {
            held = *edge;
        }
    }
    // Let go and started ahead, after having been held for as long as is best without that, or not.
    let earliest = u64::try_from(AHEAD_MIN.as_millis()).unwrap_or(u64::MAX);
    for first in [Edge::default(), held] {
        let later = |edge: &&Edge| edge.number > first.number;
        for from in curve.edges.iter().filter(later) {
            if !from.begins || from.at_ms < earliest {
                continue;
            }
            for until in curve.edges.iter().filter(|edge| edge.number > from.number && edge.ends) {
                let course = Course {
                    covered: first.below + (until.below - from.below),
                    idle: first.passed + (until.passed - from.passed),
                    ahead: curve.all.saturating_sub(from.below),
                };
                let ahead = Some((from.number, until.number));
                consider(course, Plan { keep: first.number, ahead });
            }
        }
    }
    best.1
}

/// Worth less cost, in doublings of slowdown in 2^-32.
fn value(curve: &Curve, course: Course, facts: &Facts, terms: &Terms) -> i128 {
    let all = u128::from(curve.all);
    let cold = u128::from(curve.all.saturating_sub(course.covered));
    let share = ((cold << 32) / all * u128::from(facts.reached_q10)) >> 10;
    let warm = ONE.saturating_sub(u64::try_from(share).unwrap_or(ONE));
    let tail = power(warm, (facts.calls_q8 >> 8).clamp(1, terms.tail_calls.max(1)));
    let tail_percent = u128::from(terms.tail_percent.min(100));
    let mixed = (u128::from(warm) * (100 - tail_percent) + u128::from(tail) * tail_percent) / 100;
    let called = u128::from(facts.calls_q8.min(1 << 8));
    let worth = (mixed * u128::from(facts.spared) * called) >> (16 + 8);

    let start =
        u128::from(facts.start_ms) * u128::from(terms.price_milli) + terms.start.as_millis() * 1000;
    let spent =
        course.idle * u128::from(terms.price_milli) + (cold + u128::from(course.ahead)) * start;
    let cost = (spent << 22) / curve.cycles * (1 << 10) / 1000;
    i128::try_from(worth).unwrap_or(i128::MAX) - i128::try_from(cost).unwrap_or(i128::MAX)
}
