//! The data plane's side.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::unix::net::UnixStream as StdUnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Release},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use dirigent_core::SandboxId;
use dirigent_service::{
    Clock, OnCancel, Tasks,
    tls::{ConnectError, Files, Trust, connect},
};
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{Method, Request, StatusCode, Uri};
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::Handle,
    sync::{Mutex as AsyncMutex, oneshot},
    time::timeout,
};

use crate::CONNECT_WITHIN;

use super::{
    CONNECTION_AHEAD, FRAME, GIVEN_UP, GREETING, STREAM_AHEAD, WORKERS,
    carry::{Broken, carry},
};

/// A connection is not used for more streams after so long: whoever may not be met any more is met
/// no more then.
const OLD: Duration = Duration::from_secs(3600);

/// The encrypted connections to workers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tunnels {
    files: Files,
    /// Where connections live; who asks for one may have threads of its own.
    home: Handle,
    tasks: Tasks,
    workers: Arc<Mutex<HashMap<Worker, Place>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Worker {
    at: SocketAddr,
    name: String,
}

/// Of the connection to a worker, held by who makes it.
type Place = Arc<AsyncMutex<Option<Connection>>>;

#[derive(Clone, Debug)]
struct Connection {
    requests: SendRequest<Bytes>,
    until: SystemTime,
}

/// Says that a connection broke before its socket is closed, unless it is taken back; also where the
/// task that carried it is dropped.
struct Verdict(Option<Arc<AtomicBool>>);

impl Drop for Verdict {
    fn drop(&mut self) {
        if let Some(broken) = &self.0 {
            broken.store(true, Release);
        }
    }
}

/// What is carried, closed after its verdict is given: fields are dropped in this order.
struct OurEnd {
    verdict: Verdict,
    socket: StdUnixStream,
}

impl OurEnd {
    async fn carry(self, send: SendStream<Bytes>, recv: RecvStream) -> Result<(), Broken> {
        let Self { mut verdict, socket } = self;
        let mut socket = UnixStream::from_std(socket)?;
        let carried = carry(&mut socket, send, recv).await;
        if carried.is_ok() {
            verdict.0 = None;
        }
        drop(verdict);
        carried
    }
}

/// Why there is no stream.
enum Refused {
    /// The connection is of no use any more, and nothing was asked on it: another one may do.
    Stale(h2::Error),
    No(io::Error),
}

impl Tunnels {
    /// None yet. They live on the present runtime until `tasks` end; `files` show workers who this
    /// data plane is.
    #[must_use]
    pub fn new(files: Files, tasks: &Tasks) -> Self {
        Self { files, home: Handle::current(), tasks: tasks.clone(), workers: Arc::default() }
    }

    /// Connects to a sandbox of the worker of this name. The socket ends as the connection does; one
    /// that broke has set `broken` before.
    ///
    /// # Errors
    /// If the worker cannot be reached or is another one, or the sandbox is not there. Waits as long
    /// as the caller does: cancellation drops it.
    pub async fn open(
        &self,
        at: SocketAddr,
        name: &str,
        sandbox: SandboxId,
        broken: Arc<AtomicBool>,
    ) -> io::Result<StdUnixStream> {
        let worker = Worker { at, name: name.to_owned() };
        let (send, recv) = match self.ask(&worker, sandbox).await {
            Err(Refused::Stale(error)) => {
                tracing::debug!(%at, %error, "a worker's connection is made anew");
                self.ask(&worker, sandbox).await
            }
            asked => asked,
        }
        .map_err(|refused| match refused {
            Refused::Stale(error) => io::Error::new(io::ErrorKind::ConnectionReset, error),
            Refused::No(error) => error,
        })?;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let end = OurEnd { verdict: Verdict(Some(broken)), socket: ours };
        self.tasks.run_on(&self.home, "tunnel", OnCancel::Abort, async move {
            if let Err(error) = end.carry(send, recv).await {
                tracing::debug!(%error, "a connection to a sandbox broke");
            }
        });
        Ok(theirs)
    }

