//! The machines' hot paths, so many rounds of one: what `cargo xtask bench` counts instructions of.
//!
//! `hot-core gate ROUNDS`: a warm call, admitted to a free slot and finished. `hot-core control
//! ROUNDS`: a cold call, from the demand to the grant, and its sandbox's end.

#![expect(clippy::print_stdout, reason = "a program for developers")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    Address, Bytes, Cause, ClusterId, Epoch, Fault, FunctionId, FunctionView, InvocationId,
    Isolation, MilliCpu, Office, Protocol, Records, RequestId, Resources, RevisionId, RevisionView,
    RuntimeKind, SandboxId, SandboxSpec, Serial, Settings, Spec, StartFailure, StartPhases,
    StreamId, Time,
    control::{Call, Config, Control, Effect, Event, Outcome},
    frame::{
        Capacity, DataPlaneHello, Demand, FromDataPlane, FromWorker, Grant, Hello, Incarnation,
        PROTOCOL, Returned, Share, ToDataPlane, ToWorker, WhyReturned, WorkerHello,
    },
    gate::{self, Attempt, Finish, Gate, Verdict},
};

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let rounds = args.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(1000);
    match what.as_str() {
        "gate" => gate(rounds),
        "control" => control(rounds),
        other => println!("`{other}` is neither gate nor control"),
    }
}

const FUNCTION: FunctionId = FunctionId::new(Epoch(1), 1);

fn gate(rounds: u64) {
    let revision = RevisionId { function: FUNCTION, number: 1 };
    let view = FunctionView {
        id: FUNCTION,
        name: "f".parse().expect("a name"),
        settings: Arc::new(Settings::default()),
        targets: [RevisionView {
            id: revision,
            weight: 100,
            concurrency: 1,
            protocol: Protocol::Http1,
        }]
        .into(),
    };
    let mut gate = Gate::new(Time::ZERO, 1, Arc::new(view));
    for number in 1..=16 {
        let sandbox = SandboxId::new(Epoch(1), number);
        let address = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 20_000)));
        let grant = Grant {
            sandbox,
            revision,
            address,
            protocol: Protocol::Http1,
            share: Share::Slots(1),
            serial: Serial(number),
            pinned: false,
            start: None,
        };
        gate.handle(Time::ZERO, gate::Event::Granted(Box::new(grant)));
    }
    for round in 0..rounds {
        // Ten thousand calls a second.
        let now = Time(round * 100_000);
        let Verdict::Bound(binding) = gate.admit(now, InvocationId(round), Attempt::First) else {
            return println!("round {round} was not bound");
        };
        let finished = gate::Event::Finished { sandbox: binding.sandbox, how: Finish::Done };
        gate.handle(now.after(Duration::from_micros(50)), finished);
        while gate.poll_effect().is_some() {}
        if gate.deadline().is_some_and(|deadline| deadline <= now) {
            gate.expire(now);
        }
    }
    println!("{rounds} calls");
}

const WORKER: StreamId = StreamId(1);
const PLANE: StreamId = StreamId(2);

fn control(rounds: u64) {
    let mut world = World::new();
    for round in 0..rounds {
        if let Err(stuck) = world.cold_call() {
            return println!("round {round}: no {stuck}");
        }
    }
    println!("{rounds} sandboxes");
}

/// A control plane with a worker and a data plane, which say what they are asked for at once.
struct World {
    control: Control,
    now: Time,
    revision: u64,
    function: FunctionId,
    start: Option<SandboxId>,
    grant: Option<Grant>,
    stop: Option<SandboxId>,
}

