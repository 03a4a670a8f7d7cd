//! Workers and data planes that are cordoned, drained, taken back and removed.

use super::*;
use crate::{
    DataPlaneId, DataPlaneRecord, Duty, Whom, WorkerId, WorkerRecord,
    frame::{DUTY, Load},
};

const OTHER_WORKER: StreamId = StreamId(9);

fn worker(name: &str) -> Whom {
    Whom::Worker(name.into())
}

fn data_plane(name: &str) -> Whom {
    Whom::DataPlane(name.into())
}

fn order(whom: Whom, duty: Duty) -> Call {
    Call::Order { whom, duty }
}

fn ordered(whom: Whom, duty: Duty, changed: bool) -> Result<Answer, Refusal> {
    Ok(Answer::Ordered { whom, duty, changed })
}

fn remove(whom: Whom) -> Call {
    Call::Remove { whom, force: false }
}

impl World {
    fn other_worker(&mut self, frame: FromWorker) {
        self.tell(Event::WorkerSaid { stream: OTHER_WORKER, frame });
    }

    fn attach_other_worker(&mut self, room: u64) {
        self.tell(Event::WorkerAttached { stream: OTHER_WORKER, name: "other".into() });
        let capacity = capacity(room);
        let hello =
            WorkerHello { hello: hello(), capacity, sandboxes: Vec::new(), artifacts: Vec::new() };
        self.other_worker(FromWorker::Hello(Box::new(hello)));
    }

    fn ready_elsewhere(&mut self, sandbox: SandboxId) {
        let phases = StartPhases::default();
        let address = address(sandbox);
        self.other_worker(FromWorker::SandboxReady { sandbox, address, phases });
    }

    fn states(&mut self) -> Vec<(String, u32)> {
        let Ok(Answer::Workers(all)) = self.answer(Call::Workers) else { panic!("no workers") };
        all.into_iter().map(|worker| (worker.state, worker.sandboxes)).collect()
    }

    fn data_planes(&mut self) -> Vec<(String, u32)> {
        let Ok(Answer::DataPlanes(all)) = self.answer(Call::DataPlanes) else { panic!("none") };
        all.into_iter().map(|plane| (plane.state, plane.slots)).collect()
    }

    /// A data plane that takes orders.
    fn attach_new_plane(&mut self) {
        self.tell(Event::DataPlaneAttached { stream: PLANE, name: "a".into() });
        let hello = DataPlaneHello {
            hello: Hello { features: vec![DUTY.to_owned()], ..hello() },
            holdings: Vec::new(),
            names: Vec::new(),
            demands: Vec::new(),
        };
        self.plane(PLANE, FromDataPlane::Hello(Box::new(hello)));
    }
}

/// A worker with one sandbox that is in use, and room elsewhere.
fn in_use(settings: &Settings, room: u64) -> (World, FunctionId, SandboxId) {
    let (mut world, function) = World::running(&spec("a", 1), settings);
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 1, 1));
    world.attach_other_worker(room);
    world.said();
    (world, function, sandbox)
}

#[test]
fn a_cordoned_worker_gets_nothing_new_until_it_is_taken_back() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let cordon = order(worker("local"), Duty::Cordoned);
    assert_eq!(world.answer(cordon.clone()), ordered(worker("local"), Duty::Cordoned, true));
    assert_eq!(world.answer(cordon), ordered(worker("local"), Duty::Cordoned, false));
    assert_eq!(world.states(), [("cordoned".to_owned(), 0)]);
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.started(), []);
    world.answer(order(worker("local"), Duty::InUse)).unwrap();
    assert_eq!(world.started().len(), 1);
    let unknown = Err(Refusal::NoPeer { whom: worker("x") });
    assert_eq!(world.answer(order(worker("x"), Duty::Draining)), unknown);
}

