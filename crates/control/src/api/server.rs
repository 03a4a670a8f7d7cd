//! Serves the API's router: bounded connections, bounded heads, and a deadline for them, so that
//! nobody who cannot show a token holds anything for long.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use dirigent_service::{
    OnCancel, Tasks,
    tls::{Caller, Files, Stream},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at most; more wait in the kernel's backlog.
const CONNECTIONS: usize = 1024;

/// A request's head at most.
const HEAD_BYTES: usize = 64 << 10;

/// A request's head comes within this time, also the first of a connection and the next one on a
/// connection that is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers on their way get this long after shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// After a failed accept: for instance no descriptor is left, and trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves with the certificate in `files`, or without encryption.
pub(crate) fn serve(listener: TcpListener, router: Router, files: Option<Files>, tasks: &Tasks) {
    let spawner = tasks.clone();
    tasks.run("api", OnCancel::Abort, async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (router, files) = (router.clone(), files.clone());
                    let shutdown = spawner.shutdown().clone();
                    spawner.run("api connection", OnCancel::Wait, async move {
                        if let Err(error) = stream.set_nodelay(true) {
                            tracing::debug!(%peer, %error, "no TCP_NODELAY");
                        }
                        let stream = match files {
                            None => Ok(Stream::plain(stream)),
                            Some(files) => files.accept(stream, Caller::Anybody).await,
                        };
                        match stream {
                            Ok(stream) => {
                                connection(stream, peer, router, shutdown.cancelled()).await;
                            }
                            Err(error) => tracing::debug!(%peer, %error, "no TLS came of it"),
                        }
                        drop(place);
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
    stream: Stream,
    peer: SocketAddr,
    router: Router,
    closing: impl Future<Output = ()>,
) {
    let service = TowerToHyperService::new(router);
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
