//! An exponentially weighted moving average in integers.

use std::time::Duration;

/// Weight of a new sample is one in 2^3: the 1/8 of TCP's smoothed round-trip time (RFC 6298,
/// section 2), made for the same task of following a noisy time without a history.
const SHIFT: u32 = 3;

/// A smoothed duration; nothing until the first sample, which it then equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ewma {
    /// Nanoseconds times 2^SHIFT, so that small differences are not rounded away.
    scaled: Option<u64>,
}

impl Ewma {
    /// Nothing known yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { scaled: None }
    }

    /// One more sample.
    pub fn add(&mut self, sample: Duration) {
        let nanos = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX >> SHIFT);
        self.scaled = Some(match self.scaled {
            None => nanos << SHIFT,
            Some(scaled) => (scaled - (scaled >> SHIFT)).saturating_add(nanos),
        });
    }

    /// The average, if there was a sample.
    #[must_use]
    pub fn get(self) -> Option<Duration> {
        self.scaled.map(|scaled| Duration::from_nanos(scaled >> SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_is_the_average() {
        let mut average = Ewma::new();
        assert_eq!(average.get(), None);
        average.add(Duration::from_millis(80));
        assert_eq!(average.get(), Some(Duration::from_millis(80)));
    }

    #[test]
    fn a_sample_moves_it_by_an_eighth() {
        let mut average = Ewma::new();
        average.add(Duration::from_millis(80));
        average.add(Duration::from_millis(160));
        assert_eq!(average.get(), Some(Duration::from_millis(90)));
        average.add(Duration::ZERO);
        assert_eq!(average.get(), Some(Duration::from_micros(78_750)));
    }

    #[test]
    fn a_constant_is_kept_exactly_and_the_extremes_do_not_overflow() {
        let mut average = Ewma::new();
        for _ in 0..1000 {
            average.add(Duration::from_nanos(7));
        }
        assert_eq!(average.get(), Some(Duration::from_nanos(7)));
        average.add(Duration::MAX);
        average.add(Duration::MAX);
        assert!(average.get().is_some_and(|value| value > Duration::from_secs(3600)));
    }
}