#[test]
fn a_cordon_counts_at_once_and_is_answered_when_it_is_durable() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.store_answers = false;
    let request = world.ask(order(worker("local"), Duty::Cordoned));
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!((world.started(), world.replies.len()), (Vec::new(), 0));
    world.answer_writes(Some(Outcome::Refused));
    assert_eq!(world.replies.remove(&request), Some(Err(Refusal::StoreUnavailable)));
    assert_eq!(world.started().len(), 1, "nothing was changed");

    let request = world.ask(order(worker("local"), Duty::Draining));
    world.answer_writes(Some(Outcome::Unknown));
    assert_eq!(world.replies.remove(&request), Some(Err(Refusal::InDoubt)));
    let busy = Err(Refusal::Busy { limit: 1 });
    assert_eq!(world.answer(order(worker("local"), Duty::InUse)), busy);
    world.pass(Duration::from_secs(1));
    let Write::PutWorker(record) = &world.writes[0].1 else { panic!("{:?}", world.writes) };
    assert_eq!(record.duty(), Duty::Draining);
    assert!(record.cordoned, "an older program does not place anything there either");
    world.answer_writes(None);
    world.demand(PLANE, demand(function, 2, 0, 0));
    assert_eq!(world.started(), []);
}

#[test]
fn what_is_in_use_is_replaced_before_it_is_called_back() {
    let (mut world, function, sandbox) = in_use(&Settings::default(), 64);
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    let started = world.started();
    assert_eq!((started.len(), world.said()), (1, Vec::new()), "another one first");
    world.ready_elsewhere(started[0]);
    assert_eq!(world.granted().len(), 1, "it is there for the next call");
    assert_eq!(world.said(), [recall(sandbox)]);
    assert_eq!(world.states()[0], ("draining".to_owned(), 1));
    // The call that runs there ends there.
    world.give_back(PLANE, sandbox, WhyReturned::Drained);
    assert_eq!(world.said(), [stop(sandbox)]);
    world.gone(sandbox, stopped());
    assert_eq!(world.said(), [release(sandbox)]);
    assert_eq!(world.states()[0], ("drained".to_owned(), 0));
    world.demand(PLANE, demand(function, 0, 0, 1));
    assert_eq!(world.started(), [], "one for one");
}

#[test]
fn without_room_elsewhere_it_is_called_back_all_the_same() {
    let (mut world, _, sandbox) = in_use(&Settings::default(), 0);
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    assert_eq!(world.said(), [recall(sandbox)]);
}

#[test]
fn a_replacement_that_does_not_come_is_not_waited_for_longer_than_a_start() {
    let settings = Settings { start_timeout: Duration::from_secs(2), ..Settings::default() };
    let (mut world, _, sandbox) = in_use(&settings, 64);
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    assert_eq!(world.started().len(), 1);
    let beat = |world: &mut World| world.other_worker(FromWorker::Beat(Load::default()));
    for _ in 0..2 {
        assert!(!world.said().contains(&recall(sandbox)));
        world.pass(Duration::from_millis(900));
        beat(&mut world);
    }
    world.pass(Duration::from_millis(200));
    assert!(world.said().contains(&recall(sandbox)));
}

