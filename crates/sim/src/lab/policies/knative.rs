//! Knative's pod autoscaler with the defaults of its `config-autoscaler` (serving v1.x;
//! `pkg/autoscaler/scaling/autoscaler.go`, `pkg/autoscaler/aggregation/bucketing.go`): averages of
//! concurrency per second over 60 s and 6 s, a target of 70 % of one invocation, an evaluation each
//! 2 s, panic at twice of what is ready, growth by a factor of 1000 and shrinking by a half at most.
//!
//! From zero the activator's first report is evaluated at once (`MultiScaler.Poke`). To zero it
//! goes when the whole stable window was idle; with the default target burst capacity of 211 the
//! activator is in the path already, so that the grace period of 30 s is over by then
//! (`pkg/reconciler/autoscaling/kpa/scaler.go`). Calls wait in the activator: late binding, a rule
//! of the [world](crate::lab::world). Real Knative also needs a second and more per start; here it
//! is given everybody's start times.

use std::time::Duration;

use dirigent_core::{
    Time,
    policy::scaling::{Hold, Levels, Scaling, Wanted},
};

use super::artifact::whole;

/// `tick-interval`.
pub const TICK: Duration = Duration::from_secs(2);
/// `stable-window`.
pub const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// `container-concurrency-target-percentage` 70 of a concurrency of 1.
const TARGET: f64 = 0.7;
/// `panic-threshold-percentage` 200.
const PANIC_THRESHOLD: f64 = 2.0;
/// `max-scale-up-rate`.
const UP: f64 = 1000.0;
/// `max-scale-down-rate`.
const DOWN: f64 = 2.0;

const SECOND: u64 = 1_000_000_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct Knative {
    /// Average concurrency by second, a ring over the stable window.
    buckets: Vec<f64>,
    newest: u64,
    first: Option<u64>,
    level: u32,
    at: u64,
    panic: Option<Time>,
    peak: u32,
    from_zero: bool,
}

impl Knative {
    /// With this stable window; the panic window is a tenth of it.
    #[must_use]
    pub fn new(stable: Duration) -> Self {
        let seconds = usize::try_from(stable.as_secs().max(10)).unwrap_or(usize::MAX);
        Self {
            buckets: vec![0.0; seconds],
            newest: 0,
            first: None,
            level: 0,
            at: 0,
            panic: None,
            peak: 0,
            from_zero: true,
        }
    }

    /// The same without the immediate first decision: all starts are made at ticks.
    #[must_use]
    pub fn asynchronous(stable: Duration) -> Self {
        Self { from_zero: false, ..Self::new(stable) }
    }

    fn bucket(&mut self, second: u64) -> Option<&mut f64> {
        let length = self.buckets.len() as u64;
        self.buckets.get_mut(usize::try_from(second % length).ok()?)
    }

    /// Lays the level since the last change into the seconds that have passed.
    fn advance(&mut self, now: Time) {
        let length = self.buckets.len() as u64;
        if now.0 / SECOND > self.newest + length {
            // Nothing of the ring is in the window any more.
            let level = f64::from(self.level);
            self.buckets.fill(level);
            self.newest = now.0 / SECOND;
            self.at = now.0;
        }
        while self.at < now.0 {
            let second = self.at / SECOND;
            let end = now.0.min((second + 1) * SECOND);
            if second > self.newest {
                self.newest = second;
                if let Some(bucket) = self.bucket(second) {
                    *bucket = 0.0;
                }
            }
            let busy = (end - self.at) as f64 / SECOND as f64 * f64::from(self.level);
            if let Some(bucket) = self.bucket(second) {
                *bucket += busy;
            }
            self.at = end;
        }
        self.at = now.0;
    }

    fn change(&mut self, levels: &Levels) {
        self.advance(levels.now);
        self.level = levels.present();
        if self.level > 0 {
            self.first.get_or_insert(self.at / SECOND);
        }
    }

