//! The workers: the real machine, a fake runtime under it, and the sandboxes, which are the
//! witnesses of what really runs.
//!
//! A restart of the daemon leaves the sandboxes running (their keeper lives on); a restart of the
//! host leaves nothing.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use dirigent_core::{
    Address, Bytes, Cause, DataPlaneId, Fault, Isolation, MilliCpu, RevisionId, RuntimeKind,
    SandboxId, StartFailure, StreamId, Time,
    frame::{Capacity, SandboxReport, ToWorker},
    worker::{Adopted, Config, Effect, Event, Left, Worker},
};

use crate::{
    agenda::{Attempted, Clockwork, End, Host, What},
    net::Packet,
    plane::Durable,
    plant::Plant,
    world::World,
};

/// Few enough that addresses are used again.
const PORTS: (u16, u16) = (20_000, 20_255);
/// Fewer still, where a planted fault is to show that they must not be used again too early.
const FEW_PORTS: (u16, u16) = (20_000, 20_005);
/// How long what is left of a barred data plane may run on.
const SETTLES: Duration = Duration::from_secs(1);
/// What a worker writes is on its disk within this time.
const FORCED_WITHIN: Duration = Duration::from_secs(1);
/// A process that ended by itself is started again after so long.
const STARTED_AGAIN: Duration = Duration::from_secs(1);
/// Until its first instruction runs.
const CREATE: Duration = Duration::from_millis(1);

/// An execution in a sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handler {
    pub(crate) at: Attempted,
    /// Its slot is free by the rules although it runs: its caller is gone and its grace over, or
    /// its data plane died.
    pub(crate) overrun: bool,
}

/// A sandbox as it really is.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) revision: RevisionId,
    pub(crate) concurrency: u32,
    pub(crate) memory: Bytes,
    pub(crate) cpu: MilliCpu,
    pub(crate) port: u16,
    pub(crate) listens: bool,
    /// How long it takes from its first instruction to listening.
    init: Duration,
    /// It is to listen by then.
    listens_by: Time,
    pub(crate) stopping: bool,
    /// It will exit instead of listening.
    spoilt: bool,
    pub(crate) handlers: BTreeMap<u64, Handler>,
    barred: Vec<Bar>,
}

/// A data plane that is kept away from a sandbox.
#[derive(Clone, Copy, Debug)]
struct Bar {
    data_plane: DataPlaneId,
    plane: Option<usize>,
    /// Its worker was asked and has not said yet that nothing of it is left.
    asked: bool,
}

impl Sandbox {
    pub(crate) fn bars(&self, plane: usize) -> bool {
        self.barred.iter().any(|bar| bar.plane == Some(plane))
    }
}

/// A worker's host.
#[derive(Debug)]
pub(crate) struct WorkerHost {
    pub(crate) up: bool,
    pub(crate) life: u64,
    pub(crate) paused: Time,
    pub(crate) durable: Durable,
    pub(crate) stream: Option<StreamId>,
    pub(crate) tries: u32,
    pub(crate) machine: Option<Worker>,
    /// What it remembers over a restart of its daemon, and since when.
    ports: BTreeMap<u16, (SandboxId, Time)>,
    armed: Option<Time>,
    pub(crate) sandboxes: BTreeMap<SandboxId, Sandbox>,
    pub(crate) room: Room,
    /// What it says that it has.
    offers: Room,
    few_ports: bool,
}

/// What a worker has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) memory: Bytes,
    pub(crate) cpu: MilliCpu,
    pub(crate) sandboxes: u32,
}

impl Room {
    pub(crate) const OVERCOMMIT: u32 = 10;

    /// Processors that may be reserved.
    pub(crate) const fn reservable(&self) -> u64 {
        self.cpu.0 as u64 * Self::OVERCOMMIT as u64
    }
}

impl WorkerHost {
    pub(crate) fn new(now: Time, room: Room, plant: Option<Plant>) -> Self {
        let invented = if plant == Some(Plant::CapacityInvented) { 8 } else { 1 };
        let offers = Room { memory: Bytes(room.memory.0 * invented), ..room };
        let few_ports = plant == Some(Plant::AddressReused);
        Self {
            up: true,
            life: 1,
            paused: now,
            durable: Durable { starts: 1, ..Durable::default() },
            stream: None,
            tries: 0,
            machine: Some(Worker::new(now, config(offers, few_ports), Left::default())),
            ports: BTreeMap::new(),
            armed: None,
            sandboxes: BTreeMap::new(),
            room,
            offers,
            few_ports,
        }
    }

