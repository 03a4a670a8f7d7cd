//! The stream to the control plane: there, gone, and back; and the end of the data plane itself.

use std::time::Duration;

use dirigent_core::{
    FunctionName, Settings, StartPhases,
    frame::{FromDataPlane, ToDataPlane, WhyReturned},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{
    self, Backend, Function, Rig, header, read_response, sandbox, status, until, within,
};

#[tokio::test]
async fn without_a_control_plane_an_unknown_name_waits_then_gets_503() {
    let rig = Rig::dark(|config| config.limits.resolve_timeout = Duration::from_millis(50)).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(header(&answer, "x-dirigent-error"), Some("no_control_plane"), "{answer}");
}

#[tokio::test]
async fn who_waits_for_a_control_plane_is_served_when_it_comes() {
    let rig = Rig::dark(|_| {}).await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let function = Function::default();
    rig.function("hello", function.clone());
    let come = async {
        until("a caller", || rig.proxy.metrics_page().contains("proxy_connections 1\n")).await;
        rig.attach(true).await;
        rig.demand("one who waits", |demand| demand.queued == 1).await;
        rig.grant(&function, 1, backend.address, 1).await;
    };
    let (answer, ()) = tokio::join!(rig.get("hello", "/"), come);
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn an_unknown_name_is_asked_once_and_becomes_known_when_it_is_deployed() {
    let rig = Rig::start().await;
    for _ in 0..3 {
        let answer = rig.get("hello", "/").await;
        assert_eq!(status(&answer), 404, "{answer}");
    }
    let asked = |frame: &&FromDataPlane| matches!(frame, FromDataPlane::Resolve { .. });
    assert_eq!(rig.frames().iter().filter(asked).count(), 1);
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let function = Function::default();
    let view = Some(function.view("hello"));
    let name = "hello".parse().unwrap();
    rig.say(ToDataPlane::Resolved { name, version: 2, function: view }).await;
    rig.saw("applied", |f| matches!(f, FromDataPlane::Applied { version: 2, .. })).await;
    rig.grant(&function, 1, backend.address, 1).await;
    assert_eq!(status(&rig.get("hello", "/").await), 200);
}

#[tokio::test]
async fn without_a_control_plane_what_is_held_goes_on_serving_and_is_claimed_afterwards() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let settings = Settings { queue_timeout: Duration::from_millis(50), ..Settings::default() };
    let other = Function { id: 2, settings, ..Function::default() };
    rig.function("other", other);
    rig.serving("hello", Function::default(), backend.address, 1).await;
    assert_eq!(status(&rig.get("hello", "/").await), 200);
    assert_eq!(status(&rig.get("other", "/").await), 504);
    rig.attach(false).await;
    assert_eq!(status(&rig.get("hello", "/").await), 200);
    let answer = rig.get("other", "/").await;
    assert_eq!(header(&answer, "x-dirigent-error"), Some("no_control_plane"), "{answer}");
    rig.attach(true).await;
    let again = |frame: &FromDataPlane| match frame {
        FromDataPlane::Hello(hello) => {
            hello.names.len() == 2 && hello.holdings.iter().any(|h| h.sandbox == sandbox(1))
        }
        _ => false,
    };
    rig.saw("a greeting with what is held", again).await;
    assert_eq!(status(&rig.get("hello", "/").await), 200);
}

#[tokio::test]
async fn a_deleted_function_is_gone_at_once_and_its_slots_go_back() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_response(&mut caller).await.0), 200);
    let name: FunctionName = "hello".parse().unwrap();
    rig.say(ToDataPlane::Resolved { name: name.clone(), version: 2, function: None }).await;
    rig.saw(
        "a return",
        |frame| matches!(frame, FromDataPlane::Returned(r) if r.sandbox == sandbox(1)),
    )
    .await;
    // On the connection that has just been served, too.
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_response(&mut caller).await.0), 404);
    // Recreated, it is another function.
    let function = Function { id: 9, ..Function::default() };
    let view = Some(function.view("hello"));
    rig.say(ToDataPlane::Resolved { name, version: 3, function: view }).await;
    rig.saw("applied", |f| matches!(f, FromDataPlane::Applied { version: 3, .. })).await;
    rig.grant(&function, 7, backend.address, 1).await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_response(&mut caller).await.0), 200);
}

