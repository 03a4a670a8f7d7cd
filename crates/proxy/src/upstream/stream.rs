//! A byte stream to a sandbox, by whichever address its worker gave it.
//!
//! It is registered with the event queue of the thread that made it. On another thread it still
//! works, but each event is heard by the first thread, which has to wake the other: so a stream that
//! is used on another thread moves there first.

use std::{
    fmt, io,
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr},
    os::unix::net::UnixStream as StdUnixStream,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Acquire},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use dirigent_core::{Address, SandboxId};
use dirigent_service::socket::DeathWatch;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// See the module.
#[derive(Debug)]
pub(crate) enum Stream {
    /// With what notices that its host died, if that is another one.
    Tcp(TcpStream, Option<Mutex<DeathWatch>>),
    Unix(UnixStream),
    /// This end of one that is carried on by others, who say so before it ends because it broke.
    Carried(UnixStream, Arc<AtomicBool>),
}

/// Connects, or says why not within `limit`.
pub(crate) async fn connect(
    address: &Address,
    tunnels: Option<&dyn Tunnels>,
    limit: Duration,
) -> io::Result<Stream> {
    let connecting = async {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Stream::tcp(stream)
            }
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            Address::Ingress { at, worker, sandbox } => {
                let tunnels = tunnels.ok_or_else(|| {
                    let why = "a worker that encrypts is met only with a certificate";
                    io::Error::new(io::ErrorKind::Unsupported, why)
                })?;
                let broken = Arc::new(AtomicBool::new(false));
                let opened = tunnels.open(*at, worker, *sandbox, Arc::clone(&broken)).await?;
                Ok(Stream::Carried(UnixStream::from_std(opened)?, broken))
            }
        }
    };
    match tokio::time::timeout(limit, connecting).await {
        Ok(result) => result,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A connection that is being made.
pub type Opening<'a> = Pin<Box<dyn Future<Output = io::Result<StdUnixStream>> + Send + 'a>>;

/// Connections to sandboxes that their worker relays.
pub trait Tunnels: fmt::Debug + Send + Sync {
    /// One to a sandbox of the worker of this name, which is reached at `at`. Whoever carries it sets
    /// `broken` before it ends, unless it ends as the sandbox ended it.
    fn open<'a>(
        &'a self,
        at: SocketAddr,
        worker: &'a str,
        sandbox: SandboxId,
        broken: Arc<AtomicBool>,
    ) -> Opening<'a>;
}

