//! Sandboxes that fail: what is tried again, what is not, and what callers are told.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use dirigent_core::{
    Cause, Fault, Protocol, Settings, StartFailure,
    frame::{FromDataPlane, Status, WhyReturned},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::common::{
    self, Backend, Function, Rig, body, header, read_request, status, until, within,
};

async fn refused_address() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Reads a request on each connection and closes it without a byte of answer.
async fn dying() -> Backend {
    Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
    })
    .await
}

fn code(answer: &str) -> (u16, &str) {
    (status(answer), header(answer, "x-dirigent-error").unwrap_or(""))
}

async fn post(rig: &Rig, more: &str, body: &str) -> String {
    let length = body.len();
    rig.raw(&format!(
        "POST / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n{body}"
    ))
    .await
}

#[tokio::test]
async fn a_call_that_never_reached_a_sandbox_is_sent_to_another_whatever_its_method() {
    let rig = Rig::start().await;
    let function = Function::default();
    let backend = Backend::answering(|head, body| {
        assert!(!head.contains("x-dirigent-attempt"), "nothing was sent before: {head}");
        String::from_utf8(body.to_vec()).unwrap()
    })
    .await;
    rig.serving("hello", function.clone(), refused_address().await, 1).await;
    let call = post(&rig, "", "once");
    let grant = async {
        rig.returned(1, WhyReturned::Unreachable).await;
        rig.grant(&function, 2, backend.address, 1).await;
    };
    let (answer, ()) = tokio::join!(call, grant);
    assert_eq!((status(&answer), body(&answer)), (200, "once"), "{answer}");
}

