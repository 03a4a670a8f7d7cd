//! Callers who leave, at each stage.

use std::time::Duration;

use dirigent_core::{Settings, frame::WhyReturned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::common::{Backend, Function, Rig, read_request, status, until, within};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n";

#[tokio::test]
async fn who_leaves_the_queue_withdraws_the_demand_at_once() {
    let rig = Rig::start().await;
    rig.function("hello", Function::default());
    let mut caller = rig.connect().await;
    caller.write_all(GET).await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    drop(caller);
    rig.demand("nobody", |demand| demand.queued == 0).await;
}

#[tokio::test]
async fn who_leaves_the_queue_with_the_body_unread_withdraws_the_demand_at_once() {
    let rig = Rig::start().await;
    rig.function("hello", Function::default());
    let mut caller = rig.connect().await;
    let request = b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 10\r\n\r\n0123456789";
    caller.write_all(request).await.unwrap();
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    drop(caller);
    rig.demand("nobody", |demand| demand.queued == 0).await;
}

#[tokio::test]
async fn who_resets_a_long_upload_in_the_queue_withdraws_the_demand_at_once() {
    let rig = Rig::start().await;
    rig.function("hello", Function::default());
    let caller = uploading(&rig).await;
    rig.demand("one who waits", |demand| demand.queued == 1).await;
    // A plain end would come behind what nobody reads.
    caller.set_zero_linger().unwrap();
    drop(caller);
    rig.demand("nobody", |demand| demand.queued == 0).await;
}

/// A caller whose upload has filled every buffer on the way.
async fn uploading(rig: &Rig) -> TcpStream {
    let mut caller = rig.connect().await;
    let head = b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1000000000\r\n\r\n";
    caller.write_all(head).await.unwrap();
    let full = Duration::from_millis(300);
    while tokio::time::timeout(full, caller.write_all(&[b'x'; 64 << 10])).await.is_ok() {}
    caller
}

#[tokio::test]
async fn who_resets_while_the_sandbox_does_not_take_the_body_gives_up_the_slot() {
    let rig = Rig::start().await;
    let backend = Backend::start(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let caller = uploading(&rig).await;
    caller.set_zero_linger().unwrap();
    drop(caller);
    rig.returned(1, WhyReturned::Closing).await;
}

#[tokio::test]
async fn with_one_slot_the_sandbox_of_a_caller_who_left_is_recycled() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        // The upstream connection is cancelled.
        assert!(stream.read_u8().await.is_err());
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    caller.write_all(GET).await.unwrap();
    rig.demand("a busy slot", |demand| demand.busy == 1).await;
    drop(caller);
    rig.returned(1, WhyReturned::Closing).await;
}

#[tokio::test]
async fn with_more_slots_the_slot_is_free_when_the_sandbox_has_understood() {
    let rig = Rig::start().await;
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::start(move |mut stream, number| {
        let mut held = held.clone();
        async move {
            read_request(&mut stream).await;
            if number == 0 {
                assert!(stream.read_u8().await.is_err(), "the caller's end is passed on");
                held.wait_for(|released| *released).await.unwrap();
            } else {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let settings = Settings { grace: Duration::from_secs(3600), ..Settings::default() };
    let function = Function { settings, concurrency: 2, ..Function::default() };
    rig.serving("hello", function, backend.address, 2).await;
    let mut caller = rig.connect().await;
    caller.write_all(GET).await.unwrap();
    rig.demand("a busy slot", |demand| demand.busy == 1).await;
    drop(caller);
    let overrun = "dirigent_proxy_overruns_total{function=\"default/hello\"} 1";
    until("it is counted", || rig.proxy.metrics_page().contains(overrun)).await;
    // The handler still runs: one slot of two is taken, the other serves.
    assert_eq!(status(&rig.get("hello", "/").await), 200);
    rig.demand("the slot still taken", |demand| demand.busy == 1).await;
    release.send_replace(true);
    rig.demand("the slot free", |demand| demand.busy == 0).await;
}

#[tokio::test]
async fn a_handler_that_never_ends_loses_its_slot_after_the_grace() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let settings = Settings { grace: Duration::from_millis(50), ..Settings::default() };
    let function = Function { settings, concurrency: 2, ..Function::default() };
    rig.serving("hello", function, backend.address, 2).await;
    let mut caller = rig.connect().await;
    caller.write_all(GET).await.unwrap();
    rig.demand("a busy slot", |demand| demand.busy == 1).await;
    drop(caller);
    rig.demand("a free slot", |demand| demand.busy == 0).await;
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_response_stops_it() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // For as long as somebody listens.
        while stream.write_all(b"4\r\nsome\r\n").await.is_ok() {}
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    caller.write_all(GET).await.unwrap();
    within(caller.read_exact(&mut [0; 10_000])).await.unwrap();
    drop(caller);
    rig.returned(1, WhyReturned::Closing).await;
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_the_request_stops_it() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        read_request(&mut stream).await;
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    let request = b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 10\r\n\r\nhalf";
    caller.write_all(request).await.unwrap();
    rig.demand("a busy slot", |demand| demand.busy == 1).await;
    drop(caller);
    rig.returned(1, WhyReturned::Closing).await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_sandbox_down() {
    let rig = Rig::start().await;
    let (count, counted) = tokio::sync::watch::channel(0_usize);
    let backend = Backend::start(move |mut stream, _| {
        let count = count.clone();
        async move {
            read_request(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let piece = [b'x'; 64 << 10];
            while stream.write_all(&piece).await.is_ok() {
                count.send_modify(|count| *count += piece.len());
            }
        }
    })
    .await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let mut caller = rig.connect().await;
    caller.write_all(GET).await.unwrap();
    within(caller.read_exact(&mut [0; 1000])).await.unwrap();
    // It comes to rest at what sockets and buffers hold, far below the whole.
    let mut last = 0;
    until("it stands still", || {
        let now = *counted.borrow();
        let still = now > 0 && now == last;
        last = now;
        still
    })
    .await;
    assert!(*counted.borrow() < 100_000_000, "{}", *counted.borrow());
}
