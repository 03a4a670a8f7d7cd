//! The port: accepts connections, tells HTTP/1 from HTTP/2 by their first bytes, and serves each in
//! a task of its own, which does everything for its invocations.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, Write as _},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use dirigent_service::{Clock, OnCancel};
use hyper::{
    body::Incoming,
    server::conn,
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    runtime::Handle,
};

use crate::{
    Shared,
    body::Body,
    errors, ids,
    invoke::Front,
    lease::Open,
    records::{Of, Record},
    scan::Violation,
    streams::Streams,
    windows::Windows,
    wire::{Line, Wire},
};

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Between two tries when the process has no descriptor left.
const BREATH: Duration = Duration::from_millis(20);
/// Streams that one HTTP/2 client may have open.
const STREAMS: u32 = 1024;
const PING_EVERY: Duration = Duration::from_secs(30);

/// Starts to accept.
pub(crate) fn start(shared: &Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    let seat = shared.cores.first();
    let listener = listener.into_std()?;
    let listener = within(seat.handle(), || TcpListener::from_std(listener))?;
    let accept = accept(Arc::clone(shared), listener);
    shared.tasks.run_on(seat.handle(), "data plane: accept", OnCancel::Wait, accept);
    Ok(())
}

/// Registers a socket with the event queue of another thread than this one.
fn within<T>(handle: &Handle, register: impl FnOnce() -> T) -> T {
    let _entered = handle.enter();
    register()
}

/// Accepts until the drain begins; whoever has connected by then is served.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.draining.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => take(&shared, stream, peer),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    // The kernel is asked: who has connected just now may not be known to the event queue yet.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        match stream {
            Ok(stream) => take(&shared, stream, peer),
            Err(error) => tracing::warn!(%peer, %error, "a connection could not be served"),
        }
    }
}

fn take(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    shared.metrics.accepted.inc();
    let (connected, before) = Connected::new(shared);
    if before >= shared.limits.connections {
        shared.metrics.shed.inc();
        let reason = "this data plane has as many connections as it may";
        refuse(shared, stream, Violation { status: 503, reason }, shared.clock.nanos());
    } else if let Err(error) = seat(connected, stream, peer) {
        tracing::warn!(%peer, %error, "a connection could not be served");
    }
}

/// A client's connection, counted until it ends.
struct Connected(Arc<Shared>);

