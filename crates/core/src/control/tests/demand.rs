//! From demand to grants, and back.

use super::*;

fn first_grant(function: FunctionId, sandbox: SandboxId) -> Grant {
    Grant {
        sandbox,
        revision: RevisionId { function, number: 1 },
        address: address(sandbox),
        protocol: crate::Protocol::Http1,
        share: Share::Slots(1),
        serial: Serial(1),
        pinned: false,
        start: Some(StartPhases::default()),
    }
}

#[test]
fn a_start_knows_how_long_it_took_to_be_decided() {
    let ms = Duration::from_millis;
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let want = |world: &mut World, calls, waited| {
        let wanted = Demand { arrivals_total: calls, ..demand(function, 1, 0, 0) };
        let frame = FromDataPlane::Demand(wanted);
        world.tell(Event::DataPlaneSaid { stream: PLANE, frame, waited });
    };
    let ready = |world: &mut World, sandbox, phases| {
        world.worker(FromWorker::SandboxReady { sandbox, address: address(sandbox), phases });
        world.granted()[0].1.start.expect("its first grant tells of its start")
    };
    // The frame waited for the machine, which decided at once; then the start took its time.
    want(&mut world, 1, ms(3));
    let sandbox = world.started()[0];
    world.now = world.now.after(ms(40));
    let measured = StartPhases { create: ms(10), init: ms(20), ..StartPhases::default() };
    let start = ready(&mut world, sandbox, measured);
    assert_eq!(start, StartPhases { decide: ms(3), wire: ms(10), ..measured });

    // Decided later than it was asked for: in a crash loop the next start is not due yet.
    let (mut world, _) = World::running(&spec("a", 1), &Settings::default());
    for calls in 1..=3 {
        want(&mut world, calls, ms(0));
        let sandbox = world.started()[0];
        world.gone(sandbox, failure(Fault::Function));
    }
    world.started();
    world.pass(ms(400));
    want(&mut world, 9, ms(2));
    assert_eq!(world.started(), []);
    world.pass(ms(600));
    let sandbox = world.started()[0];
    let start = ready(&mut world, sandbox, StartPhases::default());
    assert_eq!(start, StartPhases { decide: ms(602), ..StartPhases::default() });
}

#[test]
fn a_queued_invocation_starts_a_sandbox_whose_slots_go_to_its_data_plane() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let started = world.started();
    assert_eq!(started.len(), 1);
    assert_eq!(world.said(), []);
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.started(), [], "the same level decides nothing new");

    world.ready(started[0]);
    let grant = Box::new(first_grant(function, started[0]));
    assert_eq!(world.said(), [to_plane(PLANE, ToDataPlane::Grant(grant))]);

    world.demand(PLANE, demand(function, 0, 0, 1));
    world.give_back(PLANE, started[0], WhyReturned::Idle);
    assert_eq!(world.said(), [stop(started[0])]);
    world.gone(started[0], stopped());
    assert_eq!(world.said(), [release(started[0])]);
    assert_eq!(world.describe("hello").sandboxes, []);
}

#[test]
fn without_slots_one_start_is_made_for_each_queued_invocation() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 50, 0, 0));
    assert_eq!(world.started().len(), 50);
    world.demand(PLANE, demand(function, 60, 0, 0));
    assert_eq!(world.started().len(), 10);
}

