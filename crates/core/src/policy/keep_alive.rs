//! Starts that pay off and a keep-alive that is exact: what a function gets whose settings name a
//! `keep_alive`.
//!
//! This is the machines' rule as one value, for the laboratory: the gate keeps the times and the
//! control plane makes the starts. The windows, which may recall idle sandboxes earlier, are told
//! apart by the caller: [`Fixed::with_windows`].

use std::time::Duration;

use super::{
    ewma::Ewma,
    kpa::Kpa,
    scaling::{Hold, Levels, Scaling, Wanted},
    starts::{Inputs, outstanding},
};
use crate::{DataPlaneId, Epoch, FunctionId, Time, frame::Demand};

/// See the module.
#[derive(Clone, Debug)]
pub struct Fixed {
    keep: Duration,
    service: Ewma,
    start: Ewma,
    windows: Option<Box<Windows>>,
}

#[derive(Clone, Debug)]
struct Windows {
    kpa: Kpa,
    busy: u32,
    busy_integral: u64,
    at: Time,
}

impl Fixed {
    /// Idle sandboxes go after `keep` and not before.
    #[must_use]
    pub const fn new(keep: Duration) -> Self {
        Self { keep, service: Ewma::new(), start: Ewma::new(), windows: None }
    }

    /// Between the first sandbox and the last the windows decide too, at each tick.
    #[must_use]
    pub fn with_windows(keep: Duration, now: Time) -> Self {
        let windows = Windows { kpa: Kpa::new(now), busy: 0, busy_integral: 0, at: now };
        Self { windows: Some(Box::new(windows)), ..Self::new(keep) }
    }

    fn observe(&mut self, levels: &Levels) {
        if let Some(windows) = self.windows.as_deref_mut() {
            let passed = levels.now.0.saturating_sub(windows.at.0);
            windows.busy_integral += passed * u64::from(windows.busy);
            windows.busy = levels.busy;
            windows.at = levels.now;
        }
    }
}

/// The one data plane that a function has here.
const PLANE: DataPlaneId = DataPlaneId(0);

impl Scaling for Fixed {
    fn arrived(&mut self, levels: &Levels) {
        self.observe(levels);
    }

    fn finished(&mut self, levels: &Levels, ran: Duration) {
        self.service.add(ran);
        self.observe(levels);
    }

    fn started(&mut self, levels: &Levels, took: Duration) {
        self.start.add(took);
        self.observe(levels);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        outstanding(&Inputs::of(levels, self.service.get(), self.start.get()))
    }

    fn hold(&mut self, _levels: &Levels, _rank: u32) -> Hold {
        Hold::keep(self.keep)
    }

    fn tick(&mut self, levels: &Levels) -> Option<Wanted> {
        self.observe(levels);
        let windows = self.windows.as_deref_mut()?;
        let demand = Demand {
            function: FunctionId::new(Epoch(0), 0),
            queued: levels.queued,
            oldest_wait: Duration::ZERO,
            held: levels.busy + levels.idle,
            idle: levels.idle,
            busy: levels.busy,
            busy_integral: windows.busy_integral,
            elapsed: levels.now.0,
            arrivals_total: 0,
            finished_total: 0,
            expected: 0,
        };
        windows.kpa.observe(levels.now, PLANE, &demand);
        let desired = windows.kpa.desired(levels.now, 1, levels.busy + levels.idle);
        if levels.sandboxes() <= 1 && levels.queued == 0 {
            return None;
        }
        Some(Wanted { at_least: desired.grow_to, at_most: desired.count })
    }
}
