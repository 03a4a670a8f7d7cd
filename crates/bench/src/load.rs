//! The load generator: open loop, so that a slow answer delays no later call, and measured from
//! the intended start, so that a late start counts as latency (no coordinated omission).

use std::{
    io::Write as _,
    net::SocketAddr,
    num::NonZeroU64,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::future::{Either, FutureExt as _, select};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};

/// What is spoken to the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, connections kept and reused.
    #[default]
    Http1,
    /// HTTP/2 without TLS, one connection for all calls.
    H2c,
}

impl FromStr for Protocol {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "http1" => Ok(Self::Http1),
            "h2c" => Ok(Self::H2c),
            other => bail!("`{other}` is neither http1 nor h2c"),
        }
    }
}

/// One call to be made.
#[derive(Clone, Debug)]
pub struct Call {
    /// When, from the start of the run.
    pub at: Duration,
    /// The Host.
    pub host: Arc<str>,
    /// Path and query.
    pub path: String,
    /// GET, POST, ...
    pub method: Method,
    /// Sent with it.
    pub body: Bytes,
    /// On a connection of its own.
    pub fresh: bool,
}

/// Why a call counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection.
    Connect,
    /// The connection broke before a response.
    Reset,
    /// The response was cut.
    Truncated,
    /// A status that is not 2xx.
    Status,
    /// Neither a response nor an error within the deadline: lost.
    NoAnswer,
    /// Not sent: this generator had too many calls open.
    Saturated,
}

/// What became of a call. Times are from the start of the run.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which call, by its place in the plan.
    pub call: usize,
    /// When it was to be sent.
    pub intended: Duration,
    /// When this generator began with it: what it is late by is this machine's, not the target's.
    pub begun: Duration,
    /// When its response ended, or it failed.
    pub done: Duration,
    /// When the response's head came.
    pub head: Option<Duration>,
    /// The status answered.
    pub status: Option<u16>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The platform's error code, if it failed the call.
    pub code: Option<String>,
    /// The body of a response that is no success, cut short.
    pub message: Option<String>,
    /// `Server-Timing`, if answered.
    pub timing: Option<String>,
    /// `K-Revision`, as the built-in functions tell it.
    pub revision: Option<String>,
    /// `X-Sandbox`, as the built-in functions tell it: another text for each life of one.
    pub sandbox: Option<String>,
    /// Bytes of the body.
    pub bytes: u64,
}

impl Sample {
    /// From the intended start to the end of the response.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.done.saturating_sub(self.intended)
    }

    /// Whether it waited for a sandbox to start.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.timing.as_deref().is_some_and(|timing| timing.contains("create;"))
    }
}

/// Counters that change while a load runs, for a live display.
#[derive(Debug, Default)]
pub struct Progress {
    /// Calls sent.
    pub sent: AtomicU64,
    /// Calls answered with 2xx.
    pub succeeded: AtomicU64,
    /// Calls that failed.
    pub failed: AtomicU64,
}

/// How a load is applied.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub target: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// A call without an answer for so long is lost.
    pub deadline: Duration,
    /// Calls open at once at most.
    pub open_max: usize,
    /// What becomes of a call that is due while so many are open.
    pub when_full: WhenFull,
}

/// See [`Load::when_full`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It counts as [`Failure::Saturated`].
    Fails,
    /// It is made when one of them has ended, and what it waits is part of its latency.
    Waits,
}

impl Load {
    /// HTTP/1.1 with bounds that fit a test on one machine.
    #[must_use]
    pub fn http1(target: SocketAddr) -> Self {
        let deadline = Duration::from_secs(180);
        let (protocol, when_full) = (Protocol::Http1, WhenFull::Fails);
        Self { target, protocol, deadline, open_max: 8000, when_full }
    }

    /// Makes the calls at their times (in order) and waits for all of them. Each is asked for when
    /// the one before was due, so that a load may go on for as long as somebody likes.
    ///
    /// # Errors
    /// If the pacing thread cannot be started, or the target cannot be reached by HTTP/2 at all.
    pub async fn run<Calls>(&self, calls: Calls, progress: Arc<Progress>) -> Result<Vec<Sample>>
    where
        Calls: IntoIterator<Item = Call>,
        Calls::IntoIter: Send + 'static,
    {
        self.run_from(Instant::now(), calls, progress).await
    }

