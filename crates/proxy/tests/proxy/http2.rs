//! HTTP/2 with prior knowledge, from callers and to functions.

use std::time::Duration;

use bytes::Bytes;
use dirigent_core::{Protocol, Settings, frame::WhyReturned};
use dirigent_service::OnCancel;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http2::SendRequest, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    common::{Backend, Function, Rig, read_request, within},
    tokens::asking,
};

static BREAK: tokio::sync::Notify = tokio::sync::Notify::const_new();

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn caller(rig: &Rig) -> SendRequest<Body> {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (caller, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    rig.tasks.run("caller", OnCancel::Abort, async move {
        // How it ends is seen by the calls.
        drop(connection.await);
    });
    caller
}

/// A function that speaks h2c: echoes the body, with what it saw in headers, and trailers.
async fn echo() -> Backend {
    Backend::start(|stream, _| serve(stream)).await
}

async fn serve(stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        if request.uri().path() == "/cut" {
            // It breaks only once the caller has seen it begin.
            let frames = stream::unfold(0, |step| async move {
                if step == 1 {
                    BREAK.notified().await;
                    return Some((Err(std::io::Error::other("broken")), 2));
                }
                (step == 0).then(|| (Ok(Frame::data(Bytes::from_static(b"some"))), 1))
            });
            return Ok(Response::new(UnsyncBoxBody::new(StreamBody::new(frames))));
        }
        if request.uri().path() == "/silent" {
            std::future::pending::<()>().await;
        }
        let (parts, body) = request.into_parts();
        let of = |name| parts.headers.get(name);
        let (from, token) = (of("x-forwarded-for"), of("authorization"));
        let seen = format!("{} {:?} {from:?} {token:?}", parts.uri, parts.version);
        let data = body.collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = futures(vec![Ok(Frame::data(data)), Ok(Frame::trailers(trailers))]);
        let mut response = Response::new(frames);
        response.headers_mut().insert("x-seen", seen.parse().unwrap());
        Ok::<_, std::convert::Infallible>(response)
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    drop(connection.await);
}

fn futures(frames: Vec<Result<Frame<Bytes>, std::io::Error>>) -> Body {
    UnsyncBoxBody::new(StreamBody::new(stream::iter(frames)))
}

fn h2c() -> Function {
    Function { protocol: Protocol::H2c, concurrency: 0, ..Function::default() }
}

async fn call(caller: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    within(async {
        caller.ready().await.unwrap();
        caller.send_request(request).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn grpc_passes_from_caller_to_function_with_trailers() {
    let rig = Rig::start().await;
    let backend = echo().await;
    rig.serving("hello", h2c(), backend.address, 0).await;
    let mut caller = caller(&rig).await;
    for round in 0..3 {
        let request = Request::post("http://hello/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(full(format!("message {round}")))
            .unwrap();
        let response = call(&mut caller, request).await;
        assert_eq!(response.status(), 200);
        let seen = response.headers()["x-seen"].to_str().unwrap();
        assert!(seen.starts_with("http://hello/pkg.Service/Method HTTP/2.0"), "{seen}");
        assert!(response.headers().contains_key("x-dirigent-request-id"));
        let body = within(response.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), format!("message {round}"));
    }
    assert_eq!(*backend.connections.borrow(), 1, "one connection carries all");
}

#[tokio::test]
async fn who_shows_a_token_is_let_in_and_others_hear_so_in_the_words_of_grpc() {
    let rig = Rig::start().await;
    let backend = echo().await;
    asking(&rig, h2c(), &backend, 0).await;
    let mut caller = caller(&rig).await;
    let request = |kind: &str, token: &str| {
        Request::post("http://hello/pkg.Service/Method")
            .header("content-type", kind)
            .header("authorization", format!("Bearer {token}"))
            .body(full("message"))
            .unwrap()
    };
    let response = call(&mut caller, request("application/grpc", "call")).await;
    let seen = response.headers()["x-seen"].to_str().unwrap();
    assert!(
        seen.starts_with("http://hello/pkg.Service/Method") && seen.ends_with(" None"),
        "{seen}"
    );
    for (token, grpc, plain) in [("wrong", "16", 401), ("look", "7", 403)] {
        let response = call(&mut caller, request("application/grpc", token)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], grpc);
        let response = call(&mut caller, request("text/plain", token)).await;
        assert_eq!(response.status(), plain);
        assert!(response.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn either_protocol_reaches_functions_of_the_other() {
    let rig = Rig::start().await;
    let old = Backend::answering(|head, body| format!("{head}{}", body.len())).await;
    rig.serving("hello", Function::default(), old.address, 1).await;
    let mut caller = caller(&rig).await;
    let request = Request::post("http://hello/x").body(full("four")).unwrap();
    let response = call(&mut caller, request).await;
    let text = within(response.into_body().collect()).await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.starts_with("POST /x HTTP/1.1\r\nhost: hello\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n4"), "{text}");

    let rig = Rig::start().await;
    let new = echo().await;
    rig.serving("hello", h2c(), new.address, 0).await;
    let answer = rig
        .raw(
            "POST /y HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        )
        .await;
    assert!(answer.contains("x-seen: http://hello/y HTTP/2.0 Some(\"127.0.0.1\")"), "{answer}");
    assert!(answer.contains("2\r\nhi\r\n"), "{answer}");
}

#[tokio::test]
async fn a_stream_that_broke_off_is_reset_and_the_connection_lives() {
    let rig = Rig::start().await;
    let backend = echo().await;
    rig.serving("hello", h2c(), backend.address, 0).await;
    let mut caller = caller(&rig).await;
    let request = Request::get("http://hello/cut").body(full("")).unwrap();
    let response = call(&mut caller, request).await;
    assert_eq!(response.status(), 200);
    BREAK.notify_one();
    assert!(within(response.into_body().collect()).await.is_err(), "not ended cleanly");
    let request = Request::get("http://hello/ok").body(full("")).unwrap();
    assert_eq!(call(&mut caller, request).await.status(), 200);
}

#[tokio::test]
async fn a_caller_who_cancels_frees_the_slot_after_the_grace() {
    let rig = Rig::start().await;
    let backend = echo().await;
    let settings = Settings { grace: Duration::from_millis(10), ..Settings::default() };
    let function = Function { settings, ..h2c() };
    rig.serving("hello", function, backend.address, 0).await;
    let mut caller = caller(&rig).await;
    caller.ready().await.unwrap();
    let request = Request::get("http://hello/silent").body(full("")).unwrap();
    let response = caller.send_request(request);
    tokio::select! {
        _ = response => panic!("it is silent"),
        () = rig.demand("a busy slot", |demand| demand.busy == 1) => {}
    }
    rig.demand("a free slot", |demand| demand.busy == 0).await;
}

#[tokio::test]
async fn refusals_are_told_in_grpc() {
    let rig = Rig::start().await;
    let mut caller = caller(&rig).await;
    let request = Request::post("http://nobody/x")
        .header("content-type", "application/grpc+proto")
        .body(full(""))
        .unwrap();
    let response = call(&mut caller, request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "12");
    assert_eq!(response.headers()["x-dirigent-error"], "not_found");
}

#[tokio::test]
async fn an_unreachable_function_is_tried_elsewhere() {
    let rig = Rig::start().await;
    let backend = echo().await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let function = h2c();
    rig.serving("hello", function.clone(), gone, 0).await;
    let mut caller = caller(&rig).await;
    let request = Request::post("http://hello/x").body(full("body")).unwrap();
    let again = async {
        rig.returned(1, WhyReturned::Unreachable).await;
        rig.grant(&function, 2, backend.address, 0).await;
    };
    let (response, ()) = tokio::join!(call(&mut caller, request), again);
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "body");
}

#[tokio::test]
async fn a_caller_who_does_not_take_one_answer_loses_that_one() {
    let rig = Rig::with(|config| config.limits.client_stall = Duration::from_millis(200)).await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
        stream.write_all(head).await.unwrap();
        while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = caller(&rig).await;
    let request = Request::get("http://hello/").body(full("")).unwrap();
    let unread = within(caller.send_request(request)).await.unwrap();
    rig.returned(1, WhyReturned::Closing).await;
    assert!(within(unread.into_body().collect()).await.is_err(), "it is not taken for whole");
    // The connection itself is well.
    let request = Request::get("http://nobody.else.example/").body(full("")).unwrap();
    assert_eq!(within(caller.send_request(request)).await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_caller_who_waits_for_a_slow_answer_keeps_it() {
    let rig = Rig::with(|config| config.limits.client_stall = Duration::from_millis(50)).await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsome";
        stream.write_all(head).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"more").await.unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = caller(&rig).await;
    let request = Request::get("http://hello/").body(full("")).unwrap();
    let answer = within(caller.send_request(request)).await.unwrap();
    assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "somemore");
}

#[tokio::test]
async fn a_connection_without_calls_is_closed_in_order() {
    let idle = Duration::from_millis(200);
    let rig = Rig::with(|config| config.limits.idle_connection = idle).await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        // Longer than an unused connection is kept.
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = caller(&rig).await;
    let request = Request::get("http://hello/").body(full("")).unwrap();
    let answer = within(caller.send_request(request)).await.unwrap();
    assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "ok");
    let closed = async {
        while caller.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(closed).await;
}
