//! One function under the product's own machines, fault-free: a control plane, a worker with room
//! for everything, and as many data planes as wanted, joined by links with a delay.
//!
//! It measures what the [world](super::world) measures, so that the model can be held against what
//! it models, and what the model does not know: several data planes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use dirigent_core::{
    Address, Bytes, Cause, ClusterId, Epoch, Fault, FunctionName, InvocationId, Isolation,
    KeepAlive, MilliCpu, Office, Records, RequestId, RuntimeKind, SandboxId, Settings, Spec,
    StartFailure, StreamId, Time,
    control::{self, Control, Outcome},
    frame::{Capacity, DataPlaneHello, FromDataPlane, Hello, Incarnation, ToDataPlane, ToWorker},
    gate::{self, Attempt, Finish, Gate, Verdict},
    manifest::Manifest,
    policy::random::Pcg,
    worker::{self, Left, Worker},
};

use super::{
    calls::{Call, StartTime},
    measure::{Felt, Meter},
};

/// How the machines are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Data planes.
    pub planes: usize,
    /// Whether all calls of the function go to one of them; else each to any.
    pub affinity: bool,
    /// Sandboxes at least and at most.
    pub sandboxes: (u32, u32),
    /// Of idle ones.
    pub keep_alive: KeepAlive,
    /// From one machine to another.
    pub link: Duration,
    /// How long a start takes.
    pub start: StartTime,
}

/// The first call comes so long after the deploy: `min` is there by then.
const BEGIN: Duration = Duration::from_secs(30);
/// So much that nothing waits for room or for a start token.
const PLENTY: u32 = 9000;

#[derive(Debug)]
enum What {
    ToControl(control::Event),
    ToPlane(usize, ToDataPlane),
    ToWorker(ToWorker),
    Listening(SandboxId),
    Ended(usize, SandboxId),
}

#[derive(Debug)]
struct Machines<'a> {
    setup: Setup,
    calls: &'a [Call],
    next: usize,
    now: Time,
    number: u64,
    agenda: BTreeMap<(Time, u64), What>,
    control: Control,
    worker: Worker,
    planes: Vec<Option<Gate>>,
    store_revision: u64,
    random: Pcg,
    /// Whether each has served somebody.
    programs: BTreeMap<SandboxId, bool>,
    busy: u32,
    refused: u64,
    meter: Meter,
}

/// Runs the calls; what the function felt within the window.
///
/// # Errors
/// If the machines refused something, which says that this world is not what it says.
pub fn run(calls: &[Call], setup: Setup, random: Pcg, (from, to): (u64, u64)) -> Result<Felt> {
    let capacity = Capacity {
        memory: Bytes::mib(u64::from(PLENTY) * 1000),
        cpu: MilliCpu(u32::MAX / 100),
        cpu_overcommit: 50,
        sandboxes: PLENTY,
        starts: PLENTY,
        runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
        missing: Vec::new(),
    };
    let office = Office { cluster: ClusterId(1), epoch: Epoch(1) };
    let control = control::Config { office, seed: 1, own_token: None };
    let config = worker::Config { capacity, ports: (20_000, 29_999) };
    let mut machines = Machines {
        setup,
        calls,
        next: 0,
        now: Time::ZERO,
        number: 0,
        agenda: BTreeMap::new(),
        control: Control::new(Time::ZERO, control, Records::default()),
        worker: Worker::new(Time::ZERO, config, Left::default()),
        planes: (0..setup.planes).map(|_| None).collect(),
        store_revision: 0,
        random,
        programs: BTreeMap::new(),
        busy: 0,
        refused: 0,
        meter: Meter::new(from, to),
    };
    machines.attach()?;
    machines.run();
    match machines.refused {
        0 => Ok(machines.meter.close(0, 0)),
        refused => bail!("{refused} calls or orders were refused by the machines"),
    }
}

