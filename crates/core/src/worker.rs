//! A worker: the sandboxes of one machine, their ports, artifacts and limits.
//!
//! It does what the highest leader that it ever obeyed orders, has the last word on what fits, and
//! tells what becomes of every sandbox. What it cannot tell because no stream is up is in the next
//! `Hello`: a sandbox that ended meanwhile is in it as stopping, and its end follows at once, with
//! its cause.
//!
//! Decided here:
//! - A start is given up when the sandbox does not listen within its start timeout, counted from
//!   the order to create it: fetching an artifact does not count.
//! - A port is used again as `ports` says; at once if no data plane can have heard of it.
//! - Without a leader for an hour every sandbox is told to stop. Which of them are idle only data
//!   planes know, and an open connection is none of the signs: data planes keep them. So each gets as
//!   long as a drain does to end what runs in it.
//!
//! Refused: choosing what runs (the control plane), telling how (the runtime).
//!
//! Invariant: what is reserved is the sum over the sandboxes that are not gone.

mod event;
mod ports;
mod sandbox;
#[cfg(test)]
mod tests;

pub use event::{Adopted, ArtifactFailure, CreateSandbox, Effect, Event, Left};

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    Address, Cause, ClusterId, DataPlaneId, Digest, Epoch, Fault, SandboxId, Spec, StartFailure,
    Time,
    frame::{
        Capacity, FromWorker, Hello, Load, StartSandbox, TAKEN_FOR, ToWorker, Welcome, WorkerHello,
    },
};

use ports::Ports;
use sandbox::{Sandbox, Stage};

/// A worker that is not heard for 1 s is suspect: two beats may be late.
const BEAT_EVERY: Duration = Duration::from_millis(400);

/// Longer than any upgrade or outage that somebody works on.
const LEADERLESS: Duration = Duration::from_secs(3600);

/// For stops that nobody ordered: the function's own grace is not known here.
const GRACE: Duration = Duration::from_secs(10);

/// The same where calls may run that nobody has called back: the usual `drain_timeout`.
const LEADERLESS_GRACE: Duration = Duration::from_secs(600);

/// How far apart the ports of two lives of a worker begin.
const PORTS_PER_LIFE: u64 = 1009;

/// What a worker machine is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is offered to the control plane.
    pub capacity: Capacity,
    /// Ports for sandboxes: first and last. Outside the ephemeral range.
    pub ports: (u16, u16),
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    link: Link,
    cluster: Option<ClusterId>,
    highest_epoch: Epoch,
    /// Since when nobody leads; `None` while somebody does, or once it was acted upon.
    leaderless_since: Option<Time>,
    /// Whether this life was ever welcomed.
    was_welcomed: bool,
    /// Since when another one has the name.
    taken_since: Option<Time>,
    closed: bool,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// What all of them reserve.
    memory: u64,
    cpu: u64,
    ports: Ports,
    /// When starts are given up.
    start_deadlines: BTreeSet<(Time, SandboxId)>,
    artifacts: BTreeMap<Digest, Artifact>,
    /// Which of them go once nothing here uses them: no revision needs them any more.
    unwanted: BTreeSet<Digest>,
    /// Ended while no stream was up.
    untold: Vec<(Sandbox, SandboxId, StartFailure)>,
    load: Load,
    effects: VecDeque<Effect>,
}

/// The stream to a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    /// Our `Hello` is on its way; nothing is obeyed before the answer.
    Greeting {
        next_beat: Time,
    },
    /// It leads.
    Obeying {
        next_beat: Time,
    },
}

/// Files of a revision.
#[derive(Debug)]
enum Artifact {
    Held,
    /// On its way, for these, in the order of their starts.
    Fetching(Vec<SandboxId>),
}

impl Worker {
    /// A worker with what an earlier life of it left.
    #[must_use]
    pub fn new(now: Time, config: Config, left: Left) -> Self {
        let Left { adopted, artifacts, ports } = left;
        let in_use = adopted.iter().filter_map(|one| one.port).collect();
        let mut worker = Self {
            ports: Ports::new(config.ports, &in_use),
            config,
            link: Link::Down,
            cluster: None,
            highest_epoch: Epoch::default(),
            leaderless_since: Some(now),
            was_welcomed: false,
            taken_since: None,
            closed: false,
            sandboxes: BTreeMap::new(),
            memory: 0,
            cpu: 0,
            start_deadlines: BTreeSet::new(),
            artifacts: artifacts.into_iter().map(|digest| (digest, Artifact::Held)).collect(),
            unwanted: BTreeSet::new(),
            untold: Vec::new(),
            load: Load::default(),
            effects: VecDeque::new(),
        };
        for (port, sandbox) in ports {
            if !in_use.contains(&port) && !worker.ports.rest_again(now, sandbox, port) {
                // Out of today's range: it is not given to anybody.
                worker.effects.push_back(Effect::Remember { port, sandbox: None });
            }
        }
        for one in adopted {
            let (sandbox, stopping) = (one.report.sandbox, one.report.stopping);
            worker.remember(sandbox, one.port.filter(|_| one.report.address.is_some()));
            worker.insert(sandbox, Sandbox::adopted(now, one));
            if stopping {
                worker.stop(now, sandbox, GRACE);
            }
        }
        worker
    }

