//! Connections taken off a listener, each once it is known who is at its other end: one who says
//! nothing, or nonsense, keeps nobody else waiting.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};

use super::{
    files::Files,
    stream::{Caller, Stream},
};
use crate::{OnCancel, Tasks};

/// Connections whose other end has not shown yet who it is; more wait in the kernel's backlog.
const UNKNOWN: usize = 256;
/// After a failed accept: for instance no descriptor is left, and trying at once would spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Those who show a certificate of the authority in `files`, or anybody without encryption. Ends
/// with `tasks`.
#[must_use]
pub fn incoming(
    listener: TcpListener,
    files: Option<Files>,
    tasks: &Tasks,
) -> mpsc::Receiver<Stream> {
    // Who was let in waits here until somebody takes it.
    let (ready, taken) = mpsc::channel(16);
    let spawner = tasks.clone();
    tasks.run("connections", OnCancel::Abort, async move {
        let places = Arc::new(Semaphore::new(UNKNOWN));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%from, %error, "no TCP_NODELAY");
            }
            let (files, ready) = (files.clone(), ready.clone());
            spawner.run("handshake", OnCancel::Abort, async move {
                let stream = match files {
                    None => Stream::plain(stream),
                    Some(files) => match files.accept(stream, Caller::Known).await {
                        Ok(stream) => stream,
                        Err(error) => {
                            refused(from, &error);
                            return;
                        }
                    },
                };
                if ready.send(stream).await.is_err() {
                    tracing::debug!(%from, "nobody takes connections any more");
                }
                drop(place);
            });
        }
    });
    taken
}

/// What somebody can do something about is told; nonsense from anywhere is not.
fn refused(from: SocketAddr, error: &io::Error) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(why)) = inner {
        tracing::warn!(%from, %why, "a certificate was refused; is the clock of either host wrong?");
    } else {
        tracing::info!(%from, %error, "no connection came of it");
    }
}
