//! Sweeps: a rate is raised, step by step, until what is measured no longer follows, and then the
//! place between the last step that held and the first that did not is halved a few times.
//!
//! ```text
//! rates: from, 2 x from, 4 x from, ... until one does not hold; then the geometric mean of the
//!        highest that held and the lowest that did not, so many times
//! ```
//!
//! Every step is an open loop: calls are made when they are due, and count from then. So a rate is
//! too high where calls wait for each other more and more: a step holds if no call fails and of
//! those that are due in its last quarter the median takes no longer than a limit.

mod page;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde::Serialize;

pub(crate) use self::page::{ms as shown, page};
use crate::{
    latencies::Latencies,
    load::Sample,
    percentiles::{Summary, ms},
    phases::Phases,
    replay,
};

/// Which rates, and for how long.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shape {
    /// The first rate, a second.
    pub from: f64,
    /// None higher than this is tried.
    pub to: f64,
    /// Seconds of a step.
    pub seconds: f64,
    /// How often the place of saturation is halved.
    pub halvings: u32,
    /// Milliseconds that the median call at the end of a step may take.
    pub limit_ms: f64,
}

impl Shape {
    /// How the steps are made, in words.
    #[must_use]
    pub fn about(&self) -> String {
        format!(
            "Open loop: calls count from the moment at which they are due. Steps of {} s or more, \
             in turn. A rate holds if no call fails and the median call of the last quarter of its \
             step takes at most {} ms.",
            self.seconds, self.limit_ms
        )
    }
}

/// One target at one rate.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Calls due a second.
    pub rate: f64,
    /// Calls made.
    pub calls: u64,
    /// Those that failed or were lost, by kind.
    pub failed: BTreeMap<String, u64>,
    /// From the moment at which a call is due to the end of its answer.
    pub latency_ms: Summary,
    /// The median of those that were due in the last quarter of the step.
    pub end_ms: f64,
    /// What the generator began a call too late by, 99th percentile: part of the latency, and this
    /// machine's fault.
    pub late_ms: f64,
    /// Medians of the phases that `Server-Timing` tells, where they were asked for.
    pub phases_ms: Vec<(String, f64)>,
    /// Whether it holds.
    pub held: bool,
}

/// All that was seen of one target.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// The highest rate that held, a second; 0 if none did.
    pub holds: f64,
    /// The lowest that did not, if one was tried.
    pub saturated_at: Option<f64>,
    /// The steps, by their rates.
    pub steps: Vec<Step>,
}

/// Collects a step's calls.
#[derive(Debug)]
pub struct Seen {
    /// From which on calls are of the last quarter.
    quarter: Duration,
    latency: Latencies,
    end: Latencies,
    late: Latencies,
    failed: BTreeMap<String, u64>,
    phases: Phases,
    with_phases: bool,
}

impl Seen {
    /// Of a step of this length.
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            quarter: length.mul_f64(0.75),
            latency: Latencies::default(),
            end: Latencies::default(),
            late: Latencies::default(),
            failed: BTreeMap::new(),
            phases: Phases::default(),
            with_phases: false,
        }
    }

    /// The same, with the phases of its cold calls.
    pub(crate) fn with_phases(length: Duration) -> Self {
        Self { with_phases: true, ..Self::new(length) }
    }

    pub(crate) fn add(&mut self, sample: &Sample) {
        self.late.add(sample.begun.saturating_sub(sample.intended));
        if let Some(kind) = replay::kind(sample) {
            return self.fail(kind);
        }
        self.add_latency(sample.intended, sample.latency());
        if self.with_phases && sample.is_cold() {
            let timing = sample.timing.as_deref().unwrap_or_default();
            self.phases.add(ms(sample.latency()), timing);
        }
    }

    pub(crate) fn add_latency(&mut self, intended: Duration, latency: Duration) {
        self.latency.add(latency);
        if intended >= self.quarter {
            self.end.add(latency);
        }
    }

    pub(crate) fn fail(&mut self, kind: String) {
        *self.failed.entry(kind).or_default() += 1;
    }

    pub(crate) fn step(self, rate: f64, limit_ms: f64) -> Step {
        let failed: u64 = self.failed.values().sum();
        let end_ms = self.end.at(50.0);
        Step {
            rate,
            calls: self.latency.count() + failed,
            held: failed == 0 && end_ms <= limit_ms,
            failed: self.failed,
            latency_ms: self.latency.summary(),
            end_ms,
            late_ms: self.late.at(99.0),
            phases_ms: self.phases.medians(),
        }
    }
}

/// The next rate, from those before.
#[derive(Clone, Copy, Debug)]
struct Climb {
    shape: Shape,
    /// The highest that held.
    held: Option<f64>,
    /// The lowest that did not.
    broke: Option<f64>,
    halvings: u32,
}

impl Climb {
    const fn new(shape: Shape) -> Self {
        Self { shape, held: None, broke: None, halvings: 0 }
    }

    fn next(&self) -> Option<f64> {
        match (self.held, self.broke) {
            (None, None) => Some(self.shape.from),
            (None, Some(_)) => None,
            (Some(held), None) => (held < self.shape.to).then(|| (held * 2.0).min(self.shape.to)),
            (Some(held), Some(broke)) => {
                (self.halvings < self.shape.halvings).then(|| (held * broke).sqrt())
            }
        }
    }

