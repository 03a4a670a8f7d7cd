//! The body of a response on its way to the client.
//!
//! It pulls: nothing is read from a sandbox that the client does not take. A body that breaks off
//! ends with an error, which the HTTP server makes visible to the client.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use dirigent_core::gate::Finish;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::{
    alarm::Alarm,
    call::Call,
    lease::{Lease, Running},
    slot::lock,
    source, streams,
    upstream::RecvError,
    wire::Line,
};

/// The response was cut: the client must not take it for whole.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the response broke off")]
pub(crate) struct Cut;

/// See the module.
#[derive(Debug)]
pub(crate) enum Body {
    Empty,
    /// All of it is here.
    Full(Bytes),
    /// It comes over HTTP/1.1.
    Relay(Box<Relay>),
    /// It comes over HTTP/2.
    Stream(Box<Stream>),
}

/// Silence allowed once a response has begun: of both sides, as the client may still be sending.
#[derive(Debug)]
struct Patience {
    alarm: Alarm,
    allowed: Duration,
    since: Instant,
    /// Bytes of the client's body when that was last looked at.
    uploaded: u64,
}

impl Patience {
    fn new(allowed: Duration) -> Self {
        Self { alarm: Alarm::default(), allowed, since: Instant::now(), uploaded: 0 }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>, uploaded: u64) -> Poll<()> {
        if self.uploaded != uploaded {
            self.uploaded = uploaded;
            self.since = Instant::now();
        }
        let deadline = self.since + self.allowed;
        self.alarm.poll_until(cx, deadline)
    }
}

/// A response over HTTP/1.1 that has begun.
#[derive(Debug)]
pub(crate) struct Relay {
    first: Option<Frame<Bytes>>,
    running: Running,
    patience: Patience,
    call: Call,
    /// The client's connection, if nothing but a reset shows it that the response was cut.
    line: Option<Arc<Line>>,
    over: bool,
    broken: bool,
}

impl Relay {
    pub(crate) fn new(
        first: Option<Frame<Bytes>>,
        running: Running,
        call: Call,
        line: Option<Arc<Line>>,
        idle_timeout: Duration,
    ) -> Self {
        let patience = Patience::new(idle_timeout);
        Self { first, running, patience, call, line, over: false, broken: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.broken {
            return Poll::Ready(Some(Err(Cut)));
        }
        let Some(exchange) = self.running.exchange() else { return Poll::Ready(None) };
        match exchange.poll_body(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if exchange.is_over() {
                    // The sandbox is free before the client has taken the last bytes.
                    self.running.complete();
                    self.over = true;
                }
                self.patience.since = Instant::now();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.running.complete();
                self.over = true;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                if let RecvError::Closed = error {
                    self.running.closed();
                }
                self.cut(cx, &error.to_string())
            }
            Poll::Pending => {
                let uploaded = exchange.uploaded();
                ready!(self.patience.poll_over(cx, uploaded));
                self.cut(cx, "silent for longer than idle_timeout")
            }
        }
    }

    /// The error follows with the next poll: what was relayed so far is flushed before, so that the
    /// client sees a response that broke off and not a connection that closed.
    fn cut<T>(&mut self, cx: &Context<'_>, why: &str) -> Poll<T> {
        tracing::debug!(request_id = ?self.call.request_id, why, "a response was cut");
        if let Some((exchange, lease)) = self.running.take() {
            lease.abandon(Some(exchange.into_conn()));
        }
        self.call.cut(why.to_owned());
        self.over = true;
        self.broken = true;
        if let Some(line) = &self.line {
            line.reset.store(true, Relaxed);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn rest(&self) -> Option<u64> {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        match self.running.peek() {
            Some(exchange) => exchange.rest().map(|rest| rest + first),
            None => Some(first),
        }
    }
}

/// A response over HTTP/2 that has begun.
#[derive(Debug)]
pub(crate) struct Stream {
    incoming: Incoming,
    /// The client's body, which the connection to the sandbox takes.
    source: source::Shared,
    lease: Option<Lease>,
    patience: Patience,
    call: Call,
    line: Option<Arc<Line>>,
    broken: bool,
}

impl Stream {
    pub(crate) fn new(
        incoming: Incoming,
        source: source::Shared,
        lease: Lease,
        call: Call,
        line: Option<Arc<Line>>,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            incoming,
            source,
            lease: Some(lease),
            patience: Patience::new(idle_timeout),
            call,
            line,
            broken: false,
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.broken {
            return Poll::Ready(Some(Err(Cut)));
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if self.incoming.is_end_stream() {
                    self.finish();
                }
                self.patience.since = Instant::now();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.finish();
                self.cut(cx, &error.to_string())
            }
            Poll::Pending => {
                let uploaded = lock(&self.source.0).read();
                ready!(self.patience.poll_over(cx, uploaded));
                self.cut(cx, "silent for longer than idle_timeout")
            }
        }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.finish(Finish::Done, None);
        }
    }

    fn cut<T>(&mut self, cx: &Context<'_>, why: &str) -> Poll<T> {
        tracing::debug!(request_id = ?self.call.request_id, why, "a response was cut");
        if let Some(lease) = self.lease.take() {
            lease.abandon(None);
        }
        self.call.cut(why.to_owned());
        self.broken = true;
        if let Some(line) = &self.line {
            line.reset.store(true, Relaxed);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.over {
            self.call.left();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.call.left();
            lease.abandon(None);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let polled = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Full(data) if data.is_empty() => return Poll::Ready(None),
            Self::Full(data) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
            Self::Relay(relay) => relay.poll_frame(cx),
            Self::Stream(stream) => stream.poll_frame(cx),
        };
        if polled.is_pending() {
            streams::taken();
        } else {
            streams::gave();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(data) => data.is_empty(),
            Self::Relay(relay) => relay.over && !relay.broken && relay.first.is_none(),
            Self::Stream(stream) => !stream.broken && stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(data) => SizeHint::with_exact(data.len() as u64),
            Self::Relay(relay) => relay.rest().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}
