//! An invocation from its head to its answer: which function, a slot, an attempt, and another one
//! where the rules allow it. The one place where the platform repeats anything.
//!
//! ```text
//! resolve -> admit -> (queued) -> bound -> sent -> answered -> relayed
//!              ^                    |        |
//!              '---- unsent --------'        |  idempotent, body kept, first time
//!              '-----------------------------'
//! ```

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use dirigent_core::{
    Auth, FunctionName, FunctionView, InvocationId, Protocol, SandboxId,
    gate::{Attempt, Finish},
    name::Route,
};
use dirigent_service::Clock;
use http::{HeaderValue, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    Shared,
    alarm::Alarm,
    attempt::{self, Outcome},
    body::Body,
    call::Call,
    errors::{Code, Failure, SERVER_TIMING, X_REQUEST_ID},
    headers::{self, Forward, Peer},
    ids,
    slot::{Admission, Answer, Bound, FunctionSlot, lock},
    source::Source,
    streams,
    upstream::{Home, home},
    wire::Line,
};

/// Before an invocation that was lost is repeated; Envoy's first back-off. A process that is killed
/// closes its connections before its listener: whoever is faster than that is taken once more, and
/// lost with it. And its worker may tell of its death meanwhile.
const REPEAT_AFTER: Duration = Duration::from_millis(25);

/// What the invocations of one client connection share.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    pub(crate) line: Arc<Line>,
    peer: Arc<Peer>,
    home: Home,
    /// The function that the last Host named.
    last: Mutex<Option<(HeaderValue, Arc<FunctionSlot>)>>,
    /// A timer that the next invocation may use.
    alarm: Mutex<Option<Alarm>>,
}

/// Everything about an invocation that outlives an attempt.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) shared: Arc<Shared>,
    pub(crate) line: Arc<Line>,
    pub(crate) slot: Arc<FunctionSlot>,
    pub(crate) view: Arc<FunctionView>,
    pub(crate) parts: Parts,
    pub(crate) forward: Forward,
    pub(crate) call: Call,
    pub(crate) on_upgrade: Option<OnUpgrade>,
    pub(crate) alarm: Alarm,
    /// The thread that serves it.
    pub(crate) home: Home,
    id: InvocationId,
    queue_deadline: Instant,
    queued_since: u64,
}

impl Front {
    pub(crate) fn new(shared: Arc<Shared>, line: Arc<Line>, peer: SocketAddr) -> Self {
        let (last, alarm) = (Mutex::default(), Mutex::default());
        let peer = Peer::new(peer, shared.trusts(peer.ip()));
        Self { shared, line, peer: Arc::new(peer), home: home(), last, alarm }
    }

