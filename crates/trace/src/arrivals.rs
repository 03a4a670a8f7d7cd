//! From counts per minute to single invocations: arrival times and durations, seeded.

use std::{str::FromStr, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;

use crate::trace::{PERCENTILES, Recorded, Trace, TraceFunction};

/// How the invocations of a minute are spread over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Exponential gaps, scaled so that the minute holds exactly its count.
    #[default]
    Exponential,
    /// Each at a random moment of the minute.
    Uniform,
    /// Equal gaps.
    Equidistant,
    /// Each when it was recorded and as long as it took then, where the trace knows.
    Recorded,
}

impl FromStr for Arrivals {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "exponential" => Ok(Self::Exponential),
            "uniform" => Ok(Self::Uniform),
            "equidistant" => Ok(Self::Equidistant),
            "recorded" => Ok(Self::Recorded),
            other => {
                anyhow::bail!("`{other}` is not exponential, uniform, equidistant or recorded")
            }
        }
    }
}

/// One invocation to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shot {
    /// When, from the start of the run.
    pub at: Duration,
    /// Which function of the trace.
    pub function: usize,
    /// How long it is to execute: whole milliseconds, 1 ms to 60 s (as In-Vitro clamps).
    pub execution: Duration,
}

/// The invocations of the first `minutes` of a trace, in the order of their times. The same seed
/// gives the same schedule; `speed` above 1 compresses arrivals (not durations) in time.
#[must_use]
pub fn schedule(
    trace: &Trace,
    minutes: usize,
    arrivals: Arrivals,
    speed: f64,
    seed: u64,
) -> Vec<Shot> {
    let mut shots: Vec<Shot> = (0..trace.functions.len())
        .flat_map(|function| schedule_one(trace, function, minutes, arrivals, speed, seed))
        .collect();
    shots.sort_by_key(|shot| (shot.at, shot.function));
    shots
}

/// The part of one function in [`schedule`], in the order of its times.
#[must_use]
pub fn schedule_one(
    trace: &Trace,
    index: usize,
    minutes: usize,
    arrivals: Arrivals,
    speed: f64,
    seed: u64,
) -> Vec<Shot> {
    let Some(function) = trace.functions.get(index) else { return Vec::new() };
    if arrivals == Arrivals::Recorded {
        return recorded(function, index, minutes, speed);
    }
    let minute = Duration::from_secs(60).div_f64(speed);
    // A source of its own for each function: leaving one out does not shift the others.
    let mut random = StdRng::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9));
    let mut shots = Vec::new();
    for (number, count) in function.per_minute.iter().take(minutes).enumerate() {
        let begin = minute.mul_f64(number as f64);
        for offset in offsets(*count, arrivals, &mut random) {
            shots.push(Shot {
                at: begin + minute.mul_f64(offset),
                function: index,
                execution: execution(function, &mut random),
            });
        }
    }
    shots.sort_by_key(|shot| shot.at);
    shots
}

/// The calls as they were.
fn recorded(function: &TraceFunction, index: usize, minutes: usize, speed: f64) -> Vec<Shot> {
    let end = Duration::from_secs(60).saturating_mul(u32::try_from(minutes).unwrap_or(u32::MAX));
    let calls = function.calls.iter().take_while(|call| call.at < end);
    let shot = |call: &Recorded| Shot {
        at: call.at.div_f64(speed),
        function: index,
        execution: clamped(call.duration.as_secs_f64() * 1000.0),
    };
    calls.map(shot).collect()
}

/// Positions of `count` arrivals within a minute, as fractions in 0..1.
fn offsets(count: u32, arrivals: Arrivals, random: &mut StdRng) -> Vec<f64> {
    match arrivals {
        Arrivals::Equidistant => {
            (0..count).map(|index| f64::from(index) / f64::from(count)).collect()
        }
        Arrivals::Uniform => (0..count).map(|_| random.random::<f64>()).collect(),
        Arrivals::Exponential => {
            let mut gap = || -(1.0 - random.random::<f64>()).ln();
            let gaps: Vec<f64> = (0..=count).map(|_| gap()).collect();
            let total: f64 = gaps.iter().sum();
            let mut sum = 0.0;
            let ends = gaps.iter().take(count as usize).map(|gap| {
                sum += gap;
                sum / total
            });
            ends.collect()
        }
        // Not spread at all: see `recorded`.
        Arrivals::Recorded => Vec::new(),
    }
}

/// A duration drawn from the percentile columns: linear between two neighbours.
fn execution(function: &TraceFunction, random: &mut StdRng) -> Duration {
    let percentile = random.random::<f64>() * 100.0;
    let upper = PERCENTILES.iter().position(|p| *p >= percentile).unwrap_or(6).max(1);
    let (low, high) = (PERCENTILES[upper - 1], PERCENTILES[upper]);
    let (from, to) = (function.durations_ms[upper - 1], function.durations_ms[upper]);
    clamped(from + (to - from) * (percentile - low) / (high - low))
}

/// Whole milliseconds from 1 ms to 60 s.
fn clamped(ms: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    Duration::from_millis(ms.round().clamp(1.0, 60_000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let functions = vec![TraceFunction {
            name: "f".to_owned(),
            per_minute: vec![10, 0, 5],
            durations_ms: [0.0, 0.2, 10.0, 20.0, 30.0, 1e5, 1e6],
            memory_mib: None,
            calls: Vec::new(),
        }];
        Trace { origin: "test".to_owned(), first_minute: 0, functions }
    }

    #[test]
    fn every_minute_holds_its_count_whatever_the_arrivals() {
        for arrivals in [Arrivals::Exponential, Arrivals::Uniform, Arrivals::Equidistant] {
            let shots = schedule(&trace(), 3, arrivals, 1.0, 7);
            let in_minute = |n: u64| shots.iter().filter(|s| s.at.as_secs() / 60 == n).count();
            assert_eq!((in_minute(0), in_minute(1), in_minute(2)), (10, 0, 5), "{arrivals:?}");
            assert!(shots.is_sorted_by_key(|shot| shot.at));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        let with = |seed| schedule(&trace(), 3, Arrivals::Exponential, 1.0, seed);
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn durations_are_clamped() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..1000 {
            let execution = execution(&trace().functions[0], &mut random);
            assert!((Duration::from_millis(1)..=Duration::from_secs(60)).contains(&execution));
        }
    }

    #[test]
    fn recorded_calls_come_when_they_came() {
        let mut trace = trace();
        let call = |at_ms, ms| Recorded {
            at: Duration::from_millis(at_ms),
            duration: Duration::from_micros(ms),
        };
        trace.functions[0].calls = vec![call(0, 10), call(59_999, 2_000_000), call(60_000, 1)];
        let shots = schedule(&trace, 1, Arrivals::Recorded, 2.0, 7);
        let seen: Vec<_> = shots.iter().map(|shot| (shot.at, shot.execution)).collect();
        let [first, second] = [(0, 1), (29_999_500, 2000)];
        let wanted =
            [first, second].map(|(us, ms)| (Duration::from_micros(us), Duration::from_millis(ms)));
        assert_eq!(seen, wanted);
        // A trace of counts has none.
        trace.functions[0].calls.clear();
        assert_eq!(schedule(&trace, 3, Arrivals::Recorded, 1.0, 7), []);
    }

    #[test]
    fn speed_compresses_arrivals() {
        let shots = schedule(&trace(), 3, Arrivals::Equidistant, 60.0, 7);
        assert!(shots.iter().all(|shot| shot.at < Duration::from_secs(3)));
    }
}
