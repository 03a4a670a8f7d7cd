//! What this machine offers: from the settings, and where they are silent from the machine.

use std::{fs, num::NonZero, path::PathBuf, thread};

use dirigent_core::{Bytes, MilliCpu, frame::Capacity};
use dirigent_runtime::Facts;
use serde::{Deserialize, Serialize};

use crate::load;

/// What a worker may use, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Memory for sandboxes. Default: 80 % of what this process may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processors for sandboxes. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<MilliCpu>,
    /// By how much processors may be reserved over: 10 is ten times.
    pub cpu_overcommit: u32,
    /// Sandboxes at most.
    pub sandboxes: u32,
    /// Starts at once. Default: 4 for each core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts: Option<u32>,
    /// The first port for sandboxes; best outside the ephemeral range.
    pub first_port: u16,
    /// The last port for sandboxes.
    pub last_port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: None,
            cpu: None,
            cpu_overcommit: 10,
            sandboxes: 1000,
            starts: None,
            first_port: 20000,
            last_port: 29999,
        }
    }
}

/// What a worker may use cannot be found out, or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// A setting makes no sense.
    #[error("worker.{key}: {problem}")]
    Setting {
        /// Which.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The machine's memory is not known.
    #[error("the size of this machine's memory is not known; set worker.memory")]
    Memory,
}

/// What is offered to the control plane.
pub(crate) fn offered(settings: &Settings, facts: &[Facts]) -> Result<Capacity, CapacityError> {
    let Settings { first_port, last_port, .. } = *settings;
    if first_port < 1024 || last_port < first_port {
        let problem = format!("{first_port} to {last_port} is no range of unprivileged ports");
        return Err(CapacityError::Setting { key: "first_port", problem });
    }
    for (key, value) in [
        ("cpu_overcommit", settings.cpu_overcommit),
        ("sandboxes", settings.sandboxes),
        ("starts", settings.starts.unwrap_or(1)),
    ] {
        if value == 0 {
            return Err(CapacityError::Setting { key, problem: "must be at least 1".to_owned() });
        }
    }
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    let memory = match settings.memory {
        Some(memory) => memory,
        None => Bytes(usable_memory().ok_or(CapacityError::Memory)? / 10 * 8),
    };
    Ok(Capacity {
        memory,
        cpu: settings.cpu.unwrap_or_else(|| MilliCpu(cores.saturating_mul(1000))),
        cpu_overcommit: settings.cpu_overcommit,
        sandboxes: settings.sandboxes,
        starts: settings.starts.unwrap_or_else(|| cores.saturating_mul(4)),
        runtimes: facts.iter().filter_map(|f| Some((f.kind, f.best?))).collect(),
        missing: facts.iter().flat_map(|f| f.missing.iter().cloned()).collect(),
    })
}

/// The machine's memory, or the limit of the cgroup that we are in, if that is lower.
fn usable_memory() -> Option<u64> {
    let total = load::memory()?.0;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups);
    let limits =
        limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    Some(limits.fold(total, u64::min))
}

/// The files that may limit us, those of every cgroup above ours included: in v2 `memory.max`, in
/// v1 `memory.limit_in_bytes`.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut group = PathBuf::from(root);
        files.push(group.join(file));
        for name in path.split('/').filter(|name| !name.is_empty() && *name != "..") {
            group.push(name);
            files.push(group.join(file));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use dirigent_core::{Isolation, RuntimeKind};

    use super::*;

    #[test]
    fn what_is_not_set_comes_from_the_machine() {
        let plain = Some(Isolation::Plain);
        let works =
            Facts { kind: RuntimeKind::Fake, best: plain, usual: plain, missing: Vec::new() };
        let why = vec!["not here".to_owned()];
        let fails =
            Facts { kind: RuntimeKind::Process, best: None, usual: None, missing: why.clone() };
        let capacity = offered(&Settings::default(), &[works, fails]).unwrap();
        assert!(capacity.memory > Bytes::mib(64));
        assert!(capacity.cpu >= MilliCpu(1000));
        assert_eq!(capacity.starts, capacity.cpu.0 / 1000 * 4);
        assert_eq!(capacity.runtimes, [(RuntimeKind::Fake, Isolation::Plain)]);
        assert_eq!(capacity.missing, why);
    }

    #[test]
    fn settings_without_sense_are_refused_by_name() {
        for (settings, key) in [
            (Settings { first_port: 80, ..Settings::default() }, "first_port"),
            (Settings { last_port: 19999, ..Settings::default() }, "first_port"),
            (Settings { sandboxes: 0, ..Settings::default() }, "sandboxes"),
            (Settings { starts: Some(0), ..Settings::default() }, "starts"),
        ] {
            let error = offered(&settings, &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn limits_are_looked_for_in_both_versions_of_cgroups() {
        let files = limit_files("4:memory:/a/b\n0::/x\n1:cpu:/c\n");
        let files: Vec<_> = files.iter().map(|f| f.to_str().unwrap()).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/x/memory.max",
            ]
        );
    }
}