    /// The same, with all times from `begun` on: for who compares them with moments of its own. On a
    /// busy machine a load begins milliseconds after it was asked for.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_from<Calls>(
        &self,
        begun: Instant,
        calls: Calls,
        progress: Arc<Progress>,
    ) -> Result<Vec<Sample>>
    where
        Calls: IntoIterator<Item = Call>,
        Calls::IntoIter: Send + 'static,
    {
        let calls = calls.into_iter();
        let mut samples = Vec::with_capacity(calls.size_hint().0);
        self.stream_from(begun, calls, progress, |sample| samples.push(sample)).await?;
        samples.sort_by_key(|sample| sample.call);
        Ok(samples)
    }

    /// The same for loads of which nobody wants every sample kept: each is given away as it comes.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn stream<Calls>(
        &self,
        calls: Calls,
        progress: Arc<Progress>,
        to: impl FnMut(Sample),
    ) -> Result<()>
    where
        Calls: IntoIterator<Item = Call>,
        Calls::IntoIter: Send + 'static,
    {
        self.stream_from(Instant::now(), calls, progress, to).await
    }

    async fn stream_from<Calls>(
        &self,
        begun: Instant,
        calls: Calls,
        progress: Arc<Progress>,
        mut to: impl FnMut(Sample),
    ) -> Result<()>
    where
        Calls: IntoIterator<Item = Call>,
        Calls::IntoIter: Send + 'static,
    {
        let client = Arc::new(Client::connect(self.target, self.protocol).await?);
        let mut is_explained = false;
        let mut to = |sample: Sample| {
            if let (Some(message), false) = (&sample.message, is_explained) {
                is_explained = true;
                explain(&sample, message);
            }
            to(sample);
        };
        let mut due = pace(begun, calls.into_iter().map(|call| (call.at, call)))?;
        let mut open: JoinSet<Sample> = JoinSet::new();
        loop {
            let may_wait = self.when_full == WhenFull::Waits;
            tokio::select! {
                biased;
                next = due.recv(), if !may_wait || open.len() < self.open_max => {
                    let Some((index, call)) = next else { break };
                    progress.sent.fetch_add(1, Ordering::Relaxed);
                    if open.len() >= self.open_max {
                        let now = begun.elapsed();
                        to(failed(index, call.at, now, now, Failure::Saturated));
                        progress.failed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let (client, deadline) = (Arc::clone(&client), self.deadline);
                    let progress = Arc::clone(&progress);
                    open.spawn(async move {
                        let sample = client.call(begun, index, call, deadline).await;
                        let counter = match sample.failure {
                            None => &progress.succeeded,
                            Some(_) => &progress.failed,
                        };
                        counter.fetch_add(1, Ordering::Relaxed);
                        sample
                    });
                }
                Some(done) = open.join_next(), if !open.is_empty() => {
                    to(done.context("a call panicked")?);
                }
            }
        }
        while let Some(done) = open.join_next().await {
            to(done.context("a call panicked")?);
        }
        Ok(())
    }
}

