//! The worker's side.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use dirigent_core::{Address, SandboxId};
use dirigent_service::{
    Clock, OnCancel, Tasks,
    tls::{Certificate, Files, Stream, incoming},
};
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::client::Reach;

use super::{
    CONNECTION_AHEAD, DATA_PLANES, FRAME, GIVEN_UP, GREETING, STREAM_AHEAD, STREAMS,
    carry::{Broken, carry},
};

/// Connections of data planes at once: several of each of a hundred.
const CONNECTIONS: usize = crate::vouch::SHOWN;
/// Until a sandbox takes a connection; whoever asks for it waits as long as it likes.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a data plane that connects waits for the word of a control plane. Without it is let in: calls
/// go on without control planes, and its certificate is good.
const VERDICT_WITHIN: Duration = Duration::from_millis(200);
/// How often those who are connected are asked about.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// Where a sandbox listens, if it is there.
pub type Behind = Arc<dyn Fn(SandboxId) -> Option<Address> + Send + Sync>;

/// Data planes that are connected, each with what ends its connection.
type Guests = Arc<Mutex<HashMap<u64, (Certificate, CancellationToken)>>>;

/// Takes the connections of data planes of the cluster of which `files` make this worker a member, and
/// carries them to sandboxes, until `tasks` end. Those who were removed from the cluster, as control
/// planes at the other end of `reach` say, are let in no more and have to leave.
pub fn relay(listener: TcpListener, files: Files, behind: Behind, reach: Reach, tasks: &Tasks) {
    let guests = Guests::default();
    let watching = watch(Arc::clone(&guests), reach.clone());
    tasks.run("relay's guests", OnCancel::Abort, watching);
    let mut taken = incoming(listener, Some(files.clone()), tasks);
    let all_tasks = tasks.clone();
    tasks.run("relay", OnCancel::Abort, async move {
        let mut number = 0;
        while let Some(stream) = taken.recv().await {
            let Some(certificate) = data_plane(&files, &stream) else { continue };
            let leave = CancellationToken::new();
            {
                let mut guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
                if guests.len() >= CONNECTIONS {
                    tracing::warn!("{CONNECTIONS} data planes are connected: one is refused");
                    continue;
                }
                number += 1;
                guests.insert(number, (certificate.clone(), leave.clone()));
            }
            let guest = Guest { number, certificate, leave, guests: Arc::clone(&guests) };
            let (behind, reach, tasks) = (Arc::clone(&behind), reach.clone(), all_tasks.clone());
            all_tasks.run("relayed", OnCancel::Abort, async move {
                guest.serve(stream, behind, &reach, &tasks).await;
            });
        }
    });
}

/// Asks about all who are connected, again and again.
async fn watch(guests: Guests, reach: Reach) {
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let all: Vec<_> = {
            let guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
            guests.values().cloned().collect()
        };
        if all.is_empty() {
            continue;
        }
        let shown: Vec<_> = all.iter().map(|(certificate, _)| certificate.clone()).collect();
        match reach.vouch(&shown).await {
            Ok(refused) => {
                for ((_, leave), why) in all.iter().zip(refused) {
                    if let Some(why) = why {
                        tracing::warn!(why, "a data plane has to leave");
                        leave.cancel();
                    }
                }
            }
            Err(status) => tracing::debug!(%status, "no control plane says who is a member"),
        }
    }
}

/// A data plane that is connected; forgotten when it is dropped.
struct Guest {
    number: u64,
    certificate: Certificate,
    leave: CancellationToken,
    guests: Guests,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.remove(&self.number);
    }
}

impl Guest {
    async fn serve(self, stream: Stream, behind: Behind, reach: &Reach, tasks: &Tasks) {
        let shown = [self.certificate.clone()];
        let verdict = timeout(VERDICT_WITHIN, reach.vouch(&shown)).await;
        if let Ok(Ok(refused)) = verdict
            && let Some(why) = refused.into_iter().next().flatten()
        {
            tracing::warn!(why, "a data plane was refused");
            return;
        }
        let serving = self.connection(stream, behind, tasks);
        let ended = self.leave.run_until_cancelled(serving).await;
        if let Some(Err(error)) = ended {
            tracing::debug!(uri = self.certificate.uri, %error, "a data plane's connection broke");
        }
    }