impl Stream {
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        let is_far = !stream.peer_addr()?.ip().is_loopback();
        let watch = if is_far { Some(Mutex::new(DeathWatch::new(&stream)?)) } else { None };
        Ok(Self::Tcp(stream, watch))
    }

    /// What an attempt comes to.
    fn watched<T>(&self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self {
            Self::Tcp(stream, Some(watch)) if polled.is_pending() => {
                watch.lock().unwrap_or_else(PoisonError::into_inner).read(cx, stream, polled)
            }
            _ => polled,
        }
    }

    /// What writing comes to.
    fn noted(
        &self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream, Some(watch)) => {
                watch.lock().unwrap_or_else(PoisonError::into_inner).write(cx, stream, wrote)
            }
            _ => wrote,
        }
    }

    /// Something is on its way.
    fn wrote(&self) {
        if let Self::Tcp(_, Some(watch)) = self {
            watch.lock().unwrap_or_else(PoisonError::into_inner).wrote();
        }
    }

    /// The same one, registered with this thread's event queue; `None` if it is not quiet.
    pub(crate) fn moved(self) -> Option<Self> {
        // What this thread's queue knows of it comes later: the socket itself is asked.
        let quiet = |peeked: io::Result<usize>| matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        let unix = |stream: UnixStream| {
            let stream = stream.into_std()?;
            let quiet = quiet(SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]));
            Ok(if quiet { Some(UnixStream::from_std(stream)?) } else { None })
        };
        let moved = match self {
            Self::Tcp(stream, _) => stream.into_std().and_then(|stream| {
                let quiet = quiet(stream.peek(&mut [0]));
                if quiet { Self::tcp(TcpStream::from_std(stream)?).map(Some) } else { Ok(None) }
            }),
            Self::Unix(stream) => unix(stream).map(|moved| moved.map(Self::Unix)),
            Self::Carried(stream, broken) => {
                unix(stream).map(|moved| moved.map(|stream| Self::Carried(stream, broken)))
            }
        };
        moved.unwrap_or_else(|error| {
            tracing::debug!(%error, "a kept connection could not be moved");
            None
        })
    }

    /// Reads without having it alone: meanwhile [`Self::ended`] may be awaited by the same task.
    pub(crate) fn poll_read_shared(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let read = match self {
                Self::Tcp(stream, _) => {
                    let polled = stream.poll_read_ready(cx);
                    ready!(self.watched(cx, polled))?;
                    stream.try_read(buffer.initialize_unfilled())
                }
                Self::Unix(stream) | Self::Carried(stream, _) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read(buffer.initialize_unfilled())
                }
            };
            match read {
                Ok(0) if buffer.remaining() > 0 => return Poll::Ready(self.end()),
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Nothing more comes: whether that is its end, or it broke.
    fn end(&self) -> io::Result<()> {
        match self {
            Self::Carried(_, broken) if broken.load(Acquire) => {
                Err(io::ErrorKind::ConnectionReset.into())
            }
            _ => Ok(()),
        }
    }

    /// Writes without having it alone.
    pub(crate) fn poll_write_shared(
        &self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let wrote = match self {
                Self::Tcp(stream, _) => {
                    let polled = stream.poll_write_ready(cx);
                    ready!(self.watched(cx, polled))?;
                    let wrote = stream.try_write(data);
                    if wrote.is_ok() {
                        self.wrote();
                    }
                    wrote
                }
                Self::Unix(stream) | Self::Carried(stream, _) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_write(data)
                }
            };
            match wrote {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                wrote => return Poll::Ready(wrote),
            }
        }
    }

    /// Nothing more will be written.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.wrote();
        match self {
            Self::Tcp(stream, _) => SockRef::from(stream).shutdown(Shutdown::Write),
            Self::Unix(stream) | Self::Carried(stream, _) => {
                SockRef::from(stream).shutdown(Shutdown::Write)
            }
        }
    }

    /// Returns when the other end has ended its side, past what lies unread before that, as far as
    /// the kernel has it. Cancellation safe.
    pub(crate) async fn ended(&self) {
        // Of all that can be asked for, it is what comes with the end and not with data.
        const END: Interest = Interest::PRIORITY;
        loop {
            let ready = match self {
                Self::Tcp(stream, _) => stream.ready(END).await,
                Self::Unix(stream) | Self::Carried(stream, _) => stream.ready(END).await,
            };
            match ready {
                Ok(ready) if ready.is_read_closed() => return,
                // Urgent data, which HTTP does not know.
                Ok(_) => self.unready(END),
                // The event queue is gone, and this task with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Forgets readiness until the next event.
    fn unready(&self, interest: Interest) {
        let nothing = || Err(io::ErrorKind::WouldBlock.into());
        let _would_block: io::Result<()> = match self {
            Self::Tcp(stream, _) => stream.try_io(interest, nothing),
            Self::Unix(stream) | Self::Carried(stream, _) => stream.try_io(interest, nothing),
        };
    }

    /// Whether the other end neither closed it nor said anything unasked.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream, _) => stream.try_read(&mut byte),
            Self::Unix(stream) | Self::Carried(stream, _) => stream.try_read(&mut byte),
        };
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = match this {
            Self::Tcp(stream, _) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) | Self::Carried(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        };
        ready!(this.watched(cx, read))?;
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        Poll::Ready(if ended { this.end() } else { Ok(()) })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = match this {
            Self::Tcp(stream, _) => Pin::new(stream).poll_write(cx, data),
            Self::Unix(stream) | Self::Carried(stream, _) => Pin::new(stream).poll_write(cx, data),
        };
        this.noted(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = match this {
            Self::Tcp(stream, _) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Unix(stream) | Self::Carried(stream, _) => {
                Pin::new(stream).poll_write_vectored(cx, parts)
            }
        };
        this.noted(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) | Self::Carried(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) | Self::Carried(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