/// Says why the first call of a load failed: reports count kinds, and what stood in the answer would
/// be lost.
fn explain(sample: &Sample, message: &str) {
    let status = sample.status.unwrap_or_default();
    let line = format!("bench: call {} failed: {status} {message}\n", sample.call);
    // Who closed it does not want to know.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// What is due, numbered, at its time. A thread of its own: timers of the async runtime are exact to
/// a millisecond only, which is longer than what is measured here.
pub(crate) fn pace<T: Send + 'static>(
    begun: Instant,
    due: impl Iterator<Item = (Duration, T)> + Send + 'static,
) -> Result<mpsc::Receiver<(usize, T)>> {
    let (tx, rx) = mpsc::channel(4096);
    let pacer = move || {
        // Else the kernel wakes it up to 50 us later, to save wake-ups. Where it will not, it is late.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).unwrap_or(());
        for (index, (at, what)) in due.enumerate() {
            while let Some(early) = at.checked_sub(begun.elapsed()).filter(|d| !d.is_zero()) {
                let Ok(request) = rustix::thread::Timespec::try_from(early) else { break };
                // An early return (a signal) is seen by the loop.
                drop(rustix::thread::nanosleep(&request));
            }
            // The run was given up.
            if tx.blocking_send((index, what)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("pacer".to_owned()).spawn(pacer).context("cannot start it")?;
    Ok(rx)
}

fn failed(
    call: usize,
    intended: Duration,
    begun: Duration,
    done: Duration,
    failure: Failure,
) -> Sample {
    Sample {
        call,
        intended,
        begun,
        done,
        head: None,
        status: None,
        failure: Some(failure),
        code: None,
        message: None,
        timing: None,
        revision: None,
        sandbox: None,
        bytes: 0,
    }
}

/// Fused: a call may go on reading what a connection that has ended had received.
type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A kept HTTP/1.1 connection. Its driver is polled by the call that uses it, so that an idle one
/// costs nothing.
struct Kept {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Connection,
    since: Instant,
}

/// An idle connection older than this is not reused: the server may be about to close it, and a
/// reset then would be counted as its failure.
const REUSE_WITHIN: Duration = Duration::from_secs(5);

struct Client {
    target: SocketAddr,
    kept: Mutex<Vec<Kept>>,
    h2: Option<http2::SendRequest<Full<Bytes>>>,
    /// Drives the HTTP/2 connection; ends with the client.
    _drivers: JoinSet<hyper::Result<()>>,
}

impl Client {
    async fn connect(target: SocketAddr, protocol: Protocol) -> Result<Self> {
        let mut drivers = JoinSet::new();
        let h2 = match protocol {
            Protocol::Http1 => None,
            Protocol::H2c => {
                let stream = TcpStream::connect(target).await.context("cannot connect")?;
                stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
                let (sender, driver) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                drivers.spawn(driver);
                Some(sender)
            }
        };
        Ok(Self { target, kept: Mutex::new(Vec::new()), h2, _drivers: drivers })
    }

    async fn call(&self, begun: Instant, index: usize, call: Call, deadline: Duration) -> Sample {
        let (intended, started) = (call.at, begun.elapsed());
        let attempt = self.attempt(begun, index, call);
        let failure = match tokio::time::timeout(deadline, attempt).await {
            Ok(Ok(sample)) => return Sample { begun: started, ..sample },
            Ok(Err(failure)) => failure,
            Err(_elapsed) => Failure::NoAnswer,
        };
        failed(index, intended, started, begun.elapsed(), failure)
    }

    async fn attempt(&self, begun: Instant, index: usize, call: Call) -> Result<Sample, Failure> {
        let intended = call.at;
        let mut fresh = call.fresh;
        let request = request(&call);
        if let Some(h2) = &self.h2 {
            let response = h2.clone().send_request(request).await;
            let response = response.map_err(|_error| Failure::Reset)?;
            return Ok(receive(begun, index, intended, response).await);
        }
        loop {
            let kept = if fresh { None } else { self.reuse() };
            let reused = kept.is_some();
            let mut kept = match kept {
                Some(kept) => kept,
                None => self.open().await?,
            };
            let sent = kept.sender.try_send_request(request.clone());
            let response = match drive(&mut kept.driver, sent).await {
                Ok(response) => response,
                // Closed by the server while idle: nothing was sent, as any client would retry.
                Err(mut error) => {
                    if reused && error.take_message().is_some() {
                        fresh = true;
                        continue;
                    }
                    return Err(Failure::Reset);
                }
            };
            let receiving = receive(begun, index, intended, response);
            let sample = drive(&mut kept.driver, receiving).await;
            if sample.failure.is_none_or(|failure| failure == Failure::Status) && !call.fresh {
                kept.since = Instant::now();
                self.kept.lock().expect("no holder panics").push(kept);
            }
            return Ok(sample);
        }
    }

    fn reuse(&self) -> Option<Kept> {
        let mut kept = self.kept.lock().expect("no holder panics");
        while let Some(candidate) = kept.pop() {
            if candidate.since.elapsed() < REUSE_WITHIN && !candidate.sender.is_closed() {
                return Some(candidate);
            }
        }
        None
    }

    async fn open(&self) -> Result<Kept, Failure> {
        let stream = TcpStream::connect(self.target).await.map_err(|_error| Failure::Connect)?;
        stream.set_nodelay(true).map_err(|_error| Failure::Connect)?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|_error| Failure::Connect)?;
        Ok(Kept { sender, driver: Box::pin(driver.fuse()), since: Instant::now() })
    }
}

fn request(call: &Call) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    // HTTP/2 takes the authority from the URI, HTTP/1.1 from the header.
    let uri =
        format!("http://{}{}", if call.host.is_empty() { "x" } else { &call.host }, call.path);
    *request.uri_mut() = match uri.parse() {
        Ok(uri) => uri,
        Err(_invalid) => call.path.parse().unwrap_or_default(),
    };
    let host = header::HeaderValue::from_str(&call.host)
        .unwrap_or_else(|_invalid| header::HeaderValue::from_static("invalid"));
    request.headers_mut().insert(header::HOST, host);
    request
}

/// Awaits `work` while its connection makes progress.
async fn drive<F: Future>(driver: &mut Connection, work: F) -> F::Output {
    match select(std::pin::pin!(work), driver).await {
        Either::Left((output, _driver)) => output,
        // The connection ended; what it has already received is still delivered.
        Either::Right((_ended, work)) => work.await,
    }
}

/// Bytes kept of what a failed call was told: an error of the platform with a function's last lines.
const MESSAGE: usize = 4096;

async fn receive(
    begun: Instant,
    call: usize,
    intended: Duration,
    response: Response<Incoming>,
) -> Sample {
    let head = begun.elapsed();
    let text = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let (timing, code) = (text("server-timing"), text("x-dirigent-error"));
    let (revision, sandbox) = (text("k-revision"), text("x-sandbox"));
    let status = response.status();
    let mut body = response.into_body();
    let (mut bytes, mut message) = (0, Vec::new());
    let mut failure = (!status.is_success()).then_some(Failure::Status);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                bytes += data.len() as u64;
                if failure.is_some() {
                    let room = MESSAGE.saturating_sub(message.len());
                    message.extend(data.iter().take(room));
                }
            }
            Err(_cut) => {
                failure = Some(Failure::Truncated);
                break;
            }
        }
    }
    let done = begun.elapsed();
    Sample {
        call,
        intended,
        begun: intended,
        done,
        head: Some(head),
        status: Some(status.as_u16()),
        failure,
        code,
        message: (!message.is_empty()).then(|| String::from_utf8_lossy(&message).trim().to_owned()),
        timing,
        revision,
        sandbox,
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn call(at_ms: u64) -> Call {
        Call {
            at: Duration::from_millis(at_ms),
            host: "f".into(),
            path: "/".to_owned(),
            method: Method::GET,
            body: Bytes::new(),
            fresh: false,
        }
    }

    /// Answers each connection's first request with `answer`, then closes.
    async fn server(answer: &'static [u8]) -> (SocketAddr, JoinSet<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let n = stream.read(&mut request).await.unwrap();
                assert!(n > 0);
                stream.write_all(answer).await.unwrap();
            }
        });
        (address, tasks)
    }

    async fn outcome(answer: &'static [u8]) -> Sample {
        let (address, _tasks) = server(answer).await;
        let samples = Load::http1(address).run(vec![call(0)], Arc::default()).await.unwrap();
        samples.into_iter().next().unwrap()
    }

    #[tokio::test]
    async fn outcomes_are_told_apart() {
        let ok = outcome(
            b"HTTP/1.1 200 OK\r\nserver-timing: create;dur=1\r\ncontent-length: 2\r\n\r\nhi",
        )
        .await;
        assert_eq!((ok.failure, ok.status, ok.bytes, ok.is_cold()), (None, Some(200), 2, true));
        let status = outcome(
            b"HTTP/1.1 502 Bad\r\nx-dirigent-error: sandbox_lost\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        assert_eq!(status.failure, Some(Failure::Status));
        assert_eq!(status.code.as_deref(), Some("sandbox_lost"));
        let cut = outcome(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").await;
        assert_eq!(cut.failure, Some(Failure::Truncated));
        let reset = outcome(b"").await;
        assert_eq!(reset.failure, Some(Failure::Reset));
    }

    #[tokio::test]
    async fn no_listener_is_a_failure_to_connect() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let samples = Load::http1(address).run(vec![call(0)], Arc::default()).await.unwrap();
        assert_eq!(samples[0].failure, Some(Failure::Connect));
    }

    #[tokio::test]
    async fn who_may_wait_is_made_later_and_who_may_not_fails() {
        let with = async |when_full| {
            let (address, _tasks) =
                server(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
            let load = Load { open_max: 1, when_full, ..Load::http1(address) };
            let samples = load.run(vec![call(0); 20], Arc::default()).await.unwrap();
            samples.iter().filter(|sample| sample.failure == Some(Failure::Saturated)).count()
        };
        assert_eq!(with(WhenFull::Waits).await, 0);
        // All of them are due at once: one is open when the next is looked at.
        assert!(with(WhenFull::Fails).await > 0);
    }

    #[tokio::test]
    async fn calls_are_not_made_before_their_time() {
        let (address, _tasks) =
            server(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        let calls = vec![call(0), call(30), call(30)];
        let samples = Load::http1(address).run(calls, Arc::default()).await.unwrap();
        assert!(samples.iter().all(|sample| sample.done >= sample.intended));
        assert!(samples.iter().all(|sample| sample.failure.is_none()), "{samples:?}");
    }
}
