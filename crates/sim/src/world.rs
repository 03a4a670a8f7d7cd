//! One cluster in simulated time: everything that happens is drawn from one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Debug, Write as _},
    time::Duration,
};

use dirigent_core::{
    Bytes, MilliCpu, SandboxId, Settings, StreamId, Time,
    frame::{Grant, StartSandbox},
    policy::random::Pcg,
};
use std::sync::Arc;

use crate::{
    agenda::{Agenda, Clockwork, Host, What},
    faults::Undo,
    invariants::Witness,
    leader::ControlHost,
    net::Net,
    operators::Operators,
    plane::{Durable, PlaneHost},
    plant::Plant,
    store::Store,
    users::Users,
    worker::{Room, WorkerHost},
};

/// Faults end then.
pub(crate) const HEALED: Time = Time(45_000_000_000);
/// Calls end then.
const CALM: Time = Time(65_000_000_000);
/// Everything has converged by then: the longest back-off, and the stable window of a leader that
/// took office at the last moment, are over.
const END: Time = Time(200_000_000_000);
const SWEEP: Duration = Duration::from_millis(250);

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Things that happened.
    pub steps: u64,
    /// Invocations.
    pub calls: u64,
    /// Those that queued.
    pub queued: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Callers who left while they queued.
    pub left_queued: u64,
    /// Callers who were timed out while they queued.
    pub late_queued: u64,
    /// Callers who left while a handler ran.
    pub left_running: u64,
    /// Callers who were timed out while a handler ran.
    pub late_running: u64,
    /// Sandboxes that exited instead of listening.
    pub failed_starts: u64,
    /// Sandboxes that were ended since they did not listen within `start_timeout`.
    pub slow_starts: u64,
    /// Times that a data plane was told that no worker has room.
    pub no_capacity: u64,
    /// Times that a worker was full after a sandbox was created: no memory is left for one like it.
    pub full_memory: u64,
    /// No processors are left for one like it.
    pub full_cpu: u64,
    /// No place is left for another one.
    pub full_places: u64,
    /// Packets that waited for the end of a cut, and whose stream lived through it.
    pub late_packets: u64,
    /// Executions in sandboxes.
    pub handlers: u64,
    /// Handlers that ran on without a slot.
    pub overruns: u64,
    /// Invocations that died with their data plane.
    pub cut: u64,
    /// Streams given up since nobody read them.
    pub stuck: u64,
    /// Times that a data plane was barred from a sandbox.
    pub barred: u64,
    /// Sandboxes of which a silent data plane held slots, at each look at them.
    pub silences: u64,
    /// Orders of operators.
    pub orders: u64,
    /// Functions that went back to an earlier revision.
    pub rollbacks: u64,
    /// Orders of operators about workers and data planes.
    pub postings: u64,
    /// Workers and data planes removed.
    pub removals: u64,
    /// Data planes that left in order.
    pub departures: u64,
    /// Sandboxes made.
    pub created: u64,
    /// Writes that reached the store.
    pub writes: u64,
    /// Writes committed whose acknowledgement was lost.
    pub lost_acknowledgements: u64,
    /// Terms of office begun.
    pub terms: u64,
    /// Leaders that stood down while they lived.
    pub resignations: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Answers by kind.
    pub answers: BTreeMap<usize, u64>,
}

impl Counts {
    /// What must have happened in some seed, beside faults and the premises of invariants: what was
    /// never met was not put to the test.
    #[must_use]
    pub fn met(&self) -> [(&'static str, u64); 18] {
        [
            ("retry", self.retries),
            ("caller left while queued", self.left_queued),
            ("caller timed out while queued", self.late_queued),
            ("caller left while a handler ran", self.left_running),
            ("caller timed out while a handler ran", self.late_running),
            ("overrun", self.overruns),
            ("invocation died with its data plane", self.cut),
            ("stream nobody read", self.stuck),
            ("data plane barred", self.barred),
            ("slots of the silent judged", self.silences),
            ("failed start", self.failed_starts),
            ("start slower than its time-out", self.slow_starts),
            ("no capacity", self.no_capacity),
            ("worker without memory", self.full_memory),
            ("worker without processors", self.full_cpu),
            ("worker without places", self.full_places),
            ("rollback", self.rollbacks),
            ("late delivery after a cut", self.late_packets),
        ]
    }
}

/// What is remembered of a run's course: a hash, and the text if somebody wants to read it.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) log: Option<String>,
}

