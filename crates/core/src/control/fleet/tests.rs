//! One rule of the books per test: where starts go. The rules about workers are in `peers`.

use std::collections::BTreeMap;

use super::*;
use crate::{
    ClusterId, Epoch, RuntimeKind, SandboxSpec,
    control::Outcome,
    frame::{Capacity, Hello, Incarnation, Load, StartSandbox, Welcome, WorkerHello},
};

mod peers;
mod posting;

pub(super) const OFFICE: Office = Office { cluster: ClusterId(7), epoch: Epoch(3) };

pub(super) fn ms(n: u64) -> Time {
    Time(1_000_000_000_000).after(Duration::from_millis(n))
}

pub(super) fn sandbox(n: u64) -> SandboxId {
    SandboxId::new(OFFICE.epoch, n)
}

pub(super) fn function(n: u64) -> FunctionId {
    FunctionId::new(Epoch(1), n)
}

pub(super) fn spec(memory: u64) -> Spec {
    Spec {
        sandbox: SandboxSpec::new(RuntimeKind::Process, vec!["serve".to_owned()]),
        resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(memory) },
        env: BTreeMap::new(),
        concurrency: 1,
        artifact: None,
    }
}

/// An urgent want of 100 MiB.
pub(super) fn want(n: u64, of: u64) -> Want {
    Want {
        sandbox: sandbox(n),
        revision: RevisionId { function: function(of), number: 1 },
        name: "f".parse().unwrap(),
        spec: Arc::new(spec(100)),
        start_timeout: Duration::from_secs(60),
        urgent: true,
        decided: ms(0),
    }
}

fn sized(want: Want, memory: u64) -> Want {
    Want { spec: Arc::new(spec(memory)), ..want }
}

fn calm(want: Want) -> Want {
    Want { urgent: false, ..want }
}

/// 1000 MiB, four cores ten times over, four start tokens.
pub(super) fn capacity() -> Capacity {
    Capacity {
        memory: Bytes::mib(1000),
        cpu: MilliCpu(4000),
        cpu_overcommit: 10,
        sandboxes: 100,
        starts: 4,
        runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
        missing: Vec::new(),
    }
}

pub(super) fn hello(start: u64, sandboxes: Vec<SandboxReport>) -> WorkerHello {
    WorkerHello {
        hello: Hello {
            cluster: None,
            protocol: (1, 1),
            features: Vec::new(),
            incarnation: Incarnation { boot: "boot".into(), start, life: start },
            highest_epoch: Epoch(0),
        },
        capacity: capacity(),
        sandboxes,
        artifacts: Vec::new(),
    }
}

fn report(n: u64, of: u64) -> SandboxReport {
    SandboxReport {
        sandbox: sandbox(n),
        revision: RevisionId { function: function(of), number: 1 },
        memory: Bytes::mib(100),
        cpu: MilliCpu(100),
        address: Some(crate::Address::Unix("s".to_owned())),
        stopping: false,
    }
}

pub(super) fn drain(fleet: &mut Fleet) -> Vec<Output> {
    std::iter::from_fn(|| fleet.poll()).collect()
}

/// Sandbox and worker of each placement.
pub(super) fn placed(outputs: &[Output]) -> Vec<(u64, u64)> {
    let number = |output: &Output| match output {
        Output::Placed { sandbox, worker, .. } => Some((sandbox.counter, worker.0)),
        Output::Joined { .. }
        | Output::NoRoom { .. }
        | Output::RoomAgain { .. }
        | Output::Lost { .. }
        | Output::Leaving { .. }
        | Output::Removed { .. }
        | Output::Reply { .. }
        | Output::Send { .. }
        | Output::Persist { .. }
        | Output::Close { .. } => None,
    };
    outputs.iter().filter_map(number).collect()
}

fn join(fleet: &mut Fleet, now: Time, stream: u64, name: &str, hello: WorkerHello) {
    fleet.attached(now, StreamId(stream), name.into());
    fleet.hello(now, StreamId(stream), hello);
}

/// A fleet of so many workers, joined at 0 on streams 1, 2, ...
pub(super) fn fleet(workers: u64) -> Fleet {
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, Vec::new());
    for n in 1..=workers {
        join(&mut fleet, ms(0), n, &format!("w{n}"), hello(1, Vec::new()));
    }
    drain(&mut fleet);
    fleet
}

