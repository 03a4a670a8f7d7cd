//! Workers that come, fall silent, fail and return.

use super::*;
use crate::frame::TAKEN;

/// Meets every deadline up to a time.
fn run(fleet: &mut Fleet, until: Time) {
    while let Some(at) = fleet.deadline().filter(|at| *at <= until) {
        fleet.expire(at);
    }
}

#[test]
fn a_new_worker_is_numbered_recorded_welcomed_and_joined() {
    let mut fleet =
        Fleet::new(ms(0), 1, OFFICE, vec![WorkerRecord::new(WorkerId(4), "old".into())]);
    assert!(!fleet.all_recorded_attached());
    join(&mut fleet, ms(1), 1, "new", hello(1, Vec::new()));
    let record = WorkerRecord::new(WorkerId(5), "new".into());
    let token = WriteToken(TOKEN_BIT | 1);
    let welcome = Welcome { cluster: ClusterId(7), epoch: Epoch(3) };
    assert_eq!(
        drain(&mut fleet),
        [
            Output::Persist { token, write: Write::PutWorker(record) },
            Output::Send {
                stream: StreamId(1),
                frame: ToWorker::Welcome { welcome, you: WorkerId(5) }
            },
            Output::Joined {
                worker: WorkerId(5),
                sandboxes: Vec::new(),
                missing: BTreeSet::new(),
                is_stranger: true
            },
        ]
    );
    assert_eq!(fleet.worker_of(StreamId(1)), Some(WorkerId(5)));
    join(&mut fleet, ms(1), 2, "old", hello(1, Vec::new()));
    assert!(fleet.all_recorded_attached());
    assert_eq!(fleet.worker_of(StreamId(2)), Some(WorkerId(4)));
}

#[test]
fn a_record_that_the_store_did_not_take_is_written_again() {
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, Vec::new());
    join(&mut fleet, ms(0), 1, "w", hello(1, Vec::new()));
    drain(&mut fleet);
    assert!(!fleet.persisted(ms(0), WriteToken(1), Outcome::Refused), "somebody else's");
    assert!(fleet.persisted(ms(0), WriteToken(TOKEN_BIT | 1), Outcome::Unknown));
    beat(&mut fleet, ms(900), 1..=1);
    fleet.expire(ms(1000));
    let outputs = drain(&mut fleet);
    assert!(
        matches!(outputs.as_slice(), [Output::Persist { token: WriteToken(t), .. }] if t & 7 == 2)
    );
    assert!(fleet.persisted(ms(1001), WriteToken(TOKEN_BIT | 2), Outcome::Ok { revision: 1 }));
    beat(&mut fleet, ms(2900), 1..=1);
    fleet.expire(ms(3000));
    assert_eq!(drain(&mut fleet), []);
}

#[test]
fn a_silent_worker_is_suspect_then_lost_and_adopted_when_it_returns() {
    let mut fleet = fleet(2);
    fleet.want(ms(0), want(1, 1));
    let Some((_, on)) = placed(&drain(&mut fleet)).first().copied() else { panic!("not placed") };
    let other = 3 - on;
    beat(&mut fleet, ms(900), other..=other);
    assert_eq!(fleet.deadline(), Some(ms(1000)));
    fleet.expire(ms(1000));
    assert!(fleet.is_suspect(WorkerId(on)) && !fleet.is_suspect(WorkerId(other)));
    for n in 2..=5 {
        fleet.want(ms(1000), want(n, 1));
    }
    assert!(placed(&drain(&mut fleet)).iter().all(|(_, worker)| *worker == other));
    beat(&mut fleet, ms(1800), other..=other);
    run(&mut fleet, ms(2700));
    beat(&mut fleet, ms(2700), other..=other);
    run(&mut fleet, ms(3000));
    let reason = format!("worker w{on} was silent for 3s");
    assert_eq!(
        drain(&mut fleet),
        [
            Output::Close { stream: StreamId(on), reason },
            Output::Lost { worker: WorkerId(on), sandboxes: vec![sandbox(1)] },
        ]
    );
    assert_eq!(fleet.worker_of(StreamId(on)), None);
    join(&mut fleet, ms(3100), 9, &format!("w{on}"), hello(1, vec![report(1, 1)]));
    let outputs = drain(&mut fleet);
    assert!(outputs.iter().all(|output| !matches!(output, Output::Persist { .. })));
    assert!(outputs.contains(&Output::Joined {
        worker: WorkerId(on),
        sandboxes: vec![report(1, 1)],
        missing: BTreeSet::new(),
        is_stranger: false
    }));
    let summary = fleet.summaries().into_iter().find(|summary| summary.id.0 == on).unwrap();
    assert_eq!((summary.state.as_str(), summary.sandboxes, summary.starting), ("ready", 1, 0));
}

