//! One attempt: an invocation on one sandbox, over either protocol, and how it ended as far as
//! another attempt is concerned.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::Bytes;
use dirigent_core::gate::Finish;
use http::{Request, StatusCode};

use crate::{
    alarm::Alarm,
    errors::{Code, Failure},
    headers::{self, Framing},
    invoke::{Invocation, Pending, Reply, before, body_too_large, future_before},
    lease::{Lease, Running},
    slot::{Bound, lock},
    source::{self, Source, SourceError},
    upstream::{self, Conn, Exchange, Greeting, Multiplexed, RecvError},
};

/// How an attempt ended.
pub(crate) enum Outcome {
    /// The function answers.
    Answered(Box<Reply>),
    /// Not a byte was sent: it may be made again.
    Unsent(Source),
    /// It was sent, and no byte came back. With the body, if that is still whole.
    Lost(Option<Source>, String),
    /// The platform answers.
    Failed(Failure),
}

/// Over HTTP/1.1, on a kept connection or a new one.
pub(crate) async fn over_http1(
    invocation: &mut Invocation,
    bound: Bound,
    mut source: Source,
) -> Outcome {
    let Bound { binding, kept, .. } = bound;
    let lease = Lease::new(&invocation.shared, &invocation.slot, binding);
    let mut kept = kept.and_then(|kept| kept.conn.reuse(invocation.home));
    let mut lease = Some(lease);
    while let Some(held) = lease.take() {
        let reused = kept.is_some();
        let conn = match kept.take() {
            Some(conn) => conn,
            None => match connect(invocation, &held).await {
                Ok(stream) => Conn::new(stream),
                Err(error) => {
                    tracing::debug!(sandbox = %held.binding.sandbox, %error, "not reached");
                    held.finish(Finish::Unreachable, None);
                    return Outcome::Unsent(source);
                }
            },
        };
        let (parts, forward) = (&invocation.parts, &invocation.forward);
        let exchange = Box::new(Exchange::new(conn, parts, forward, source));
        match exchange_once(invocation, Running::new(exchange, held), reused).await {
            Once::Outcome(outcome) => return outcome,
            Once::Stale(body, held) => {
                source = body;
                lease = Some(held);
            }
        }
    }
    Outcome::Failed(Failure::new(Code::SandboxLost, "the sandbox could not be reached"))
}

enum Once {
    Outcome(Outcome),
    /// A kept connection turned out to be closed before anything was sent.
    Stale(Source, Lease),
}

async fn exchange_once(invocation: &mut Invocation, mut running: Running, reused: bool) -> Once {
    let began = invocation.shared.now().0;
    let deadline = invocation.deadline();
    let line = Arc::clone(&invocation.line);
    let mut unread = None;
    let head = before(&mut invocation.alarm, deadline, |cx| {
        let Some(exchange) = running.exchange() else {
            return Poll::Ready(Err(RecvError::Closed));
        };
        let head = exchange.poll_head(cx);
        if exchange.is_stuck() {
            unread.get_or_insert_with(|| line.leaves_unread());
        } else {
            unread = None;
        }
        head
    })
    .await;
    drop(unread);
    let outcome = match head {
        Some(Ok(head))
            if head.status == StatusCode::SWITCHING_PROTOCOLS && !invocation.forward.upgrade =>
        {
            Outcome::Failed(lost(&RecvError::Invalid("it switches protocols unasked")))
        }
        Some(Ok(head)) => {
            let now = invocation.shared.now().0;
            invocation.call.phases.first_byte = now.saturating_sub(began);
            answer(running, head).await
        }
        // Dropping `running` gives the slot back as the rules for abandoned handlers say.
        None => Outcome::Failed(timed_out(invocation)),
        Some(Err(RecvError::Source(error))) => Outcome::Failed(client_failed(invocation, error)),
        Some(Err(error @ (RecvError::Closed | RecvError::Http2 | RecvError::Invalid(_)))) => {
            let Some((exchange, lease)) = running.take() else {
                return Once::Outcome(Outcome::Failed(lost(&error)));
            };
            return broken(exchange, lease, reused, &error);
        }
    };
    Once::Outcome(outcome)
}

