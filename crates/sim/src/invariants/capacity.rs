//! The sandboxes of a worker never reserve more than it has: memory, processors with its overcommit,
//! places.

use dirigent_core::{Resources, SandboxId};

use crate::world::World;

pub(super) const NAME: &str = "capacity";

impl World {
    /// A sandbox is about to be created; it is not among the worker's yet.
    pub(crate) fn created(&mut self, worker: usize, sandbox: SandboxId, needs: Resources) {
        self.check_started_once(sandbox);
        let Some(w) = self.workers.get(worker) else { return };
        let (room, used) = (w.room, w.reserved());
        let (memory, cpu) = (used.0 + needs.memory.0, used.1 + u64::from(needs.cpu.0));
        let places = used.2 + 1;
        let holds = memory <= room.memory.0
            && cpu <= room.reservable()
            && places <= u64::from(room.sandboxes);
        self.counts.full_memory += u64::from(memory + needs.memory.0 > room.memory.0);
        self.counts.full_cpu += u64::from(cpu + u64::from(needs.cpu.0) > room.reservable());
        self.counts.full_places += u64::from(places == u64::from(room.sandboxes));
        self.hold(NAME, holds, |_| {
            format!("worker{worker} has {room:?}, {used:?} reserved before {sandbox} of {needs:?}")
        });
    }
}
