//! How long to wait before dialling again: doubling, with jitter, so that those who lost the same
//! peer do not come back at the same instant.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Between half of the current step and the whole; the next step is twice as long.
    pub(crate) fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LAST);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new();
        for step in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let step = Duration::from_millis(step);
            let delay = backoff.delay();
            assert!(delay >= step / 2 && delay <= step, "{delay:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= FIRST);
    }
}
