use std::{collections::BTreeMap as Map, net::Ipv4Addr, sync::Arc};

use super::*;
use crate::{
    Bytes, FunctionId, Isolation, MilliCpu, Resources, RevisionId, RuntimeKind, SandboxSpec, Spec,
    WorkerId,
    frame::{Incarnation, SandboxReport},
};

const FUNCTION: FunctionId = FunctionId::new(Epoch(1), 1);
const CLUSTER: ClusterId = ClusterId(7);
const DIGEST: Digest = Digest([1; 32]);

fn sandbox(n: u64) -> SandboxId {
    SandboxId::new(Epoch(1), n)
}

fn ms(n: u64) -> Time {
    Time(n * 1_000_000)
}

fn config() -> Config {
    Config {
        capacity: Capacity {
            memory: Bytes::mib(1000),
            cpu: MilliCpu(1000),
            cpu_overcommit: 2,
            sandboxes: 4,
            starts: 4,
            runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
            missing: Vec::new(),
        },
        ports: (20000, 20004),
    }
}

fn hello() -> Hello {
    Hello {
        cluster: None,
        protocol: (1, 1),
        features: Vec::new(),
        incarnation: Incarnation::default(),
        highest_epoch: Epoch(3),
    }
}

fn said(worker: &mut Worker, now: Time, frame: ToWorker) {
    worker.handle(now, Event::Said(frame));
}

fn welcome(worker: &mut Worker, now: Time, epoch: u64) {
    let welcome = Welcome { cluster: CLUSTER, epoch: Epoch(epoch) };
    said(worker, now, ToWorker::Welcome { welcome, you: WorkerId(1) });
}

fn attach(worker: &mut Worker, now: Time) {
    worker.handle(now, Event::Attached { hello: hello() });
    welcome(worker, now, 3);
}

/// A worker that obeys, its first effects taken.
fn worker() -> Worker {
    let mut worker = Worker::new(Time::ZERO, config(), Left::default());
    attach(&mut worker, Time::ZERO);
    assert_eq!(done(&mut worker), ["hello with [] and 0 artifacts", "obey 3"]);
    worker
}

fn order(n: u64) -> StartSandbox {
    StartSandbox {
        sandbox: sandbox(n),
        revision: RevisionId { function: FUNCTION, number: 1 },
        name: "f".parse().unwrap(),
        spec: Arc::new(Spec {
            sandbox: SandboxSpec::new(RuntimeKind::Process, vec!["/bin/true".to_owned()]),
            resources: Resources::default(),
            env: Map::new(),
            concurrency: 1,
            artifact: None,
        }),
        start_timeout: Duration::from_secs(30),
    }
}

fn start(worker: &mut Worker, now: Time, n: u64) {
    said(worker, now, ToWorker::StartSandbox(Box::new(order(n))));
}

fn start_with(worker: &mut Worker, now: Time, n: u64, change: impl FnOnce(&mut Spec)) {
    let mut order = order(n);
    change(Arc::make_mut(&mut order.spec));
    said(worker, now, ToWorker::StartSandbox(Box::new(order)));
}

fn stop(worker: &mut Worker, now: Time, n: u64, grace_ms: u64) {
    let grace = Duration::from_millis(grace_ms);
    said(worker, now, ToWorker::StopSandbox { sandbox: sandbox(n), grace });
}

fn listening(worker: &mut Worker, now: Time, n: u64) {
    let address = Address::Tcp((Ipv4Addr::LOCALHOST, 20000).into());
    let init = Duration::from_millis(5);
    worker.handle(now, Event::SandboxListening { sandbox: sandbox(n), address, init });
}

fn created(worker: &mut Worker, now: Time, n: u64) {
    worker.handle(now, Event::SandboxCreated { sandbox: sandbox(n) });
}

fn gone(worker: &mut Worker, now: Time, n: u64, cause: Cause) {
    let failure = StartFailure { cause, fault: Fault::Function, log_tail: vec!["bye".to_owned()] };
    worker.handle(now, Event::SandboxGone { sandbox: sandbox(n), failure });
}