fn beat(fleet: &mut Fleet, now: Time, streams: std::ops::RangeInclusive<u64>) {
    for stream in streams {
        fleet.beat(now, StreamId(stream), Load::default());
    }
}

fn state(fleet: &Fleet, worker: usize) -> String {
    fleet.summaries().get(worker - 1).unwrap().state.clone()
}

#[test]
fn a_start_is_ordered_before_its_placement_is_told() {
    let mut fleet = fleet(1);
    fleet.want(ms(5), want(1, 1));
    let Want { sandbox, revision, name, spec, start_timeout, .. } = want(1, 1);
    let order = StartSandbox { sandbox, revision, name, spec, start_timeout };
    assert_eq!(
        drain(&mut fleet),
        [
            Output::Send { stream: StreamId(1), frame: ToWorker::StartSandbox(Box::new(order)) },
            Output::Placed { sandbox, worker: WorkerId(1), waited: Duration::from_millis(5) },
        ]
    );
    let summary = fleet.summaries().remove(0);
    assert_eq!((summary.sandboxes, summary.starting), (1, 1));
    assert_eq!(summary.memory, (Bytes::mib(100), Bytes::mib(1000)));
    assert_eq!(summary.cpu, (MilliCpu(100), MilliCpu(40_000)));
}

#[test]
fn starts_beyond_the_tokens_wait_without_being_short_of_room() {
    let mut fleet = fleet(1);
    for n in 1..=6 {
        fleet.want(ms(0), want(n, 1));
    }
    let outputs = drain(&mut fleet);
    assert_eq!(placed(&outputs), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    assert_eq!(outputs.len(), 8, "no word about room: {outputs:?}");
    fleet.ready(ms(1), sandbox(2));
    assert_eq!(placed(&drain(&mut fleet)), [(5, 1)]);
    fleet.failed(ms(1), sandbox(1), Some(Fault::Function));
    assert_eq!(placed(&drain(&mut fleet)), [(6, 1)]);
}

#[test]
fn lack_of_room_is_told_once_and_taken_back_when_it_ends() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), sized(want(1, 1), 900));
    drain(&mut fleet);
    fleet.want(ms(1), sized(want(2, 2), 200));
    fleet.want(ms(1), sized(want(3, 2), 200));
    let need = Resources { cpu: MilliCpu(100), memory: Bytes::mib(200) };
    assert_eq!(drain(&mut fleet), [Output::NoRoom { function: function(2), need }]);
    fleet.gone(ms(2), sandbox(1));
    let outputs = drain(&mut fleet);
    assert_eq!(placed(&outputs), [(2, 1), (3, 1)]);
    assert!(outputs.contains(&Output::RoomAgain { function: function(2) }));
}

#[test]
fn a_withdrawn_start_is_forgotten_and_no_longer_lacks_room() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), sized(want(1, 1), 900));
    fleet.want(ms(0), sized(want(2, 2), 200));
    drain(&mut fleet);
    assert!(!fleet.withdraw(sandbox(1)), "placed already");
    assert!(fleet.withdraw(sandbox(2)));
    assert!(!fleet.withdraw(sandbox(2)));
    assert_eq!(drain(&mut fleet), [Output::RoomAgain { function: function(2) }]);
    fleet.gone(ms(2), sandbox(1));
    assert_eq!(drain(&mut fleet), []);
}

#[test]
fn without_any_worker_there_is_no_room_until_one_joins() {
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, Vec::new());
    fleet.want(ms(0), want(1, 1));
    assert!(matches!(drain(&mut fleet).as_slice(), [Output::NoRoom { .. }]));
    join(&mut fleet, ms(5), 1, "w", hello(1, Vec::new()));
    let outputs = drain(&mut fleet);
    assert_eq!(placed(&outputs), [(1, 1)]);
    assert_eq!(outputs.last(), Some(&Output::RoomAgain { function: function(1) }));
}

#[test]
fn functions_that_wait_get_one_each_before_any_gets_its_next() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), sized(want(1, 9), 1000));
    for (n, of) in [(11, 1), (12, 1), (13, 1), (21, 2), (31, 3), (22, 2)] {
        fleet.want(ms(0), want(n, of));
    }
    drain(&mut fleet);
    fleet.gone(ms(1), sandbox(1));
    assert_eq!(placed(&drain(&mut fleet)), [(11, 1), (21, 1), (31, 1), (12, 1)]);
    fleet.ready(ms(2), sandbox(11));
    fleet.ready(ms(2), sandbox(21));
    assert_eq!(placed(&drain(&mut fleet)), [(22, 1), (13, 1)]);
}