#[test]
fn max_bounds_the_starts_and_callers_hear_why_they_wait() {
    let settings = Settings { max: 3, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    world.demand(PLANE, demand(function, 50, 0, 0));
    assert_eq!(world.started().len(), 3);
    let status = ToDataPlane::Status { function, status: Status::AtMax };
    assert_eq!(world.said(), [to_plane(PLANE, status)]);
    world.demand(PLANE, demand(function, 49, 0, 0));
    assert_eq!(world.said(), [], "it is told once");
}

#[test]
fn slots_on_their_way_are_not_decided_twice() {
    let (mut world, function) = World::running(&spec("a", 4), &Settings::default());
    world.demand(PLANE, demand(function, 3, 0, 0));
    let started = world.started();
    assert_eq!(started.len(), 1);
    world.ready(started[0]);
    assert_eq!(world.granted().len(), 1);
    // Said before the grant arrived.
    world.demand(PLANE, demand(function, 4, 0, 0));
    assert_eq!((world.started(), world.said()), (vec![], vec![]));
    world.demand(PLANE, demand(function, 1, 4, 4));
    assert_eq!(world.started().len(), 1);
}

#[test]
fn without_a_limit_each_data_plane_with_a_queue_gets_an_open_grant() {
    let (mut world, function) = World::running(&spec("a", 0), &Settings::default());
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(PLANE, demand(function, 30, 0, 0));
    world.demand(OTHER_PLANE, demand(function, 2, 0, 0));
    let started = world.started();
    assert_eq!(started.len(), 1);
    world.ready(started[0]);
    let granted: Vec<_> =
        world.granted().into_iter().map(|(stream, grant)| (stream, grant.share)).collect();
    assert_eq!(granted, [(PLANE, Share::Open), (OTHER_PLANE, Share::Open)]);
}

#[test]
fn idle_slots_of_another_data_plane_are_moved_before_anything_is_started() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 0, 1));
    world.said();

    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    let wanted = ToDataPlane::Recall { function, n: 1, idle_only: true };
    assert_eq!(world.said(), [to_plane(PLANE, wanted)]);
    assert_eq!(world.started(), []);
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].0, granted[0].1.sandbox), (OTHER_PLANE, sandbox));

    // It rests there, although the first one wants it back.
    world.demand(OTHER_PLANE, demand(function, 0, 0, 1));
    world.demand(PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.said(), []);
    assert_eq!(world.started().len(), 1);
}

/// A function at its maximum: `PLANE` holds its only slot, as far as is known busy, and
/// `OTHER_PLANE` queues.
fn contended() -> (World, FunctionId, SandboxId) {
    let settings = Settings { max: 1, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 1, 1));
    world.said();
    world.demand(OTHER_PLANE, demand(function, 2, 0, 0));
    let sought = ToDataPlane::Recall { function, n: 1, idle_only: true };
    assert!(world.said().contains(&to_plane(PLANE, sought)), "it may be idle by now");
    (world, function, sandbox)
}

#[test]
fn a_slot_that_became_idle_a_moment_ago_moves_to_who_waits() {
    let (mut world, _, sandbox) = contended();
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    assert_eq!(world.granted()[0].0, OTHER_PLANE);
}

#[test]
fn who_kept_a_slot_is_asked_again_when_it_has_an_idle_one() {
    let (mut world, function, sandbox) = contended();
    world.plane(PLANE, FromDataPlane::Kept { function, n: 1 });
    world.demand(PLANE, demand(function, 0, 1, 1));
    world.demand(OTHER_PLANE, demand(function, 3, 0, 0));
    assert_eq!(world.said(), [], "it tells by itself");
    world.demand(PLANE, demand(function, 0, 0, 1));
    let recall = ToDataPlane::Recall { function, n: 1, idle_only: true };
    assert_eq!(world.said(), [to_plane(PLANE, recall)]);
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    assert_eq!(world.granted()[0].0, OTHER_PLANE);
}

#[test]
fn slots_that_were_never_booked_answer_a_recall_too() {
    let (mut world, function, _) = contended();
    world.plane(PLANE, FromDataPlane::Kept { function, n: 1 });
    world.tell(Event::Detached { stream: PLANE });
    // It claims one more that no worker has reported.
    let strange = SandboxId::new(Epoch(6), 1);
    let holding = Holding {
        sandbox: strange,
        revision: RevisionId { function, number: 1 },
        share: Share::Slots(1),
        busy: 0,
        draining: false,
        pinned: false,
    };
    world.tell(Event::Detached { stream: WORKER });
    world.attach_plane_with(PLANE, "a", vec![holding]);
    world.demand(PLANE, demand(function, 0, 0, 1));
    world.give_back(PLANE, strange, WhyReturned::Idle);
    let function = &world.control.functions[&function];
    let levels = function.active.as_ref().unwrap().levels.iter();
    assert!(levels.into_iter().all(|(_, level)| level.recalling == 0));
}

#[test]
fn what_was_kept_is_started_instead() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 0, 1));
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.started(), []);
    world.plane(PLANE, FromDataPlane::Kept { function, n: 1 });
    assert_eq!(world.started().len(), 1);
}