fn done(worker: &mut Worker) -> Vec<String> {
    let effects = std::iter::from_fn(|| worker.poll_effect());
    effects.filter(|effect| !matches!(effect, Effect::Remember { .. })).map(line).collect()
}

/// What is to be kept for the next life, in order; the rest is left out.
fn kept(worker: &mut Worker) -> Vec<(u16, Option<u64>)> {
    let kept = |effect| {
        let Effect::Remember { port, sandbox } = effect else { return None };
        Some((port, sandbox.map(|it: SandboxId| it.counter)))
    };
    std::iter::from_fn(|| worker.poll_effect()).filter_map(kept).collect()
}

fn line(effect: Effect) -> String {
    match effect {
        Effect::Send(FromWorker::Hello(hello)) => {
            let report = |one: &SandboxReport| {
                let state = match (&one.address, one.stopping) {
                    (_, true) => "stopping",
                    (Some(_), false) => "ready",
                    (None, false) => "starting",
                };
                format!("{} {state}", one.sandbox.counter)
            };
            let sandboxes: Vec<String> = hello.sandboxes.iter().map(report).collect();
            format!("hello with [{}] and {} artifacts", sandboxes.join(", "), hello.artifacts.len())
        }
        Effect::Send(FromWorker::Beat(load)) => format!("beat of {}", load.sandboxes),
        Effect::Send(FromWorker::SandboxReady { sandbox, phases, .. }) => {
            let [fetch, create, init] =
                [phases.fetch, phases.create, phases.init].map(|phase| phase.as_millis());
            format!("{} ready: fetch {fetch} create {create} init {init}", sandbox.counter)
        }
        Effect::Send(FromWorker::SandboxGone { sandbox, failure }) => {
            format!("{} gone: {} ({:?})", sandbox.counter, failure.cause, failure.fault)
        }
        Effect::Send(FromWorker::Refused { sandbox, message }) => {
            format!("{} refused: {message}", sandbox.counter)
        }
        Effect::Send(FromWorker::Artifact { held, .. }) => format!("artifact held: {held}"),
        Effect::Send(FromWorker::Fetching { fetched, all, .. }) => {
            format!("{} of {} fetched", fetched.0, all.0)
        }
        Effect::Send(FromWorker::ImageResolved { sandbox, .. }) => {
            format!("{} resolved", sandbox.counter)
        }
        Effect::Send(FromWorker::Settled { sandbox, .. }) => format!("{} settled", sandbox.counter),
        Effect::Send(FromWorker::Unsupported { kind }) => format!("unsupported {kind}"),
        Effect::Obey(welcome) => format!("obey {}", welcome.epoch.0),
        Effect::Fetch { image: None, .. } => "fetch".to_owned(),
        Effect::Fetch { image: Some(image), .. } => format!("pull {image}"),
        Effect::Resolve { sandbox, image, .. } => {
            format!("resolve {image} for {}", sandbox.counter)
        }
        Effect::Create(create) => {
            format!("create {} on {}", create.order.sandbox.counter, create.port)
        }
        Effect::Destroy { sandbox, grace } => {
            format!("destroy {} in {}", sandbox.counter, grace.as_millis())
        }
        Effect::Discard { .. } => "discard".to_owned(),
        Effect::GiveUp => "give up".to_owned(),
        Effect::Remember { port, sandbox } => format!("{port} is known as {sandbox:?}"),
        Effect::Bar { sandbox, data_plane } => format!("bar {data_plane} from {}", sandbox.counter),
    }
}

#[test]
fn a_start_goes_from_the_order_to_ready_with_its_phases() {
    let mut worker = worker();
    start(&mut worker, ms(10), 1);
    assert_eq!(done(&mut worker), ["create 1 on 20000"]);
    created(&mut worker, ms(12), 1);
    listening(&mut worker, ms(17), 1);
    assert_eq!(done(&mut worker), ["1 ready: fetch 0 create 2 init 5"]);
    start(&mut worker, ms(18), 1);
    assert_eq!(done(&mut worker), [""; 0], "the same order again changes nothing");
}