    fn average(&self, seconds: u64) -> f64 {
        let known = self.first.map_or(0, |first| self.newest.saturating_sub(first) + 1);
        let seconds = seconds.min(known).max(1);
        let length = self.buckets.len() as u64;
        let of = |back: u64| {
            let second = self.newest.checked_sub(back)?;
            self.buckets.get(usize::try_from(second % length).ok()?).copied()
        };
        (0..seconds).filter_map(of).sum::<f64>() / seconds as f64
    }

    fn desired(&mut self, levels: &Levels) -> u32 {
        let length = self.buckets.len() as u64;
        let ready = f64::from((levels.busy + levels.idle).max(1));
        let (up, down) = ((UP * ready).ceil(), (ready / DOWN).floor());
        let stable = (self.average(length) / TARGET).ceil();
        let panic = (self.average((length / 10).max(1)) / TARGET).ceil();
        if panic / ready >= PANIC_THRESHOLD {
            self.panic = Some(levels.now);
        } else if self.panic.is_some_and(|since| levels.now.since(since).as_secs() > length) {
            self.panic = None;
            self.peak = 0;
        }
        let bounded = |count: f64| whole(count.max(down).min(up));
        // The last one goes by the window alone: shrinking to a half ends at none.
        let stable = if stable == 0.0 && ready <= 1.0 { 0 } else { bounded(stable) };
        if self.panic.is_none() {
            return stable;
        }
        self.peak = self.peak.max(stable).max(bounded(panic));
        self.peak
    }
}

impl Scaling for Knative {
    fn arrived(&mut self, levels: &Levels) {
        self.change(levels);
    }

    fn finished(&mut self, levels: &Levels, _ran: Duration) {
        self.change(levels);
    }

    fn started(&mut self, levels: &Levels, _took: Duration) {
        self.change(levels);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        if self.from_zero && levels.busy + levels.idle + levels.starting == 0 {
            return self.desired(levels).max(1);
        }
        levels.starting
    }

    fn hold(&mut self, _levels: &Levels, _rank: u32) -> Hold {
        Hold::keep(Duration::MAX)
    }

    fn tick(&mut self, levels: &Levels) -> Option<Wanted> {
        self.change(levels);
        Some(Wanted::exactly(self.desired(levels)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(ms: u64, queued: u32, busy: u32) -> Levels {
        Levels { now: Time(ms * 1_000_000), queued, busy, ..Levels::default() }
    }

    #[test]
    fn a_steady_call_wants_what_the_target_makes_of_it() {
        let mut policy = Knative::new(STABLE_WINDOW);
        policy.arrived(&levels(0, 0, 7));
        assert_eq!(policy.tick(&levels(30_000, 0, 7)), Some(Wanted::exactly(10)));
    }

    #[test]
    fn zero_comes_a_stable_window_after_the_last_call() {
        let mut policy = Knative::new(STABLE_WINDOW);
        policy.arrived(&levels(0, 0, 1));
        policy.finished(&levels(500, 0, 0), Duration::from_millis(500));
        let idle = |ms| Levels { idle: 1, ..levels(ms, 0, 0) };
        let gone =
            (2..).step_by(2).find(|s| policy.tick(&idle(s * 1000)) == Some(Wanted::exactly(0)));
        assert_eq!(gone, Some(62));
    }

    #[test]
    fn a_burst_is_a_panic_and_the_peak_is_kept_through_it() {
        let mut policy = Knative::new(STABLE_WINDOW);
        policy.arrived(&levels(0, 1, 0));
        assert_eq!(policy.starts(&levels(0, 1, 0)), 1);
        policy.arrived(&levels(100, 40, 0));
        let Some(Wanted { at_least, .. }) = policy.tick(&levels(2000, 40, 0)) else { panic!() };
        assert!(at_least >= 25, "{at_least}");
        policy.finished(&levels(2100, 0, 0), Duration::from_secs(1));
        let later = policy.tick(&Levels { idle: at_least, ..levels(30_000, 0, 0) });
        assert_eq!(later, Some(Wanted::exactly(at_least)));
    }
}
