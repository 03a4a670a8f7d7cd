//! A client's connection as the HTTP server reads and writes it.
//!
//! Between the socket and the server's parser it follows the framing ([`Scanner`]) and watches the
//! clock. A request that is refused is made unreadable for the parser, so that the server answers in
//! its turn; that bare answer is replaced by ours, and what the client still sends is read away, for
//! else the kernel would reset the connection before the answer is read.

use std::{
    future::poll_fn,
    io,
    os::fd::AsFd as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    Shared,
    alarm::Alarm,
    errors,
    scan::{Scanner, Violation},
};

/// What a connection's wire and its invocations tell each other.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// When bytes last came: nanoseconds of the clock.
    pub(crate) read_at: AtomicU64,
    /// When an invocation last ended.
    pub(crate) answered_at: AtomicU64,
    /// Invocations being answered.
    pub(crate) active: AtomicU32,
    /// The response under way cannot be cut visibly by its framing: reset the connection instead.
    pub(crate) reset: AtomicBool,
    /// An invocation waits and leaves its body unread.
    unread: AtomicBool,
    /// Nothing was under way for long, in neither direction, and nothing lies unread.
    rests: AtomicBool,
}

impl Line {
    /// Whether the connection rests: its server may be taken away until the client says something.
    pub(crate) fn rests(&self) -> bool {
        self.rests.load(Relaxed)
    }

    /// While what is given back lives, an invocation waits and leaves its body unread: the server
    /// reads nothing then, so the client's end is to be watched for otherwise.
    pub(crate) fn leaves_unread(&self) -> impl Drop + use<'_> {
        self.unread.store(true, Relaxed);
        Unread(self)
    }
}

struct Unread<'a>(&'a Line);

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.0.unread.store(false, Relaxed);
    }
}

/// How long and how much is read away after a refusal.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 20;

/// While something is under way it is looked so many times less often whether a connection rests.
const BUSY: u32 = 10;

/// Up to so many bytes are written as one piece: cheaper than to have the kernel gather them.
const GATHERED: usize = 2048;

#[derive(Debug)]
enum Refusal {
    /// Not yet refused.
    None,
    /// The parser is being led to its refusal.
    Told(Violation),
    /// Our answer is being written.
    Writing(Bytes),
    /// It is written; what still comes is read away.
    Lingering(usize),
    Over,
}

/// Ready when the client has closed its end.
type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub(crate) struct Wire {
    io: TcpStream,
    /// What was read to tell HTTP/1 from HTTP/2.
    prefix: Bytes,
    /// Only for HTTP/1.
    scanner: Option<Scanner>,
    refusal: Refusal,
    timer: Alarm,
    /// When a write began to wait for the client.
    stalled_at: Option<u64>,
    line: Arc<Line>,
    shared: Arc<Shared>,
    head_at: u64,
    /// While nobody reads.
    gone: Option<Gone>,
}

impl Wire {
    pub(crate) fn new(
        io: TcpStream,
        prefix: Bytes,
        http1: bool,
        line: Arc<Line>,
        shared: Arc<Shared>,
    ) -> Self {
        let now = shared.clock.nanos();
        line.read_at.store(now, Relaxed);
        let first = shared.limits.rest_after.min(shared.limits.idle_connection);
        let timer = Alarm::at(shared.clock.instant(now) + first);
        Self {
            io,
            prefix,
            scanner: http1.then(|| Scanner::new(shared.limits.head_bytes)),
            refusal: Refusal::None,
            timer,
            stalled_at: None,
            line,
            shared,
            head_at: now,
            gone: None,
        }
    }

    /// Bytes came: follow them, and make them unreadable if they are refused.
    fn heard(&mut self, bytes: &mut [u8]) {
        let now = self.shared.clock.nanos();
        self.line.read_at.store(now, Relaxed);
        let Some(scanner) = &mut self.scanner else { return };
        let in_head = scanner.in_head();
        if let Err((violation, at)) = scanner.scan(bytes) {
            bytes.get_mut(at..).unwrap_or_default().fill(0);
            self.refusal = Refusal::Told(violation);
        } else if scanner.in_head() && !in_head {
            self.head_at = now;
            self.timer
                .set_earlier(self.shared.clock.instant(now) + self.shared.limits.head_timeout);
        }
    }