#[test]
fn an_artifact_is_fetched_once_for_all_who_wait() {
    let mut worker = worker();
    for n in 1..=3 {
        start_with(&mut worker, ms(n), n, |spec| spec.artifact = Some(DIGEST));
    }
    assert_eq!(done(&mut worker), ["fetch"]);
    stop(&mut worker, ms(4), 2, 1000);
    assert_eq!(done(&mut worker), ["2 gone: stopped (Function)"]);
    worker.handle(ms(11), Event::ArtifactReady { digest: DIGEST });
    assert_eq!(
        done(&mut worker),
        ["artifact held: true", "create 1 on 20000", "create 3 on 20002"]
    );
    created(&mut worker, ms(12), 1);
    listening(&mut worker, ms(17), 1);
    assert_eq!(done(&mut worker), ["1 ready: fetch 10 create 1 init 5"]);
    start_with(&mut worker, ms(20), 4, |spec| spec.artifact = Some(DIGEST));
    assert_eq!(done(&mut worker), ["create 4 on 20003"]);
}

#[test]
fn an_artifact_that_cannot_be_had_fails_all_who_wait() {
    let mut worker = worker();
    for n in 1..=2 {
        start_with(&mut worker, ms(n), n, |spec| spec.artifact = Some(DIGEST));
    }
    let fail = |worker: &mut Worker, now, message: &str, fault| {
        let failure = ArtifactFailure::new(message, fault);
        worker.handle(now, Event::ArtifactFailed { digest: DIGEST, failure });
    };
    fail(&mut worker, ms(3), "disk full", Fault::Worker);
    assert_eq!(
        done(&mut worker),
        ["fetch", "1 gone: disk full (Worker)", "2 gone: disk full (Worker)"]
    );
    start_with(&mut worker, ms(4), 3, |spec| spec.artifact = Some(DIGEST));
    assert_eq!(done(&mut worker), ["fetch"], "it is tried again");
    fail(&mut worker, ms(5), "no archive", Fault::Function);
    assert_eq!(done(&mut worker), ["3 gone: no archive (Function)"]);
}

#[test]
fn an_artifact_that_somebody_removed_is_fetched_again() {
    let mut worker = worker();
    start_with(&mut worker, ms(1), 1, |spec| spec.artifact = Some(DIGEST));
    worker.handle(ms(2), Event::ArtifactReady { digest: DIGEST });
    listening(&mut worker, ms(3), 1);
    done(&mut worker);
    for _ in 0..2 {
        worker.handle(ms(4), Event::ArtifactLost { digest: DIGEST });
    }
    assert_eq!(done(&mut worker), ["artifact held: false"], "it is told once");
    start_with(&mut worker, ms(5), 2, |spec| spec.artifact = Some(DIGEST));
    assert_eq!(done(&mut worker), ["fetch"]);
    worker.handle(ms(6), Event::ArtifactLost { digest: DIGEST });
    worker.handle(ms(7), Event::ArtifactReady { digest: DIGEST });
    assert_eq!(done(&mut worker), ["artifact held: true", "create 2 on 20001"]);
}

