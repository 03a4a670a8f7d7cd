//! A leader that takes office over what runs already, and what never costs more with size.

use super::*;
use crate::{DataPlaneId, DataPlaneRecord, FunctionRecord, WorkerId, WorkerRecord};

/// The records of a cluster with one worker, one data plane and `hello`.
fn records(settings: &Settings) -> (Records, FunctionId) {
    let function = FunctionId::new(Epoch(3), 1);
    let revision = crate::RevisionRecord {
        number: 1,
        spec: Arc::new(spec("a", 1)),
        state: crate::RevisionState::Live,
        created_ms: 0,
        failure: None,
        born: Epoch(3),
    };
    let record = FunctionRecord {
        id: function,
        name: "hello".parse().unwrap(),
        settings: Arc::new(settings.clone()),
        next: None,
        revisions: vec![revision],
        targets: vec![crate::Target { revision: 1, weight: 100 }],
    };
    let records = Records {
        functions: vec![Arc::new(record)],
        workers: vec![WorkerRecord::new(WorkerId(1), "local".into())],
        data_planes: vec![DataPlaneRecord::new(DataPlaneId(1), "a".into())],
        ..Records::default()
    };
    (records, function)
}

fn report(function: FunctionId, counter: u64) -> SandboxReport {
    let sandbox = SandboxId::new(Epoch(3), counter);
    SandboxReport {
        sandbox,
        revision: RevisionId { function, number: 1 },
        memory: Bytes::mib(128),
        cpu: MilliCpu(100),
        address: Some(address(sandbox)),
        stopping: false,
    }
}

fn holding(function: FunctionId, counter: u64) -> Holding {
    Holding {
        pinned: false,
        sandbox: SandboxId::new(Epoch(3), counter),
        revision: RevisionId { function, number: 1 },
        share: Share::Slots(1),
        busy: 1,
        draining: false,
    }
}

#[test]
fn slots_are_claimed_by_who_holds_them_and_what_is_free_is_of_use_again() {
    let (records, function) = records(&Settings::default());
    let mut world = World::with(records);
    world.attach_worker_with(vec![report(function, 1), report(function, 2)]);
    assert!(world.granted().is_empty(), "who may hold them has not attached");
    world.attach_plane_with(PLANE, "a", vec![holding(function, 1)]);
    world.pass(Duration::from_millis(1));
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].1.sandbox, SandboxId::new(Epoch(3), 2));
    let described = world.describe("hello");
    assert!(described.sandboxes.iter().all(|s| s.holders == [DataPlaneId(1)]));
    assert_eq!(world.started(), []);
}

#[test]
fn a_recovering_leader_starts_for_demand_and_stops_nothing() {
    let (records, function) = records(&Settings { min: 1, ..Settings::default() });
    let mut world = World::with(records);
    world.attach_plane(PLANE, "a");
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.describe("hello").summary.starting, 1, "for the one that waits");
    // Its worker comes after 3 s, with a sandbox of a function that is not recorded.
    let stranger = report(FunctionId::new(Epoch(2), 9), 5);
    world.attach_worker_with(vec![stranger.clone()]);
    world.pass(Duration::from_secs(1));
    assert!(world.said().contains(&stop(stranger.sandbox)), "everybody has attached");
    world.gone(stranger.sandbox, stopped());
    assert_eq!(world.control.functions.len(), 1);
}

#[test]
fn min_is_made_up_for_when_the_recovery_ends() {
    let (records, function) = records(&Settings { min: 2, ..Settings::default() });
    let mut world = World::with(records);
    world.attach_worker_with(vec![report(function, 1)]);
    assert_eq!(world.started(), []);
    world.pass(Duration::from_secs(4));
    assert_eq!(world.started().len(), 1, "the data plane was waited for");
}