#[test]
fn what_serves_nobody_goes_at_once_and_min_is_kept_elsewhere() {
    let settings = Settings { min: 1, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    let [starting] = world.started()[..] else { panic!("min is one") };
    world.attach_other_worker(64);
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    assert_eq!(world.said(), [welcome_of_other(), stop(starting)]);
    let [other] = world.started()[..] else { panic!("min is one") };
    world.gone(starting, stopped());
    world.ready_elsewhere(other);
    let granted = world.granted();
    assert!(granted[0].1.pinned && granted[0].1.sandbox == other, "{granted:?}");
    assert_eq!(world.describe("hello").summary.id, function);
    assert_eq!(world.states(), [("drained".to_owned(), 0), ("ready".to_owned(), 1)]);
}

fn welcome_of_other() -> Effect {
    let welcome = crate::frame::Welcome { cluster: OFFICE.cluster, epoch: EPOCH };
    let frame = ToWorker::Welcome { welcome, you: WorkerId(2) };
    Effect::ToWorker { stream: OTHER_WORKER, frame }
}

#[test]
fn a_drain_that_is_taken_back_leaves_what_was_not_called_back_in_use() {
    let (mut world, function, sandbox) = in_use(&Settings::default(), 64);
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    let [other] = world.started()[..] else { panic!("another one first") };
    world.answer(order(worker("local"), Duty::InUse)).unwrap();
    world.ready_elsewhere(other);
    assert!(!world.said().contains(&recall(sandbox)));
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    assert_eq!(world.states()[0], ("ready".to_owned(), 1));
    assert_eq!(world.describe("hello").summary.ready, 1, "{function}: given back for being idle");
}

#[test]
fn the_next_leader_goes_on_with_a_drain() {
    let local = WorkerRecord::new(WorkerId(1), "local".into()).on(Duty::Draining);
    let plane = DataPlaneRecord {
        duty: Duty::Cordoned,
        ..DataPlaneRecord::new(DataPlaneId(1), "a".into())
    };
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let functions = vec![Arc::clone(&world.control.functions[&function].record)];
    let (workers, data_planes) = (vec![local], vec![plane]);
    world = World::with(Records { functions, workers, data_planes, ..Records::default() });
    let sandbox = SandboxId::new(Epoch(6), 1);
    let revision = RevisionId { function, number: 1 };
    world.attach_worker_with(vec![SandboxReport {
        sandbox,
        revision,
        memory: Bytes::mib(128),
        cpu: MilliCpu(100),
        address: Some(address(sandbox)),
        stopping: false,
    }]);
    assert_eq!(world.states(), [("draining".to_owned(), 1)]);
    world.attach_new_plane();
    let told = to_plane(PLANE, ToDataPlane::Duty { duty: Duty::Cordoned });
    world.pass(Duration::from_millis(1));
    let said = world.said();
    assert!(said.contains(&told), "{said:?}");
    assert!(said.contains(&stop(sandbox)), "nobody holds it: {said:?}");
}

#[test]
fn a_worker_is_removed_when_it_is_empty_and_its_number_is_not_given_again() {
    let (mut world, _, sandbox) = in_use(&Settings::default(), 64);
    let Err(Refusal::InUse { message }) = world.answer(remove(worker("local"))) else {
        panic!("it has a sandbox")
    };
    assert_eq!(message, "worker local has a sandbox: `dirigent drain local` first");
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    let other = world.started()[0];
    world.ready_elsewhere(other);
    world.give_back(PLANE, sandbox, WhyReturned::Drained);
    world.gone(sandbox, stopped());
    world.said();
    assert_eq!(
        world.answer(remove(worker("local"))),
        Ok(Answer::Removed { whom: worker("local") })
    );
    let reason = "worker local was removed".to_owned();
    assert_eq!(world.said(), [Effect::Close { stream: WORKER, reason }]);
    world.tell(Event::Detached { stream: WORKER });
    assert_eq!(world.states(), [("ready".to_owned(), 1)]);
    let none = Err(Refusal::NoPeer { whom: worker("local") });
    assert_eq!(world.answer(remove(worker("local"))), none);
    // It comes anew, as another one.
    world.store_answers = false;
    world.attach_worker();
    let Write::PutWorker(record) = &world.writes[0].1 else { panic!("{:?}", world.writes) };
    assert_eq!(record, &WorkerRecord::new(WorkerId(3), "local".into()));
}

#[test]
fn the_newest_record_keeps_its_number_until_there_is_a_newer_one() {
    let mut world = World::new();
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    world.tell(Event::Detached { stream: PLANE });
    let Err(Refusal::InUse { message }) = world.answer(remove(worker("local"))) else {
        panic!("it is in use")
    };
    assert_eq!(message, "worker local is in use: `dirigent drain local` first");
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    world.store_answers = false;
    world.ask(remove(worker("local")));
    world.ask(remove(data_plane("a")));
    let removed = WorkerRecord {
        removed: true,
        ..WorkerRecord::new(WorkerId(1), "local".into()).on(Duty::Draining)
    };
    let gone =
        DataPlaneRecord { removed: true, ..DataPlaneRecord::new(DataPlaneId(1), "a".into()) };
    let written: Vec<Write> = world.writes.iter().map(|(_, write)| write.clone()).collect();
    assert_eq!(written, [Write::PutWorker(removed.clone()), Write::PutDataPlane(gone.clone())]);
    world.answer_writes(None);

    let (workers, data_planes) = (vec![removed], vec![gone]);
    let mut next = World::with(Records { workers, data_planes, ..Records::default() });
    next.store_answers = false;
    next.attach_worker();
    next.attach_plane(PLANE, "a");
    let written: Vec<Write> = next.writes.iter().map(|(_, write)| write.clone()).collect();
    assert_eq!(
        written,
        [
            Write::PutWorker(WorkerRecord::new(WorkerId(2), "local".into())),
            Write::DeleteWorker(WorkerId(1)),
            Write::PutDataPlane(DataPlaneRecord::new(DataPlaneId(2), "a".into())),
            Write::DeleteDataPlane(DataPlaneId(1)),
        ]
    );
}

#[test]
fn a_lost_worker_is_removed_only_by_somebody_who_says_that_it_is_gone() {
    let (mut world, _, sandbox) = in_use(&Settings::default(), 64);
    world.tell(Event::Detached { stream: WORKER });
    let refused = |answer: Result<Answer, Refusal>| match answer {
        Err(Refusal::InUse { message }) => message,
        other => panic!("{other:?}"),
    };
    let force = Call::Remove { whom: worker("local"), force: true };
    assert!(refused(world.answer(force.clone())).contains("try again"));
    for _ in 0..4 {
        world.pass(Duration::from_millis(900));
        world.other_worker(FromWorker::Beat(Load::default()));
    }
    world.said();
    assert!(refused(world.answer(remove(worker("local")))).contains("--force"));
    assert_eq!(world.answer(force), Ok(Answer::Removed { whom: worker("local") }));
    let gone = to_plane(PLANE, ToDataPlane::RecallSandbox { sandbox, gone: true });
    assert!(world.said().contains(&gone), "who holds it hears that it is gone");
}

#[test]
fn a_data_plane_hears_what_is_wanted_of_it_if_it_understands_that() {
    let mut world = World::new();
    world.attach_plane(OTHER_PLANE, "b");
    let deaf = Err(Refusal::Deaf { whom: data_plane("b") });
    assert_eq!(world.answer(order(data_plane("b"), Duty::Draining)), deaf);
    world.attach_new_plane();
    world.said();
    let drain = order(data_plane("a"), Duty::Draining);
    assert_eq!(world.answer(drain), ordered(data_plane("a"), Duty::Draining, true));
    assert_eq!(world.said(), [to_plane(PLANE, ToDataPlane::Duty { duty: Duty::Draining })]);
    let Err(Refusal::InUse { message }) = world.answer(remove(data_plane("a"))) else {
        panic!("it is attached")
    };
    assert!(message.contains("drain a"), "{message}");
    world.tell(Event::Detached { stream: PLANE });
    assert_eq!(world.data_planes()[1], ("gone".to_owned(), 0));
    // In its next life it hears it again.
    world.attach_new_plane();
    assert!(world.said().contains(&to_plane(PLANE, ToDataPlane::Duty { duty: Duty::Draining })));
    world.tell(Event::Detached { stream: PLANE });
    let removed = Ok(Answer::Removed { whom: data_plane("a") });
    assert_eq!(world.answer(remove(data_plane("a"))), removed);
    assert_eq!(world.data_planes().len(), 1);
}

#[test]
fn a_data_plane_that_may_hold_slots_is_not_forgotten() {
    let (mut world, function, sandbox) = in_use(&Settings::default(), 64);
    world.tell(Event::Detached { stream: PLANE });
    assert_eq!(world.data_planes(), [("silent".to_owned(), 1)]);
    let Err(Refusal::InUse { message }) = world.answer(remove(data_plane("a"))) else {
        panic!("it holds a slot")
    };
    assert!(message.contains("1 slots"), "{message}");
    world.pass(Settings::default().timeout);
    world.worker(FromWorker::Settled { sandbox, data_plane: DataPlaneId(1) });
    assert_eq!(world.data_planes(), [("gone".to_owned(), 0)]);
    world.answer(remove(data_plane("a"))).unwrap();
    assert_eq!(world.data_planes(), []);
    assert_eq!(world.describe("hello").summary.id, function);
}

#[test]
fn what_a_data_plane_that_leaves_gives_back_is_passed_to_another_one() {
    let (mut world, function, sandbox) = in_use(&Settings::default(), 64);
    world.attach_plane(OTHER_PLANE, "b");
    world.said();
    world.demand(PLANE, demand(function, 0, 0, 1));
    world.give_back(PLANE, sandbox, WhyReturned::Drained);
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].0, granted[0].1.sandbox), (OTHER_PLANE, sandbox));
    // Without another one it stays for its keep-alive.
    world.tell(Event::Detached { stream: PLANE });
    world.give_back(OTHER_PLANE, sandbox, WhyReturned::Drained);
    assert_eq!(world.said(), []);
    assert_eq!(world.describe("hello").summary.ready, 1);
}