/// The ideal that several data planes are held against: one queue for so many sandboxes, served in
/// order without any delay. Waits in nanoseconds, in the order of the calls.
#[must_use]
pub fn ideal_waits(calls: &[Call], sandboxes: usize) -> Vec<u64> {
    let mut free: BTreeSet<(u64, usize)> = (0..sandboxes).map(|one| (0, one)).collect();
    let wait = |call: &Call| {
        let (since, one) = free.pop_first()?;
        let begin = since.max(call.at);
        free.insert((begin + call.runs, one));
        Some(begin - call.at)
    };
    calls.iter().filter_map(wait).collect()
}

fn name() -> FunctionName {
    "f".parse().expect("a name")
}

fn content(setup: &Setup) -> Result<(Arc<Spec>, Arc<Settings>)> {
    let (min, max) = setup.sandboxes;
    let text = format!(
        "name = \"f\"\nsandbox.command = [\"x\"]\nresources.memory = \"16MiB\"\n\
         scaling = {{ min = {min}, max = {max}, keep_alive = \"{}\" }}\n\
         invocation = {{ max_queue = 100000 }}",
        setup.keep_alive
    );
    let manifest: Manifest = toml::from_str(&text).context("the function's manifest")?;
    let (_, spec, settings) = manifest.validate(None).context("the function's manifest")?;
    Ok((spec, settings))
}

fn hello(start: u64) -> Hello {
    Hello {
        cluster: Some(ClusterId(1)),
        protocol: (1, 1),
        features: Vec::new(),
        incarnation: Incarnation { start, ..Incarnation::default() },
        highest_epoch: Epoch(1),
    }
}

/// The worker's stream; those of data planes follow.
const WORKER: StreamId = StreamId(1);

fn stream_of(plane: usize) -> StreamId {
    StreamId(plane as u64 + 2)
}

