//! Functions that are called with tokens: who is told which count, and who may serve them.

use super::*;
use crate::{Access, ApiToken, Auth, TokenView, frame::CHECKS_TOKENS};

fn asks() -> Settings {
    Settings { auth: Auth::Token, ..Settings::default() }
}

/// A data plane that checks tokens.
fn attach_checking(world: &mut World, stream: StreamId, name: &str) {
    world.tell(Event::DataPlaneAttached { stream, name: name.into() });
    let hello = DataPlaneHello {
        hello: Hello { features: vec!["new".to_owned(), CHECKS_TOKENS.to_owned()], ..hello() },
        holdings: Vec::new(),
        names: vec!["hello".parse().unwrap()],
        demands: Vec::new(),
    };
    world.plane(stream, FromDataPlane::Hello(Box::new(hello)));
}

fn token(name: &str, hash: u8, access: Access) -> ApiToken {
    let hash = Digest([hash; 32]);
    ApiToken { name: name.into(), access, hash, made_ms: 1, expires_ms: Some(9) }
}

/// The frames to one data plane since the last look.
fn told(world: &mut World, to: StreamId) -> Vec<ToDataPlane> {
    let frame = |effect| match effect {
        Effect::ToDataPlane { stream, frame } if stream == to => Some(frame),
        _ => None,
    };
    world.said().into_iter().filter_map(frame).collect()
}

/// Whether there is such a function, as that data plane was told last.
fn is_there(frames: &[ToDataPlane]) -> Option<bool> {
    frames.iter().rev().find_map(|frame| match frame {
        ToDataPlane::Resolved { function, .. } => Some(function.is_some()),
        _ => None,
    })
}

#[test]
fn who_checks_tokens_is_told_them_before_any_function_and_at_each_change() {
    let mut world = World::new();
    world.control.tokens = Tokens::new(Arc::default(), Some(Digest([9; 32])));
    world.deploy("hello", &spec("a", 1), &asks(), false);
    attach_checking(&mut world, PLANE, "a");
    let own = TokenView { hash: Digest([9; 32]), access: Access::Admin, expires_ms: None };
    let frames = told(&mut world, PLANE);
    assert!(matches!(frames[0], ToDataPlane::Welcome { .. }), "{frames:?}");
    assert_eq!(frames[1], ToDataPlane::Tokens { tokens: vec![own.clone()] });
    assert_eq!(is_there(&frames), Some(true));

    // Another one attaches, and one that knows nothing of tokens.
    attach_checking(&mut world, OTHER_PLANE, "b");
    world.attach_plane(StreamId(4), "c");
    world.said();
    let made = world.answer(Call::MakeToken { token: token("t", 1, Access::View) });
    assert_eq!(made, Ok(Answer::TokenMade { name: "t".into() }));
    let one = TokenView { hash: Digest([1; 32]), access: Access::View, expires_ms: Some(9) };
    let now = ToDataPlane::Tokens { tokens: vec![one, own.clone()] };
    let said = world.said();
    let so = |stream| to_plane(stream, now.clone());
    assert_eq!(said[1..], [so(PLANE), so(OTHER_PLANE)], "{said:?}");
    world.tell(Event::Detached { stream: OTHER_PLANE });
    world.said();
    world.answer(Call::RevokeToken { name: "t".into() }).unwrap();
    let revoked = to_plane(PLANE, ToDataPlane::Tokens { tokens: vec![own] });
    assert_eq!(world.said()[1..], [revoked]);
}

#[test]
fn to_who_cannot_check_tokens_a_function_that_asks_for_them_is_not_there() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.demand(PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    assert_eq!(world.granted().len(), 1);
    // From now on it asks for one: what was served openly is over at once, and nothing waits for the
    // one that has not heard of it to say so.
    let deployed = world.answer(deploy("hello", &spec("a", 1), &asks(), false)).unwrap();
    assert!(matches!(deployed, Answer::Deployed { changed: true, .. }), "{deployed:?}");
    assert_eq!(is_there(&told(&mut world, PLANE)), Some(false));
    world.resolve(PLANE, "hello");
    assert_eq!(is_there(&told(&mut world, PLANE)), Some(false));
    // It would say that it wants a sandbox, and is not given any.
    world.give_back(PLANE, sandbox, WhyReturned::Drained);
    world.demand(PLANE, demand(function, 3, 0, 0));
    assert!(world.granted().is_empty() && world.started().is_empty());

    // What was given back is of use to one that can.
    attach_checking(&mut world, OTHER_PLANE, "b");
    let granted = world.granted();
    assert_eq!(is_there(&told(&mut world, OTHER_PLANE)), Some(true));
    assert!(!granted.is_empty() && granted.iter().all(|(to, _)| *to == OTHER_PLANE), "{granted:?}");

    // Open again, it is there for both.
    world.answer(deploy("hello", &spec("a", 1), &Settings::default(), false)).unwrap();
    assert_eq!(is_there(&told(&mut world, PLANE)), Some(true));
}