impl World {
    fn new() -> Self {
        let now = Time(1_000_000_000);
        let office = Office { cluster: ClusterId(1), epoch: Epoch(7) };
        let config = Config { office, seed: 1, own_token: None };
        let mut world = Self {
            control: Control::new(now, config, Records::default()),
            now,
            revision: 0,
            function: FUNCTION,
            start: None,
            grant: None,
            stop: None,
        };
        world.tell(Event::WorkerAttached { stream: WORKER, name: "local".into() });
        let (sandboxes, artifacts) = (Vec::new(), Vec::new());
        let worker = WorkerHello { hello: hello(), capacity: capacity(), sandboxes, artifacts };
        world.worker(FromWorker::Hello(Box::new(worker)));
        world.tell(Event::DataPlaneAttached { stream: PLANE, name: "a".into() });
        let name = "hello".parse().expect("a name");
        let (holdings, demands) = (Vec::new(), Vec::new());
        let plane = DataPlaneHello { hello: hello(), holdings, names: vec![name], demands };
        world.plane(FromDataPlane::Hello(Box::new(plane)));
        let spec = Spec {
            sandbox: SandboxSpec::new(RuntimeKind::Fake, vec!["hello".to_owned()]),
            resources: Resources::default(),
            env: BTreeMap::new(),
            concurrency: 1,
            artifact: None,
        };
        let call = Call::Deploy {
            name: "hello".parse().expect("a name"),
            spec: Arc::new(spec),
            settings: Arc::new(Settings::default()),
            check: false,
        };
        world.tell(Event::Asked { request: RequestId(1), call, wall_ms: 1 });
        world
    }

    /// From the first demand for a sandbox to its end; what did not come, if it gets stuck.
    fn cold_call(&mut self) -> Result<(), &'static str> {
        self.now = self.now.after(Duration::from_secs(90));
        let frame = FromWorker::Beat(dirigent_core::frame::Load::default());
        self.worker(frame);
        self.expire();
        self.demand(1, 0, 0);
        let sandbox = self.start.take().ok_or("start")?;
        let address = Address::Unix(sandbox.to_string());
        self.worker(FromWorker::SandboxReady { sandbox, address, phases: StartPhases::default() });
        let grant = self.grant.take().ok_or("grant")?;
        self.demand(0, 1, 1);
        self.demand(0, 0, 1);
        let (share, serial) = (Share::Slots(1), grant.serial);
        let returned = Returned { sandbox, share, serial, why: WhyReturned::Idle };
        self.plane(FromDataPlane::Returned(returned));
        self.demand(0, 0, 0);
        self.expire();
        let stopped = self.stop.take().ok_or("stop")?;
        let failure =
            StartFailure { cause: Cause::Stopped, fault: Fault::Function, log_tail: Vec::new() };
        self.worker(FromWorker::SandboxGone { sandbox: stopped, failure });
        Ok(())
    }

    fn demand(&mut self, queued: u32, busy: u32, held: u32) {
        let demand = Demand {
            function: self.function,
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
        };
        self.plane(FromDataPlane::Demand(demand));
    }

    fn worker(&mut self, frame: FromWorker) {
        self.tell(Event::WorkerSaid { stream: WORKER, frame });
    }

    fn plane(&mut self, frame: FromDataPlane) {
        self.tell(Event::DataPlaneSaid { stream: PLANE, frame, waited: Duration::ZERO });
    }

    fn tell(&mut self, event: Event) {
        self.control.handle(self.now, event);
        self.drain();
    }

    fn expire(&mut self) {
        while self.control.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.control.expire(self.now);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(effect) = self.control.poll_effect() {
            match effect {
                Effect::Persist { token, .. } => {
                    self.revision += 1;
                    let outcome = Outcome::Ok { revision: self.revision };
                    self.control.handle(self.now, Event::Persisted { token, outcome });
                }
                Effect::ToWorker { frame: ToWorker::StartSandbox(start), .. } => {
                    self.start = Some(start.sandbox);
                }
                Effect::ToWorker { frame: ToWorker::StopSandbox { sandbox, .. }, .. } => {
                    self.stop = Some(sandbox);
                }
                Effect::ToDataPlane { frame: ToDataPlane::Grant(grant), .. } => {
                    self.grant = Some(*grant);
                }
                Effect::ToDataPlane {
                    frame: ToDataPlane::Resolved { function: Some(function), .. },
                    ..
                } => self.function = function.id,
                _ => {}
            }
        }
    }
}

fn capacity() -> Capacity {
    Capacity {
        memory: Bytes::mib(128 * 64),
        cpu: MilliCpu(64_000),
        cpu_overcommit: 10,
        sandboxes: 10_000,
        starts: 10_000,
        runtimes: [(RuntimeKind::Fake, Isolation::Plain)].into(),
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
