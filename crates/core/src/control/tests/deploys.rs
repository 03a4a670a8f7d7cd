//! Revisions and their gate.

use super::*;
use crate::RevisionState;

fn name() -> FunctionName {
    "hello".parse().unwrap()
}

fn await_revision(world: &mut World, function: FunctionId, number: u32) -> RequestId {
    world.ask(Call::AwaitRevision { revision: RevisionId { function, number } })
}

fn settled(function: FunctionId, number: u32, state: RevisionState) -> Result<Answer, Refusal> {
    let revision = RevisionId { function, number };
    Ok(Answer::Settled { revision, state, failure: None })
}

fn resolved(version: u64, world: &World, function: FunctionId) -> Effect {
    let view: Arc<FunctionView> = world.control.functions[&function].view();
    to_plane(PLANE, ToDataPlane::Resolved { name: name(), version, function: Some(view) })
}

/// The catalogue's version after so many writes.
fn version(writes: u64) -> u64 {
    (EPOCH.0 << 40) + writes
}

#[test]
fn a_deploy_is_acknowledged_when_durable() {
    let mut world = World::new();
    world.store_answers = false;
    let request = world.ask(deploy("hello", &spec("a", 1), &Settings::default(), false));
    let unknown = world.answer(Call::Describe { name: name() });
    assert_eq!(unknown, Err(Refusal::NotFound { name: name() }));
    assert_eq!((world.replies.len(), world.writes.len()), (0, 1));
    world.answer_writes(None);
    let function = FunctionId::new(EPOCH, 1);
    let answer = Answer::Deployed {
        name: name(),
        revision: RevisionId { function, number: 1 },
        state: RevisionState::Live,
        changed: true,
    };
    assert_eq!(world.replies[&request], Ok(answer));
}

#[test]
fn the_same_content_changes_nothing_and_settings_alone_make_no_revision() {
    let mut world = World::new();
    world.attach_plane(PLANE, "a");
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    let writes = world.revision;
    let again = world.answer(deploy("hello", &spec("a", 1), &Settings::default(), true));
    assert!(matches!(again, Ok(Answer::Deployed { changed: false, .. })), "{again:?}");
    assert_eq!(world.revision, writes);

    world.said();
    let settings = Settings { max: 7, ..Settings::default() };
    let (same, number) = world.deploy("hello", &spec("a", 1), &settings, true);
    assert_eq!((same, number), (function, 1));
    let version = version(world.revision);
    assert_eq!(world.said(), [resolved(version, &world, function)]);
}

#[test]
fn a_write_that_the_store_refuses_changes_nothing() {
    let mut world = World::new();
    world.store_answers = false;
    let request = world.ask(deploy("hello", &spec("a", 1), &Settings::default(), false));
    world.answer_writes(Some(Outcome::Refused));
    assert_eq!(world.replies[&request], Err(Refusal::StoreUnavailable));
    assert!(world.control.names.is_empty() && world.control.functions.is_empty());
}

#[test]
fn a_write_in_doubt_is_written_again_until_it_is_known() {
    let mut world = World::new();
    world.store_answers = false;
    let request = world.ask(deploy("hello", &spec("a", 1), &Settings::default(), false));
    world.answer_writes(Some(Outcome::Unknown));
    assert_eq!(world.replies.remove(&request), Some(Err(Refusal::InDoubt)));
    assert_eq!(world.writes.len(), 0);
    let meanwhile = world.answer(deploy("hello", &spec("b", 1), &Settings::default(), false));
    assert_eq!(meanwhile, Err(Refusal::StoreUnavailable));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.writes.len(), 1);
    world.answer_writes(None);
    assert_eq!(world.describe("hello").summary.newest, (1, RevisionState::Live));
    let again = world.answer(deploy("hello", &spec("a", 1), &Settings::default(), false));
    assert!(matches!(again, Ok(Answer::Deployed { changed: false, .. })), "{again:?}");
}

