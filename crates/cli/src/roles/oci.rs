//! The container runtime, where this build has it and the configuration wants it.

use std::{path::Path, sync::Arc};

use dirigent_core::RuntimeKind;
use dirigent_runtime::{Event, Facts, Runtime, absent::AbsentRuntime, process::Spaces};
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
/// Networks of their own for sandboxes come from `spaces`.
pub(crate) async fn start(
    config: &Config,
    dir: &Path,
    spaces: Option<Spaces>,
) -> Result<(Reports, Kept)> {
    if !config.containerd.enabled {
        return Ok(absent(SWITCHED_OFF));
    }
    built(config, dir, spaces).await
}

fn absent(why: &str) -> (Reports, Kept) {
    let (sender, events) = mpsc::channel(EVENTS);
    let runtime = AbsentRuntime::new(RuntimeKind::Container, why.to_owned(), sender);
    ((runtime, events), Kept::default())
}

#[cfg(not(feature = "containerd"))]
#[expect(clippy::unused_async, reason = "a build with that waits for containerd")]
async fn built(_config: &Config, _dir: &Path, _spaces: Option<Spaces>) -> Result<(Reports, Kept)> {
    Ok(absent(NOT_BUILT))
}

#[cfg(feature = "containerd")]
async fn built(config: &Config, dir: &Path, spaces: Option<Spaces>) -> Result<(Reports, Kept)> {
    use dirigent_runtime::container::{self, ContainerConfig, ContainerRuntime, Keep, Registry};

    use crate::{
        config::{Tasks, Writes},
        fail::{Kind, OrFail as _},
    };

    let crate::config::ContainerdConfig {
        enabled: _,
        socket,
        namespace,
        snapshotter,
        handler,
        program,
        ahead,
        keep_images,
        disk_full,
        disk_freed,
        writes,
        tasks,
        registries,
    } = config.containerd.clone();
    let registries = registries.into_iter().map(|(name, registry)| {
        let crate::config::RegistryConfig { user, password_file, ca, plain_http } = registry;
        (name, Registry { user, password_file, ca, plain_http })
    });
    let (sender, events) = mpsc::channel(EVENTS);
    let usual = ContainerConfig::new(&dir.join("worker/oci"));
    let own = ContainerConfig {
        socket,
        namespace,
        snapshotter,
        handler,
        program,
        ahead,
        writes: match writes {
            Writes::Memory => container::Writes::Memory,
            Writes::Disk => container::Writes::Disk,
        },
        tasks: match tasks {
            Tasks::Keeper => container::Tasks::Keeper,
            Tasks::Containerd => container::Tasks::Containerd,
        },
        keep: Keep { time: keep_images, full: disk_full, freed: disk_freed },
        registries: registries.collect(),
        address: config.address,
        spaces,
        min_isolation: config.min_isolation.unwrap_or(usual.min_isolation),
        ..usual
    };
    // It may wait for a containerd that is starting too.
    let started = tokio::task::spawn_blocking(move || ContainerRuntime::start(own, sender));
    let started = started.await.or_fail(Kind::Internal, || "the container runtime panicked")?;
    let runtime = started.or_fail(Kind::Internal, || "the container runtime does not start")?;
    Ok(((runtime.clone(), events), Some(runtime)))
}

/// What works of it on this machine, found out by trying; for `doctor`.
#[cfg(not(feature = "containerd"))]
pub(crate) fn tried(_config: &Config) -> std::io::Result<Facts> {
    let missing = vec![NOT_BUILT.to_owned()];
    Ok(Facts { kind: RuntimeKind::Container, best: None, usual: None, missing })
}

/// What works of it on this machine, found out by trying; for `doctor`.
#[cfg(feature = "containerd")]
pub(crate) fn tried(config: &Config) -> std::io::Result<Facts> {
    use dirigent_runtime::container::{ContainerConfig, ContainerRuntime};

    let directory = tempfile::tempdir()?;
    let (events, _nothing_comes) = mpsc::channel(1);
    let crate::config::ContainerdConfig { socket, namespace, .. } = config.containerd.clone();
    let own = ContainerConfig { socket, namespace, ..ContainerConfig::new(directory.path()) };
    let runtime = ContainerRuntime::start(own, events)?;
    let facts = runtime.facts();
    runtime.detach();
    Ok(facts)
}

#[cfg(feature = "containerd")]
#[cfg(test)]
mod tests {
    use dirigent_core::Isolation;

    use super::*;

    #[tokio::test]
    async fn what_a_worker_demands_images_must_be_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        // Whether or not there is a containerd.
        config.containerd.socket = dir.path().join("nobody.sock");
        for demanded in [Isolation::Basic, Isolation::Strict] {
            config.min_isolation = Some(demanded);
            let ((runtime, _events), kept) = start(&config, dir.path(), None).await.unwrap();
            let facts = runtime.facts();
            assert_eq!((facts.best, facts.usual), (None, None));
            let why = facts.missing.join("; ");
            assert!(why.starts_with(&format!("{}: ", facts.kind)), "{why}");
            assert!(why.contains("min_isolation"), "{why}");
            assert!(why.contains(&format!("`{demanded}`")), "{why}");
            kept.unwrap().detach();
        }
    }
}
