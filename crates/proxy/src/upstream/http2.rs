//! HTTP/2 with prior knowledge to a sandbox: one connection carries many invocations.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Stoppable, source, upstream::Stream};

/// A handle of a connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Multiplexed {
    requests: SendRequest<source::Shared>,
    greeting: Arc<OnceLock<Greeting>>,
}

/// What the other end said first, which over HTTP/2 is a frame of settings (RFC 9113, 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    Http2,
    Http1,
    /// Neither.
    Strange,
    /// It closed the connection without a word.
    None,
}

impl Greeting {
    /// By the first bytes; `None` if these are too few.
    fn of(bytes: &[u8]) -> Option<Self> {
        /// The kind of a frame of settings stands behind the three bytes of its length.
        const SETTINGS: u8 = 4;
        match bytes {
            b"HTTP" => Some(Self::Http1),
            [_, _, _, SETTINGS] => Some(Self::Http2),
            [_, _, _, _] => Some(Self::Strange),
            _ => None,
        }
    }

    /// What is wrong, as a caller is told.
    pub(crate) const fn complaint(self) -> Option<&'static str> {
        match self {
            Self::Http2 => None,
            Self::Http1 => Some(
                "the sandbox answered in HTTP/1, not in HTTP/2 as `sandbox.protocol = \"h2c\"` \
                 says; deploy it with \"http1\", or have it speak HTTP/2 without TLS",
            ),
            Self::Strange => Some(
                "the sandbox answered with what is not HTTP/2, as `sandbox.protocol = \"h2c\"` \
                 says that it speaks; if it speaks HTTP/1, deploy it with \"http1\"",
            ),
            Self::None => Some(
                "the sandbox closed the connection before it greeted in HTTP/2, as \
                 `sandbox.protocol = \"h2c\"` says that it does",
            ),
        }
    }
}

/// A stream whose first bytes are looked at.
struct Greeted {
    stream: Stream,
    first: Vec<u8>,
    greeting: Arc<OnceLock<Greeting>>,
}

impl Greeted {
    /// These came; none at the end.
    fn heard(&mut self, bytes: &[u8]) {
        const ENOUGH: usize = 4;
        if self.greeting.get().is_some() {
            return;
        }
        let more = ENOUGH.saturating_sub(self.first.len()).min(bytes.len());
        self.first.extend_from_slice(bytes.get(..more).unwrap_or_default());
        let at_end = match (bytes, &*self.first) {
            ([], []) => Some(Greeting::None),
            ([], _) => Some(Greeting::Strange),
            _ => None,
        };
        if let Some(greeting) = at_end.or_else(|| Greeting::of(&self.first)) {
            self.greeting.get_or_init(|| greeting);
        }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buffer));
        this.heard(buffer.filled().get(before..).unwrap_or_default());
        Poll::Ready(read)
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Silence after which the other end is asked whether it lives, and how long it may think.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Runs what a connection needs beside it.
#[derive(Clone, Debug)]
struct Beside(Stoppable);

impl<F> hyper::rt::Executor<F> for Beside
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.run("http2", async move {
            future.await;
        });
    }
}

/// Greets the sandbox and drives the connection from a task of its own.
pub(crate) async fn connect(stream: Stream, tasks: &Stoppable) -> hyper::Result<Multiplexed> {
    let greeting = Arc::new(OnceLock::new());
    let stream = Greeted { stream, first: Vec::new(), greeting: Arc::clone(&greeting) };
    let (requests, connection) = hyper::client::conn::http2::Builder::new(Beside(tasks.clone()))
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(TokioIo::new(stream))
        .await?;
    tasks.run("sandbox connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to a sandbox broke");
        }
    });
    Ok(Multiplexed { requests, greeting })
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// Not a byte of it left.
    pub(crate) unsent: bool,
    pub(crate) error: hyper::Error,
}

impl Multiplexed {
    /// What the sandbox said first, once it did.
    pub(crate) fn greeting(&self) -> Option<Greeting> {
        self.greeting.get().copied()
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.requests.is_closed()
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<source::Shared>,
    ) -> Result<Response<Incoming>, Unanswered> {
        if let Err(error) = self.requests.ready().await {
            return Err(Unanswered { unsent: true, error });
        }
        self.requests.try_send_request(request).await.map_err(|mut error| Unanswered {
            unsent: error.take_message().is_some(),
            error: error.into_error(),
        })
    }
}