    /// Nothing can be read now: is it time to give up? The timer is set to a moment that was right
    /// once and moved only when it fires, so that requests do not touch it.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.timer.poll_off(cx));
            let now = self.shared.clock.nanos();
            let in_head = self.scanner.as_ref().is_some_and(Scanner::in_head);
            let (since, allowed) = if in_head {
                (self.head_at, self.shared.limits.head_timeout)
            } else if let Some(stalled) = self.stalled_at {
                (stalled, self.shared.limits.client_stall)
            } else if self.line.active.load(Relaxed) > 0 || self.scanner.is_none() {
                // The invocation has deadlines of its own; HTTP/2 has its pings.
                (now, self.shared.limits.idle_connection)
            } else {
                (self.quiet_since(), self.shared.limits.idle_connection)
            };
            let due = self.shared.clock.instant(since) + allowed;
            if due <= self.shared.clock.instant(now) {
                if in_head {
                    let reason = "the head did not come in time";
                    self.refusal = Refusal::Told(Violation { status: 408, reason });
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let rests_at = self.rests_at(now).unwrap_or(due);
            let rests = rests_at <= self.shared.clock.instant(now);
            self.line.rests.store(rests, Relaxed);
            self.timer.set(if rests { due } else { due.min(rests_at) });
        }
    }

    /// When the connection rests, unless something happens; while something is under way, when it is
    /// worth another look. Never for HTTP/2, nor once another protocol may be spoken.
    fn rests_at(&self, now: u64) -> Option<Instant> {
        let scanner = self.scanner.as_ref().filter(|scanner| !scanner.is_open())?;
        let rest_after = self.shared.limits.rest_after;
        let busy = self.stalled_at.is_some() || self.line.active.load(Relaxed) > 0;
        Some(if busy || !scanner.between() {
            self.shared.clock.instant(now) + BUSY * rest_after
        } else {
            self.shared.clock.instant(self.quiet_since()) + rest_after
        })
    }

    /// When something last happened, where nothing goes on.
    fn quiet_since(&self) -> u64 {
        self.line.read_at.load(Relaxed).max(self.line.answered_at.load(Relaxed))
    }

    /// Until the client says something or leaves, or has kept silent for so long that whoever reads
    /// on hears of that.
    pub(crate) async fn rest(&mut self) {
        let _counted = Resting::new(&self.shared);
        if let Some(scanner) = &mut self.scanner {
            scanner.rest();
        }
        poll_fn(|cx| {
            if self.io.poll_read_ready(cx).is_ready() {
                return Poll::Ready(());
            }
            self.timer.poll_off(cx)
        })
        .await;
        self.line.rests.store(false, Relaxed);
        self.timer.set_earlier(Instant::now() + self.shared.limits.rest_after);
    }

    /// Our answer in place of the server's bare one. Ready when it is delivered.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.refusal {
                Refusal::Writing(answer) => {
                    if answer.is_empty() {
                        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                        self.refusal = Refusal::Lingering(LINGER_BYTES);
                        self.timer.set(Instant::now() + LINGER);
                        continue;
                    }
                    let wrote = ready!(Pin::new(&mut self.io).poll_write(cx, answer))?;
                    answer.advance(wrote);
                }
                Refusal::Lingering(left) => {
                    let mut room = [0; 16 << 10];
                    let mut buffer = ReadBuf::new(&mut room);
                    match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                        Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                            *left = left.saturating_sub(buffer.filled().len());
                            if *left == 0 {
                                self.refusal = Refusal::Over;
                            }
                        }
                        Poll::Ready(_) => self.refusal = Refusal::Over,
                        Poll::Pending => {
                            ready!(self.timer.poll_off(cx));
                            self.refusal = Refusal::Over;
                        }
                    }
                }
                Refusal::None | Refusal::Told(_) | Refusal::Over => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Whether `data` is the server's own refusal of what we made unreadable.
    fn is_bare_refusal(&self, data: &[u8]) -> bool {
        matches!(self.refusal, Refusal::Told(_))
            && data.starts_with(b"HTTP/1.1 4")
            && !data
                .windows(errors::REQUEST_ID.len())
                .any(|part| part.eq_ignore_ascii_case(errors::REQUEST_ID.as_bytes()))
    }

    /// `None`: write it. Else: it was replaced, or is about to be.
    fn poll_replace(&mut self, cx: &mut Context<'_>, first: &[u8]) -> Option<Poll<io::Result<()>>> {
        if matches!(self.refusal, Refusal::None) {
            return None;
        }
        if let Refusal::Told(violation) = self.refusal
            && self.is_bare_refusal(first)
        {
            self.refusal = Refusal::Writing(self.shared.refuse(violation, self.head_at));
        }
        match self.refusal {
            Refusal::None | Refusal::Told(_) => None,
            _ => Some(self.poll_refuse(cx)),
        }
    }

    /// While an invocation leaves its body unread: has the client gone? For HTTP/1, whose server
    /// reads nothing then.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.scanner.is_none() || !self.line.unread.load(Relaxed) {
            self.gone = None;
            return Poll::Pending;
        }
        let io = &self.io;
        let gone = self.gone.get_or_insert_with(|| match watch(io) {
            Ok(gone) => gone,
            Err(error) => {
                tracing::debug!(%error, "a client who waits is not watched");
                Box::pin(std::future::pending())
            }
        });
        gone.as_mut().poll(cx)
    }

    /// A write has to wait: not forever.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.stalled_at.is_none() {
            self.stalled_at = Some(self.shared.clock.nanos());
        }
        match self.poll_silence(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    }
}