#[test]
fn whatever_a_worker_says_shows_that_it_lives() {
    let mut fleet = fleet(1);
    fleet.heard(ms(900), StreamId(1));
    fleet.expire(ms(1000));
    assert_eq!(state(&fleet, 1), "ready");
}

#[test]
fn a_stall_of_the_leader_is_not_taken_for_silence_of_the_workers() {
    let mut fleet = fleet(2);
    assert_eq!(fleet.deadline(), Some(ms(1000)));
    fleet.expire(ms(60_000));
    assert_eq!((state(&fleet, 1), state(&fleet, 2)), ("ready".to_owned(), "ready".to_owned()));
    beat(&mut fleet, ms(60_001), 1..=1);
    fleet.expire(ms(61_000));
    assert_eq!((state(&fleet, 1), state(&fleet, 2)), ("ready".to_owned(), "suspect".to_owned()));
    assert_eq!(drain(&mut fleet), []);
}

#[test]
fn a_beat_clears_suspicion() {
    let mut fleet = fleet(1);
    fleet.expire(ms(1000));
    assert_eq!(state(&fleet, 1), "suspect");
    fleet.want(ms(1000), want(1, 1));
    drain(&mut fleet);
    beat(&mut fleet, ms(1500), 1..=1);
    assert_eq!(placed(&drain(&mut fleet)), [(1, 1)]);
    assert_eq!(state(&fleet, 1), "ready");
}

#[test]
fn a_broken_stream_makes_suspect_at_once_and_lost_after_three_seconds() {
    let mut fleet = fleet(1);
    beat(&mut fleet, ms(400), 1..=1);
    assert!(fleet.detached(ms(500), StreamId(1)));
    assert!(!fleet.detached(ms(500), StreamId(1)));
    assert_eq!(state(&fleet, 1), "suspect");
    run(&mut fleet, ms(3499));
    assert_eq!(drain(&mut fleet), []);
    run(&mut fleet, ms(3500));
    assert_eq!(drain(&mut fleet), [Output::Lost { worker: WorkerId(1), sandboxes: vec![] }]);
}

#[test]
fn a_life_that_is_heard_keeps_its_name_and_a_silent_one_does_not() {
    let mut fleet = fleet(1);
    let closed = |outputs: &[Output], stream| matches!(outputs, [Output::Close { stream: it, .. }, ..] if *it == StreamId(stream));
    // The same life may come again before its last stream is known to be broken.
    join(&mut fleet, ms(10), 2, "w1", hello(1, Vec::new()));
    assert!(closed(&drain(&mut fleet), 1));
    assert!(!fleet.detached(ms(11), StreamId(1)), "forgotten already");
    beat(&mut fleet, ms(100), 2..=2);
    // Another one may not; one that understands it is told so.
    let mut second = hello(2, Vec::new());
    join(&mut fleet, ms(101), 3, "w1", second.clone());
    assert!(closed(&drain(&mut fleet), 3));
    second.hello.features.push(TAKEN.to_owned());
    join(&mut fleet, ms(3099), 4, "w1", second.clone());
    let outputs = drain(&mut fleet);
    let told = Output::Send { stream: StreamId(4), frame: ToWorker::Taken };
    let (first, rest) = outputs.split_first().unwrap();
    assert!(*first == told && closed(rest, 4), "{outputs:?}");
    assert_eq!(fleet.worker_of(StreamId(2)), Some(WorkerId(1)));
    assert_eq!(state(&fleet, 1), "ready");
    // It was not heard for as long as loses a worker.
    join(&mut fleet, ms(3100), 5, "w1", second.clone());
    assert!(closed(&drain(&mut fleet), 2));
    // A copy of its directory counts the same starts.
    second.hello.incarnation.life += 1;
    join(&mut fleet, ms(3101), 6, "w1", second);
    assert_eq!(drain(&mut fleet).len(), 2);
    join(&mut fleet, ms(6100), 7, "w1", hello(1, Vec::new()));
    assert!(closed(&drain(&mut fleet), 7), "an older one");
    assert_eq!(fleet.worker_of(StreamId(5)), Some(WorkerId(1)));
}

