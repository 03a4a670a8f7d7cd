//! Latencies of any number of calls in a memory that their number does not change.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::percentiles::{Summary, ms};

/// A histogram of microseconds, exact to three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

/// An hour: longer than any deadline.
const HIGHEST_US: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

impl Default for Latencies {
    fn default() -> Self {
        // Buckets are made as values need them: one of short calls stays small.
        let mut histogram = Histogram::new(DIGITS).expect("three digits are allowed");
        histogram.auto(true);
        Self(histogram)
    }
}

impl Latencies {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(HIGHEST_US);
        self.0.record(micros.min(HIGHEST_US)).expect("it grows with the values");
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds that so many per cent do not exceed; 0 of none.
    #[must_use]
    pub fn at(&self, percentile: f64) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        ms(Duration::from_micros(self.0.value_at_percentile(percentile)))
    }

    /// Its figures.
    #[must_use]
    pub fn summary(&self) -> Summary {
        if self.0.is_empty() {
            return Summary::default();
        }
        Summary {
            count: usize::try_from(self.count()).unwrap_or(usize::MAX),
            p50: self.at(50.0),
            p90: self.at(90.0),
            p99: self.at(99.0),
            max: ms(Duration::from_micros(self.0.max())),
            mean: self.0.mean() / 1000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_exact_to_three_digits_however_many_are_counted() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), Summary::default());
        for micros in 1..=100_000 {
            latencies.add(Duration::from_micros(micros));
        }
        let summary = latencies.summary();
        assert_eq!(summary.count, 100_000);
        for (seen, exact) in [(summary.p50, 50.0), (summary.p90, 90.0), (summary.p99, 99.0)] {
            assert!((seen / exact - 1.0).abs() < 1e-3, "{summary:?}");
        }
        // What lasts longer than anything that is measured counts as the longest.
        latencies.add(Duration::from_secs(1_000_000));
        assert!((latencies.summary().max / 3_600_000.0 - 1.0).abs() < 1e-3);
    }
}
