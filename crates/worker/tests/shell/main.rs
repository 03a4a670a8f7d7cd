//! The worker as a whole, with the fake runtime and a control plane that the test plays.

#![cfg(test)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use dirigent_core::{
    Address, Bytes, Cause, ClusterId, Digest, Epoch, Fault,
    frame::{FromWorker, FromWorkerBulk, LogQuery, ToWorker, ToWorkerBulk, Welcome},
};
use dirigent_worker::Settings;

use support::{Bench, digest, function, get, sandbox};

#[tokio::test]
async fn a_sandbox_starts_answers_and_stops() {
    let mut bench = Bench::start().await;
    let hello = bench.attach().await;
    assert_eq!((hello.hello.cluster, hello.sandboxes), (None, Vec::new()));
    assert_eq!(hello.hello.incarnation.start, 1);
    let address = bench.ready(1, &[], None).await;
    assert!(get(address, "/").await.contains("sbx_1_1"));
    bench.say(ToWorker::StopSandbox { sandbox: sandbox(1), grace: Duration::ZERO }).await;
    assert_eq!(bench.gone(1).await.cause, Cause::Stopped);
    assert_eq!(bench.runtime.sandboxes(), []);
}

#[tokio::test]
async fn the_control_plane_hears_a_worker_that_has_nothing_to_say() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    for _ in 0..2 {
        bench.hear(|frame| matches!(frame, FromWorker::Beat(load) if load.memory_used.0 > 0)).await;
    }
}

#[tokio::test]
async fn a_failed_start_is_told_with_its_last_lines() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    bench.order(1, &[("FAKE_FAIL", "exit:3")], None).await;
    let failure = bench.gone(1).await;
    assert_eq!((failure.cause, failure.fault), (Cause::Exited { code: 3 }, Fault::Function));
    assert_eq!(failure.log_tail, ["started"]);
}