impl Connected {
    /// With how many there were before it.
    fn new(shared: &Arc<Shared>) -> (Self, usize) {
        let before = shared.metrics.connections.inc();
        (Self(Arc::clone(shared)), usize::try_from(before).unwrap_or(0))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}

/// Gives a connection to the thread that has fewest.
fn seat(connected: Connected, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let shared = Arc::clone(&connected.0);
    let seat = shared.cores.seat();
    let handle = seat.handle().clone();
    let stream = if handle.id() == Handle::current().id() {
        stream
    } else {
        let stream = stream.into_std()?;
        within(&handle, || TcpStream::from_std(stream))?
    };
    let open = Open::new(&shared);
    let tasks = shared.tasks.clone();
    tasks.run_on(&handle, "connection", OnCancel::Wait, async move {
        if let Err(error) = serve(&shared, stream, peer).await {
            tracing::debug!(%peer, %error, "a connection ended");
        }
        drop((connected, open, seat));
    });
    Ok(())
}

impl Shared {
    /// The answer to a request that is refused before there is an invocation. It is remembered as
    /// those of invocations are: its caller has a request id to ask by.
    pub(crate) fn refuse(&self, violation: Violation, since: u64) -> Bytes {
        let now = self.clock.nanos();
        let request_id = ids::request_id(self.records.wall_ms(now));
        let (answer, code) = errors::bare_answer(violation, &request_id);
        let record = Record {
            request_id,
            of: Of::Nothing,
            sandbox: None,
            revision: None,
            arrived: since,
            total: now.saturating_sub(since),
            status: violation.status,
            code: Some(code),
            attempts: 0,
            cold: false,
            warm: (0, 0, 0),
            phases: Vec::new(),
        };
        self.remember(record, violation.reason.into());
        answer
    }
}

/// Tells a client why it is not served, as far as one write goes.
fn refuse(shared: &Shared, stream: TcpStream, violation: Violation, since: u64) {
    let answer = shared.refuse(violation, since);
    let told = stream.into_std().and_then(|mut stream| stream.write(&answer));
    if let Err(error) = told {
        tracing::debug!(%error, "a client left before its refusal");
    }
}

async fn serve(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    // A token of its own: looking at a shared one takes a lock that all connections would share.
    // It is there to wake this task; what counts is whether the drain has begun, so that no answer
    // leaves without saying that the connection ends.
    let token = shared.draining.child_token();
    let (mut cancelled, mut is_known) = (pin!(token.cancelled()), false);
    let mut drain = poll_fn(|cx| {
        if shared.is_draining.load(Acquire) {
            return Poll::Ready(());
        }
        if std::mem::replace(&mut is_known, true) {
            return Poll::Pending;
        }
        cancelled.as_mut().poll(cx)
    });
    let began = shared.clock.nanos();
    let told = {
        let mut first = pin!(first_bytes(&mut stream, shared.limits.head_timeout));
        tokio::select! {
            biased;
            told = &mut first => told,
            // What was sent before this end became known is on its way.
            () = &mut drain => match tokio::time::timeout(shared.limits.last_call, first).await {
                Ok(told) => told,
                Err(_elapsed) => return Ok(()),
            },
        }
    };
    let (http1, prefix) = match told? {
        First::Bytes { http1, prefix } => (http1, prefix),
        First::Nothing => return Ok(()),
        First::Slow => {
            refuse(shared, stream, SLOW, began);
            return Ok(());
        }
    };
    let line = Arc::new(Line::default());
    let front = Arc::new(Front::new(Arc::clone(shared), Arc::clone(&line), peer));
    let service = service_fn(move |request| {
        let front = Arc::clone(&front);
        async move { Ok::<_, Infallible>(front.serve(request).await) }
    });
    let wire = Wire::new(stream, prefix, http1, Arc::clone(&line), Arc::clone(shared));
    if http1 {
        return serve_http1(shared, wire, service, &line, peer, drain).await;
    }
    // In a box of its own: most connections are of the other kind, and have no room for this.
    let io = TokioIo::new(wire);
    Box::pin(serve_http2(shared, io, service, &line, drain)).await
}

/// Served until it ends. What a server keeps for a connection is more than all else that is known of
/// it: one that rests has none.
async fn serve_http1<S>(
    shared: &Shared,
    mut wire: Wire,
    service: S,
    line: &Line,
    peer: SocketAddr,
    mut drain: impl Future<Output = ()> + Unpin,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: HttpService<Incoming, ResBody = Body, Error = Infallible> + Clone + Unpin,
    S::Future: Send + 'static,
{
    // In a box, of which nothing is left while the connection rests.
    let serve = |wire| {
        let connection = conn::http1::Builder::new()
            .max_buf_size((2 * shared.limits.head_bytes).max(64 << 10))
            .serve_connection(TokioIo::new(wire), service.clone());
        Box::new(connection.with_upgrades())
    };
    let mut connection = loop {
        let mut connection = serve(wire);
        let served = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
            Poll::Pending if line.rests() => Poll::Ready(None),
            served => served.map(Some),
        });
        tokio::select! {
            biased;
            () = &mut drain => break connection,
            served = served => if let Some(result) = served {
                return Ok(result?);
            }
        }
        wire = {
            // `None` once it was given away for another protocol, when this ends by itself.
            let Some(parts) = connection.into_parts() else { return Ok(()) };
            if !parts.read_buf.is_empty() {
                tracing::debug!(%peer, "a connection had something unread while it rested");
                return Ok(());
            }
            // The buffer is let go of here, empty as it is.
            parts.io.into_inner()
        };
        tokio::select! {
            biased;
            () = &mut drain => break serve(wire),
            () = wire.rest() => {}
        }
    };
    // A client that uses it again meanwhile is told that the connection ends, with its answer.
    // One that does not loses nothing by its end, unless it calls in that very moment.
    tokio::select! {
        biased;
        result = &mut connection => return Ok(result?),
        () = tokio::time::sleep(shared.limits.last_call) => Pin::new(&mut *connection).graceful_shutdown(),
    }
    until_stopped(shared, connection).await
}