#[test]
fn the_tag_of_an_image_is_resolved_before_it_is_pulled_and_that_takes_no_start_time() {
    let mut worker = Worker::new(
        Time::ZERO,
        Config {
            capacity: Capacity {
                runtimes: vec![(RuntimeKind::Container, Isolation::Basic)],
                ..config().capacity
            },
            ..config()
        },
        Left::default(),
    );
    attach(&mut worker, Time::ZERO);
    done(&mut worker);
    let image = |spec: &mut Spec| {
        spec.sandbox.runtime = RuntimeKind::Container;
        spec.sandbox.image = Some("reg.example.org/app:1".to_owned());
    };
    for n in 1..=3 {
        start_with(&mut worker, ms(n), n, image);
    }
    let ask = |n| format!("resolve reg.example.org/app:1 for {n}");
    assert_eq!(done(&mut worker), [ask(1), ask(2), ask(3)]);
    let resolved = |worker: &mut Worker, now, n, result| {
        worker.handle(now, Event::ImageResolved { sandbox: sandbox(n), result });
    };
    stop(&mut worker, ms(4), 3, 0);
    done(&mut worker);
    resolved(&mut worker, ms(100_000), 1, Ok(DIGEST));
    resolved(&mut worker, ms(100_000), 3, Ok(DIGEST));
    let pull = format!("pull reg.example.org/app:1@{DIGEST}");
    assert_eq!(done(&mut worker), ["1 resolved".to_owned(), pull]);
    let unknown = ArtifactFailure::new("no such tag", Fault::Function);
    resolved(&mut worker, ms(100_001), 2, Err(unknown));
    assert_eq!(done(&mut worker), ["2 gone: no such tag (Function)"]);
    worker.handle(ms(100_002), Event::ArtifactReady { digest: DIGEST });
    assert_eq!(done(&mut worker), ["artifact held: true", "create 1 on 20000"]);
    start_with(&mut worker, ms(100_003), 4, |spec| {
        image(spec);
        *spec = spec.pinned(DIGEST);
    });
    assert_eq!(done(&mut worker), ["create 4 on 20003"], "a pinned one is not asked for");
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let mut worker = worker();
    start_with(&mut worker, ms(1), 1, |spec| spec.resources.memory = Bytes::mib(990));
    start(&mut worker, ms(1), 2);
    start_with(&mut worker, ms(1), 3, |spec| {
        spec.resources = Resources { cpu: MilliCpu(1901), memory: Bytes::mib(4) };
    });
    start_with(&mut worker, ms(1), 4, |spec| spec.sandbox.runtime = RuntimeKind::Wasm);
    start_with(&mut worker, ms(1), 5, |spec| spec.sandbox.isolation = Some(Isolation::Strict));
    assert_eq!(
        done(&mut worker),
        [
            "create 1 on 20000",
            "2 refused: 128MiB of memory are wanted, 10MiB are left",
            "3 refused: 1901m of cpu are wanted, 1900m may still be reserved",
            "4 refused: runtime `wasm` does not work on this worker",
            "5 refused: isolation `strict` is not to be had on this worker: runtime `process` \
             offers at most `basic`",
        ]
    );
    gone(&mut worker, ms(2), 1, Cause::Exited { code: 1 });
    for n in 6..=10 {
        start(&mut worker, ms(3), n);
    }
    let lines = done(&mut worker);
    assert_eq!(lines.first().unwrap(), "1 gone: exited with status 1 (Function)");
    assert_eq!(lines.last().unwrap(), "10 refused: 4 sandboxes are as many as this worker takes");
}

#[test]
fn a_port_rests_until_it_is_released_and_the_longest_unused_is_next() {
    let mut worker = worker();
    for n in 1..=2 {
        start(&mut worker, ms(1), n);
        listening(&mut worker, ms(2), n);
    }
    done(&mut worker);
    gone(&mut worker, ms(3), 1, Cause::Stopped);
    gone(&mut worker, ms(4), 2, Cause::Stopped);
    for n in 3..=5 {
        start(&mut worker, ms(5), n);
    }
    start(&mut worker, ms(6), 6);
    let lines = done(&mut worker);
    assert_eq!(
        lines.get(2..).unwrap(),
        [
            "create 3 on 20002",
            "create 4 on 20003",
            "create 5 on 20004",
            "6 refused: every port is in use or rests"
        ]
    );
    said(&mut worker, ms(7), ToWorker::ReleaseAddress { sandbox: sandbox(2) });
    start(&mut worker, ms(8), 7);
    assert_eq!(done(&mut worker), ["create 7 on 20001"]);
    stop(&mut worker, ms(9), 3, 0);
    gone(&mut worker, ms(9), 3, Cause::Stopped);
    worker.expire(ms(3 + 15 * 60 * 1000));
    done(&mut worker);
    start(&mut worker, ms(16 * 60 * 1000), 8);
    let lines = done(&mut worker);
    assert_eq!(lines, ["create 8 on 20002"], "the one never told of was free first");
}

