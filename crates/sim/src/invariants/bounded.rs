//! What is remembered is bounded by what lives: at any time within what the live objects may need,
//! and when everything is quiet by what is there.

use std::collections::BTreeSet;

use dirigent_core::FunctionId;

use crate::{plane::Known, users::NAMES, world::World};

pub(super) const NAME: &str = "bounded";

/// Deadlines that belong to no object: the end of recovery, a look at many functions, the tokens.
const TIMERS: usize = 3;
/// Deadlines that a function may have at once, beside one for each data plane that fell silent.
const TIMERS_EACH: usize = 9;

impl World {
    /// At any time, of the one in office and of every data plane that lives.
    pub(super) fn check_bounds(&mut self) {
        self.check_planes_bounded();
        let leader = self.leader().and_then(|c| self.controls.get(c));
        let Some(machine) = leader.and_then(|c| c.leads.as_ref()) else { return };
        let all = machine.remembered();
        let peers = all.data_planes;
        // A function that was deleted stays for what is left of it.
        let ending = all.sandboxes + all.writes;
        let holds = all.names <= NAMES
            && all.functions <= all.names + ending
            && peers <= self.planes.len()
            && all.subscribed <= peers * NAMES
            && all.timers <= TIMERS + all.active * (TIMERS_EACH + peers) + all.sandboxes + peers
            && all.addresses <= all.sandboxes
            && all.writes <= all.functions + 2 * self.planes.len() + 1
            && all.waiters <= self.users.waiting();
        self.hold(NAME, holds, |world| {
            format!("{all:?}, {} data planes, {} users wait", peers, world.users.waiting())
        });
    }

    fn check_planes_bounded(&mut self) {
        let mut astray = None;
        for (plane, p) in self.planes.iter().enumerate().filter(|(_, p)| p.up) {
            let named: BTreeSet<FunctionId> = p
                .known
                .values()
                .filter_map(|known| match known {
                    Known::Function(function) => Some(*function),
                    Known::Asked | Known::Nothing => None,
                })
                .collect();
            let used: BTreeSet<FunctionId> =
                p.calls.values().filter_map(|call| call.function).collect();
            // A gate is there for a name, for what it holds, or for who waits.
            let idle = p
                .gates
                .iter()
                .find(|(id, f)| !named.contains(id) && !used.contains(id) && f.gate.is_empty());
            let held: usize = p.gates.values().map(|f| f.gate.holdings().len()).sum();
            if idle.is_some() || p.known.len() > NAMES || p.sandboxes.len() > held {
                let idle = idle.map(|(id, _)| *id);
                let (known, sandboxes) = (p.known.len(), p.sandboxes.len());
                astray = Some(format!(
                    "plane{plane} has a gate of {idle:?} for nothing, {known} names, \
                     {sandboxes} sandboxes of which {held} are held"
                ));
            }
        }
        self.hold(NAME, astray.is_none(), |_| astray.unwrap_or_default());
    }

    /// When everything is quiet.
    pub(super) fn check_bounded(&mut self) {
        self.check_bounds();
        let running: usize = self.workers.iter().map(|w| w.sandboxes.len()).sum();
        let leader = self.leader().and_then(|c| self.controls.get(c));
        let Some(machine) = leader.and_then(|c| c.leads.as_ref()) else { return };
        let remembered = machine.remembered();
        let calls: usize = self.planes.iter().map(|p| p.calls.len()).sum();
        let queues: usize =
            self.net.streams.values().map(|s| s.up.queue.len() + s.down.queue.len()).sum();
        let peers = self.planes.len() + self.workers.len();
        let recorded = self.store.state.functions.len();
        // What runs on a worker that left stays with whoever holds slots of it and never tries.
        let booked = machine.booked();
        let lost = booked.iter().filter(|b| b.lost && !b.holders.is_empty()).count();
        let holds = remembered.sandboxes <= running + lost
            && remembered.functions == recorded
            && remembered.names == recorded
            && remembered.active <= recorded
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
                "{recorded} functions, {running} sandboxes, {lost} lost, {peers} peers; {remembered:?}, \
                 {calls} calls, {queues} packets, {streams} streams, {agenda} events ahead; {booked:?}"
            )
        });
    }
}
