//! The roles of one process and how they are joined.

use std::{
    path::Path,
    sync::{Arc, OnceLock, Weak},
};

use dirigent_core::{RuntimeKind, name::HostRules};
use dirigent_runtime::{
    Event, Runtime,
    fake::{FakeConfig, FakeRuntime},
    process::{ProcessConfig, ProcessRuntime},
};
use dirigent_service::{LockError, Tasks, listen::ListenError};
use tokio::sync::mpsc;

use super::{FUNCTIONS_FILE, config::UpConfig, forget};
use crate::fail::{Fail, Kind, OrFail as _, Result};

/// Events of a runtime that its worker has not taken yet; full makes the runtime wait.
const EVENTS: usize = 1024;

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Roles {
    pub(super) control: dirigent_control::Running,
    pub(super) proxy: Arc<dirigent_proxy::Running>,
    pub(super) worker: dirigent_worker::Running,
    process: Option<Arc<ProcessRuntime>>,
}

impl Roles {
    pub(super) async fn start(config: &UpConfig, dir: &Path, tasks: &Tasks) -> Result<Self> {
        let mut control_config = control_config(config, dir);
        // The control plane serves the data plane's metrics, and is there before it.
        let data_plane_page = Arc::new(OnceLock::<Weak<dirigent_proxy::Running>>::new());
        let served = Arc::clone(&data_plane_page);
        control_config.pages.push(Arc::new(move |page| {
            if let Some(proxy) = served.get().and_then(Weak::upgrade) {
                page.push_str(&proxy.metrics_page());
            }
        }));
        let control =
            dirigent_control::start(control_config, tasks).await.map_err(control_failed)?;
        // Left by a life that was killed, it would be taken for this one's.
        forget(&dir.join(FUNCTIONS_FILE));
        let data_plane = dirigent_proxy::Config {
            hosts: HostRules::new(&config.domains, &config.gateways),
            limits: config.limits.limits(),
            state: Some(dir.join("data-plane")),
            ..dirigent_proxy::Config::new(config.listen)
        };
        let proxy = Arc::new(
            dirigent_proxy::start(
                data_plane,
                control.data_planes.clone(),
                control.data_planes_bulk.clone(),
                tasks,
            )
            .await
            .map_err(proxy_failed)?,
        );
        data_plane_page.get_or_init(|| Arc::downgrade(&proxy));
        control.set_functions(proxy.address);
        let Started { runtime, events, process } = runtime(config, dir, control.api.port()).await?;
        let worker = dirigent_worker::start(
            worker_config(config, dir),
            vec![(runtime, events)],
            control.workers.clone(),
            control.workers_bulk.clone(),
            tasks,
        )
        .await;
        match worker {
            Ok(worker) => Ok(Self { control, proxy, worker, process }),
            Err(error) => {
                leave(process, End::Detach).await;
                Err(failed("the worker", false, error))
            }
        }
    }

    /// Ends what is no task: the runtime's thread and the keeper.
    pub(super) async fn end(self, how: End) {
        leave(self.process, how).await;
    }
}

/// What becomes of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It ends, and whatever it still has is killed.
    Close,
    /// It goes on with its sandboxes; the next `up` adopts them.
    Detach,
}

async fn leave(process: Option<Arc<ProcessRuntime>>, how: End) {
    let Some(process) = process else { return };
    let left = tokio::task::spawn_blocking(move || match how {
        End::Close => process.close(),
        End::Detach => process.detach(),
    });
    if let Err(error) = left.await {
        tracing::error!(%error, "the runtime did not end well");
    }
}

fn control_config(config: &UpConfig, dir: &Path) -> dirigent_control::Config {
    dirigent_control::Config {
        listen: config.api,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        compat: config.compat.enabled.then(|| config.compat.images.clone()),
        record: config.record.clone(),
        ..dirigent_control::Config::new(dir.to_owned())
    }
}

