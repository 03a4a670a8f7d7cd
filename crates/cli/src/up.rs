//! `dirigent up`: every role in one process. The roles exchange frames over channels and nothing
//! else; this file starts them, says what works, and ends them so that nothing is left.
//!
//! ```text
//! control plane -> `hello` -> data plane -> runtime and worker -> ready
//! signal: data plane drains -> worker destroys every sandbox -> the rest stops
//! ```
//!
//! The worker comes last: what most often fails, a port that is taken, fails before anything that
//! would have to be cleaned up is started.

mod ready;
mod together;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use dirigent_service::{Tasks, state, telemetry};

use crate::{
    args::UpArgs,
    config::{self, Config},
    fail::{Fail, Kind, OrFail as _, Result},
    format::duration,
    printer::Printer,
    roles::{self, End},
    service_manager,
    signals::Signals,
};
pub(crate) use ready::facts;
use together::Roles;

/// Where `up` says where functions are called; written when everything is ready.
pub(crate) const FUNCTIONS_FILE: &str = "functions";
/// After a second Ctrl-C.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);
/// Runs until a signal comes or a role fails.
pub(crate) fn run(args: &UpArgs, printer: Printer) -> Result {
    let begin = Instant::now();
    let config = config::read(args)?.value;
    telemetry::init(config.log_format, &config.log).or_fail(Kind::Config, || "--log")?;
    roles::raise_open_files();
    let runtime = roles::threads()?;
    let result = runtime.block_on(up(&config, begin, printer));
    // A file that cannot be written or read just now must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn up(config: &Config, begin: Instant, printer: Printer) -> Result {
    let mut signals = Signals::new()?;
    let dir = config.state_dir();
    let tasks = Tasks::new();
    let roles = match start(config, &dir, &tasks, &mut signals).await {
        Ok(roles) => roles,
        Err(fail) => {
            tasks.stop();
            tasks.wait(roles::STOP_TASKS).await;
            return Err(fail);
        }
    };
    let (result, end) = match ready::announce(config, &dir, &roles, begin, printer) {
        Ok(()) => serve(config, &roles, &tasks, &mut signals, printer).await,
        Err(fail) => {
            roles.worker.stop_all(STOP_AT_ONCE).await;
            (Err(fail), End::Close)
        }
    };
    roles.end(end).await;
    forget(&dir.join(FUNCTIONS_FILE));
    tasks.stop();
    if !tasks.wait(roles::STOP_TASKS).await {
        tracing::warn!("some tasks did not end in {:?}", roles::STOP_TASKS);
    }
    result
}

/// Starts the roles. A signal meanwhile ends what is started once it is, so that nothing is left; a
/// second one does not wait for that.
async fn start(config: &Config, dir: &Path, tasks: &Tasks, signals: &mut Signals) -> Result<Roles> {
    let mut starting = std::pin::pin!(Roles::start(config, dir, tasks));
    tokio::select! {
        started = &mut starting => return started,
        () = signals.next() => {}
    }
    tokio::select! {
        started = starting => started?.end(End::Close).await,
        () = signals.next() => {}
    }
    Err(Fail::interrupted())
}

/// Waits for the end and makes it an orderly one.
async fn serve(
    config: &Config,
    roles: &Roles,
    tasks: &Tasks,
    signals: &mut Signals,
    printer: Printer,
) -> (Result, End) {
    service_manager::ready("all roles serve", tasks);
    tokio::select! {
        () = signals.next() => service_manager::stopping(),
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
        if !roles.proxy.drain(config.drain).await {
            let drain = duration(config.drain);
            printer.problem(&format!("warning: calls went on after {drain} and were cut"));
        }
        roles.worker.stop_all(roles::STOP_SANDBOXES).await
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
