//! The roles as the configuration describes them, for `up` and for those that run apart.

pub(crate) mod etcd;
pub(crate) mod oci;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    num::NonZero,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use dirigent_core::{RuntimeKind, name::HostRules};
use dirigent_runtime::{
    fake::{FakeConfig, FakeRuntime},
    process::{ProcessConfig, ProcessRuntime},
};
use dirigent_service::{LockError, listen::ListenError};
use dirigent_worker::{Durability, Meter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use self::oci::Reports;
use crate::{
    config::Config,
    fail::{Fail, Kind, OrFail as _, Result},
};

/// Events of a runtime that its worker has not taken yet; full makes the runtime wait.
const EVENTS: usize = 1024;

/// What a function that ignores SIGTERM may delay the end by.
pub(crate) const STOP_SANDBOXES: Duration = Duration::from_secs(12);
/// What the tasks have to do at the end is short.
pub(crate) const STOP_TASKS: Duration = Duration::from_secs(5);

/// The threads of a process with roles.
pub(crate) fn threads() -> io::Result<tokio::runtime::Runtime> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        // Connections have a thread per core beside these. What the other roles do goes through
        // several tasks, each short: between threads that sleep it would take longer.
        .worker_threads((cores / 2).max(1))
        // For files; more of them would only compete.
        .max_blocking_threads(4 * cores + 8)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
}

/// Connections and sandboxes cost descriptors; the soft limit is often 1024.
pub(crate) fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// What becomes of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It ends, and whatever it still has is killed.
    Close,
    /// It goes on with its sandboxes; the next `up` adopts them.
    Detach,
}

/// Ends what is no task of a worker: the runtimes' threads and the keeper.
pub(crate) async fn leave(kept: Kept, how: End) {
    let left = tokio::task::spawn_blocking(move || {
        // First: it gives back what the other's keeper has lent.
        #[cfg(feature = "containerd")]
        if let Some(oci) = &kept.oci {
            match how {
                End::Close => oci.close(),
                End::Detach => oci.detach(),
            }
        }
        if let Some(process) = &kept.process {
            match how {
                End::Close => process.close(),
                End::Detach => process.detach(),
            }
        }
    });
    match tokio::time::timeout(STOP_TASKS, left).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the runtime did not end well"),
        // A process that cannot be killed, as on a dead file system, or a keeper that was stopped.
        Err(_elapsed) => tracing::error!(
            "the keeper did not end in {STOP_TASKS:?}; the next start sees to what is left"
        ),
    }
}

/// A control plane as configured.
pub(crate) fn control_plane(config: &Config, dir: &Path) -> dirigent_control::Config {
    dirigent_control::Config {
        listen: config.api,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        compat: config.compat.enabled.then(|| config.compat.images.clone()),
        record: config.record.clone(),
        certificate_life: config.certificate_life,
        ..dirigent_control::Config::new(dir.to_owned())
    }
}

/// A data plane as configured.
pub(crate) fn data_plane(config: &Config, dir: &Path) -> dirigent_proxy::Config {
    dirigent_proxy::Config {
        hosts: HostRules::new(&config.domains, &config.gateways),
        trusted_proxies: config.trusted_proxies.iter().map(|trusted| trusted.0).collect(),
        limits: config.limits.limits(),
        state: Some(dir.join("data-plane")),
        ..dirigent_proxy::Config::new(config.listen)
    }
}

/// A worker as configured.
pub(crate) fn worker(config: &Config, dir: &Path) -> dirigent_worker::Config {
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
        durability: Durability::Host,
        ingress: None,
        meter: Meter::default(),
    }
}

/// The runtimes of a worker with the channels on which they report.
pub(crate) struct Started {
    pub(crate) runtimes: Vec<Reports>,
    pub(crate) kept: Kept,
}

/// What is needed to end them.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    process: Option<Arc<ProcessRuntime>>,
    oci: oci::Kept,
}

