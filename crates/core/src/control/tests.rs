//! One event, exact effects. The world around the machine is small: a store that answers when it
//! is told to, one worker that starts what it is told to, data planes that say what the test says.

#![expect(
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "what a test does not expect fails it"
)]

mod callers;
mod demand;
mod deploys;
mod edges;
mod orders;
mod recovery;
mod silent;
mod together;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::*;
use crate::{
    Address, Bytes, Cause, ClusterId, Digest, Epoch, Fault, FunctionView, Isolation, MilliCpu,
    RequestId, Resources, RevisionId, RuntimeKind, SandboxId, SandboxSpec, Serial, StartFailure,
    StartPhases, StreamId, Write,
    frame::{
        Capacity, DataPlaneHello, Demand, FromDataPlane, FromWorker, Grant, Hello, Holding,
        Incarnation, PROTOCOL, Returned, SandboxReport, Share, StartSandbox, Status, ToDataPlane,
        ToWorker, WhyReturned, WorkerHello,
    },
};

const WORKER: StreamId = StreamId(1);
const PLANE: StreamId = StreamId(2);
const OTHER_PLANE: StreamId = StreamId(3);
const EPOCH: Epoch = Epoch(7);
const OFFICE: Office = Office { cluster: ClusterId(1), epoch: EPOCH };

/// The machine, and what it has said so far.
struct World {
    control: Control,
    now: Time,
    revision: u64,
    requests: u64,
    /// Writes not answered yet.
    writes: Vec<(WriteToken, Write)>,
    replies: BTreeMap<RequestId, Result<Answer, Refusal>>,
    starts: Vec<StartSandbox>,
    /// Of workers and data planes, measures left out.
    said: Vec<Effect>,
    /// The store answers at once.
    store_answers: bool,
    room: u64,
}

impl World {
    fn new() -> Self {
        Self::with(Records::default())
    }

    fn with(records: Records) -> Self {
        let now = Time(1_000_000_000);
        Self {
            control: Control::new(
                now,
                Config { office: OFFICE, seed: 1, own_token: None },
                records,
            ),
            now,
            revision: 0,
            requests: 0,
            writes: Vec::new(),
            replies: BTreeMap::new(),
            starts: Vec::new(),
            said: Vec::new(),
            store_answers: true,
            room: 64,
        }
    }

    /// With a worker and a data plane that are attached and know `hello`.
    fn running(spec: &Spec, settings: &Settings) -> (Self, FunctionId) {
        let mut world = Self::new();
        world.attach_worker();
        world.attach_plane(PLANE, "a");
        let (function, _) = world.deploy("hello", spec, settings, false);
        world.resolve(PLANE, "hello");
        world.said.clear();
        (world, function)
    }

    fn tell(&mut self, event: Event) {
        self.control.handle(self.now, event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.control.poll_effect() {
            match effect {
                Effect::Persist { token, write } => self.writes.push((token, write)),
                Effect::Reply { to, result } => {
                    assert!(self.replies.insert(to, result).is_none(), "{to} was answered twice");
                }
                Effect::ToWorker { frame: ToWorker::StartSandbox(start), .. } => {
                    self.starts.push(*start);
                }
                Effect::Measure(_) => {}
                effect => self.said.push(effect),
            }
        }
        if self.store_answers {
            self.answer_writes(None);
        }
    }

    /// Answers the writes on their way, `Ok` if nothing else is said.
    fn answer_writes(&mut self, outcome: Option<Outcome>) {
        for (token, _) in std::mem::take(&mut self.writes) {
            self.revision += 1;
            let outcome = outcome.unwrap_or(Outcome::Ok { revision: self.revision });
            self.tell(Event::Persisted { token, outcome });
        }
    }

    /// Lets time pass; deadlines fire when they are due.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(at) = self.control.deadline().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.beat();
            self.control.expire(self.now);
            self.drain();
        }
        self.now = end;
        self.beat();
    }

    /// The worker is heard all the time.
    fn beat(&mut self) {
        let frame = FromWorker::Beat(crate::frame::Load::default());
        self.control.handle(self.now, Event::WorkerSaid { stream: WORKER, frame });
        self.drain();
    }

    fn attach_worker(&mut self) {
        self.attach_worker_with(Vec::new());
    }

    fn attach_worker_with(&mut self, sandboxes: Vec<SandboxReport>) {
        self.tell(Event::WorkerAttached { stream: WORKER, name: "local".into() });
        let hello = WorkerHello {
            hello: hello(),
            capacity: capacity(self.room),
            sandboxes,
            artifacts: Vec::new(),
        };
        self.worker(FromWorker::Hello(Box::new(hello)));
    }

    fn attach_plane(&mut self, stream: StreamId, name: &str) {
        self.attach_plane_with(stream, name, Vec::new());
    }

    fn attach_plane_with(&mut self, stream: StreamId, name: &str, holdings: Vec<Holding>) {
        self.tell(Event::DataPlaneAttached { stream, name: name.into() });
        let hello = DataPlaneHello {
            hello: hello(),
            holdings,
            names: vec!["hello".parse().unwrap()],
            demands: Vec::new(),
        };
        self.plane(stream, FromDataPlane::Hello(Box::new(hello)));
    }

    fn worker(&mut self, frame: FromWorker) {
        self.tell(Event::WorkerSaid { stream: WORKER, frame });
    }

    fn plane(&mut self, stream: StreamId, frame: FromDataPlane) {
        self.tell(Event::DataPlaneSaid { stream, frame, waited: Duration::ZERO });
    }

    fn ask(&mut self, call: Call) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.tell(Event::Asked { request, call, wall_ms: 1 });
        request
    }

    fn answer(&mut self, call: Call) -> Result<Answer, Refusal> {
        let request = self.ask(call);
        self.replies.remove(&request).expect("it is answered at once")
    }

    fn deploy(
        &mut self,
        name: &str,
        spec: &Spec,
        settings: &Settings,
        check: bool,
    ) -> (FunctionId, u32) {
        match self.answer(deploy(name, spec, settings, check)) {
            Ok(Answer::Deployed { revision, changed: true, .. }) => {
                (revision.function, revision.number)
            }
            other => panic!("not deployed: {other:?}"),
        }
    }

    fn resolve(&mut self, stream: StreamId, name: &str) {
        self.plane(stream, FromDataPlane::Resolve { name: name.parse().unwrap() });
    }

    /// Starts that were ordered since the last look.
    fn started(&mut self) -> Vec<SandboxId> {
        std::mem::take(&mut self.starts).into_iter().map(|start| start.sandbox).collect()
    }

    fn ready(&mut self, sandbox: SandboxId) {
        let frame = FromWorker::SandboxReady {
            sandbox,
            address: address(sandbox),
            phases: StartPhases::default(),
        };
        self.worker(frame);
    }

    fn gone(&mut self, sandbox: SandboxId, failure: StartFailure) {
        self.worker(FromWorker::SandboxGone { sandbox, failure });
    }

    fn demand(&mut self, stream: StreamId, demand: Demand) {
        self.plane(stream, FromDataPlane::Demand(demand));
    }

    fn give_back(&mut self, stream: StreamId, sandbox: SandboxId, why: WhyReturned) {
        let share = Share::Slots(1);
        let returned = Returned { sandbox, share, serial: Serial(1), why };
        self.plane(stream, FromDataPlane::Returned(returned));
    }

    fn said(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.said)
    }

    /// Sandboxes granted since the last look, and to whom; the rest of what was said is kept.
    fn granted(&mut self) -> Vec<(StreamId, Grant)> {
        let mut grants = Vec::new();
        self.said.retain(|effect| match effect {
            Effect::ToDataPlane { stream, frame: ToDataPlane::Grant(grant) } => {
                grants.push((*stream, Grant::clone(grant)));
                false
            }
            _ => true,
        });
        grants
    }

    fn describe(&mut self, name: &str) -> FunctionDescription {
        match self.answer(Call::Describe { name: name.parse().unwrap() }) {
            Ok(Answer::Function(description)) => *description,
            other => panic!("not described: {other:?}"),
        }
    }
}