    async fn connection(
        &self,
        stream: Stream,
        behind: Behind,
        tasks: &Tasks,
    ) -> Result<(), h2::Error> {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_AHEAD)
            .initial_connection_window_size(CONNECTION_AHEAD)
            .max_frame_size(FRAME)
            .max_concurrent_streams(STREAMS)
            .max_concurrent_reset_streams(GIVEN_UP)
            .max_pending_accept_reset_streams(GIVEN_UP)
            .max_local_error_reset_streams(None);
        let greeted = timeout(GREETING, builder.handshake::<_, Bytes>(stream)).await;
        let mut connection =
            greeted.map_err(|_elapsed| h2::Error::from(h2::Reason::SETTINGS_TIMEOUT))??;
        while let Some(asked) = connection.accept().await {
            let (request, respond) = asked?;
            // It has another certificate by then, and connects again with that.
            let valid = self.certificate.valid_at(Clock::wall()).is_ok();
            let serving = serve(request, respond, valid, Arc::clone(&behind));
            tasks.run("relayed stream", OnCancel::Abort, serving);
        }
        Ok(())
    }
}

/// The certificate of who connects, if it is a data plane of this cluster.
fn data_plane(files: &Files, stream: &Stream) -> Option<Certificate> {
    let peer = stream.peer()?;
    let own = files.certificate();
    let cluster = own.uri.as_deref().and_then(|uri| uri.rsplit_once(super::WORKERS));
    let theirs = peer.uri.as_deref().and_then(|uri| uri.rsplit_once(DATA_PLANES));
    if let (Some((cluster, _)), Some((of, name))) = (cluster, theirs)
        && cluster == of
        && !name.is_empty()
    {
        return Some(peer.clone());
    }
    tracing::warn!(uri = peer.uri, "who is no data plane was refused");
    None
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    valid: bool,
    behind: Behind,
) {
    let (parts, recv) = request.into_parts();
    let named = parts.uri.authority().and_then(|authority| authority.as_str().parse().ok());
    let address = match (parts.method, named) {
        _ if !valid => Err(StatusCode::UNAUTHORIZED),
        (Method::CONNECT, Some(sandbox)) => behind(sandbox).ok_or(StatusCode::NOT_FOUND),
        (Method::CONNECT, None) => Err(StatusCode::BAD_REQUEST),
        _ => Err(StatusCode::METHOD_NOT_ALLOWED),
    };
    let socket = match address {
        Ok(address) => dial(&address).await.map_err(|error| {
            tracing::debug!(%address, %error, "a sandbox takes no connection");
            StatusCode::BAD_GATEWAY
        }),
        Err(status) => Err(status),
    };
    let answer = |status| {
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        answer
    };
    let carried = match socket {
        Ok(socket) => match respond.send_response(answer(StatusCode::OK), false) {
            Ok(send) => carry(socket, send, recv).await,
            Err(error) => Err(Broken::There(error)),
        },
        Err(status) => respond.send_response(answer(status), true).map(drop).map_err(Broken::There),
    };
    if let Err(error) = carried {
        tracing::debug!(%error, "a connection to a sandbox broke");
    }
}

/// A connection of either kind.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl Socket for TcpStream {}
impl Socket for UnixStream {}

async fn dial(address: &Address) -> io::Result<Box<dyn Socket>> {
    let dialling = async {
        Ok(match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream) as Box<dyn Socket>
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Ingress { .. } => return Err(io::ErrorKind::Unsupported.into()),
        })
    };
    let dialled = timeout(CONNECT_WITHIN, dialling).await;
    dialled.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}