#[test]
fn a_record_that_is_to_be_written_again_waits_for_the_change_that_is_on_its_way() {
    for (whom, outcome) in [
        (worker("other"), Outcome::Refused),
        (worker("other"), Outcome::Ok { revision: 9 }),
        (data_plane("a"), Outcome::Refused),
        (data_plane("a"), Outcome::Ok { revision: 9 }),
    ] {
        let mut world = World::new();
        world.store_answers = false;
        world.attach_other_worker(4);
        world.attach_new_plane();
        // Both are unknown to the store still, and will be written again in a moment.
        world.answer_writes(Some(Outcome::Refused));
        let request = world.ask(order(whom.clone(), Duty::Cordoned));
        let carried = |writes: &[(WriteToken, Write)]| {
            let cordons = writes.iter().filter(|(_, write)| match write {
                Write::PutWorker(record) => record.cordoned,
                Write::PutDataPlane(record) => record.duty == Duty::Cordoned,
                _ => false,
            });
            cordons.count()
        };
        let (token, _) = *world.writes.last().unwrap();
        world.pass(Duration::from_secs(2));
        assert_eq!(carried(&world.writes), 1, "{whom:?}: one write of a change at a time");

        world.writes.clear();
        world.tell(Event::Persisted { token, outcome });
        let is_taken = matches!(outcome, Outcome::Ok { .. });
        let reply = world.replies.remove(&request).unwrap();
        assert_eq!(reply.is_ok(), is_taken, "{whom:?}: {reply:?}");
        world.pass(Duration::from_secs(2));
        let again = carried(&world.writes);
        assert_eq!(again > 0, is_taken, "{whom:?} is recorded as it is wanted now");
        assert!(world.writes.iter().any(|(_, write)| match write {
            Write::PutWorker(record) => whom == worker(&record.name),
            Write::PutDataPlane(record) => whom == data_plane(&record.name),
            _ => false,
        }));
    }
}

