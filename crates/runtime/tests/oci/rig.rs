//! A container runtime with a containerd and a pool of networks, and what tests ask of them.
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use dirigent_core::{
    Address, Cause, Digest, RuntimeKind, SandboxId, StartFailure,
    worker::{ArtifactFailure, CreateSandbox},
};
use dirigent_runtime::{
    Event, Runtime as _,
    container::{ContainerConfig, ContainerRuntime, Tasks},
    process::{ProcessConfig, ProcessRuntime},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use crate::{
    common::{self, DEADLINE, create, next, with},
    daemon::{self, Daemon},
    images::{Image, Layer},
};

/// A runtime with a containerd, and the process runtime whose keeper lends networks, as a worker
/// has both.
pub(crate) struct Rig {
    // In this order: the runtime removes what it has while its containerd is there.
    pub(crate) runtime: Arc<ContainerRuntime>,
    pub(crate) processes: Arc<ProcessRuntime>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) daemon: Daemon,
    pub(crate) dir: tempfile::TempDir,
    /// Who runs sandboxes.
    tasks: Tasks,
}

/// Where there can be none that is said, and counted.
pub(crate) fn rig() -> Option<Rig> {
    rig_with(|_config| {})
}

pub(crate) fn rig_with(change: impl FnOnce(&mut ContainerConfig)) -> Option<Rig> {
    rig_of(Daemon::start, change)
}

/// By the keeper, and by containerd's tasks.
pub(crate) const WAYS: [Tasks; 2] = [Tasks::Keeper, Tasks::Containerd];

pub(crate) fn rig_by(tasks: Tasks) -> Option<Rig> {
    rig_with(|config| config.tasks = tasks)
}

/// With a small disk for containerd.
pub(crate) fn rig_on(disk: u64, change: impl FnOnce(&mut ContainerConfig)) -> Option<Rig> {
    rig_of(|| Daemon::start_on(Some(disk)), change)
}

fn rig_of(
    daemon: impl FnOnce() -> Daemon,
    change: impl FnOnce(&mut ContainerConfig),
) -> Option<Rig> {
    if let Some(why) = daemon::missing() {
        println!("skip: containers: {why}");
        return None;
    }
    let daemon = daemon();
    let dir = tempfile::tempdir().unwrap();
    let processes = keeper(dir.path(), |_config| {});
    let mut tasks = Tasks::Keeper;
    let change = |config: &mut ContainerConfig| {
        change(config);
        tasks = config.tasks;
    };
    let (runtime, events) = start(&daemon, dir.path(), &processes, change);
    assert_eq!(runtime.recover().unwrap(), []);
    Some(Rig { runtime, processes, events, daemon, dir, tasks })
}

/// Lends networks.
pub(crate) fn keeper(dir: &Path, change: impl FnOnce(&mut ProcessConfig)) -> Arc<ProcessRuntime> {
    let (unheard, _no_processes) = mpsc::channel(1);
    let mut config = ProcessConfig { parked: 0, spaces: 4, ..common::config(&dir.join("pool")) };
    change(&mut config);
    ProcessRuntime::start(config, unheard).unwrap()
}

pub(crate) fn start(
    daemon: &Daemon,
    dir: &Path,
    processes: &ProcessRuntime,
    change: impl FnOnce(&mut ContainerConfig),
) -> (Arc<ContainerRuntime>, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(1024);
    let mut config = ContainerConfig::new(&dir.join("oci"));
    config.socket = daemon.socket();
    config.spaces = Some(processes.spaces());
    // Tests count what there is.
    config.ahead = 0;
    config.keep.time = Duration::ZERO;
    change(&mut config);
    let runtime = ContainerRuntime::start(config, sender).unwrap();
    assert!(runtime.facts().best.is_some(), "{:?}", runtime.facts().missing);
    (runtime, events)
}

/// What the rest of a machine sees of sandboxes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    containers: usize,
    /// containerd's, and what the keeper holds.
    pub(crate) tasks: usize,
    active_snapshots: usize,
    pub(crate) shims: usize,
    groups: usize,
    pipes: usize,
    mounts: usize,
    pub(crate) networks: usize,
}

pub(crate) const NOTHING: Left = Left {
    containers: 0,
    tasks: 0,
    active_snapshots: 0,
    shims: 0,
    groups: 0,
    pipes: 0,
    mounts: 0,
    networks: 0,
};

impl Rig {
    pub(crate) fn take(&mut self, image: &Image) -> Digest {
        let path = self.dir.path().join("archive");
        let digest = image.docker_archive(&path);
        self.unpack(digest, path).unwrap();
        digest
    }