/// A connection that rests, counted until it does so no more.
struct Resting(Arc<Shared>);

impl Resting {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.metrics.resting.inc();
        Self(Arc::clone(shared))
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        self.0.metrics.resting.dec();
    }
}

/// Watches for the client's end, past what lies unread before it, as far as the kernel has it: the
/// end of an upload that fills the buffers comes behind what is still with the client. By a
/// descriptor of its own: only who owns a socket can await its readiness.
fn watch(io: &TcpStream) -> io::Result<Gone> {
    let io = std::net::TcpStream::from(io.as_fd().try_clone_to_owned()?);
    let io = TcpStream::from_std(io)?;
    Ok(Box::pin(async move {
        // Of all that can be asked for, it is what comes with the end and not with data.
        match io.ready(Interest::PRIORITY).await {
            Ok(ready) if ready.is_read_closed() => {}
            // Urgent data, which HTTP does not know: no more can be told.
            Ok(_) | Err(_) => std::future::pending().await,
        }
    }))
}

/// Copies all parts one behind the other; together they are as long as `room`.
fn gather(mut room: &mut [u8], parts: &[io::IoSlice<'_>]) {
    for part in parts {
        let (here, rest) = room.split_at_mut(part.len());
        here.copy_from_slice(part);
        room = rest;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.line.reset.load(Relaxed)
            && let Err(error) = self.io.set_zero_linger()
        {
            tracing::debug!(%error, "the connection could not be reset");
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Refusal::None = this.refusal {
            let before = buffer.filled().len();
            if this.prefix.is_empty() {
                match Pin::new(&mut this.io).poll_read(cx, buffer) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        ready!(this.poll_silence(cx))?;
                        // Refused for taking too long.
                        buffer.put_slice(b"\0\r\n\r\n");
                        return Poll::Ready(Ok(()));
                    }
                }
            } else {
                let part = this.prefix.split_to(this.prefix.len().min(buffer.remaining()));
                buffer.put_slice(&part);
            }
            if let Some(new) = buffer.filled_mut().get_mut(before..)
                && !new.is_empty()
            {
                this.heard(new);
            }
            return Poll::Ready(Ok(()));
        }
        match this.refusal {
            // The parser looks at a head only when it seems complete.
            Refusal::Told(_) => {
                buffer.put_slice(b"\0\r\n\r\n");
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(replaced) = this.poll_replace(cx, data) {
            return replaced.map_ok(|()| data.len());
        }
        match Pin::new(&mut this.io).poll_write(cx, data) {
            Poll::Pending => this.poll_stall(cx),
            ready => {
                this.stalled_at = None;
                ready
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        if let Some(replaced) = this.poll_replace(cx, first) {
            return replaced.map_ok(|()| parts.iter().map(|part| part.len()).sum());
        }
        let whole = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut room = [0; GATHERED];
        let wrote = match room.get_mut(..whole) {
            Some(room) => {
                gather(room, parts);
                Pin::new(&mut this.io).poll_write(cx, room)
            }
            None => Pin::new(&mut this.io).poll_write_vectored(cx, parts),
        };
        match wrote {
            Poll::Pending => this.poll_stall(cx),
            ready => {
                this.stalled_at = None;
                ready
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The server flushes each time that it has nothing else to do.
        if this.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.line.reset.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let unread = this.scanner.as_ref().is_some_and(Scanner::in_message);
        if matches!(this.refusal, Refusal::None) && unread {
            // An answer was given before the request was read to its end.
            this.refusal = Refusal::Writing(Bytes::new());
        }
        if matches!(this.refusal, Refusal::Writing(_) | Refusal::Lingering(_)) {
            return this.poll_refuse(cx);
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
