//! The one place where a shell reads the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

/// The time of day can be set: who waits for one looks at it again after this at the latest.
const LOOK: Duration = Duration::from_secs(60);

/// A process's clock. Monotonic time comes from tokio, so that tests can pause it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock whose origin is now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since the origin.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub fn nanos(&self) -> u64 {
        u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The tokio instant so many nanoseconds after the origin.
    #[must_use]
    pub fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }

    /// The time of day.
    #[must_use]
    pub fn wall() -> SystemTime {
        SystemTime::now()
    }

    /// The time of day: milliseconds since 1970.
    #[must_use]
    pub fn wall_ms() -> u64 {
        let since = Self::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// A step of waiting for a time of day; whether it has come. Whoever waits looks at what it waits for
    /// before the next step: it may have changed meanwhile. Cancellation safe.
    pub async fn step_to(wall: SystemTime) -> bool {
        let Ok(left) = wall.duration_since(Self::wall()) else { return true };
        sleep(left.min(LOOK)).await;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_time_of_day_is_waited_for_in_steps() {
        let begun = Instant::now();
        assert!(Clock::step_to(UNIX_EPOCH).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(!Clock::step_to(Clock::wall() + Duration::from_secs(3600)).await);
        assert_eq!(begun.elapsed(), LOOK);
    }
}
