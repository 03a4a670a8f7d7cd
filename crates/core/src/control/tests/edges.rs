//! What happens where two things meet: a loss and a drain, a delete and a deploy, a lull and a queue.

use super::*;
use crate::{
    DataPlaneId, DataPlaneRecord, FunctionRecord, RevisionRecord, RevisionState, Target, WorkerId,
    WorkerRecord, frame::TAKEN,
};

/// Sandboxes that were called back since the last look.
fn recalled(world: &mut World) -> Vec<SandboxId> {
    world
        .said()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::ToDataPlane { frame: ToDataPlane::RecallSandbox { sandbox, .. }, .. } => {
                Some(sandbox)
            }
            _ => None,
        })
        .collect()
}

fn runs(function: FunctionId, sandbox: SandboxId) -> SandboxReport {
    SandboxReport {
        sandbox,
        revision: RevisionId { function, number: 1 },
        address: Some(address(sandbox)),
        stopping: false,
        memory: Resources::default().memory,
        cpu: Resources::default().cpu,
    }
}

fn busy(world: &mut World, function: FunctionId, n: u32) -> Vec<SandboxId> {
    world.demand(PLANE, demand(function, n, 0, 0));
    let started = world.started();
    for &sandbox in &started {
        world.ready(sandbox);
    }
    world.demand(PLANE, Demand { elapsed: 2_000_000, ..demand(function, 0, n, n) });
    world.said();
    started
}

#[test]
fn values_of_an_environment_are_told_where_they_alone_are_asked_for() {
    let mut world = World::new();
    let spec = Spec { env: [("A".to_owned(), "secret".to_owned())].into(), ..spec("a", 1) };
    world.deploy("hello", &spec, &Settings::default(), false);
    let described = world.describe("hello");
    assert_eq!(described.revisions[0].spec.env["A"], "");
    let ask = |world: &mut World, name: &str, revision| {
        world.answer(Call::Environment { name: name.parse().unwrap(), revision })
    };
    assert_eq!(ask(&mut world, "hello", 1), Ok(Answer::Environment(spec.env)));
    assert!(matches!(ask(&mut world, "hello", 2), Err(Refusal::NoRevision { number: 2, .. })));
    assert!(matches!(ask(&mut world, "other", 1), Err(Refusal::NotFound { .. })));
    // In a recording they are hidden.
    let result = Ok(Answer::Environment([("A".to_owned(), "secret".to_owned())].into()));
    let entry = crate::recording::Entry::Did(Box::new(Effect::Reply { to: RequestId(1), result }));
    let hidden = format!("{:?}", entry.without_secrets(&|_| "?".to_owned()));
    assert!(hidden.contains("\"?\"") && !hidden.contains("secret"), "{hidden}");
}

#[test]
fn a_sandbox_that_was_given_up_and_returns_with_its_worker_is_stopped() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let sandbox = busy(&mut world, function, 1)[0];
    world.tell(Event::Detached { stream: WORKER });
    world.pass(Duration::from_secs(5));
    world.deploy("hello", &spec("b", 1), &Settings::default(), false);
    assert_eq!(recalled(&mut world), [sandbox]);
    // The drain took too long, and nobody was there to be told.
    world.pass(Duration::from_secs(700));
    world.said();
    world.attach_worker_with(vec![runs(function, sandbox)]);
    assert!(world.said().contains(&stop(sandbox)), "it would run for ever");
    world.gone(sandbox, stopped());
    world.give_back(PLANE, sandbox, WhyReturned::Drained);
    assert_eq!(world.describe("hello").sandboxes, []);
}

#[test]
fn a_sandbox_that_was_given_back_as_spoilt_while_its_worker_was_away_is_not_used_again() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let sandbox = busy(&mut world, function, 1)[0];
    world.tell(Event::Detached { stream: WORKER });
    world.pass(Duration::from_secs(5));
    // Its caller left, and the execution may go on in it.
    world.give_back(PLANE, sandbox, WhyReturned::Closing);
    world.said();
    world.attach_worker_with(vec![runs(function, sandbox)]);
    assert_eq!(world.granted(), [], "it is not given to the next caller");
    assert!(world.said().contains(&stop(sandbox)));
}