#[test]
fn changes_of_one_function_wait_for_the_write_before_them() {
    let mut world = World::new();
    world.store_answers = false;
    world.ask(deploy("hello", &spec("a", 1), &Settings::default(), false));
    world.ask(deploy("hello", &spec("b", 1), &Settings::default(), false));
    let delete = world.ask(Call::Delete { name: name() });
    let again = world.ask(deploy("hello", &spec("c", 1), &Settings::default(), false));
    assert_eq!(world.writes.len(), 1);
    for _ in 0..4 {
        world.answer_writes(None);
    }
    let function = FunctionId::new(EPOCH, 1);
    assert_eq!(world.replies[&delete], Ok(Answer::Deleted { function }));
    let revision = RevisionId { function: FunctionId::new(EPOCH, 2), number: 1 };
    let made = &world.replies[&again];
    assert!(matches!(made, Ok(Answer::Deployed { revision: r, .. }) if *r == revision), "{made:?}");
    assert_eq!(world.control.functions.len(), 1);
}

#[test]
fn a_deploy_goes_live_when_its_first_sandbox_is_ready() {
    let mut world = World::new();
    world.attach_worker();
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    let waiter = await_revision(&mut world, function, 1);
    assert_eq!(world.describe("hello").summary.newest, (1, RevisionState::Checking));
    let started = world.started();
    assert_eq!(started.len(), 1);
    world.ready(started[0]);
    assert_eq!(world.replies[&waiter], settled(function, 1, RevisionState::Live));
    // Nobody knows it yet: its sandbox waits for its keep-alive, then goes.
    world.said();
    world.pass(Duration::from_secs(59));
    assert_eq!(world.said(), []);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.said(), [stop(started[0])]);
}

#[test]
fn a_failing_check_fails_the_deploy_and_the_old_revision_stays_live() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let (_, number) = world.deploy("hello", &spec("b", 1), &Settings::default(), true);
    let waiter = await_revision(&mut world, function, number);
    let sandbox = world.started()[0];
    world.gone(sandbox, failure(Fault::Function));
    let answer = Answer::Settled {
        revision: RevisionId { function, number },
        state: RevisionState::Failed,
        failure: Some(failure(Fault::Function)),
    };
    assert_eq!(world.replies[&waiter], Ok(answer));
    let described = world.describe("hello");
    assert_eq!(described.summary.targets[0].revision, 1);
    assert_eq!(described.revisions[1].failure, Some(failure(Fault::Function)));
    assert_eq!(world.started(), []);
    // The same content is tried anew, as a new revision.
    assert_eq!(world.deploy("hello", &spec("b", 1), &Settings::default(), true).1, 3);
}

#[test]
fn what_is_live_keeps_its_settings_until_the_new_revision_is() {
    let max = |world: &mut World| world.describe("hello").settings.max;
    let seven = Settings { max: 7, ..Settings::default() };
    for fails in [true, false] {
        let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
        let before = max(&mut world);
        let (_, number) = world.deploy("hello", &spec("b", 1), &seven, true);
        assert_eq!(max(&mut world), before, "it is being checked");
        // Told again it is the same deploy.
        let again = world.answer(deploy("hello", &spec("b", 1), &seven, true));
        assert!(matches!(again, Ok(Answer::Deployed { changed: false, .. })), "{again:?}");
        let waiter = await_revision(&mut world, function, number);
        let sandbox = world.started()[0];
        if fails {
            world.gone(sandbox, failure(Fault::Function));
            assert_eq!(max(&mut world), before);
        } else {
            world.ready(sandbox);
            world.pass(Duration::from_secs(3));
            assert_eq!(max(&mut world), 7);
        }
        assert!(world.replies.contains_key(&waiter));
    }
    // Going back to what is live ends the deploy, and its settings with it.
    let (mut world, _) = World::running(&spec("a", 1), &Settings::default());
    let before = max(&mut world);
    world.deploy("hello", &spec("b", 1), &seven, true);
    world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    world.pass(Duration::from_secs(3));
    assert_eq!(max(&mut world), before);
}