#[test]
fn a_data_plane_that_was_not_heard_stays_while_a_worker_may_bring_sandboxes_of_its_slots() {
    let workers = vec![WorkerRecord::new(WorkerId(1), "local".into())];
    let data_planes = vec![DataPlaneRecord::new(DataPlaneId(1), "a".into())];
    let mut world = World::with(Records { workers, data_planes, ..Records::default() });
    // Whoever took office has waited for long enough.
    world.pass(Duration::from_secs(10));
    let Err(Refusal::InUse { message }) = world.answer(remove(data_plane("a"))) else {
        panic!("it may be attached to the leader before, and call")
    };
    assert!(message.contains("remove local --force"), "{message}");
    world.attach_worker();
    let removed = Ok(Answer::Removed { whom: data_plane("a") });
    assert_eq!(world.answer(remove(data_plane("a"))), removed);
}

#[test]
fn a_deploy_whose_check_starts_on_a_worker_that_is_drained_is_checked_elsewhere() {
    let mut world = World::new();
    world.attach_worker();
    world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    let [checked] = world.started()[..] else { panic!("it is checked") };
    world.attach_other_worker(64);
    world.answer(order(worker("local"), Duty::Draining)).unwrap();
    assert!(world.said().contains(&stop(checked)));
    let [again] = world.started()[..] else { panic!("nobody would ever say how it ends") };
    world.ready_elsewhere(again);
    assert_eq!(world.describe("hello").revisions[0].state, crate::RevisionState::Live);
}
