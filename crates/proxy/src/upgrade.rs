//! A connection after `101 Switching Protocols`: bytes both ways until the sandbox ends it, the client
//! is gone, or both are silent for `idle_timeout`.
//!
//! The slot is free as soon as the sandbox has ended its side, whatever the client does then: what the
//! sandbox said last still goes to the client, which gets a while to close in its turn. A WebSocket
//! whose sandbox ends without a word, because it is stopped or dies, is closed as RFC 6455 wants it:
//! with status 1001.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use dirigent_core::gate::Finish;
use dirigent_service::Clock;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use crate::{
    call::Call,
    invoke::Invocation,
    lease::{Lease, Open, Running},
    upstream::{Conn, Stream},
    websocket::{Frames, GOING_AWAY},
};

/// Without progress, for a client whose sandbox has ended, to take the rest and close.
const CLOSING: Duration = Duration::from_secs(10);

/// Starts the task that carries the bytes once the client's side has switched as well.
pub(crate) fn tunnel(mut invocation: Invocation, mut running: Running, websocket: bool) {
    let (Some(on_upgrade), Some((exchange, lease))) =
        (invocation.on_upgrade.take(), running.take())
    else {
        return;
    };
    let Conn { stream, input, .. } = exchange.into_conn();
    let shared = Arc::clone(&invocation.shared);
    let open = Open::new(&shared);
    shared.beside.run("upgraded connection", async move {
        let mut call = invocation.call;
        match on_upgrade.await {
            Ok(client) => {
                let traffic = Traffic::new(invocation.shared.clock);
                let frames = websocket.then(Frames::default);
                let sandbox = Sandbox { stream, input, frames, lease };
                let idle = invocation.view.settings.idle_timeout;
                sandbox.carry(TokioIo::new(client), &traffic, idle, call).await;
            }
            Err(error) => {
                tracing::debug!(%error, "the client left instead of switching");
                call.left();
                lease.abandon(Some(Conn::new(stream)));
            }
        }
        drop(open);
    });
}

/// What is known of the bytes that pass.
struct Traffic {
    clock: Clock,
    /// When some last did.
    seen: AtomicU64,
    /// Whether the sandbox has ended its side: then nobody takes what the client sends.
    ended: AtomicBool,
}

impl Traffic {
    fn new(clock: Clock) -> Self {
        Self { clock, seen: AtomicU64::new(clock.nanos()), ended: AtomicBool::new(false) }
    }

    fn note(&self) {
        self.seen.store(self.clock.nanos(), Relaxed);
    }

    /// The sandbox has ended its side.
    fn end(&self) {
        if !self.ended.swap(true, Relaxed) {
            self.note();
        }
    }

    /// Returns when nothing was seen for `allowed`.
    async fn silence(&self, allowed: Duration) {
        loop {
            let due = self.clock.instant(self.seen.load(Relaxed)) + allowed;
            if due <= self.clock.instant(self.clock.nanos()) {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// The sandbox's side, with what was read behind its head, and its slot.
struct Sandbox {
    stream: Stream,
    input: BytesMut,
    /// What it has sent, of a WebSocket.
    frames: Option<Frames>,
    lease: Lease,
}

/// Why bytes are no longer carried both ways.
enum End {
    /// The sandbox has ended its side; what it said may be on its way to the client.
    Sandbox,
    /// Both sides.
    Both,
    /// The client is gone, or both are silent.
    Abandoned,
}

impl Sandbox {
    /// Carries bytes until the end, and gives the slot back.
    async fn carry(
        self,
        mut client: TokioIo<Upgraded>,
        traffic: &Traffic,
        idle: Duration,
        mut call: Call,
    ) {
        let Self { stream, input, frames, lease } = self;
        {
            let mut watched = Watched { stream: &stream, input, frames, traffic };
            let mut carried = pin!(copy_bidirectional(&mut client, &mut watched));
            let end = tokio::select! {
                biased;
                () = stream.ended() => End::Sandbox,
                result = &mut carried => match result {
                    Ok(_bytes) => End::Both,
                    Err(error) => {
                        tracing::debug!(%error, "the client of an upgraded connection is gone");
                        call.left();
                        if traffic.ended.load(Relaxed) { End::Both } else { End::Abandoned }
                    }
                },
                () = traffic.silence(idle) => {
                    call.cut("silent for longer than idle_timeout".to_owned());
                    End::Abandoned
                }
            };
            if let End::Sandbox | End::Both = end {
                lease.finish(Finish::Done, None);
                drop(call);
                if let End::Sandbox = end {
                    traffic.end();
                    tokio::select! {
                        _ = carried => {}
                        () = traffic.silence(CLOSING) => {}
                    }
                }
                return;
            }
        }
        // A handler may still run.
        lease.abandon(Some(Conn::new(stream)));
    }
}

/// The sandbox's side as bytes pass it. It never fails but ends: what the client has to hear first
/// comes by reading, and an error would drop its connection before.
struct Watched<'a> {
    stream: &'a Stream,
    input: BytesMut,
    /// Until a goodbye was said in its place.
    frames: Option<Frames>,
    traffic: &'a Traffic,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.input.is_empty() {
            if let Err(error) = ready!(this.stream.poll_read_shared(cx, buffer)) {
                tracing::debug!(%error, "an upgraded connection to a sandbox broke");
            }
        } else {
            let part = this.input.split_to(this.input.len().min(buffer.remaining()));
            buffer.put_slice(&part);
        }
        let came = buffer.filled().get(before..).unwrap_or_default();
        if !came.is_empty() {
            this.traffic.note();
            if let Some(frames) = &mut this.frames {
                frames.pass(came);
            }
        } else {
            this.traffic.end();
            if let Some(frames) = this.frames.take()
                && frames.may_say_goodbye()
                && buffer.remaining() >= GOING_AWAY.len()
            {
                buffer.put_slice(&GOING_AWAY);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, traffic, .. } = *self;
        if traffic.ended.load(Relaxed) {
            // Nobody is left to take it.
            return Poll::Ready(Ok(data.len()));
        }
        match ready!(stream.poll_write_shared(cx, data)) {
            Ok(wrote) => {
                traffic.note();
                Poll::Ready(Ok(wrote))
            }
            // Its end is seen by reading as well.
            Err(error) => {
                tracing::debug!(%error, "the sandbox of an upgraded connection takes no more");
                Poll::Ready(Ok(data.len()))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.stream.shutdown_write() {
            tracing::debug!(%error, "the sandbox of an upgraded connection has ended already");
        }
        Poll::Ready(Ok(()))
    }
}