#[tokio::test]
async fn a_sandbox_recalled_finishes_its_call_first() {
    let rig = Rig::start().await;
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::start(move |mut stream, _| {
        let mut held = held.clone();
        async move {
            common::read_request(&mut stream).await;
            held.wait_for(|released| *released).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            // The connection kept is closed with the last slot.
            assert!(stream.read_u8().await.is_err());
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let recall = async {
        rig.demand("a busy slot", |demand| demand.busy == 1).await;
        rig.say(ToDataPlane::RecallSandbox { sandbox: sandbox(1), gone: false }).await;
        release.send_replace(true);
        rig.returned(1, WhyReturned::Drained).await;
    };
    let (answer, ()) = tokio::join!(rig.get("hello", "/"), recall);
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn an_idle_sandbox_goes_back_after_its_keep_alive() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let settings = Settings { keep_alive: Duration::from_millis(50).into(), ..Settings::default() };
    rig.serving("hello", Function { settings, ..Function::default() }, backend.address, 1).await;
    rig.returned(1, WhyReturned::Idle).await;
}

#[tokio::test]
async fn names_unused_for_long_are_forgotten_and_unknown_ones_are_bounded() {
    let rig = Rig::with(|config| config.limits.unknown_names = 2).await;
    for name in ["a", "b", "c"] {
        assert_eq!(status(&rig.get(name, "/").await), 404);
    }
    rig.saw(
        "the oldest forgotten",
        |frame| matches!(frame, FromDataPlane::Forget { name } if name.name() == "a"),
    )
    .await;

    let rig = Rig::with(|config| config.limits.forget_after = Duration::from_millis(100)).await;
    let function = Function::default();
    rig.function("hello", function);
    rig.subscribe("hello").await;
    rig.saw(
        "forgotten",
        |frame| matches!(frame, FromDataPlane::Forget { name } if name.name() == "hello"),
    )
    .await;
    // And known again when it is asked for.
    rig.subscribe("hello").await;
}

#[tokio::test]
async fn names_whose_callers_left_before_an_answer_are_forgotten() {
    const CALLERS: usize = 50;
    let rig = Rig::dark(|_| {}).await;
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let mut caller = rig.connect().await;
        let request = format!("GET / HTTP/1.1\r\nHost: name-{number}\r\n\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();
        callers.push(caller);
    }
    let waiting = async |count: usize| {
        let line = format!("in_flight_invocations {count}\n");
        until("so many wait", || rig.proxy.metrics_page().contains(&line)).await;
    };
    waiting(CALLERS).await;
    // Of two who ask for the same one stays.
    let mut stays = rig.connect().await;
    stays.write_all(b"GET / HTTP/1.1\r\nHost: name-7\r\n\r\n").await.unwrap();
    waiting(CALLERS + 1).await;
    drop(callers);
    waiting(1).await;
    rig.attach(true).await;
    let greeting = |frame: &FromDataPlane| match frame {
        FromDataPlane::Hello(hello) => {
            let names: Vec<_> = hello.names.iter().map(FunctionName::name).collect();
            assert_eq!(names, ["name-7"]);
            true
        }
        _ => false,
    };
    rig.saw("a greeting", greeting).await;
    assert_eq!(status(&read_response(&mut stays).await.0), 404);
}

#[tokio::test]
async fn a_grant_for_a_function_that_was_forgotten_goes_back() {
    let rig = Rig::start().await;
    let stranger = Function { id: 99, ..Function::default() };
    rig.grant(&stranger, 5, rig.address, 1).await;
    rig.returned(5, WhyReturned::Idle).await;
}

#[tokio::test]
async fn a_cold_start_explains_itself() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let function = Function::default();
    rig.function("hello", function.clone());
    let grant = async {
        rig.demand("one who waits", |demand| demand.queued == 1).await;
        // Longer than anybody waited: what is shown is what this invocation saw of it.
        let hour = Duration::from_secs(3600);
        let start = StartPhases { decide: hour, init: hour, ..StartPhases::default() };
        rig.grant_started(&function, 1, backend.address, Some(start)).await;
    };
    let (answer, ()) = tokio::join!(rig.get("hello", "/"), grant);
    let timing = header(&answer, "server-timing").unwrap();
    for phase in ["decide;dur=0.000", "init;dur=", "wire;dur=0.000", "connect;dur=", "ttfb;dur="] {
        assert!(timing.contains(phase), "{phase}: {timing}");
    }
    let id = header(&answer, "x-dirigent-request-id").unwrap();
    until("a record", || rig.proxy.find_invocation(id).is_some_and(|r| r.cold)).await;
    let record = rig.proxy.find_invocation(id).unwrap();
    let sum: Duration = record.phases.iter().map(|(_, took)| *took).sum();
    assert!(sum <= record.total, "{record:?}");
    assert!(rig.proxy.metrics_page().contains("cold_starts_total{function=\"default/hello\"} 1"));
}

#[tokio::test]
async fn the_first_call_of_a_sandbox_that_was_ready_is_a_warm_one() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let function = Function::default();
    rig.function("hello", function.clone());
    rig.subscribe("hello").await;
    let second = Duration::from_secs(1);
    let start = StartPhases { create: second, ..StartPhases::default() };
    rig.grant_started(&function, 1, backend.address, Some(start)).await;
    rig.demand("a free slot", |demand| demand.held == 1).await;
    let answer = rig.get("hello", "/").await;
    let timing = header(&answer, "server-timing").unwrap();
    assert!(timing.starts_with("queue;dur=") && !timing.contains("create"), "{timing}");
    assert!(!rig.proxy.metrics_page().contains("cold_starts_total{function=\"default/hello\"} 1"));
}

#[tokio::test]
async fn a_drain_answers_what_is_under_way_and_accepts_nothing_more() {
    let rig = Rig::start().await;
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::start(move |mut stream, _| {
        let mut held = held.clone();
        async move {
            while common::read_request(&mut stream).await.is_some() {
                held.wait_for(|released| *released).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    // One call runs, one waits in the queue, one connection is idle.
    let mut idle = rig.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_response(&mut idle).await.0), 404);
    let mut calls = Vec::new();
    for number in 1..=2_u64 {
        let mut caller = rig.connect().await;
        caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
        calls.push(caller);
        rig.demand("a call more", |d| u64::from(d.queued + d.busy) == number).await;
    }
    let drained = rig.proxy.drain(common::DEADLINE);
    let check = async {
        assert!(within(idle.read_u8()).await.is_err(), "idle connections are closed");
        until("nothing is accepted", || std::net::TcpStream::connect(rig.address).is_err()).await;
        release.send_replace(true);
        for mut caller in calls {
            let (head, _) = read_response(&mut caller).await;
            assert_eq!(status(&head), 200, "{head}");
            assert_eq!(header(&head, "connection"), Some("close"), "{head}");
        }
    };
    let (all, ()) = tokio::join!(drained, check);
    assert!(all);
    rig.tasks.stop();
    assert!(rig.tasks.wait(common::DEADLINE).await);
    assert_eq!(rig.tasks.failure(), None);
}

#[tokio::test]
async fn a_drain_answers_whoever_has_connected_and_those_who_call_once_more() {
    let rig = Rig::with(|config| config.limits.last_call = common::DEADLINE).await;
    let backend = Backend::answering(|_, _| "ok".to_owned()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n";
    let mut kept = rig.connect().await;
    kept.write_all(GET).await.unwrap();
    assert_eq!(status(&read_response(&mut kept).await.0), 200);
    // Its call is on the way when the drain begins, as is the next one on the kept connection.
    let mut fresh = rig.connect().await;
    let drained = rig.proxy.drain(common::DEADLINE);
    let check = async {
        until("nothing is accepted", || std::net::TcpStream::connect(rig.address).is_err()).await;
        for caller in [&mut fresh, &mut kept] {
            caller.write_all(GET).await.unwrap();
            let (head, _) = within(read_response(caller)).await;
            assert_eq!(status(&head), 200, "{head}");
            assert_eq!(header(&head, "connection"), Some("close"), "{head}");
        }
    };
    let (all, ()) = tokio::join!(drained, check);
    assert!(all);
}

#[tokio::test]
async fn a_drain_that_cannot_end_says_so() {
    let rig = Rig::start().await;
    rig.function("hello", Function::default());
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    assert!(!rig.proxy.drain(Duration::from_millis(50)).await);
    rig.tasks.stop();
    assert!(rig.tasks.wait(common::DEADLINE).await, "what is left ends with the tasks");
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_the_flag() {
    let rig = Rig::start().await;
    let tasks = dirigent_service::Tasks::new();
    let (frames, _accept) = dirigent_service::acceptor("dp");
    let (bulk, _accept) = dirigent_service::acceptor("dp");
    let config = dirigent_proxy::Config::new(rig.address);
    let error = dirigent_proxy::start(config, frames, bulk, &tasks).await.unwrap_err();
    assert!(error.to_string().contains("--listen"), "{error}");
}