#[test]
fn strangers_and_silent_streams_are_closed() {
    let mut fleet = fleet(0);
    let mut stranger = hello(1, Vec::new());
    stranger.hello.cluster = Some(ClusterId(8));
    join(&mut fleet, ms(0), 1, "a", stranger);
    let mut future = hello(1, Vec::new());
    future.hello.protocol = (2, 3);
    join(&mut fleet, ms(0), 2, "b", future);
    fleet.attached(ms(0), StreamId(3), "c".into());
    fleet.expire(ms(10_000));
    let outputs = drain(&mut fleet);
    let closed = |output: &Output| matches!(output, Output::Close { .. });
    assert_eq!((outputs.len(), outputs.iter().all(closed)), (3, true), "{outputs:?}");
    assert_eq!(fleet.summaries(), []);
}

#[test]
fn reported_sandboxes_are_booked_known_or_not() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), want(1, 1));
    fleet.want(ms(0), want(2, 1));
    fleet.detached(ms(1), StreamId(1));
    join(&mut fleet, ms(2), 2, "w1", hello(2, vec![report(1, 1), report(77, 5)]));
    let summary = fleet.summaries().remove(0);
    assert_eq!(
        (summary.sandboxes, summary.starting),
        (3, 1),
        "the missing one until it is given up"
    );
    fleet.gone(ms(3), sandbox(2));
    let summary = fleet.summaries().remove(0);
    assert_eq!((summary.sandboxes, summary.starting), (2, 0));
    assert_eq!(summary.memory.0, Bytes::mib(200));
}

#[test]
fn a_stop_is_repeated_and_a_release_is_kept_for_a_worker_that_was_away() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), want(1, 1));
    fleet.ready(ms(0), sandbox(1));
    drain(&mut fleet);
    let grace = Duration::from_secs(10);
    fleet.stop(sandbox(1), grace);
    let stop = ToWorker::StopSandbox { sandbox: sandbox(1), grace };
    assert_eq!(drain(&mut fleet), [Output::Send { stream: StreamId(1), frame: stop.clone() }]);
    fleet.detached(ms(1), StreamId(1));
    fleet.release_address(sandbox(5), WorkerId(1));
    assert_eq!(drain(&mut fleet), []);
    join(&mut fleet, ms(2), 2, "w1", hello(1, vec![report(1, 1)]));
    let outputs = drain(&mut fleet);
    let release = ToWorker::ReleaseAddress { sandbox: sandbox(5) };
    for frame in [stop, release] {
        assert!(outputs.contains(&Output::Send { stream: StreamId(2), frame }));
    }
    fleet.detached(ms(3), StreamId(2));
    let stopping = SandboxReport { stopping: true, ..report(1, 1) };
    join(&mut fleet, ms(4), 3, "w1", hello(1, vec![stopping]));
    assert_eq!(drain(&mut fleet).len(), 2, "welcome and joined only");
}

/// Lets three starts fail by the worker's fault.
fn fail_thrice(fleet: &mut Fleet, now: Time, first: u64) {
    for n in first..first + 3 {
        fleet.want(now, want(n, n));
        fleet.failed(now, sandbox(n), Some(Fault::Worker));
    }
    drain(fleet);
}

