//! Many workers lost at once: more likely a broken network than broken workers.

use std::{collections::VecDeque, time::Duration};

use crate::{Time, WorkerId};

/// Losses are counted over this window (design, section 4: reachability).
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// The losses of the last window. A worker that returns takes its loss back.
#[derive(Debug, Default)]
pub(super) struct Storm {
    losses: VecDeque<(Time, WorkerId)>,
    active: bool,
}

impl Storm {
    pub(super) const fn is_active(&self) -> bool {
        self.active
    }

    pub(super) fn lost(&mut self, now: Time, worker: WorkerId) {
        self.losses.push_back((now, worker));
    }

    pub(super) fn returned(&mut self, worker: WorkerId) {
        self.losses.retain(|(_, lost)| *lost != worker);
    }

    /// Decides anew, with so many workers not lost; whether that changed anything.
    pub(super) fn judge(&mut self, now: Time, present: usize) -> bool {
        while self.losses.front().is_some_and(|(at, _)| at.after(WINDOW) <= now) {
            self.losses.pop_front();
        }
        let lost = self.losses.len();
        // More than a third of those there were.
        let active = lost * 3 > lost + present;
        std::mem::replace(&mut self.active, active) != active
    }

    /// When a loss leaves the window.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.losses.front().map(|(at, _)| at.after(WINDOW))
    }
}
