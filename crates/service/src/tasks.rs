//! Every task of a process: named, with a policy for errors and for shutdown, and waited for.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// What a task's error means for its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is logged; the role goes on.
    Log,
    /// The role cannot go on: everything is asked to stop.
    StopRole,
}

/// What shutdown means for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// It watches the token itself and ends when it is done; it is waited for.
    Wait,
    /// It is dropped where it stands.
    Abort,
}

/// The tasks of a role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    failure: Arc<std::sync::OnceLock<String>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            failure: Arc::new(std::sync::OnceLock::new()),
        }
    }

    /// The token that tells every task to end.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Ask every task to end.
    pub fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Why the role stopped by itself, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Start a task. A panic in it is an error of the kind [`OnError::StopRole`]: a bug brings its
    /// role down, loudly.
    pub fn spawn<F, E>(&self, name: &'static str, on_error: OnError, on_cancel: OnCancel, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        self.tracker.spawn(self.body(name, on_error, on_cancel, Box::pin(task)));
    }

    /// Start a task that cannot fail.
    pub fn run<F>(&self, name: &'static str, on_cancel: OnCancel, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(self.body(name, OnError::StopRole, on_cancel, infallible(task)));
    }

    /// As [`Self::run`], on another runtime than the current one.
    pub fn run_on<F>(&self, handle: &Handle, name: &'static str, on_cancel: OnCancel, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let body = self.body(name, OnError::StopRole, on_cancel, infallible(task));
        self.tracker.spawn_on(body, handle);
    }

    /// `task` is small, such as a box: what awaits a future has room for it twice, as what it was
    /// given and as what it waits for, and it is awaited more than once here.
    fn body<F, E>(
        &self,
        name: &'static str,
        on_error: OnError,
        on_cancel: OnCancel,
        task: F,
    ) -> impl Future<Output = ()> + Send + use<F, E>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let this = self.clone();
        let span = tracing::debug_span!("task", name);
        let body = async move {
            let guard = PanicGuard { tasks: &this, name };
            let result = match on_cancel {
                OnCancel::Wait => task.await,
                OnCancel::Abort => {
                    tokio::select! {
                        biased;
                        () = this.shutdown.cancelled() => Ok(()),
                        result = task => result,
                    }
                }
            };
            drop(guard);
            if let Err(error) = result {
                match on_error {
                    OnError::Log => tracing::warn!(task = name, %error, "task failed"),
                    OnError::StopRole => this.fail(format!("{name}: {error}")),
                }
            }
        };
        body.instrument(span)
    }

    /// Wait until every task has ended, at most `deadline` long; whether all did.
    pub async fn wait(&self, deadline: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }

    fn fail(&self, reason: String) {
        tracing::error!(%reason, "stopping");
        // Only the first reason is kept: later ones are its consequences.
        if self.failure.set(reason).is_err() {
            tracing::debug!("already stopping");
        }
        self.stop();
    }
}

fn infallible(
    task: impl Future<Output = ()> + Send,
) -> impl Future<Output = Result<(), std::convert::Infallible>> + Send {
    let task = Box::pin(task);
    async move {
        task.await;
        Ok(())
    }
}

/// Dropped while the task unwinds, it tells that the task panicked.
struct PanicGuard<'a> {
    tasks: &'a Tasks,
    name: &'static str,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tasks.fail(format!("{} panicked", self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_stops_the_role() {
        let tasks = Tasks::new();
        tasks.run("bug", OnCancel::Wait, async { panic!("on purpose") });
        tasks.shutdown().cancelled().await;
        assert!(tasks.wait(Duration::from_secs(5)).await);
        assert_eq!(tasks.failure(), Some("bug panicked"));
    }

    #[tokio::test]
    async fn tasks_that_abort_end_at_shutdown() {
        let tasks = Tasks::new();
        tasks.run("endless", OnCancel::Abort, std::future::pending());
        tasks.stop();
        assert!(tasks.wait(Duration::from_secs(5)).await);
        assert_eq!(tasks.failure(), None);
    }
}