    fn saw(&mut self, step: &Step) {
        if self.held.is_some() && self.broke.is_some() {
            self.halvings += 1;
        }
        let place = if step.held { &mut self.held } else { &mut self.broke };
        *place = Some(step.rate);
    }
}

/// Lets the targets take their steps in turn, each until it is done. `take` makes a step of the
/// target of that number at that rate; `tell` hears of each.
///
/// # Errors
/// Of `take`.
pub async fn run(
    shape: Shape,
    names: &[&'static str],
    mut take: impl AsyncFnMut(usize, f64) -> Result<Step>,
    tell: &(dyn Fn(&str, &Step) + Sync),
) -> Result<Vec<Target>> {
    let mut climbs: Vec<_> = names.iter().map(|name| (*name, Climb::new(shape), vec![])).collect();
    loop {
        let mut all_done = true;
        for (number, (name, climb, steps)) in climbs.iter_mut().enumerate() {
            let Some(rate) = climb.next() else { continue };
            all_done = false;
            let step = take(number, rate).await?;
            tell(name, &step);
            climb.saw(&step);
            steps.push(step);
        }
        if all_done {
            break;
        }
    }
    let target = |(name, climb, mut steps): (_, Climb, Vec<Step>)| {
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        Target { name, holds: climb.held.unwrap_or(0.0), saturated_at: climb.broke, steps }
    };
    Ok(climbs.into_iter().map(target).collect())
}

/// One line that tells how a step went.
#[must_use]
pub fn line(name: &str, step: &Step) -> String {
    let failed: u64 = step.failed.values().sum();
    format!(
        "{name:10} {:8.0}/s  p50 {:8.2} ms  p99 {:8.2} ms  {failed:4} failed  {}",
        step.rate,
        step.latency_ms.p50,
        step.latency_ms.p99,
        if step.held { "holds" } else { "does not hold" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { from: 100.0, to: 10_000.0, seconds: 1.0, halvings: 3, limit_ms: 20.0 };

    fn step(rate: f64, held: bool) -> Step {
        let latency = if held { 1 } else { 1000 };
        let mut seen = Seen::new(Duration::from_secs(1));
        seen.add_latency(Duration::from_millis(900), Duration::from_millis(latency));
        seen.step(rate, SHAPE.limit_ms)
    }

    fn climbed(shape: Shape, holds: f64) -> (Vec<f64>, Climb) {
        let (mut climb, mut rates) = (Climb::new(shape), Vec::new());
        while let Some(rate) = climb.next() {
            rates.push(rate.round());
            climb.saw(&step(rate, rate <= holds));
        }
        (rates, climb)
    }

    #[test]
    fn rates_are_doubled_until_one_does_not_hold_and_then_halved_in_between() {
        let (rates, climb) = climbed(SHAPE, 500.0);
        assert_eq!(rates, [100.0, 200.0, 400.0, 800.0, 566.0, 476.0, 519.0]);
        assert_eq!(climb.held.map(f64::round), Some(476.0));
        assert_eq!(climb.broke.map(f64::round), Some(519.0));
    }

    #[test]
    fn no_rate_is_tried_above_the_last_nor_after_a_first_one_that_does_not_hold() {
        let shape = Shape { to: 300.0, ..SHAPE };
        assert_eq!(climbed(shape, 1e9).0, [100.0, 200.0, 300.0]);
        assert_eq!(climbed(SHAPE, 1.0).0, [100.0]);
    }

    #[test]
    fn a_step_holds_only_if_its_end_is_quick_and_nothing_fails() {
        let length = Duration::from_secs(4);
        let with = |early_ms, late_ms, failed: Option<&str>| {
            let mut seen = Seen::new(length);
            seen.add_latency(Duration::from_secs(1), Duration::from_millis(early_ms));
            seen.add_latency(Duration::from_millis(3500), Duration::from_millis(late_ms));
            if let Some(kind) = failed {
                seen.fail(kind.to_owned());
            }
            seen.step(100.0, SHAPE.limit_ms)
        };
        // What was slow in between and is not at the end is no queue that grows.
        assert!(with(500, 2, None).held);
        assert!(!with(2, 500, None).held);
        let failed = with(2, 2, Some("reset"));
        assert!(!failed.held);
        assert_eq!((failed.calls, failed.failed["reset"]), (3, 1));
    }

    #[tokio::test]
    async fn targets_take_turns_until_each_is_done() {
        let mut order = Vec::new();
        let take = async |number: usize, rate: f64| {
            order.push((number, rate.round()));
            Ok(step(rate, rate <= [150.0, 60.0][number]))
        };
        let shape = Shape { halvings: 0, ..SHAPE };
        let targets = run(shape, &["one", "two"], take, &|_, _| {}).await.unwrap();
        assert_eq!(order, [(0, 100.0), (1, 100.0), (0, 200.0)]);
        assert_eq!((targets[0].holds, targets[0].saturated_at), (100.0, Some(200.0)));
        assert_eq!((targets[1].holds, targets[1].saturated_at), (0.0, Some(100.0)));
    }
}