async fn serve_http2<S>(
    shared: &Shared,
    io: TokioIo<Wire>,
    service: S,
    line: &Line,
    mut drain: impl Future<Output = ()> + Unpin,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
    S::Future: Send + 'static,
{
    let streams =
        Streams { tasks: shared.beside.clone(), client_stall: shared.limits.client_stall };
    let windows = Windows::new(&shared.ahead);
    let connection = conn::http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(shared.limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        () = &mut drain => {}
        () = unused(line, shared.clock, shared.limits.idle_connection) => {}
        result = &mut connection => return Ok(result?),
    }
    connection.as_mut().graceful_shutdown();
    until_stopped(shared, connection).await
}

/// The rest of a connection, as far as there is time for it.
async fn until_stopped(
    shared: &Shared,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tokio::select! {
        biased;
        () = shared.tasks.shutdown().cancelled() => Ok(()),
        result = connection => Ok(result?),
    }
}

/// Returns when no invocation came for `allowed`: an HTTP/2 client's pings show only that it lives.
async fn unused(line: &Line, clock: Clock, allowed: Duration) {
    let begun = clock.nanos();
    loop {
        let now = clock.nanos();
        let active = line.active.load(Relaxed) > 0;
        let since = if active { now } else { line.answered_at.load(Relaxed).max(begun) };
        let due = clock.instant(since) + allowed;
        if due <= clock.instant(now) {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Clients that connect ahead of need may take so long until they say something.
const IDLE_FIRST: Duration = Duration::from_secs(60);

const SLOW: Violation = Violation { status: 408, reason: "the head did not come in time" };

/// What a client said first.
enum First {
    /// As little as tells the protocol.
    Bytes { http1: bool, prefix: Bytes },
    /// It left, or kept silent.
    Nothing,
    /// It began and did not go on.
    Slow,
}

async fn first_bytes(stream: &mut TcpStream, head_timeout: Duration) -> io::Result<First> {
    let mut read = BytesMut::new();
    let first = async {
        // Whoever connects ahead of need has no buffer.
        stream.readable().await?;
        read.reserve(4096);
        stream.read_buf(&mut read).await
    };
    let Ok(first) = tokio::time::timeout(IDLE_FIRST, first).await else {
        return Ok(First::Nothing);
    };
    if first? == 0 {
        return Ok(First::Nothing);
    }
    let told = async {
        loop {
            let common = read.len().min(PREFACE.len());
            if read.get(..common) != PREFACE.get(..common) {
                return Ok(true);
            }
            if common == PREFACE.len() {
                return Ok(false);
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(true);
            }
        }
    };
    match tokio::time::timeout(head_timeout, told).await {
        Ok(http1) => {
            let http1: io::Result<bool> = http1;
            Ok(First::Bytes { http1: http1?, prefix: read.freeze() })
        }
        Err(_elapsed) => Ok(First::Slow),
    }
}

/// Waits until nothing is open any more, at most until `deadline`; whether that was so.
pub(crate) async fn wait_until_closed(shared: &Shared, deadline: Duration) -> bool {
    let closed = async {
        loop {
            let changed = shared.closed.notified();
            if shared.open.load(Relaxed) == 0 {
                return;
            }
            changed.await;
        }
    };
    tokio::time::timeout(deadline, closed).await.is_ok()
}
