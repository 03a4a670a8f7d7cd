//! Wrong and hostile input.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{
    self, Backend, Function, Rig, body, header, read_response, status, until, within,
};

async fn rig(change: impl FnOnce(&mut dirigent_proxy::Limits)) -> (Rig, Backend) {
    let rig = Rig::with(|config| change(&mut config.limits)).await;
    let backend = Backend::answering(|head, body| format!("{head}{}", body.len())).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    (rig, backend)
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_reach_no_sandbox() {
    let (rig, backend) = rig(|_| {}).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: hello\r\n\r\n";
    for request in [
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 4, 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 0x4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        "GET / HTTP/1.1\nHost: hello\n\n",
        "GET / HTTP/1.1\r\nHost: hello\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: hello\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: hello\r\nHost: other\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nHost: hello\r\n\r\n",
        "CONNECT hello:80 HTTP/1.1\r\nHost: hello:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: hello\r\nno colon\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: hello\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: hello\r\n\r\n",
        "nonsense\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: hello\r\n\r\n",
    ] {
        let answer = rig.raw(&format!("{request}{smuggled}")).await;
        assert_eq!(status(&answer), 400, "{request:?}: {answer}");
        assert!(!answer.contains("smuggled"), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
    }
    // The sandbox saw the head of the bad chunk's request at most.
    assert!(*backend.connections.borrow() <= 1);
    let answer = rig.get("hello", "/").await;
    assert_eq!(status(&answer), 200, "the rest is unharmed: {answer}");
}

#[tokio::test]
async fn a_refusal_says_why_and_carries_a_request_id() {
    let (rig, _backend) = rig(|_| {}).await;
    let answer = rig
        .raw("POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx")
        .await;
    assert_eq!(header(&answer, "x-dirigent-error"), Some("bad_request"), "{answer}");
    let id = header(&answer, "x-dirigent-request-id").unwrap();
    assert!(body(&answer).contains(id) && body(&answer).contains("twice"), "{answer}");
}

#[tokio::test]
async fn answers_before_a_refused_request_are_not_lost() {
    let (rig, _backend) = rig(|_| {}).await;
    let good = "GET /good HTTP/1.1\r\nHost: hello\r\n\r\n";
    let answer = rig.raw(&format!("{good}{good}GET / HTTP/1.1\nHost: hello\n\n")).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 400 Bad Request").count(), 1, "{answer}");
    assert!(answer.contains("\"bad_request\""), "{answer}");
}

#[tokio::test]
async fn the_target_may_be_absolute_if_it_agrees_with_the_host() {
    let (rig, _backend) = rig(|_| {}).await;
    let answer =
        rig.raw("GET http://hello/x HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n").await;
    assert!(body(&answer).starts_with("GET /x HTTP/1.1\r\nhost: hello\r\n"), "{answer}");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_however_large() {
    let (rig, _backend) = rig(|_| {}).await;
    let long = format!("GET / HTTP/1.1\r\nHost: hello\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\nHost: hello\r\n{}\r\n", "X: y\r\n".repeat(200));
    for request in [long, many] {
        let answer = rig.raw(&request).await;
        assert_eq!(status(&answer), 431, "{answer}");
        assert_eq!(header(&answer, "x-dirigent-error"), Some("head_too_large"), "{answer}");
        let id = header(&answer, "x-dirigent-request-id").expect("an id to ask by");
        let record = rig.proxy.find_invocation(id).expect("it is remembered");
        assert_eq!((record.status, record.code.as_deref()), (431, Some("head_too_large")));
        assert_eq!((record.function, record.attempts), (None, 0));
    }
    // 50 MB of header: the answer comes although the client is not done.
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nX: ").await.unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..50 {
        if caller.write_all(&piece).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    within(caller.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&answer)), 431);
    // A head just below the limit passes.
    let fits = format!(
        "GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\nX: {}\r\n\r\n",
        "x".repeat(60_000)
    );
    assert_eq!(status(&rig.raw(&fits).await), 200);
}

#[tokio::test]
async fn a_head_that_comes_too_slowly_is_given_up() {
    let (rig, _backend) = rig(|limits| limits.head_timeout = Duration::from_millis(100)).await;
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let mut answer = Vec::new();
    within(caller.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(status(&answer), 408, "{answer}");
    assert_eq!(header(&answer, "x-dirigent-error"), Some("request_timeout"), "{answer}");
    // Also on a connection that has served; and one byte now and then does not help.
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    let (head, _) = read_response(&mut caller).await;
    assert_eq!(status(&head), 200);
    let dripping = async {
        while caller.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(dripping).await;
}

#[tokio::test]
async fn a_head_that_hardly_begins_is_given_up_as_well() {
    let (rig, _backend) = rig(|limits| limits.head_timeout = Duration::from_millis(100)).await;
    // As an HTTP/2 preface, a POST, and an empty line before a request begin.
    for begin in ["P", "PO", "PRI * ", "\r\n", "\r"] {
        let mut caller = rig.connect().await;
        caller.write_all(begin.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(caller.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(status(&answer), 408, "{begin:?}: {answer}");
    }
    let served = rig.raw("\r\nGET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&served), 200, "one empty line is tolerated: {served}");
}

#[tokio::test]
async fn http_2_is_not_switched_to_and_functions_do_not_hear_of_it() {
    let (rig, _backend) = rig(|_| {}).await;
    for offer in ["h2c", "H2C", "websocket, h2c"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: hello\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {offer}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        let answer = rig.raw(&request).await.to_lowercase();
        assert_eq!(status(&answer), 200, "{offer}: {answer}");
        let seen = body(&answer);
        assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{offer}: {seen}");
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed_but_not_while_it_is_served() {
    let rig = Rig::with(|config| {
        config.limits.idle_connection = Duration::from_millis(100);
    })
    .await;
    let backend = Backend::start(|mut stream, _| async move {
        while common::read_request(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    let (head, _) = read_response(&mut caller).await;
    assert_eq!(status(&head), 200);
    let closed = within(caller.read_u8()).await;
    assert!(closed.is_err());
}

/// Waits until so many connections have no buffers.
async fn rest(rig: &Rig, count: usize) {
    let line = format!("dirigent_proxy_connections_resting {count}\n");
    until("connections rest", || rig.proxy.metrics_page().contains(&line)).await;
}

#[tokio::test]
async fn a_connection_that_rests_goes_on_where_it_was() {
    let (rig, _backend) = rig(|limits| limits.rest_after = Duration::from_millis(20)).await;
    let mut caller = rig.connect().await;
    let get = "GET / HTTP/1.1\r\nHost: hello\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 10\r\n\r\n01234";
    // In pieces, between which is waited for longer than a connection takes to rest; with how many
    // bytes of a body its calls came.
    let sent: [(&[&str], &[&str]); 5] = [
        (&[get], &["0"]),
        (&["GET / HTTP", "/1.1\r\nHost: hello\r\n\r\n"], &["0"]),
        (&[post, "56789"], &["10"]),
        (&[get, get], &["0", "0"]),
        (&[&format!("{post}56789{get}{get}")], &["10", "0", "0"]),
    ];
    for (pieces, answers) in sent {
        for piece in pieces {
            caller.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        for answer in answers {
            let (head, body) = within(read_response(&mut caller)).await;
            assert_eq!(status(&head), 200, "{head}");
            assert!(body.ends_with(answer), "{pieces:?}: {body}");
        }
        rest(&rig, 1).await;
    }
    // Leaving is noticed.
    drop(caller);
    rest(&rig, 0).await;
    let none = "dirigent_proxy_connections 0\n";
    until("it is gone", || rig.proxy.metrics_page().contains(none)).await;
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_in_time_and_by_a_drain() {
    let (rig, _backend) = rig(|limits| {
        limits.rest_after = Duration::from_millis(10);
        limits.idle_connection = Duration::from_millis(500);
    })
    .await;
    let mut silent = rig.connect().await;
    silent.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    read_response(&mut silent).await;
    rest(&rig, 1).await;
    assert!(within(silent.read_u8()).await.is_err());
    let mut other = rig.connect().await;
    other.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    read_response(&mut other).await;
    rest(&rig, 1).await;
    assert!(within(rig.proxy.drain(common::DEADLINE)).await);
    assert!(within(other.read_u8()).await.is_err());
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_with_and_without_a_length() {
    let (rig, _backend) = rig(|limits| limits.body_bytes = Some(10)).await;
    let head = "POST / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n";
    let answer = rig.raw(&format!("{head}Content-Length: 11\r\n\r\nhello world")).await;
    assert_eq!(status(&answer), 413, "{answer}");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n");
    let answer = rig.raw(&chunked).await;
    assert_eq!(status(&answer), 413, "{answer}");
    assert_eq!(header(&answer, "x-dirigent-error"), Some("body_too_large"), "{answer}");
}

#[tokio::test]
async fn connections_and_invocations_over_the_bounds_are_told_so() {
    let (rig, _backend) = rig(|limits| limits.connections = 2).await;
    // The caller that made the data plane ask for the name may still be counted.
    until("no connection", || rig.proxy.metrics_page().contains("proxy_connections 0\n")).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut caller = rig.connect().await;
        caller.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
        assert_eq!(status(&read_response(&mut caller).await.0), 200);
        held.push(caller);
    }
    let mut third = rig.connect().await;
    let mut answer = String::new();
    within(third.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(status(&answer), 503, "{answer}");
    drop(held);
    until("room again", || rig.proxy.metrics_page().contains("proxy_connections 0\n")).await;
    assert_eq!(status(&rig.get("hello", "/").await), 200);

    let rig = Rig::with(|config| config.limits.in_flight = 1).await;
    rig.function("hello", Function::default());
    let mut waits = rig.connect().await;
    waits.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n").await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    let answer = rig.get("hello", "/").await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(header(&answer, "x-dirigent-error"), Some("no_capacity"), "{answer}");
}

#[tokio::test]
async fn hosts_that_name_nothing_get_404_with_what_was_expected() {
    let (rig, _backend) = rig(|_| {}).await;
    for (host, path) in [("localhost", "/"), ("a_b", "/"), ("x.y.other.org", "/"), ("nobody", "/")]
    {
        let answer = rig.get(host, path).await;
        assert_eq!(status(&answer), 404, "{host}: {answer}");
        assert_eq!(header(&answer, "x-dirigent-error"), Some("not_found"), "{answer}");
    }
}
