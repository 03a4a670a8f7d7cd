//! Control, gate and worker joined by links with a delay and a runtime that takes its time: deploys,
//! calls, scaling to zero and broken streams, in simulated time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    Address, Bytes, Cause, ClusterId, Epoch, Fault, FunctionName, InvocationId, Isolation,
    MilliCpu, Office, Records, RequestId, Resources, RevisionState, RuntimeKind, SandboxId,
    Settings, Spec, StartFailure, StreamId, Time,
    control::{self, Answer, Call, Control, Outcome},
    frame::{
        Capacity, DataPlaneHello, FromDataPlane, FromWorker, Hello, Incarnation, Returned,
        SandboxReport, ToDataPlane, ToWorker, WhyReturned,
    },
    gate::{self, Attempt, Finish, Gate, Verdict},
    manifest::Manifest,
    worker::{self, Adopted, Left, Worker},
};
use proptest::prelude::*;

const LINK: Duration = Duration::from_micros(100);
const CREATE: Duration = Duration::from_millis(1);
const INIT: Duration = Duration::from_millis(9);

/// What a user, or fate, does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Call {
        ms: u64,
    },
    Deploy,
    /// From now on programs exit instead of listening, or do not any more.
    Spoil(bool),
    Crash {
        pick: usize,
    },
    BreakDataPlane,
    BreakWorker,
    RestartDataPlane,
    RestartWorker,
}

/// What happens at a point in time.
#[derive(Debug)]
enum What {
    Act(Act),
    ToControl(control::Event),
    ToDataPlane(StreamId, ToDataPlane),
    ToWorker(StreamId, ToWorker),
    Created(SandboxId),
    Listening(SandboxId),
    Gone(SandboxId, Cause),
    Ended(InvocationId),
    DialDataPlane,
    DialWorker,
}

/// A call that runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    sandbox: SandboxId,
    ms: u64,
}

#[derive(Debug)]
struct World {
    now: Time,
    agenda: BTreeMap<(Time, u64), What>,
    number: u64,
    control: Control,
    worker: Worker,
    gate: Option<Gate>,
    worker_stream: Option<StreamId>,
    data_plane_stream: Option<StreamId>,
    store_revision: u64,
    worker_config: worker::Config,
    lives: u64,
    concurrency: u32,
    deploys: u32,
    /// The newest revision of which a deploy was answered as live.
    live: u32,
    was_detached: bool,
    has_crashed: bool,
    is_spoilt: bool,
    /// Calls that wait for the function to be resolved, or in the gate: how long they will run.
    unresolved: Vec<(InvocationId, u64)>,
    waiting: BTreeMap<InvocationId, u64>,
    running: BTreeMap<InvocationId, Running>,
    answered: u64,
    failed: u64,
    calls: u64,
    /// Programs that run, and those that were told to end.
    programs: BTreeMap<SandboxId, SandboxReport>,
    ending: BTreeSet<SandboxId>,
    made: u64,
    /// Addresses that data planes may have heard of, until they are released.
    exposed: BTreeSet<SandboxId>,
}

fn name() -> FunctionName {
    "f".parse().expect("a name")
}

