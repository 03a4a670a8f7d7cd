//! Two-way channels between roles, and how a role is reached.
//!
//! A role that is dialled owns an [`Acceptor`]; those who dial it hold a [`Dialer`]. Within one
//! process both are channels; between hosts the same two ends are fed by a network transport.

use std::sync::Arc;

use tokio::sync::mpsc;

/// One end of a two-way channel. Dropping it closes both directions.
#[derive(Debug)]
pub struct End<Out, In> {
    /// What this side says. Bounded: a full channel means that the other side makes no progress.
    pub tx: mpsc::Sender<Out>,
    /// What this side hears; `None` once the other side is gone.
    pub rx: mpsc::Receiver<In>,
}

/// A two-way channel holding `capacity` messages in each direction.
#[must_use]
pub fn pipe<A, B>(capacity: usize) -> (End<A, B>, End<B, A>) {
    let (to_right, from_left) = mpsc::channel(capacity);
    let (to_left, from_right) = mpsc::channel(capacity);
    (End { tx: to_right, rx: from_right }, End { tx: to_left, rx: from_left })
}

/// Where connections to a role arrive: the dialler's identity and this side's end.
#[derive(Debug)]
pub struct Acceptor<Out, In> {
    rx: mpsc::Receiver<(Arc<str>, End<Out, In>)>,
}

impl<Out, In> Acceptor<Out, In> {
    /// The next connection; `None` once no dialler is left. Cancellation safe.
    pub async fn accept(&mut self) -> Option<(Arc<str>, End<Out, In>)> {
        self.rx.recv().await
    }
}

/// How a role is reached. Cheap to clone.
#[derive(Debug)]
pub struct Dialer<Out, In> {
    identity: Arc<str>,
    tx: mpsc::Sender<(Arc<str>, End<In, Out>)>,
}

impl<Out, In> Clone for Dialer<Out, In> {
    fn clone(&self) -> Self {
        Self { identity: Arc::clone(&self.identity), tx: self.tx.clone() }
    }
}

/// Messages in flight per direction of a connection within one process.
const CAPACITY: usize = 1024;

impl<Out, In> Dialer<Out, In> {
    /// The same role, dialled as somebody else.
    #[must_use]
    pub fn named(&self, identity: &str) -> Self {
        Self { identity: identity.into(), tx: self.tx.clone() }
    }

    /// A new connection.
    ///
    /// # Errors
    /// If the role does not accept any more.
    pub async fn dial(&self) -> Result<End<Out, In>, Closed> {
        let (ours, theirs) = pipe(CAPACITY);
        self.tx.send((Arc::clone(&self.identity), theirs)).await.map_err(|_gone| Closed)?;
        Ok(ours)
    }
}

/// A way to reach a role within this process: the end of those who dial, and the role's own.
/// `Out` is what the role says.
#[must_use]
pub fn acceptor<Out, In>(identity: &str) -> (Dialer<In, Out>, Acceptor<Out, In>) {
    let (tx, rx) = mpsc::channel(16);
    (Dialer { identity: identity.into(), tx }, Acceptor { rx })
}

/// The other side is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the role does not accept connections any more")]
pub struct Closed;