#[test]
fn what_an_earlier_leader_pinned_is_called_back_if_min_is_lower_now() {
    let sandbox = SandboxId::new(Epoch(3), 1);
    let recall = to_plane(PLANE, ToDataPlane::RecallSandbox { sandbox, gone: false });
    for (min, pinned, called_back) in [(0, true, true), (0, false, false), (1, true, false)] {
        let (records, function) = records(&Settings { min, ..Settings::default() });
        let mut world = World::with(records);
        let holding = Holding { pinned, busy: 0, ..holding(function, 1) };
        world.attach_worker_with(vec![report(function, 1)]);
        world.attach_plane_with(PLANE, "a", vec![holding.clone()]);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.said().contains(&recall), called_back, "min {min}, pinned {pinned}");
        // The same on a new stream to the same leader.
        if !called_back {
            world.tell(Event::Detached { stream: PLANE });
            let settings = Settings { min: 0, ..Settings::default() };
            if min > 0 {
                world.deploy("hello", &spec("a", 1), &settings, true);
            }
            world.said();
            world.attach_plane_with(PLANE, "a", vec![holding]);
            assert_eq!(world.said().contains(&recall), pinned, "min {min}, pinned {pinned}");
        }
    }
}

#[test]
fn a_deploy_that_an_earlier_leader_began_goes_on() {
    let (mut records, function) = records(&Settings::default());
    let record = Arc::make_mut(&mut records.functions[0]);
    record.revisions[0].state = crate::RevisionState::Checking;
    record.targets.clear();
    let mut world = World::with(records);
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    world.pass(Duration::from_millis(1));
    let revision = RevisionId { function, number: 1 };
    let waiter = world.ask(Call::AwaitRevision { revision });
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.pass(Duration::from_secs(3));
    let state = crate::RevisionState::Live;
    let settled = Answer::Settled { revision, state, failure: None };
    assert_eq!(world.replies[&waiter], Ok(settled));
}

#[test]
fn what_is_claimed_and_no_worker_has_is_gone() {
    let (records, function) = records(&Settings::default());
    let mut world = World::with(records);
    world.attach_plane_with(PLANE, "a", vec![holding(function, 7)]);
    world.said();
    world.attach_worker();
    let sandbox = SandboxId::new(Epoch(3), 7);
    let gone = ToDataPlane::RecallSandbox { sandbox, gone: true };
    assert!(world.said().contains(&to_plane(PLANE, gone)));
    world.give_back(PLANE, sandbox, WhyReturned::Unreachable);
    assert!(world.control.cluster.claims.is_empty());
}

#[test]
fn some_slots_given_back_before_their_worker_attaches_leave_the_others_claimed() {
    let (mut records, function) = records(&Settings::default());
    Arc::make_mut(&mut records.functions[0]).revisions[0].spec = Arc::new(spec("a", 3));
    let mut world = World::with(records);
    let holding = Holding { share: Share::Slots(3), busy: 1, ..holding(function, 1) };
    let sandbox = holding.sandbox;
    world.attach_plane_with(PLANE, "a", vec![holding]);
    let (share, why) = (Share::Slots(2), WhyReturned::Idle);
    let returned = Returned { sandbox, share, serial: Serial(0), why };
    world.plane(PLANE, FromDataPlane::Returned(returned));
    world.attach_worker_with(vec![report(function, 1)]);
    world.demand(PLANE, demand(function, 5, 1, 1));
    let granted = world.granted();
    let shares: Vec<Share> = granted.iter().map(|(_, grant)| grant.share).collect();
    assert_eq!(shares, [Share::Slots(2)], "one of three is in use");
}

#[test]
fn what_was_given_back_as_closing_before_its_worker_attaches_is_recycled() {
    let (records, function) = records(&Settings::default());
    let mut world = World::with(records);
    let holding = holding(function, 1);
    let sandbox = holding.sandbox;
    world.attach_plane_with(PLANE, "a", vec![holding]);
    world.give_back(PLANE, sandbox, WhyReturned::Closing);
    world.said();
    world.attach_worker_with(vec![report(function, 1)]);
    world.demand(PLANE, demand(function, 1, 0, 0));
    let said = world.said();
    assert!(said.contains(&stop(sandbox)), "a handler may still run in it: {said:?}");
    assert!(
        !said.iter().any(|e| matches!(e, Effect::ToDataPlane { frame: ToDataPlane::Grant(_), .. }))
    );
}