#[test]
fn an_address_to_which_somebody_may_still_send_is_nobody_elses() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let first = busy(&mut world, function, 1)[0];
    // Its worker's host starts anew, and so do its ports.
    world.tell(Event::Detached { stream: WORKER });
    world.attach_worker_with(Vec::new());
    world.demand(PLANE, demand(function, 2, 1, 1));
    world.said();
    let second = world.started()[0];
    let ready = |sandbox| FromWorker::SandboxReady {
        sandbox,
        address: address(first),
        phases: StartPhases::default(),
    };
    world.worker(ready(second));
    assert_eq!(world.granted(), []);
    assert!(world.said().contains(&stop(second)), "calls for the first would reach it");
    world.gone(second, stopped());
    world.demand(PLANE, demand(function, 2, 1, 1));
    let third = world.started()[0];
    world.give_back(PLANE, first, WhyReturned::Unreachable);
    world.worker(ready(third));
    assert_eq!(world.granted().len(), 1, "nobody sends to the first any more");
}

#[test]
fn the_windows_of_a_deleted_function_start_nothing() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    busy(&mut world, function, 5);
    world.pass(Duration::from_secs(5));
    world.answer(Call::Delete { name: "hello".parse().unwrap() }).unwrap();
    world.started();
    world.pass(Duration::from_secs(5));
    assert_eq!(world.started(), []);
}

#[test]
fn the_switch_of_a_deleted_function_is_not_its_successors() {
    let mut world = World::new();
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    let sandbox = world.started()[0];
    world.store_answers = false;
    world.ask(Call::Delete { name: "hello".parse().unwrap() });
    world.ask(deploy("hello", &spec("b", 1), &Settings::default(), true));
    world.ready(sandbox);
    for _ in 0..3 {
        world.answer_writes(None);
    }
    let newest = world.describe("hello").summary.newest;
    assert_eq!(newest, (1, RevisionState::Checking), "its check is still to come");
}

