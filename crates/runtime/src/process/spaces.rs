//! Networks for sandboxes of other runtimes, such as containers: lent by the keeper, which outlives
//! the worker, from the same pool as those of `strict` processes.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, Weak, mpsc},
    time::Duration,
};

use dirigent_core::{Outbound, SandboxId};

use super::{Shared, lock};
pub use crate::keeper::protocol::Lent;
use crate::keeper::protocol::ToKeeper;

/// How long a keeper that lives may take; it makes a network in a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is lent and what is waited for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lent: Mutex<HashMap<SandboxId, Lent>>,
    waiting: Mutex<HashMap<SandboxId, mpsc::SyncSender<Result<Lent, String>>>>,
}

impl Ledger {
    /// A keeper says what it has lent; another one than before has nothing of what was.
    pub(super) fn found(&self, all: Vec<Lent>) {
        *lock(&self.lent) = all.into_iter().map(|lent| (lent.sandbox, lent)).collect();
        lock(&self.waiting).clear();
    }

    pub(super) fn answered(&self, sandbox: SandboxId, answer: Result<Lent, String>) {
        if let Ok(lent) = &answer {
            lock(&self.lent).insert(sandbox, lent.clone());
        }
        let waiting = lock(&self.waiting).remove(&sandbox);
        if let Some(waiting) = waiting
            && waiting.send(answer).is_err()
        {
            tracing::debug!(%sandbox, "whoever asked has given up waiting");
        }
    }
}

/// Lends networks of their own to sandboxes that are not the keeper's processes.
///
/// A sandbox's network is a namespace to be entered at its start (`namespace` in [`Lent`], a path
/// that runtimes take as it is), in which the sandbox has an address and the policy that was asked
/// for. It stays lent when the worker dies: [`Self::lent`] says what is. If the keeper dies, a network
/// goes on until the last process in it has ended, without being lent: then the sandbox must end.
#[derive(Clone)]
pub struct Spaces {
    shared: Weak<Shared>,
}

impl fmt::Debug for Spaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spaces").finish_non_exhaustive()
    }
}

impl Spaces {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::downgrade(shared) }
    }

    /// A network for a sandbox that listens at port `inside` of its address, which for data planes on
    /// other machines is `port` of this one's; where it is reached is in the answer. Asked again for
    /// the same sandbox, the answer is the same. Blocking.
    ///
    /// # Errors
    /// If there is no keeper, or no sandbox has a network of its own here; then with the reason that
    /// [`crate::Facts::missing`] gives too.
    pub fn lend(
        &self,
        sandbox: SandboxId,
        outbound: &Outbound,
        (port, inside): (u16, u16),
    ) -> io::Result<Lent> {
        let shared = self.shared()?;
        // Room for the one answer that there is.
        let (sender, answer) = mpsc::sync_channel(1);
        lock(&shared.spaces.waiting).insert(sandbox, sender);
        let outbound = outbound.clone();
        shared.link.send(&ToKeeper::Lend { sandbox, outbound, port, inside })?;
        match answer.recv_timeout(PATIENCE) {
            Ok(answer) => answer.map_err(io::Error::other),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::ErrorKind::NotConnected.into()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                lock(&shared.spaces.waiting).remove(&sandbox);
                Err(io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer"))
            }
        }
    }

    /// The sandbox is gone, whole: another one may get its network.
    pub fn give_back(&self, sandbox: SandboxId) {
        let Ok(shared) = self.shared() else { return };
        lock(&shared.spaces.lent).remove(&sandbox);
        if let Err(error) = shared.link.send(&ToKeeper::GiveBack { sandbox }) {
            // With the keeper its loans end.
            tracing::debug!(%sandbox, %error, "there is no keeper");
        }
    }

    /// What is lent, by this life of the worker or an earlier one.
    #[must_use]
    pub fn lent(&self) -> Vec<Lent> {
        let Ok(shared) = self.shared() else { return Vec::new() };
        lock(&shared.spaces.lent).values().cloned().collect()
    }

    fn shared(&self) -> io::Result<Arc<Shared>> {
        self.shared.upgrade().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}