#[test]
fn failed_revisions_go_before_those_that_one_may_want_back() {
    let (mut world, _) = World::running(&spec("a", 1), &Settings::default());
    for n in 0..12 {
        world.deploy("hello", &spec(&format!("bad {n}"), 1), &Settings::default(), true);
        let sandbox = *world.started().last().unwrap();
        world.gone(sandbox, failure(Fault::Function));
    }
    world.deploy("hello", &spec("b", 1), &Settings::default(), false);
    for n in 0..12 {
        world.deploy("hello", &spec(&format!("bad {n}"), 1), &Settings::default(), true);
        let sandbox = *world.started().last().unwrap();
        world.gone(sandbox, failure(Fault::Function));
    }
    let kept = world.describe("hello").revisions;
    assert_eq!(kept.len(), 10);
    assert!(kept.iter().any(|revision| revision.number == 1), "the one to go back to: {kept:?}");
}

#[test]
fn a_worker_is_not_held_against_a_revision_until_three_starts_failed() {
    let mut world = World::new();
    world.attach_worker();
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    let waiter = await_revision(&mut world, function, 1);
    for _ in 0..2 {
        let sandbox = world.started()[0];
        world.gone(sandbox, failure(Fault::Worker));
    }
    let sandbox = world.started()[0];
    world.ready(sandbox);
    assert_eq!(world.replies[&waiter], settled(function, 1, RevisionState::Live));
}

#[test]
fn a_deploy_that_every_worker_refuses_tells_the_last_reason() {
    let mut world = World::new();
    world.attach_worker();
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), true);
    let waiter = await_revision(&mut world, function, 1);
    let until = world.now + Duration::from_secs(250);
    while world.now < until && !world.replies.contains_key(&waiter) {
        for sandbox in world.started() {
            let message = "every port is in use".to_owned();
            world.worker(FromWorker::Refused { sandbox, message });
        }
        world.pass(Duration::from_millis(7));
    }
    let reply = format!("{:?}", world.replies[&waiter]);
    assert!(reply.contains("the last one asked said: every port is in use"), "{reply}");
}

/// A live revision with three sandboxes, and a deploy whose first one is ready.
fn building(room: u64) -> (World, FunctionId, Vec<SandboxId>) {
    let mut world = World::new();
    world.room = room;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let settings = Settings { min: 3, ..Settings::default() };
    let (function, _) = world.deploy("hello", &spec("a", 1), &settings, false);
    world.resolve(PLANE, "hello");
    world.started().into_iter().for_each(|sandbox| world.ready(sandbox));
    world.deploy("hello", &spec("b", 1), &settings, true);
    let mut new = world.started();
    assert_eq!(new.len(), 1);
    world.ready(new[0]);
    new.append(&mut world.started());
    (world, function, new)
}

#[test]
fn without_a_ready_sandbox_nothing_is_switched_to_whatever_room_there_is() {
    let (mut world, _, new) = building(7);
    assert_eq!(new.len(), 3, "as many as the live revision has");
    // Others wait for room.
    let settings = Settings { min: 3, ..Settings::default() };
    world.deploy("other", &spec("o", 1), &settings, false);
    // The one that was checked ends, and one of theirs takes its place.
    world.gone(new[0], failure(Fault::Function));
    world.pass(Duration::from_secs(1));
    let revisions = world.describe("hello").revisions;
    assert_eq!(revisions[0].state, RevisionState::Live, "{revisions:?}");
}

#[test]
fn a_revision_whose_sandboxes_do_not_stay_is_given_up_after_three() {
    let (mut world, function, new) = building(64);
    let waiter = await_revision(&mut world, function, 2);
    let mut alive = new;
    for _ in 0..3 {
        let sandbox = alive.remove(0);
        world.ready(sandbox);
        world.gone(sandbox, failure(Fault::Function));
        alive.append(&mut world.started());
    }
    let reply = format!("{:?}", world.replies[&waiter]);
    assert!(reply.contains("Failed") && reply.contains("boom"), "{reply}");
    assert_eq!(world.describe("hello").revisions[0].state, RevisionState::Live);
}

#[test]
fn a_start_that_is_refused_again_and_again_is_told_once() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    for _ in 0..50 {
        for sandbox in world.started() {
            let message = "every port is in use".to_owned();
            world.worker(FromWorker::Refused { sandbox, message });
        }
        world.pass(Duration::from_millis(100));
    }
    let described = world.describe("hello");
    assert_eq!(described.decisions.len(), 1, "{:?}", described.decisions);
    assert_eq!(described.failures.len(), 1, "{:?}", described.failures);
    let told = format!("{:?}", described.failures[0]);
    assert!(told.contains("every port is in use"), "{told}");
}