#[test]
fn slots_that_rested_make_room_for_a_function_that_waited_meanwhile() {
    let mut world = World::new();
    world.room = 1;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    world.attach_plane(OTHER_PLANE, "b");
    let (hello, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    let (other, _) = world.deploy("other", &spec("a", 1), &Settings::default(), false);
    world.pass(Duration::from_secs(3));
    world.demand(PLANE, demand(hello, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(hello, 0, 0, 1));
    world.demand(OTHER_PLANE, demand(hello, 1, 0, 0));
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    world.demand(OTHER_PLANE, demand(hello, 0, 0, 1));
    world.said();
    world.demand(PLANE, demand(other, 1, 0, 0));
    world.pass(Duration::from_millis(50));
    let asked = ToDataPlane::Recall { function: hello, n: 1, idle_only: true };
    assert!(world.said().contains(&to_plane(OTHER_PLANE, asked)));
}

fn id(n: u64) -> FunctionId {
    FunctionId::new(Epoch(1), n)
}

/// A leader of a worker, of the data plane `a`, and of one that does not come back. Its functions
/// are `hello` and `other`.
fn successor(settings: &Settings) -> World {
    let record = |n, name: &str| {
        Arc::new(FunctionRecord {
            id: id(n),
            name: name.parse().unwrap(),
            settings: Arc::new(settings.clone()),
            next: None,
            revisions: vec![RevisionRecord {
                number: 1,
                spec: Arc::new(spec("a", 1)),
                state: RevisionState::Live,
                created_ms: 1,
                failure: None,
                born: Epoch(1),
            }],
            targets: vec![Target { revision: 1, weight: 100 }],
        })
    };
    let plane = |n, name: &str| DataPlaneRecord::new(DataPlaneId(n), name.into());
    World::with(Records {
        functions: vec![record(1, "hello"), record(2, "other")],
        workers: vec![WorkerRecord::new(WorkerId(1), "local".into())],
        data_planes: vec![plane(1, "a"), plane(2, "never seen again")],
        ..Records::default()
    })
}

#[test]
fn what_is_idle_makes_room_as_soon_as_the_recovery_ends() {
    let mut world = successor(&Settings::default());
    world.room = 1;
    let sandbox = SandboxId::new(Epoch(1), 1);
    world.attach_worker_with(vec![runs(id(1), sandbox)]);
    let revision = RevisionId { function: id(1), number: 1 };
    let holding = Holding {
        sandbox,
        revision,
        share: Share::Slots(1),
        busy: 0,
        draining: false,
        pinned: false,
    };
    world.attach_plane_with(PLANE, "a", vec![holding]);
    world.demand(PLANE, demand(id(1), 0, 0, 1));
    world.demand(PLANE, demand(id(2), 1, 0, 0));
    world.said();
    world.pass(Duration::from_secs(4));
    let asked = ToDataPlane::Recall { function: id(1), n: 1, idle_only: true };
    assert!(world.said().contains(&to_plane(PLANE, asked)));
}

#[test]
fn a_data_plane_that_never_returns_keeps_nothing_out_of_use_for_ever() {
    let mut world = successor(&Settings { max: 1, ..Settings::default() });
    let sandbox = SandboxId::new(Epoch(1), 1);
    world.attach_worker_with(vec![runs(id(1), sandbox)]);
    world.attach_plane(PLANE, "a");
    world.demand(PLANE, demand(id(1), 1, 0, 0));
    world.pass(Duration::from_secs(59));
    assert_eq!((world.started(), world.granted()), (vec![], vec![]), "it may hold the sandbox");
    world.pass(Duration::from_secs(2));
    let data_plane = DataPlaneId(2);
    assert!(world.said().contains(&to_worker(ToWorker::Settle { sandbox, data_plane })));
    world.worker(FromWorker::Settled { sandbox, data_plane });
    world.pass(Duration::from_millis(1));
    let granted = world.granted();
    assert_eq!((granted.len(), granted[0].1.sandbox), (1, sandbox));
}

#[test]
fn a_sandbox_of_which_every_slot_is_claimed_is_in_nobody_elses_hands() {
    let mut world = successor(&Settings { max: 1, ..Settings::default() });
    let sandbox = SandboxId::new(Epoch(1), 1);
    world.attach_worker_with(vec![runs(id(1), sandbox)]);
    let holding = Holding {
        sandbox,
        revision: RevisionId { function: id(1), number: 1 },
        share: Share::Slots(1),
        busy: 0,
        draining: false,
        pinned: false,
    };
    world.attach_plane_with(PLANE, "a", vec![holding]);
    world.attach_plane(OTHER_PLANE, "c");
    world.pass(Duration::from_secs(4));
    world.demand(OTHER_PLANE, demand(id(1), 1, 0, 0));
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    let granted = world.granted();
    assert_eq!(granted.len(), 1, "who has not attached cannot hold it too");
    assert_eq!((granted[0].0, granted[0].1.sandbox), (OTHER_PLANE, sandbox));
}

#[test]
fn what_is_idle_at_a_silent_data_plane_does_not_hide_what_is_idle_elsewhere() {
    let mut world = World::new();
    world.room = 18;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    world.attach_plane(OTHER_PLANE, "b");
    let idle = |world: &mut World, plane, name: &str| {
        let (function, _) = world.deploy(name, &spec("a", 1), &Settings::default(), false);
        world.demand(plane, demand(function, 1, 0, 0));
        let started = world.started();
        world.ready(started[0]);
        world.demand(plane, demand(function, 0, 0, 1));
        function
    };
    for n in 0..17 {
        idle(&mut world, OTHER_PLANE, &format!("f{n}"));
    }
    world.pass(Duration::from_millis(1));
    let late = idle(&mut world, PLANE, "late");
    world.tell(Event::Detached { stream: OTHER_PLANE });
    let (starved, _) = world.deploy("starved", &spec("a", 1), &Settings::default(), false);
    world.said();
    world.demand(PLANE, demand(starved, 1, 0, 0));
    let asked = ToDataPlane::Recall { function: late, n: 1, idle_only: true };
    assert!(world.said().contains(&to_plane(PLANE, asked)));
}

#[test]
fn what_idles_in_a_sandbox_of_a_lost_worker_does_not_keep_callers_waiting() {
    let (mut world, function) = World::running(&spec("a", 3), &Settings::default());
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, Demand { elapsed: 2_000_000, ..demand(function, 0, 0, 3) });
    world.tell(Event::Detached { stream: WORKER });
    world.pass(Duration::from_secs(5));
    world.tell(Event::WorkerAttached { stream: StreamId(9), name: "another".into() });
    let (sandboxes, artifacts) = (Vec::new(), Vec::new());
    let hello = WorkerHello { hello: hello(), capacity: capacity(8), sandboxes, artifacts };
    let frame = FromWorker::Hello(Box::new(hello));
    world.tell(Event::WorkerSaid { stream: StreamId(9), frame });
    world.started();
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.started().len(), 1, "three slots are idle, and lead nowhere");
}