#[test]
fn min_is_kept_from_the_moment_of_deployment_and_pinned() {
    let settings = Settings { min: 2, ..Settings::default() };
    let (mut world, _) = World::running(&spec("a", 1), &settings);
    let started = world.started();
    assert_eq!(started.len(), 2);
    world.ready(started[0]);
    world.ready(started[1]);
    let granted = world.granted();
    assert!(granted.iter().all(|(_, grant)| grant.pinned), "{granted:?}");
    assert_eq!(granted.len(), 2);

    world.gone(started[0], failure(Fault::Function));
    let gone = ToDataPlane::RecallSandbox { sandbox: started[0], gone: true };
    assert_eq!(world.said(), [to_plane(PLANE, gone)]);
    assert_eq!(world.started().len(), 1, "it is replaced");
    world.give_back(PLANE, started[0], WhyReturned::Unreachable);
    assert_eq!(world.said(), [release(started[0])]);
}

#[test]
fn a_sandbox_of_min_that_comes_back_is_granted_again_and_pinned() {
    let settings = Settings { min: 1, ..Settings::default() };
    let (mut world, _) = World::running(&spec("a", 1), &settings);
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.granted();
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert!(granted[0].1.pinned);
    assert_eq!(world.said(), []);
}

#[test]
fn when_min_is_lowered_what_was_pinned_is_called_back() {
    let settings = Settings { min: 2, ..Settings::default() };
    let (mut world, _) = World::running(&spec("a", 1), &settings);
    let started = world.started();
    started.iter().for_each(|sandbox| world.ready(*sandbox));
    world.granted();
    let fewer = Settings { min: 1, ..Settings::default() };
    world.deploy("hello", &spec("a", 1), &fewer, true);
    let recalled = |effect: &Effect| *effect == recall(started[1]);
    assert_eq!(world.said().into_iter().filter(recalled).count(), 1);
    world.give_back(PLANE, started[1], WhyReturned::Drained);
    assert_eq!(world.said(), [stop(started[1])]);
}

#[test]
fn a_sandbox_with_an_abandoned_invocation_is_recycled() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 2, 0, 0));
    let started = world.started();
    world.ready(started[0]);
    world.said();
    world.give_back(PLANE, started[0], WhyReturned::Closing);
    assert_eq!(world.said(), [stop(started[0])]);
}

#[test]
fn starts_without_a_worker_are_withdrawn_with_their_demand() {
    let mut world = World::new();
    world.attach_plane(PLANE, "a");
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    world.demand(PLANE, demand(function, 5, 0, 0));
    assert_eq!(world.describe("hello").sandboxes.len(), 5);
    world.demand(PLANE, demand(function, 2, 0, 0));
    assert_eq!(world.describe("hello").sandboxes.len(), 2);
    world.demand(PLANE, demand(function, 0, 0, 0));
    assert_eq!(world.describe("hello").sandboxes, []);
}

#[test]
fn three_failed_starts_in_a_row_are_a_crash_loop_with_one_probe_per_back_off() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    for _ in 0..2 {
        let sandbox = world.started()[0];
        world.gone(sandbox, failure(Fault::Function));
    }
    world.said();
    let sandbox = world.started()[0];
    world.gone(sandbox, failure(Fault::Function));
    let status = Status::CrashLoop(failure(Fault::Function));
    let told = ToDataPlane::Status { function, status };
    assert_eq!(world.said(), [to_plane(PLANE, told), release(sandbox)]);
    assert_eq!(world.started(), []);

    // Callers are refused at the gate: the arrivals are what shows that there is demand.
    world.demand(PLANE, demand(function, 0, 0, 0));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.started(), [], "nobody called");
    world.demand(PLANE, Demand { arrivals_total: 9, ..demand(function, 0, 0, 0) });
    let probe = world.started();
    assert_eq!(probe.len(), 1);
    world.gone(probe[0], failure(Fault::Function));
    world.demand(PLANE, Demand { arrivals_total: 10, ..demand(function, 0, 0, 0) });
    assert_eq!(world.started(), [], "the next one waits for twice as long");
    world.pass(Duration::from_millis(2100));
    let probe = world.started();
    assert_eq!(probe.len(), 1);
    world.said();
    world.ready(probe[0]);
    let status = ToDataPlane::Status { function, status: Status::Flowing };
    world.granted();
    assert_eq!(world.said(), [to_plane(PLANE, status)]);
}