/// Room for so many sandboxes of the usual size.
fn capacity(room: u64) -> Capacity {
    Capacity {
        memory: Bytes::mib(128 * room),
        cpu: MilliCpu(64_000),
        cpu_overcommit: 10,
        sandboxes: 10_000,
        starts: 10_000,
        runtimes: [RuntimeKind::Fake, RuntimeKind::Container]
            .map(|kind| (kind, Isolation::Plain))
            .into(),
        missing: Vec::new(),
    }
}

fn hello() -> Hello {
    Hello {
        cluster: None,
        protocol: (PROTOCOL, PROTOCOL),
        features: Vec::new(),
        incarnation: Incarnation::default(),
        highest_epoch: Epoch(0),
    }
}

fn deploy(name: &str, spec: &Spec, settings: &Settings, check: bool) -> Call {
    Call::Deploy {
        name: name.parse().unwrap(),
        spec: Arc::new(spec.clone()),
        settings: Arc::new(settings.clone()),
        check,
    }
}

fn spec(word: &str, concurrency: u32) -> Spec {
    Spec {
        sandbox: SandboxSpec::new(RuntimeKind::Fake, vec![word.to_owned()]),
        resources: Resources::default(),
        env: BTreeMap::new(),
        concurrency,
        artifact: None,
    }
}

fn address(sandbox: SandboxId) -> Address {
    Address::Unix(sandbox.to_string())
}

fn failure(fault: Fault) -> StartFailure {
    StartFailure { cause: Cause::Exited { code: 1 }, fault, log_tail: vec!["boom".to_owned()] }
}

fn stopped() -> StartFailure {
    StartFailure { cause: Cause::Stopped, fault: Fault::Function, log_tail: Vec::new() }
}

/// So many waiting, in sandboxes and held, `at` milliseconds after the data plane first heard of
/// the function.
fn demand(function: FunctionId, queued: u32, busy: u32, held: u32) -> Demand {
    Demand {
        function,
        queued,
        oldest_wait: Duration::ZERO,
        held,
        idle: held.saturating_sub(busy),
        busy,
        busy_integral: 0,
        elapsed: 1_000_000,
        arrivals_total: u64::from(queued + busy),
        finished_total: 0,
        expected: 0,
    }
}

fn to_plane(stream: StreamId, frame: ToDataPlane) -> Effect {
    Effect::ToDataPlane { stream, frame }
}

fn to_worker(frame: ToWorker) -> Effect {
    Effect::ToWorker { stream: WORKER, frame }
}

fn stop(sandbox: SandboxId) -> Effect {
    to_worker(ToWorker::StopSandbox { sandbox, grace: Settings::default().grace })
}

fn release(sandbox: SandboxId) -> Effect {
    to_worker(ToWorker::ReleaseAddress { sandbox })
}

fn recall(sandbox: SandboxId) -> Effect {
    to_plane(PLANE, ToDataPlane::RecallSandbox { sandbox, gone: false })
}