    /// Answers a request, whatever happens.
    pub(crate) async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let shared = &self.shared;
        // The time at which the head was read is near enough, and known already.
        let arrived = match request.version() {
            Version::HTTP_2 => shared.now().0,
            // A request that was read with the one before it waited for that one's answer.
            _ => self.line.read_at.load(Relaxed).max(self.line.answered_at.load(Relaxed)),
        };
        let request_id = match request.headers().get("x-request-id") {
            Some(given) if ids::is_request_id(given) => apart(given),
            _ => ids::request_id(shared.records.wall_ms(arrived)),
        };
        let call = Call::new(shared, &self.line, request_id, arrived);
        let grpc = is_grpc(&request);
        let is_old = request.version() < Version::HTTP_2;
        // The framing behind a head that may switch protocols was not looked at.
        let blind = is_old && request.headers().contains_key(header::UPGRADE);
        let request_id = call.request_id.clone();
        let (mut response, suspect) = match self.invoke(call, request).await {
            Ok(response) => (response, false),
            Err(failure) => {
                // Whoever sends such a thing may mean something else by what follows.
                let suspect = is_old && failure.code == Code::BadRequest;
                (failure.response(&request_id, grpc), suspect)
            }
        };
        if !is_old {
            // Before the body is asked for anything, the client may refuse to take any.
            streams::gave();
        }
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let leaves = is_old && !switched && shared.is_draining.load(Relaxed);
        if suspect || leaves || (blind && !switched) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn invoke(
        &self,
        mut call: Call,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let shared = &self.shared;
        let (slot, host, prefix) = match self.find(&call, &request).await {
            Ok(found) => found,
            Err(failure) => {
                call.asked = self.asked(&request);
                call.failed(&failure);
                return Err(failure);
            }
        };
        call.slot = Some(Arc::clone(&slot));
        let wants_upgrade =
            request.version() == Version::HTTP_11 && headers::offers_upgrade(request.headers());
        let on_upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, incoming) = request.into_parts();
        let view = slot.view();
        let authorized = view.settings.auth == Auth::Token;
        if authorized {
            let admitted = shared.tokens.admit(&parts.headers, Clock::wall_ms());
            admitted.inspect_err(|failure| call.failed(failure))?;
        }
        let source = self.source(&parts, incoming).inspect_err(|failure| call.failed(failure))?;
        let forward = Forward {
            request_id: call.request_id.clone(),
            peer: Arc::clone(&self.peer),
            host,
            prefix,
            attempt: 1,
            upgrade: wants_upgrade,
            authorized,
        };
        let queued_since = call.arrived;
        let invocation = Invocation {
            shared: Arc::clone(shared),
            line: Arc::clone(&self.line),
            queue_deadline: shared.clock.instant(queued_since) + view.settings.queue_timeout,
            queued_since,
            slot,
            view,
            parts,
            forward,
            call,
            on_upgrade,
            alarm: lock(&self.alarm).take().unwrap_or_default(),
            home: self.home,
            id: shared.next_invocation(),
        };
        self.attempts(invocation, source).await
    }

    async fn attempts(
        &self,
        mut invocation: Invocation,
        mut source: Source,
    ) -> Result<Response<Body>, Failure> {
        let mut attempt = Attempt::First;
        let mut repeated = false;
        loop {
            let unread = !source.is_empty();
            let bound = match invocation.acquire(attempt, unread).await {
                Ok(bound) => bound,
                Err(failure) => return Err(invocation.failed(failure)),
            };
            let sandbox = bound.binding.sandbox;
            let outcome = match bound.binding.protocol {
                Protocol::Http1 => attempt::over_http1(&mut invocation, bound, source).await,
                Protocol::H2c => attempt::over_http2(&mut invocation, bound, source).await,
            };
            match outcome {
                Outcome::Answered(answer) => {
                    let alarm = std::mem::take(&mut invocation.alarm);
                    *lock(&self.alarm) = Some(alarm);
                    return Ok(answer.respond(invocation));
                }
                Outcome::Unsent(body) => {
                    invocation.call.unsent();
                    source = body;
                }
                Outcome::Lost(body, why) => {
                    let settings = &invocation.view.settings;
                    let may =
                        settings.retry && !repeated && headers::is_idempotent(&invocation.parts);
                    let Some(body) = body.filter(|_| may) else {
                        let failure = Failure::new(Code::SandboxLost, why);
                        return Err(invocation.failed(failure));
                    };
                    repeated = true;
                    source = body;
                    invocation.forward.attempt = 2;
                    invocation.queue_deadline = Instant::now() + settings.queue_timeout;
                    tokio::time::sleep(REPEAT_AFTER).await;
                }
                Outcome::Failed(failure) => return Err(invocation.failed(failure)),
            }
            attempt = Attempt::Retry { avoid: sandbox };
            invocation.queued_since = invocation.shared.now().0;
            if Instant::now() >= invocation.queue_deadline {
                let failure = unreachable_for_long(sandbox);
                return Err(invocation.failed(failure));
            }
        }
    }

    /// The function that a request is let in for, the Host, and how much of the path named it.
    async fn find(
        &self,
        call: &Call,
        request: &Request<Incoming>,
    ) -> Result<(Arc<FunctionSlot>, HeaderValue, usize), Failure> {
        let shared = &self.shared;
        if shared.in_flight.load(Relaxed) > shared.limits.in_flight {
            shared.metrics.shed.inc();
            return Err(Failure::new(
                Code::NoCapacity,
                "this data plane has as many invocations in flight as it may",
            ));
        }
        let host = host_of(request)?;
        loop {
            let (slot, prefix) = self.route(request, &host).await?;
            slot.used_at.store(call.arrived, SeqCst);
            if !slot.retired.load(SeqCst) {
                return Ok((slot, host, prefix));
            }
        }
    }

    /// The name that a request asks for, whether there is such a function or not.
    fn asked(&self, request: &Request<Incoming>) -> Option<FunctionName> {
        let host = host_of(request).ok()?;
        match self.shared.hosts.resolve(host.to_str().ok()?, request.uri().path()) {
            Route::Function(one) => Some(one.name),
            Route::Either(_, last) => Some(last.name),
            Route::NoFunction { .. } => None,
        }
    }

    /// The function that a request names, and how much of the path named it.
    async fn route(
        &self,
        request: &Request<Incoming>,
        host: &HeaderValue,
    ) -> Result<(Arc<FunctionSlot>, usize), Failure> {
        if let Some((last, slot)) = &*lock(&self.last)
            && last == host
            && !slot.retired.load(Relaxed)
        {
            return Ok((Arc::clone(slot), 0));
        }
        let shared = &self.shared;
        let text = host.to_str().map_err(|_error| bad("the Host is not ASCII"))?;
        match shared.hosts.resolve(text, request.uri().path()) {
            Route::Function(one) => {
                let slot = shared.catalogue.resolve(shared, &one.name).await?;
                if one.strip == 0 {
                    *lock(&self.last) = Some((apart(host), Arc::clone(&slot)));
                }
                Ok((slot, one.strip))
            }
            Route::Either(first, second) => {
                match shared.catalogue.resolve(shared, &first.name).await {
                    Ok(slot) => Ok((slot, first.strip)),
                    Err(Failure { code: Code::NotFound, .. }) => {
                        let slot = shared.catalogue.resolve(shared, &second.name).await?;
                        Ok((slot, second.strip))
                    }
                    Err(failure) => Err(failure),
                }
            }
            Route::NoFunction { why } => Err(Failure::new(Code::NotFound, why)),
        }
    }

    fn source(&self, parts: &Parts, incoming: Incoming) -> Result<Source, Failure> {
        let limits = &self.shared.limits;
        let source =
            Source::new(incoming, limits.body_bytes, limits.replay_bytes, &self.shared.budget);
        match (source.length(), limits.body_bytes) {
            (Some(length), Some(max)) if length > max => Err(body_too_large(max)),
            _ if parts.method == http::Method::CONNECT => {
                Err(bad("CONNECT is for proxies; this is none"))
            }
            _ => Ok(source),
        }
    }
}

