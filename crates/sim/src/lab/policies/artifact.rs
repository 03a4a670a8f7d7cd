//! The published artifact's autoscaler (`github.com/eth-easl/dirigent` at `44c9e88`,
//! `internal/control_plane/autoscaling/autoscaling.go`, with the data plane's metrics loop of
//! `internal/data_plane/function_metadata`): a tick of 2 s, a stable window of 60 s and a panic
//! window of 6 s of point samples, a first decision that is always one sandbox, and scaling to zero
//! whenever the samples since the last activation are all zero.
//!
//! Its early binding (250 ms at one sandbox, then another choice) and who is evicted are rules of
//! the [world](crate::lab::world). Kept: the panic window that reads the oldest samples after the
//! ring's wrap-around, and the data plane's gauge, which after an idle moment stays at what the
//! first call reported until its own next sample. Left out, in its favour: the batch barrier (ticks
//! lost while the slowest start of a batch takes), and the answer 410 after 15 s of choosing.

use std::time::Duration;

use dirigent_core::{
    Time,
    policy::scaling::{Hold, Levels, Scaling, Wanted},
};

/// `StableWindowWidthSeconds` / `ScalingPeriodSeconds`.
const STABLE: usize = 30;
/// `PanicWindowWidthSeconds` / `ScalingPeriodSeconds`.
const PANIC: usize = 3;
/// Of the control plane's tick and of the data plane's metrics loop.
pub const PERIOD: Duration = Duration::from_secs(2);
const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// `PanicThresholdPercentage` 200.
const PANIC_THRESHOLD: f64 = 2.0;
/// `MaxScaleUpRate`.
const UP: f64 = 1000.0;
/// `MaxScaleDownRate`.
const DOWN: f64 = 2.0;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Artifact {
    gauge: Gauge,
    running: bool,
    /// `ActualScale`: the last desired value.
    actual: u32,
    samples: Vec<f64>,
    head: usize,
    panic: Option<Time>,
    peak: u32,
}

/// The data plane's report of invocations in flight, as the control plane last heard it.
#[derive(Clone, Copy, Debug, Default)]
struct Gauge {
    level: u32,
    heard: u32,
    /// The metrics loop's next sample, while it runs.
    next: Option<Time>,
}

impl Gauge {
    /// The loop's samples until now, of the level before what happens now.
    fn advance(&mut self, now: Time) {
        while let Some(at) = self.next.filter(|at| *at <= now) {
            self.heard = self.level;
            self.next = (self.level > 0).then(|| at + PERIOD);
        }
    }

    fn change(&mut self, levels: &Levels) {
        self.advance(levels.now);
        self.level = levels.present();
        if self.next.is_none() && self.level > 0 {
            self.heard = self.level;
            self.next = Some(levels.now + PERIOD);
        }
    }
}

impl Artifact {
    fn stable(&self) -> f64 {
        self.samples.iter().sum::<f64>() / self.samples.len().max(1) as f64
    }

    fn panic(&self) -> f64 {
        let wanted = PANIC.min(self.samples.len());
        let mut index = self.head;
        let mut sum = 0.0;
        for _ in 0..wanted {
            sum += self.samples.get(index).copied().unwrap_or_default();
            // As published: it wraps to the panic window's last place, not to the ring's.
            index = index.checked_sub(1).unwrap_or(PANIC - 1);
        }
        sum / wanted.max(1) as f64
    }

    fn record(&mut self, sample: f64) {
        if self.samples.len() < STABLE {
            self.head = self.samples.len();
            self.samples.push(sample);
        } else {
            self.head = (self.head + 1) % STABLE;
            if let Some(place) = self.samples.get_mut(self.head) {
                *place = sample;
            }
        }
    }