fn worker_config(config: &UpConfig, dir: &Path) -> dirigent_worker::Config {
    dirigent_worker::Config {
        state: dir.join("worker"),
        settings: dirigent_worker::Settings {
            memory: config.memory,
            cpu_overcommit: config.cpu_overcommit,
            sandboxes: config.sandboxes,
            starts: config.starts,
            first_port: config.first_port,
            last_port: config.last_port,
            ..dirigent_worker::Settings::default()
        },
    }
}

/// A runtime, the channel on which it reports, and what is needed to end it.
struct Started {
    runtime: Arc<dyn Runtime>,
    events: mpsc::Receiver<Event>,
    process: Option<Arc<ProcessRuntime>>,
}

async fn runtime(config: &UpConfig, dir: &Path, api_port: u16) -> Result<Started> {
    let (sender, events) = mpsc::channel(EVENTS);
    if config.runtime == RuntimeKind::Fake {
        let runtime = FakeRuntime::start(FakeConfig::default(), sender);
        return Ok(Started { runtime, events, process: None });
    }
    let program = std::env::current_exe().or_fail(Kind::Internal, || "where is this program")?;
    let command = vec![program.display().to_string(), "keeper".to_owned()];
    let mut process = ProcessConfig::new(&dir.join("worker"), command);
    process.min_isolation = config.min_isolation.unwrap_or(process.min_isolation);
    process.protected_ports = vec![api_port];
    process.ports = (config.first_port, config.last_port);
    process.uid_base = uid_base(dir);
    // It looks around for what an earlier life left, which takes system calls that block.
    let started = tokio::task::spawn_blocking(move || ProcessRuntime::start(process, sender));
    let started = started.await.or_fail(Kind::Internal, || "the runtime panicked")?;
    let runtime = started.or_fail(Kind::Internal, || "the process runtime does not start")?;
    Ok(Started { runtime: runtime.clone(), events, process: Some(runtime) })
}

/// Uids from here on are in nobody's use; a worker takes as many as there are ports.
const FIRST_UID: u32 = 1_900_000_000;
const UIDS_EACH: u32 = 1 << 16;
/// As many ranges as fit below 2^31.
const UID_RANGES: u64 = 3000;

/// The first uid for sandboxes. Another state directory has other uids, so that two Dirigents on
/// one machine neither share nor mistake each other's sandboxes; the same one has the same again,
/// as its sandboxes may outlive it.
fn uid_base(dir: &Path) -> u32 {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_error| dir.to_owned());
    // FNV-1a: the same in every build, unlike the standard library's hashes.
    let hash =
        dir.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3_u64)
        });
    FIRST_UID + u32::try_from(hash % UID_RANGES).unwrap_or_default() * UIDS_EACH
}

/// A role that does not start: somebody else has what it needs, or the machine does not do what
/// it must.
fn failed(role: &'static str, is_taken: bool, error: impl Into<anyhow::Error>) -> Fail {
    let kind = if is_taken { Kind::Unavailable } else { Kind::Internal };
    Fail::new(kind, error).details([format!("while starting {role}")])
}

fn control_failed(error: dirigent_control::StartError) -> Fail {
    use dirigent_control::StartError;
    let is_taken = matches!(
        error,
        StartError::Lock(LockError::Held { .. }) | StartError::Listen(ListenError::Taken { .. })
    );
    failed("the control plane", is_taken, error)
}

fn proxy_failed(error: dirigent_proxy::StartError) -> Fail {
    let is_taken = matches!(error, dirigent_proxy::StartError::Listen(ListenError::Taken { .. }));
    failed("the data plane", is_taken, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_directory_has_uids_of_its_own() {
        let (one, two) =
            (uid_base(Path::new("/nonexistent/1")), uid_base(Path::new("/nonexistent/2")));
        assert_eq!(one, uid_base(Path::new("/nonexistent/1")));
        assert!(one.abs_diff(two) >= UIDS_EACH);
        assert!(one >= FIRST_UID && one.checked_add(UIDS_EACH).is_some_and(|end| end < 1 << 31));
    }
}