#[test]
fn a_start_that_takes_too_long_is_killed_and_explained() {
    let mut worker = worker();
    start(&mut worker, ms(0), 1);
    created(&mut worker, ms(1), 1);
    start(&mut worker, ms(0), 2);
    start(&mut worker, ms(0), 3);
    created(&mut worker, ms(1), 3);
    done(&mut worker);
    worker.expire(ms(29_999));
    assert_eq!(done(&mut worker), ["beat of 3"]);
    worker.expire(ms(30_000));
    assert_eq!(done(&mut worker), ["destroy 1 in 0", "destroy 2 in 0", "destroy 3 in 0"]);
    listening(&mut worker, ms(30_001), 1);
    gone(&mut worker, ms(30_002), 1, Cause::Signalled { signal: 9 });
    gone(&mut worker, ms(30_002), 2, Cause::Stopped);
    let message = "it listens on 3000, not on 20002".to_owned();
    gone(&mut worker, ms(30_002), 3, Cause::NeverListened { message });
    assert_eq!(
        done(&mut worker),
        [
            "1 gone: it runs but did not listen on port 20000 within 30s: the program must listen \
             on the port in $PORT, or `invocation.start_timeout` must be longer (Function)",
            "2 gone: the worker did not get it running within 30s (Worker)",
            "3 gone: it listens on 3000, not on 20002 (Function)",
        ]
    );
    assert!(worker.is_empty());
}

#[test]
fn stops_are_idempotent_and_a_shorter_grace_is_passed_on() {
    let mut worker = worker();
    start(&mut worker, ms(1), 1);
    listening(&mut worker, ms(2), 1);
    done(&mut worker);
    stop(&mut worker, ms(3), 1, 1000);
    stop(&mut worker, ms(4), 1, 1000);
    assert_eq!(done(&mut worker), ["destroy 1 in 1000"]);
    stop(&mut worker, ms(5), 1, 0);
    assert_eq!(done(&mut worker), ["destroy 1 in 0"]);
    gone(&mut worker, ms(6), 1, Cause::Stopped);
    gone(&mut worker, ms(6), 1, Cause::Stopped);
    stop(&mut worker, ms(7), 1, 0);
    assert_eq!(done(&mut worker), ["1 gone: stopped (Function)"]);
}

#[test]
fn a_lower_epoch_and_a_strange_cluster_are_not_obeyed() {
    let mut worker = Worker::new(Time::ZERO, config(), Left::default());
    worker.handle(ms(1), Event::Attached { hello: hello() });
    start(&mut worker, ms(1), 1);
    welcome(&mut worker, ms(2), 2);
    start(&mut worker, ms(3), 1);
    assert_eq!(done(&mut worker), ["hello with [] and 0 artifacts"]);
    worker.handle(ms(4), Event::Detached);
    worker.handle(ms(5), Event::Attached { hello: hello() });
    welcome(&mut worker, ms(6), 5);
    assert_eq!(done(&mut worker), ["hello with [] and 0 artifacts", "obey 5"]);
    worker.handle(ms(7), Event::Detached);
    worker.handle(ms(8), Event::Attached { hello: hello() });
    let stranger = Welcome { cluster: ClusterId(8), epoch: Epoch(9) };
    said(&mut worker, ms(9), ToWorker::Welcome { welcome: stranger, you: WorkerId(1) });
    welcome(&mut worker, ms(9), 4);
    assert_eq!(done(&mut worker), ["hello with [] and 0 artifacts"]);
}