fn content(concurrency: u32, number: u32) -> (Arc<Spec>, Arc<Settings>) {
    let text = format!(
        "name = \"f\"\nsandbox.command = [\"x\"]\nenv.N = \"{number}\"\n\
         scaling = {{ concurrency = {concurrency}, max = 10, keep_alive = \"20s\" }}"
    );
    let manifest: Manifest = toml::from_str(&text).expect("a manifest");
    let (_, spec, settings) = manifest.validate(None).expect("a valid one");
    (spec, settings)
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

impl World {
    fn new(concurrency: u32) -> Self {
        let office = Office { cluster: ClusterId(1), epoch: Epoch(1) };
        let capacity = Capacity {
            memory: Bytes::mib(16_000),
            cpu: MilliCpu(2000),
            cpu_overcommit: 50,
            sandboxes: 1000,
            starts: 8,
            runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
            missing: Vec::new(),
        };
        let config = worker::Config { capacity, ports: (20000, 20999) };
        let control = control::Config { office, seed: 1, own_token: None };
        let mut world = Self {
            now: Time::ZERO,
            agenda: BTreeMap::new(),
            number: 0,
            control: Control::new(Time::ZERO, control, Records::default()),
            worker: Worker::new(Time::ZERO, config.clone(), Left::default()),
            worker_config: config,
            lives: 1,
            gate: None,
            worker_stream: None,
            data_plane_stream: None,
            store_revision: 0,
            concurrency,
            deploys: 0,
            live: 0,
            was_detached: false,
            has_crashed: false,
            is_spoilt: false,
            unresolved: Vec::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            answered: 0,
            failed: 0,
            calls: 0,
            programs: BTreeMap::new(),
            ending: BTreeSet::new(),
            made: 0,
            exposed: BTreeSet::new(),
        };
        world.at(Duration::ZERO, What::DialWorker);
        world.at(Duration::ZERO, What::DialDataPlane);
        world.at(Duration::from_millis(1), What::Act(Act::Deploy));
        world.run(Duration::from_secs(1));
        assert_eq!(world.live, 1, "the first deploy is live");
        world
    }

    fn at(&mut self, after: Duration, what: What) {
        self.number += 1;
        self.agenda.insert((self.now + after, self.number), what);
    }

    /// Lets everything happen that is due within `time`.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let mut steps = 0_u64;
        loop {
            let next = self.agenda.first_key_value().map(|(&(at, _), _)| at);
            let timers = [
                self.control.deadline(),
                self.worker.deadline(),
                self.gate.as_ref().and_then(Gate::deadline),
            ];
            let timer = timers.into_iter().flatten().min();
            let Some(at) = next.into_iter().chain(timer).min().filter(|&at| at <= until) else {
                break;
            };
            self.now = at.max(self.now);
            steps += 1;
            assert!(steps < 2_000_000, "time stands still at {}", self.now);
            if next.is_some_and(|next| next <= at) {
                let (_, what) = self.agenda.pop_first().expect("it was there");
                self.happen(what);
            } else {
                self.expire();
            }
            self.carry_out();
        }
        self.now = until;
    }

    fn expire(&mut self) {
        let now = self.now;
        if self.control.deadline().is_some_and(|at| at <= now) {
            self.control.expire(now);
        }
        if self.worker.deadline().is_some_and(|at| at <= now) {
            self.worker.expire(now);
        }
        if let Some(gate) = self.gate.as_mut().filter(|g| g.deadline().is_some_and(|at| at <= now))
        {
            gate.expire(now);
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Act(act) => self.act(act),
            What::ToControl(event) => self.control.handle(self.now, event),
            What::ToDataPlane(stream, frame) => {
                if self.data_plane_stream == Some(stream) {
                    self.hear(frame);
                }
            }
            What::ToWorker(stream, frame) => {
                if self.worker_stream == Some(stream) {
                    if let ToWorker::ReleaseAddress { sandbox } = frame {
                        let held = self.gate.as_ref().map(Gate::holdings).unwrap_or_default();
                        let holds = held.iter().any(|holding| holding.sandbox == sandbox);
                        assert!(!holds, "the address of {sandbox} is still held");
                        assert!(!self.programs.contains_key(&sandbox), "{sandbox} still runs");
                        self.exposed.remove(&sandbox);
                    }
                    self.worker.handle(self.now, worker::Event::Said(frame));
                }
            }
            What::Created(sandbox) if self.programs.contains_key(&sandbox) => {
                self.worker.handle(self.now, worker::Event::SandboxCreated { sandbox });
            }
            What::Listening(sandbox) if self.is_spoilt => {
                self.end_program(sandbox, Cause::Exited { code: 3 });
            }
            What::Listening(sandbox) if self.programs.contains_key(&sandbox) => {
                let port = 20_000 + u16::try_from(sandbox.counter % 40_000).unwrap();
                let address = Address::Tcp((Ipv4Addr::LOCALHOST, port).into());
                if let Some(report) = self.programs.get_mut(&sandbox) {
                    report.address = Some(address.clone());
                }
                let event = worker::Event::SandboxListening { sandbox, address, init: INIT };
                self.worker.handle(self.now, event);
            }
            What::Created(_) | What::Listening(_) => {}
            What::Gone(sandbox, cause) => self.end_program(sandbox, cause),
            What::Ended(invocation) => self.ended(invocation),
            What::DialDataPlane => self.attach_data_plane(),
            What::DialWorker => self.attach_worker(),
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Call { ms } => {
                self.calls += 1;
                let invocation = InvocationId(self.calls);
                if self.gate.is_some() {
                    self.admit(invocation, ms, Attempt::First);
                } else {
                    self.unresolved.push((invocation, ms));
                    self.say(FromDataPlane::Resolve { name: name() });
                }
            }
            Act::Deploy => {
                self.deploys += 1;
                let (spec, settings) = content(self.concurrency, self.deploys);
                let call = Call::Deploy { name: name(), spec, settings, check: true };
                self.ask(call);
            }
            Act::Spoil(spoilt) => self.is_spoilt = spoilt,
            Act::Crash { pick } => {
                self.has_crashed = true;
                let of = self.programs.len().max(1);
                if let Some(&sandbox) = self.programs.keys().nth(pick % of) {
                    self.at(Duration::ZERO, What::Gone(sandbox, Cause::Signalled { signal: 11 }));
                }
            }
            Act::BreakDataPlane => self.break_data_plane(),
            Act::BreakWorker => self.break_worker(),
            Act::RestartDataPlane => {
                self.break_data_plane();
                self.lives += 1;
                self.gate = None;
                // Its callers are cut with it.
                let cut = self.running.len() + self.waiting.len() + self.unresolved.len();
                self.failed += cut as u64;
                self.running.clear();
                self.waiting.clear();
                self.unresolved.clear();
            }
            Act::RestartWorker => {
                self.break_worker();
                self.lives += 1;
                let adopted = |(sandbox, report): (&SandboxId, &SandboxReport)| Adopted {
                    report: SandboxReport {
                        stopping: self.ending.contains(sandbox),
                        ..report.clone()
                    },
                    port: None,
                    artifact: None,
                };
                let adopted = self.programs.iter().map(adopted).collect();
                // What rested is not known any more.
                self.exposed.retain(|sandbox| self.programs.contains_key(sandbox));
                self.worker = Worker::new(
                    self.now,
                    self.worker_config.clone(),
                    Left { adopted, ..Left::default() },
                );
            }
        }
    }

    fn break_data_plane(&mut self) {
        if let Some(stream) = self.data_plane_stream.take() {
            self.was_detached = true;
            self.at(LINK, What::ToControl(control::Event::Detached { stream }));
            self.at(Duration::from_millis(50), What::DialDataPlane);
            if let Some(gate) = &mut self.gate {
                gate.handle(self.now, gate::Event::Detached);
            }
        }
    }

    fn break_worker(&mut self) {
        if let Some(stream) = self.worker_stream.take() {
            self.at(LINK, What::ToControl(control::Event::Detached { stream }));
            self.at(Duration::from_millis(50), What::DialWorker);
            self.worker.handle(self.now, worker::Event::Detached);
        }
    }

    fn ask(&mut self, call: Call) {
        self.number += 1;
        let request = RequestId(self.number);
        let event = control::Event::Asked { request, call, wall_ms: 0 };
        self.at(Duration::ZERO, What::ToControl(event));
    }

    fn attach_data_plane(&mut self) {
        self.number += 1;
        let stream = StreamId(self.number);
        self.data_plane_stream = Some(stream);
        let event = control::Event::DataPlaneAttached { stream, name: "dp".into() };
        self.at(LINK, What::ToControl(event));
        let gate = self.gate.as_ref();
        self.say(FromDataPlane::Hello(Box::new(DataPlaneHello {
            hello: hello(self.lives),
            holdings: gate.map(Gate::holdings).unwrap_or_default(),
            names: vec![name()],
            demands: gate.map(|gate| gate.demand(self.now)).into_iter().collect(),
        })));
        if let Some(gate) = &mut self.gate {
            gate.handle(self.now, gate::Event::Attached);
        }
    }

    fn attach_worker(&mut self) {
        self.number += 1;
        let stream = StreamId(self.number);
        self.worker_stream = Some(stream);
        let event = control::Event::WorkerAttached { stream, name: "w".into() };
        self.at(LINK, What::ToControl(event));
        self.worker.handle(self.now, worker::Event::Attached { hello: hello(self.lives) });
    }

    fn say(&mut self, frame: FromDataPlane) {
        if let Some(stream) = self.data_plane_stream {
            let event = control::Event::DataPlaneSaid { stream, frame, waited: Duration::ZERO };
            self.at(LINK, What::ToControl(event));
        }
    }

    fn hear(&mut self, frame: ToDataPlane) {
        let event = match frame {
            ToDataPlane::Resolved { version, function: Some(view), .. } => {
                if self.gate.is_none() {
                    self.gate = Some(Gate::new(self.now, version, view));
                    for (invocation, ms) in std::mem::take(&mut self.unresolved) {
                        self.admit(invocation, ms, Attempt::First);
                    }
                    return;
                }
                gate::Event::Configured { version, view }
            }
            ToDataPlane::Grant(grant) => {
                if self.gate.is_none() {
                    let (sandbox, share, serial) = (grant.sandbox, grant.share, grant.serial);
                    let why = WhyReturned::Drained;
                    let returned = Returned { sandbox, share, serial, why };
                    return self.say(FromDataPlane::Returned(returned));
                }
                gate::Event::Granted(grant)
            }
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
        if let Some(gate) = &mut self.gate {
            gate.handle(self.now, event);
        }
    }

    fn admit(&mut self, invocation: InvocationId, ms: u64, attempt: Attempt) {
        let gate = self.gate.as_mut().expect("it is resolved");
        match gate.admit(self.now, invocation, attempt) {
            Verdict::Bound(binding) => self.begin(invocation, &binding, ms),
            Verdict::Queued => {
                self.waiting.insert(invocation, ms);
            }
            Verdict::Refused(_) => self.failed += 1,
        }
    }

    fn begin(&mut self, invocation: InvocationId, binding: &gate::Binding, ms: u64) {
        let sandbox = binding.sandbox;
        // A data plane without a stream is not waited for: it has old capacity only.
        let newest = self.was_detached || binding.revision.number >= self.live;
        assert!(newest, "an old revision after its deploy returned");
        let beside = self.running.values().filter(|one| one.sandbox == sandbox).count();
        assert!(
            self.concurrency == 0 || beside < self.concurrency as usize,
            "{sandbox} has more than its slots"
        );
        self.running.insert(invocation, Running { sandbox, ms });
        if self.programs.contains_key(&sandbox) {
            assert!(!self.ending.contains(&sandbox), "bound to one that was told to stop");
            self.at(Duration::from_millis(ms), What::Ended(invocation));
        } else {
            self.at(Duration::from_micros(50), What::Ended(invocation));
        }
    }

    /// An invocation ends; with the program gone it is tried once more.
    fn ended(&mut self, invocation: InvocationId) {
        let Some(Running { sandbox, ms }) = self.running.remove(&invocation) else { return };
        let alive = self.programs.contains_key(&sandbox);
        let how = if alive { Finish::Done } else { Finish::Unreachable };
        let gate = self.gate.as_mut().expect("it was bound");
        gate.handle(self.now, gate::Event::Finished { sandbox, how });
        if alive {
            self.answered += 1;
        } else {
            self.admit(invocation, ms, Attempt::Retry { avoid: sandbox });
        }
    }

    fn end_program(&mut self, sandbox: SandboxId, cause: Cause) {
        if self.programs.remove(&sandbox).is_none() {
            return;
        }
        self.ending.remove(&sandbox);
        let cut: Vec<InvocationId> = self
            .running
            .iter()
            .filter(|(_, one)| one.sandbox == sandbox)
            .map(|(&invocation, _)| invocation)
            .collect();
        let stopped = cause == Cause::Stopped;
        assert!(cut.is_empty() || !stopped, "a sandbox in use was stopped");
        for invocation in cut {
            self.ended(invocation);
        }
        let failure = StartFailure { cause, fault: Fault::Function, log_tail: Vec::new() };
        self.worker.handle(self.now, worker::Event::SandboxGone { sandbox, failure });
    }

    fn carry_out(&mut self) {
        loop {
            if let Some(effect) = self.control.poll_effect() {
                self.ordered_by_control(effect);
            } else if let Some(effect) = self.worker.poll_effect() {
                self.ordered_by_worker(effect);
            } else if let Some(effect) = self.gate.as_mut().and_then(Gate::poll_effect) {
                self.ordered_by_gate(effect);
            } else {
                return;
            }
        }
    }

    fn ordered_by_control(&mut self, effect: control::Effect) {
        match effect {
            control::Effect::Persist { token, .. } => {
                self.store_revision += 1;
                let outcome = Outcome::Ok { revision: self.store_revision };
                let event = control::Event::Persisted { token, outcome };
                self.at(Duration::from_millis(1), What::ToControl(event));
            }
            control::Effect::ToWorker { stream, frame } => {
                self.at(LINK, What::ToWorker(stream, frame));
            }
            control::Effect::ToDataPlane { stream, frame } => {
                self.at(LINK, What::ToDataPlane(stream, frame));
            }
            control::Effect::Reply { result, .. } => match result {
                Ok(Answer::Deployed { revision, .. }) => {
                    self.ask(Call::AwaitRevision { revision });
                }
                Ok(Answer::Settled { revision, state: RevisionState::Live, .. }) => {
                    self.live = self.live.max(revision.number);
                }
                Ok(_) => {}
                Err(refusal) => panic!("refused: {refusal}"),
            },
            control::Effect::Close { stream, reason } => {
                let streams = [self.worker_stream, self.data_plane_stream];
                assert!(!streams.contains(&Some(stream)), "closed: {reason}");
            }
            control::Effect::Admit { .. }
            | control::Effect::DiscardArtifacts { .. }
            | control::Effect::Measure(_) => {}
            control::Effect::Resign { .. } => panic!("nobody else leads"),
        }
    }

    fn ordered_by_worker(&mut self, effect: worker::Effect) {
        match effect {
            worker::Effect::Send(frame) => {
                let stream = self.worker_stream.expect("told on a stream");
                assert!(!matches!(frame, FromWorker::Refused { .. }), "placed where no room is");
                if let FromWorker::SandboxReady { sandbox, .. } = frame {
                    self.exposed.insert(sandbox);
                }
                let event = control::Event::WorkerSaid { stream, frame };
                self.at(LINK, What::ToControl(event));
            }
            worker::Effect::Create(create) => {
                let sandbox = create.order.sandbox;
                self.made += 1;
                let Resources { cpu, memory } = create.order.spec.resources;
                let revision = create.order.revision;
                let report = SandboxReport {
                    sandbox,
                    revision,
                    memory,
                    cpu,
                    address: None,
                    stopping: false,
                };
                self.programs.insert(sandbox, report);
                self.at(CREATE, What::Created(sandbox));
                self.at(CREATE + INIT, What::Listening(sandbox));
            }
            worker::Effect::Destroy { sandbox, .. } => {
                self.ending.insert(sandbox);
                self.at(CREATE, What::Gone(sandbox, Cause::Stopped));
            }
            worker::Effect::Obey(_) | worker::Effect::Remember { .. } => {}
            other @ (worker::Effect::Fetch { .. }
            | worker::Effect::Resolve { .. }
            | worker::Effect::Discard { .. }
            | worker::Effect::Bar { .. }
            | worker::Effect::GiveUp) => panic!("not wanted: {other:?}"),
        }
    }

    fn ordered_by_gate(&mut self, effect: gate::Effect) {
        match effect {
            gate::Effect::Bind { invocation, binding } => {
                let ms = self.waiting.remove(&invocation).expect("it waits");
                self.begin(invocation, &binding, ms);
            }
            gate::Effect::Refuse { invocation, .. } => {
                self.waiting.remove(&invocation).expect("it waits");
                self.failed += 1;
            }
            gate::Effect::Send(frame) => self.say(frame),
            gate::Effect::Close { .. } => {}
        }
    }

    /// When all is quiet everything was answered and nothing runs any more.
    fn end(mut self) {
        self.run(Duration::from_secs(600));
        let unanswered = (&self.unresolved, &self.waiting, &self.running);
        assert_eq!(self.answered + self.failed, self.calls, "unanswered: {unanswered:?}");
        assert!(self.programs.is_empty(), "{:?} are left running", self.programs);
        assert!(self.worker.is_empty());
        assert!(self.exposed.is_empty(), "not released: {:?}", self.exposed);
        assert!(self.gate.is_none_or(|gate| gate.is_empty() && gate.deadline().is_none()));
        // One whose first sandbox crashes fails, as it should.
        let (live, deploys) = (self.live, self.deploys);
        assert!(live == deploys || self.has_crashed, "revision {live} is live, not {deploys}");
    }
}

fn run(concurrency: u32, acts: &[(u64, Act)]) -> World {
    let mut world = World::new(concurrency);
    let mut at = Duration::ZERO;
    for &(gap, act) in acts {
        at += Duration::from_millis(gap);
        world.at(at, What::Act(act));
    }
    world.run(at + Duration::from_secs(30));
    world
}

#[test]
fn a_burst_is_served_by_many_sandboxes_and_all_of_them_go() {
    let world = run(1, &[(0, Act::Call { ms: 100 }); 30]);
    assert_eq!((world.answered, world.failed), (30, 0));
    assert!((5..=11).contains(&world.made), "{} sandboxes made", world.made);
    world.end();
}

#[test]
fn a_function_that_cannot_start_is_refused_at_once_and_recovers_by_itself() {
    let call = Act::Call { ms: 1 };
    let spoil = [(30_000, Act::Spoil(true)), (0, call)];
    let mut world = run(1, &spoil);
    assert_eq!((world.answered, world.failed, world.waiting.len()), (0, 1, 0));
    let made = world.made;
    for n in 2..=10 {
        world.at(Duration::ZERO, What::Act(call));
        world.run(Duration::from_millis(20));
        assert_eq!(world.failed, n, "it is answered without waiting");
    }
    assert!(world.made <= made + 1, "one start is tried, not one for each call");
    world.at(Duration::ZERO, What::Act(Act::Spoil(false)));
    for _ in 0..70 {
        world.at(Duration::ZERO, What::Act(call));
        world.run(Duration::from_secs(1));
    }
    assert!(world.answered > 5, "{} answered", world.answered);
    let failed = world.failed;
    for _ in 0..10 {
        world.at(Duration::ZERO, What::Act(call));
        world.run(Duration::from_secs(1));
    }
    assert_eq!(world.failed, failed, "it serves again");
    world.end();
}

/// After so many milliseconds.
fn act(rough: bool) -> impl Strategy<Value = (u64, Act)> {
    let rough = u32::from(rough);
    let act = prop_oneof![
        60 => prop_oneof![Just(1), Just(50), Just(3000)].prop_map(|ms| Act::Call { ms }),
        4 => Just(Act::Deploy),
        3 * rough => any::<usize>().prop_map(|pick| Act::Crash { pick }),
        3 * rough => Just(Act::BreakDataPlane),
        3 * rough => Just(Act::BreakWorker),
        2 * rough => Just(Act::RestartDataPlane),
        2 * rough => Just(Act::RestartWorker),
    ];
    let gap = prop_oneof![8 => Just(0), 8 => 1..20_u64, 4 => 20..2000_u64, 1 => Just(25_000)];
    (gap, act)
}

fn acts(rough: bool) -> impl Strategy<Value = Vec<(u64, Act)>> {
    prop::collection::vec(act(rough), 1..60)
}

pub(crate) fn step() -> impl Strategy<Value = (u64, Act)> {
    act(true)
}

pub(crate) fn play((concurrency, acts): (u32, Vec<(u64, Act)>)) {
    run(concurrency, &acts).end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_call_is_lost_or_failed_by_scaling_and_deploys(
        concurrency in prop_oneof![Just(0), Just(1), Just(3)],
        acts in acts(false),
    ) {
        let world = run(concurrency, &acts);
        assert_eq!(world.failed, 0, "a call failed");
        world.end();
    }

    #[test]
    fn every_call_is_answered_whatever_breaks_crashes_or_restarts(
        concurrency in prop_oneof![Just(0), Just(1), Just(3)],
        acts in acts(true),
    ) {
        play((concurrency, acts));
    }
}