#[test]
fn a_deploy_does_not_wait_for_who_may_not_serve_it() {
    let (mut world, function) = World::running(&spec("a", 1), &asks());
    world.deploy("hello", &spec("b", 1), &asks(), true);
    let sandbox = world.started()[0];
    world.ready(sandbox);
    let revision = RevisionId { function, number: 2 };
    let settled = world.answer(Call::AwaitRevision { revision }).unwrap();
    assert!(
        matches!(settled, Answer::Settled { state: crate::RevisionState::Live, .. }),
        "{settled:?}"
    );
}

#[test]
fn what_is_said_of_a_function_that_is_hidden_by_now_counts_no_more() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    // One of an older version, which must not serve functions that are called with a token.
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    let sandbox = world.started()[0];
    world.ready(sandbox);
    world.demand(OTHER_PLANE, demand(function, 0, 1, 1));
    world.deploy("hello", &spec("a", 1), &asks(), false);
    assert_eq!(is_there(&told(&mut world, OTHER_PLANE)), Some(false));
    // Said before it heard that; its gate is gone then, and says nothing of it again.
    world.demand(OTHER_PLANE, demand(function, 2, 1, 1));
    world.plane(OTHER_PLANE, FromDataPlane::Kept { function, n: 1 });
    assert_eq!(world.started(), []);
    assert_eq!(world.describe("hello").summary.queued, 0);

    world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    let frames = told(&mut world, OTHER_PLANE);
    assert_eq!(is_there(&frames), Some(true));
    let version = |frame: &ToDataPlane| match frame {
        ToDataPlane::Resolved { version, .. } => Some(*version),
        _ => None,
    };
    let version = frames.iter().rev().find_map(version).unwrap();
    // Still from before.
    world.demand(OTHER_PLANE, demand(function, 3, 1, 1));
    assert_eq!(world.started(), []);
    world.plane(OTHER_PLANE, FromDataPlane::Applied { function, version });
    world.give_back(OTHER_PLANE, sandbox, WhyReturned::Drained);
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    assert_eq!(world.describe("hello").summary.queued, 1);
    assert_eq!(world.started().len(), 1);
}

#[test]
fn who_asks_for_a_function_that_was_hidden_from_its_life_before_is_heard() {
    let (mut world, function) = World::running(&spec("a", 1), &Settings::default());
    world.attach_plane(OTHER_PLANE, "b");
    world.demand(OTHER_PLANE, demand(function, 1, 0, 0));
    world.deploy("hello", &spec("a", 1), &asks(), false);
    // Its next life knows no names yet when the function may be called by everybody again.
    world.tell(Event::DataPlaneAttached { stream: StreamId(4), name: "b".into() });
    let (holdings, names, demands) = (Vec::new(), Vec::new(), Vec::new());
    let anew = DataPlaneHello { hello: hello(), holdings, names, demands };
    world.plane(StreamId(4), FromDataPlane::Hello(Box::new(anew)));
    world.deploy("hello", &spec("a", 1), &Settings::default(), false);
    world.plane(StreamId(4), FromDataPlane::Resolve { name: "hello".parse().unwrap() });
    let version = told(&mut world, StreamId(4)).into_iter().find_map(|frame| match frame {
        ToDataPlane::Resolved { version, function: Some(_), .. } => Some(version),
        _ => None,
    });
    let version = version.expect("it is told");
    world.plane(StreamId(4), FromDataPlane::Applied { function, version });
    world.demand(StreamId(4), demand(function, 1, 0, 0));
    assert_eq!(world.describe("hello").summary.queued, 1);
}