    /// What it says that it has.
    pub(crate) fn capacity(&self) -> Capacity {
        config(self.offers, self.few_ports).capacity
    }

    /// Bytes, thousandths of processors and places that its sandboxes reserve.
    pub(crate) fn reserved(&self) -> (u64, u64, u64) {
        let all = || self.sandboxes.values();
        let cpu = all().map(|s| u64::from(s.cpu.0)).sum();
        (all().map(|s| s.memory.0).sum(), cpu, self.sandboxes.len() as u64)
    }
}

fn config(room: Room, few_ports: bool) -> Config {
    let capacity = Capacity {
        memory: room.memory,
        cpu: room.cpu,
        cpu_overcommit: Room::OVERCOMMIT,
        sandboxes: room.sandboxes,
        starts: 8,
        runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
        missing: Vec::new(),
    };
    Config { capacity, ports: if few_ports { FEW_PORTS } else { PORTS } }
}

/// The address of a sandbox's port on a worker.
fn address(worker: usize, port: u16) -> Address {
    let last = u8::try_from(worker + 1).unwrap_or(u8::MAX);
    Address::Tcp(SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), port)))
}

impl World {
    /// The worker that an address is on.
    pub(crate) fn host_at(&self, at: &Address) -> Host {
        match at {
            Address::Tcp(SocketAddr::V4(v4)) => {
                Host::Worker(usize::from(v4.ip().octets()[3]).saturating_sub(1))
            }
            Address::Tcp(SocketAddr::V6(_)) | Address::Unix(_) | Address::Ingress { .. } => {
                Host::Store
            }
        }
    }

    /// Whoever listens at an address now.
    pub(crate) fn listening_at(&self, at: &Address) -> Option<(usize, SandboxId)> {
        let Host::Worker(worker) = self.host_at(at) else { return None };
        let Address::Tcp(socket) = at else { return None };
        let sandboxes = &self.workers.get(worker)?.sandboxes;
        let found = sandboxes.iter().find(|(_, s)| s.listens && s.port == socket.port());
        found.map(|(id, _)| (worker, *id))
    }

    pub(crate) fn introduce_worker(&mut self, worker: usize, stream: StreamId) {
        let Some(w) = self.workers.get_mut(worker) else { return };
        w.stream = Some(stream);
        let hello = w.durable.hello();
        self.tell_worker(worker, Event::Attached { hello });
    }

    pub(crate) fn worker_detached(&mut self, worker: usize) {
        if let Some(w) = self.workers.get_mut(worker) {
            w.stream = None;
        }
        self.tell_worker(worker, Event::Detached);
    }

    pub(crate) fn worker_hears(&mut self, worker: usize, stream: StreamId, frame: ToWorker) {
        let Some(w) = self.workers.get_mut(worker) else { return };
        if let ToWorker::Welcome { welcome, .. } = &frame {
            if welcome.epoch < w.durable.epoch {
                return self.close_end(stream, false);
            }
            w.tries = 0;
        }
        self.tell_worker(worker, Event::Said(frame));
    }

    fn tell_worker(&mut self, worker: usize, event: Event) {
        let now = self.now;
        if let Some(machine) = self.workers.get_mut(worker).and_then(|w| w.machine.as_mut()) {
            machine.handle(now, event);
            self.obey_worker(worker);
        }
    }

    pub(crate) fn expire_worker(&mut self, worker: usize) {
        let now = self.now;
        let w = self.workers.get_mut(worker);
        let Some(w) = w.filter(|w| w.armed == Some(now)) else { return };
        w.armed = None;
        if w.paused > now {
            let (at, life) = (w.paused, w.life);
            w.armed = Some(at);
            self.agenda.put(at, What::Expire { of: Clockwork::Worker(worker), life });
        } else if let Some(machine) = w.machine.as_mut() {
            machine.expire(now);
            self.obey_worker(worker);
        }
    }