#[tokio::test]
async fn an_idempotent_call_that_was_lost_is_sent_once_more_elsewhere() {
    for (method, more) in
        [("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "Idempotency-Key: 1\r\n")]
    {
        let rig = Rig::start().await;
        let function = Function::default();
        let dying = dying().await;
        let backend = Backend::answering(|head, body| {
            assert!(head.contains("x-dirigent-attempt: 2\r\n"), "{head}");
            String::from_utf8(body.to_vec()).unwrap()
        })
        .await;
        rig.serving("hello", function.clone(), dying.address, 1).await;
        rig.grant(&function, 2, backend.address, 1).await;
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n{more}\
             Content-Length: 4\r\n\r\nbody"
        );
        let answer = rig.raw(&request).await;
        assert_eq!((status(&answer), body(&answer)), (200, "body"), "{method}: {answer}");
    }
}

#[tokio::test]
async fn a_call_that_was_lost_twice_or_may_not_be_repeated_is_answered_502() {
    let rig = Rig::start().await;
    let function = Function::default();
    let (first, second) = (dying().await, dying().await);
    rig.serving("hello", function.clone(), first.address, 1).await;
    let answer = post(&rig, "", "x").await;
    assert_eq!(code(&answer), (502, "sandbox_lost"), "{answer}");
    let id = header(&answer, "x-dirigent-request-id").unwrap();
    assert!(body(&answer).contains(&format!("\"request_id\":\"{id}\"")), "{answer}");

    rig.grant(&function, 2, second.address, 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!(code(&answer), (502, "sandbox_lost"), "{answer}");
    assert_eq!((*first.connections.borrow(), *second.connections.borrow()), (2, 1));
    // A handler that fails costs its function no sandbox: who finds one could force starts.
    rig.demand("both are free", |demand| demand.held == 2 && demand.busy == 0).await;
    let returned = |frame: &FromDataPlane| matches!(frame, FromDataPlane::Returned(_));
    assert!(!rig.frames().iter().any(returned));
}

#[tokio::test]
async fn a_sandbox_that_died_is_found_out_by_the_call_that_comes_next() {
    let rig = Rig::start().await;
    let function = Function::default();
    // It answers one, and takes one more whose answer it does not live to give.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let backend = Backend::answering(|_, _| "alive".into()).await;
    rig.serving("hello", function.clone(), address, 1).await;
    let call = rig.get("hello", "/");
    let die = async {
        let (mut stream, _) = within(listener.accept()).await.unwrap();
        drop(listener);
        read_request(&mut stream).await;
        drop(stream);
        rig.returned(1, WhyReturned::Unreachable).await;
        rig.grant(&function, 2, backend.address, 1).await;
    };
    let (answer, ()) = tokio::join!(call, die);
    assert_eq!((status(&answer), body(&answer)), (200, "alive"), "{answer}");
}

#[tokio::test]
async fn a_lost_call_is_repeated_when_the_dying_have_closed_their_listeners() {
    let rig = Rig::start().await;
    let lost = std::sync::Arc::new(std::sync::Mutex::new(None));
    let at = std::sync::Arc::clone(&lost);
    let backend = Backend::start(move |mut stream, number| {
        let at = std::sync::Arc::clone(&at);
        async move {
            if number > 0 {
                let lost: Instant = at.lock().unwrap().expect("the first was lost");
                assert!(lost.elapsed() >= Duration::from_millis(25), "{:?}", lost.elapsed());
            }
            read_request(&mut stream).await;
            if number == 0 {
                *at.lock().unwrap() = Some(Instant::now());
                return;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!((status(&answer), body(&answer)), (200, "ok"), "{answer}");
}

#[tokio::test]
async fn a_body_too_large_to_keep_or_a_function_that_says_so_is_not_repeated() {
    let rig = Rig::start().await;
    let settings = Settings { retry: false, ..Settings::default() };
    let dying = dying().await;
    rig.serving("hello", Function { settings, ..Function::default() }, dying.address, 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!(code(&answer), (502, "sandbox_lost"), "{answer}");

    let rig = Rig::start().await;
    rig.serving("hello", Function::default(), dying.address, 1).await;
    let large = "x".repeat(70_000);
    let answer = post(&rig, "Idempotency-Key: 1\r\n", &large).await;
    assert_eq!(code(&answer), (502, "sandbox_lost"), "{answer}");
}

#[tokio::test]
async fn a_kept_connection_that_the_sandbox_closed_costs_nothing() {
    let rig = Rig::start().await;
    // Says that it keeps the connection, and closes it.
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    for _ in 0..20 {
        let answer = rig.get("hello", "/").await;
        assert_eq!((status(&answer), body(&answer)), (200, "ok"), "{answer}");
    }
}

#[tokio::test]
async fn a_response_that_broke_off_is_cut_visibly() {
    for (head, chunk) in [
        ("Content-Length: 100\r\n", "some"),
        ("Transfer-Encoding: chunked\r\n", "4\r\nsome\r\n"),
        ("Transfer-Encoding: chunked\r\n", "4\r\nso"),
    ] {
        for version in ["1.1", "1.0"] {
            let rig = Rig::start().await;
            let backend = Backend::start(move |mut stream, _| async move {
                read_request(&mut stream).await;
                let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n{chunk}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                // Let it begin at the client before it breaks.
                if chunk.ends_with('e') || chunk.ends_with('\n') {
                    stream.read_u8().await.unwrap_err();
                }
            })
            .await;
            rig.serving("hello", Function::default(), backend.address, 1).await;
            let mut caller = rig.connect().await;
            let request =
                format!("GET / HTTP/{version}\r\nHost: hello\r\nConnection: close\r\n\r\n");
            caller.write_all(request.as_bytes()).await.unwrap();
            let mut answer = vec![0; 1];
            within(caller.read_exact(&mut answer)).await.unwrap();
            drop(backend);
            let end = within(caller.read_to_end(&mut answer)).await;
            let answer = String::from_utf8(answer).unwrap();
            let visible = end.is_err()
                || status(&answer) == 502
                || (header(&answer, "content-length").is_some_and(|l| l == "100")
                    && body(&answer).len() < 100)
                || (header(&answer, "transfer-encoding").is_some()
                    && !answer.ends_with("0\r\n\r\n"));
            assert!(visible, "HTTP/{version} {head:?} {chunk:?}: {answer:?} {end:?}");
        }
    }
}

#[tokio::test]
async fn what_is_not_http_is_answered_502() {
    for nonsense in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200",
    ] {
        let rig = Rig::start().await;
        let backend = Backend::start(move |mut stream, _| async move {
            read_request(&mut stream).await;
            stream.write_all(nonsense.as_bytes()).await.unwrap();
        })
        .await;
        rig.serving("hello", Function::default(), backend.address, 1).await;
        let answer = rig.get("hello", "/").await;
        assert_eq!(code(&answer), (502, "sandbox_lost"), "{nonsense:?}: {answer}");
    }
}

#[tokio::test]
async fn a_sandbox_that_speaks_another_protocol_than_was_said_is_explained() {
    // What servers of HTTP/1 answer to the beginning of HTTP/2.
    for answer in ["HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "<!DOCTYPE HTML>\n", ""]
    {
        let rig = Rig::start().await;
        let backend = Backend::start(move |mut stream, _| async move {
            common::read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            while matches!(stream.read(&mut [0; 4096]).await, Ok(read) if read > 0) {}
        })
        .await;
        let function = Function { protocol: Protocol::H2c, ..Function::default() };
        rig.serving("hello", function, backend.address, 1).await;
        for _ in 0..2 {
            let told = post(&rig, "", "x").await;
            assert_eq!(code(&told), (502, "sandbox_lost"), "{told}");
            assert!(body(&told).contains("`sandbox.protocol = "), "{answer}: {told}");
            assert_eq!(body(&told).contains("http1"), !answer.is_empty(), "{answer}: {told}");
        }
        rig.demand("a free slot", |demand| demand.held == 1 && demand.busy == 0).await;
    }
    // And the other way round: settings at once, or only why it ends.
    let frames: [&[u8]; 2] = [b"\0\0\0\x04\0\0\0\0\0", b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01"];
    for frame in frames {
        let rig = Rig::start().await;
        let backend = Backend::start(move |mut stream, _| async move {
            read_request(&mut stream).await;
            stream.write_all(frame).await.unwrap();
        })
        .await;
        rig.serving("hello", Function::default(), backend.address, 1).await;
        for _ in 0..2 {
            let told = post(&rig, "", "x").await;
            assert_eq!(code(&told), (502, "sandbox_lost"), "{told}");
            assert!(body(&told).contains("h2c"), "{told}");
        }
        rig.demand("a free slot", |demand| demand.held == 1 && demand.busy == 0).await;
    }
}

#[tokio::test]
async fn a_function_that_does_not_answer_in_time_is_answered_504_and_recycled() {
    let rig = Rig::start().await;
    let settings = Settings { timeout: Duration::from_millis(50), ..Settings::default() };
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream.read_u8().await.unwrap_err();
    })
    .await;
    rig.serving("hello", Function { settings, ..Function::default() }, backend.address, 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!(code(&answer), (504, "timeout"), "{answer}");
    rig.returned(1, WhyReturned::Closing).await;
}

#[tokio::test]
async fn a_response_that_falls_silent_is_cut_after_idle_timeout() {
    let rig = Rig::start().await;
    let settings = Settings {
        timeout: Duration::from_millis(20),
        idle_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.read_u8().await.unwrap_err();
    })
    .await;
    rig.serving("hello", Function { settings, ..Function::default() }, backend.address, 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!((status(&answer), body(&answer)), (200, "some"), "{answer}");
    rig.returned(1, WhyReturned::Closing).await;
}

#[tokio::test]
async fn a_response_is_not_silent_while_its_request_is_still_coming() {
    const PIECES: usize = 6;
    let rig = Rig::start().await;
    let idle_timeout = Duration::from_secs(2);
    let settings = Settings { idle_timeout, ..Settings::default() };
    let backend = Backend::start(|mut stream, _| async move {
        let (_, begun) = read_request(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        let mut rest = vec![0; PIECES - begun.len()];
        stream.read_exact(&mut rest).await.unwrap();
        stream.write_all(b"done").await.unwrap();
    })
    .await;
    rig.serving("hello", Function { settings, ..Function::default() }, backend.address, 1).await;
    let mut caller = rig.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: {PIECES}\r\n\r\n");
    caller.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..PIECES {
        // Longer in all than may be silent.
        tokio::time::sleep(idle_timeout / 4).await;
        caller.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    let mut room = [0; 1024];
    while !answer.ends_with("done") {
        let read = within(caller.read(&mut room)).await.unwrap();
        assert!(read > 0, "{answer}");
        answer += &String::from_utf8_lossy(&room[..read]);
    }
    assert_eq!(status(&answer), 200, "{answer}");
}

fn failure() -> StartFailure {
    StartFailure {
        cause: Cause::Exited { code: 3 },
        fault: Fault::Function,
        log_tail: vec!["no module named x".into()],
    }
}

#[tokio::test]
async fn who_waited_too_long_is_told_why() {
    for (why, expected) in [
        (Status::Flowing, (504, "start_timeout")),
        (Status::AtMax, (429, "at_max")),
        (Status::NoCapacity, (503, "no_capacity")),
        (Status::NotReady, (504, "start_timeout")),
        (Status::StartFailed(failure()), (502, "start_failed")),
        (Status::CrashLoop(failure()), (502, "crash_loop")),
    ] {
        let rig = Rig::start().await;
        let queue_timeout = Duration::from_millis(300);
        let settings = Settings { queue_timeout, ..Settings::default() };
        let function = Function { settings, ..Function::default() };
        rig.function("hello", function.clone());
        let call = rig.get("hello", "/");
        let tell = async {
            rig.demand("one who waits", |demand| demand.queued == 1).await;
            rig.status(&function, why.clone()).await;
        };
        let (answer, ()) = tokio::join!(call, tell);
        assert_eq!(code(&answer), expected, "{why:?}: {answer}");
        let patient = matches!(expected.1, "at_max" | "no_capacity");
        assert_eq!(header(&answer, "retry-after").is_some(), patient, "{answer}");
        if expected.0 == 502 {
            assert!(answer.contains("exited with status 3"), "{answer}");
            assert!(answer.contains("no module named x"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let rig = Rig::start().await;
    let settings = Settings { max_queue: 1, ..Settings::default() };
    let function = Function { settings, ..Function::default() };
    rig.function("hello", function.clone());
    let mut waits = rig.connect().await;
    waits.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!(code(&answer), (429, "queue_full"), "{answer}");
    assert_eq!(header(&answer, "retry-after"), Some("1"), "{answer}");
    // A gRPC caller is told in its own words.
    let answer = rig
        .raw(
            "POST / HTTP/1.1\r\nHost: hello\r\nContent-Type: application/grpc\r\n\
             Connection: close\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
    assert_eq!((status(&answer), header(&answer, "grpc-status")), (200, Some("8")), "{answer}");
}

#[tokio::test]
async fn a_sandbox_that_answers_before_it_has_read_the_body_is_heard() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        common::read_head(&mut stream).await.unwrap();
        let answer = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        while matches!(stream.read(&mut [0; 4096]).await, Ok(read) if read > 0) {}
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller: TcpStream = rig.connect().await;
    let request = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1000000\r\n\r\n";
    caller.write_all(request.as_bytes()).await.unwrap();
    let (head, text) = common::read_response(&mut caller).await;
    assert_eq!((status(&head), &*text), (413, "no"));
    drop(caller);
    until("no invocation", || rig.proxy.metrics_page().contains("in_flight_invocations 0")).await;
}

#[tokio::test]
async fn what_failed_is_remembered_whatever_is_called_and_refused_after_it() {
    // One place of each kind, if all went through the same sixteenth.
    let rig = Rig::with(|config| config.limits.records = 16).await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    let dying = dying().await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let broken = Function { id: 2, ..Function::default() };
    rig.function("broken", broken.clone());
    let post = "POST / HTTP/1.1\r\nHost: broken\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let grant = async {
        let id = broken.function_id();
        let waits = |frame: &FromDataPlane| match frame {
            FromDataPlane::Demand(demand) => demand.function == id && demand.queued == 1,
            _ => false,
        };
        rig.saw("one who waits", waits).await;
        rig.grant(&broken, 2, dying.address, 1).await;
    };
    let (lost, ()) = tokio::join!(rig.raw(post), grant);
    assert_eq!(code(&lost), (502, "sandbox_lost"), "{lost}");
    let refused = rig.get("nobody", "/").await;
    assert_eq!(code(&refused), (404, "not_found"), "{refused}");
    for _ in 0..40 {
        assert_eq!(status(&rig.get("hello", "/").await), 200);
    }
    let record = |answer: &str| {
        let id = header(answer, "x-dirigent-request-id").unwrap();
        rig.proxy.find_invocation(id).expect("a record")
    };
    let (lost, refused) = (record(&lost), record(&refused));
    assert_eq!((lost.status, lost.code.as_deref()), (502, Some("sandbox_lost")));
    assert!(lost.function.is_some_and(|name| name.name() == "broken"));
    assert_eq!((refused.status, refused.code.as_deref()), (404, Some("not_found")));
    assert!(refused.function.is_some_and(|name| name.name() == "nobody"));
    assert_eq!((refused.function_id, refused.attempts), (None, 0));
    // Nor do refusals push out what failed.
    for _ in 0..40 {
        assert_eq!(status(&rig.get("nobody", "/").await), 404);
    }
    assert!(rig.proxy.find_invocation(&lost.request_id).is_some());
}

#[tokio::test]
async fn calls_that_named_nothing_or_came_to_a_full_data_plane_are_remembered() {
    let rig = Rig::with(|config| config.limits.in_flight = 1).await;
    let nothing = rig.get("localhost", "/").await;
    rig.function("hello", Function::default());
    let mut waits = rig.connect().await;
    waits.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    let shed = rig.get("hello", "/").await;
    for (answer, expected, named) in
        [(nothing, (404, "not_found"), false), (shed, (503, "no_capacity"), true)]
    {
        assert_eq!(code(&answer), expected, "{answer}");
        let id = header(&answer, "x-dirigent-request-id").unwrap();
        let record = rig.proxy.find_invocation(id).expect("a record");
        assert_eq!((record.status, record.code.as_deref()), (expected.0, Some(expected.1)));
        assert_eq!(record.function.is_some(), named);
    }
}