#[tokio::test]
async fn sandboxes_live_on_while_the_control_plane_is_away() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    let address = bench.ready(1, &[], None).await;
    for _ in 0..3 {
        bench.break_stream();
        let hello = bench.attach().await;
        let [report] = &hello.sandboxes[..] else { panic!("{hello:?}") };
        assert_eq!(report.sandbox, sandbox(1));
        assert_eq!(report.address, Some(Address::Tcp(address)));
        assert!(get(address, "/").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_restarted_worker_adopts_its_sandboxes_and_remembers_whom_it_obeyed() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    let address = bench.ready(1, &[], None).await;
    let mut bench = bench.restart().await;
    assert_eq!(bench.running.adopted, 1);
    let hello = bench.attach().await;
    assert_eq!(hello.hello.cluster, Some(ClusterId(7)));
    assert_eq!(hello.hello.highest_epoch, Epoch(1));
    assert_eq!(hello.hello.incarnation.start, 2);
    assert_eq!(hello.sandboxes.len(), 1);
    assert!(get(address, "/").await.starts_with("HTTP/1.1 200"));
    bench.say(ToWorker::StopSandbox { sandbox: sandbox(1), grace: Duration::ZERO }).await;
    assert_eq!(bench.gone(1).await.cause, Cause::Stopped);
}

#[tokio::test]
async fn a_port_of_a_sandbox_that_is_gone_rests_over_a_restart() {
    let settings = support::settings();
    let two = Settings { last_port: settings.first_port + 1, ..settings };
    let mut bench = Bench::with(two).await;
    bench.attach().await;
    let first = bench.ready(1, &[], None).await;
    bench.say(ToWorker::StopSandbox { sandbox: sandbox(1), grace: Duration::ZERO }).await;
    bench.gone(1).await;
    // Data planes may hold slots of it still.
    let mut bench = bench.restart().await;
    bench.attach().await;
    assert_ne!(bench.ready(2, &[], None).await, first);
    bench.order(3, &[], None).await;
    bench
        .hear(|frame| {
            matches!(frame, FromWorker::Refused { message, .. } if message.contains("rests"))
        })
        .await;
    bench.say(ToWorker::ReleaseAddress { sandbox: sandbox(1) }).await;
    assert_eq!(bench.ready(4, &[], None).await, first);
    let state = std::fs::read_to_string(bench.state().join("ports")).unwrap();
    assert!(state.contains(&format!("{} sbx_1_4", first.port())), "{state}");
}

#[tokio::test]
async fn a_deposed_leader_and_a_stranger_are_left() {
    let mut bench = Bench::start().await;
    bench.attach_to(Welcome { cluster: ClusterId(7), epoch: Epoch(5) }).await;
    bench.ready(1, &[], None).await;
    for welcome in [
        Welcome { cluster: ClusterId(7), epoch: Epoch(4) },
        Welcome { cluster: ClusterId(8), epoch: Epoch(9) },
    ] {
        bench.break_stream();
        let hello = bench.attach_to(welcome).await;
        assert_eq!(hello.hello.highest_epoch, Epoch(5));
        bench.say(ToWorker::StopSandbox { sandbox: sandbox(1), grace: Duration::ZERO }).await;
        bench.closed().await;
    }
    assert_eq!(bench.runtime.sandboxes(), [sandbox(1)]);
}

#[tokio::test]
async fn a_start_without_room_is_refused() {
    let mut bench =
        Bench::with(Settings { memory: Some(Bytes::mib(128)), ..support::settings() }).await;
    bench.attach().await;
    bench.ready(1, &[], None).await;
    bench.order(2, &[], None).await;
    bench
        .hear(|frame| {
            matches!(frame, FromWorker::Refused { sandbox: refused, .. } if *refused == sandbox(2))
        })
        .await;
}

#[tokio::test]
async fn a_port_held_by_somebody_else_is_not_used() {
    let settings = support::settings();
    let taken = std::net::TcpListener::bind(("127.0.0.1", settings.first_port));
    let mut bench = Bench::with(settings.clone()).await;
    bench.attach().await;
    let address = bench.ready(1, &[], None).await;
    // Another program may hold the port as well as we: then it is all the more not used.
    drop(taken);
    assert_ne!(address.port(), settings.first_port);
}

#[tokio::test]
async fn an_artifact_is_fetched_once_and_goes_on_where_a_broken_connection_left_it() {
    let archive: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = digest(&archive);
    let mut bench = Bench::start().await;
    bench.attach().await;
    bench.attach_bulk().await;
    bench.order(1, &[], Some(digest)).await;
    bench.order(2, &[], Some(digest)).await;
    assert_eq!(bench.hear_bulk().await, FromWorkerBulk::Fetch { digest, offset: 0 });
    bench.chunk(digest, &archive[..100_000], false).await;
    bench.chunk(digest, &archive[100_000..150_000], false).await;
    bench.attach_bulk().await;
    let FromWorkerBulk::Fetch { offset, .. } = bench.hear_bulk().await else { panic!() };
    let at = usize::try_from(offset).unwrap();
    assert!([0, 100_000, 150_000].contains(&at), "whole pieces: {at}");
    for piece in archive[at..].chunks(64 << 10) {
        bench.chunk(digest, piece, false).await;
    }
    bench.chunk(digest, b"", true).await;
    let mut ready = BTreeMap::new();
    while ready.len() < 2 {
        let frame = bench.hear(|frame| matches!(frame, FromWorker::SandboxReady { .. })).await;
        let FromWorker::SandboxReady { sandbox, phases, .. } = frame else { panic!() };
        assert!(phases.fetch > Duration::ZERO, "{phases:?}");
        ready.insert(sandbox, phases);
    }
    assert!(bench.bulk_is_quiet(), "it was asked for once");
    bench.ready(3, &[], Some(digest)).await;
    bench.break_stream();
    assert_eq!(bench.attach().await.artifacts, [digest]);
    assert_eq!(std::fs::read_dir(bench.state().join("incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_artifact_that_cannot_be_had_fails_the_start_with_the_reason() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    bench.attach_bulk().await;
    let digest = digest(b"right");
    bench.order(1, &[], Some(digest)).await;
    bench.hear_bulk().await;
    let message = "it was never uploaded".to_owned();
    bench.say_bulk(ToWorkerBulk::NoArtifact { digest, message: message.clone() }).await;
    assert!(bench.gone(1).await.cause.to_string().contains(&message));
    bench.order(2, &[], Some(digest)).await;
    bench.hear_bulk().await;
    bench.chunk(digest, b"wrong", true).await;
    let failure = bench.gone(2).await;
    assert!(failure.cause.to_string().contains("damaged"), "{failure:?}");
}

#[tokio::test]
async fn log_lines_come_and_a_follower_is_let_go() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    bench.attach_bulk().await;
    let address = bench.ready(1, &[], None).await;
    get(address, "/log?text=one").await;
    let query = LogQuery {
        id: 1,
        function: function(),
        sandbox: None,
        since_ms: None,
        until_ms: None,
        tail: 10,
        follow: false,
    };
    bench.say_bulk(ToWorkerBulk::ReadLogs(query.clone())).await;
    assert_eq!(bench.lines(1, 2).await, ["started", "one"]);
    assert!(bench.logs_end(1).await);
    let follow = LogQuery { id: 2, follow: true, tail: 1, ..query };
    bench.say_bulk(ToWorkerBulk::ReadLogs(follow)).await;
    assert_eq!(bench.lines(2, 1).await, ["one"]);
    get(address, "/log?text=two").await;
    assert_eq!(bench.lines(2, 1).await, ["two"]);
    bench.say_bulk(ToWorkerBulk::StopLogs { id: 2 }).await;
}

#[tokio::test]
async fn a_reader_too_many_is_told_that_lines_are_missing() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    bench.attach_bulk().await;
    for id in 1..=33 {
        let query = LogQuery {
            id,
            function: function(),
            sandbox: None,
            since_ms: None,
            until_ms: None,
            tail: 10,
            follow: true,
        };
        bench.say_bulk(ToWorkerBulk::ReadLogs(query)).await;
    }
    let FromWorkerBulk::LogLines { id, end, missing, .. } = bench.hear_bulk().await else {
        panic!("no log lines")
    };
    assert_eq!((id, end), (33, true));
    assert!(missing.is_some_and(|why| why.contains("32 others")));
}

#[tokio::test]
async fn stopping_all_leaves_no_sandbox_and_the_control_plane() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    for n in 1..=3 {
        bench.ready(n, &[], None).await;
    }
    assert_eq!(bench.running.stop_all(Duration::from_secs(10)).await, 0);
    assert_eq!(bench.runtime.sandboxes(), []);
    bench.closed().await;
}

#[tokio::test]
async fn one_that_ignores_sigterm_is_killed_before_the_deadline() {
    let mut bench = Bench::start().await;
    bench.attach().await;
    bench.ready(1, &[("FAKE_IGNORE_TERM", "1")], None).await;
    assert_eq!(bench.running.stop_all(Duration::from_secs(3)).await, 0);
    assert_eq!(bench.runtime.sandboxes(), []);
}

#[tokio::test]
async fn a_machine_without_a_runtime_is_told_so() {
    let error = support::start_without_runtimes().await;
    assert!(error.contains("no runtime works"), "{error}");
}

/// A digest is what ties an order to its files: the helper must agree with the worker.
#[test]
fn digests_are_sha256() {
    let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(digest(b"").to_string(), empty);
    assert_eq!(empty.parse::<Digest>().unwrap(), digest(b""));
}