#[test]
fn what_ends_without_a_stream_is_told_with_the_next_hello() {
    let mut worker = worker();
    for n in 1..=2 {
        start(&mut worker, ms(1), n);
        listening(&mut worker, ms(2), n);
    }
    done(&mut worker);
    worker.handle(ms(3), Event::Detached);
    gone(&mut worker, ms(4), 1, Cause::Exited { code: 9 });
    assert_eq!(done(&mut worker), [""; 0]);
    attach(&mut worker, ms(5));
    assert_eq!(
        done(&mut worker),
        [
            "hello with [2 ready, 1 stopping] and 0 artifacts",
            "1 gone: exited with status 9 (Function)",
            "obey 3"
        ]
    );
    worker.handle(ms(6), Event::Detached);
    attach(&mut worker, ms(7));
    assert_eq!(done(&mut worker), ["hello with [2 ready] and 0 artifacts", "obey 3"]);
}

#[test]
fn beats_come_every_400_ms_and_only_while_attached() {
    let mut worker = worker();
    assert_eq!(worker.deadline(), Some(ms(400)));
    worker.expire(ms(399));
    assert_eq!(done(&mut worker), [""; 0]);
    worker.expire(ms(400));
    assert_eq!(done(&mut worker), ["beat of 0"]);
    assert_eq!(worker.deadline(), Some(ms(800)));
    worker.handle(ms(500), Event::Detached);
    assert_eq!(worker.deadline(), Some(ms(500 + 3_600_000)));
}

#[test]
fn after_an_hour_without_a_leader_everything_is_stopped() {
    let mut worker = worker();
    start(&mut worker, ms(0), 1);
    listening(&mut worker, ms(1), 1);
    done(&mut worker);
    worker.handle(ms(1000), Event::Detached);
    worker.expire(ms(3_600_999));
    assert_eq!(done(&mut worker), [""; 0]);
    worker.expire(ms(3_601_000));
    assert_eq!(done(&mut worker), ["destroy 1 in 600000"], "as long as a drain");
    assert_eq!(worker.deadline(), None);
}

#[test]
fn artifacts_in_use_are_discarded_after_it() {
    let mut worker =
        Worker::new(Time::ZERO, config(), Left { artifacts: vec![DIGEST], ..Left::default() });
    attach(&mut worker, Time::ZERO);
    assert_eq!(done(&mut worker), ["hello with [] and 1 artifacts", "obey 3"]);
    start_with(&mut worker, ms(1), 1, |spec| spec.artifact = Some(DIGEST));
    said(&mut worker, ms(2), ToWorker::DiscardArtifacts { digests: vec![DIGEST] });
    assert_eq!(done(&mut worker), ["create 1 on 20000"]);
    start_with(&mut worker, ms(3), 2, |spec| spec.artifact = Some(DIGEST));
    gone(&mut worker, ms(3), 1, Cause::Exited { code: 0 });
    said(&mut worker, ms(4), ToWorker::DiscardArtifacts { digests: vec![DIGEST] });
    assert_eq!(
        done(&mut worker),
        ["create 2 on 20001", "1 gone: exited with status 0 (Function)"],
        "another start wants it"
    );
    gone(&mut worker, ms(5), 2, Cause::Exited { code: 0 });
    assert_eq!(
        done(&mut worker),
        ["2 gone: exited with status 0 (Function)", "discard", "artifact held: false"]
    );
    // One that is on its way goes once it is here.
    start_with(&mut worker, ms(6), 3, |spec| spec.artifact = Some(DIGEST));
    said(&mut worker, ms(7), ToWorker::DiscardArtifacts { digests: vec![DIGEST] });
    stop(&mut worker, ms(8), 3, 0);
    assert_eq!(done(&mut worker), ["fetch", "3 gone: stopped (Function)"]);
    worker.handle(ms(9), Event::ArtifactReady { digest: DIGEST });
    assert_eq!(done(&mut worker), ["artifact held: true", "discard", "artifact held: false"]);
}

