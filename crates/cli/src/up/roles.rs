//! The roles of one process and how they are joined.

use std::{path::Path, sync::Arc};

use dirigent_core::{RuntimeKind, name::HostRules};
use dirigent_runtime::{
    Event, Runtime,
    fake::{FakeConfig, FakeRuntime},
};
use dirigent_service::{Tasks, listen::ListenError};
use tokio::sync::mpsc;

use super::{FUNCTIONS_FILE, config::UpConfig, forget};
use crate::fail::{Fail, Kind, Result};

/// Events of a runtime that its worker has not taken yet; full makes the runtime wait.
const EVENTS: usize = 1024;

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Roles {
    pub(super) control: dirigent_control::Running,
    pub(super) proxy: dirigent_proxy::Running,
    pub(super) worker: dirigent_worker::Running,
}

impl Roles {
    pub(super) async fn start(config: &UpConfig, dir: &Path, tasks: &Tasks) -> Result<Self> {
        let control = dirigent_control::start(control_config(config, dir), tasks)
            .await
            .map_err(failed("the control plane"))?;
        // Left by a life that was killed, it would be taken for this one's.
        forget(&dir.join(FUNCTIONS_FILE));
        let data_plane = dirigent_proxy::Config {
            hosts: HostRules::new(&config.domains, &[]),
            state: Some(dir.join("data-plane")),
            ..dirigent_proxy::Config::new(config.listen)
        };
        let proxy = dirigent_proxy::start(
            data_plane,
            control.data_planes.clone(),
            control.data_planes_bulk.clone(),
            tasks,
        )
        .await
        .map_err(failed("the data plane"))?;
        control.set_functions(proxy.address);
        let worker = dirigent_worker::start(
            worker_config(config, dir),
            vec![runtime(config)?],
            control.workers.clone(),
            control.workers_bulk.clone(),
            tasks,
        )
        .await
        .map_err(failed("the worker"))?;
        Ok(Self { control, proxy, worker })
    }
}

fn control_config(config: &UpConfig, dir: &Path) -> dirigent_control::Config {
    dirigent_control::Config {
        listen: config.api,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        compat: config.compat.enabled.then(|| config.compat.images.clone()),
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
            ..dirigent_worker::Settings::default()
        },
    }
}

/// The runtime asked for, with the channel on which it reports.
fn runtime(config: &UpConfig) -> Result<(Arc<dyn Runtime>, mpsc::Receiver<Event>)> {
    let (sender, events) = mpsc::channel(EVENTS);
    let runtime: Arc<dyn Runtime> = match config.runtime {
        RuntimeKind::Fake => FakeRuntime::start(FakeConfig::default(), sender),
        kind => {
            return Err(Fail::config(format!("the {kind} runtime is not built in"))
                .hint("use --runtime fake"));
        }
    };
    Ok((runtime, events))
}

/// A role that does not start: somebody else has what it needs, or the machine does not do what
/// it must.
fn failed<E>(role: &'static str) -> impl Fn(E) -> Fail
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| {
        let error = anyhow::Error::from(error);
        let is_taken = error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(ListenError::Taken { .. }))
                || matches!(cause.downcast_ref(), Some(dirigent_service::LockError::Held { .. }))
        });
        let kind = if is_taken { Kind::Unavailable } else { Kind::Internal };
        Fail::new(kind, error).details([format!("while starting {role}")])
    }
}