    fn desired(&mut self, now: Time) -> u32 {
        let ready = f64::from(self.actual.max(1));
        let (up, down) = ((UP * ready).ceil(), (ready / DOWN).floor());
        // The target is one invocation per sandbox: concurrency 1 at 100 %.
        let (stable, panic) = (self.stable().ceil(), self.panic().ceil());
        let bounded = |count: f64| whole(count.max(down).min(up));
        if panic / ready >= PANIC_THRESHOLD {
            self.panic = Some(now);
        } else if self.panic.is_some_and(|since| now.since(since) > STABLE_WINDOW) {
            self.panic = None;
            self.peak = 0;
        }
        let stable = bounded(stable);
        if self.panic.is_none() {
            return stable;
        }
        self.peak = self.peak.max(stable).max(bounded(panic));
        self.peak
    }
}

/// A count of sandboxes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
pub(super) fn whole(count: f64) -> u32 {
    count.clamp(0.0, 1e6) as u32
}

impl Scaling for Artifact {
    fn arrived(&mut self, levels: &Levels) {
        self.gauge.change(levels);
    }

    fn finished(&mut self, levels: &Levels, _ran: Duration) {
        self.gauge.change(levels);
    }

    fn started(&mut self, levels: &Levels, _took: Duration) {
        self.gauge.change(levels);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        if self.running {
            return levels.starting;
        }
        self.running = true;
        self.actual = 1;
        1
    }

    fn hold(&mut self, _levels: &Levels, _rank: u32) -> Hold {
        Hold::keep(Duration::MAX)
    }

    fn tick(&mut self, levels: &Levels) -> Option<Wanted> {
        if !self.running {
            return None;
        }
        self.gauge.advance(levels.now);
        self.record(f64::from(self.gauge.heard));
        self.actual = self.desired(levels.now);
        self.running = self.actual > 0;
        Some(Wanted::exactly(self.actual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, busy: u32) -> Levels {
        Levels { now: Time(seconds * 1_000_000_000), busy, ..Levels::default() }
    }

    fn queued(seconds: u64, queued: u32) -> Levels {
        Levels { queued, ..at(seconds, 0) }
    }

    #[test]
    fn a_burst_gets_one_sandbox_first_and_the_rest_at_the_tick() {
        let mut policy = Artifact::default();
        policy.arrived(&queued(0, 1));
        assert_eq!(policy.starts(&queued(0, 1)), 1);
        policy.arrived(&queued(0, 8));
        assert_eq!(policy.starts(&Levels { starting: 1, ..queued(0, 8) }), 1);
        assert_eq!(policy.tick(&queued(2, 8)), Some(Wanted::exactly(8)));
    }

    #[test]
    fn an_isolated_short_call_is_gone_after_one_tick_and_a_pinned_one_after_a_window() {
        let mut policy = Artifact::default();
        policy.arrived(&queued(0, 1));
        policy.starts(&queued(0, 1));
        policy.finished(&at(1, 0), Duration::from_millis(10));
        assert_eq!(policy.tick(&at(2, 0)), Some(Wanted::exactly(0)));
        // In flight at a tick: its sample stays in the window for 30 ticks.
        policy.arrived(&queued(10, 1));
        policy.starts(&queued(10, 1));
        assert_eq!(policy.tick(&at(12, 1)), Some(Wanted::exactly(1)));
        policy.finished(&at(13, 0), Duration::from_secs(3));
        let gone = (14..).step_by(2).find(|s| policy.tick(&at(*s, 0)) == Some(Wanted::exactly(0)));
        assert_eq!(gone, Some(72));
    }

    #[test]
    fn two_at_once_are_a_panic_that_pins_the_scale() {
        let mut policy = Artifact::default();
        policy.arrived(&queued(0, 2));
        policy.starts(&queued(0, 2));
        assert_eq!(policy.tick(&at(2, 2)), Some(Wanted::exactly(2)));
        policy.finished(&at(3, 0), Duration::from_secs(1));
        let pinned =
            (4..=62).step_by(2).all(|s| policy.tick(&at(s, 0)) == Some(Wanted::exactly(2)));
        assert!(pinned);
    }
}
