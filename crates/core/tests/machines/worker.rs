//! The worker against a model of its runtime and its leader.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    Address, Bytes, Cause, ClusterId, Digest, Epoch, Fault, FunctionId, Isolation, MilliCpu,
    Resources, RevisionId, RuntimeKind, SandboxId, SandboxSpec, Spec, StartFailure, Time, WorkerId,
    frame::{
        Capacity, FromWorker, Hello, Incarnation, SandboxReport, StartSandbox, ToWorker, Welcome,
    },
    worker::{Adopted, ArtifactFailure, Config, Effect, Event, Left, Worker},
};
use proptest::{prelude::*, sample::Index};

const MEMORY: Bytes = Bytes::mib(1000);
const PORTS: (u16, u16) = (20000, 20009);
const REST: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Start {
        mib: u64,
        artifact: Option<u8>,
    },
    Stop {
        pick: Index,
        grace_ms: u64,
    },
    Created {
        pick: Index,
    },
    Listening {
        pick: Index,
    },
    PortTaken {
        pick: Index,
    },
    Gone {
        pick: Index,
    },
    ArtifactReady {
        pick: Index,
    },
    ArtifactFailed {
        pick: Index,
    },
    Discard {
        artifact: u8,
    },
    Release {
        pick: Index,
    },
    Detach,
    Attach {
        epoch: u64,
    },
    Pass {
        ms: u64,
    },
    /// The worker dies and comes back; what runs goes on.
    Restart,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let pick = any::<Index>;
    prop_oneof![
        12 => (1..400_u64, prop::option::of(0..3_u8))
            .prop_map(|(mib, artifact)| Step::Start { mib, artifact }),
        5 => (pick(), prop_oneof![Just(0), Just(1000)])
            .prop_map(|(pick, grace_ms)| Step::Stop { pick, grace_ms }),
        10 => pick().prop_map(|pick| Step::Created { pick }),
        10 => pick().prop_map(|pick| Step::Listening { pick }),
        2 => pick().prop_map(|pick| Step::PortTaken { pick }),
        10 => pick().prop_map(|pick| Step::Gone { pick }),
        5 => pick().prop_map(|pick| Step::ArtifactReady { pick }),
        2 => pick().prop_map(|pick| Step::ArtifactFailed { pick }),
        3 => (0..3_u8).prop_map(|artifact| Step::Discard { artifact }),
        5 => pick().prop_map(|pick| Step::Release { pick }),
        1 => Just(Step::Detach),
        2 => Just(Step::Restart),
        3 => (1..5_u64).prop_map(|epoch| Step::Attach { epoch }),
        6 => prop_oneof![Just(10), Just(500), Just(40_000), Just(1_000_000)]
            .prop_map(|ms| Step::Pass { ms }),
    ]
}

/// A sandbox as its runtime knows it.
#[derive(Clone, Copy, Debug)]
struct Running {
    port: u16,
    since: Time,
    listening: bool,
    destroyed: bool,
    /// Data planes may know of it.
    exposed: bool,
}

#[derive(Debug)]
struct World {
    worker: Worker,
    now: Time,
    next: u64,
    attached: bool,
    obeyed: bool,
    highest: u64,
    /// Ordered, and no end was told yet: what each reserves, and its artifact.
    ordered: BTreeMap<SandboxId, (u64, Option<u8>)>,
    running: BTreeMap<SandboxId, Running>,
    /// Told ready, gone, not released: port and when it was gone.
    resting: BTreeMap<SandboxId, (u16, Time)>,
    fetching: BTreeSet<u8>,
    held: BTreeSet<u8>,
    /// Ports kept for the next life.
    remembered: BTreeMap<u16, SandboxId>,
}

fn digest(artifact: u8) -> Digest {
    Digest([artifact; 32])
}

fn order(sandbox: SandboxId, mib: u64, artifact: Option<u8>) -> StartSandbox {
    StartSandbox {
        sandbox,
        revision: RevisionId { function: FunctionId::new(Epoch(1), 1), number: 1 },
        name: "f".parse().unwrap(),
        spec: Arc::new(Spec {
            sandbox: SandboxSpec::new(RuntimeKind::Process, vec!["x".to_owned()]),
            resources: Resources { cpu: MilliCpu(10), memory: Bytes::mib(mib) },
            env: BTreeMap::new(),
            concurrency: 1,
            artifact: artifact.map(digest),
        }),
        start_timeout: Duration::from_secs(30),
    }
}