#[test]
fn an_idle_sandbox_of_another_function_makes_room() {
    let mut world = World::new();
    world.room = 2;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let (hog, _) = world.deploy("hog", &spec("a", 1), &Settings::default(), false);
    let (late, _) = world.deploy("late", &spec("b", 1), &Settings::default(), false);
    world.demand(PLANE, demand(hog, 2, 0, 0));
    let started = world.started();
    started.iter().for_each(|sandbox| world.ready(*sandbox));
    world.demand(PLANE, demand(hog, 0, 0, 2));
    world.said();

    world.demand(PLANE, demand(late, 1, 0, 0));
    assert_eq!(world.started(), []);
    let said = world.said();
    let wanted = to_plane(PLANE, ToDataPlane::Recall { function: hog, n: 1, idle_only: true });
    assert!(said.contains(&wanted), "{said:?}");
    world.give_back(PLANE, started[0], WhyReturned::Idle);
    assert!(world.said().contains(&stop(started[0])));
    world.gone(started[0], stopped());
    let begun = std::mem::take(&mut world.starts);
    assert_eq!(begun.len(), 1);
    assert_eq!(begun[0].revision.function, late);
}

#[test]
fn a_flooding_function_gives_up_one_sandbox_for_a_function_that_has_none() {
    let mut world = World::new();
    world.room = 3;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let (flood, _) = world.deploy("flood", &spec("a", 1), &Settings::default(), false);
    let (single, _) = world.deploy("single", &spec("b", 1), &Settings::default(), false);
    world.demand(PLANE, demand(flood, 9, 0, 0));
    let started = world.started();
    assert_eq!(started.len(), 3);
    started.iter().for_each(|sandbox| world.ready(*sandbox));
    world.demand(PLANE, demand(flood, 6, 3, 3));
    world.said();

    world.demand(PLANE, demand(single, 1, 0, 0));
    let recalled = |world: &mut World| {
        let said = world.said();
        let of = |sandbox: &&SandboxId| said.contains(&recall(**sandbox));
        started.iter().filter(of).copied().collect::<Vec<_>>()
    };
    let leaving = recalled(&mut world);
    assert_eq!(leaving.len(), 1, "one is enough");
    world.demand(PLANE, demand(flood, 8, 3, 3));
    world.demand(PLANE, demand(single, 1, 0, 0));
    assert_eq!(recalled(&mut world), [], "and stays enough");
    world.give_back(PLANE, leaving[0], WhyReturned::Drained);
    assert!(world.said().contains(&stop(leaving[0])));
    world.gone(leaving[0], stopped());
    let begun: Vec<_> = std::mem::take(&mut world.starts);
    assert_eq!(begun.iter().map(|start| start.revision.function).collect::<Vec<_>>(), [single]);
    let decisions = world.describe("flood").decisions;
    assert!(decisions.iter().any(|decision| decision.rule == "fairness"), "{decisions:?}");
}

#[test]
fn a_large_function_is_lent_as_many_small_sandboxes_as_it_takes() {
    let mut world = World::new();
    world.room = 4;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let (small, _) = world.deploy("small", &spec("a", 1), &Settings::default(), false);
    let mut wide = spec("b", 1);
    wide.resources.memory = Bytes::mib(3 * 128);
    let (large, _) = world.deploy("large", &wide, &Settings::default(), false);
    world.demand(PLANE, demand(small, 4, 0, 0));
    for sandbox in world.started() {
        world.ready(sandbox);
    }
    world.demand(PLANE, demand(small, 0, 0, 4));
    world.said();
    world.demand(PLANE, demand(large, 1, 0, 0));
    let wanted = to_plane(PLANE, ToDataPlane::Recall { function: small, n: 3, idle_only: true });
    let said = world.said();
    assert!(said.contains(&wanted), "{said:?}");
}

#[test]
fn a_function_with_one_sandbox_keeps_it() {
    let mut world = World::new();
    world.room = 1;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let (first, _) = world.deploy("first", &spec("a", 1), &Settings::default(), false);
    let (second, _) = world.deploy("second", &spec("b", 1), &Settings::default(), false);
    world.demand(PLANE, demand(first, 3, 0, 0));
    let started = world.started();
    world.ready(started[0]);
    world.demand(PLANE, demand(first, 2, 1, 1));
    world.said();
    world.demand(PLANE, demand(second, 1, 0, 0));
    let said = world.said();
    assert!(!said.contains(&recall(started[0])), "{said:?}");
}

