//! No sandbox is started on a worker that is cordoned or drained, once that is durable and known: by
//! the leader that said so, and by every later one.

use dirigent_core::{Epoch, frame::ToWorker};

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "cordoned_gets_nothing";

impl World {
    /// A leader says something to a worker.
    pub(crate) fn check_cordoned(&mut self, control: usize, to: Option<Host>, frame: &ToWorker) {
        let (Some(Host::Worker(worker)), ToWorker::StartSandbox(order)) = (to, frame) else {
            return;
        };
        // One whose store was restored from an older copy may have the higher epoch without being the
        // later one.
        let later = |epoch: &Epoch| !self.users.is_deceived(*epoch);
        let Some(epoch) = self.epoch_of(control).filter(later) else { return };
        let known = |(_, by): &(&usize, &Epoch)| **by <= epoch;
        let cordoned = &self.operators.cordoned;
        if cordoned.iter().any(|entry| known(&entry)) {
            let holds = cordoned.get(&worker).is_none_or(|by| *by > epoch);
            let sandbox = order.sandbox;
            self.hold(NAME, holds, |_| {
                format!("{sandbox} is started on worker{worker} by {epoch}")
            });
        }
    }
}