    fn obey_worker(&mut self, worker: usize) {
        loop {
            let machine = self.workers.get_mut(worker).and_then(|w| w.machine.as_mut());
            let Some(effect) = machine.and_then(Worker::poll_effect) else { break };
            let stream = self.workers.get(worker).and_then(|w| w.stream);
            match effect {
                Effect::Send(frame) => {
                    if let Some(stream) = stream {
                        self.send(stream, true, Packet::FromWorker(frame));
                    }
                }
                Effect::Obey(welcome) => {
                    if let Some(w) = self.workers.get_mut(worker) {
                        w.durable.cluster = Some(welcome.cluster);
                        w.durable.epoch = welcome.epoch;
                    }
                    if let Some(stream) = stream {
                        self.obeyed(Host::Worker(worker), stream);
                    }
                }
                Effect::Create(create) => self.create(worker, &create),
                Effect::Destroy { sandbox, grace } => self.destroy(worker, sandbox, grace),
                Effect::Bar { sandbox, data_plane } => self.bar(worker, sandbox, data_plane),
                Effect::Remember { port, sandbox } => self.remember(worker, port, sandbox),
                Effect::GiveUp => {
                    // Whoever started it starts it again.
                    self.crash_worker(worker, false);
                    self.after(STARTED_AGAIN, What::Restart { host: Host::Worker(worker) });
                }
                Effect::Fetch { .. } | Effect::Resolve { .. } | Effect::Discard { .. } => {}
            }
        }
        self.arm_worker(worker);
    }

    fn remember(&mut self, worker: usize, port: u16, sandbox: Option<SandboxId>) {
        let now = self.now;
        let Some(w) = self.workers.get_mut(worker) else { return };
        match sandbox {
            Some(sandbox) => w.ports.insert(port, (sandbox, now)),
            None => w.ports.remove(&port),
        };
    }

    pub(crate) fn arm_worker(&mut self, worker: usize) {
        let now = self.now;
        let Some(w) = self.workers.get_mut(worker) else { return };
        let Some(at) = w.machine.as_ref().and_then(Worker::deadline) else { return };
        if w.armed.is_none_or(|armed| at < armed) {
            let at = at.max(now);
            w.armed = Some(at);
            let life = w.life;
            self.agenda.put(at, What::Expire { of: Clockwork::Worker(worker), life });
        }
    }

    // ------------------------------------------------------------------ the fake runtime

    fn create(&mut self, worker: usize, create: &dirigent_core::worker::CreateSandbox) {
        let order = &create.order;
        let sandbox = order.sandbox;
        let spoils = order.spec.env.contains_key("SPOILT") && self.faulty();
        let spoilt = spoils || (self.faulty() && self.random.draw().is_multiple_of(40));
        let init = Duration::from_millis(match self.random.draw() % 20 {
            0 => 1500 + u64::from(self.random.draw() % 1500),
            1..5 => 100 + u64::from(self.random.draw() % 200),
            _ => 5 + u64::from(self.random.draw() % 20),
        });
        self.created(worker, sandbox, order.spec.resources);
        let made = Sandbox {
            revision: order.revision,
            concurrency: order.spec.concurrency,
            memory: order.spec.resources.memory,
            cpu: order.spec.resources.cpu,
            port: create.port,
            listens: false,
            init,
            listens_by: self.now.after(order.start_timeout),
            stopping: false,
            spoilt,
            handlers: BTreeMap::new(),
            barred: Vec::new(),
        };
        let Some(w) = self.workers.get_mut(worker) else { return };
        let boot = w.durable.boot;
        w.sandboxes.insert(sandbox, made);
        self.counts.created += 1;
        self.after(CREATE, What::Created { worker, sandbox, boot });
        self.after(CREATE + init, What::Listening { worker, sandbox, boot });
    }

    pub(crate) fn sandbox_created(&mut self, worker: usize, sandbox: SandboxId, boot: u64) {
        if self.find(worker, sandbox, boot).is_some() {
            self.tell_worker(worker, Event::SandboxCreated { sandbox });
        }
    }

    pub(crate) fn sandbox_listens(&mut self, worker: usize, sandbox: SandboxId, boot: u64) {
        let Some(one) = self.find(worker, sandbox, boot) else { return };
        if one.spoilt {
            self.counts.failed_starts += 1;
            return self.sandbox_gone(worker, sandbox, boot, Cause::Exited { code: 3 });
        }
        one.listens = true;
        let (address, init) = (address(worker, one.port), one.init);
        self.tell_worker(worker, Event::SandboxListening { sandbox, address, init });
    }

    fn find(&mut self, worker: usize, sandbox: SandboxId, boot: u64) -> Option<&mut Sandbox> {
        let w = self.workers.get_mut(worker).filter(|w| w.durable.boot == boot)?;
        w.sandboxes.get_mut(&sandbox)
    }

