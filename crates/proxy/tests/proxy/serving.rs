//! What a function and its caller get when nothing goes wrong.

use std::time::Duration;

use crate::common::{self, Backend, Function, Rig, body, header, read_response, status};
use dirigent_core::frame::{FromDataPlane, FromDataPlaneBulk, ToDataPlaneBulk, WhyReturned};
use dirigent_service::OnCancel;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn a_call_goes_to_a_granted_sandbox_and_back() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|head, _| head.to_owned()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let answer = rig.get("hello.example.com", "/a?b=c").await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(header(&answer, "x-dirigent-request-id").is_some_and(|id| id.len() == 36), "{answer}");
    assert!(header(&answer, "server-timing").is_some_and(|t| t.contains("ttfb;dur=")), "{answer}");
    assert!(header(&answer, "x-dirigent-error").is_none(), "{answer}");
    let seen = body(&answer);
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\nhost: hello.example.com\r\n"), "{seen}");
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\r\n"), "{seen}");
    assert!(seen.contains("traceparent: 00-"), "{seen}");
    let id = header(&answer, "x-dirigent-request-id").unwrap();
    assert!(seen.contains(&format!("x-request-id: {id}\r\n")), "{seen}");
}

#[tokio::test]
async fn a_queued_call_is_bound_when_a_slot_is_granted() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "late".into()).await;
    let function = Function::default();
    rig.function("hello", function.clone());
    let call = rig.get("hello", "/");
    let grant = async {
        rig.demand("one who waits", |demand| demand.queued == 1).await;
        rig.grant(&function, 1, backend.address, 1).await;
    };
    let (answer, ()) = tokio::join!(call, grant);
    assert_eq!((status(&answer), body(&answer)), (200, "late"), "{answer}");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, body| format!("{}", body.len())).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    for size in [0, 1, 100, 10_000, 100_000] {
        let head = format!("POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: {size}\r\n\r\n");
        caller.write_all(head.as_bytes()).await.unwrap();
        caller.write_all(&vec![b'x'; size]).await.unwrap();
        let (head, body) = read_response(&mut caller).await;
        assert_eq!((status(&head), body), (200, size.to_string()), "{head}");
    }
    assert_eq!(*backend.connections.borrow(), 1);
}

