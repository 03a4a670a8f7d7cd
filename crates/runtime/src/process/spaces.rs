//! Networks for sandboxes of other runtimes, such as containers: lent by the keeper, which outlives
//! the worker, from the same pool as those of `strict` processes.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use dirigent_core::{Isolation, Outbound, SandboxId};
use tokio::sync::{oneshot, watch};

use super::{Shared, lock};
pub use crate::keeper::protocol::Lent;
use crate::keeper::protocol::ToKeeper;

/// How long a keeper that lives may take. It makes a network in a millisecond, unless the kernel takes
/// down those of others meanwhile: that can hold it up for seconds. One that died is known by its
/// connection, at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is lent and what is waited for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lent: Mutex<HashMap<SandboxId, Lent>>,
    waiting: Mutex<HashMap<SandboxId, oneshot::Sender<Result<Lent, String>>>>,
    /// Which keeper that is: the first, the second.
    keepers: watch::Sender<u64>,
}

impl Ledger {
    /// A keeper says what it has lent; another one than before has nothing of what was.
    pub(super) fn found(&self, all: Vec<Lent>) {
        *lock(&self.lent) = all.into_iter().map(|lent| (lent.sandbox, lent)).collect();
        self.unanswered();
        self.keepers.send_modify(|number| *number += 1);
    }

    /// A keeper that is not heard any more answers nothing; what it has lent it may still lend.
    pub(super) fn unanswered(&self) {
        lock(&self.waiting).clear();
    }

    /// Whether somebody has it; else it is to be given back, if it was lent.
    pub(super) fn answered(&self, sandbox: SandboxId, answer: Result<Lent, String>) -> bool {
        let waiting = lock(&self.waiting).remove(&sandbox);
        let before = match &answer {
            // First: who has the answer may ask what is lent.
            Ok(lent) => lock(&self.lent).insert(sandbox, lent.clone()),
            Err(_) => None,
        };
        let is_had =
            waiting.is_some_and(|waiting| waiting.send(answer).is_ok()) || before.is_some();
        if !is_had {
            lock(&self.lent).remove(&sandbox);
        }
        is_had
    }
}

/// Lends networks of their own to sandboxes that are not the keeper's processes.
///
/// A sandbox's network is a namespace to be entered at its start (`namespace` in [`Lent`], a path
/// that runtimes take as it is), in which the sandbox has an address and the policy that was asked
/// for. It stays lent when the worker dies: [`Self::lent`] says what is. If the keeper dies, a network
/// goes on until the last process in it has ended, without being lent: then the sandbox must end.
///
/// For the same sandboxes the keeper executes OCI runtimes, and holds what they make.
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

    /// A network for a sandbox that listens at port `inside` of its address and is reached at `port` of
    /// it, or, for data planes on other machines, of this one's; with port 0 it is not reached, until
    /// it is exposed. Where it is reached is in the answer. Asked again for
    /// the same sandbox, the answer is the same. If this is cancelled, it may be lent all the same.
    ///
    /// # Errors
    /// If there is no keeper, or no sandbox has a network of its own here; then with the reason that
    /// [`crate::Facts::missing`] gives too.
    pub async fn lend(
        &self,
        sandbox: SandboxId,
        outbound: &Outbound,
        (port, inside): (u16, u16),
    ) -> io::Result<Lent> {
        let outbound = outbound.clone();
        self.ask(sandbox, &ToKeeper::Lend { sandbox, outbound, port, inside }).await
    }

    /// One that was lent for port 0 is to be reached at this one from now on. Once.
    ///
    /// # Errors
    /// As [`Self::lend`], or if none was lent to it.
    pub async fn expose(&self, sandbox: SandboxId, port: u16) -> io::Result<Lent> {
        self.ask(sandbox, &ToKeeper::Expose { sandbox, port }).await
    }

    async fn ask(&self, sandbox: SandboxId, question: &ToKeeper) -> io::Result<Lent> {
        let shared = self.shared()?;
        let (sender, answer) = oneshot::channel();
        lock(&shared.spaces.waiting).insert(sandbox, sender);
        shared.link.send(question)?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer.map_err(io::Error::other),
            Ok(Err(_dropped)) => Err(io::ErrorKind::NotConnected.into()),
            Err(_elapsed) => {
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

    /// Whether sandboxes can have networks of their own here.
    ///
    /// # Errors
    /// Why not, with what to do.
    pub fn works(&self) -> Result<(), String> {
        let shared = self.shared().map_err(|_gone| "the worker ends".to_owned())?;
        if shared.config.max_isolation < Isolation::Strict {
            return Err("switched off by configuration".to_owned());
        }
        let lacks = lock(&shared.abilities).no_strict.clone();
        lacks.map_or(Ok(()), Err)
    }

    /// Whether a sandbox has a network lent.
    #[must_use]
    pub fn is_lent(&self, sandbox: SandboxId) -> bool {
        self.shared().is_ok_and(|shared| lock(&shared.spaces.lent).contains_key(&sandbox))
    }

    /// Tells of another keeper than before: it may have lent less. Tells at once, too: whoever has
    /// a network asks [`Self::is_lent`], as its keeper may have died since it was lent.
    #[must_use]
    pub fn keepers(&self) -> watch::Receiver<u64> {
        match self.shared() {
            Ok(shared) => {
                let mut keepers = shared.spaces.keepers.subscribe();
                keepers.mark_changed();
                keepers
            }
            Err(_gone) => watch::channel(0).1,
        }
    }

    /// What is lent, by this life of the worker or an earlier one.
    #[must_use]
    pub fn lent(&self) -> Vec<Lent> {
        let Ok(shared) = self.shared() else { return Vec::new() };
        lock(&shared.spaces.lent).values().cloned().collect()
    }

    pub(super) fn shared(&self) -> io::Result<Arc<Shared>> {
        self.shared.upgrade().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}
