//! How many starts queued invocations are worth: as many as pay off.
//!
//! A start pays off if the expected wait for a slot is longer than the expected start. With `S`
//! slots, each free again after the service time `s` on average, the slots serve `S * c / s` of the
//! queue before a sandbox that takes `c` to start could take its first. What is queued beyond that
//! would wait longer for a slot than for a start:
//!
//! ```text
//! served = floor(S * c / s)            0 without slots, or while no service time is known
//! starts = ceil((queued - served) / concurrency)
//! ```
//!
//! The result is the number of starts that should be *outstanding*: starts under way count towards
//! it, and those that were decided but have no worker yet may be withdrawn when it falls. Both
//! times are learned per function ([`Ewma`](super::ewma::Ewma)); `c` is counted from the decision,
//! so that waiting for a start token makes further starts less attractive by itself.

use std::time::Duration;

use super::scaling::Levels;

/// The start time supposed before one was seen: what a sandbox itself needs according to the paper
/// (Cvetković et al., SOSP'24, section 2: about 100 ms).
pub const SUPPOSED_START: Duration = Duration::from_millis(100);

/// What the number of starts is decided from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Invocations waiting, over all data planes.
    pub queued: u32,
    /// Slots of sandboxes that are ready and not leaving, busy ones included; for
    /// `concurrency = 0`, sandboxes.
    pub slots: u32,
    /// Invocations at once per sandbox; 0 is no limit.
    pub concurrency: u32,
    /// The learned time that an invocation occupies its slot.
    pub service: Option<Duration>,
    /// The learned time from the decision to a ready sandbox.
    pub start: Option<Duration>,
}

impl Inputs {
    /// Of a function whose sandboxes take one invocation each.
    #[must_use]
    pub const fn of(levels: &Levels, service: Option<Duration>, start: Option<Duration>) -> Self {
        let slots = levels.busy.saturating_add(levels.idle);
        Self { queued: levels.queued, slots, concurrency: 1, service, start }
    }

    /// For the explanation of a decision.
    #[must_use]
    pub fn explain(&self) -> Vec<(String, String)> {
        let time = |time: Option<Duration>| {
            time.map_or_else(|| "unknown".to_owned(), |t| format!("{t:?}"))
        };
        vec![
            ("queued".to_owned(), self.queued.to_string()),
            ("slots".to_owned(), self.slots.to_string()),
            ("concurrency".to_owned(), self.concurrency.to_string()),
            ("expected service".to_owned(), time(self.service)),
            ("expected start".to_owned(), time(self.start)),
        ]
    }
}

/// How many starts should be outstanding for what is queued; see the module.
#[must_use]
pub fn outstanding(inputs: &Inputs) -> u32 {
    let &Inputs { queued, slots, concurrency, service, start } = inputs;
    if concurrency == 0 {
        // One sandbox takes everything that comes: only the first is worth a start here, more of
        // them are the windows' business.
        return u32::from(queued > 0 && slots == 0);
    }
    let served = match service {
        None => 0,
        Some(service) => {
            let start = start.unwrap_or(SUPPOSED_START).as_nanos();
            u128::from(slots) * start / service.as_nanos().max(1)
        }
    };
    let rest = u128::from(queued).saturating_sub(served);
    u32::try_from(rest.div_ceil(u128::from(concurrency))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Option<Duration> {
        Some(Duration::from_millis(n))
    }

    #[test]
    fn without_slots_every_queued_invocation_is_worth_its_share_of_a_start() {
        let inputs = Inputs { queued: 200, concurrency: 1, start: ms(5), ..Inputs::default() };
        assert_eq!(outstanding(&inputs), 200);
        assert_eq!(outstanding(&Inputs { concurrency: 80, ..inputs }), 3);
        assert_eq!(outstanding(&Inputs { queued: 0, ..inputs }), 0);
    }

    #[test]
    fn a_start_that_takes_longer_than_the_wait_is_not_made() {
        let inputs = Inputs { queued: 8, slots: 1, concurrency: 1, service: ms(1), start: ms(10) };
        assert_eq!(outstanding(&inputs), 0);
        assert_eq!(outstanding(&Inputs { queued: 11, ..inputs }), 1);
    }

    #[test]
    fn a_start_that_is_shorter_than_the_wait_is_made() {
        let inputs = Inputs { queued: 8, slots: 2, concurrency: 1, service: ms(100), start: ms(5) };
        assert_eq!(outstanding(&inputs), 8);
        let slower = Inputs { start: ms(100), ..inputs };
        assert_eq!(outstanding(&slower), 6, "two are served by the slots meanwhile");
    }

    #[test]
    fn unknown_times_are_taken_as_busy_slots_and_a_plain_start() {
        let inputs = Inputs { queued: 3, slots: 2, concurrency: 1, service: None, start: None };
        assert_eq!(outstanding(&inputs), 3);
        assert_eq!(outstanding(&Inputs { service: ms(100), ..inputs }), 1);
        assert_eq!(outstanding(&Inputs { service: Some(Duration::ZERO), ..inputs }), 0);
    }

    #[test]
    fn without_a_limit_per_sandbox_only_the_first_is_started() {
        let inputs = Inputs { queued: 500, ..Inputs::default() };
        assert_eq!(outstanding(&inputs), 1);
        assert_eq!(outstanding(&Inputs { slots: 1, ..inputs }), 0);
    }
}
