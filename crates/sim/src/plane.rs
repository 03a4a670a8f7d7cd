//! The data planes: a faithful small model of their shell around the real gates. Streams, names,
//! and what gates order; the life of an invocation is in `calls`.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    ClusterId, Duty, Epoch, FunctionId, FunctionName, FunctionView, InvocationId, SandboxId,
    StreamId, Time,
    frame::{
        DataPlaneHello, FromDataPlane, Hello, Incarnation, PROTOCOL, Returned, Status, ToDataPlane,
        WhyReturned,
    },
    gate::{self, Gate},
};

use crate::{
    agenda::{Clockwork, Host, What},
    calls::Call,
    net::Packet,
    plant::Plant,
    versions,
    world::World,
};

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Asked,
    Nothing,
    Function(FunctionId),
}

/// A gate and its alarm.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) gate: Gate,
    pub(crate) retired: bool,
    armed: Option<Time>,
}

/// What outlives the process of a peer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) epoch: Epoch,
    pub(crate) starts: u64,
    /// Boots of the host.
    pub(crate) boot: u64,
}

impl Durable {
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            cluster: self.cluster,
            protocol: (PROTOCOL, PROTOCOL),
            features: versions::features(),
            incarnation: Incarnation {
                boot: format!("{}", self.boot).into(),
                start: self.starts,
                life: self.starts,
            },
            highest_epoch: self.epoch,
        }
    }
}

/// A data plane's process and what it left on disk.
#[derive(Debug)]
pub(crate) struct PlaneHost {
    pub(crate) up: bool,
    pub(crate) life: u64,
    pub(crate) paused: Time,
    /// The end of its last pause, for those who measure how long something took.
    pub(crate) resumed: Time,
    pub(crate) durable: Durable,
    pub(crate) stream: Option<StreamId>,
    pub(crate) attached: bool,
    /// What operators want of it.
    pub(crate) duty: Duty,
    /// It was told which tokens count.
    pub(crate) knows_tokens: bool,
    /// What it held when the store was restored from a copy that does not know it, or was granted
    /// since by a leader who had not noticed, and has not given back: no later leader can wait for
    /// that.
    pub(crate) forgotten: BTreeSet<SandboxId>,
    /// Since when it is, or was not.
    pub(crate) attached_since: Time,
    /// What gates said before the leader was accepted.
    waiting: Vec<FromDataPlane>,
    pub(crate) tries: u32,
    pub(crate) known: BTreeMap<FunctionName, Known>,
    pub(crate) gates: BTreeMap<FunctionId, Function>,
    pub(crate) sandboxes: BTreeMap<SandboxId, FunctionId>,
    pub(crate) calls: BTreeMap<InvocationId, Call>,
}

impl PlaneHost {
    pub(crate) fn new(now: Time, durable: Durable, life: u64) -> Self {
        Self {
            up: true,
            life,
            paused: now,
            resumed: now,
            durable: Durable { starts: durable.starts + 1, ..durable },
            stream: None,
            attached: false,
            duty: Duty::InUse,
            knows_tokens: false,
            forgotten: BTreeSet::new(),
            attached_since: now,
            waiting: Vec::new(),
            tries: 0,
            known: BTreeMap::new(),
            gates: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }
}

impl World {
    /// A peer dials the next control plane.
    pub(crate) fn dial(&mut self, peer: Host, life: u64) {
        if self.life_of(peer) != Some(life) || self.stream_of(peer).is_some() {
            return;
        }
        if let Some(until) = self.paused_until(peer) {
            self.agenda.put(until, What::Dial { host: peer, life });
            return;
        }
        let tries = self.count_try(peer);
        let control = (tries as usize + self.random.below(2)) % self.controls.len();
        let host = Host::Control(control);
        // Doubling, between half of it and all of it.
        let base = 10_u64 << tries.min(7);
        let jitter = u64::from(self.random.draw()) % base.max(1);
        let pause = Duration::from_millis((base / 2 + jitter / 2).min(1000));
        if !self.net.joined(peer, host) {
            self.after(Duration::from_millis(500) + pause, What::Dial { host: peer, life });
        } else if self.epoch_of(control).is_none() {
            self.after(pause, What::Dial { host: peer, life });
        } else {
            let stream = self.open(peer, control);
            match peer {
                Host::Plane(plane) => self.introduce_plane(plane, stream),
                Host::Worker(worker) => self.introduce_worker(worker, stream),
                Host::Control(_) | Host::Store => {}
            }
        }
    }

