//! The windows of Knative's KPA (pod autoscaler) on exact time-weighted concurrency.
//!
//! Knative averages samples; here data planes report cumulative busy time, so that averages are
//! exact whatever the rhythm of the reports. Time since a data plane's last report counts with the
//! concurrency that it reported then. Between `max(1, min)` and `max` sandboxes this says how many
//! there should be; the first one and the last one are the business of queued demand and of
//! keep-alive.
//!
//! Here sandboxes also go by themselves, at the end of their keep-alive. Where Knative would bring
//! back what its windows remember, this starts only what the present asks for as well
//! ([`Desired::grow_to`]): keep-alive stays exact, also where it is shorter than a window.
//!
//! Left out of Knative's: the scale-to-zero grace (keep-alive is exact here), scale-down-delay
//! (default 0 there), the activation scale and requests per second as a measure.

use std::time::Duration;

use crate::{DataPlaneId, Time, frame::Demand};

// Constants: defaults of Knative's `config-autoscaler` (serving v1.x).
/// `stable-window`.
pub const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// `panic-window-percentage` 10 of the stable window.
pub const PANIC_WINDOW: Duration = Duration::from_secs(6);
/// `panic-threshold-percentage`: at so much of what is ready, panic begins.
pub const PANIC_THRESHOLD_PERCENT: u64 = 200;
/// `container-concurrency-target-percentage`.
pub const TARGET_UTILISATION_PERCENT: u64 = 70;
/// `container-concurrency-target-default`: the soft target where concurrency has no limit.
pub const SOFT_TARGET: u32 = 100;
/// `max-scale-up-rate`.
pub const MAX_SCALE_UP_RATE: u64 = 1000;
/// `max-scale-down-rate`.
pub const MAX_SCALE_DOWN_RATE: u64 = 2;
/// `tick-interval`: how often `desired` is asked while it may change something.
pub const EVALUATION_INTERVAL: Duration = Duration::from_secs(2);

const BUCKET: u64 = 1_000_000_000;
const STABLE_BUCKETS: u64 = 60;
const PANIC_BUCKETS: u64 = 6;
/// One more than the stable window has: the oldest one lies in it in part.
const BUCKETS: usize = 61;

/// One function's windows. Of fixed size but for one small entry per data plane; a function without
/// demand for a stable window needs none.
#[derive(Clone, Debug)]
pub struct Kpa {
    /// Busy nanoseconds by the second in which they fell, a ring; nothing until there are some.
    buckets: Option<Box<[u64; BUCKETS]>>,
    /// The newest second that the ring covers.
    newest: u64,
    /// From when on there is data.
    since: Time,
    /// In the order of their ids.
    sources: Vec<(DataPlaneId, Source)>,
    /// When the panic threshold was last reached; while set, nothing is scaled down.
    panic: Option<Time>,
    /// The most that was desired in this panic.
    peak: u32,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    integral: u64,
    elapsed: u64,
    busy: u32,
    at: Time,
}

/// How many sandboxes there should be, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desired {
    /// More than so many are not needed: the rest may be recalled. At least 1.
    pub count: u32,
    /// Fewer than so many are too few: the rest is to be started. At least 1, at most `count`.
    pub grow_to: u32,
    /// Whether the panic window decided.
    pub panicking: bool,
    /// Average concurrency over the stable window, in thousandths.
    pub stable_milli: u64,
    /// Average concurrency over the panic window, in thousandths.
    pub panic_milli: u64,
    /// The concurrency aimed at per sandbox, in thousandths.
    pub target_milli: u64,
    /// Sandboxes ready, as told.
    pub ready: u32,
}

impl Desired {
    /// The rule's name in a decision.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        if self.panicking { "panic window" } else { "stable window" }
    }

    /// For the explanation of a decision.
    #[must_use]
    pub fn explain(&self) -> Vec<(String, String)> {
        let milli = |n: u64| format!("{}.{:03}", n / 1000, n % 1000);
        vec![
            ("concurrency over 60s".to_owned(), milli(self.stable_milli)),
            ("concurrency over 6s".to_owned(), milli(self.panic_milli)),
            ("target per sandbox".to_owned(), milli(self.target_milli)),
            ("ready".to_owned(), self.ready.to_string()),
        ]
    }
}

