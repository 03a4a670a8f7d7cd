//! OCI runtimes for sandboxes of other runtimes: executed by the keeper, which outlives the worker, so
//! that what they make is its child and its end is known.

use std::{
    collections::HashMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Spaces, lock};
use crate::keeper::protocol::{Bundle, Question, ToKeeper};
pub use crate::keeper::protocol::{End, Execute, First, Layered, Makes};

/// How long a keeper that lives may take: a runtime that takes too long is ended by it, and told.
const PATIENCE: Duration = Duration::from_secs(40);

/// What a keeper says.
#[derive(Debug)]
pub(super) enum Answer {
    Executed(Result<Option<First>, String>),
    Ended(Option<End>),
}

/// What is held and what is waited for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    held: Mutex<HashMap<String, First>>,
    waiting: Mutex<HashMap<Question, oneshot::Sender<Answer>>>,
    next: AtomicU64,
}

impl Ledger {
    /// A keeper says what it holds; another one than before has nothing of what was.
    pub(super) fn found(&self, all: Vec<Bundle>) {
        *lock(&self.held) = all.into_iter().map(|one| (one.name, one.first)).collect();
        self.unanswered();
    }

    /// A keeper that is not heard any more answers nothing.
    pub(super) fn unanswered(&self) {
        lock(&self.waiting).clear();
    }

    pub(super) fn answered(&self, question: Question, answer: Answer) {
        let waiting = lock(&self.waiting).remove(&question);
        if waiting.is_none_or(|waiting| waiting.send(answer).is_err()) {
            tracing::debug!(?question, "nobody waits for an answer of the keeper");
        }
    }
}

/// Not waited for any more when this is dropped.
struct Asked<'a> {
    ledger: &'a Ledger,
    question: Question,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.ledger.waiting).remove(&self.question);
    }
}

impl Spaces {
    /// Has an OCI runtime executed; the first process of what it made, if it was to make something. That
    /// is held by the keeper from then on, by the bundle's name. If this is cancelled, it may be
    /// executed all the same: [`Self::release`] ends what comes of it.
    ///
    /// # Errors
    /// If there is no keeper, or the runtime fails, or takes too long.
    pub async fn execute(&self, execute: Execute) -> io::Result<Option<First>> {
        let name = execute.makes.is_some().then(|| execute.bundle.clone());
        let execute = Box::new(execute);
        let answer = self.question(|question| ToKeeper::Execute { question, execute }).await?;
        let Answer::Executed(result) = answer else { return Err(another_answer()) };
        let first = result.map_err(io::Error::other)?;
        if let (Some(name), Some(first)) = (name, first) {
            lock(&self.shared()?.bundles.held).insert(name, first);
        }
        Ok(first)
    }

    /// How a bundle's first process ended, once it has; `None` if no keeper knows.
    ///
    /// # Errors
    /// If there is no keeper.
    pub async fn end_of(&self, bundle: &str) -> io::Result<Option<End>> {
        let bundle = bundle.to_owned();
        match self.question(|question| ToKeeper::Await { question, bundle }).await? {
            Answer::Ended(end) => Ok(end),
            Answer::Executed(_) => Err(another_answer()),
        }
    }

    /// Ends a bundle: when this returns nothing is executed for it any more, its first process is
    /// gone, and the keeper has forgotten it. Those that it does not know are gone.
    ///
    /// # Errors
    /// If there is no keeper, or it cannot be ended.
    pub async fn release(&self, bundle: &str) -> io::Result<()> {
        let name = bundle.to_owned();
        self.question(|question| ToKeeper::Release { question, bundle: name }).await?;
        lock(&self.shared()?.bundles.held).remove(bundle);
        Ok(())
    }

    /// The first process of a bundle that the keeper holds, be it one that has ended.
    #[must_use]
    pub fn held(&self, bundle: &str) -> Option<First> {
        lock(&self.shared().ok()?.bundles.held).get(bundle).copied()
    }

    /// The names of what the keeper holds.
    #[must_use]
    pub fn all_held(&self) -> Vec<String> {
        let Ok(shared) = self.shared() else { return Vec::new() };
        lock(&shared.bundles.held).keys().cloned().collect()
    }

    async fn question(&self, form: impl FnOnce(Question) -> ToKeeper) -> io::Result<Answer> {
        let shared = self.shared()?;
        let ledger = &shared.bundles;
        let question = Question(ledger.next.fetch_add(1, Ordering::Relaxed));
        let (sender, answer) = oneshot::channel();
        lock(&ledger.waiting).insert(question, sender);
        let _asked = Asked { ledger, question };
        shared.link.send(&form(question))?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_dropped)) => Err(io::ErrorKind::NotConnected.into()),
            Err(_elapsed) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer"))
            }
        }
    }
}

fn another_answer() -> io::Error {
    io::Error::other("the keeper answers another question")
}
