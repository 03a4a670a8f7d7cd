//! One leader's machine as large as it is designed for: thousands of workers, a million functions,
//! and the events of their calls. Nothing goes wrong here, and nobody else takes part: what an event
//! costs and what an object weighs is the only question.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use dirigent_core::{
    Address, Bytes, Cause, ClusterId, Epoch, Fault, FunctionId, FunctionRecord, Isolation,
    MilliCpu, Office, Records, Resources, RevisionRecord, RevisionState, RuntimeKind, SandboxId,
    SandboxSpec, Serial, Settings, Spec, StartFailure, StartPhases, StreamId, Target, Time,
    control::{Config, Control, Effect, Event, Outcome},
    frame::{
        Capacity, DataPlaneHello, Demand, FromDataPlane, FromWorker, Hello, Incarnation, PROTOCOL,
        Returned, Share, ToDataPlane, ToWorker, WhyReturned, WorkerHello,
    },
};

/// Each event comes so much later than the one before: nothing times out on the way.
const STEP: Duration = Duration::from_nanos(50);

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Functions registered.
    pub functions: u64,
    /// Workers attached, each with room for 100 sandboxes.
    pub workers: u64,
    /// Data planes attached.
    pub planes: u64,
}

/// A sandbox on its way.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Its worker's stream.
    worker: StreamId,
    sandbox: SandboxId,
    function: FunctionId,
}

/// A sandbox that a data plane holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    started: Started,
    plane: StreamId,
}

/// See the module.
#[derive(Debug)]
pub struct Big {
    control: Control,
    size: Size,
    now: Time,
    revision: u64,
    /// Sandboxes that had an address.
    addresses: u32,
    /// What every data plane said of each function.
    arrivals: BTreeMap<(StreamId, FunctionId), u64>,
    started: Vec<Started>,
    held: Vec<Held>,
    /// Events told.
    pub events: u64,
    /// Effects ordered.
    pub effects: u64,
}

fn spec() -> Arc<Spec> {
    Arc::new(Spec {
        sandbox: SandboxSpec::new(RuntimeKind::Process, vec!["x".to_owned()]),
        resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(128) },
        env: BTreeMap::new(),
        concurrency: 1,
        artifact: None,
    })
}