/// The connection broke, or what came is not HTTP, before there was a head.
fn broken(exchange: Box<Exchange>, lease: Lease, reused: bool, error: &RecvError) -> Once {
    if !exchange.sent {
        let mut source = exchange.into_source();
        if !source.rewind() {
            lease.finish(Finish::Unreachable, None);
            return Once::Outcome(Outcome::Failed(lost(error)));
        }
        if reused {
            return Once::Stale(source, lease);
        }
        lease.finish(Finish::Unreachable, None);
        return Once::Outcome(Outcome::Unsent(source));
    }
    if exchange.answered {
        match error {
            // A server of HTTP/2 has understood nothing of it: no handler runs.
            RecvError::Closed | RecvError::Http2 => lease.finish(Finish::Done, None),
            _ => lease.abandon(Some(exchange.into_conn())),
        }
        return Once::Outcome(Outcome::Failed(lost(error)));
    }
    // It took the connection, so it is in reach. Its handler may have failed, or a kept connection
    // may have been closed for having been idle; of its death the worker tells.
    lease.finish(Finish::Done, None);
    let mut source = exchange.into_source();
    let whole = source.rewind().then_some(source);
    Once::Outcome(Outcome::Lost(whole, error.to_string()))
}

/// The head came: what there is of the body already decides how the rest goes to the client.
async fn answer(mut running: Running, head: upstream::Head) -> Outcome {
    let upstream::Head { status, headers } = head;
    let reply = |headers, body| Outcome::Answered(Box::new(Reply { status, headers, body }));
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return reply(headers, Pending::Tunnel(running));
    }
    let Some(exchange) = running.exchange() else {
        return Outcome::Failed(lost(&RecvError::Closed));
    };
    exchange.keep_nothing();
    let first = poll_fn(|cx| Poll::Ready(exchange.poll_body(cx))).await;
    match first {
        Poll::Ready(None) => {
            running.complete();
            reply(headers, Pending::Whole(Bytes::new()))
        }
        Poll::Ready(Some(Ok(frame))) => {
            let over = exchange.is_over();
            if over {
                running.complete();
            }
            match frame.into_data() {
                Ok(data) if over => reply(headers, Pending::Whole(data)),
                Ok(data) => {
                    reply(headers, Pending::Relay(Some(http_body::Frame::data(data)), running))
                }
                Err(frame) => reply(headers, Pending::Relay(Some(frame), running)),
            }
        }
        Poll::Ready(Some(Err(error))) => {
            if let RecvError::Closed = error {
                running.closed();
            }
            Outcome::Failed(lost(&error))
        }
        Poll::Pending => reply(headers, Pending::Relay(None, running)),
    }
}

async fn connect(invocation: &mut Invocation, lease: &Lease) -> io::Result<upstream::Stream> {
    let began = invocation.shared.now().0;
    let limit = invocation.shared.limits.connect_timeout;
    let tunnels = invocation.shared.tunnels.as_deref();
    let stream = upstream::connect(&lease.binding.address, tunnels, limit).await;
    let took = invocation.shared.now().0.saturating_sub(began);
    invocation.call.phases.connect += took;
    stream
}