#[test]
fn a_call_hurries_the_start_that_nobody_waited_for() {
    let mut world = World::new();
    world.room = 2;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let (flood, _) = world.deploy("flood", &spec("a", 1), &Settings::default(), false);
    busy(&mut world, flood, 2);
    let settings = Settings { min: 1, ..Settings::default() };
    let (hello, _) = world.deploy("hello", &spec("a", 1), &settings, false);
    assert_eq!(recalled(&mut world), [], "nobody waits for it");
    world.demand(PLANE, demand(hello, 1, 0, 0));
    assert_eq!(recalled(&mut world).len(), 1, "somebody does now");
}

#[test]
fn when_max_is_lowered_what_is_above_it_is_called_back_though_busy() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    busy(&mut world, function, 5);
    let settings = Settings { max: 2, ..Settings::default() };
    world.deploy("hello", &spec("a", 1), &settings, false);
    assert_eq!(recalled(&mut world).len(), 3);
    world.demand(PLANE, demand(function, 9, 5, 5));
    assert_eq!((world.started(), recalled(&mut world)), (vec![], vec![]));
}

#[test]
fn when_max_is_raised_those_who_wait_get_their_starts_at_once() {
    let settings = Settings { max: 2, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    world.demand(PLANE, demand(function, 5, 0, 0));
    assert_eq!(world.started().len(), 2);
    world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    assert_eq!(world.started().len(), 3);
}

#[test]
fn sandboxes_of_min_that_exit_as_soon_as_they_listen_are_started_with_a_back_off() {
    let settings = Settings { min: 1, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    for _ in 0..3 {
        let started = world.started();
        assert_eq!(started.len(), 1);
        world.ready(started[0]);
        world.gone(started[0], failure(Fault::Function));
        world.give_back(PLANE, started[0], WhyReturned::Unreachable);
    }
    assert_eq!(world.started(), []);
    world.pass(Duration::from_millis(999));
    assert_eq!(world.started(), []);
    world.pass(Duration::from_millis(1));
    let again = world.started();
    assert_eq!(again.len(), 1);
    world.ready(again[0]);
    world.gone(again[0], failure(Fault::Function));
    world.give_back(PLANE, again[0], WhyReturned::Unreachable);
    world.pass(Duration::from_millis(1999));
    assert_eq!(world.started(), []);
    // A call is another matter.
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.started().len(), 1);
}

#[test]
fn nobody_waits_for_a_store_that_does_not_take_the_write_before() {
    let mut world = World::new();
    world.attach_worker();
    world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    let sandbox = world.started()[0];
    world.store_answers = false;
    world.ready(sandbox);
    assert_eq!(world.writes.len(), 1, "the switch");
    let delete = || Call::Delete { name: "hello".parse().unwrap() };
    let queued = world.ask(delete());
    world.answer_writes(Some(Outcome::Refused));
    assert_eq!(world.replies.get(&queued), Some(&Err(Refusal::StoreUnavailable)));
    assert_eq!(world.answer(delete()), Err(Refusal::StoreUnavailable));
    world.pass(Duration::from_secs(1));
    world.answer_writes(None);
    world.store_answers = true;
    assert!(world.answer(delete()).is_ok());
}

#[test]
fn a_crash_that_a_data_plane_tells_of_first_is_remembered() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let sandbox = busy(&mut world, function, 1)[0];
    world.give_back(PLANE, sandbox, WhyReturned::Unreachable);
    world.gone(sandbox, failure(Fault::Function));
    let failures = world.describe("hello").failures;
    assert_eq!(failures.first().map(|last| &last.failure), Some(&failure(Fault::Function)));
}