/// As many records as `functions`, each with a specification of its own, as from a store.
#[must_use]
pub fn records(functions: u64) -> Records {
    let settings = Settings { max: 1000, ..Settings::default() };
    let record = |n| {
        let revision = RevisionRecord {
            number: 1,
            spec: spec(),
            state: RevisionState::Live,
            created_ms: 1,
            failure: None,
            born: Epoch(1),
        };
        #[expect(clippy::expect_used, reason = "a letter and digits are a name")]
        let name = format!("function-{n}").parse().expect("a name");
        Arc::new(FunctionRecord {
            id: FunctionId::new(Epoch(1), n),
            name,
            settings: Arc::new(settings.clone()),
            next: None,
            revisions: vec![revision],
            targets: vec![Target { revision: 1, weight: 100 }],
        })
    };
    let functions = (1..=functions).map(record).collect();
    Records { functions, ..Records::default() }
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

impl Big {
    /// With everybody attached.
    #[must_use]
    pub fn new(size: Size, records: Records) -> Self {
        let now = Time(1_000_000_000);
        let office = Office { cluster: ClusterId(1), epoch: Epoch(2) };
        let mut big = Self {
            control: Control::new(now, Config { office, seed: 1, own_token: None }, records),
            size,
            now,
            revision: 0,
            addresses: 0,
            arrivals: BTreeMap::new(),
            started: Vec::new(),
            held: Vec::new(),
            events: 0,
            effects: 0,
        };
        for worker in 1..=size.workers {
            big.attach_worker(StreamId(worker));
        }
        for plane in 0..size.planes {
            let stream = big.plane(plane);
            big.tell(Event::DataPlaneAttached { stream, name: format!("dp-{plane}").into() });
            let hello = DataPlaneHello {
                hello: hello(),
                holdings: Vec::new(),
                names: Vec::new(),
                demands: Vec::new(),
            };
            let frame = FromDataPlane::Hello(Box::new(hello));
            big.tell(Event::DataPlaneSaid { stream, frame, waited: Duration::ZERO });
        }
        big
    }

    fn attach_worker(&mut self, stream: StreamId) {
        self.tell(Event::WorkerAttached { stream, name: format!("worker-{}", stream.0).into() });
        let capacity = Capacity {
            memory: Bytes::mib(128 * 100),
            cpu: MilliCpu(16_000),
            cpu_overcommit: 10,
            sandboxes: 100,
            starts: 64,
            runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
            missing: Vec::new(),
        };
        let (sandboxes, artifacts) = (Vec::new(), Vec::new());
        let hello = WorkerHello { hello: hello(), capacity, sandboxes, artifacts };
        let frame = FromWorker::Hello(Box::new(hello));
        self.tell(Event::WorkerSaid { stream, frame });
    }

    /// The stream of a data plane.
    #[must_use]
    pub fn plane(&self, n: u64) -> StreamId {
        StreamId(1_000_000 + n % self.size.planes.max(1))
    }

    fn tell(&mut self, event: Event) {
        self.now = self.now.after(STEP);
        self.events += 1;
        self.control.handle(self.now, event);
        while self.control.deadline().is_some_and(|at| at <= self.now) {
            self.control.expire(self.now);
        }
        while let Some(effect) = self.control.poll_effect() {
            self.effects += 1;
            match effect {
                Effect::Persist { token, .. } => {
                    self.revision += 1;
                    let outcome = Outcome::Ok { revision: self.revision };
                    self.control.handle(self.now, Event::Persisted { token, outcome });
                }
                Effect::ToWorker { stream: worker, frame: ToWorker::StartSandbox(order) } => {
                    let (sandbox, function) = (order.sandbox, order.revision.function);
                    self.started.push(Started { worker, sandbox, function });
                }
                Effect::ToDataPlane { stream: plane, frame: ToDataPlane::Grant(grant) } => {
                    let (sandbox, function) = (grant.sandbox, grant.revision.function);
                    let started = Started { worker: StreamId(0), sandbox, function };
                    self.held.push(Held { started, plane });
                }
                _ => {}
            }
        }
    }

    /// A data plane says what it wants of a function. Gives back what was ordered to start for it.
    pub fn demand(
        &mut self,
        plane: StreamId,
        function: FunctionId,
        level: [u32; 3],
    ) -> Vec<Started> {
        let [queued, held, busy] = level;
        let arrivals = self.arrivals.entry((plane, function)).or_default();
        *arrivals += u64::from(queued);
        let demand = Demand {
            function,
            queued,
            oldest_wait: Duration::ZERO,
            held,
            idle: held.saturating_sub(busy),
            busy,
            busy_integral: 0,
            elapsed: self.now.0,
            arrivals_total: *arrivals,
            finished_total: 0,
            expected: 0,
        };
        self.tell(Event::DataPlaneSaid {
            stream: plane,
            frame: FromDataPlane::Demand(demand),
            waited: Duration::ZERO,
        });
        std::mem::take(&mut self.started)
    }

    /// A sandbox listens. Gives back what was granted.
    pub fn ready(&mut self, started: Started) -> Vec<Held> {
        self.addresses = self.addresses.wrapping_add(1);
        let [high, low, port @ ..] = self.addresses.to_be_bytes();
        let address = (Ipv4Addr::new(127, high, low, 1), u16::from_be_bytes(port));
        let address = Address::Tcp(address.into());
        let (sandbox, phases) = (started.sandbox, StartPhases::default());
        let frame = FromWorker::SandboxReady { sandbox, address, phases };
        self.tell(Event::WorkerSaid { stream: started.worker, frame });
        let granted = std::mem::take(&mut self.held);
        let by_worker = |held: Held| Held {
            started: Started { worker: started.worker, ..held.started },
            ..held
        };
        granted.into_iter().map(by_worker).collect()
    }

    /// It is given back after its keep-alive, stopped, and gone.
    pub fn end(&mut self, held: Held) {
        let Held { started: Started { worker, sandbox, .. }, plane } = held;
        let (share, why) = (Share::Slots(1), WhyReturned::Idle);
        let returned = Returned { sandbox, share, serial: Serial(1), why };
        self.tell(Event::DataPlaneSaid {
            stream: plane,
            frame: FromDataPlane::Returned(returned),
            waited: Duration::ZERO,
        });
        let failure =
            StartFailure { cause: Cause::Stopped, fault: Fault::Function, log_tail: Vec::new() };
        let frame = FromWorker::SandboxGone { sandbox, failure };
        self.tell(Event::WorkerSaid { stream: worker, frame });
    }

    /// One call of a function without a sandbox, from its queueing to its slot.
    pub fn cold_start(&mut self, plane: StreamId, function: FunctionId) -> Option<Held> {
        let started = self.demand(plane, function, [1, 0, 0]);
        self.ready(*started.first()?).first().copied()
    }

    /// It runs and ends, and its sandbox with it.
    pub fn call(&mut self, held: Held) {
        self.demand(held.plane, held.started.function, [0, 1, 1]);
        self.demand(held.plane, held.started.function, [0, 1, 0]);
        self.end(held);
    }

    /// Sandboxes in the books.
    #[must_use]
    pub fn live(&self) -> usize {
        self.control.remembered().sandboxes
    }

    /// The id of the nth function.
    #[must_use]
    pub fn function(&self, n: u64) -> FunctionId {
        FunctionId::new(Epoch(1), 1 + n % self.size.functions.max(1))
    }
}

/// Memory of this process that is in use, in bytes.
#[must_use]
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
