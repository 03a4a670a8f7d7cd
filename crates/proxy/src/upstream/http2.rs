//! HTTP/2 with prior knowledge to a sandbox: one connection carries many invocations.

use std::time::Duration;

use crate::{Stoppable, source, upstream::Stream};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};

/// A handle of a connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Multiplexed(SendRequest<source::Shared>);

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
    let (handle, connection) = hyper::client::conn::http2::Builder::new(Beside(tasks.clone()))
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
    Ok(Multiplexed(handle))
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// Not a byte of it left.
    pub(crate) unsent: bool,
    pub(crate) error: hyper::Error,
}

impl Multiplexed {
    pub(crate) fn is_usable(&self) -> bool {
        !self.0.is_closed()
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<source::Shared>,
    ) -> Result<Response<Incoming>, Unanswered> {
        if let Err(error) = self.0.ready().await {
            return Err(Unanswered { unsent: true, error });
        }
        self.0.try_send_request(request).await.map_err(|mut error| Unanswered {
            unsent: error.take_message().is_some(),
            error: error.into_error(),
        })
    }
}