#[test]
fn the_switch_is_told_with_the_new_capacity_before_the_old_is_called_back() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.pass(Duration::from_secs(3));
    world.demand(PLANE, demand(function, 2, 0, 0));
    let old = world.started();
    old.iter().for_each(|sandbox| world.ready(*sandbox));
    world.demand(PLANE, demand(function, 0, 2, 2));
    world.granted();
    world.said();

    world.deploy("hello", &spec("b", 1), &Settings::default(), true);
    let waiter = await_revision(&mut world, function, 2);
    let mut new = world.started();
    assert_eq!(new.len(), 1, "one sandbox is checked first");
    world.ready(new[0]);
    new.append(&mut world.started());
    assert_eq!(new.len(), 2, "then capacity is built up");
    assert_eq!(world.said(), [], "nothing of it is granted before the switch");
    world.store_answers = false;
    world.ready(new[1]);
    assert_eq!((world.said(), world.writes.len()), (vec![], 1));
    world.answer_writes(None);

    let switched = version(world.revision);
    let said = world.said();
    assert_eq!(said[0], resolved(switched, &world, function));
    let grant = |effect: &Effect| match effect {
        Effect::ToDataPlane { frame: ToDataPlane::Grant(grant), .. } => grant.sandbox,
        other => panic!("no grant: {other:?}"),
    };
    assert_eq!([grant(&said[1]), grant(&said[2])], [new[0], new[1]]);
    assert_eq!(said[3..], [recall(old[0]), recall(old[1])]);

    assert!(!world.replies.contains_key(&waiter));
    world.plane(PLANE, FromDataPlane::Applied { function, version: switched });
    assert_eq!(world.replies[&waiter], settled(function, 2, RevisionState::Live));
    assert_eq!(world.describe("hello").revisions[0].state, RevisionState::Retiring);
    for sandbox in old {
        world.give_back(PLANE, sandbox, WhyReturned::Drained);
        assert_eq!(world.said(), [stop(sandbox)]);
        world.gone(sandbox, stopped());
        world.said();
    }
    assert_eq!(world.describe("hello").revisions[0].state, RevisionState::Retired);
}

#[test]
fn a_data_plane_that_does_not_apply_the_switch_is_waited_for_two_seconds() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    let waiter = await_revision(&mut world, function, 1);
    world.pass(Duration::from_millis(1900));
    assert!(!world.replies.contains_key(&waiter));
    world.pass(Duration::from_millis(200));
    assert_eq!(world.replies[&waiter], settled(function, 1, RevisionState::Live));
}

#[test]
fn a_newer_deploy_overtakes_one_that_is_not_finished() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.deploy("hello", &spec("b", 1), &Settings::default(), true);
    let waiter = await_revision(&mut world, function, 2);
    let overtaken = world.started();
    world.deploy("hello", &spec("c", 1), &Settings::default(), true);
    assert_eq!(world.replies[&waiter], settled(function, 2, RevisionState::Retired));
    assert!(world.said().contains(&stop(overtaken[0])));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    assert_eq!(world.describe("hello").summary.targets[0].revision, 3);
}

#[test]
fn a_drain_that_takes_too_long_ends_with_a_stop() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let old = world.started()[0];
    world.ready(old);
    world.demand(PLANE, demand(function, 0, 1, 1));
    world.deploy("hello", &spec("b", 1), &Settings::default(), false);
    assert!(world.said().contains(&recall(old)));
    world.pass(Duration::from_secs(650));
    assert!(!world.said().contains(&stop(old)));
    world.pass(Duration::from_secs(20));
    assert!(world.said().contains(&stop(old)));
}