fn config() -> Config {
    Config {
        capacity: Capacity {
            memory: MEMORY,
            cpu: MilliCpu(1000),
            cpu_overcommit: 1,
            sandboxes: 8,
            starts: 4,
            runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
            missing: Vec::new(),
        },
        ports: PORTS,
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            worker: Worker::new(Time::ZERO, config(), Left::default()),
            now: Time::ZERO,
            next: 0,
            attached: false,
            obeyed: false,
            highest: 0,
            ordered: BTreeMap::new(),
            running: BTreeMap::new(),
            resting: BTreeMap::new(),
            fetching: BTreeSet::new(),
            held: BTreeSet::new(),
            remembered: BTreeMap::new(),
        };
        world.attach(1);
        world
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Start { mib, artifact } => {
                self.next += 1;
                let sandbox = SandboxId::new(Epoch(1), self.next);
                self.ordered.insert(sandbox, (mib, artifact));
                if !self.obeyed {
                    self.ordered.remove(&sandbox);
                }
                self.say(ToWorker::StartSandbox(Box::new(order(sandbox, mib, artifact))));
            }
            Step::Stop { pick, grace_ms } => {
                if let Some(sandbox) = self.any(&pick, |_| true) {
                    let grace = Duration::from_millis(grace_ms);
                    self.say(ToWorker::StopSandbox { sandbox, grace });
                }
            }
            Step::Created { pick } => {
                if let Some(sandbox) = self.any(&pick, |one| !one.listening) {
                    self.handle(Event::SandboxCreated { sandbox });
                }
            }
            Step::Listening { pick } => {
                if let Some(sandbox) = self.any(&pick, |one| !one.listening) {
                    let one = self.running.get_mut(&sandbox).unwrap();
                    one.listening = true;
                    one.exposed = !one.destroyed;
                    let address = Address::Tcp((Ipv4Addr::LOCALHOST, one.port).into());
                    let init = Duration::from_millis(1);
                    self.handle(Event::SandboxListening { sandbox, address, init });
                }
            }
            Step::PortTaken { pick } => {
                if let Some(sandbox) = self.any(&pick, |one| !one.listening && !one.destroyed) {
                    let port = self.running.remove(&sandbox).unwrap().port;
                    self.handle(Event::PortTaken { sandbox, port });
                }
            }
            Step::Gone { pick } => {
                if let Some(sandbox) = self.any(&pick, |_| true) {
                    self.end(sandbox);
                }
            }
            Step::ArtifactReady { pick } => {
                if let Some(artifact) = self.any_fetch(&pick) {
                    self.held.insert(artifact);
                    self.handle(Event::ArtifactReady { digest: digest(artifact) });
                }
            }
            Step::ArtifactFailed { pick } => {
                if let Some(artifact) = self.any_fetch(&pick) {
                    let failure = ArtifactFailure::new("no", Fault::Worker);
                    self.handle(Event::ArtifactFailed { digest: digest(artifact), failure });
                }
            }
            Step::Discard { artifact } => {
                self.say(ToWorker::DiscardArtifacts { digests: vec![digest(artifact)] });
            }
            Step::Release { pick } => {
                let resting: Vec<SandboxId> = self.resting.keys().copied().collect();
                if self.obeyed && !resting.is_empty() {
                    let sandbox = *pick.get(&resting);
                    self.resting.remove(&sandbox);
                    self.say(ToWorker::ReleaseAddress { sandbox });
                }
            }
            Step::Detach => self.detach(),
            Step::Attach { epoch } => self.attach(epoch),
            Step::Pass { ms } => self.pass(Duration::from_millis(ms)),
            Step::Restart => self.restart(),
        }
        self.check();
    }

    fn restart(&mut self) {
        self.detach();
        // What was not created yet is forgotten, and so is what ended and was not told.
        let running = &mut self.running;
        self.ordered.retain(|sandbox, _| running.contains_key(sandbox));
        self.fetching.clear();
        let adopted = running.iter_mut().map(|(&sandbox, one)| {
            let (mib, artifact) = self.ordered[&sandbox];
            // It is given a minute from now on.
            one.since = self.now + Duration::from_secs(30);
            Adopted {
                report: SandboxReport {
                    sandbox,
                    revision: RevisionId { function: FunctionId::new(Epoch(1), 1), number: 1 },
                    memory: Bytes::mib(mib),
                    cpu: MilliCpu(10),
                    address: one
                        .listening
                        .then(|| Address::Tcp((Ipv4Addr::LOCALHOST, one.port).into())),
                    stopping: one.destroyed,
                },
                port: Some(one.port),
                artifact: artifact.map(digest),
            }
        });
        let left = Left {
            adopted: adopted.collect(),
            artifacts: self.held.iter().copied().map(digest).collect(),
            ports: self.remembered.iter().map(|(port, sandbox)| (*port, *sandbox)).collect(),
        };
        self.worker = Worker::new(self.now, config(), left);
        self.drain();
    }

    fn any(&self, pick: &Index, fits: impl Fn(&Running) -> bool) -> Option<SandboxId> {
        let fitting: Vec<SandboxId> =
            self.running.iter().filter(|(_, one)| fits(one)).map(|(&id, _)| id).collect();
        (!fitting.is_empty()).then(|| *pick.get(&fitting))
    }

    fn any_fetch(&mut self, pick: &Index) -> Option<u8> {
        let all: Vec<u8> = self.fetching.iter().copied().collect();
        let artifact = (!all.is_empty()).then(|| *pick.get(&all))?;
        self.fetching.remove(&artifact);
        Some(artifact)
    }

    fn detach(&mut self) {
        (self.attached, self.obeyed) = (false, false);
        self.handle(Event::Detached);
    }

    fn attach(&mut self, epoch: u64) {
        self.detach();
        self.attached = true;
        let hello = Hello {
            cluster: None,
            protocol: (1, 1),
            features: Vec::new(),
            incarnation: Incarnation::default(),
            highest_epoch: Epoch(self.highest),
        };
        self.handle(Event::Attached { hello });
        self.obeyed = epoch >= self.highest;
        self.highest = self.highest.max(epoch);
        let welcome = Welcome { cluster: ClusterId(1), epoch: Epoch(epoch) };
        self.say(ToWorker::Welcome { welcome, you: WorkerId(1) });
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(deadline) = self.worker.deadline().filter(|&at| at <= until) {
            self.now = deadline.max(self.now);
            self.worker.expire(self.now);
            self.drain();
            assert!(self.worker.deadline().is_none_or(|at| at > self.now), "progress");
        }
        self.now = until;
        for (sandbox, one) in &self.running {
            let late = one.since + Duration::from_secs(30) <= self.now;
            assert!(one.listening || one.destroyed || !late, "{sandbox} may take for ever");
        }
    }

    fn end(&mut self, sandbox: SandboxId) {
        let one = self.running.remove(&sandbox).expect("it runs");
        if one.exposed {
            self.resting.insert(sandbox, (one.port, self.now));
        }
        let failure = StartFailure {
            cause: Cause::Exited { code: 1 },
            fault: Fault::Function,
            log_tail: Vec::new(),
        };
        self.handle(Event::SandboxGone { sandbox, failure });
    }

    fn say(&mut self, frame: ToWorker) {
        self.handle(Event::Said(frame));
    }

    fn handle(&mut self, event: Event) {
        self.worker.handle(self.now, event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.worker.poll_effect() {
            match effect {
                Effect::Send(frame) => self.told(frame),
                Effect::Obey(welcome) => {
                    assert!(self.obeyed, "a deposed leader was obeyed");
                    assert_eq!(welcome.epoch.0, self.highest);
                }
                Effect::Resolve { image, .. } => panic!("nobody has an image: {image}"),
                Effect::Fetch { digest, .. } => {
                    let [artifact, ..] = digest.0;
                    assert!(!self.held.contains(&artifact), "what is held is not fetched");
                    assert!(self.fetching.insert(artifact), "fetched twice at once");
                }
                Effect::Create(create) => {
                    let sandbox = create.order.sandbox;
                    let (_, artifact) = self.ordered[&sandbox];
                    assert!(artifact.is_none_or(|a| self.held.contains(&a)), "without its files");
                    self.may_use(create.port);
                    let fresh = Running {
                        port: create.port,
                        since: self.now,
                        listening: false,
                        destroyed: false,
                        exposed: false,
                    };
                    let before = self.running.insert(sandbox, fresh);
                    assert!(before.is_none(), "{sandbox} was created twice");
                }
                Effect::Destroy { sandbox, .. } => {
                    let one = self.running.get_mut(&sandbox);
                    one.expect("only what runs is destroyed").destroyed = true;
                }
                Effect::Discard { digest } => {
                    let [artifact, ..] = digest.0;
                    let used = self.running.keys().any(|id| self.ordered[id].1 == Some(artifact));
                    assert!(!used, "files in use were discarded");
                    assert!(self.held.remove(&artifact), "only what is held is discarded");
                }
                Effect::Remember { port, sandbox: Some(sandbox) } => {
                    self.remembered.insert(port, sandbox);
                }
                Effect::Remember { port, sandbox: None } => {
                    assert!(self.remembered.remove(&port).is_some(), "{port} was not kept");
                }
                Effect::Bar { .. } => panic!("nobody was to be barred"),
                Effect::GiveUp => panic!("nobody else has its name"),
            }
        }
    }

    /// Nobody else has the port, and nobody may still send to it.
    fn may_use(&self, port: u16) {
        assert!((PORTS.0..=PORTS.1).contains(&port));
        assert!(self.running.values().all(|one| one.port != port), "{port} is in use");
        let resting =
            self.resting.values().find(|&&(other, gone)| other == port && gone + REST > self.now);
        assert!(resting.is_none(), "{port} may still be sent to");
    }

    fn told(&mut self, frame: FromWorker) {
        assert!(self.attached, "told without a stream");
        match frame {
            FromWorker::Hello(hello) => {
                let told: BTreeSet<SandboxId> =
                    hello.sandboxes.iter().map(|report| report.sandbox).collect();
                let known: BTreeSet<SandboxId> = self.ordered.keys().copied().collect();
                assert_eq!(told, known, "the hello names every sandbox whose end was not told");
                assert_eq!(hello.hello.highest_epoch.0, self.highest);
                assert_eq!(hello.artifacts.len(), self.held.len());
            }
            FromWorker::SandboxReady { sandbox, .. } => {
                assert!(self.running[&sandbox].listening, "ready before it listens");
                let port = self.running[&sandbox].port;
                assert_eq!(self.remembered.get(&port), Some(&sandbox), "told before it is kept");
            }
            FromWorker::SandboxGone { sandbox, .. } => {
                assert!(!self.running.contains_key(&sandbox), "{sandbox} still runs");
                let before = self.ordered.remove(&sandbox);
                assert!(before.is_some(), "the end of {sandbox} was told twice");
            }
            FromWorker::Refused { sandbox, .. } => {
                self.ordered.remove(&sandbox).expect("a start is refused once");
            }
            FromWorker::Artifact { .. } | FromWorker::Beat(_) => {}
            other @ (FromWorker::Settled { .. }
            | FromWorker::Fetching { .. }
            | FromWorker::ImageResolved { .. }
            | FromWorker::Unsupported { .. }) => {
                panic!("not asked for: {other:?}")
            }
        }
    }

    fn check(&self) {
        let memory: u64 = self.running.keys().map(|id| self.ordered[id].0).sum();
        assert!(Bytes::mib(memory) <= MEMORY, "more than there is runs");
        assert!(self.running.len() <= 8, "more than 8 run");
        assert!(!self.attached || self.worker.deadline().is_some(), "a beat is due");
    }

    fn end_all(mut self) {
        self.attach(self.highest);
        self.handle(Event::Closed { grace: Duration::ZERO });
        for sandbox in self.running.keys().copied().collect::<Vec<_>>() {
            assert!(self.running[&sandbox].destroyed, "{sandbox} is not stopped");
            self.end(sandbox);
        }
        assert!(self.worker.is_empty() && self.ordered.is_empty(), "{:?} left", self.ordered);
        self.detach();
        self.pass(Duration::from_secs(3600));
        assert_eq!(self.worker.deadline(), None, "an idle worker without a leader is silent");
    }
}

/// How many slots a sandbox has means nothing here.
pub(crate) fn play((_, steps): (u32, Vec<Step>)) {
    let mut world = World::new();
    for step in steps {
        world.take(step);
    }
    world.end_all();
}

proptest! {
    #[test]
    fn a_worker_keeps_its_promises(steps in prop::collection::vec(step(), 1..120)) {
        play((0, steps));
    }
}