#[test]
fn adopted_sandboxes_are_reported_and_keep_their_room_and_port() {
    let adopted = |n: u64, address: Option<u16>, stopping: bool| Adopted {
        report: SandboxReport {
            sandbox: sandbox(n),
            revision: RevisionId { function: FUNCTION, number: 1 },
            memory: Bytes::mib(400),
            cpu: MilliCpu(100),
            address: address.map(|port| Address::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            stopping,
        },
        port: Some(20000 + u16::try_from(n).unwrap()),
        artifact: Some(DIGEST),
    };
    let left = vec![adopted(0, Some(20000), false), adopted(1, None, false)];
    let mut worker = Worker::new(
        Time::ZERO,
        config(),
        Left { adopted: left, artifacts: vec![DIGEST], ..Left::default() },
    );
    attach(&mut worker, ms(1));
    start_with(&mut worker, ms(2), 2, |spec| spec.resources.memory = Bytes::mib(201));
    start(&mut worker, ms(2), 3);
    said(&mut worker, ms(3), ToWorker::DiscardArtifacts { digests: vec![DIGEST] });
    listening(&mut worker, ms(4), 1);
    assert_eq!(
        done(&mut worker),
        [
            "hello with [0 ready, 1 starting] and 1 artifacts",
            "obey 3",
            "2 refused: 201MiB of memory are wanted, 200MiB are left",
            "create 3 on 20002",
            "1 ready: fetch 0 create 0 init 5"
        ]
    );
    let mut worker = Worker::new(
        Time::ZERO,
        config(),
        Left { adopted: vec![adopted(4, Some(20004), true)], ..Left::default() },
    );
    assert_eq!(done(&mut worker), ["destroy 4 in 10000"]);
}

#[test]
fn a_silent_data_plane_is_barred_and_a_sandbox_that_is_gone_is_settled() {
    let mut worker = worker();
    start(&mut worker, ms(1), 1);
    done(&mut worker);
    let data_plane = DataPlaneId(4);
    for n in 1..=2 {
        said(&mut worker, ms(2), ToWorker::Settle { sandbox: sandbox(n), data_plane });
    }
    assert_eq!(done(&mut worker), ["bar dp_4 from 1", "2 settled"]);
    worker.handle(ms(3), Event::Settled { sandbox: sandbox(1), data_plane });
    assert_eq!(done(&mut worker), ["1 settled"]);
}

#[test]
fn a_worker_that_closes_stops_everything_and_starts_nothing() {
    let mut worker = worker();
    start(&mut worker, ms(1), 1);
    start_with(&mut worker, ms(1), 2, |spec| spec.artifact = Some(DIGEST));
    done(&mut worker);
    worker.handle(ms(2), Event::Closed { grace: Duration::from_secs(1) });
    start(&mut worker, ms(3), 3);
    assert_eq!(
        done(&mut worker),
        [
            "destroy 1 in 1000",
            "2 gone: stopped (Function)",
            "3 refused: the worker is shutting down"
        ]
    );
}

#[test]
fn a_port_that_data_planes_may_know_rests_over_a_restart() {
    let mut first = worker();
    for n in [1, 2, 3] {
        start(&mut first, ms(1), n);
        created(&mut first, ms(1), n);
    }
    // The third one never listens: nobody knows its port.
    for n in [1, 2] {
        listening(&mut first, ms(2), n);
    }
    assert_eq!(kept(&mut first), [(20000, Some(1)), (20001, Some(2))]);
    gone(&mut first, ms(3), 1, Cause::Stopped);
    gone(&mut first, ms(3), 3, Cause::Stopped);
    assert_eq!(kept(&mut first), []);

    // The next life finds the second one still there, and a port that is not in its range any more.
    let ports = vec![(20000, sandbox(1)), (20001, sandbox(2)), (30000, sandbox(9))];
    let adopted = Adopted {
        report: SandboxReport {
            sandbox: sandbox(2),
            revision: RevisionId { function: FUNCTION, number: 1 },
            memory: Bytes::mib(1),
            cpu: MilliCpu(1),
            address: Some(Address::Tcp((Ipv4Addr::LOCALHOST, 20001).into())),
            stopping: false,
        },
        port: Some(20001),
        artifact: None,
    };
    let left = Left { adopted: vec![adopted], ports, ..Left::default() };
    let mut second = Worker::new(Time::ZERO, config(), left);
    assert_eq!(kept(&mut second), [(30000, None), (20001, Some(2))]);
    attach(&mut second, ms(1));
    for n in [4, 5, 6] {
        start(&mut second, ms(1), n);
    }
    let created = |lines: Vec<String>| -> Vec<String> {
        lines
            .into_iter()
            .filter(|line| line.contains("create") || line.contains("refused"))
            .collect()
    };
    assert_eq!(
        created(done(&mut second)),
        ["create 4 on 20002", "create 5 on 20003", "create 6 on 20004"],
    );
    // The fifth port is free when everybody has given its slots back, as before.
    said(&mut second, ms(2), ToWorker::ReleaseAddress { sandbox: sandbox(1) });
    assert_eq!(kept(&mut second), [(20000, None)]);
    gone(&mut second, ms(3), 4, Cause::Stopped);
    start(&mut second, ms(3), 7);
    assert_eq!(created(done(&mut second)), ["create 7 on 20000"]);
}

#[test]
fn each_life_of_a_worker_begins_at_other_ports() {
    let mut worker = Worker::new(Time::ZERO, config(), Left::default());
    let incarnation = Incarnation { start: 2, ..Incarnation::default() };
    worker.handle(ms(1), Event::Attached { hello: Hello { incarnation, ..hello() } });
    welcome(&mut worker, ms(1), 3);
    start(&mut worker, ms(2), 1);
    assert_eq!(done(&mut worker).last().unwrap(), "create 1 on 20003");
}

#[test]
fn a_port_that_another_program_holds_is_left_alone_and_the_next_is_tried() {
    let mut worker = worker();
    let taken = |n, port| Event::PortTaken { sandbox: sandbox(n), port };
    start(&mut worker, ms(1), 1);
    worker.handle(ms(2), taken(1, 20000));
    worker.handle(ms(3), taken(1, 20000));
    created(&mut worker, ms(4), 1);
    listening(&mut worker, ms(5), 1);
    assert_eq!(
        done(&mut worker),
        ["create 1 on 20000", "create 1 on 20001", "1 ready: fetch 0 create 3 init 5"]
    );
    start(&mut worker, ms(6), 2);
    stop(&mut worker, ms(6), 2, 0);
    worker.handle(ms(7), taken(2, 20002));
    start(&mut worker, ms(8), 3);
    for port in [20003, 20004] {
        worker.handle(ms(9), taken(3, port));
    }
    assert_eq!(
        done(&mut worker),
        [
            "create 2 on 20002",
            "destroy 2 in 0",
            "2 gone: stopped (Function)",
            "create 3 on 20003",
            "create 3 on 20004",
            "3 gone: port 20004 is held by another program, and no other is free (Worker)"
        ]
    );
    worker.expire(ms(60_002));
    done(&mut worker);
    start(&mut worker, ms(60_003), 4);
    assert_eq!(done(&mut worker), ["create 4 on 20000"]);
}

/// It dials, and hears that another one has its name.
fn denied(worker: &mut Worker, now: Time) -> bool {
    worker.handle(now, Event::Attached { hello: hello() });
    said(worker, now, ToWorker::Taken);
    worker.handle(now, Event::Detached);
    done(worker).contains(&"give up".to_owned())
}

#[test]
fn a_worker_whose_name_is_taken_gives_up_when_its_last_life_would_be_found_lost() {
    let mut worker = Worker::new(Time::ZERO, config(), Left::default());
    assert!(!denied(&mut worker, ms(1000)));
    assert!(!denied(&mut worker, ms(10_999)));
    assert!(denied(&mut worker, ms(11_000)));
}

#[test]
fn a_worker_that_was_in_use_does_not_yield_its_name() {
    let mut worker = worker();
    worker.handle(ms(2), Event::Detached);
    for at in [3, 20_000, 40_000] {
        assert!(!denied(&mut worker, ms(at)));
    }
}