#[test]
fn a_rollback_makes_the_revision_before_live_again() {
    let mut world = World::new();
    world.attach_worker();
    let (function, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    let nothing = world.answer(Call::Rollback { name: name(), to: None });
    assert_eq!(nothing, Err(Refusal::NoRevision { name: name(), number: 0 }));
    world.deploy("hello", &spec("b", 1), &Settings::default(), false);
    let unknown = world.answer(Call::Rollback { name: name(), to: Some(9) });
    assert_eq!(unknown, Err(Refusal::NoRevision { name: name(), number: 9 }));

    let back = world.answer(Call::Rollback { name: name(), to: None });
    let number = match back {
        Ok(Answer::Deployed { revision, changed: true, .. }) => revision.number,
        other => panic!("{other:?}"),
    };
    assert_eq!(number, 1);
    let waiter = await_revision(&mut world, function, 1);
    let sandbox = world.started()[0];
    world.ready(sandbox);
    assert_eq!(world.replies[&waiter], settled(function, 1, RevisionState::Live));
    let again = world.answer(Call::Rollback { name: name(), to: Some(1) });
    assert!(matches!(again, Ok(Answer::Deployed { changed: false, .. })), "{again:?}");
}

#[test]
fn ten_revisions_are_kept_and_artifacts_that_none_needs_are_discarded() {
    let mut world = World::new();
    let with_artifact = |n: u8| Spec { artifact: Some(Digest([n; 32])), ..spec("a", 1) };
    for n in 1..=11 {
        world.deploy("hello", &with_artifact(n), &Settings::default(), false);
    }
    let numbers: Vec<u32> = world.describe("hello").revisions.iter().map(|r| r.number).collect();
    assert_eq!(numbers, (2..=11).collect::<Vec<_>>());
    assert_eq!(world.said(), [Effect::DiscardArtifacts { digests: vec![Digest([1; 32])] }]);

    world.deploy("other", &with_artifact(11), &Settings::default(), false);
    world.answer(Call::Delete { name: name() }).unwrap();
    let digests = (2..=10).map(|n| Digest([n; 32])).collect();
    assert_eq!(world.said(), [Effect::DiscardArtifacts { digests }]);
}

#[test]
fn a_deleted_function_drains_while_its_name_is_free() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.said();
    world.answer(Call::Delete { name: name() }).unwrap();
    let version = version(world.revision);
    let unknown = ToDataPlane::Resolved { name: name(), version, function: None };
    assert_eq!(world.said(), [to_plane(PLANE, unknown), recall(sandbox)]);
    let described = world.answer(Call::Describe { name: name() });
    assert_eq!(described, Err(Refusal::NotFound { name: name() }));
    let (next, _) = world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    assert_ne!(next, function);
    world.said();
    world.give_back(PLANE, sandbox, WhyReturned::Drained);
    assert_eq!(world.said(), [stop(sandbox)]);
    world.gone(sandbox, stopped());
    assert_eq!(world.said(), [release(sandbox)]);
    assert!(!world.control.functions.contains_key(&function));
}

#[test]
fn what_can_never_run_is_refused_before_anything_is_written() {
    let mut world = World::new();
    world.attach_worker();
    let writes = world.revision;
    let mut impossible = spec("a", 1);
    impossible.sandbox.runtime = RuntimeKind::Wasm;
    let refused = world.answer(deploy("hello", &impossible, &Settings::default(), true));
    assert!(matches!(refused, Err(Refusal::Impossible { .. })), "{refused:?}");
    assert_eq!(world.revision, writes);
    assert!(world.control.names.is_empty());
}

#[test]
fn values_of_the_environment_are_never_shown() {
    let mut world = World::new();
    let mut secret = spec("a", 1);
    secret.env.insert("KEY".to_owned(), "hush".to_owned());
    world.deploy("hello", &secret, &Settings::default(), false);
    assert_eq!(world.describe("hello").revisions[0].spec.env["KEY"], "");
}

