//! Connections to other hosts, and how it is noticed that a host died.

use std::{
    future::Future as _,
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::getsockopt;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// A host that has not acknowledged anything for so long, of what was sent to it, is gone.
const SILENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether what was sent is acknowledged.
const LOOK: Duration = Duration::from_secs(1);

/// What no safe library offers whole, through one that offers the way to it.
mod kernel {
    use nix::{getsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// What the kernel knows of a connection (tcp(7)).
        TcpInfo,
        GetOnly,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        InfoStart
    );

    /// The beginning of the kernel's `tcp_info`, which Linux has since 4.6; the option must not be asked
    /// for with the whole of it where the kernel knows less.
    #[derive(Clone, Copy, Debug)]
    #[expect(unreachable_pub, reason = "what the macro makes of it is public")]
    #[repr(C)]
    pub struct InfoStart {
        _state: u8,
        _congestion: u8,
        _retransmits: u8,
        /// Questions whether there is room again that are not answered.
        pub probes: u8,
        _backoff: u8,
        _options: [u8; 3],
        _timeouts: [u32; 2],
        _sizes: [u32; 2],
        /// Segments on their way.
        pub unacked: u32,
        _segments: [u32; 4],
        _last_data_sent: u32,
        _last_ack_sent: u32,
        _last_data_received: u32,
        /// Milliseconds since the other end acknowledged anything.
        pub last_ack_received: u32,
        _path: [u32; 8],
        _receiving: [u32; 2],
        _retransmitted: u32,
        _rates_and_bytes: [u64; 4],
        _segments_out_in: [u32; 2],
        /// Bytes for which there is no room at the other end.
        pub not_sent: u32,
        _least_round_trip: u32,
    }
}

/// Notices that the host at the other end of a connection died, which says nothing: by itself the
/// kernel goes on for a quarter of an hour. (On this host every death is told.)
///
/// While nothing is on its way the kernel asks after 5 s of silence, and gives up 5 s later. What is
/// on its way has to be acknowledged within 5 s; where the other end has no room, the kernel asks for
/// it, ever less often, and its question has to be answered in that time. `TCP_USER_TIMEOUT` would
/// say so to the kernel, but it also ends a connection whose other end lives and reads nothing for so
/// long, as a function does that has something else to do before it reads a large body.
#[derive(Debug)]
pub struct DeathWatch {
    /// From the first write of which it is not known yet whether it arrived.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    next_look: Pin<Box<Sleep>>,
    since: Instant,
}

impl Waiting {
    /// As if it had begun now.
    fn afresh(&mut self, now: Instant) {
        self.since = now;
        self.next_look.as_mut().reset(now + LOOK);
    }
}

impl DeathWatch {
    /// Of a connection.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(stream: &impl AsFd) -> io::Result<Self> {
        let asking = TcpKeepalive::new().with_time(SILENCE).with_interval(LOOK).with_retries(5);
        SockRef::from(stream).set_tcp_keepalive(&asking)?;
        Ok(Self { waiting: None })
    }

    /// Something is on its way.
    pub fn wrote(&mut self) {
        let now = Instant::now();
        match &mut self.waiting {
            // Whoever looks again only now has had his answer, and kept the connection since then:
            // how long ago that was says nothing of what is on its way now.
            Some(waiting) if now < waiting.next_look.deadline() => {}
            Some(waiting) => waiting.afresh(now),
            None => {
                let next_look = Box::pin(sleep_until(now + LOOK));
                self.waiting = Some(Waiting { next_look, since: now });
            }
        }
    }

    /// What reading comes to: who waits for a host that died waits in vain.
    pub fn read<T>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &impl AsFd,
        read: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if read.is_pending() { self.poll(cx, stream).map(Err) } else { read }
    }

    /// What writing comes to.
    pub fn write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &impl AsFd,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        // Not of what did not go out: a look that is due would be put off for ever.
        if wrote.is_ready() {
            self.wrote();
        }
        self.read(cx, stream, wrote)
    }

    /// For who waits for the other end, to read or to write: ready once it is gone.
    fn poll(&mut self, cx: &mut Context<'_>, stream: &impl AsFd) -> Poll<io::Error> {
        while let Some(waiting) = &mut self.waiting {
            ready!(waiting.next_look.as_mut().poll(cx));
            let now = Instant::now();
            match under_way(stream) {
                UnderWay::Nothing => self.waiting = None,
                UnderWay::Unanswered(heard) if now <= waiting.next_look.deadline() + LOOK => {
                    waiting.since = waiting.since.max(now.checked_sub(heard).unwrap_or(now));
                    let gone = waiting.since + SILENCE;
                    if now >= gone {
                        forget(stream);
                        return Poll::Ready(io::ErrorKind::TimedOut.into());
                    }
                    waiting.next_look.as_mut().reset(gone.min(now + LOOK));
                }
                // Or it is this process that stood still: what came meanwhile is not known yet.
                UnderWay::Blocked | UnderWay::Unanswered(_) => waiting.afresh(now),
            }
        }
        Poll::Pending
    }
}

