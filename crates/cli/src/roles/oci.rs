//! The container runtime, where this build has it and the configuration wants it.

use std::{path::Path, sync::Arc};

use dirigent_core::RuntimeKind;
use dirigent_runtime::{Event, Runtime, absent::AbsentRuntime};
use tokio::sync::mpsc;

use super::EVENTS;
use crate::{config::Config, fail::Result};

/// A runtime and the channel on which it reports.
pub(crate) type Reports = (Arc<dyn Runtime>, mpsc::Receiver<Event>);

/// What a build without it says, with what to do.
#[cfg(not(feature = "containerd"))]
const NOT_BUILT: &str = "container: this build cannot run OCI images: build one with `cargo build \
                         --release --features containerd`";

/// What an operator who switched it off finds.
const SWITCHED_OFF: &str = "container: this runtime is switched off (`containerd.enabled`)";

/// What it needs to be ended.
#[cfg(feature = "containerd")]
pub(crate) type Kept = Option<Arc<dirigent_runtime::container::ContainerRuntime>>;
/// What it needs to be ended: nothing.
#[cfg(not(feature = "containerd"))]
pub(crate) type Kept = ();

/// The runtime, be it one that only says why there is none.
pub(crate) async fn start(config: &Config, dir: &Path) -> Result<(Reports, Kept)> {
    if config.containerd.enabled { built(config, dir).await } else { Ok(absent(SWITCHED_OFF)) }
}

fn absent(why: &str) -> (Reports, Kept) {
    let (sender, events) = mpsc::channel(EVENTS);
    let runtime = AbsentRuntime::new(RuntimeKind::Container, why.to_owned(), sender);
    ((runtime, events), Kept::default())
}

#[cfg(not(feature = "containerd"))]
#[expect(clippy::unused_async, reason = "a build with that waits for containerd")]
async fn built(_config: &Config, _dir: &Path) -> Result<(Reports, Kept)> {
    Ok(absent(NOT_BUILT))
}

#[cfg(feature = "containerd")]
async fn built(config: &Config, dir: &Path) -> Result<(Reports, Kept)> {
    use dirigent_runtime::container::{ContainerConfig, ContainerRuntime, Registry};

    use crate::fail::{Kind, OrFail as _};

    let crate::config::ContainerdConfig {
        enabled: _,
        socket,
        namespace,
        snapshotter,
        handler,
        program,
        registries,
    } = config.containerd.clone();
    let registries = registries.into_iter().map(|(name, registry)| {
        let crate::config::RegistryConfig { user, password_file, ca, plain_http } = registry;
        (name, Registry { user, password_file, ca, plain_http })
    });
    let (sender, events) = mpsc::channel(EVENTS);
    let own = ContainerConfig {
        socket,
        namespace,
        snapshotter,
        handler,
        program,
        registries: registries.collect(),
        address: config.address,
        ..ContainerConfig::new(&dir.join("worker/oci"))
    };
    // It may wait for a containerd that is starting too.
    let started = tokio::task::spawn_blocking(move || ContainerRuntime::start(own, sender));
    let started = started.await.or_fail(Kind::Internal, || "the container runtime panicked")?;
    let runtime = started.or_fail(Kind::Internal, || "the container runtime does not start")?;
    Ok(((runtime.clone(), events), Some(runtime)))
}

/// What works of it on this machine, found out by trying; for `doctor`.
#[cfg(not(feature = "containerd"))]
pub(crate) fn tried(_config: &Config) -> std::io::Result<Vec<String>> {
    Ok(vec![NOT_BUILT.to_owned()])
}

/// What does not work of it on this machine, found out by trying; for `doctor`.
#[cfg(feature = "containerd")]
pub(crate) fn tried(config: &Config) -> std::io::Result<Vec<String>> {
    use dirigent_runtime::container::{ContainerConfig, ContainerRuntime};

    let directory = tempfile::tempdir()?;
    let (events, _nothing_comes) = mpsc::channel(1);
    let crate::config::ContainerdConfig { socket, namespace, .. } = config.containerd.clone();
    let own = ContainerConfig { socket, namespace, ..ContainerConfig::new(directory.path()) };
    let runtime = ContainerRuntime::start(own, events)?;
    let missing = runtime.facts().missing;
    runtime.detach();
    Ok(missing)
}
