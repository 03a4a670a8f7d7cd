//! A containerd of the tests' own, on directories and a socket in a temporary directory.
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A daemon answers within a second; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    /// The bytes of a disk of its own.
    disk: Option<u64>,
    child: Child,
}

/// Why there can be none on this machine.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("containerd is for root".to_owned());
    }
    for (program, package) in
        [("containerd", "containerd"), ("runc", "runc"), ("busybox", "busybox-static")]
    {
        if !on_path(program) {
            return Some(format!("no `{program}`: apt-get install {package}"));
        }
    }
    None
}

pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_on(None)
    }

    /// With a disk of its own of so many bytes, if one is wanted, in memory.
    pub(crate) fn start_on(disk: Option<u64>) -> Self {
        // Not below a deep temporary directory: sockets have short names.
        let directory = tempfile::Builder::new().prefix("dct").tempdir_in("/tmp").unwrap();
        let child = spawn(directory.path(), disk);
        let daemon = Self { directory, disk, child };
        daemon.await_answer();
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its disk, as others see it.
    pub(crate) fn disk(&self) -> PathBuf {
        let path = self.directory.path().strip_prefix("/").unwrap();
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(path).join("root")
    }

    fn await_answer(&self) {
        let over = Instant::now() + PATIENCE;
        while !self.ctr(&["version"]).0 {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < over, "containerd does not answer: {log}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Its own command line; whether it went well, and what it said.
    pub(crate) fn ctr(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "dirigent"]).args(args);
        let output = command.output().expect("ctr comes with containerd");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// SIGKILL, as the kernel does to whom it finds too large.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Another one in the same place.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.directory.path(), self.disk);
        self.await_answer();
    }

    /// Processes that it started and that are told our socket: shims.
    pub(crate) fn shims(&self) -> Vec<Pid> {
        let socket = self.socket().display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| {
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).into_owned();
                let is_shim = line.contains("containerd-shim") && line.contains(&socket);
                is_shim.then(|| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))?
            })
            .collect()
    }
}

fn spawn(directory: &Path, disk: Option<u64>) -> Child {
    let shown = directory.display();
    let config = format!(
        "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{shown}/s\"\n[ttrpc]\naddress = \"{shown}/s.ttrpc\"\n"
    );
    fs::write(directory.join("config.toml"), config).unwrap();
    let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
    // In a mount namespace of its own: what a killed one leaves mounted goes with it. Without the
    // second version's tree beside the first one's: crun refuses to work with both.
    let script = "umount /sys/fs/cgroup/unified 2>/dev/null; \
                  if [ -n \"$2\" ]; then mkdir -p \"$1\"; mount -t tmpfs -o size=\"$2\" disk \"$1\"; fi; \
                  exec containerd --config \"$0\"";
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .args([directory.join("config.toml"), directory.join("root")])
        .args(disk.map(|bytes| bytes.to_string()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("unshare is there")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Of a test that failed, sandboxes may be left: with their shims nobody looks after them.
        for shim in self.shims() {
            kill_process(shim, Signal::KILL).unwrap_or_default();
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).unwrap_or_default();
            // One that a test has stopped hears nothing.
            kill_process(pid, Signal::CONT).unwrap_or_default();
        }
        match self.child.wait() {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}"),
        }
    }
}