    /// The world says something.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Attached { hello } => self.attached(now, hello),
            Event::Detached => self.detached(now),
            Event::Said(frame) => self.said(now, frame),
            Event::ArtifactReady { digest } => self.artifact_ready(now, digest),
            Event::ArtifactFailed { digest, failure } => {
                self.artifact_failed(now, digest, &failure);
            }
            Event::Fetching { digest, fetched, all } => {
                self.send(FromWorker::Fetching { digest, fetched, all });
            }
            Event::ImageResolved { sandbox, result } => self.image_resolved(now, sandbox, result),
            Event::ArtifactLost { digest } => self.artifact_lost(digest),
            Event::PortTaken { sandbox, port } => self.port_taken(now, sandbox, port),
            Event::SandboxCreated { sandbox } => self.created(now, sandbox),
            Event::SandboxListening { sandbox, address, init } => {
                self.listening(now, sandbox, address, init);
            }
            Event::SandboxGone { sandbox, failure } => self.gone(now, sandbox, failure),
            Event::Settled { sandbox, data_plane } => {
                self.send(FromWorker::Settled { sandbox, data_plane });
            }
            Event::Sampled(load) => self.load = load,
            Event::Closed { grace } => {
                self.closed = true;
                self.stop_all(now, grace);
            }
        }
        self.check();
    }

    /// A deadline may have passed.
    pub fn expire(&mut self, now: Time) {
        for port in self.ports.expire(now) {
            self.effects.push_back(Effect::Remember { port, sandbox: None });
        }
        while let Some(&(until, sandbox)) = self.start_deadlines.first()
            && until <= now
        {
            self.start_timed_out(now, sandbox);
        }
        if let Link::Greeting { next_beat } | Link::Obeying { next_beat } = &mut self.link
            && *next_beat <= now
        {
            *next_beat = now + BEAT_EVERY;
            let beat = Load { sandboxes: count(self.sandboxes.len()), ..self.load };
            self.send(FromWorker::Beat(beat));
        }
        if self.leaderless_since.is_some_and(|since| since + LEADERLESS <= now) {
            self.leaderless_since = None;
            self.stop_all(now, LEADERLESS_GRACE);
        }
        self.check();
    }

    /// When to call `expire`.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let beat = match self.link {
            Link::Down => None,
            Link::Greeting { next_beat } | Link::Obeying { next_beat } => Some(next_beat),
        };
        let start = self.start_deadlines.first().map(|&(until, _)| until);
        let leaderless = self.leaderless_since.map(|since| since + LEADERLESS);
        [beat, start, leaderless, self.ports.deadline()].into_iter().flatten().min()
    }

    /// What to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether no sandbox is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty()
    }

    fn detached(&mut self, now: Time) {
        if let Link::Obeying { .. } = self.link {
            self.leaderless_since = Some(now);
        }
        self.link = Link::Down;
    }

    fn attached(&mut self, now: Time, hello: Hello) {
        self.detached(now);
        if self.cluster.is_none() {
            self.ports.rotate(hello.incarnation.start.wrapping_mul(PORTS_PER_LIFE));
        }
        self.cluster = self.cluster.or(hello.cluster);
        self.highest_epoch = self.highest_epoch.max(hello.highest_epoch);
        self.link = Link::Greeting { next_beat: now + BEAT_EVERY };
        let untold = std::mem::take(&mut self.untold);
        let ended = untold.iter().map(|(one, sandbox, _)| one.report(*sandbox));
        let living = self.sandboxes.iter().map(|(&sandbox, one)| one.report(sandbox));
        let sandboxes = living.chain(ended).collect();
        let artifacts = self
            .artifacts
            .iter()
            .filter(|(_, artifact)| matches!(artifact, Artifact::Held))
            .map(|(&digest, _)| digest)
            .collect();
        self.send(FromWorker::Hello(Box::new(WorkerHello {
            hello: Hello { highest_epoch: self.highest_epoch, ..hello },
            capacity: self.config.capacity.clone(),
            sandboxes,
            artifacts,
        })));
        for (_, sandbox, failure) in untold {
            self.send(FromWorker::SandboxGone { sandbox, failure });
        }
    }

    fn said(&mut self, now: Time, frame: ToWorker) {
        if let ToWorker::Welcome { welcome, you: _ } = frame {
            return self.welcomed(welcome);
        }
        if frame == ToWorker::Taken {
            return self.taken(now);
        }
        if !matches!(self.link, Link::Obeying { .. }) {
            return;
        }
        match frame {
            ToWorker::StartSandbox(order) => self.start(now, order),
            ToWorker::StopSandbox { sandbox, grace } => self.stop(now, sandbox, grace),
            ToWorker::ReleaseAddress { sandbox } => {
                if let Some(port) = self.ports.release(sandbox) {
                    self.effects.push_back(Effect::Remember { port, sandbox: None });
                }
            }
            ToWorker::DiscardArtifacts { digests } => self.discard(&digests),
            ToWorker::Settle { sandbox, data_plane } => self.settle(sandbox, data_plane),
            ToWorker::Welcome { .. } | ToWorker::Taken | ToWorker::Unsupported { .. } => {}
        }
    }

    /// Another one has the name. It may be this worker's last life, which ended and was not found lost
    /// yet. Who was in use before does not yield: the other one came later.
    fn taken(&mut self, now: Time) {
        if self.was_welcomed || !matches!(self.link, Link::Greeting { .. }) {
            return;
        }
        let since = *self.taken_since.get_or_insert(now);
        if since + TAKEN_FOR <= now {
            self.effects.push_back(Effect::GiveUp);
        }
    }

    /// A deposed leader and the leader of another cluster are not obeyed: nothing that comes on
    /// their streams is done.
    fn welcomed(&mut self, welcome: Welcome) {
        let Link::Greeting { next_beat } = self.link else { return };
        let stranger = self.cluster.is_some_and(|cluster| cluster != welcome.cluster);
        if stranger || welcome.epoch < self.highest_epoch {
            return;
        }
        self.was_welcomed = true;
        self.cluster = Some(welcome.cluster);
        self.highest_epoch = welcome.epoch;
        self.leaderless_since = None;
        self.link = Link::Obeying { next_beat };
        self.effects.push_back(Effect::Obey(welcome));
    }

    fn start(&mut self, now: Time, order: Box<StartSandbox>) {
        let sandbox = order.sandbox;
        if self.sandboxes.contains_key(&sandbox) {
            return;
        }
        let port = match self.room_for(&order) {
            Ok(port) => port,
            Err(message) => return self.send(FromWorker::Refused { sandbox, message }),
        };
        let spec = Arc::clone(&order.spec);
        self.insert(sandbox, Sandbox::ordered(now, order, port));
        if let Some(image) = spec.unresolved_image() {
            let (image, pull, runtime) =
                (image.to_owned(), spec.sandbox.pull, spec.sandbox.runtime);
            return self.effects.push_back(Effect::Resolve { sandbox, runtime, image, pull });
        }
        self.provide(now, sandbox, &spec);
    }

    /// The tag of its image stands for this from now on, for the whole revision.
    fn image_resolved(
        &mut self,
        now: Time,
        sandbox: SandboxId,
        result: Result<Digest, ArtifactFailure>,
    ) {
        if !self.sandboxes.get(&sandbox).is_some_and(Sandbox::is_resolving) {
            return;
        }
        let digest = match result {
            Ok(digest) => digest,
            Err(why) => {
                let cause = Cause::ArtifactFailed { message: why.message };
                return self.gone(now, sandbox, failure(cause, why.fault));
            }
        };
        let Some(one) = self.sandboxes.get_mut(&sandbox) else { return };
        let Stage::Fetching { order, .. } = &mut one.stage else { return };
        order.spec = Arc::new(order.spec.pinned(digest));
        one.artifact = Some(digest);
        let spec = Arc::clone(&order.spec);
        self.send(FromWorker::ImageResolved { sandbox, digest });
        self.provide(now, sandbox, &spec);
    }

    /// Gets what it runs from, unless that is here.
    fn provide(&mut self, now: Time, sandbox: SandboxId, spec: &Spec) {
        let Some(digest) = spec.artifact else { return self.create(now, sandbox) };
        let runtime = spec.sandbox.runtime;
        self.unwanted.remove(&digest);
        match self.artifacts.get_mut(&digest) {
            Some(Artifact::Held) => self.create(now, sandbox),
            Some(Artifact::Fetching(waiting)) => waiting.push(sandbox),
            None => {
                self.artifacts.insert(digest, Artifact::Fetching(vec![sandbox]));
                let image = spec.sandbox.registry_image().map(str::to_owned);
                self.effects.push_back(Effect::Fetch { digest, runtime, image });
            }
        }
    }

    /// A port for it, or why it does not fit.
    fn room_for(&mut self, order: &StartSandbox) -> Result<u16, String> {
        let Capacity { memory, cpu, cpu_overcommit, sandboxes, runtimes, .. } =
            &self.config.capacity;
        let spec = &order.spec;
        if self.closed {
            return Err("the worker is shutting down".to_owned());
        }
        let runtime = spec.sandbox.runtime;
        let Some((_, best)) = runtimes.iter().find(|(kind, _)| *kind == runtime) else {
            return Err(format!("runtime `{runtime}` does not work on this worker"));
        };
        if let Some(wanted) = spec.sandbox.isolation
            && wanted > *best
        {
            return Err(format!(
                "isolation `{wanted}` is not to be had on this worker: runtime `{runtime}` offers \
                 at most `{best}`"
            ));
        }
        if self.sandboxes.len() >= usize::try_from(*sandboxes).unwrap_or(usize::MAX) {
            return Err(format!("{sandboxes} sandboxes are as many as this worker takes"));
        }
        let left = memory.0.saturating_sub(self.memory);
        if spec.resources.memory.0 > left {
            let wanted = spec.resources.memory;
            return Err(format!("{wanted} of memory are wanted, {} are left", crate::Bytes(left)));
        }
        let left = (u64::from(cpu.0) * u64::from(*cpu_overcommit)).saturating_sub(self.cpu);
        if u64::from(spec.resources.cpu.0) > left {
            let wanted = spec.resources.cpu;
            return Err(format!("{wanted} of cpu are wanted, {left}m may still be reserved"));
        }
        self.ports.take().ok_or_else(|| "every port is in use or rests".to_owned())
    }

    fn create(&mut self, now: Time, sandbox: SandboxId) {
        let Some(one) = self.sandboxes.get_mut(&sandbox) else { return };
        let Stage::Fetching { order, since } = &one.stage else {
            unreachable!("{sandbox} is created once, when its artifact is there");
        };
        let (order, until) = (order.clone(), now + one.start_timeout);
        one.phases.fetch = now - *since;
        let create = CreateSandbox { order: (*order).clone(), port: one.ordered_port() };
        one.stage = Stage::Creating { order, since: now, until };
        self.start_deadlines.insert((until, sandbox));
        self.effects.push_back(Effect::Create(Box::new(create)));
    }

    /// Somebody else on the host was first: nothing was created, and it is tried on another port.
    fn port_taken(&mut self, now: Time, sandbox: SandboxId, port: u16) {
        let Some(one) = self.sandboxes.get_mut(&sandbox).filter(|one| one.port == Some(port))
        else {
            return;
        };
        one.port = None;
        self.ports.leave_alone(now, port);
        let Stage::Creating { order, .. } = &one.stage else {
            return self.gone(now, sandbox, failure(Cause::Stopped, Fault::Function));
        };
        if let Some(port) = self.ports.take() {
            one.port = Some(port);
            let create = CreateSandbox { order: (**order).clone(), port };
            return self.effects.push_back(Effect::Create(Box::new(create)));
        }
        let message = format!("port {port} is held by another program, and no other is free");
        let cause = Cause::CreateFailed { message };
        self.gone(now, sandbox, failure(cause, Fault::Worker));
    }

    fn created(&mut self, now: Time, sandbox: SandboxId) {
        if let Some(one) = self.sandboxes.get_mut(&sandbox)
            && let Stage::Creating { since, until, .. } = one.stage
        {
            one.phases.create = now - since;
            one.stage = Stage::Starting { until };
        }
    }

    fn listening(&mut self, now: Time, sandbox: SandboxId, address: Address, init: Duration) {
        self.created(now, sandbox);
        let Some(one) = self.sandboxes.get_mut(&sandbox) else { return };
        // One that is being stopped is told to nobody any more.
        let Stage::Starting { until } = one.stage else { return };
        self.start_deadlines.remove(&(until, sandbox));
        one.stage = Stage::Ready;
        one.phases.init = init;
        one.address = Some(address.clone());
        let (phases, port) = (one.phases, one.port);
        // Before anybody hears of it.
        self.remember(sandbox, port);
        self.send(FromWorker::SandboxReady { sandbox, address, phases });
    }

    /// From now on data planes may know its port.
    fn remember(&mut self, sandbox: SandboxId, port: Option<u16>) {
        if let Some(port) = port {
            self.effects.push_back(Effect::Remember { port, sandbox: Some(sandbox) });
        }
    }

    fn start_timed_out(&mut self, now: Time, sandbox: SandboxId) {
        let one = self.sandboxes.get(&sandbox).expect("a start deadline belongs to a sandbox");
        let late = Some(one.too_late());
        self.destroy(now, sandbox, Duration::ZERO, late);
    }

    /// Idempotent: only an order that kills earlier than the one before is passed on.
    fn stop(&mut self, now: Time, sandbox: SandboxId, grace: Duration) {
        match self.sandboxes.get_mut(&sandbox).map(|one| &mut one.stage) {
            // It is gone already, and that was or will be told.
            None => {}
            Some(Stage::Fetching { .. }) => {
                self.gone(now, sandbox, failure(Cause::Stopped, Fault::Function));
            }
            Some(Stage::Stopping { kill_at, .. }) if now + grace < *kill_at => {
                *kill_at = now + grace;
                self.effects.push_back(Effect::Destroy { sandbox, grace });
            }
            Some(Stage::Stopping { .. }) => {}
            Some(Stage::Creating { .. } | Stage::Starting { .. } | Stage::Ready) => {
                self.destroy(now, sandbox, grace, None);
            }
        }
    }

    fn stop_all(&mut self, now: Time, grace: Duration) {
        let all: Vec<SandboxId> = self.sandboxes.keys().copied().collect();
        for sandbox in all {
            self.stop(now, sandbox, grace);
        }
    }

    fn destroy(
        &mut self,
        now: Time,
        sandbox: SandboxId,
        grace: Duration,
        late: Option<StartFailure>,
    ) {
        let Some(one) = self.sandboxes.get_mut(&sandbox) else { return };
        if let Some(until) = one.start_deadline() {
            self.start_deadlines.remove(&(until, sandbox));
        }
        one.stage = Stage::Stopping { kill_at: now + grace, late };
        self.effects.push_back(Effect::Destroy { sandbox, grace });
    }

    fn gone(&mut self, now: Time, sandbox: SandboxId, reported: StartFailure) {
        let Some(mut one) = self.sandboxes.remove(&sandbox) else { return };
        let artifact = one.artifact;
        self.memory -= one.memory.0;
        self.cpu -= u64::from(one.cpu.0);
        if let Some(until) = one.start_deadline() {
            self.start_deadlines.remove(&(until, sandbox));
        }
        if let Some(Artifact::Fetching(waiting)) =
            one.artifact.and_then(|digest| self.artifacts.get_mut(&digest))
        {
            waiting.retain(|&other| other != sandbox);
        }
        match one.port {
            Some(port) if one.address.is_some() => self.ports.rest(now, sandbox, port),
            Some(port) => self.ports.put_back(port),
            None => {}
        }
        let stage = Stage::Stopping { kill_at: now, late: None };
        let failure = match std::mem::replace(&mut one.stage, stage) {
            Stage::Stopping { late: Some(late), .. } => sandbox::judge(late, reported),
            Stage::Stopping { late: None, .. }
            | Stage::Fetching { .. }
            | Stage::Creating { .. }
            | Stage::Starting { .. }
            | Stage::Ready => reported,
        };
        if self.link == Link::Down {
            self.untold.push((one, sandbox, failure));
        } else {
            self.send(FromWorker::SandboxGone { sandbox, failure });
        }
        self.discard_unwanted(artifact);
    }

    fn artifact_ready(&mut self, now: Time, digest: Digest) {
        let before = self.artifacts.insert(digest, Artifact::Held);
        self.send(FromWorker::Artifact { digest, held: true });
        if let Some(Artifact::Fetching(waiting)) = before {
            for sandbox in waiting {
                self.create(now, sandbox);
            }
        }
        self.discard_unwanted(Some(digest));
    }

    fn artifact_failed(&mut self, now: Time, digest: Digest, why: &ArtifactFailure) {
        let Some(Artifact::Fetching(waiting)) = self.artifacts.get_mut(&digest) else { return };
        let waiting = std::mem::take(waiting);
        self.artifacts.remove(&digest);
        self.unwanted.remove(&digest);
        for sandbox in waiting {
            let cause = Cause::ArtifactFailed { message: why.message.clone() };
            self.gone(now, sandbox, failure(cause, why.fault));
        }
    }

    /// The next start fetches it again. Sandboxes that use it may go on.
    fn artifact_lost(&mut self, digest: Digest) {
        if matches!(self.artifacts.get(&digest), Some(Artifact::Held)) {
            self.unwanted.remove(&digest);
            self.artifacts.remove(&digest);
            self.send(FromWorker::Artifact { digest, held: false });
        }
    }

    fn discard(&mut self, digests: &[Digest]) {
        let used: BTreeSet<Digest> =
            self.sandboxes.values().filter_map(|one| one.artifact).collect();
        for &digest in digests {
            match self.artifacts.get(&digest) {
                None => {}
                Some(Artifact::Held) if !used.contains(&digest) => self.remove_artifact(digest),
                Some(Artifact::Held | Artifact::Fetching(_)) => {
                    self.unwanted.insert(digest);
                }
            }
        }
    }

    /// Something that may have been the last to use an artifact does so no more.
    fn discard_unwanted(&mut self, artifact: Option<Digest>) {
        if let Some(digest) = artifact
            && self.unwanted.contains(&digest)
            && matches!(self.artifacts.get(&digest), Some(Artifact::Held))
            && !self.sandboxes.values().any(|one| one.artifact == Some(digest))
        {
            self.remove_artifact(digest);
        }
    }

    fn remove_artifact(&mut self, digest: Digest) {
        self.unwanted.remove(&digest);
        self.artifacts.remove(&digest);
        self.effects.push_back(Effect::Discard { digest });
        self.send(FromWorker::Artifact { digest, held: false });
    }

    fn settle(&mut self, sandbox: SandboxId, data_plane: DataPlaneId) {
        if self.sandboxes.contains_key(&sandbox) {
            self.effects.push_back(Effect::Bar { sandbox, data_plane });
        } else {
            self.send(FromWorker::Settled { sandbox, data_plane });
        }
    }

    fn insert(&mut self, sandbox: SandboxId, one: Sandbox) {
        self.memory += one.memory.0;
        self.cpu += u64::from(one.cpu.0);
        if let Some(until) = one.start_deadline() {
            self.start_deadlines.insert((until, sandbox));
        }
        let before = self.sandboxes.insert(sandbox, one);
        assert!(before.is_none(), "{sandbox} was made twice");
    }

    /// What cannot be said is in the next `Hello`.
    fn send(&mut self, frame: FromWorker) {
        if self.link != Link::Down {
            self.effects.push_back(Effect::Send(frame));
        }
    }

    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let sum = |of: fn(&Sandbox) -> u64| self.sandboxes.values().map(of).sum::<u64>();
        assert_eq!(self.memory, sum(|one| one.memory.0), "memory is counted exactly");
        assert_eq!(self.cpu, sum(|one| u64::from(one.cpu.0)), "cpu is counted exactly");
        let deadlines: BTreeSet<(Time, SandboxId)> = self
            .sandboxes
            .iter()
            .filter_map(|(&sandbox, one)| Some((one.start_deadline()?, sandbox)))
            .collect();
        assert_eq!(self.start_deadlines, deadlines, "every start has its deadline");
        let waiting = self.artifacts.values().map(|artifact| match artifact {
            Artifact::Held => 0,
            Artifact::Fetching(waiting) => waiting.len(),
        });
        let fetching = self
            .sandboxes
            .values()
            .filter(|one| matches!(one.stage, Stage::Fetching { .. }) && !one.is_resolving());
        assert_eq!(
            waiting.sum::<usize>(),
            fetching.count(),
            "whoever waits for an artifact is known"
        );
        for digest in &self.unwanted {
            let used = self.sandboxes.values().any(|one| one.artifact == Some(*digest));
            let held = match self.artifacts.get(digest) {
                Some(Artifact::Held) => true,
                Some(Artifact::Fetching(_)) => false,
                None => unreachable!("{digest} is not wanted, and not here"),
            };
            assert!(used || !held, "what nobody wants or uses is gone");
        }
        self.ports.check();
    }
}

/// One of which the runtime knows nothing: it has no log.
fn failure(cause: Cause, fault: Fault) -> StartFailure {
    StartFailure { cause, fault, log_tail: Vec::new() }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