#[test]
fn a_function_without_a_sandbox_goes_before_one_that_has_some() {
    let mut fleet = fleet(1);
    for n in 1..=4 {
        fleet.want(ms(0), want(n, 1));
    }
    fleet.want(ms(0), want(5, 1));
    fleet.want(ms(0), want(6, 1));
    fleet.want(ms(0), calm(want(7, 3)));
    fleet.want(ms(1), want(8, 2));
    drain(&mut fleet);
    fleet.ready(ms(2), sandbox(1));
    assert_eq!(placed(&drain(&mut fleet)), [(8, 1)], "its first");
    fleet.ready(ms(2), sandbox(2));
    assert_eq!(placed(&drain(&mut fleet)), [(5, 1)], "callers wait");
    fleet.ready(ms(2), sandbox(3));
    fleet.ready(ms(2), sandbox(4));
    assert_eq!(placed(&drain(&mut fleet)), [(6, 1), (7, 1)], "then what nobody waits for");
}

#[test]
fn every_eighth_start_goes_to_what_nobody_waits_for() {
    let mut fleet = fleet(1);
    for n in 1..=30 {
        fleet.want(ms(0), want(n, 1));
    }
    fleet.want(ms(0), calm(want(50, 2)));
    fleet.want(ms(0), calm(want(51, 2)));
    let mut running: VecDeque<u64> =
        placed(&drain(&mut fleet)).iter().map(|(sandbox, _)| *sandbox).collect();
    let mut order = Vec::new();
    for _ in 0..16 {
        fleet.gone(ms(1), sandbox(running.pop_front().unwrap()));
        for (sandbox, _) in placed(&drain(&mut fleet)) {
            running.push_back(sandbox);
            order.push(sandbox);
        }
    }
    assert_eq!(order, [5, 6, 7, 8, 9, 10, 11, 50, 12, 13, 14, 15, 16, 17, 18, 51]);
}

#[test]
fn room_is_set_aside_for_a_large_first_sandbox() {
    let mut fleet = fleet(1);
    for n in 1..=10 {
        fleet.want(ms(0), want(n, 1));
        fleet.ready(ms(0), sandbox(n));
    }
    fleet.want(ms(1), sized(want(50, 2), 200));
    fleet.want(ms(1), want(11, 1));
    drain(&mut fleet);
    let promise = |memory| {
        let missing = Resources { cpu: MilliCpu(0), memory: Bytes::mib(memory) };
        vec![Promise { function: function(2), worker: WorkerId(1), missing }]
    };
    assert_eq!(fleet.promises(), promise(200));
    fleet.gone(ms(2), sandbox(1));
    assert_eq!(fleet.promises(), promise(100));
    assert_eq!(placed(&drain(&mut fleet)), [], "not to the one that has ten");
    fleet.want(ms(2), want(60, 3));
    assert_eq!(placed(&drain(&mut fleet)), [(60, 1)], "another's first may pass");
    fleet.gone(ms(3), sandbox(2));
    fleet.gone(ms(3), sandbox(3));
    assert_eq!(placed(&drain(&mut fleet)), [(50, 1)]);
    fleet.gone(ms(4), sandbox(4));
    assert_eq!(placed(&drain(&mut fleet)), [(11, 1)], "and then everybody again");
}

#[test]
fn what_is_set_aside_is_given_up_after_a_while() {
    let mut fleet = fleet(1);
    for n in 1..=10 {
        fleet.want(ms(0), want(n, 1));
        fleet.ready(ms(0), sandbox(n));
    }
    fleet.want(ms(1), sized(want(50, 2), 800));
    fleet.want(ms(1), want(11, 1));
    fleet.gone(ms(2), sandbox(1));
    assert!(placed(&drain(&mut fleet)).iter().all(|(sandbox, _)| *sandbox <= 10));
    let mut at = 2;
    while at < 32_000 {
        at += 400;
        beat(&mut fleet, ms(at), 1..=1);
        fleet.expire(ms(at));
    }
    assert_eq!(placed(&drain(&mut fleet)), [(11, 1)]);
}

