//! Serves the API's router: bounded connections, bounded heads, and a deadline for them. When all
//! places are taken, who comes gets that of the connection that has been silent for longest: nobody
//! who cannot show a token keeps others out by holding connections.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use dirigent_service::{
    OnCancel, Tasks,
    tls::{Caller, Files, Stream},
};
use http_body::{Frame, SizeHint};
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Connections at most. One more takes the place of a silent one; if there is none it waits, and
/// those after it in the kernel's backlog.
const CONNECTIONS: usize = 1024;

/// A request's head at most.
const HEAD_BYTES: usize = 64 << 10;

/// A request's head comes within this time, also the first of a connection and the next one on a
/// connection that is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers on their way get this long after shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// After a failed accept: for instance no descriptor is left, and trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves with the certificate in `files`, or without encryption.
pub(crate) fn serve(listener: TcpListener, router: Router, files: Option<Files>, tasks: &Tasks) {
    serve_at_once(CONNECTIONS, listener, router, files, tasks);
}

fn serve_at_once(
    connections: usize,
    listener: TcpListener,
    router: Router,
    files: Option<Files>,
    tasks: &Tasks,
) {
    let spawner = tasks.clone();
    tasks.run("api", OnCancel::Abort, async move {
        let places = Arc::new(Semaphore::new(connections));
        let seats = Arc::new(Seats::default());
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if places.available_permits() == 0 {
                        seats.vacate();
                    }
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                    let taken = seats.take();
                    let (router, files) = (router.clone(), files.clone());
                    let shutdown = spawner.shutdown().clone();
                    spawner.run("api connection", OnCancel::Wait, async move {
                        let closing = shutdown.cancelled();
                        let serving = connection(stream, peer, router, files, &taken.seat, closing);
                        tokio::select! {
                            () = serving => {}
                            () = taken.seat.vacated.cancelled() => {
                                tracing::debug!(%peer, "a silent connection made room");
                            }
                        }
                        drop((taken, place));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    files: Option<Files>,
    seat: &Arc<Seat>,
    closing: impl Future<Output = ()>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    let stream = match files {
        None => Ok(Stream::plain(stream)),
        Some(files) => files.accept(stream, Caller::Anybody).await,
    };
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%peer, %error, "no TLS came of it"),
    };
    let service = TowerToHyperService::new(router);
    let seat = Arc::clone(seat);
    let service = service_fn(move |request| {
        let serving = Serving::new(&seat);
        let answer = service.call(request);
        async move {
            let answer: Result<_, Infallible> = answer.await;
            answer.map(|answer| answer.map(|body| Answer { body, _serving: serving }))
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = closing => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, serving).await {
                Ok(result) => result,
                Err(_elapsed) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// The connections that there are, by the number that each had first.
#[derive(Debug, Default)]
struct Seats {
    taken: Mutex<BTreeMap<u64, Arc<Seat>>>,
    /// Counts what happens; who has a lower number of it is silent for longer.
    turn: Arc<AtomicU64>,
}

/// What is to be known of a connection.
#[derive(Debug)]
struct Seat {
    /// The turn in which it was last heard of.
    heard: AtomicU64,
    turn: Arc<AtomicU64>,
    /// Answers that are not over.
    answers: AtomicUsize,
    vacated: CancellationToken,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>) -> Taken {
        let number = self.turn.fetch_add(1, Relaxed);
        let seat = Arc::new(Seat {
            heard: AtomicU64::new(number),
            turn: Arc::clone(&self.turn),
            answers: AtomicUsize::new(0),
            vacated: CancellationToken::new(),
        });
        self.lock().insert(number, Arc::clone(&seat));
        Taken { seats: Arc::clone(self), number, seat }
    }

    /// Ends the connection that has been silent for longest, if one is.
    fn vacate(&self) {
        let mut taken = self.lock();
        let silent = taken.iter().filter(|(_, seat)| seat.answers.load(SeqCst) == 0);
        let longest = silent.min_by_key(|(_, seat)| seat.heard.load(Relaxed));
        if let Some((&number, _)) = longest
            && let Some(seat) = taken.remove(&number)
        {
            seat.vacated.cancel();
        }
    }
}

/// A connection's seat, given back at its end.
#[derive(Debug)]
struct Taken {
    seats: Arc<Seats>,
    number: u64,
    seat: Arc<Seat>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.number);
    }
}

/// While it lives its connection is not silent.
#[derive(Debug)]
struct Serving(Arc<Seat>);

impl Serving {
    fn new(seat: &Arc<Seat>) -> Self {
        seat.answers.fetch_add(1, SeqCst);
        Self(Arc::clone(seat))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.heard.store(self.0.turn.fetch_add(1, Relaxed), Relaxed);
        self.0.answers.fetch_sub(1, SeqCst);
    }
}

/// The body of an answer; it is dropped when all of it was written.
#[derive(Debug)]
struct Answer {
    body: Body,
    _serving: Serving,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Notify,
    };

    use super::*;

    const PLACES: usize = 4;

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    async fn ask(stream: &mut TcpStream, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
    }

    async fn hear(stream: &mut TcpStream) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(b"done") {
            let byte = tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await;
            heard.push(byte.expect("an answer in time").expect("the connection lives"));
        }
        String::from_utf8(heard).unwrap()
    }

    #[tokio::test]
    async fn who_comes_takes_the_place_of_who_was_silent_for_longest_and_of_none_who_is_served() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let (called, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (calls, goes) = (Arc::clone(&called), Arc::clone(&go));
        let slow = get(move || async move {
            calls.notify_one();
            goes.notified().await;
            "done"
        });
        let router = Router::new().route("/", get(async || "done")).route("/slow", slow);
        serve_at_once(PLACES, listener, router, None, &tasks);

        let mut served = connect(address).await;
        ask(&mut served, "/slow").await;
        called.notified().await;
        // All other places are held: by one whose head never ends, by one who has fallen silent, and
        // by one who was answered after that.
        let mut begun = connect(address).await;
        begun.write_all(b"GET / HT").await.unwrap();
        let mut silent = connect(address).await;
        let mut answered = connect(address).await;
        for caller in [&mut silent, &mut answered] {
            ask(caller, "/").await;
            hear(caller).await;
        }
        let mut held = Vec::new();
        for (number, expected) in [&mut begun, &mut silent].into_iter().enumerate() {
            let mut comes = connect(address).await;
            ask(&mut comes, "/").await;
            assert!(hear(&mut comes).await.starts_with("HTTP/1.1 200"), "{number}");
            assert!(expected.read_u8().await.is_err(), "{number} had been silent for longest");
            held.push(comes);
        }
        go.notify_one();
        assert!(hear(&mut served).await.starts_with("HTTP/1.1 200"));
        ask(&mut answered, "/").await;
        hear(&mut answered).await;
        drop(held);
        tasks.stop();
    }
}