#[test]
fn three_worker_failures_in_a_row_quarantine_with_doubling_back_off() {
    let mut fleet = fleet(1);
    fleet.want(ms(0), want(1, 1));
    fail_thrice(&mut fleet, ms(0), 10);
    assert_eq!(state(&fleet, 1), "quarantined");
    fleet.want(ms(1), want(20, 20));
    fleet.want(ms(1), want(21, 21));
    assert_eq!(placed(&drain(&mut fleet)), []);
    beat(&mut fleet, ms(900), 1..=1);
    fleet.gone(ms(900), sandbox(1));
    fleet.expire(ms(1000));
    assert_eq!(placed(&drain(&mut fleet)), [(20, 1)], "one at a time until one succeeds");
    fleet.failed(ms(1000), sandbox(20), Some(Fault::Worker));
    assert_eq!(state(&fleet, 1), "quarantined");
    beat(&mut fleet, ms(1900), 1..=1);
    fleet.expire(ms(2999));
    assert_eq!(placed(&drain(&mut fleet)), []);
    beat(&mut fleet, ms(2999), 1..=1);
    fleet.expire(ms(3000));
    assert_eq!(placed(&drain(&mut fleet)), [(21, 1)]);
    fleet.want(ms(3000), want(22, 22));
    fleet.ready(ms(3000), sandbox(21));
    assert_eq!(placed(&drain(&mut fleet)), [(22, 1)]);
    fail_thrice(&mut fleet, ms(3000), 30);
    beat(&mut fleet, ms(3900), 1..=1);
    fleet.expire(ms(4000));
    assert_eq!(state(&fleet, 1), "ready", "the back-off began at one second again");
}

#[test]
fn failures_of_functions_and_broken_rows_do_not_quarantine() {
    let mut fleet = fleet(1);
    for (n, fault) in [(1, Fault::Worker), (2, Fault::Worker), (3, Fault::Function)] {
        fleet.want(ms(0), want(n, n));
        fleet.failed(ms(0), sandbox(n), Some(fault));
    }
    fleet.want(ms(0), want(4, 4));
    fleet.ready(ms(0), sandbox(4));
    fleet.want(ms(0), want(5, 5));
    fleet.failed(ms(0), sandbox(5), Some(Fault::Worker));
    assert_eq!(state(&fleet, 1), "ready");
}

#[test]
fn when_a_third_is_lost_only_what_callers_wait_for_is_started() {
    let mut fleet = fleet(5);
    beat(&mut fleet, ms(2900), 1..=3);
    fleet.expire(ms(1000));
    fleet.expire(ms(3000));
    let lost = drain(&mut fleet);
    assert_eq!(lost.iter().filter(|output| matches!(output, Output::Lost { .. })).count(), 2);
    fleet.want(ms(3000), calm(want(1, 1)));
    assert_eq!(drain(&mut fleet), [], "held, not short of room");
    fleet.want(ms(3000), want(2, 1));
    assert_eq!(placed(&drain(&mut fleet)).len(), 1);
    let mut at = 3000;
    while at < 12_900 {
        at += 300;
        beat(&mut fleet, ms(at), 1..=3);
        fleet.expire(ms(at));
    }
    assert_eq!(drain(&mut fleet), []);
    fleet.expire(ms(13_000));
    assert_eq!(placed(&drain(&mut fleet)).len(), 1, "the losses are ten seconds old");
}

#[test]
fn a_worker_that_returns_ends_the_storm() {
    let mut fleet = fleet(2);
    beat(&mut fleet, ms(2900), 1..=1);
    fleet.expire(ms(1000));
    fleet.expire(ms(3000));
    fleet.want(ms(3000), calm(want(1, 1)));
    assert_eq!(placed(&drain(&mut fleet)), []);
    join(&mut fleet, ms(3100), 7, "w2", hello(1, Vec::new()));
    assert_eq!(placed(&drain(&mut fleet)).len(), 1);
}

#[test]
fn cordoned_workers_get_nothing() {
    let record = WorkerRecord::new(WorkerId(1), "w".into()).on(crate::Duty::Cordoned);
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, vec![record]);
    assert_eq!(state(&fleet, 1), "joining");
    join(&mut fleet, ms(0), 1, "w", hello(1, Vec::new()));
    assert_eq!(state(&fleet, 1), "cordoned");
    fleet.want(ms(0), want(1, 1));
    assert_eq!(placed(&drain(&mut fleet)), []);
}

#[test]
fn a_recorded_worker_that_never_attaches_is_lost_without_a_word() {
    let record = WorkerRecord::new(WorkerId(1), "w".into());
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, vec![record]);
    assert_eq!(fleet.deadline(), Some(ms(3000)));
    fleet.expire(ms(3000));
    assert_eq!(drain(&mut fleet), []);
    assert_eq!((state(&fleet, 1).as_str(), fleet.deadline()), ("lost", None));
}
