//! Summaries of samples.

use std::time::Duration;

use serde::Serialize;

/// A summary of durations in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Samples.
    pub count: usize,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile. From fewer than [`P99_SAMPLES`] it is indicative only.
    pub p99: f64,
    /// Largest.
    pub max: f64,
    /// Arithmetic mean.
    pub mean: f64,
}

/// Samples from which a 99th percentile is more than an indication.
pub const P99_SAMPLES: usize = 10_000;

/// Milliseconds of a duration.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The value at `percentile` (0 to 100) of sorted samples, by nearest rank; 0 of none.
#[must_use]
pub fn at(sorted: &[f64], percentile: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let rank = (percentile / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// Samples in order.
#[must_use]
pub fn sorted(samples: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut samples: Vec<f64> = samples.into_iter().collect();
    samples.sort_by(f64::total_cmp);
    samples
}

/// The summary of samples in any order.
#[must_use]
pub fn summary(samples: impl IntoIterator<Item = f64>) -> Summary {
    let sorted = sorted(samples);
    if sorted.is_empty() {
        return Summary::default();
    }
    Summary {
        count: sorted.len(),
        p50: at(&sorted, 50.0),
        p90: at(&sorted, 90.0),
        p99: at(&sorted, 99.0),
        max: at(&sorted, 100.0),
        mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_nearest() {
        let samples = sorted((1..=100).map(f64::from));
        assert_eq!(at(&samples, 50.0), 50.0);
        assert_eq!(at(&samples, 99.0), 99.0);
        assert_eq!(at(&samples, 0.0), 1.0);
        assert_eq!(at(&samples, 100.0), 100.0);
        assert_eq!(at(&[], 50.0), 0.0);
    }
}
