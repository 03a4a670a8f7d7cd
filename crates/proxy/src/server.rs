//! The port: accepts connections, tells HTTP/1 from HTTP/2 by their first bytes, and serves each in
//! a task of its own, which does everything for its invocations.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, Write as _},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use dirigent_service::OnCancel;
use hyper::{server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    runtime::Handle,
};

use crate::{
    Shared, errors,
    invoke::Front,
    lease::Open,
    scan::Violation,
    streams::Streams,
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

/// Accepts until the drain begins.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                shared.metrics.accepted.inc();
                let (connected, before) = Connected::new(&shared);
                if before >= shared.limits.connections {
                    shared.metrics.shed.inc();
                    refuse(stream);
                } else if let Err(error) = seat(connected, stream, peer) {
                    tracing::warn!(%peer, %error, "a connection could not be served");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
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

/// One connection more than there may be: it is told so, as far as one write goes.
fn refuse(stream: TcpStream) {
    let reason = "this data plane has as many connections as it may";
    let answer = errors::bare_answer(Violation { status: 503, reason });
    let told = stream.into_std().and_then(|mut stream| stream.write(&answer));
    if let Err(error) = told {
        tracing::debug!(%error, "a connection too many left");
    }
}

async fn serve(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let limit = shared.limits.head_timeout;
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
    let told = tokio::select! {
        biased;
        () = &mut drain => return Ok(()),
        told = tokio::time::timeout(limit.max(IDLE_FIRST), first_bytes(&mut stream)) => told,
    };
    let (http1, prefix) = match told {
        Ok(told) => told?,
        Err(_elapsed) => return Ok(()),
    };
    if prefix.is_empty() {
        return Ok(());
    }
    let line = Arc::new(Line::default());
    let wire = Wire::new(stream, prefix, http1, Arc::clone(&line), shared.clock, shared.limits);
    let front = Arc::new(Front::new(Arc::clone(shared), line, peer));
    let service = service_fn(move |request| {
        let front = Arc::clone(&front);
        async move { Ok::<_, Infallible>(front.serve(request).await) }
    });
    let io = TokioIo::new(wire);
    if http1 {
        let connection = conn::http1::Builder::new()
            .max_buf_size((2 * shared.limits.head_bytes).max(64 << 10))
            .serve_connection(io, service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            () = &mut drain => connection.as_mut().graceful_shutdown(),
            result = &mut connection => return Ok(result?),
        }
        tokio::select! {
            biased;
            () = shared.tasks.shutdown().cancelled() => Ok(()),
            result = connection => Ok(result?),
        }
    } else {
        let streams =
            Streams { tasks: shared.beside.clone(), client_stall: shared.limits.client_stall };
        let connection = conn::http2::Builder::new(streams)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(shared.limits.head_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            () = &mut drain => connection.as_mut().graceful_shutdown(),
            result = &mut connection => return Ok(result?),
        }
        tokio::select! {
            biased;
            () = shared.tasks.shutdown().cancelled() => Ok(()),
            result = connection => Ok(result?),
        }
    }
}

/// Clients that connect ahead of need may take so long until they say something.
const IDLE_FIRST: Duration = Duration::from_secs(60);

/// Reads as little as tells the protocol. Whether it is HTTP/1, and what was read.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<(bool, Bytes)> {
    let mut read = BytesMut::with_capacity(4096);
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok((true, read.freeze()));
        }
        let common = read.len().min(PREFACE.len());
        if read.get(..common) != PREFACE.get(..common) {
            return Ok((true, read.freeze()));
        }
        if common == PREFACE.len() {
            return Ok((false, read.freeze()));
        }
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