/// Has the kernel give up what is on its way as soon as the connection is closed. It would go on for
/// minutes, and what was given up here would arrive, and be done, once the other host is back.
fn forget(stream: &impl AsFd) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::warn!(%error, "what was sent to a host that died may arrive there later");
    }
}

/// What was written and has not arrived.
enum UnderWay {
    Nothing,
    /// The other end lives, as far as it was asked, and has no room.
    Blocked,
    /// Data, or the question whether there is room again, is not acknowledged; how long ago anything
    /// was.
    Unanswered(Duration),
}

fn under_way(stream: &impl AsFd) -> UnderWay {
    let Ok(info) = getsockopt(stream, kernel::TcpInfo) else { return UnderWay::Nothing };
    if info.unacked > 0 || info.probes > 0 {
        UnderWay::Unanswered(Duration::from_millis(info.last_ack_received.into()))
    } else if info.not_sent > 0 {
        UnderWay::Blocked
    } else {
        UnderWay::Nothing
    }
}

/// A connection of which it is noticed that the other host died.
#[derive(Debug)]
pub struct Watched {
    stream: TcpStream,
    watch: Option<DeathWatch>,
}

impl Watched {
    /// To another member of the cluster.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        let watch = Some(DeathWatch::new(&stream)?);
        Ok(Self { stream, watch })
    }

    /// To anybody, whose outages are none of ours.
    #[must_use]
    pub const fn not(stream: TcpStream) -> Self {
        Self { stream, watch: None }
    }

    fn has_written(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &mut self.watch {
            Some(watch) => watch.write(cx, &self.stream, wrote),
            None => wrote,
        }
    }
}

impl Drop for Watched {
    /// Whoever else found out that the other host is gone, by a question of its own.
    fn drop(&mut self) {
        if self.watch.as_ref().is_some_and(|watch| watch.waiting.is_some())
            && let UnderWay::Unanswered(heard) = under_way(&self.stream)
            && heard >= LOOK
        {
            forget(&self.stream);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        match &mut this.watch {
            Some(watch) => watch.read(cx, &this.stream, read),
            None => read,
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.has_written(cx, wrote)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.has_written(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(connecting, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn whoever_lives_and_reads_nothing_is_not_gone() {
        let (near, mut far) = pair().await;
        let mut near = Watched::new(near).unwrap();
        let much = vec![7; 16 << 20];
        let sent = near.write_all(&much);
        tokio::pin!(sent);
        // Longer than the dead may take: there is no room at the other end all the while.
        assert!(timeout(SILENCE + 2 * LOOK, &mut sent).await.is_err());
        let mut came = vec![0; much.len()];
        let (sent, read) = tokio::join!(sent, far.read_exact(&mut came));
        sent.unwrap();
        read.unwrap();
        assert_eq!(came, much);
    }

    #[tokio::test]
    async fn whoever_has_no_room_is_looked_after_all_the_while() {
        let (near, _far) = pair().await;
        let mut near = Watched::new(near).unwrap();
        let much = vec![7; 16 << 20];
        assert!(timeout(2 * LOOK + LOOK / 2, near.write_all(&much)).await.is_err());
        let waiting = near.watch.as_ref().unwrap().waiting.as_ref().expect("it waits");
        let (now, next) = (Instant::now(), waiting.next_look.deadline());
        assert!(now - waiting.since < 2 * LOOK && now < next && next <= now + LOOK);
    }

    #[tokio::test]
    async fn a_connection_that_was_kept_is_not_gone_by_what_was_said_before() {
        let (near, mut far) = pair().await;
        let mut near = Watched::new(near).unwrap();
        near.write_all(b"hello").await.unwrap();
        far.read_exact(&mut [0; 5]).await.unwrap();
        // Nobody reads meanwhile: it is kept, as one is that has brought its answer.
        tokio::time::pause();
        tokio::time::advance(10 * SILENCE).await;
        near.write_all(b"again").await.unwrap();
        let waiting = near.watch.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.since, Instant::now());
        assert_eq!(waiting.next_look.deadline(), Instant::now() + LOOK);
    }

    #[tokio::test]
    async fn nobody_looks_once_all_has_arrived() {
        let (near, mut far) = pair().await;
        let mut near = Watched::new(near).unwrap();
        near.write_all(b"hello").await.unwrap();
        assert!(near.watch.as_ref().unwrap().waiting.is_some());
        far.read_exact(&mut [0; 5]).await.unwrap();
        assert!(timeout(3 * LOOK, near.read(&mut [0])).await.is_err());
        assert!(near.watch.as_ref().unwrap().waiting.is_none());
    }
}