    fn introduce_plane(&mut self, plane: usize, stream: StreamId) {
        let now = self.now;
        let Some(p) = self.planes.get_mut(plane) else { return };
        p.stream = Some(stream);
        p.waiting.clear();
        let demands = p.gates.values().map(|f| f.gate.demand(now));
        let hello = DataPlaneHello {
            hello: p.durable.hello(),
            holdings: p.gates.values().flat_map(|f| f.gate.claims()).collect(),
            names: p.known.keys().cloned().collect(),
            demands: demands
                .filter(|d| d.queued > 0 || d.held > 0 || d.arrivals_total > 0)
                .collect(),
        };
        let frame = FromDataPlane::Hello(Box::new(hello));
        self.send(stream, true, Packet::FromPlane(frame));
    }

    /// Says it on the stream; what is said before the leader is accepted waits.
    pub(crate) fn plane_says(&mut self, plane: usize, frame: FromDataPlane) {
        let Some(p) = self.planes.get_mut(plane) else { return };
        let Some(stream) = p.stream else { return };
        if p.attached {
            self.send(stream, true, Packet::FromPlane(frame));
        } else {
            p.waiting.push(frame);
        }
    }

    /// A packet arrives at a peer.
    pub(crate) fn peer_hears(&mut self, stream: StreamId, packet: Packet) {
        let Some((peer, is_twin)) = self.net.streams.get(&stream).map(|s| (s.peer, s.is_twin))
        else {
            return;
        };
        match (peer, packet) {
            (_, Packet::Closed) => self.close_end(stream, false),
            (_, _) if is_twin => {}
            (Host::Plane(plane), Packet::ToPlane(frame)) => self.plane_hears(plane, stream, frame),
            (Host::Worker(worker), Packet::ToWorker(frame)) => {
                self.worker_hears(worker, stream, frame);
            }
            (_, _) => {}
        }
    }

    /// A peer's end of a stream is over: it dials anew.
    pub(crate) fn peer_lost(&mut self, peer: Host, stream: StreamId) {
        if self.stream_of(peer) != Some(stream) {
            return;
        }
        match peer {
            Host::Plane(plane) => {
                let Some(p) = self.planes.get_mut(plane) else { return };
                p.stream = None;
                p.waiting.clear();
                if std::mem::take(&mut p.attached) {
                    self.tell_gates(plane, &gate::Event::Detached);
                }
            }
            Host::Worker(worker) => self.worker_detached(worker),
            Host::Control(_) | Host::Store => {}
        }
        if let Some(life) = self.life_of(peer) {
            self.after(Duration::from_millis(10), What::Dial { host: peer, life });
        }
    }

