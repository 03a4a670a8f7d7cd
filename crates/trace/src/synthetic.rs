//! A trace without the data: functions whose rates and durations follow what was published of
//! Azure Functions 2019 (Shahrad et al., *Serverless in the Wild*, ATC 2020), seeded.
//!
//! - Rates span orders of magnitude: log-uniform, so that most functions are called at most once a
//!   minute and a few make nearly all calls (86 % and 84 % in the 500-function sample).
//! - Durations: log-normal with the paper's fit (mean of the logarithm -0.38, deviation 2.36, in
//!   seconds), clamped to the bounds given.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::trace::{Trace, TraceFunction};

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Functions.
    pub functions: usize,
    /// Minutes of the trace's own time.
    pub minutes: usize,
    /// Invocations per minute of the busiest function.
    pub rate_max: f64,
    /// No invocation executes for longer, in milliseconds.
    pub duration_max_ms: f64,
    /// The same seed gives the same trace.
    pub seed: u64,
}

/// The rarest function's invocations per minute: once in a bit over an hour.
const RATE_MIN: f64 = 0.015;
const DURATION_LN_MEAN: f64 = -0.38;
const DURATION_LN_DEVIATION: f64 = 2.36;

/// Draws a trace.
#[must_use]
pub fn trace(shape: Shape) -> Trace {
    let mut random = StdRng::seed_from_u64(shape.seed);
    let functions = (0..shape.functions)
        .map(|number| {
            let span = (shape.rate_max / RATE_MIN).ln();
            let rate = RATE_MIN * (random.random::<f64>().powi(2) * span).exp();
            TraceFunction {
                name: format!("demo-{number:03}"),
                per_minute: (0..shape.minutes).map(|_| poisson(rate, &mut random)).collect(),
                durations_ms: durations(shape.duration_max_ms, &mut random),
                memory_mib: None,
                calls: Vec::new(),
            }
        })
        .collect();
    Trace { origin: format!("synthetic, seed {}", shape.seed), first_minute: 0, functions }
}

/// Percentiles of one function's durations around a median of its own.
fn durations(max_ms: f64, random: &mut StdRng) -> [f64; 7] {
    let median = (DURATION_LN_MEAN + DURATION_LN_DEVIATION * normal(random)).exp() * 1000.0;
    // Within a function durations vary far less than between functions.
    [0.5, 0.6, 0.85, 1.0, 1.2, 2.5, 4.0].map(|factor| (median * factor).clamp(1.0, max_ms))
}

/// Box and Muller's method.
fn normal(random: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}

/// Counts exponential gaps within one unit of time; the rates here are small enough for that.
fn poisson(rate: f64, random: &mut StdRng) -> u32 {
    let mut count = 0;
    let mut time = 0.0;
    loop {
        time += -(1.0 - random.random::<f64>()).ln() / rate;
        if time >= 1.0 {
            return count;
        }
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(seed: u64) -> Shape {
        Shape { functions: 200, minutes: 30, rate_max: 300.0, duration_max_ms: 500.0, seed }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        assert_eq!(trace(shape(3)), trace(shape(3)));
        assert_ne!(trace(shape(3)), trace(shape(4)));
    }

    #[test]
    fn few_functions_make_most_of_the_calls() {
        let trace = trace(shape(3));
        let mut totals: Vec<u64> = trace
            .functions
            .iter()
            .map(|f| f.per_minute.iter().map(|count| u64::from(*count)).sum())
            .collect();
        totals.sort_unstable();
        let all: u64 = totals.iter().sum();
        let top: u64 = totals.iter().rev().take(20).sum();
        assert!(top * 2 > all, "the top tenth makes {top} of {all}");
        let rare = totals.iter().filter(|total| **total <= 30).count();
        assert!(rare * 2 > totals.len(), "{rare} of 200 at most once a minute");
    }
}