impl Trace {
    pub(crate) fn note(&mut self, now: Time, what: &impl Debug) {
        // FNV-1a over the text: no allocation, and the same on every machine.
        struct Fnv<'a>(&'a mut u64);
        impl std::fmt::Write for Fnv<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                for byte in text.bytes() {
                    *self.0 = (*self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                Ok(())
            }
        }
        let written = write!(Fnv(&mut self.hash), "{} {what:?}", now.0);
        debug_assert!(written.is_ok(), "hashing cannot fail");
        if let Some(log) = &mut self.log {
            let ms = now.0 / 1_000_000;
            let us = now.0 / 1000 % 1000;
            let written = writeln!(log, "{ms:>7}.{us:03} ms  {what:?}");
            debug_assert!(written.is_ok(), "a string takes everything");
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) now: Time,
    pub(crate) agenda: Agenda,
    pub(crate) random: Pcg,
    pub(crate) controls: Vec<ControlHost>,
    pub(crate) planes: Vec<PlaneHost>,
    pub(crate) workers: Vec<WorkerHost>,
    pub(crate) store: Store,
    pub(crate) net: Net,
    pub(crate) users: Users,
    pub(crate) operators: Operators,
    pub(crate) undos: BTreeMap<u64, Undo>,
    pub(crate) next_undo: u64,
    pub(crate) healed: bool,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    pub(crate) witness: Witness,
    /// Hosts that died for good.
    pub(crate) left: BTreeSet<Host>,
    /// Hosts whose program is one version older.
    pub(crate) older: BTreeSet<Host>,
    pub(crate) plant: Option<Plant>,
    pub(crate) planted_order: Option<Box<StartSandbox>>,
    pub(crate) planted_streams: u64,
    pub(crate) planted_grants: BTreeMap<(usize, SandboxId), Box<Grant>>,
}