#[test]
fn a_data_plane_keeps_its_slots_while_it_is_silent() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 1, 1));
    world.said();
    world.tell(Event::Detached { stream: PLANE });
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    assert!(world.granted().is_empty(), "an invocation may still run in it");
    assert_eq!(world.started().len(), 1);
    // It comes back without it: it is free, and somebody waits.
    world.attach_plane(StreamId(9), "a");
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].0, granted[0].1.sandbox), (OTHER_PLANE, sandbox));
}

#[test]
fn a_leader_that_is_shown_a_higher_epoch_resigns() {
    let mut world = World::new();
    world.tell(Event::DataPlaneAttached { stream: PLANE, name: "a".into() });
    let hello = Hello { highest_epoch: Epoch(8), ..hello() };
    let hello =
        DataPlaneHello { hello, holdings: Vec::new(), names: Vec::new(), demands: Vec::new() };
    world.plane(PLANE, FromDataPlane::Hello(Box::new(hello)));
    let reason = "it obeyed epoch 8 and this leader's is 7".to_owned();
    assert_eq!(
        world.said(),
        [Effect::Resign { shown: Epoch(8) }, Effect::Close { stream: PLANE, reason }]
    );
}

#[test]
fn a_leader_whose_epoch_was_given_twice_or_whose_store_goes_back_resigns() {
    let office = Office { epoch: Epoch(4).next(1), ..OFFICE };
    let config = Config { office, seed: 1, own_token: None };
    let mut world = World::new();
    world.control = Control::new(world.now, config, Records::default());
    world.tell(Event::WorkerAttached { stream: WORKER, name: "local".into() });
    let shown = Epoch(4).next(2);
    let hello = Hello { highest_epoch: shown, ..hello() };
    let (sandboxes, artifacts) = (Vec::new(), Vec::new());
    let hello = WorkerHello { hello, capacity: capacity(1), sandboxes, artifacts };
    world.worker(FromWorker::Hello(Box::new(hello)));
    assert_eq!(world.said()[0], Effect::Resign { shown });

    let mut world = World::new();
    world.revision = 10;
    world.attach_worker();
    world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    assert!(!world.said().contains(&Effect::Resign { shown: EPOCH }));
    world.revision = 3;
    world.deploy("other", &spec("a", 1), &Settings::default(), false);
    assert!(world.said().contains(&Effect::Resign { shown: EPOCH }), "another store's answer");
}

/// A leader of a store that knows only the terms 3 and 7, and to which `made` is reported.
fn adopts(made: Epoch, born: Epoch, worker: &str) -> (World, SandboxId) {
    let (mut records, function) = records(&Settings::default());
    records.terms = vec![Epoch(3), EPOCH];
    let record = Arc::make_mut(&mut records.functions[0]);
    record.revisions[0].born = born;
    records.workers[0].name = worker.into();
    let mut world = World::with(records);
    world.attach_plane(PLANE, "a");
    let sandbox = SandboxId::new(made, 1);
    let report = SandboxReport { sandbox, address: Some(address(sandbox)), ..report(function, 1) };
    world.attach_worker_with(vec![report]);
    world.pass(Duration::from_secs(4));
    (world, sandbox)
}

#[test]
fn what_the_store_has_forgotten_serves_nobody() {
    let (mut world, sandbox) = adopts(Epoch(3), Epoch(3), "local");
    assert_eq!(world.granted()[0].1.sandbox, sandbox, "it knows this one");
    for (made, born, worker, why) in [
        (Epoch(5), Epoch(3), "local", "started in a term that the store does not know"),
        (Epoch(3), EPOCH, "local", "its number was given anew since"),
        (Epoch(3), Epoch(3), "another", "nobody is recorded for whom it may have been started"),
    ] {
        let (mut world, sandbox) = adopts(made, born, worker);
        assert_eq!(world.granted(), [], "{why}");
        assert!(world.said().contains(&stop(sandbox)), "{why}");
    }
}