impl Invocation {
    /// A slot, after waiting for one if need be.
    async fn acquire(&mut self, attempt: Attempt, unread: bool) -> Result<Bound, Failure> {
        let now = self.shared.now();
        let bound = match self.slot.admit(&self.shared, now, (self.id, self.home), attempt) {
            Admission::Bound(mut bound) => {
                // The sandbox was ready: nobody waited for its start.
                bound.binding.start = None;
                bound
            }
            Admission::Refused(refusal) => return Err(Failure::refused(&refusal)),
            Admission::Queued(answer) => {
                let _watched = unread.then(|| self.line.leaves_unread());
                self.wait(answer).await?
            }
        };
        let since = self.queued_since;
        self.call.bound(&bound.binding, since, self.shared.now().0);
        Ok(bound)
    }

    async fn wait(&self, answer: oneshot::Receiver<Answer>) -> Result<Bound, Failure> {
        let mut waiting =
            Waiting { shared: &self.shared, slot: &self.slot, id: self.id, answer, over: false };
        let answer = match tokio::time::timeout_at(self.queue_deadline, &mut waiting.answer).await {
            Ok(Ok(answer)) => {
                waiting.over = true;
                Some(answer)
            }
            Ok(Err(_dropped)) => None,
            Err(_elapsed) => waiting.leave(),
        };
        match answer {
            Some(Answer::Bound(bound)) => Ok(*bound),
            Some(Answer::Refused(refusal)) => Err(Failure::refused(&refusal)),
            None => {
                let waited = self.shared.now().since(dirigent_core::Time(self.queued_since));
                Err(self.slot.why_waited(&self.shared, waited))
            }
        }
    }

    pub(crate) fn failed(mut self, failure: Failure) -> Failure {
        self.call.failed(&failure);
        failure
    }

    /// When the sandbox must have begun to answer, counted from now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.view.settings.timeout
    }

    /// Whether a broken response can be shown to the client only by a reset: it would take the end
    /// of the connection for the end of the body.
    pub(crate) fn needs_reset(&self, length_known: bool) -> Option<Arc<Line>> {
        let blind = self.parts.version <= Version::HTTP_10 && !length_known;
        blind.then(|| Arc::clone(&self.line))
    }
}

/// One who waits at a gate. Dropped, it leaves at once.
struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    slot: &'a Arc<FunctionSlot>,
    id: InvocationId,
    answer: oneshot::Receiver<Answer>,
    over: bool,
}