impl Kpa {
    /// Empty windows that begin now.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            buckets: None,
            newest: now.0 / BUCKET,
            since: now,
            sources: Vec::new(),
            panic: None,
            peak: 0,
        }
    }

    /// Windows of a function that has `ready` sandboxes already, of an earlier leader: as Knative
    /// does, it begins in panic, so that nothing is scaled down before one stable window is known.
    #[must_use]
    pub fn resumed(now: Time, ready: u32) -> Self {
        let mut kpa = Self::new(now);
        if ready > 1 {
            kpa.panic = Some(now);
            kpa.peak = ready;
        }
        kpa
    }

    /// A data plane's level. The first one of a data plane that was busy before counts from there
    /// on only: what lies before was another leader's.
    pub fn observe(&mut self, now: Time, from: DataPlaneId, demand: &Demand) {
        self.turn(now);
        let level = Source {
            integral: demand.busy_integral,
            elapsed: demand.elapsed,
            busy: demand.busy,
            at: now,
        };
        let before = match self.place(from) {
            Ok(at) => self.sources.get_mut(at).map(|(_, source)| std::mem::replace(source, level)),
            Err(at) => {
                self.sources.insert(at, (from, level));
                None
            }
        };
        // A restarted data plane counts from zero again.
        let (integral, elapsed) = before
            .filter(|old| old.elapsed <= level.elapsed && old.integral <= level.integral)
            .map_or((0, 0), |old| (level.integral - old.integral, level.elapsed - old.elapsed));
        self.spread(now, integral, elapsed);
    }

    /// A data plane has gone, or has nothing to do with the function any more.
    pub fn forget(&mut self, now: Time, from: DataPlaneId) {
        if let Ok(at) = self.place(from) {
            let (_, old) = self.sources.remove(at);
            self.turn(now);
            let elapsed = now.since(old.at);
            let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
            self.spread(now, elapsed.saturating_mul(u64::from(old.busy)), elapsed);
        }
    }

    /// Where a data plane's level stands, or would.
    fn place(&self, of: DataPlaneId) -> Result<usize, usize> {
        self.sources.binary_search_by_key(&of, |(id, _)| *id)
    }

    /// How many sandboxes there should be, given those that are ready.
    pub fn desired(&mut self, now: Time, concurrency: u32, ready: u32) -> Desired {
        self.turn(now);
        let target_milli = target_milli(concurrency);
        let stable_milli = self.average_milli(now, STABLE_BUCKETS);
        let panic_milli = self.average_milli(now, PANIC_BUCKETS);
        let present = u64::from(ready.max(1));
        let (most, least) = (present * MAX_SCALE_UP_RATE, present / MAX_SCALE_DOWN_RATE);
        let wanted = |milli: u64| milli.div_ceil(target_milli);
        let bounded = |count: u64| u32::try_from(count.max(least).min(most)).unwrap_or(u32::MAX);

        if wanted(panic_milli) * 100 >= present * PANIC_THRESHOLD_PERCENT {
            self.panic = Some(now);
        } else if self.panic.is_some_and(|since| now.since(since) > STABLE_WINDOW) {
            self.panic = None;
            self.peak = 0;
        }
        let mut count = bounded(wanted(stable_milli));
        let panicking = self.panic.is_some();
        if panicking {
            let current = count.max(bounded(wanted(panic_milli)));
            self.peak = self.peak.max(current);
            // Nothing is scaled down in a panic; what went by its keep-alive is not brought back.
            count = current.max(self.peak.min(ready));
        }
        let count = count.max(1);
        let busy = self.sources.iter().map(|(_, source)| u64::from(source.busy) * 1000).sum();
        let present = wanted(panic_milli.min(busy));
        let grow_to = count.min(u32::try_from(present).unwrap_or(u32::MAX)).max(1);
        Desired { count, grow_to, panicking, stable_milli, panic_milli, target_milli, ready }
    }

    /// Whether the windows would change what they say if nothing came any more.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.panic.is_none()
            && self.buckets.iter().all(|buckets| buckets.iter().all(|&busy| busy == 0))
            && self.sources.iter().all(|(_, source)| source.busy == 0)
    }

    /// Clears the seconds that have begun since the last call.
    fn turn(&mut self, now: Time) {
        let second = now.0 / BUCKET;
        let begun = second.saturating_sub(self.newest).min(BUCKETS as u64);
        if self.buckets.is_some() {
            for back in 0..begun {
                *self.bucket(second - back) = 0;
            }
        }
        self.newest = self.newest.max(second);
    }

    fn bucket(&mut self, second: u64) -> &mut u64 {
        let index = usize::try_from(second % BUCKETS as u64).unwrap_or(0);
        let buckets = self.buckets.get_or_insert_with(|| Box::new([0; BUCKETS]));
        buckets.get_mut(index).expect("a remainder of the ring's length")
    }

    /// Lays busy time evenly over the `elapsed` nanoseconds before now; what lies before the ring
    /// is dropped.
    fn spread(&mut self, now: Time, busy: u64, elapsed: u64) {
        if busy == 0 {
            return;
        }
        let begin = now.0.saturating_sub(elapsed);
        let mut end = now.0;
        let mut second = now.0 / BUCKET;
        let oldest = second.saturating_sub(STABLE_BUCKETS);
        loop {
            let piece = end - begin.max(second * BUCKET).min(end);
            let share = if elapsed == 0 {
                u128::from(busy)
            } else {
                u128::from(busy) * u128::from(piece) / u128::from(elapsed)
            };
            let bucket = self.bucket(second);
            *bucket = bucket.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
            if second <= oldest || begin >= second * BUCKET {
                return;
            }
            end = second * BUCKET;
            second -= 1;
        }
    }

    /// Average concurrency over the last so many seconds, or over what is known of them.
    fn average_milli(&self, now: Time, seconds: u64) -> u64 {
        let window = (seconds * BUCKET).min(now.0.saturating_sub(self.since.0)).max(1);
        let newest = now.0 / BUCKET;
        let into = now.0 % BUCKET;
        let mut busy: u128 = 0;
        for back in 0..=seconds.min(newest) {
            let index = usize::try_from((newest - back) % BUCKETS as u64).unwrap_or(0);
            let bucket = self.buckets.as_ref().and_then(|buckets| buckets.get(index));
            let bucket = u128::from(bucket.copied().unwrap_or(0));
            // The oldest second lies in the window with its later part only.
            let part = if back == seconds { BUCKET - into } else { BUCKET };
            busy += bucket * u128::from(part) / u128::from(BUCKET);
        }
        for (_, source) in &self.sources {
            let silent = now.0.saturating_sub(source.at.0).min(window);
            busy += u128::from(source.busy) * u128::from(silent);
        }
        u64::try_from(busy * 1000 / u128::from(window)).unwrap_or(u64::MAX)
    }
}

/// The concurrency aimed at per sandbox, in thousandths.
fn target_milli(concurrency: u32) -> u64 {
    let limit = if concurrency == 0 { SOFT_TARGET } else { concurrency };
    u64::from(limit) * 10 * TARGET_UTILISATION_PERCENT
}

#[cfg(test)]
mod tests;