#[test]
fn a_number_that_something_runs_under_is_not_given_to_another_revision() {
    let (records, function) = records(&Settings::default());
    let mut world = World::with(records);
    world.attach_plane(PLANE, "a");
    let mut forgotten = report(function, 1);
    forgotten.revision.number = 2;
    world.attach_worker_with(vec![forgotten]);
    let (_, number) = world.deploy("hello", &spec("b", 1), &Settings::default(), false);
    assert_eq!(number, 3);
    let mut forgotten = holding(function, 2);
    forgotten.revision.number = 4;
    world.attach_plane_with(OTHER_PLANE, "b", vec![forgotten]);
    let (_, number) = world.deploy("hello", &spec("c", 1), &Settings::default(), false);
    assert_eq!(number, 5);
    // Who comes later is told that it is something else before it is told what.
    let mut forgotten = holding(function, 3);
    forgotten.revision.number = 5;
    world.said();
    world.attach_plane_with(StreamId(8), "c", vec![forgotten]);
    let sandbox = SandboxId::new(Epoch(3), 3);
    let recall = to_plane(StreamId(8), ToDataPlane::RecallSandbox { sandbox, gone: false });
    assert_eq!(world.said()[1], recall, "after the welcome");
}

#[test]
fn slots_of_a_revision_that_is_not_kept_are_claimed_by_one_after_the_other() {
    let (records, function) = records(&Settings::default());
    let mut world = World::with(records);
    let mut forgotten = report(function, 1);
    forgotten.revision.number = 2;
    let sandbox = forgotten.sandbox;
    let holds = |slots| Holding {
        revision: RevisionId { function, number: 2 },
        share: Share::Slots(slots),
        ..holding(function, 1)
    };
    world.attach_plane_with(PLANE, "a", vec![holds(1)]);
    world.attach_worker_with(vec![forgotten]);
    world.attach_plane_with(OTHER_PLANE, "b", vec![holds(9)]);
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    assert!(!world.said().contains(&stop(sandbox)), "nine are held still");
    let (share, why) = (Share::Slots(9), WhyReturned::Drained);
    let returned = Returned { sandbox, share, serial: Serial(0), why };
    world.plane(OTHER_PLANE, FromDataPlane::Returned(returned));
    assert!(world.said().contains(&stop(sandbox)));
}

#[test]
fn of_two_functions_of_one_name_the_newer_one_is_meant() {
    let (mut records, function) = records(&Settings::default());
    let mut newer = FunctionRecord::clone(&records.functions[0]);
    newer.id = FunctionId::new(Epoch(4), 1);
    records.functions.push(Arc::new(newer));
    let mut world = World::with(records);
    world.store_answers = false;
    world.pass(Duration::from_millis(1));
    assert_eq!(world.describe("hello").summary.id, FunctionId::new(Epoch(4), 1));
    assert_eq!(world.writes[0].1, Write::DeleteFunction(function));
}

#[test]
fn a_peer_of_another_protocol_or_cluster_is_sent_away() {
    let mut world = World::new();
    let strangers =
        [Hello { protocol: (2, 3), ..hello() }, Hello { cluster: Some(ClusterId(2)), ..hello() }];
    for (stream, hello) in [StreamId(11), StreamId(12)].into_iter().zip(strangers) {
        world.tell(Event::DataPlaneAttached { stream, name: "a".into() });
        let hello =
            DataPlaneHello { hello, holdings: Vec::new(), names: Vec::new(), demands: Vec::new() };
        world.plane(stream, FromDataPlane::Hello(Box::new(hello)));
        let said = world.said();
        assert!(matches!(said[..], [Effect::Close { .. }]), "{said:?}");
    }
}