#[test]
fn holders_of_the_artifact_are_preferred() {
    let mut fleet = fleet(40);
    let digest = Digest([9; 32]);
    fleet.artifact(StreamId(17), digest, true);
    let with =
        |n| Want { spec: Arc::new(Spec { artifact: Some(digest), ..spec(100) }), ..want(n, 1) };
    fleet.want(ms(0), with(1));
    assert_eq!(placed(&drain(&mut fleet)), [(1, 17)]);
    fleet.artifact(StreamId(17), digest, false);
    fleet.artifact(StreamId(23), digest, true);
    fleet.want(ms(0), with(2));
    assert_eq!(placed(&drain(&mut fleet)), [(2, 23)]);
}

#[test]
fn the_last_free_place_is_found_without_luck() {
    let mut fleet = fleet(20);
    for n in 0..19 {
        fleet.want(ms(0), sized(want(n, n), 950));
    }
    drain(&mut fleet);
    fleet.want(ms(1), sized(want(100, 100), 950));
    assert_eq!(placed(&drain(&mut fleet)).len(), 1);
    fleet.want(ms(1), sized(want(101, 101), 950));
    assert!(matches!(drain(&mut fleet).as_slice(), [Output::NoRoom { .. }]));
}

#[test]
fn processors_and_places_are_bounds_too() {
    let mut fleet = fleet(1);
    let cpu = |n, cpu| {
        let resources = Resources { cpu: MilliCpu(cpu), memory: Bytes::mib(1) };
        Want { spec: Arc::new(Spec { resources, ..spec(1) }), ..want(n, n) }
    };
    fleet.want(ms(0), cpu(1, 39_900));
    fleet.want(ms(0), cpu(2, 101));
    let outputs = drain(&mut fleet);
    assert_eq!(placed(&outputs), [(1, 1)]);
    assert!(matches!(outputs.last(), Some(Output::NoRoom { .. })));
    fleet.want(ms(0), cpu(3, 100));
    assert_eq!(placed(&drain(&mut fleet)), [(3, 1)]);
}

#[test]
fn a_refusal_pauses_the_worker_and_counts_for_nothing() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), want(1, 1));
    fleet.failed(ms(1), sandbox(1), None);
    drain(&mut fleet);
    fleet.want(ms(2), want(2, 1));
    assert_eq!(drain(&mut fleet), [], "waiting, but not for room");
    assert_eq!(fleet.deadline(), Some(ms(101)));
    fleet.expire(ms(101));
    assert_eq!(placed(&drain(&mut fleet)), [(2, 1)]);
    assert_eq!(state(&fleet, 1), "ready");
}

#[test]
fn what_can_never_run_is_told_with_what_to_do() {
    let empty = Fleet::new(ms(0), 1, OFFICE, Vec::new());
    assert_eq!(empty.possible(&spec(1_000_000)), Ok(()), "nobody knows yet");
    let fleet = fleet(2);
    assert_eq!(fleet.possible(&spec(1000)), Ok(()));
    let message = fleet.possible(&spec(1001)).unwrap_err();
    assert_eq!(
        message,
        "`resources.memory` is 1001MiB and the largest worker has 1000MiB; ask for less, or add a \
         larger worker"
    );
    let mut strict = spec(1);
    strict.sandbox.isolation = Some(Isolation::Strict);
    let message = fleet.possible(&strict).unwrap_err();
    assert!(message.contains("`strict`") && message.contains("`basic`"), "{message}");
    let mut wasm = spec(1);
    wasm.sandbox.runtime = RuntimeKind::Wasm;
    let message = fleet.possible(&wasm).unwrap_err();
    assert!(message.contains("`wasm`") && message.contains("offered: process"), "{message}");
    let mut wide = spec(1);
    wide.resources.cpu = MilliCpu(40_001);
    let message = fleet.possible(&wide).unwrap_err();
    assert!(message.contains("40001m") && message.contains("40000m"), "{message}");
}

#[test]
fn a_burst_of_freed_room_is_handed_out_in_bounded_pieces() {
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, Vec::new());
    for n in 0..500 {
        fleet.want(ms(0), sized(want(n, n), 1));
    }
    drain(&mut fleet);
    let mut large = hello(1, Vec::new());
    large.capacity = Capacity { sandboxes: 1000, starts: 1000, ..capacity() };
    join(&mut fleet, ms(1), 1, "w", large);
    let first = placed(&drain(&mut fleet)).len();
    assert!((1..=64).contains(&first), "{first}");
    let mut all = first;
    while fleet.deadline() == Some(ms(1)) {
        fleet.expire(ms(1));
        all += placed(&drain(&mut fleet)).len();
    }
    assert_eq!(all, 400, "bounded by the processors");
}
