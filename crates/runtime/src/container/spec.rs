//! What an OCI runtime is told of a sandbox: what containerd's own default says, with less where a function
//! has no use for it.
//!
//! Capabilities: those of containerd's default without `MKNOD`, `NET_RAW`, `SETFCAP` and `AUDIT_WRITE`,
//! and only for uid 0. System calls: `seccomp.json`, which is containerd's default profile without
//! `io_uring` and `ptrace`. Of the host nothing is mounted but two files that say how names are
//! resolved.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use dirigent_core::worker::CreateSandbox;
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::{
    image::config::{Program, User},
    network::Network,
};
use crate::{keeper::launch::PATH, process::contract};

/// What containerd calls a specification's form.
pub(super) const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Open files of a sandbox: what services need, far from what a host has.
const OPEN_FILES: u64 = 65_536;

const CAPABILITIES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
];

/// What a specification is made from.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) create: &'a CreateSandbox,
    pub(super) program: &'a Program,
    /// Its place in the control groups.
    pub(super) group: String,
    pub(super) network: &'a Network,
    /// Files of this machine, by where they are in the sandbox.
    pub(super) names: Vec<(&'static str, PathBuf)>,
    pub(super) processes: u32,
    pub(super) read_only: bool,
}

impl Plan<'_> {
    /// Why it cannot be run, if that is known beforehand.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.command().is_empty() {
            return Err("the image says nothing of what to run: write `sandbox.command`".to_owned());
        }
        Ok(())
    }

    fn command(&self) -> &[String] {
        let own = &self.create.order.spec.sandbox.command;
        if own.is_empty() { &self.program.command } else { own }
    }

    /// The specification, as JSON.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.json().to_string().into_bytes()
    }

    fn json(&self) -> Value {
        let User { uid, gid, groups } = &self.program.user;
        // More than we may have ourselves containerd may hardly give.
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
        let privileged: &[&str] = if *uid == 0 { &CAPABILITIES } else { &[] };
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": uid, "gid": gid, "additionalGids": groups },
                "args": self.command(),
                "env": self.environment(),
                "cwd": self.program.directory,
                "capabilities": {
                    "bounding": CAPABILITIES,
                    "effective": privileged,
                    "permitted": privileged,
                },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": files, "soft": files }],
                "noNewPrivileges": true,
            },
            "root": { "path": "rootfs", "readonly": self.read_only },
            "hostname": self.create.order.name.name(),
            "mounts": self.mounts(),
            "linux": {
                "resources": self.resources(),
                "cgroupsPath": self.group,
                "namespaces": self.namespaces(),
                "seccomp": *SECCOMP,
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys",
                    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                    "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
                ],
            },
        })
    }

    fn namespaces(&self) -> Vec<Value> {
        let mut all: Vec<Value> =
            ["pid", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
        if let Some(lent) = &self.network.lent {
            all.push(json!({ "type": "network", "path": lent.namespace }));
        }
        all
    }

    fn resources(&self) -> Value {
        let resources = &self.create.order.spec.resources;
        let mut memory = json!({ "limit": resources.memory.0 });
        if swap_is_counted() {
            // The same as the limit: none.
            memory["swap"] = json!(resources.memory.0);
        }
        json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "memory": memory,
            "cpu": { "shares": crate::keeper::cgroup::shares(resources.cpu) },
            "pids": { "limit": self.processes },
        })
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |destination: &str, kind: &str, source: &str, options: &str| {
            let options: Vec<&str> = options.split(',').collect();
            json!({
                "destination": destination, "type": kind, "source": source, "options": options,
            })
        };
        let mut mounts = vec![
            mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=64k"),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
            ),
            mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
            mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
            mount("/run", "tmpfs", "tmpfs", "nosuid,nodev,strictatime,mode=755,size=65536k"),
        ];
        if self.read_only || !self.program.has_tmp {
            // It counts as the sandbox's memory.
            let half = self.create.order.spec.resources.memory.0 / 2;
            let options = format!("nosuid,nodev,mode=1777,size={half}");
            mounts.push(mount("/tmp", "tmpfs", "tmpfs", &options));
        }
        for (name, file) in &self.names {
            let file = file.to_string_lossy();
            mounts.push(mount(name, "bind", &file, "bind,ro,nosuid,nodev,noexec"));
        }
        mounts
    }

    /// The image's, then the user's, then the contract's.
    fn environment(&self) -> Vec<String> {
        let order = &self.create.order;
        let mut all: BTreeMap<&str, String> = BTreeMap::new();
        all.insert("PATH", PATH.to_owned());
        all.insert("HOSTNAME", order.name.name().to_owned());
        for (name, value) in self.program.env.iter().chain(&order.spec.env) {
            all.insert(name, value.clone());
        }
        all.extend(contract(self.create, self.network.told()));
        all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// Whether the kernel has a limit for memory and swap together; setting one that it does not have
/// would fail the start.
fn swap_is_counted() -> bool {
    Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// The profile, for this machine's processors.
static SECCOMP: LazyLock<Value> = LazyLock::new(|| {
    let mut profile: Value =
        serde_json::from_str(include_str!("seccomp.json")).expect("it is checked in");
    profile["architectures"] = if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    };
    profile
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_lets_through_no_more_than_containerds() {
        let profile = &*SECCOMP;
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let text = profile.to_string();
        for refused in ["mount", "setns", "unshare", "bpf", "ptrace", "keyctl", "io_uring_setup"] {
            assert!(!text.contains(&format!("\"{refused}\"")), "{refused}");
        }
        assert!(text.contains("\"execve\""));
    }
}