    fn destroy(&mut self, worker: usize, sandbox: SandboxId, grace: Duration) {
        let Some(w) = self.workers.get_mut(worker) else { return };
        let boot = w.durable.boot;
        let Some(one) = w.sandboxes.get_mut(&sandbox) else { return };
        one.stopping = true;
        self.counts.slow_starts += u64::from(!one.listens && self.now >= one.listens_by);
        let takes = if one.handlers.is_empty() { Duration::from_millis(2) } else { grace };
        self.after(takes, What::Gone { worker, sandbox, boot, cause: Cause::Stopped });
    }

    fn bar(&mut self, worker: usize, sandbox: SandboxId, data_plane: DataPlaneId) {
        if self.plant == Some(Plant::SettledAtOnce) {
            return self.tell_worker(worker, Event::Settled { sandbox, data_plane });
        }
        let stream = self.workers.get(worker).and_then(|w| w.stream);
        let control = stream.and_then(|stream| self.net.streams.get(&stream)).map(|s| s.control);
        let plane = control.and_then(|control| self.plane_of(control, data_plane));
        let Some(w) = self.workers.get_mut(worker) else { return };
        let boot = w.durable.boot;
        let Some(one) = w.sandboxes.get_mut(&sandbox) else {
            return self.tell_worker(worker, Event::Settled { sandbox, data_plane });
        };
        one.barred.retain(|bar| bar.data_plane != data_plane);
        one.barred.push(Bar { data_plane, plane, asked: true });
        self.counts.barred += 1;
        // Some workers cannot tell whose a socket is.
        if worker.is_multiple_of(2) {
            self.destroy(worker, sandbox, SETTLES);
        } else {
            self.after(SETTLES, What::Settles { worker, sandbox, boot });
            self.settle_if_left(worker, sandbox);
        }
    }

    /// Says of which barred data planes no handler is left.
    fn settle_if_left(&mut self, worker: usize, sandbox: SandboxId) {
        let one = self.workers.get_mut(worker).and_then(|w| w.sandboxes.get_mut(&sandbox));
        let Some(one) = one.filter(|one| !one.barred.is_empty()) else { return };
        let handlers = &one.handlers;
        let mut left = Vec::new();
        for bar in one.barred.iter_mut().filter(|bar| bar.asked) {
            if !handlers.values().any(|handler| Some(handler.at.plane) == bar.plane) {
                bar.asked = false;
                left.push(bar.data_plane);
            }
        }
        for data_plane in left {
            self.tell_worker(worker, Event::Settled { sandbox, data_plane });
        }
    }

    /// What a barred data plane left behind has had its time: the sandbox is recycled.
    pub(crate) fn settles(&mut self, worker: usize, sandbox: SandboxId, boot: u64) {
        if self.find(worker, sandbox, boot).is_some_and(|one| one.barred.iter().any(|b| b.asked)) {
            self.destroy(worker, sandbox, Duration::ZERO);
        }
    }

    pub(crate) fn sandbox_gone(
        &mut self,
        worker: usize,
        sandbox: SandboxId,
        boot: u64,
        cause: Cause,
    ) {
        if self.find(worker, sandbox, boot).is_none() {
            return;
        }
        let Some(w) = self.workers.get_mut(worker) else { return };
        let Some(one) = w.sandboxes.remove(&sandbox) else { return };
        self.break_handlers(sandbox, &one, Duration::from_micros(300));
        let fault = match cause {
            Cause::CreateFailed { .. } => Fault::Worker,
            _ => Fault::Function,
        };
        let failure = StartFailure { cause, fault, log_tail: Vec::new() };
        self.tell_worker(worker, Event::SandboxGone { sandbox, failure });
        for Bar { data_plane, .. } in one.barred.into_iter().filter(|bar| bar.asked) {
            self.tell_worker(worker, Event::Settled { sandbox, data_plane });
        }
    }

    fn break_handlers(&mut self, slot: SandboxId, one: &Sandbox, after: Duration) {
        for handler in one.handlers.values() {
            let at = handler.at;
            self.execution_broke(at);
            self.after(after, What::Ends { at, slot, end: End::Broken });
        }
    }

    // ------------------------------------------------------------------ executions

