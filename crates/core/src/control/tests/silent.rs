//! Data planes that fall silent with slots in their hands.

use super::*;
use crate::DataPlaneId;

const A: DataPlaneId = DataPlaneId(1);

fn settle(sandbox: SandboxId) -> Effect {
    to_worker(ToWorker::Settle { sandbox, data_plane: A })
}

/// A cluster where data plane `a` fell silent while it held everything of a sandbox.
fn silenced(concurrency: u32) -> (World, FunctionId, SandboxId) {
    let (mut world, function) = World::running(&spec("a", concurrency), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 1, concurrency));
    world.tell(Event::Detached { stream: PLANE });
    world.said();
    (world, function, sandbox)
}

fn settled(world: &mut World, sandbox: SandboxId) {
    world.worker(FromWorker::Settled { sandbox, data_plane: A });
}

#[test]
fn slots_of_a_silent_data_plane_come_free_when_the_worker_has_made_sure() {
    let (mut world, function, sandbox) = silenced(1);
    world.attach_plane(OTHER_PLANE, "b");
    world.said();
    world.pass(Settings::default().timeout - Duration::from_millis(1));
    assert!(!world.said().contains(&settle(sandbox)), "an invocation may still run");
    world.pass(Duration::from_millis(1));
    assert_eq!(world.said(), [settle(sandbox)]);
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    assert!(world.granted().is_empty(), "nobody has made sure yet");
    settled(&mut world, sandbox);
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].0, granted[0].1.sandbox), (OTHER_PLANE, sandbox));
}

#[test]
fn a_worker_that_was_away_hears_it_when_it_returns() {
    let (mut world, function, sandbox) = silenced(1);
    world.pass(Settings::default().timeout - Duration::from_secs(1));
    world.tell(Event::Detached { stream: WORKER });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.said(), []);
    let report = SandboxReport {
        sandbox,
        revision: RevisionId { function, number: 1 },
        memory: Bytes::mib(128),
        cpu: MilliCpu(100),
        address: Some(address(sandbox)),
        stopping: false,
    };
    world.attach_worker_with(vec![report]);
    assert!(world.said().contains(&settle(sandbox)));
}

#[test]
fn a_sandbox_with_free_slots_is_settled_when_it_is_called_back() {
    let (mut world, function) = World::running(&spec("a", 0), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.tell(Event::Detached { stream: PLANE });
    world.said();
    world.pass(Settings::default().timeout);
    assert_eq!(world.said(), [settle(sandbox)], "an open grant leaves it free for others");
}

#[test]
fn a_worker_that_is_lost_before_it_has_made_sure_keeps_no_slots() {
    let (mut world, _, sandbox) = silenced(1);
    world.pass(Settings::default().timeout);
    assert_eq!(world.said(), [settle(sandbox)]);
    world.tell(Event::Detached { stream: WORKER });
    world.pass(Duration::from_secs(4));
    assert_eq!(world.control.booked(), [], "neither it nor who held it is heard");
}

#[test]
fn a_sandbox_called_back_later_is_settled_at_once() {
    let (mut world, _, sandbox) = silenced(1);
    world.pass(Settings::default().timeout);
    assert_eq!(world.said(), [settle(sandbox)]);
    // Its worker has not answered when the function is deleted.
    world.ask(Call::Delete { name: "hello".parse().unwrap() });
    assert!(world.said().contains(&settle(sandbox)), "asking again does no harm");
}

#[test]
fn others_leave_a_sandbox_before_its_worker_may_end_it() {
    let (mut world, function) = World::running(&spec("a", 3), &Settings::default());
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 1, 3));
    // Two of three move on.
    world.demand(OTHER_PLANE, demand(function, 2, 0, 0));
    let (share, why) = (Share::Slots(2), WhyReturned::Idle);
    let returned = Returned { sandbox, share, serial: Serial(1), why };
    world.plane(PLANE, FromDataPlane::Returned(returned));
    world.demand(OTHER_PLANE, demand(function, 0, 2, 2));
    world.tell(Event::Detached { stream: PLANE });
    world.said();
    world.pass(Settings::default().timeout);
    let recall = ToDataPlane::RecallSandbox { sandbox, gone: false };
    assert_eq!(world.said(), [to_plane(OTHER_PLANE, recall)]);
    let returned = Returned { why: WhyReturned::Drained, ..returned };
    world.plane(OTHER_PLANE, FromDataPlane::Returned(returned));
    assert_eq!(world.said(), [settle(sandbox)]);
    settled(&mut world, sandbox);
    assert_eq!(world.said(), [stop(sandbox)]);
}

#[test]
fn one_that_returns_before_it_was_barred_gets_other_sandboxes() {
    let (mut world, function, sandbox) = silenced(1);
    world.pass(Settings::default().timeout);
    assert_eq!(world.said(), [settle(sandbox)]);
    let holding = Holding {
        sandbox,
        revision: RevisionId { function, number: 1 },
        share: Share::Slots(1),
        busy: 1,
        draining: false,
        pinned: false,
    };
    world.attach_plane_with(PLANE, "a", vec![holding]);
    assert!(world.said().contains(&recall(sandbox)));
    settled(&mut world, sandbox);
    assert_eq!(world.said(), [], "it says itself what it holds");
    world.give_back(PLANE, sandbox, WhyReturned::Unreachable);
    assert_eq!(world.said(), [stop(sandbox)]);
}

#[test]
fn an_address_that_a_silent_data_plane_may_know_is_not_released() {
    let (mut world, function, sandbox) = silenced(1);
    world.pass(Settings::default().timeout);
    // The worker ends it, since it cannot tell whose a socket is.
    world.gone(sandbox, stopped());
    settled(&mut world, sandbox);
    let said = world.said();
    assert!(!said.contains(&release(sandbox)), "{said:?}");
    assert_eq!(world.control.booked(), [], "it is in nobody's way");
    // A worker that forgot it, as after a reboot, uses the address again.
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    let next = world.started()[0];
    let address = address(sandbox);
    let ready = |sandbox| FromWorker::SandboxReady {
        sandbox,
        address: address.clone(),
        phases: StartPhases::default(),
    };
    world.worker(ready(next));
    assert!(world.granted().is_empty(), "calls for the one before may still come");
    world.gone(next, stopped());
    world.pass(Duration::from_secs(15 * 60));
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    let later = world.started().pop().unwrap();
    world.worker(ready(later));
    assert_eq!(world.granted().len(), 1, "15 minutes are over");
}