    fn plane_hears(&mut self, plane: usize, stream: StreamId, frame: ToDataPlane) {
        let now = self.now;
        match frame {
            ToDataPlane::Welcome { welcome, .. } => {
                let Some(p) = self.planes.get_mut(plane) else { return };
                let known = p.durable;
                if known.cluster.is_some_and(|cluster| cluster != welcome.cluster)
                    || welcome.epoch < known.epoch
                {
                    self.close_end(stream, false);
                    return;
                }
                p.durable.cluster = Some(welcome.cluster);
                p.durable.epoch = welcome.epoch;
                p.attached = true;
                p.attached_since = now;
                p.tries = 0;
                let waiting = std::mem::take(&mut p.waiting);
                let names: Vec<FunctionName> = p
                    .known
                    .iter()
                    .filter(|(_, known)| !matches!(known, Known::Function(_)))
                    .map(|(name, _)| name.clone())
                    .collect();
                self.obeyed(Host::Plane(plane), stream);
                for frame in waiting {
                    self.plane_says(plane, frame);
                }
                self.tell_gates(plane, &gate::Event::Attached);
                for name in names {
                    self.plane_says(plane, FromDataPlane::Resolve { name });
                }
            }
            // Nothing is obeyed before the greeting was answered.
            _ if self.planes.get(plane).is_none_or(|p| !p.attached) => {}
            ToDataPlane::Resolved { name, version, function } => {
                self.resolved(plane, &name, version, function);
            }
            ToDataPlane::Grant(grant) => {
                let known = self.store.state.knows(&format!("{:?}", Host::Plane(plane)));
                if let Some(p) = self.planes.get_mut(plane).filter(|_| !known) {
                    p.forgotten.insert(grant.sandbox);
                }
                let function = grant.revision.function;
                let Some(p) = self.planes.get_mut(plane) else { return };
                if p.gates.contains_key(&function) {
                    p.sandboxes.insert(grant.sandbox, function);
                    self.granted(plane, &grant);
                    if self.plant == Some(Plant::ReturnedUsed) {
                        self.planted_grants.insert((plane, grant.sandbox), grant.clone());
                    }
                    self.tell_gate(plane, function, gate::Event::Granted(grant));
                } else {
                    let (sandbox, share, serial) = (grant.sandbox, grant.share, grant.serial);
                    let why = WhyReturned::Idle;
                    let returned = Returned { sandbox, share, serial, why };
                    self.plane_says(plane, FromDataPlane::Returned(returned));
                }
            }
            ToDataPlane::Recall { function, n, idle_only } => {
                self.tell_gate(plane, function, gate::Event::Recalled { n, idle_only });
            }
            ToDataPlane::RecallSandbox { sandbox, gone } => {
                let home = self.planes.get(plane).and_then(|p| p.sandboxes.get(&sandbox).copied());
                if let Some(function) = home {
                    let event = gate::Event::SandboxRecalled { sandbox, gone };
                    self.tell_gate(plane, function, event);
                }
            }
            ToDataPlane::Status { function, status } => {
                self.counts.no_capacity += u64::from(status == Status::NoCapacity);
                self.tell_gate(plane, function, gate::Event::StatusChanged(status));
            }
            ToDataPlane::Duty { duty } => self.plane_ordered(plane, duty),
            ToDataPlane::Tokens { .. } => {
                if let Some(p) = self.planes.get_mut(plane) {
                    p.knows_tokens = true;
                }
            }
            ToDataPlane::Unsupported { .. } | ToDataPlane::Taken => {}
        }
    }

    fn resolved(
        &mut self,
        plane: usize,
        name: &FunctionName,
        version: u64,
        view: Option<Arc<FunctionView>>,
    ) {
        let now = self.now;
        let Some(p) = self.planes.get_mut(plane) else { return };
        let Some(&before) = p.known.get(name) else { return };
        let id = view.as_ref().map(|view| view.id);
        p.known.insert(name.clone(), id.map_or(Known::Nothing, Known::Function));
        let before = match before {
            Known::Function(before) if Some(before) != id => Some(before),
            Known::Function(_) | Known::Asked | Known::Nothing => None,
        };
        if let Some(view) = view {
            let function = view.id;
            match p.gates.entry(function) {
                Entry::Occupied(mut known) => {
                    known.get_mut().retired = false;
                    self.drop_at_redeploy(plane, function);
                    self.tell_gate(plane, function, gate::Event::Configured { version, view });
                }
                Entry::Vacant(place) => {
                    let gate = Gate::new(now, version, view);
                    place.insert(Function { gate, retired: false, armed: None });
                    self.obey_gate(plane, function);
                }
            }
        }
        if let Some(before) = before {
            if let Some(f) = self.planes.get_mut(plane).and_then(|p| p.gates.get_mut(&before)) {
                f.retired = true;
            }
            self.tell_gate(plane, before, gate::Event::Deleted);
        }
        self.release_resolving(plane, name, id);
    }

    fn tell_gates(&mut self, plane: usize, event: &gate::Event) {
        let all: Vec<FunctionId> =
            self.planes.get(plane).map(|p| p.gates.keys().copied().collect()).unwrap_or_default();
        for function in all {
            self.tell_gate(plane, function, event.clone());
        }
    }