#[test]
fn the_windows_bring_many_down_slowly_and_never_in_the_first_minute() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 8, 0, 0));
    let started = world.started();
    started.iter().for_each(|sandbox| world.ready(*sandbox));
    world.demand(PLANE, Demand { elapsed: 2_000_000, ..demand(function, 0, 0, 8) });
    world.said();
    world.pass(Duration::from_secs(50));
    assert_eq!(world.said(), []);
    world.pass(Duration::from_secs(90));
    let recalled: Vec<Effect> = world.said();
    let wanted = |effect: &Effect| {
        matches!(
            effect,
            Effect::ToDataPlane { frame: ToDataPlane::Recall { idle_only: true, .. }, .. }
        )
    };
    assert!(!recalled.is_empty() && recalled.iter().all(wanted), "{recalled:?}");
    // What comes back is told as what it is.
    world.give_back(PLANE, started[0], WhyReturned::Idle);
    assert!(world.said().contains(&stop(started[0])));
    let rule = world.describe("hello").decisions[0].rule.clone();
    assert_eq!(rule, "stable window");
}

#[test]
fn a_function_that_is_never_called_has_no_deadline_and_no_state() {
    let mut world = World::new();
    for n in 0..1000 {
        world.deploy(&format!("f{n}"), &spec("a", 1), &Settings::default(), false);
    }
    world.pass(Duration::from_secs(20));
    assert_eq!(world.control.deadline(), None);
    assert!(world.control.functions.values().all(|function| function.active.is_none()));
    assert!(world.control.cluster.busiest.is_empty());
}

#[test]
fn what_was_learned_is_forgotten_after_a_long_silence() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(PLANE, demand(function, 0, 0, 1));
    world.give_back(PLANE, sandbox, WhyReturned::Idle);
    world.gone(sandbox, stopped());
    assert!(world.control.functions[&function].active.is_some());
    world.pass(Duration::from_secs(16 * 60));
    assert!(world.control.functions[&function].active.is_none());
    assert_eq!(world.describe("hello").sandboxes, []);
}

/// A function at its maximum of two, with a sandbox at each of two data planes, both busy; calls
/// take 20 ms.
fn both_busy() -> (World, FunctionId, [SandboxId; 2]) {
    let settings = Settings { max: 2, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    world.attach_plane(OTHER_PLANE, "b");
    world.resolve(PLANE, "hello");
    let version = world.said().into_iter().find_map(|effect| match effect {
        Effect::ToDataPlane { frame: ToDataPlane::Resolved { version, .. }, .. } => Some(version),
        _ => None,
    });
    let version = version.unwrap();
    // The deploy is over.
    world.plane(PLANE, FromDataPlane::Applied { function, version });
    world.demand(PLANE, demand(function, 1, 0, 0));
    let one = world.started()[0];
    world.ready(one);
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    let other = world.started()[0];
    world.ready(other);
    let served = Demand {
        busy_integral: 20_000_000,
        finished_total: 1,
        elapsed: 2_000_000,
        ..demand(function, 0, 1, 1)
    };
    world.demand(PLANE, served);
    world.demand(OTHER_PLANE, served);
    world.granted();
    world.said();
    (world, function, [one, other])
}

/// The first one who waits asks for what may be idle by now, of which there is nothing.
fn nothing_is_idle(world: &mut World, function: FunctionId) {
    let sought = ToDataPlane::Recall { function, n: 1, idle_only: true };
    assert_eq!(world.said(), [to_plane(OTHER_PLANE, sought)]);
    world.plane(OTHER_PLANE, FromDataPlane::Kept { function, n: 1 });
}

fn waiting(function: FunctionId, queued: u32, oldest_ms: u64) -> Demand {
    let oldest_wait = Duration::from_millis(oldest_ms);
    Demand { oldest_wait, elapsed: 3_000_000, ..demand(function, queued, 1, 1) }
}

#[test]
fn at_its_maximum_the_next_slot_is_for_whoever_has_waited_longest() {
    let (mut world, function, [_, other]) = both_busy();
    world.demand(PLANE, waiting(function, 1, 5));
    nothing_is_idle(&mut world, function);
    let wanted = ToDataPlane::Recall { function, n: 1, idle_only: false };
    assert_eq!(world.said(), [to_plane(OTHER_PLANE, wanted)]);
    // Those who came later get nothing for themselves, and nothing is asked twice.
    world.demand(OTHER_PLANE, waiting(function, 1, 1));
    world.demand(PLANE, waiting(function, 1, 6));
    assert_eq!(world.said(), []);
    world.give_back(OTHER_PLANE, other, WhyReturned::Idle);
    let granted = world.granted();
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].0, granted[0].1.sandbox), (PLANE, other));
}

