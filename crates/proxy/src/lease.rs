//! A slot in use, and how it is given back in every case, however the invocation ends.
//!
//! A slot is free when the response has ended or the sandbox closed the connection, never because
//! somebody stopped waiting: after that a handler may still run.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use dirigent_core::gate::{Binding, Finish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    Shared,
    slot::FunctionSlot,
    upstream::{Conn, Exchange},
};

/// See the module. Dropped as it is, it was never used.
#[derive(Debug)]
pub(crate) struct Lease {
    shared: Arc<Shared>,
    slot: Arc<FunctionSlot>,
    pub(crate) binding: Binding,
    over: bool,
}

impl Lease {
    pub(crate) fn new(shared: &Arc<Shared>, slot: &Arc<FunctionSlot>, binding: Binding) -> Self {
        Self { shared: Arc::clone(shared), slot: Arc::clone(slot), binding, over: false }
    }

    /// The slot is free; the connection, if the next invocation may use it.
    pub(crate) fn finish(mut self, how: Finish, kept: Option<Conn>) {
        self.over = true;
        self.slot.finish(&self.shared, self.binding.sandbox, how, kept);
    }

    /// We stopped waiting for a handler that may still run. With one slot the sandbox is recycled.
    /// Else the slot stays taken until the sandbox closes the connection, or the grace is over.
    pub(crate) fn abandon(self, conn: Option<Conn>) {
        self.slot.metrics.overruns.inc();
        let can_wait = tokio::runtime::Handle::try_current().is_ok();
        if self.slot.concurrency(self.binding.revision) == 1 || !can_wait {
            return self.finish(Finish::Abandoned, None);
        }
        let grace = self.slot.view().settings.grace;
        let tasks = self.shared.beside.clone();
        tasks.run("abandoned invocation", async move {
            let closed = async {
                match conn {
                    Some(conn) => wait_for_close(conn).await,
                    None => std::future::pending().await,
                }
            };
            if tokio::time::timeout(grace, closed).await.is_err() {
                tracing::debug!(sandbox = %self.binding.sandbox, "the grace is over");
            }
            self.finish(Finish::Abandoned, None);
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.over {
            self.slot.finish(&self.shared, self.binding.sandbox, Finish::Done, None);
        }
    }
}

/// Tells the sandbox that nobody listens any more, and waits until it has understood.
async fn wait_for_close(mut conn: Conn) {
    if conn.stream.shutdown().await.is_err() {
        return;
    }
    let mut room = [0; 4096];
    while matches!(conn.stream.read(&mut room).await, Ok(n) if n > 0) {}
}

/// An exchange over HTTP/1.1 and its slot. Dropped before its end, it was abandoned.
#[derive(Debug)]
pub(crate) struct Running {
    /// The exchange is large, and handed on several times.
    inner: Option<(Box<Exchange>, Lease)>,
}

impl Running {
    pub(crate) fn new(exchange: Box<Exchange>, lease: Lease) -> Self {
        Self { inner: Some((exchange, lease)) }
    }

    pub(crate) fn exchange(&mut self) -> Option<&mut Exchange> {
        self.inner.as_mut().map(|(exchange, _)| &mut **exchange)
    }

    pub(crate) fn peek(&self) -> Option<&Exchange> {
        self.inner.as_ref().map(|(exchange, _)| &**exchange)
    }

    /// Its parts, for an end that is decided elsewhere.
    pub(crate) fn take(&mut self) -> Option<(Box<Exchange>, Lease)> {
        self.inner.take()
    }

    /// The response has ended.
    pub(crate) fn complete(&mut self) {
        if let Some((exchange, lease)) = self.inner.take() {
            lease.finish(Finish::Done, exchange.into_kept());
        }
    }

    /// The sandbox closed the connection.
    pub(crate) fn closed(&mut self) {
        if let Some((_, lease)) = self.inner.take() {
            lease.finish(Finish::Done, None);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((exchange, lease)) = self.inner.take() {
            if exchange.sent {
                lease.abandon(Some(exchange.into_conn()));
            } else {
                lease.finish(Finish::Done, None);
            }
        }
    }
}

/// Counts what is open, so that a drain can wait for it.
#[derive(Debug)]
pub(crate) struct Open(Arc<Shared>);

impl Open {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.closed.notify_waiters();
    }
}