    async fn ask(
        &self,
        worker: &Worker,
        sandbox: SandboxId,
    ) -> Result<(SendStream<Bytes>, RecvStream), Refused> {
        let requests = self.connected(worker).await.map_err(Refused::No)?;
        let mut requests = requests.ready().await.map_err(Refused::Stale)?;
        let uri = Uri::builder().authority(sandbox.to_string()).build();
        let request =
            uri.and_then(|uri| Request::builder().method(Method::CONNECT).uri(uri).body(()));
        let request = request.map_err(|error| Refused::No(io::Error::other(error)))?;
        let (response, send) = requests.send_request(request, false).map_err(Refused::Stale)?;
        let response = response.await.map_err(|error| {
            if error.is_go_away() || error.is_io() {
                Refused::Stale(error)
            } else {
                Refused::No(io::Error::new(io::ErrorKind::ConnectionReset, error))
            }
        })?;
        let refused = |kind, text: &str| Err(Refused::No(io::Error::new(kind, text.to_owned())));
        match response.status() {
            StatusCode::OK => Ok((send, response.into_body())),
            StatusCode::NOT_FOUND => {
                refused(io::ErrorKind::ConnectionRefused, "the sandbox is not there any more")
            }
            StatusCode::BAD_GATEWAY => {
                refused(io::ErrorKind::ConnectionRefused, "the sandbox takes no connection")
            }
            status => refused(io::ErrorKind::Other, &format!("the worker answers {status}")),
        }
    }

    /// The connection to this worker, made if there is none. Who comes meanwhile waits for it.
    async fn connected(&self, worker: &Worker) -> io::Result<SendRequest<Bytes>> {
        let place = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(workers.entry(worker.clone()).or_default())
        };
        let held = place.lock_owned().await;
        if let Some(Connection { requests, until }) = &*held
            && Clock::wall() < *until
        {
            let mut requests = requests.clone();
            // One that ended says so here; one that has too many streams is waited for later.
            let ended = poll_fn(|cx| match requests.poll_ready(cx) {
                std::task::Poll::Ready(Err(_)) => std::task::Poll::Ready(true),
                _ => std::task::Poll::Ready(false),
            });
            if !ended.await {
                return Ok(requests);
            }
        }
        // Whoever waits for it may leave; the next one finds it made all the same, else where it takes
        // longer than anybody waits there would never be one.
        let (this, to, (tell, told)) = (self.clone(), worker.clone(), oneshot::channel());
        self.tasks.run_on(&self.home, "worker's connection", OnCancel::Abort, async move {
            let mut held = held;
            let dialled = timeout(CONNECT_WITHIN, this.dial(&to)).await;
            let dialled = dialled.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
            *held = dialled.as_ref().ok().cloned();
            drop(tell.send(dialled.map(|connection| connection.requests)));
        });
        told.await.map_err(io::Error::other)?
    }

    async fn dial(&self, worker: &Worker) -> io::Result<Connection> {
        let own = self.files.certificate();
        own.valid_at(Clock::wall()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(worker.at).await?;
        stream.set_nodelay(true)?;
        let trust = Trust::Files(self.files.clone());
        let host = worker.at.ip().to_string();
        let stream =
            connect(stream, &host, &trust, WORKERS).await.map_err(|error| match error {
                ConnectError::Io(error) => error,
                ConnectError::Silent => io::ErrorKind::TimedOut.into(),
                error => {
                    let why = format!("the worker at {} is not met: {error}", worker.at);
                    tracing::warn!("{why}");
                    io::Error::new(io::ErrorKind::PermissionDenied, why)
                }
            })?;
        let shown = stream.peer().and_then(|peer| peer.uri.clone()).unwrap_or_default();
        if shown.rsplit_once(WORKERS).is_none_or(|(_, name)| name != worker.name) {
            let Worker { at, name } = worker;
            let why = format!("at {at} is `{shown}`, not the worker {name}");
            tracing::warn!("{why}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_AHEAD)
            .initial_connection_window_size(CONNECTION_AHEAD)
            .max_frame_size(FRAME)
            .max_concurrent_reset_streams(GIVEN_UP)
            .max_local_error_reset_streams(None)
            .enable_push(false);
        let greeted = timeout(GREETING, builder.handshake(stream)).await;
        let greeted = greeted.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?;
        let (requests, connection) = greeted.map_err(io::Error::other)?;
        let (workers, key) = (Arc::clone(&self.workers), worker.clone());
        self.tasks.run("worker's connection", OnCancel::Abort, async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, at = %key.at, "a worker's connection ended");
            }
            // Whoever holds the place now makes another connection in it.
            let mut workers = workers.lock().unwrap_or_else(PoisonError::into_inner);
            if workers.get(&key).is_some_and(|place| Arc::strong_count(place) == 1) {
                workers.remove(&key);
            }
        });
        Ok(Connection { requests, until: own.not_after.min(Clock::wall() + OLD) })
    }
}