#[test]
fn a_data_plane_is_granted_nothing_before_its_record_is_durable() {
    let mut world = World::new();
    world.attach_worker();
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    world.store_answers = false;
    world.attach_plane(PLANE, "a");
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.started(), []);
    world.answer_writes(Some(Outcome::Refused));
    world.pass(Duration::from_secs(1));
    world.answer_writes(None);
    assert_eq!(world.started().len(), 1);
}

#[test]
fn a_hundred_thousand_registrations_leave_nothing_to_do() {
    let mut world = World::new();
    let settings = Arc::new(Settings::default());
    for n in 0..100_000 {
        let name = format!("f{n}").parse().unwrap();
        let spec = Arc::new(spec("a", 1));
        let settings = Arc::clone(&settings);
        let call = Call::Deploy { name, spec, settings, check: false };
        let request = world.ask(call);
        world.replies.remove(&request).unwrap().unwrap();
    }
    let control = &world.control;
    assert_eq!((world.revision, control.functions.len()), (100_000, 100_000));
    // Each costs its record and two entries: equal contents are kept once.
    assert!(control.functions.values().all(|function| function.active.is_none()));
    let shared = control.functions.values().map(|f| Arc::as_ptr(&f.record.revisions[0].spec));
    assert_eq!(shared.collect::<std::collections::BTreeSet<_>>().len(), 1);
    assert_eq!(control.deadline(), None);
    let cluster = &control.cluster;
    assert!(cluster.writes.is_empty() && cluster.attention.is_empty());
    assert!(cluster.spare.is_empty() && cluster.busiest.is_empty());
}

#[test]
fn what_is_expected_while_a_leader_recovers_is_started_when_that_is_over() {
    let settings = Settings { keep_alive: crate::KeepAlive::Auto, ..Settings::default() };
    let (mut records, function) = records(&settings);
    // Nobody knows what one that does not come back has.
    records.data_planes.push(DataPlaneRecord::new(DataPlaneId(2), "b".into()));
    let mut world = World::with(records);
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    world.demand(PLANE, Demand { expected: 1, ..demand(function, 0, 0, 0) });
    assert_eq!(world.started(), [], "another leader may have started it");
    world.pass(Duration::from_secs(10));
    assert_eq!(world.started().len(), 1);
}

#[test]
fn what_a_silent_data_plane_holds_does_not_wait_for_workers_that_attach_meanwhile() {
    let timeout = Settings::default().timeout;
    let settle = |counter| {
        let (sandbox, data_plane) = (SandboxId::new(Epoch(3), counter), DataPlaneId(1));
        ToWorker::Settle { sandbox, data_plane }
    };
    // The second worker attaches before or after the silence is a long one.
    for silent in [timeout / 2, timeout] {
        let (mut records, function) = records(&Settings::default());
        records.workers.push(WorkerRecord::new(WorkerId(2), "second".into()));
        let mut world = World::with(records);
        world.attach_worker_with(vec![report(function, 1)]);
        let holdings = vec![holding(function, 1), holding(function, 2)];
        world.attach_plane_with(PLANE, "a", holdings);
        world.pass(Duration::from_secs(4));
        world.tell(Event::Detached { stream: PLANE });
        world.pass(silent);
        let second = StreamId(9);
        world.tell(Event::WorkerAttached { stream: second, name: "second".into() });
        let (hello, capacity, artifacts) = (hello(), capacity(64), Vec::new());
        let sandboxes = vec![report(function, 2)];
        let hello = WorkerHello { hello, capacity, sandboxes, artifacts };
        let frame = FromWorker::Hello(Box::new(hello));
        world.tell(Event::WorkerSaid { stream: second, frame });
        world.pass(timeout.saturating_sub(silent));
        let said = world.said();
        assert!(said.contains(&to_worker(settle(1))), "after {silent:?}: {said:?}");
        // It was not heard of since it attached, where that was long ago.
        let asked = Effect::ToWorker { stream: second, frame: settle(2) };
        assert!(silent < timeout || said.contains(&asked), "{said:?}");
    }
}