    /// Tells a gate and does what it orders.
    pub(crate) fn tell_gate(&mut self, plane: usize, function: FunctionId, event: gate::Event) {
        let now = self.now;
        let gate = self.planes.get_mut(plane).and_then(|p| p.gates.get_mut(&function));
        if let Some(f) = gate {
            f.gate.handle(now, event);
            self.obey_gate(plane, function);
        }
    }

    pub(crate) fn expire_gate(&mut self, plane: usize, function: FunctionId, life: u64) {
        let now = self.now;
        let Some(p) = self.planes.get_mut(plane) else { return };
        let paused = p.paused;
        let Some(f) = p.gates.get_mut(&function).filter(|f| f.armed == Some(now)) else { return };
        f.armed = None;
        if paused > now {
            f.armed = Some(paused);
            self.agenda.put(paused, What::Expire { of: Clockwork::Gate(plane, function), life });
            return;
        }
        f.gate.expire(now);
        self.obey_gate(plane, function);
    }

    pub(crate) fn obey_gate(&mut self, plane: usize, function: FunctionId) {
        while let Some(effect) = self
            .planes
            .get_mut(plane)
            .and_then(|p| p.gates.get_mut(&function))
            .and_then(|f| f.gate.poll_effect())
        {
            match effect {
                gate::Effect::Bind { invocation, binding } => {
                    self.bound(plane, function, invocation, &binding);
                }
                gate::Effect::Refuse { invocation, refusal } => {
                    self.refused(plane, invocation, &refusal);
                }
                gate::Effect::Send(frame) => {
                    self.given_back(plane, &frame);
                    self.use_returned(plane, &frame);
                    self.plane_says(plane, frame);
                }
                gate::Effect::Close { sandbox } => {
                    if let Some(p) = self.planes.get_mut(plane) {
                        p.sandboxes.remove(&sandbox);
                    }
                }
            }
        }
        self.check_beside(plane, function);
        let now = self.now;
        let Some(p) = self.planes.get_mut(plane) else { return };
        let life = p.life;
        let Some(f) = p.gates.get_mut(&function) else { return };
        if let Some(at) = f.gate.deadline()
            && f.armed.is_none_or(|armed| at < armed)
        {
            let at = at.max(now);
            f.armed = Some(at);
            self.agenda.put(at, What::Expire { of: Clockwork::Gate(plane, function), life });
        }
    }

    /// Functions deleted whose last slots are back are forgotten.
    pub(crate) fn sweep_plane(&mut self, plane: usize) {
        if self.plant == Some(Plant::GatesKept) {
            return;
        }
        if let Some(p) = self.planes.get_mut(plane) {
            let used: BTreeSet<FunctionId> =
                p.calls.values().filter_map(|call| call.function).collect();
            p.gates.retain(|id, f| !f.retired || !f.gate.is_empty() || used.contains(id));
        }
    }

    /// The store does not know a data plane any more: what it holds is granted to others before it
    /// can say so.
    pub(crate) fn forget_plane(&mut self, plane: usize) {
        if let Some(p) = self.planes.get_mut(plane) {
            p.forgotten =
                p.gates.values().flat_map(|f| f.gate.holdings()).map(|h| h.sandbox).collect();
            self.orphan_handlers(plane);
        }
    }

    /// A data plane dies with everything that it carries.
    pub(crate) fn crash_plane(&mut self, plane: usize, silently: bool) {
        let now = self.now;
        let Some(p) = self.planes.get_mut(plane) else { return };
        let durable = Durable { boot: p.durable.boot + u64::from(silently), ..p.durable };
        self.counts.cut += p.calls.len() as u64;
        *p = PlaneHost { up: false, ..PlaneHost::new(now, durable, p.life + 1) };
        self.drop_streams(Host::Plane(plane), silently);
        self.orphan_handlers(plane);
    }

    pub(crate) fn start_plane(&mut self, plane: usize) {
        if let Some(p) = self.planes.get_mut(plane) {
            p.up = true;
            let life = p.life;
            let host = Host::Plane(plane);
            self.after(Duration::from_millis(5), What::Dial { host, life });
        }
    }
}