impl Waiting<'_> {
    fn leave(&mut self) -> Option<Answer> {
        self.over = true;
        self.slot.leave(self.shared, self.id, &mut self.answer)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Bound in the same moment: nothing was sent, the slot is free.
        if let Some(Answer::Bound(bound)) = self.leave() {
            let conn = bound.kept.map(|kept| kept.conn);
            self.slot.finish(self.shared, bound.binding.sandbox, Finish::Done, conn);
        }
    }
}

/// An answer by the function: its head, and what is to come.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Pending,
}

/// The body of an answer, before the account goes along with it.
#[derive(Debug)]
pub(crate) enum Pending {
    Whole(bytes::Bytes),
    Relay(Option<http_body::Frame<bytes::Bytes>>, crate::lease::Running),
    Stream(Incoming, crate::source::Shared, crate::lease::Lease),
    Tunnel(crate::lease::Running),
}

impl Reply {
    fn respond(self, mut invocation: Invocation) -> Response<Body> {
        let Self { status, mut headers, body } = self;
        let call = &mut invocation.call;
        call.answered(status.as_u16());
        headers.insert(X_REQUEST_ID.clone(), call.request_id.clone());
        headers.append(SERVER_TIMING.clone(), call.server_timing());
        let idle = invocation.view.settings.idle_timeout;
        let body = match body {
            Pending::Whole(data) if data.is_empty() => Body::Empty,
            Pending::Whole(data) => Body::Full(data),
            Pending::Relay(first, running) => {
                let known = headers.contains_key(header::CONTENT_LENGTH);
                let line = invocation.needs_reset(known);
                let relay = crate::body::Relay::new(first, running, invocation.call, line, idle);
                Body::Relay(Box::new(relay))
            }
            Pending::Stream(incoming, source, lease) => {
                let known = headers.contains_key(header::CONTENT_LENGTH);
                let line = invocation.needs_reset(known);
                let call = invocation.call;
                let stream = crate::body::Stream::new(incoming, source, lease, call, line, idle);
                Body::Stream(Box::new(stream))
            }
            Pending::Tunnel(running) => {
                let protocol = headers.get(header::UPGRADE);
                let websocket = protocol.is_some_and(|p| p.as_bytes() == b"websocket");
                crate::upgrade::tunnel(invocation, running, websocket);
                Body::Empty
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// Waits for what `poll` gives, at most until `deadline`.
pub(crate) async fn before<T>(
    alarm: &mut Alarm,
    deadline: Instant,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => alarm.poll_until(cx, deadline).map(|()| None),
    })
    .await
}

/// As [`before`], for a future.
pub(crate) async fn future_before<F: Future>(
    alarm: &mut Alarm,
    deadline: Instant,
    future: F,
) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    before(alarm, deadline, |cx| Pin::as_mut(&mut future).poll(cx)).await
}

fn bad(message: &'static str) -> Failure {
    Failure::new(Code::BadRequest, message)
}

pub(crate) fn body_too_large(max: u64) -> Failure {
    Failure::new(Code::BodyTooLarge, format!("the body is larger than the {max} bytes allowed"))
}

fn unreachable_for_long(sandbox: SandboxId) -> Failure {
    Failure::new(
        Code::SandboxLost,
        format!("no sandbox could be reached in time, the last one tried was {sandbox}"),
    )
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The same in memory of its own, for who keeps it: as it was read it is a part of what was read with
/// it, and keeps all of that.
fn apart(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_error| value.clone())
}

/// The Host: the header's, which must be there once, or HTTP/2's authority. A target in absolute
/// form must agree with it.
fn host_of(request: &Request<Incoming>) -> Result<HeaderValue, Failure> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad("Host is given twice"));
    }
    let authority = request.uri().authority();
    match (first, authority) {
        (Some(host), None) => Ok(host.clone()),
        (Some(host), Some(authority)) => {
            if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) {
                Ok(host.clone())
            } else {
                Err(bad("the target's authority and the Host differ"))
            }
        }
        (None, Some(authority)) => HeaderValue::from_str(authority.as_str())
            .map_err(|_error| bad("the target's authority is malformed")),
        (None, None) if request.version() <= Version::HTTP_10 => Ok(HeaderValue::from_static("")),
        (None, None) => Err(bad("Host is missing")),
    }
}
