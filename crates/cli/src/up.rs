//! `dirigent up`: every role in one process. The roles exchange frames over channels and nothing
//! else; this file starts them, says what works, and ends them so that nothing is left.
//!
//! ```text
//! control plane -> data plane -> runtime and worker -> `hello` -> ready
//! signal: data plane drains -> worker destroys every sandbox -> the rest stops
//! ```
//!
//! The worker comes last: what most often fails, a port that is taken, fails before anything that
//! would have to be cleaned up is started.

pub(crate) mod config;
mod ready;
mod roles;

use std::{
    num::NonZero,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use dirigent_service::{Tasks, state, telemetry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    args::UpArgs,
    fail::{Fail, Kind, OrFail as _, Result},
    format::duration,
    printer::Printer,
    signals::Signals,
};
use config::UpConfig;
use roles::{End, Roles};

/// Where `up` says where functions are called; written when everything is ready.
pub(crate) const FUNCTIONS_FILE: &str = "functions";
/// What a function that ignores SIGTERM may delay the end by.
const STOP_SANDBOXES: Duration = Duration::from_secs(12);
/// After a second Ctrl-C.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);
/// What the tasks have to do at the end is short.
const STOP_TASKS: Duration = Duration::from_secs(5);

/// Runs until a signal comes or a role fails.
pub(crate) fn run(args: &UpArgs, printer: Printer) -> Result {
    let begin = Instant::now();
    let config = config::read(args)?.value;
    telemetry::init(config.log_format, &config.log).or_fail(Kind::Config, || "--log")?;
    raise_open_files();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Connections have a thread per core beside these. What the other roles do goes through
        // several tasks, each short: between threads that sleep it would take longer.
        .worker_threads((cores / 2).max(1))
        // For files; more of them would only compete.
        .max_blocking_threads(4 * cores + 8)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()?;
    let result = runtime.block_on(up(&config, begin, printer));
    // A file that cannot be written or read just now must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn up(config: &UpConfig, begin: Instant, printer: Printer) -> Result {
    let mut signals = Signals::new()?;
    let dir = config.state_dir();
    let tasks = Tasks::new();
    let roles = match Roles::start(config, &dir, &tasks).await {
        Ok(roles) => roles,
        Err(fail) => {
            tasks.stop();
            tasks.wait(STOP_TASKS).await;
            return Err(fail);
        }
    };
    let (result, end) = match ready::announce(config, &dir, &roles, begin, printer).await {
        Ok(()) => serve(config, &roles, &tasks, &mut signals, printer).await,
        Err(fail) => {
            roles.worker.stop_all(STOP_AT_ONCE).await;
            (Err(fail), End::Close)
        }
    };
    roles.end(end).await;
    forget(&dir.join(FUNCTIONS_FILE));
    tasks.stop();
    if !tasks.wait(STOP_TASKS).await {
        tracing::warn!("some tasks did not end in {STOP_TASKS:?}");
    }
    result
}

/// Waits for the end and makes it an orderly one.
async fn serve(
    config: &UpConfig,
    roles: &Roles,
    tasks: &Tasks,
    signals: &mut Signals,
    printer: Printer,
) -> (Result, End) {
    tokio::select! {
        () = signals.next() => {}
        () = tasks.shutdown().cancelled() => {
            let reason = tasks.failure().unwrap_or("it was told to stop");
            let fail = Fail::internal(format!("a role failed: {reason}"))
                .hint("sandboxes are left running; the next `dirigent up` adopts them");
            return (Err(fail), End::Detach);
        }
    }
    printer.note(&format_args!(
        "stopping: calls may go on for {}; press Ctrl-C again to stop at once",
        duration(config.drain)
    ));
    let orderly = async {
        roles.proxy.drain(config.drain).await;
        roles.worker.stop_all(STOP_SANDBOXES).await
    };
    let (left, is_hurried) = tokio::select! {
        left = orderly => (left, false),
        () = signals.next() => (roles.worker.stop_all(STOP_AT_ONCE).await, true),
    };
    // What did not stop in time is killed with the keeper.
    if left > 0 {
        printer.problem(&format!("warning: {left} sandboxes did not stop in time: killed"));
    }
    (if is_hurried { Err(Fail::interrupted()) } else { Ok(()) }, End::Close)
}

/// Connections and sandboxes cost descriptors; the soft limit is often 1024.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Removes a file that may not be there.
fn forget(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot be removed");
    }
}

/// Writes a file of the state directory.
fn remember(path: &Path, text: &str) -> Result {
    let written = state::atomic_write(path, text.as_bytes(), 0o600);
    written.or_fail(Kind::Unavailable, || "the state directory cannot be written")
}
