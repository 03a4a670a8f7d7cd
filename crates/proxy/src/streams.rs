//! The streams of HTTP/2 clients: each is answered in a task of its own, and what a client does not
//! take is cut.
//!
//! The server asks a body for more only when the client has room for it. So while a body has been
//! given more often than it has been asked in vain, it is the client who is waited for; nobody else
//! would notice, since the connection itself is alive.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{task_local, time::Instant};

use crate::{Stoppable, alarm::Alarm};

task_local! {
    /// Since when this stream's client has not taken what it was given.
    static UNTAKEN: Cell<Option<Instant>>;
}

/// There is something for the client of this task's stream.
pub(crate) fn gave() {
    // Over HTTP/1 the wire watches.
    let _over_http1 = UNTAKEN.try_with(|since| since.set(Some(Instant::now())));
}

/// The client took everything so far; more is not there yet.
pub(crate) fn taken() {
    let _over_http1 = UNTAKEN.try_with(|since| since.set(None));
}

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    pub(crate) tasks: Stoppable,
    /// How long a client may refuse to take bytes of an answer.
    pub(crate) client_stall: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let allowed = self.client_stall;
        self.tasks.run("http2 stream", UNTAKEN.scope(Cell::new(None), watched(stream, allowed)));
    }
}

/// Dropped before its end, a stream is reset and its invocation abandoned.
async fn watched(stream: impl Future<Output = ()>, allowed: Duration) {
    let mut stream = pin!(stream);
    let mut alarm = Alarm::default();
    let mut stalled = move |cx: &mut Context<'_>| match UNTAKEN.with(Cell::get) {
        Some(since) => alarm.poll_until(cx, since + allowed),
        None => Poll::Pending,
    };
    poll_fn(|cx| match stream.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => stalled(cx),
    })
    .await;
}
