//! A connection after `101 Switching Protocols`: bytes both ways until either side ends it or both
//! are silent for `idle_timeout`. The slot stays taken meanwhile. A WebSocket whose sandbox ends without
//! a word, because it is stopped or dies, is closed as RFC 6455 wants it: with status 1001.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use dirigent_core::gate::Finish;
use dirigent_service::Clock;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    invoke::Invocation,
    lease::{Open, Running},
    upstream::{Conn, Stream},
    websocket::{Frames, GOING_AWAY},
};

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
    let clock = shared.clock;
    shared.beside.run("upgraded connection", async move {
        let mut call = invocation.call;
        match on_upgrade.await {
            Ok(client) => {
                let seen = Arc::new(AtomicU64::new(clock.nanos()));
                let watched = Arc::clone(&seen);
                let frames = websocket.then(Frames::default);
                let mut sandbox =
                    Watched { stream, input, seen: watched, clock, over: false, frames };
                let mut client = TokioIo::new(client);
                let idle = invocation.view.settings.idle_timeout;
                tokio::select! {
                    result = tokio::io::copy_bidirectional(&mut client, &mut sandbox) => {
                        if let Err(error) = &result {
                            tracing::debug!(%error, "an upgraded connection broke");
                        }
                        if result.is_ok() || sandbox.over {
                            lease.finish(Finish::Done, None);
                        } else {
                            // The client is gone; a handler may still run.
                            call.left();
                            lease.abandon(Some(Conn::new(sandbox.stream)));
                        }
                    }
                    () = silence(&seen, clock, idle) => {
                        call.cut();
                        lease.abandon(Some(Conn::new(sandbox.stream)));
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the client left instead of switching");
                call.left();
                lease.abandon(Some(Conn::new(stream)));
            }
        }
        drop(call);
        drop(open);
    });
}

/// Returns when nothing was seen for `allowed`.
async fn silence(seen: &AtomicU64, clock: Clock, allowed: Duration) {
    loop {
        let due = clock.instant(seen.load(Relaxed)) + allowed;
        if due <= clock.instant(clock.nanos()) {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// The sandbox's side, with what was read behind its head, and when bytes last passed.
struct Watched {
    stream: Stream,
    input: BytesMut,
    seen: Arc<AtomicU64>,
    clock: Clock,
    /// The sandbox has ended its side.
    over: bool,
    /// What it has sent of a WebSocket, until a goodbye was said in its place.
    frames: Option<Frames>,
}

impl Watched {
    fn note(&mut self, over: bool) {
        self.seen.store(self.clock.nanos(), Relaxed);
        self.over |= over;
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.input.is_empty() {
            let part = this.input.len().min(buffer.remaining());
            let part_of_it = this.input.get(..part).unwrap_or_default();
            if let Some(frames) = &mut this.frames {
                frames.pass(part_of_it);
            }
            buffer.put_slice(part_of_it);
            this.input.advance(part);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Poll::Ready(read) = &result else { return result };
        let over = read.is_err() || buffer.filled().len() == before;
        this.note(over);
        if !over {
            if let Some(frames) = &mut this.frames {
                frames.pass(buffer.filled().get(before..).unwrap_or_default());
            }
        } else if let Some(frames) = this.frames.take()
            && frames.may_say_goodbye()
            && buffer.remaining() >= GOING_AWAY.len()
        {
            buffer.put_slice(&GOING_AWAY);
            return Poll::Ready(Ok(()));
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, data);
        if let Poll::Ready(wrote) = &result {
            this.note(wrote.is_err());
            if wrote.is_err() {
                // Reading tells of the end, and what the client must hear first: an error here would
                // drop its connection before.
                return Poll::Ready(Ok(data.len()));
            }
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