#[test]
fn when_a_lost_worker_is_back_what_is_above_max_is_called_back() {
    let settings = Settings { max: 1, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    world.demand(PLANE, demand(function, 1, 0, 0));
    let old = world.started()[0];
    world.ready(old);
    world.tell(Event::Detached { stream: WORKER });
    world.pass(Duration::from_secs(5));
    world.tell(Event::WorkerAttached { stream: StreamId(9), name: "another".into() });
    let (sandboxes, artifacts) = (Vec::new(), Vec::new());
    let hello = WorkerHello { hello: hello(), capacity: capacity(8), sandboxes, artifacts };
    let frame = FromWorker::Hello(Box::new(hello));
    world.tell(Event::WorkerSaid { stream: StreamId(9), frame });
    world.demand(PLANE, demand(function, 1, 1, 1));
    let new = world.started()[0];
    let (at, phases) = (address(new), StartPhases::default());
    let frame = FromWorker::SandboxReady { sandbox: new, address: at, phases };
    world.tell(Event::WorkerSaid { stream: StreamId(9), frame });
    world.said();
    let report = SandboxReport {
        sandbox: old,
        revision: RevisionId { function, number: 1 },
        memory: Bytes::mib(128),
        cpu: MilliCpu(100),
        address: Some(address(old)),
        stopping: false,
    };
    world.attach_worker_with(vec![report]);
    assert_eq!(recalled(&mut world).len(), 1, "two run, and one is wanted at most");
}

#[test]
fn a_data_plane_that_is_attached_keeps_its_name_and_its_slots() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let sandbox = busy(&mut world, function, 1)[0];
    let greet = |world: &mut World, life: u64| {
        let (stream, name) = (OTHER_PLANE, "a".into());
        world.tell(Event::DataPlaneAttached { stream, name });
        let mut hello = Hello { features: vec![TAKEN.to_owned()], ..hello() };
        hello.incarnation.life = life;
        let (holdings, names, demands) = (Vec::new(), Vec::new(), Vec::new());
        let hello = DataPlaneHello { hello, holdings, names, demands };
        world.plane(OTHER_PLANE, FromDataPlane::Hello(Box::new(hello)));
        world.said()
    };
    let said = greet(&mut world, 7);
    let (taken, closed) = match &*said {
        [Effect::ToDataPlane { stream, frame }, Effect::Close { stream: closed, .. }] => {
            ((*stream, frame), *closed)
        }
        _ => panic!("{said:?}"),
    };
    assert_eq!((taken, closed), ((OTHER_PLANE, &ToDataPlane::Taken), OTHER_PLANE));
    // Nothing of it is granted to anybody: a demand of the first one finds no free slot.
    world.demand(PLANE, Demand { elapsed: 3_000_000, ..demand(function, 1, 1, 1) });
    assert!(!world.started().contains(&sandbox));
    // Once that has ended, the next life is let in, and what the first one held is free.
    world.tell(Event::Detached { stream: PLANE });
    world.said();
    let said = greet(&mut world, 7);
    let welcome = |effect: &Effect| {
        matches!(effect, Effect::ToDataPlane { frame: ToDataPlane::Welcome { .. }, .. })
    };
    assert!(said.iter().any(welcome), "{said:?}");
}
