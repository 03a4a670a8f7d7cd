//! A worker that is drained is empty within the time that a call, its drain and a start may take.

use std::time::Duration;

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "drains_end";

/// A call may take 6 s, a begun response 3 s on top of it, a start 2 s, a stop 1 s; and as much again
/// for what was under way when it was ordered.
const WITHIN: Duration = Duration::from_secs(24);
/// A new leader gives data planes that have not attached so long to say what they hold: nothing that
/// they may use is stopped before.
const DOUBT: Duration = Duration::from_secs(60);

impl World {
    pub(super) fn check_drains(&mut self) {
        let drained: Vec<_> = self.operators.drained.clone().into_iter().collect();
        for (worker, since) in drained {
            let here = !self.left.contains(&Host::Worker(worker));
            let from = since.max(self.operators.led_since.after(DOUBT));
            if here && self.now > from.after(WITHIN) {
                let sandboxes = self.workers.get(worker).map(|w| &w.sandboxes);
                let left: Vec<_> =
                    sandboxes.into_iter().flat_map(|all| all.keys().copied()).collect();
                self.hold(NAME, left.is_empty(), |_| {
                    format!("worker{worker} is drained since {since:?} and has {left:?}")
                });
            }
        }
    }
}
