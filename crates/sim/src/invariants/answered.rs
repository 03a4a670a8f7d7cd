//! No invocation is unanswered by a data plane that lived through it: within the time to resolve, to
//! queue and to run, and to be tried once more, the pauses of its process not counted.

use std::time::Duration;

use crate::{calls::RESOLVE, world::World};

pub(super) const NAME: &str = "answered";

/// 8 s in the queue and 6 s to run, twice, as the users' settings say. An attempt that breaks when
/// the time to queue is over has as long as a connection may take, for itself and for finding another
/// slot. Sweeps are 250 ms apart.
const LONGEST: Duration = Duration::from_millis(8000 + 2 * 6000 + 3 * 500 + 250);

impl World {
    pub(super) fn check_answered(&mut self) {
        let now = self.now;
        for plane in 0..self.planes.len() {
            let Some(p) = self.planes.get(plane).filter(|p| p.up) else { continue };
            let oldest = p.calls.iter().min_by_key(|(_, call)| call.arrived);
            let Some((&invocation, call)) = oldest else { continue };
            let since = call.arrived.max(p.resumed);
            let holds = now.since(since) < LONGEST + RESOLVE;
            self.hold(NAME, holds, |world| {
                let call = world.planes.get(plane).and_then(|p| p.calls.get(&invocation));
                format!("{invocation} at plane{plane} is not answered: {call:?}")
            });
        }
    }
}