#[test]
fn a_shared_slot_that_nobody_waits_for_any_more_is_kept_for_the_next_one() {
    let (mut world, function, [_, other]) = both_busy();
    world.demand(PLANE, waiting(function, 1, 5));
    nothing_is_idle(&mut world, function);
    world.demand(PLANE, waiting(function, 0, 0));
    world.said();
    world.give_back(OTHER_PLANE, other, WhyReturned::Idle);
    assert_eq!((world.granted(), world.said()), (vec![], vec![]), "it is not stopped");
    let waits = Demand { held: 0, busy: 0, ..waiting(function, 1, 0) };
    world.demand(OTHER_PLANE, waits);
    let granted = world.granted();
    assert_eq!((granted.len(), granted[0].0), (1, OTHER_PLANE));
    // Idle for its keep-alive there, it ends as ever.
    world.demand(OTHER_PLANE, Demand { busy: 0, ..waiting(function, 0, 0) });
    world.said();
    world.give_back(OTHER_PLANE, other, WhyReturned::Idle);
    assert!(world.said().contains(&stop(other)));
}

#[test]
fn slots_of_calls_shorter_than_a_move_are_not_shared() {
    let (mut world, function, _) = both_busy();
    for n in 2..100 {
        let served = Demand {
            busy_integral: 20_000_000 + n * 100_000,
            finished_total: n,
            elapsed: 2_000_000 + n,
            ..demand(function, 0, 1, 1)
        };
        world.demand(PLANE, served);
    }
    world.demand(PLANE, waiting(function, 1, 5));
    let busy = |effect: &Effect| {
        matches!(
            effect,
            Effect::ToDataPlane { frame: ToDataPlane::Recall { idle_only: false, .. }, .. }
        )
    };
    assert!(!world.said().iter().any(busy));
}

#[test]
fn what_a_data_plane_expects_is_started_for_it_and_withdrawn() {
    let settings = Settings { keep_alive: crate::KeepAlive::Auto, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    let expected = |n| Demand { expected: n, ..demand(function, 0, 0, 0) };
    world.demand(PLANE, expected(2));
    let started = world.started();
    assert_eq!(started.len(), 2);
    world.demand(PLANE, expected(2));
    assert_eq!(world.started(), [], "the same level decides nothing new");
    world.ready(started[0]);
    let granted = world.granted();
    assert_eq!((granted[0].0, granted[0].1.sandbox, granted.len()), (PLANE, started[0], 1));
    let decision = world.describe("hello").decisions.remove(0);
    assert_eq!(decision.rule, "expected");
    // The other one is not expected any more, but is under way: it comes.
    world.demand(PLANE, Demand { held: 1, idle: 1, ..expected(1) });
    world.ready(started[1]);
    assert_eq!(world.granted().len(), 1);
    assert_eq!(world.started(), []);
}

#[test]
fn nothing_is_started_ahead_in_a_crash_loop() {
    let settings = Settings { keep_alive: crate::KeepAlive::Auto, ..Settings::default() };
    let (mut world, function) = World::running(&spec("a", 1), &settings);
    let expected = Demand { expected: 1, ..demand(function, 0, 0, 0) };
    for _ in 0..3 {
        world.demand(PLANE, expected);
        let started = world.started();
        assert_eq!(started.len(), 1);
        world.gone(started[0], failure(Fault::Function));
    }
    world.demand(PLANE, expected);
    world.pass(Duration::from_secs(300));
    assert_eq!(world.started(), []);
}