    pub(crate) fn begin_handler(
        &mut self,
        worker: usize,
        sandbox: SandboxId,
        at: Attempted,
        runs: Duration,
    ) {
        self.counts.handlers += 1;
        let handler = self.counts.handlers;
        let overrun = self.planes.get(at.plane).is_some_and(|p| p.forgotten.contains(&sandbox));
        let one = self.workers.get_mut(worker).and_then(|w| w.sandboxes.get_mut(&sandbox));
        if let Some(one) = one {
            one.handlers.insert(handler, Handler { at, overrun });
            self.after(runs, What::HandlerEnds { worker, sandbox, handler });
            self.check_concurrency(worker, sandbox);
        }
    }

    pub(crate) fn handler_ends(&mut self, worker: usize, sandbox: SandboxId, handler: u64) {
        let one = self.workers.get_mut(worker).and_then(|w| w.sandboxes.get_mut(&sandbox));
        let Some(done) = one.and_then(|one| one.handlers.remove(&handler)) else { return };
        self.respond(worker, sandbox, done.at);
        self.settle_if_left(worker, sandbox);
    }

    /// The response goes its way; on a path that is cut it comes when that is mended.
    fn respond(&mut self, worker: usize, slot: SandboxId, at: Attempted) {
        let (from, to) = (Host::Worker(worker), Host::Plane(at.plane));
        let mut delay = self.delay(from, to);
        if !self.net.joined(from, to) {
            delay += Duration::from_secs(3);
        }
        self.after(delay, What::Ends { at, slot, end: End::Response });
    }

    pub(crate) fn find_sandbox(&self, sandbox: SandboxId) -> Option<&Sandbox> {
        self.workers.iter().find_map(|w| w.sandboxes.get(&sandbox))
    }

    /// From now on a handler's slot is free by the rules.
    pub(crate) fn overrun(&mut self, sandbox: SandboxId, at: Attempted) {
        let one = self.workers.iter_mut().find_map(|w| w.sandboxes.get_mut(&sandbox));
        for handler in one.into_iter().flat_map(|one| one.handlers.values_mut()) {
            if handler.at == at {
                handler.overrun = true;
                self.counts.overruns += 1;
            }
        }
    }

    /// A data plane died: what ran for it runs on for nobody.
    pub(crate) fn orphan_handlers(&mut self, plane: usize) {
        let all = self.workers.iter_mut().flat_map(|w| w.sandboxes.values_mut());
        for handler in all.flat_map(|one| one.handlers.values_mut()) {
            if handler.at.plane == plane {
                handler.overrun = true;
                self.counts.overruns += 1;
            }
        }
    }

    // ------------------------------------------------------------------ lives

    /// The daemon dies, or (`host`) the whole machine.
    pub(crate) fn crash_worker(&mut self, worker: usize, host: bool) {
        let Some(w) = self.workers.get_mut(worker) else { return };
        w.up = false;
        w.life += 1;
        w.stream = None;
        w.machine = None;
        w.armed = None;
        if host {
            self.lose_sandboxes(worker);
        }
        self.drop_streams(Host::Worker(worker), host);
    }

    /// They end with their host.
    pub(crate) fn lose_sandboxes(&mut self, worker: usize) {
        let Some(w) = self.workers.get_mut(worker) else { return };
        w.durable.boot += 1;
        // The last lines may not be on the disk.
        let now = self.now;
        w.ports.retain(|_, (_, since)| now.since(*since) > FORCED_WITHIN);
        let lost = std::mem::take(&mut w.sandboxes);
        for (sandbox, one) in lost {
            self.break_handlers(sandbox, &one, Duration::from_secs(3));
        }
    }

    pub(crate) fn start_worker(&mut self, worker: usize) {
        let now = self.now;
        let Some(w) = self.workers.get_mut(worker) else { return };
        w.up = true;
        w.durable.starts += 1;
        let adopted = w.sandboxes.iter().map(|(&sandbox, one)| Adopted {
            report: SandboxReport {
                sandbox,
                revision: one.revision,
                memory: one.memory,
                cpu: one.cpu,
                address: one.listens.then(|| address(worker, one.port)),
                stopping: one.stopping,
            },
            port: Some(one.port),
            artifact: None,
        });
        let ports = w.ports.iter().map(|(port, (sandbox, _))| (*port, *sandbox)).collect();
        let left = Left { adopted: adopted.collect(), artifacts: Vec::new(), ports };
        w.machine = Some(Worker::new(now, config(w.offers, w.few_ports), left));
        let life = w.life;
        self.obey_worker(worker);
        let host = Host::Worker(worker);
        self.after(Duration::from_millis(5), What::Dial { host, life });
    }
}