/// The runtimes of a worker; sandboxes of processes do not reach the `protected` ports.
pub(crate) async fn runtimes(config: &Config, dir: &Path, protected: Vec<u16>) -> Result<Started> {
    if config.runtime == RuntimeKind::Fake {
        return Ok(fake(config.address));
    }
    let (sender, events) = mpsc::channel(EVENTS);
    let program = std::env::current_exe().or_fail(Kind::Internal, || "where is this program")?;
    let command = vec![program.display().to_string(), "keeper".to_owned()];
    let mut process = ProcessConfig::new(&dir.join("worker"), command);
    process.min_isolation = config.min_isolation.unwrap_or(process.min_isolation);
    process.address = config.address;
    process.admitted = config.admit.iter().map(|admitted| admitted.0).collect();
    process.protected_ports = protected;
    process.range = config.sandbox_range;
    process.forbidden = control_planes(config);
    process.ports = (config.first_port, config.last_port);
    process.uid_base = uid_base(dir);
    // It looks around for what an earlier life left, which takes system calls that block.
    let started = tokio::task::spawn_blocking(move || ProcessRuntime::start(process, sender));
    let started = started.await.or_fail(Kind::Internal, || "the runtime panicked")?;
    let process = started.or_fail(Kind::Internal, || "the process runtime does not start")?;
    let mut kept = Kept { process: Some(Arc::clone(&process)), ..Kept::default() };
    match oci::start(config, dir, Some(process.spaces())).await {
        Ok((reports, oci)) => {
            kept.oci = oci;
            Ok(Started { runtimes: vec![(process, events), reports], kept })
        }
        Err(error) => {
            leave(kept, End::Detach).await;
            Err(error)
        }
    }
}

/// Hosts of control planes that are not this one.
fn control_planes(config: &Config) -> Vec<Ipv4Addr> {
    let hosts = config.control.iter().filter_map(|address| match address.ip() {
        IpAddr::V4(host) => Some(host),
        IpAddr::V6(_) => None,
    });
    hosts.filter(|host| !host.is_loopback() && !host.is_unspecified()).collect()
}

/// A runtime whose sandboxes are not real, and listen there.
pub(crate) fn fake(address: Ipv4Addr) -> Started {
    let (sender, events) = mpsc::channel(EVENTS);
    let fake = FakeConfig { address, ..FakeConfig::default() };
    let runtime = FakeRuntime::start(fake, sender);
    Started { runtimes: vec![(runtime, events)], kept: Kept::default() }
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
    FIRST_UID + u32::try_from(mark(dir) % UID_RANGES).unwrap_or_default() * UIDS_EACH
}

/// A number that goes with a state directory: the same again in each life and each build, unlike the
/// standard library's hashes, and hardly another one's.
pub(crate) fn mark(dir: &Path) -> u64 {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_error| dir.to_owned());
    // FNV-1a.
    dir.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3_u64)
    })
}

/// What a member is called if nothing is said: by default another state directory has another name,
/// so that several on one machine are told apart.
pub(crate) fn own_name(dir: &Path) -> String {
    let uname = rustix::system::uname();
    format!("{}-{:04x}", uname.nodename().to_string_lossy(), mark(dir) & 0xffff)
}

/// A role that does not start: somebody else has what it needs, or the machine does not do what
/// it must.
fn failed(role: &'static str, is_taken: bool, error: impl Into<anyhow::Error>) -> Fail {
    let kind = if is_taken { Kind::Unavailable } else { Kind::Internal };
    Fail::new(kind, error).details([format!("while starting {role}")])
}

pub(crate) fn control_failed(error: dirigent_control::StartError) -> Fail {
    use dirigent_control::StartError;
    let is_taken = matches!(
        error,
        StartError::Lock(LockError::Held { .. }) | StartError::Listen(ListenError::Taken { .. })
    );
    if matches!(error, StartError::NotLoopback { .. } | StartError::Membership(_)) {
        return Fail::new(Kind::Config, error);
    }
    failed("the control plane", is_taken, error)
}

pub(crate) fn worker_failed(error: dirigent_worker::StartError) -> Fail {
    failed("the worker", false, error)
}

pub(crate) fn proxy_failed(error: dirigent_proxy::StartError) -> Fail {
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
