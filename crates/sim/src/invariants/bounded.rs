//! When everything is quiet, what is remembered is bounded by what lives.

use crate::world::World;

pub(super) const NAME: &str = "bounded";

impl World {
    pub(super) fn check_bounded(&mut self) {
        let running: usize = self.workers.iter().map(|w| w.sandboxes.len()).sum();
        let leader = self.leader().and_then(|c| self.controls.get(c));
        let Some(machine) = leader.and_then(|c| c.leads.as_ref()) else { return };
        let remembered = machine.remembered();
        let calls: usize = self.planes.iter().map(|p| p.calls.len()).sum();
        let queues: usize =
            self.net.streams.values().map(|s| s.up.queue.len() + s.down.queue.len()).sum();
        let peers = self.planes.len() + self.workers.len();
        // What runs on a worker that left stays with whoever holds slots of it and never tries.
        let booked = machine.booked();
        let lost = booked.iter().filter(|b| b.lost && !b.holders.is_empty()).count();
        let holds = remembered.sandboxes <= running + lost
            && remembered.addresses <= remembered.sandboxes
            && (remembered.claims == 0 || !self.left.is_empty())
            && (remembered.left_behind == 0 || !self.left.is_empty())
            && remembered.writes == 0
            && remembered.waiters == 0
            && calls == 0
            && queues <= 4 * peers
            && self.net.streams.len() <= peers;
        let (agenda, streams) = (self.agenda.len(), self.net.streams.len());
        self.hold(NAME, holds && agenda < 1000, |_| {
            format!(
                "{running} sandboxes, {lost} lost, {peers} peers; {remembered:?}, {calls} calls, {queues} \
                 packets, {streams} streams, {agenda} events ahead; \
                 {booked:?}"
            )
        });
    }
}