#[test]
fn a_list_is_told_in_portions() {
    let mut world = World::new();
    for name in ["c", "a", "b"] {
        world.deploy(name, &spec("a", 1), &Settings::default(), false);
    }
    let mut list = |after: Option<&str>, limit| {
        let after = after.map(|name| name.parse().unwrap());
        match world.answer(Call::List { after, limit }) {
            Ok(Answer::Functions(list)) => {
                list.into_iter().map(|f| f.name.to_string()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(list(None, 2), ["a", "b"]);
    assert_eq!(list(Some("b"), 2), ["c"]);
}

#[test]
fn on_a_full_machine_an_old_sandbox_goes_for_the_first_new_one() {
    let mut world = World::new();
    world.room = 1;
    world.attach_worker();
    world.attach_plane(PLANE, "a");
    let settings = Settings { min: 1, ..Settings::default() };
    let (function, _) = world.deploy("hello", &spec("a", 1), &settings, false);
    world.pass(Duration::from_secs(3));
    let old = world.started()[0];
    world.ready(old);
    world.demand(PLANE, demand(function, 0, 0, 1));
    world.said();
    world.deploy("hello", &spec("b", 1), &settings, true);
    assert_eq!(world.started(), []);
    let wanted = ToDataPlane::Recall { function, n: 1, idle_only: true };
    assert!(world.said().contains(&to_plane(PLANE, wanted)));
    world.give_back(PLANE, old, WhyReturned::Idle);
    assert!(world.said().contains(&stop(old)));
    world.gone(old, stopped());
    let new = world.started();
    assert_eq!(new.len(), 1);
    world.ready(new[0]);
    assert_eq!(world.describe("hello").summary.targets[0].revision, 2);
}

#[test]
fn the_tag_of_an_image_is_settled_by_the_first_sandbox_and_recorded_before_there_are_more() {
    let mut world = World::new();
    world.attach_worker();
    let of_a_registry = Spec {
        sandbox: SandboxSpec {
            image: Some("reg.example.org/app:1".to_owned()),
            runtime: RuntimeKind::Container,
            ..spec("a", 1).sandbox
        },
        ..spec("a", 1)
    };
    let settings = Settings { min: 3, ..Settings::default() };
    let (function, number) = world.deploy("hello", &of_a_registry, &settings, true);
    let waiter = await_revision(&mut world, function, number);
    let first = world.started()[0];
    let (one, other) = (Digest([1; 32]), Digest([2; 32]));
    world.store_answers = false;
    world.worker(FromWorker::ImageResolved { sandbox: first, digest: one });
    world.worker(FromWorker::ImageResolved { sandbox: first, digest: other });
    world.ready(first);
    assert_eq!(world.started(), [], "not before it is known of which image");
    world.store_answers = true;
    world.answer_writes(None);
    let second = Spec::clone(&world.starts.pop().expect("the others are started").spec);
    assert_eq!(second.artifact, Some(one));
    let pinned = format!("reg.example.org/app:1@{one}");
    assert_eq!(second.sandbox.image.as_deref(), Some(pinned.as_str()));
    let revision = world.describe("hello").revisions.pop().unwrap();
    assert_eq!(*revision.spec, second);
    assert!(!world.replies.contains_key(&waiter), "it is not live yet");
    // The same manifest is another deploy: its tag may stand for something else by now.
    assert_eq!(world.deploy("hello", &of_a_registry, &settings, true).1, 2);
}

#[test]
fn who_waits_is_shown_how_much_of_an_image_is_fetched() {
    let mut world = World::new();
    world.attach_worker();
    let digest = Digest([1; 32]);
    let of_an_image = Spec { artifact: Some(digest), ..spec("a", 1) };
    world.deploy("hello", &of_an_image, &Settings::default(), true);
    let shown = |world: &mut World| {
        let fetching = world.describe("hello").fetching.into_iter();
        fetching.map(|one| (one.revision, one.fetched.0, one.all.0)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&mut world), []);
    let of_all =
        |digest, fetched| FromWorker::Fetching { digest, fetched: Bytes(fetched), all: Bytes(9) };
    world.worker(of_all(digest, 3));
    world.worker(of_all(digest, 4));
    world.worker(of_all(Digest([2; 32]), 5));
    assert_eq!(shown(&mut world), [(1, 4, 9)]);
    world.worker(FromWorker::Artifact { digest, held: true });
    assert_eq!(shown(&mut world), []);
    // One that broke off is not told of any more.
    world.worker(of_all(digest, 5));
    world.pass(Duration::from_secs(5));
    assert_eq!(shown(&mut world), []);
}