impl World {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, log: bool) -> Self {
        let mut random = Pcg::new(seed);
        let now = Time(1);
        let (controls, planes, workers) =
            (1 + random.below(3), 2 + random.below(3), 2 + random.below(4));
        // Sometimes there is room for everybody, sometimes not.
        let room = Room {
            memory: Bytes::mib(128 * (4 + u64::from(random.draw() % 16))),
            cpu: MilliCpu([200, 4000, 4000].get(random.below(3)).copied().unwrap_or(4000)),
            sandboxes: [7, 50, 50].get(random.below(3)).copied().unwrap_or(50),
        };
        let affinity = random.draw().is_multiple_of(2) && plant != Some(Plant::SettledAtOnce);
        let members = random.draw().is_multiple_of(3);
        let stays = random.draw().is_multiple_of(4);
        let mut world = Self {
            seed,
            now,
            agenda: Agenda::default(),
            random,
            controls: (0..controls).map(|_| ControlHost::new(now)).collect(),
            planes: (0..planes).map(|_| PlaneHost::new(now, Durable::default(), 1)).collect(),
            workers: (0..workers).map(|_| WorkerHost::new(now, room, plant)).collect(),
            store: Store::new(if members { 5 } else { 3 }),
            net: Net::default(),
            users: Users::new(affinity, stays),
            operators: Operators::default(),
            undos: BTreeMap::new(),
            next_undo: 0,
            healed: false,
            counts: Counts::default(),
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, log: log.then(String::new) },
            witness: Witness::default(),
            left: BTreeSet::new(),
            older: BTreeSet::new(),
            plant,
            planted_order: None,
            planted_streams: 0,
            planted_grants: BTreeMap::new(),
        };
        world.begin_mixed();
        for control in 0..controls {
            world.after(Duration::from_millis(1), What::Office { control, life: 1 });
        }
        for host in world.hosts() {
            if !matches!(host, Host::Control(_)) {
                world.after(Duration::from_millis(5), What::Dial { host, life: 1 });
            }
        }
        for worker in 0..workers {
            world.arm_worker(worker);
        }
        for _ in 0..4 {
            world.after(Duration::from_millis(100), What::User);
        }
        world.after(Duration::from_millis(200), What::Arrive);
        world.after(Duration::from_secs(1), What::Order);
        world.after(Duration::from_secs(2), What::Fault);
        world.after(Duration::from_secs(3), What::Copy);
        world.after(SWEEP, What::Sweep);
        world.agenda.put(HEALED, What::Heal);
        world.agenda.put(CALM, What::Quiet);
        world
    }

    pub(crate) fn after(&mut self, time: Duration, what: What) {
        self.agenda.put(self.now.after(time), what);
    }

    pub(crate) fn faulty(&self) -> bool {
        self.now < HEALED
    }

    pub(crate) fn settled_since_healing(&self, time: Duration) -> bool {
        self.now >= HEALED.after(time)
    }

    pub(crate) fn hosts(&self) -> Vec<Host> {
        let controls = (0..self.controls.len()).map(Host::Control);
        let planes = (0..self.planes.len()).map(Host::Plane);
        controls.chain(planes).chain((0..self.workers.len()).map(Host::Worker)).collect()
    }

    pub(crate) fn is_up(&self, host: Host) -> bool {
        match host {
            Host::Control(c) => self.controls.get(c).is_some_and(|c| c.up),
            Host::Plane(p) => self.planes.get(p).is_some_and(|p| p.up),
            Host::Worker(w) => self.workers.get(w).is_some_and(|w| w.up),
            Host::Store => true,
        }
    }

    /// The number of a peer's life, if it lives.
    pub(crate) fn life_of(&self, host: Host) -> Option<u64> {
        match host {
            Host::Control(c) => self.controls.get(c).filter(|c| c.up).map(|c| c.life),
            Host::Plane(p) => self.planes.get(p).filter(|p| p.up).map(|p| p.life),
            Host::Worker(w) => self.workers.get(w).filter(|w| w.up).map(|w| w.life),
            Host::Store => None,
        }
    }

    pub(crate) fn stream_of(&self, host: Host) -> Option<StreamId> {
        match host {
            Host::Plane(p) => self.planes.get(p)?.stream,
            Host::Worker(w) => self.workers.get(w)?.stream,
            Host::Control(_) | Host::Store => None,
        }
    }

    /// Counts a peer's dials since it was last welcomed.
    pub(crate) fn count_try(&mut self, host: Host) -> u32 {
        let tries = match host {
            Host::Plane(p) => self.planes.get_mut(p).map(|p| &mut p.tries),
            Host::Worker(w) => self.workers.get_mut(w).map(|w| &mut w.tries),
            Host::Control(_) | Host::Store => None,
        };
        tries.map_or(0, |tries| {
            *tries += 1;
            *tries
        })
    }

    /// Until when a process stands still, if it does.
    pub(crate) fn paused_until(&self, host: Host) -> Option<Time> {
        let until = match host {
            Host::Control(c) => self.controls.get(c)?.paused,
            Host::Plane(p) => self.planes.get(p)?.paused,
            Host::Worker(w) => self.workers.get(w)?.paused,
            Host::Store => return None,
        };
        (until > self.now).then_some(until)
    }

    pub(crate) fn gate_settings(
        &self,
        plane: usize,
        function: dirigent_core::FunctionId,
    ) -> Option<Arc<Settings>> {
        let gate = &self.planes.get(plane)?.gates.get(&function)?.gate;
        Some(Arc::clone(&gate.view().settings))
    }

    /// The next thing happens; false when the run is over.
    pub(crate) fn step(&mut self) -> bool {
        let Some((at, what)) = self.agenda.next() else { return false };
        if at > END || self.witness.violation.is_some() {
            return false;
        }
        self.now = at.max(self.now);
        self.counts.steps += 1;
        if !matches!(what, What::Sweep) {
            self.trace.note(self.now, &what);
        }
        self.happen(what);
        true
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Deliver { stream, up } => self.deliver(stream, up),
            What::Silent { stream, up } => self.silent(stream, up),
            What::Dial { host, life } => self.dial(host, life),
            What::Expire { of, life } => self.expire(of, life),
            What::Ask { from, life, epoch, knows, ask } => {
                self.store_hears(from, life, (epoch, knows), ask);
            }
            What::Answer { to, life, epoch, answer } => self.store_said(to, life, epoch, answer),
            What::Office { control, life } => self.look_after_office(control, life),
            What::Arrive => self.arrive(),
            What::Connect { at, slot } => self.connect(at, slot),
            What::HandlerEnds { worker, sandbox, handler } => {
                self.handler_ends(worker, sandbox, handler);
            }
            What::Ends { at, slot, end } => self.ends(at, slot, end),
            What::QueueLate { at } => self.queue_late(at),
            What::Late { at } => self.late(at),
            What::ClientGone { at } => self.client_gone(at),
            What::Grace { at, slot, function } => self.grace_over(at, slot, function),
            What::Created { worker, sandbox, boot } => self.sandbox_created(worker, sandbox, boot),
            What::Listening { worker, sandbox, boot } => {
                self.sandbox_listens(worker, sandbox, boot);
            }
            What::Gone { worker, sandbox, boot, cause } => {
                self.sandbox_gone(worker, sandbox, boot, cause);
            }
            What::Settles { worker, sandbox, boot } => self.settles(worker, sandbox, boot),
            What::Committed { to, life, epoch, answer, mark } => {
                self.committed(to, life, epoch, answer, mark);
            }
            What::Copy => {
                self.store.copy();
                let pause = 2000 + u64::from(self.random.draw() % 10_000);
                self.after(Duration::from_millis(pause), What::Copy);
            }
            What::User => self.operate(),
            What::Order => self.look_after_hosts(),
            What::Leaves { plane, life } => self.plane_leaves(plane, life),
            What::Fault => self.fault(),
            What::Restart { host } => self.restart(host),
            What::Mend { number } => self.undo(number),
            What::Heal => {
                self.heal();
                self.after(Duration::from_secs(8), What::User);
            }
            What::Quiet => self.users.calm = true,
            What::Sweep => {
                self.exit_unseen();
                self.give_up_stuck();
                self.sweep();
                self.net.sweep();
                self.after(SWEEP, What::Sweep);
            }
        }
    }

    fn expire(&mut self, of: Clockwork, life: u64) {
        match of {
            Clockwork::Control(c) if self.life_of(Host::Control(c)) == Some(life) => {
                self.expire_control(c);
            }
            Clockwork::Worker(w) if self.life_of(Host::Worker(w)) == Some(life) => {
                self.expire_worker(w);
            }
            Clockwork::Gate(p, function) if self.life_of(Host::Plane(p)) == Some(life) => {
                self.expire_gate(p, function, life);
            }
            Clockwork::Control(_) | Clockwork::Worker(_) | Clockwork::Gate(..) => {}
        }
    }
}