    pub(crate) fn unpack(&mut self, digest: Digest, path: PathBuf) -> Result<(), ArtifactFailure> {
        self.runtime.unpack(digest, path);
        match next(&mut self.events) {
            Event::Unpacked { digest: unpacked, result } if unpacked == digest => result,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn serve(&mut self, create: CreateSandbox) -> (SandboxId, u16) {
        let (sandbox, port) = (create.order.sandbox, create.port);
        self.runtime.create(create);
        let event = next(&mut self.events);
        assert_eq!(event, Event::Created { sandbox });
        let event = next(&mut self.events);
        let Event::Listening { sandbox: listens, address: Address::Tcp(at), .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!((listens, at.port()), (sandbox, port));
        common::listens_at(at);
        (sandbox, port)
    }

    pub(crate) fn gone(&mut self, sandbox: SandboxId) -> StartFailure {
        loop {
            match next(&mut self.events) {
                Event::Gone { sandbox: s, failure } if s == sandbox => return failure,
                Event::Created { .. } | Event::Listening { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn end(&mut self, sandbox: SandboxId) {
        self.runtime.destroy(sandbox, Duration::ZERO);
        assert_eq!(self.gone(sandbox).cause, Cause::Stopped);
    }

    /// Kills what waits or runs, as the kernel may.
    pub(crate) fn kill_all(&self) {
        let spaces = self.processes.spaces();
        for name in spaces.all_held() {
            let pid = spaces.held(&name).and_then(|first| Pid::from_raw(first.pid)).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        }
        for shim in self.daemon.shims() {
            kill_process(shim, Signal::KILL).unwrap();
        }
    }

    pub(crate) fn kill_keeper(&self) {
        let mark = self.dir.path().join("pool").display().to_string();
        let mut killed = 0;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains("--options") && line.contains(&mark) {
                let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
                let pid = pid.and_then(Pid::from_raw).unwrap();
                killed += u32::from(kill_process(pid, Signal::KILL).is_ok());
            }
        }
        assert!(killed > 0, "no keeper");
    }

    /// The worker's process is gone, and another one comes.
    pub(crate) fn restart(&mut self) {
        let tasks = self.tasks;
        self.restart_with(|config| config.tasks = tasks);
    }

    pub(crate) fn restart_with(&mut self, change: impl FnOnce(&mut ContainerConfig)) {
        self.runtime.detach();
        self.processes.detach();
        self.processes = keeper(self.dir.path(), |_config| {});
        (self.runtime, self.events) = start(&self.daemon, self.dir.path(), &self.processes, change);
    }

    pub(crate) fn left(&self) -> Left {
        let lines = |args: &[&str]| {
            let (fine, said) = self.daemon.ctr(args);
            assert!(fine, "{said}");
            said.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let mark = self.mark();
        let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let groups = groups.flat_map(|controller| {
            fs::read_dir(controller.path().join("dirigent-containers")).into_iter().flatten()
        });
        let groups = groups.flatten().filter(|g| g.file_name().to_string_lossy().contains(&mark));
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.daemon.pid())).unwrap();
        Left {
            containers: lines(&["containers", "list"]).len(),
            tasks: lines(&["tasks", "list"]).len() + self.processes.spaces().all_held().len(),
            active_snapshots: lines(&["snapshots", "list"])
                .iter()
                .filter(|line| line.contains("Active"))
                .count(),
            shims: self.daemon.shims().len(),
            groups: groups.count(),
            pipes: fs::read_dir(self.dir.path().join("oci/sandboxes")).map_or(0, Iterator::count),
            mounts: mounts
                .lines()
                .filter(|line| ["/state/", "/oci/sandboxes/"].iter().any(|m| line.contains(m)))
                .count(),
            networks: self.processes.spaces().lent().len(),
        }
    }

    /// What our names in containerd begin with, read from a lease.
    pub(crate) fn mark(&self) -> String {
        let (_, said) = self.daemon.ctr(&["leases", "list"]);
        let lease = said.lines().nth(1).unwrap_or_default();
        lease.split("-image-").next().unwrap_or_default().to_owned()
    }

    pub(crate) fn nothing_left(&self) {
        let over = Instant::now() + DEADLINE;
        while self.left() != NOTHING && Instant::now() < over {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        assert_eq!(self.left(), NOTHING);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.runtime.close();
        self.processes.close();
    }
}

pub(crate) fn order(image: Digest) -> CreateSandbox {
    with(create(&[], None), |spec| {
        spec.sandbox.runtime = RuntimeKind::Container;
        spec.sandbox.image = Some("docker-archive:test.tar".to_owned());
        spec.artifact = Some(image);
    })
}

pub(crate) fn shell(image: Digest, script: &str) -> CreateSandbox {
    with(order(image), |spec| {
        spec.sandbox.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    })
}

/// A static server, and a shell.
pub(crate) fn busybox() -> Image {
    let mut layer = Layer::new();
    layer.busybox().directory("tmp", 0o1777).file("www/index.html", 0o644, b"from an image\n");
    layer.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n");
    Image::new(layer, serde_json::json!({ "Cmd": ["/bin/sh", "-c", SERVE] }))
}

pub(crate) const SERVE: &str = "exec httpd -f -h /www -p $HOST:$PORT";

pub(crate) fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(common::place(port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
}

/// What a command says in a sandbox of its own, and its status.
pub(crate) fn run(rig: &mut Rig, create: CreateSandbox) -> (Cause, String) {
    let sandbox = create.order.sandbox;
    rig.runtime.create(create);
    let failure = rig.gone(sandbox);
    (failure.cause, failure.log_tail.join("\n"))
}