impl Machines<'_> {
    fn attach(&mut self) -> Result<()> {
        self.put(
            Duration::ZERO,
            What::ToControl(control::Event::WorkerAttached { stream: WORKER, name: "w".into() }),
        );
        self.worker.handle(self.now, worker::Event::Attached { hello: hello(1) });
        for plane in 0..self.planes.len() {
            let stream = stream_of(plane);
            let name_of = format!("dp{plane}").into();
            let event = control::Event::DataPlaneAttached { stream, name: name_of };
            self.put(Duration::ZERO, What::ToControl(event));
            let first = FromDataPlane::Hello(Box::new(DataPlaneHello {
                hello: hello(1),
                holdings: Vec::new(),
                names: vec![name()],
                demands: Vec::new(),
            }));
            self.say(plane, first);
        }
        let (spec, settings) = content(&self.setup)?;
        let call = control::Call::Deploy { name: name(), spec, settings, check: false };
        let event = control::Event::Asked { request: RequestId(1), call, wall_ms: 0 };
        // After the leader's recovery, which is over when all have attached or after 3 s.
        self.put(Duration::from_secs(4), What::ToControl(event));
        Ok(())
    }

    fn run(&mut self) {
        loop {
            let arrival = self.calls.get(self.next).map(|call| self.time_of(call.at));
            let event = self.agenda.first_key_value().map(|(&(at, _), _)| at);
            let gates = self.planes.iter().flatten().filter_map(Gate::deadline).min();
            let timers = [self.control.deadline(), self.worker.deadline(), gates];
            let timer = timers.into_iter().flatten().min();
            let Some(at) = [arrival, event, timer].into_iter().flatten().min() else { return };
            let measured = self.measured(at);
            if measured > self.meter.end() && self.meter.unanswered() == 0 {
                let programs = u32::try_from(self.programs.len()).unwrap_or(u32::MAX);
                return self.meter.pass(measured, programs, self.busy);
            }
            let programs = u32::try_from(self.programs.len()).unwrap_or(u32::MAX);
            self.meter.pass(measured, programs, self.busy);
            self.now = at.max(self.now);
            if event.is_some_and(|event| event <= at) {
                if let Some((_, what)) = self.agenda.pop_first() {
                    self.happen(what);
                }
            } else if timer.is_some_and(|timer| timer <= at) {
                self.expire();
            } else {
                self.arrive();
            }
            self.carry_out();
        }
    }

    fn time_of(&self, at: u64) -> Time {
        Time(at).after(BEGIN)
    }

    /// Nanoseconds since calls may come.
    fn measured(&self, at: Time) -> u64 {
        at.0.saturating_sub(Time::ZERO.after(BEGIN).0)
    }

    fn put(&mut self, after: Duration, what: What) {
        self.number += 1;
        self.agenda.insert((self.now.after(after), self.number), what);
    }

    fn say(&mut self, plane: usize, frame: FromDataPlane) {
        let event = control::Event::DataPlaneSaid {
            stream: stream_of(plane),
            frame,
            waited: Duration::ZERO,
        };
        self.put(self.setup.link, What::ToControl(event));
    }

    fn expire(&mut self) {
        let now = self.now;
        let due = |deadline: Option<Time>| deadline.is_some_and(|at| at <= now);
        if due(self.control.deadline()) {
            self.control.expire(now);
        }
        if due(self.worker.deadline()) {
            self.worker.expire(now);
        }
        for gate in self.planes.iter_mut().flatten() {
            if due(gate.deadline()) {
                gate.expire(now);
            }
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::ToControl(event) => self.control.handle(self.now, event),
            What::ToWorker(frame) => self.worker.handle(self.now, worker::Event::Said(frame)),
            What::ToPlane(plane, frame) => self.hear(plane, frame),
            What::Listening(sandbox) => {
                if self.programs.contains_key(&sandbox) {
                    let port = 20_000 + u16::try_from(sandbox.counter % 10_000).unwrap_or(0);
                    let address = Address::Tcp((Ipv4Addr::LOCALHOST, port).into());
                    let init = Duration::ZERO;
                    let event = worker::Event::SandboxListening { sandbox, address, init };
                    self.worker.handle(self.now, event);
                }
            }
            What::Ended(plane, sandbox) => {
                self.busy -= 1;
                if let Some(gate) = self.planes.get_mut(plane).and_then(Option::as_mut) {
                    let how = Finish::Done;
                    gate.handle(self.now, gate::Event::Finished { sandbox, how });
                }
            }
        }
    }

    fn hear(&mut self, plane: usize, frame: ToDataPlane) {
        let Some(place) = self.planes.get_mut(plane) else { return };
        let event = match frame {
            ToDataPlane::Resolved { version, function: Some(view), .. } => match place {
                None => {
                    *place = Some(Gate::new(self.now, version, view));
                    return;
                }
                Some(_) => gate::Event::Configured { version, view },
            },
            ToDataPlane::Grant(grant) => gate::Event::Granted(grant),
            ToDataPlane::Recall { n, idle_only, .. } => gate::Event::Recalled { n, idle_only },
            ToDataPlane::RecallSandbox { sandbox, gone } => {
                gate::Event::SandboxRecalled { sandbox, gone }
            }
            ToDataPlane::Status { status, .. } => gate::Event::StatusChanged(status),
            ToDataPlane::Welcome { .. }
            | ToDataPlane::Resolved { .. }
            | ToDataPlane::Tokens { .. }
            | ToDataPlane::Duty { .. }
            | ToDataPlane::Unsupported { .. }
            | ToDataPlane::Taken => return,
        };
        match place {
            Some(gate) => gate.handle(self.now, event),
            None => self.refused += 1,
        }
    }

    fn arrive(&mut self) {
        let call = self.next;
        self.next += 1;
        let Some(&Call { at, .. }) = self.calls.get(call) else { return };
        self.meter.came(at);
        let plane = if self.setup.affinity { 0 } else { self.random.below(self.planes.len()) };
        let invocation = InvocationId(call as u64);
        let Some(gate) = self.planes.get_mut(plane).and_then(Option::as_mut) else {
            self.refused += 1;
            return;
        };
        match gate.admit(self.now, invocation, Attempt::First) {
            Verdict::Bound(binding) => self.begin(plane, invocation, binding.sandbox),
            Verdict::Queued => {}
            Verdict::Refused(_) => self.refused += 1,
        }
    }

    fn begin(&mut self, plane: usize, invocation: InvocationId, sandbox: SandboxId) {
        let call = usize::try_from(invocation.0).ok().and_then(|index| self.calls.get(index));
        let Some(&Call { at, runs }) = call else { return };
        let used = self.programs.insert(sandbox, true).unwrap_or(true);
        let now = self.measured(self.now);
        self.meter.bound(at, now, runs, !used && now > at);
        self.busy += 1;
        self.put(Duration::from_nanos(runs), What::Ended(plane, sandbox));
    }

    fn carry_out(&mut self) {
        loop {
            if let Some(effect) = self.control.poll_effect() {
                self.ordered_by_control(effect);
            } else if let Some(effect) = self.worker.poll_effect() {
                self.ordered_by_worker(effect);
            } else {
                let ordered = |gate: &mut Option<Gate>| gate.as_mut()?.poll_effect();
                let mut planes = self.planes.iter_mut().enumerate();
                let next = planes.find_map(|(plane, gate)| Some((plane, ordered(gate)?)));
                let Some((plane, effect)) = next else { return };
                self.ordered_by_gate(plane, effect);
            }
        }
    }

    fn ordered_by_control(&mut self, effect: control::Effect) {
        let link = self.setup.link;
        match effect {
            control::Effect::Persist { token, .. } => {
                self.store_revision += 1;
                let outcome = Outcome::Ok { revision: self.store_revision };
                self.put(link, What::ToControl(control::Event::Persisted { token, outcome }));
            }
            control::Effect::ToWorker { frame, .. } => self.put(link, What::ToWorker(frame)),
            control::Effect::ToDataPlane { stream, frame } => {
                let plane = usize::try_from(stream.0).unwrap_or(0).saturating_sub(2);
                self.put(link, What::ToPlane(plane, frame));
            }
            control::Effect::Reply { result, .. } => self.refused += u64::from(result.is_err()),
            control::Effect::Close { .. } | control::Effect::Resign { .. } => self.refused += 1,
            control::Effect::Admit { .. }
            | control::Effect::DiscardArtifacts { .. }
            | control::Effect::Measure(_) => {}
        }
    }

    fn ordered_by_worker(&mut self, effect: worker::Effect) {
        match effect {
            worker::Effect::Send(frame) => {
                let event = control::Event::WorkerSaid { stream: WORKER, frame };
                self.put(self.setup.link, What::ToControl(event));
            }
            worker::Effect::Create(create) => {
                let sandbox = create.order.sandbox;
                self.programs.insert(sandbox, false);
                self.meter.started(self.measured(self.now));
                let takes = self.setup.start.draw(&mut self.random);
                self.worker.handle(self.now, worker::Event::SandboxCreated { sandbox });
                self.put(Duration::from_nanos(takes), What::Listening(sandbox));
            }
            worker::Effect::Destroy { sandbox, .. } => {
                self.programs.remove(&sandbox);
                let failure = StartFailure {
                    cause: Cause::Stopped,
                    fault: Fault::Function,
                    log_tail: Vec::new(),
                };
                self.worker.handle(self.now, worker::Event::SandboxGone { sandbox, failure });
            }
            worker::Effect::Obey(_)
            | worker::Effect::Fetch { .. }
            | worker::Effect::Resolve { .. }
            | worker::Effect::Discard { .. }
            | worker::Effect::Remember { .. }
            | worker::Effect::Bar { .. }
            | worker::Effect::GiveUp => {}
        }
    }

    fn ordered_by_gate(&mut self, plane: usize, effect: gate::Effect) {
        match effect {
            gate::Effect::Bind { invocation, binding } => {
                self.begin(plane, invocation, binding.sandbox);
            }
            gate::Effect::Send(frame) => self.say(plane, frame),
            gate::Effect::Refuse { .. } => self.refused += 1,
            gate::Effect::Close { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