/// Over HTTP/2, on the connection that the sandbox's invocations share.
pub(crate) async fn over_http2(
    invocation: &mut Invocation,
    bound: Bound,
    source: Source,
) -> Outcome {
    let Bound { binding, h2, .. } = bound;
    let lease = Lease::new(&invocation.shared, &invocation.slot, binding);
    let (mut connection, reused) = match h2.filter(Multiplexed::is_usable) {
        Some(connection) => (connection, true),
        None => match greet(invocation, &lease).await {
            Some(connection) => (connection, false),
            None => {
                lease.finish(Finish::Unreachable, None);
                return Outcome::Unsent(source);
            }
        },
    };
    let framing = match source.length() {
        Some(0) | None => Framing::None,
        Some(length) => Framing::Length(length),
    };
    let Some((uri, headers)) = headers::http2(&invocation.parts, &invocation.forward, framing)
    else {
        let failure = Failure::new(Code::BadRequest, "the Host or the path is malformed");
        return Outcome::Failed(failure);
    };
    // How much of it the connection takes is not seen from here.
    let line = Arc::clone(&invocation.line);
    let unread = (!source.is_empty()).then(|| line.leaves_unread());
    let body = source::Shared(Arc::new(Mutex::new(source)));
    let mut request = Request::new(body.clone());
    *request.method_mut() = invocation.parts.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;

    let began = invocation.shared.now().0;
    let deadline = invocation.deadline();
    let mut sent = Sent(Some(lease));
    let alarm: &mut Alarm = &mut invocation.alarm;
    let response = future_before(alarm, deadline, connection.send(request)).await;
    drop(unread);
    let Some(lease) = sent.0.take() else {
        return Outcome::Failed(lost(&RecvError::Closed));
    };
    match response {
        Some(Ok(response)) => {
            let now = invocation.shared.now().0;
            invocation.call.phases.first_byte = now.saturating_sub(began);
            lock(&body.0).keep_nothing();
            let (parts, incoming) = response.into_parts();
            let mut headers = parts.headers;
            headers::clean_answer(&mut headers);
            let status = parts.status;
            let body = Pending::Stream(incoming, body, lease);
            Outcome::Answered(Box::new(Reply { status, headers, body }))
        }
        None => {
            lease.abandon(None);
            Outcome::Failed(timed_out(invocation))
        }
        Some(Err(unanswered)) => {
            tracing::debug!(error = %unanswered.error, "no answer over HTTP/2");
            let source = lock(&body.0).take();
            if let Some(error) = source.failure() {
                lease.abandon(None);
                return Outcome::Failed(client_failed(invocation, error));
            }
            // A new connection on which nothing can be sent is of no use to the next one either.
            let useless = unanswered.unsent && !reused;
            no_answer(lease, source, connection.greeting(), unanswered.unsent, useless)
        }
    }
}

/// The connection broke before there was a head.
fn no_answer(
    lease: Lease,
    mut source: Source,
    greeting: Option<Greeting>,
    unsent: bool,
    useless: bool,
) -> Outcome {
    let complaint = greeting.and_then(Greeting::complaint);
    if let (Some(Greeting::Http1 | Greeting::Strange), Some(why)) = (greeting, complaint) {
        // Another attempt would hear the same, and no handler runs.
        lease.finish(Finish::Done, None);
        return Outcome::Failed(Failure::new(Code::SandboxLost, why));
    }
    lease.finish(if useless { Finish::Unreachable } else { Finish::Done }, None);
    let whole = source.rewind();
    if unsent && whole {
        return Outcome::Unsent(source);
    }
    let why = complaint.map_or_else(|| RecvError::Closed.to_string(), str::to_owned);
    Outcome::Lost(whole.then_some(source), why)
}

/// A lease whose request may have left. Dropped, it was abandoned.
struct Sent(Option<Lease>);

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.abandon(None);
        }
    }
}

async fn greet(invocation: &mut Invocation, lease: &Lease) -> Option<Multiplexed> {
    let stream = match connect(invocation, lease).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(sandbox = %lease.binding.sandbox, %error, "not reached");
            return None;
        }
    };
    match upstream::connect_http2(stream, &invocation.shared.beside).await {
        Ok(connection) => {
            invocation.slot.share(lease.binding.sandbox, &connection);
            Some(connection)
        }
        Err(error) => {
            tracing::debug!(sandbox = %lease.binding.sandbox, %error, "no HTTP/2 there");
            None
        }
    }
}

fn lost(error: &RecvError) -> Failure {
    Failure::new(Code::SandboxLost, error.to_string())
}

fn timed_out(invocation: &Invocation) -> Failure {
    let seconds = invocation.view.settings.timeout.as_secs_f64();
    Failure::new(Code::Timeout, format!("the function did not answer within {seconds} s (timeout)"))
}

fn client_failed(invocation: &Invocation, error: SourceError) -> Failure {
    match error {
        SourceError::TooLarge => {
            body_too_large(invocation.shared.limits.body_bytes.unwrap_or(u64::MAX))
        }
        SourceError::Client => Failure::new(Code::BadRequest, error.to_string()),
    }
}