#[tokio::test]
async fn the_path_names_the_function_where_the_host_cannot() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|head, _| head.to_owned()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let answer = rig.get("127.0.0.1:8080", "/fn/hello/x?y").await;
    assert!(body(&answer).starts_with("GET /x?y HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n"), "{answer}");
    assert!(body(&answer).contains("x-forwarded-prefix: /fn/hello\r\n"), "{answer}");
    let answer = rig.get("localhost", "/fn/hello?y").await;
    assert!(body(&answer).starts_with("GET /?y HTTP/1.1\r\n"), "{answer}");
    // With a name as Host, such a path is the function's own, and so are these.
    for path in ["/fn/other/x", "/health", "/metrics"] {
        let answer = rig.get("hello", path).await;
        assert!(body(&answer).starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_is_believed_what_it_says_of_callers() {
    // By default this machine is trusted; where nobody is, its callers are strangers.
    for trusted in [true, false] {
        let rig = Rig::with(|config| {
            if !trusted {
                config.trusted_proxies.clear();
            }
        })
        .await;
        let backend = Backend::answering(|head, _| head.to_owned()).await;
        rig.serving("hello", Function::default(), backend.address, 1).await;
        let answer = rig
            .raw(
                "GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n\
                 X-Forwarded-For: 192.0.2.7\r\n\r\n",
            )
            .await;
        let seen = body(&answer);
        let (proto, caller) =
            if trusted { ("https", "192.0.2.7, 127.0.0.1") } else { ("http", "127.0.0.1") };
        assert!(seen.contains(&format!("x-forwarded-proto: {proto}\r\n")), "{seen}");
        assert!(seen.contains(&format!("x-forwarded-for: {caller}\r\n")), "{seen}");
    }
}

#[tokio::test]
async fn bodies_without_a_length_stream_both_ways_with_trailers() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        while let Some((head, body)) = common::read_request(&mut stream).await {
            assert!(head.contains("te: trailers\r\n"), "{head}");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 {:x}\r\n{}\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n",
                body.len(),
                String::from_utf8(body).unwrap()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let answer = rig
        .raw(
            "POST / HTTP/1.1\r\nHost: hello\r\nTE: trailers\r\nConnection: close, te\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-In: 1\r\n\
             X-Dirigent-Attempt: 9\r\nHost: evil\r\n\r\n",
        )
        .await;
    assert_eq!(status(&answer), 200, "{answer}");
    // What the sandbox read; trailers are held to what headers are.
    assert!(answer.contains("2\r\nhi\r\n0\r\nx-in: 1\r\n\r\n"), "{answer}");
    assert!(answer.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_response_flows_before_its_end() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        common::read_request(&mut stream).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // Nothing more: the caller must see what came.
        stream.read_u8().await.unwrap_err();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    let head = common::within(common::read_head(&mut caller)).await.unwrap();
    assert_eq!(status(&head), 200);
    let mut chunk = [0; 6];
    common::within(caller.read_exact(&mut chunk)).await.unwrap();
    assert_eq!(&chunk, b"1\r\na\r\n");
}

#[tokio::test]
async fn http_1_0_is_understood() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        common::read_request(&mut stream).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let answer = rig.raw("GET / HTTP/1.0\r\nHost: hello\r\n\r\n").await;
    assert_eq!((status(&answer), body(&answer)), (200, "abc"), "{answer}");
    assert!(header(&answer, "transfer-encoding").is_none(), "{answer}");
}

#[tokio::test]
async fn a_sandbox_that_speaks_http_1_0_is_understood() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        common::read_request(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: x/y\r\n\r\nto the end").await.unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    for _ in 0..2 {
        let answer = rig.get("hello", "/").await;
        assert!(answer.contains("to the end"), "{answer}");
    }
}

#[tokio::test]
async fn the_client_is_told_to_continue_only_once_there_is_a_slot() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, body| String::from_utf8(body.to_vec()).unwrap()).await;
    let function = Function::default();
    rig.function("hello", function.clone());
    let mut caller = rig.connect().await;
    let head =
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    caller.write_all(head.as_bytes()).await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    let nothing = caller.try_read(&mut [0; 1]);
    assert!(nothing.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    rig.grant(&function, 1, backend.address, 1).await;
    let head = common::within(common::read_head(&mut caller)).await.unwrap();
    assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    caller.write_all(b"hi").await.unwrap();
    let (head, body) = read_response(&mut caller).await;
    assert_eq!((status(&head), &*body), (200, "hi"));
}

#[tokio::test]
async fn head_and_small_body_reach_the_sandbox_in_one_read() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        let mut room = vec![0; 64 << 10];
        loop {
            let read = stream.read(&mut room).await.unwrap();
            if read == 0 {
                return;
            }
            let text = String::from_utf8_lossy(&room[..read]).into_owned();
            let whole = text.starts_with("POST") && text.ends_with("the body");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{whole}",
                if whole { 4 } else { 5 }
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    for _ in 0..3 {
        let request = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 8\r\n\r\nthe body";
        caller.write_all(request.as_bytes()).await.unwrap();
        // The answer comes in one piece, too.
        let mut room = vec![0; 64 << 10];
        let read = common::within(caller.read(&mut room)).await.unwrap();
        let answer = String::from_utf8_lossy(&room[..read]).into_owned();
        assert_eq!((status(&answer), body(&answer)), (200, "true"), "{answer}");
    }
}

/// What a sandbox answers that switches.
const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
/// The close of a WebSocket with status 1001.
const GOODBYE: &[u8] = &[0x88, 0x02, 0x03, 0xe9];

/// A connection whose protocol was switched, and the head that said so.
async fn upgraded(rig: &Rig) -> (TcpStream, String) {
    let mut caller = rig.connect().await;
    let request =
        "GET / HTTP/1.1\r\nHost: hello\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    caller.write_all(request.as_bytes()).await.unwrap();
    let head = common::within(common::read_head(&mut caller)).await.unwrap();
    assert_eq!(status(&head), 101, "{head}");
    (caller, head)
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_keeps_its_slot() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        let (head, _) = common::read_request(&mut stream).await.unwrap();
        assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nX-Dirigent-Error: forged\r\n\r\nearly";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let (mut caller, head) = upgraded(&rig).await;
    assert_eq!(header(&head, "upgrade"), Some("websocket"), "{head}");
    assert_eq!(header(&head, "x-dirigent-error"), None, "{head}");
    caller.write_all(b"\0\nanything").await.unwrap();
    let mut echo = [0; 15];
    common::within(caller.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"early\0\nanything");
    rig.demand("a busy slot", |demand| demand.busy == 1).await;
    drop(caller);
    rig.demand("a free slot", |demand| demand.busy == 0).await;
}

#[tokio::test]
async fn a_client_that_resets_an_upgraded_connection_leaves_its_handler_running() {
    let rig = Rig::start().await;
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::start(move |mut stream, _| {
        let mut held = held.clone();
        async move {
            common::read_request(&mut stream).await;
            stream.write_all(SWITCHED).await.unwrap();
            held.wait_for(|released| *released).await.unwrap();
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let (caller, _) = upgraded(&rig).await;
    caller.set_zero_linger().unwrap();
    drop(caller);
    // It takes one at a time and may be busy: its slot is not free, the sandbox goes.
    rig.returned(1, WhyReturned::Closing).await;
    release.send_replace(true);
}

#[tokio::test]
async fn a_websocket_whose_sandbox_ends_is_told_to_go_away_between_frames() {
    let text: &[u8] = b"\x81\x02hi";
    // What the sandbox sends before it dies, and what the client hears of it.
    let cases = [
        (text.to_vec(), [text, GOODBYE].concat()),
        (b"\x81\x05hal".to_vec(), b"\x81\x05hal".to_vec()),
        (b"\x88\x02\x03\xe8".to_vec(), b"\x88\x02\x03\xe8".to_vec()),
    ];
    for (sent, heard) in cases {
        let rig = Rig::start().await;
        let backend = Backend::start(move |mut stream, _| {
            let sent = sent.clone();
            async move {
                common::read_request(&mut stream).await;
                stream.write_all(&[SWITCHED, &sent].concat()).await.unwrap();
            }
        })
        .await;
        rig.serving("hello", Function::default(), backend.address, 1).await;
        let (mut caller, _) = upgraded(&rig).await;
        let mut all = Vec::new();
        common::within(caller.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all, heard);
    }
}

#[tokio::test]
async fn a_client_that_keeps_sending_hears_the_goodbye_too() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        common::read_request(&mut stream).await;
        stream.write_all(SWITCHED).await.unwrap();
        stream.read_u8().await.unwrap();
        // With bytes unread, so that the sandbox's end is a reset.
        stream.set_zero_linger().unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    for _ in 0..10 {
        let (caller, _) = upgraded(&rig).await;
        let (mut read, mut write) = caller.into_split();
        let sending = async move {
            while write.write_all(&[0; 64]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let mut all = Vec::new();
        let hearing = async { common::within(read.read_to_end(&mut all)).await };
        tokio::select! {
            () = sending => panic!("its connection was cut"),
            heard = hearing => heard.map(|_bytes| ()).unwrap(),
        }
        assert_eq!(all, GOODBYE);
        rig.demand("a free slot", |demand| demand.busy == 0).await;
    }
}

/// A client that stays although its sandbox has closed the connection.
#[derive(Clone, Copy, Debug)]
enum Staying {
    Silent,
    Sending,
    /// It has vanished: nobody takes what the sandbox sends.
    TakingNothing,
}

#[tokio::test]
async fn the_slot_of_an_upgraded_connection_is_free_when_its_sandbox_closes_it() {
    tokio::join!(
        closed_by_its_sandbox(Staying::Silent),
        closed_by_its_sandbox(Staying::Sending),
        closed_by_its_sandbox(Staying::TakingNothing),
    );
}

async fn closed_by_its_sandbox(staying: Staying) {
    let rig = Rig::start().await;
    let (close, closes) = tokio::sync::watch::channel(false);
    let floods = matches!(staying, Staying::TakingNothing);
    let backend =
        Backend::start(move |stream, _| close_when_told(stream, floods, closes.clone())).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let (caller, _) = upgraded(&rig).await;
    rig.demand("a busy slot", |demand| demand.busy == 1).await;
    let (mut read, mut write) = caller.into_split();
    let sends = matches!(staying, Staying::Sending);
    rig.tasks.run("caller", OnCancel::Abort, async move {
        while sends && write.write_all(&[0; 64]).await.is_ok() {
            tokio::task::yield_now().await;
        }
        std::future::pending::<()>().await;
        drop(write);
    });
    close.send_replace(true);
    rig.demand("a free slot", |demand| demand.busy == 0).await;
    assert_eq!(status(&rig.get("hello", "/").await), 200, "{staying:?}");
    let recycled = |frame: &FromDataPlane| matches!(frame, FromDataPlane::Returned(_));
    assert!(!rig.frames().iter().any(recycled), "{staying:?}: {:?}", rig.frames());
    if !floods {
        // The client, who is still there, hears that it is over.
        let mut all = Vec::new();
        common::within(read.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all, GOODBYE, "{staying:?}");
    }
}

/// Switches protocols when asked to, and closes once it is told to; one that floods sends what nobody
/// takes, and then resets the connection. Other calls are answered.
async fn close_when_told(
    mut stream: TcpStream,
    floods: bool,
    mut closes: tokio::sync::watch::Receiver<bool>,
) {
    let (head, _) = common::read_request(&mut stream).await.unwrap();
    if !head.contains("upgrade") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        return;
    }
    stream.write_all(SWITCHED).await.unwrap();
    closes.wait_for(|closes| *closes).await.unwrap();
    if floods {
        let full = Duration::from_millis(300);
        while tokio::time::timeout(full, stream.write_all(&[0; 64 << 10])).await.is_ok() {}
        stream.set_zero_linger().unwrap();
    }
}

#[tokio::test]
async fn behind_a_head_that_might_have_switched_protocols_nothing_is_read() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    for (host, more) in [("hello", ""), ("hello", "Connection: upgrade\r\n"), ("nobody", "")] {
        let smuggled = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1\r\n\
                        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: x\r\n{more}\r\n");
        let answer = rig.raw(&format!("{head}{smuggled}")).await;
        assert_eq!(header(&answer, "connection"), Some("close"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}

#[tokio::test]
async fn what_happened_to_an_invocation_is_remembered() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let answer = rig
        .raw("GET / HTTP/1.1\r\nHost: hello\r\nX-Request-Id: mine-1\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(header(&answer, "x-dirigent-request-id"), Some("mine-1"), "{answer}");
    let question = ToDataPlaneBulk::FindInvocation { id: 7, request_id: "mine-1".into() };
    let FromDataPlaneBulk::Invocation { id, record } = rig.ask_bulk(question).await;
    let record = record.expect("a record");
    assert_eq!((id, record.status, record.attempts, record.cold), (7, 200, 1, false));
    assert_eq!(record.sandbox, Some(common::sandbox(1)));
    assert!(rig.proxy.find_invocation("other").is_none());
    let page = rig.proxy.metrics_page();
    let line = "dirigent_proxy_invocations_total{function=\"default/hello\",class=\"2xx\"} 1";
    assert!(page.contains(line), "{page}");
}
