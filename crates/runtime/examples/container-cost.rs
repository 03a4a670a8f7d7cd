//! What a start from an image costs: bare `runc run` and `crun run` of the same bundle on a prepared
//! root, the container runtime with both, by the keeper and by containerd's tasks, and `ctr run`, in turns. As root, with a containerd of its own.
//!
//! `cargo run --release -p dirigent-runtime --features containerd --example container-cost [ROUNDS]`
//! prints milliseconds to the first answer. `rate [SECONDS [PARALLEL]]` creates, calls and deletes as
//! fast as it can; in a control group of its own it says what that costs. `leave [COUNT]` does that so often and counts what is left on the machine.

#[expect(clippy::unwrap_used, reason = "it is made for tests")]
#[path = "../tests/oci/daemon.rs"]
mod daemon;
#[expect(clippy::unwrap_used, reason = "it is made for tests")]
#[path = "../tests/oci/images.rs"]
mod images;

use std::{
    collections::BTreeMap,
    env,
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use daemon::Daemon;
use dirigent_core::{
    Address, Bytes, Digest, Epoch, FunctionId, FunctionName, MilliCpu, Resources, RevisionId,
    RuntimeKind, SandboxId, SandboxSpec, Spec, frame::StartSandbox, worker::CreateSandbox,
};
use dirigent_runtime::{
    Event, Runtime as _,
    container::{ContainerConfig, ContainerRuntime, Tasks},
    process::{ProcessConfig, ProcessRuntime},
};
use images::{Image, Layer};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Set where the second version of control groups is not beside the first: crun does not work there.
const ALONE: &str = "DIRIGENT_CONTAINER_COST";

fn main() -> Result<ExitCode> {
    let mut args = env::args().skip(1).peekable();
    if args.next_if(|word| word == "keeper").is_some() {
        return Ok(dirigent_runtime::keeper::main(args));
    }
    if let Some(why) = daemon::missing() {
        bail!("{why}");
    }
    if env::var_os(ALONE).is_none() {
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        return Err(command.arg(env::current_exe()?).args(args).env(ALONE, "1").exec().into());
    }
    let number = |text: Option<String>, default: u64| text.map_or(Ok(default), |t| t.parse());
    match args.peek().map(String::as_str) {
        Some("rate") => {
            args.next();
            let mut bench = Bench::new(false)?;
            let seconds = Duration::from_secs(number(args.next(), 20)?);
            bench.rates(seconds, usize::try_from(number(args.next(), 4)?)?)?;
        }
        Some("leave") => {
            args.next();
            let mut bench = Bench::new(true)?;
            bench.leaves(number(args.next(), 1_000)?)?;
        }
        _ => Bench::new(true)?.starts(number(args.next(), 50)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One of ours, with its OCI runtime.
struct Ours {
    name: &'static str,
    program: &'static str,
    tasks: Tasks,
    /// Tasks made ahead.
    ahead: usize,
    runtime: Arc<ContainerRuntime>,
    events: mpsc::Receiver<Event>,
}

struct Bench {
    // Runtimes first: they remove what they have while their containerd is there.
    ours: Vec<Ours>,
    processes: Arc<ProcessRuntime>,
    bundle: Value,
    image: Digest,
    daemon: Daemon,
    dir: tempfile::TempDir,
    next_port: u16,
}

fn out(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("nobody reads")
}

impl Bench {
    fn new(with_ahead: bool) -> Result<Self> {
        let daemon = Daemon::start();
        let dir = tempfile::tempdir()?;
        let exe = env::current_exe()?.to_string_lossy().into_owned();
        let keeper = ProcessConfig::new(&dir.path().join("worker"), vec![exe, "keeper".to_owned()]);
        let (unheard, _no_processes) = mpsc::channel(1);
        let processes = ProcessRuntime::start(ProcessConfig { parked: 0, ..keeper }, unheard)?;
        let mut bench = Self {
            ours: Vec::new(),
            processes,
            bundle: Value::Null,
            image: Digest([0; 32]),
            daemon,
            dir,
            next_port: 20_000,
        };
        for (name, program, tasks, ahead) in [
            ("runc", "runc", Tasks::Keeper, 0),
            ("crun", "crun", Tasks::Keeper, 0),
            ("runc by tasks", "runc", Tasks::Containerd, 0),
            ("crun by tasks", "crun", Tasks::Containerd, 0),
            ("runc ahead", "runc", Tasks::Keeper, 1),
            ("crun ahead", "crun", Tasks::Keeper, 1),
            ("runc ahead by tasks", "runc", Tasks::Containerd, 1),
            ("crun ahead by tasks", "crun", Tasks::Containerd, 1),
        ] {
            if !daemon::on_path(program) {
                out(&format!("no `{program}` here"))?;
            } else if ahead == 0 || with_ahead {
                let one = bench.runtime(name, program, (tasks, ahead))?;
                bench.ours.push(one);
            }
        }
        bench.root()?;
        bench.copy_bundle()?;
        Ok(bench)
    }

    fn runtime(
        &mut self,
        name: &'static str,
        program: &'static str,
        (tasks, ahead): (Tasks, usize),
    ) -> Result<Ours> {
        let (sender, mut events) = mpsc::channel(1024);
        let runtime = ContainerRuntime::start(
            ContainerConfig {
                socket: self.daemon.socket(),
                spaces: Some(self.processes.spaces()),
                program: Some(program.to_owned()),
                tasks,
                ahead,
                ..ContainerConfig::new(&self.dir.path().join(name))
            },
            sender,
        )?;
        runtime.recover()?;
        let path = self.dir.path().join("archive");
        self.image = image().docker_archive(&path);
        runtime.unpack(self.image, path);
        match events.blocking_recv() {
            Some(Event::Unpacked { result: Ok(()), .. }) => {}
            other => bail!("{other:?}"),
        }
        out(&format!("{name}: {:?}", runtime.facts().usual))?;
        Ok(Ours { name, program, tasks, ahead, runtime, events })
    }

    /// The image's files in a directory, for the bare ones.
    fn root(&self) -> Result<()> {
        let root = self.dir.path().join("root");
        for directory in ["bin", "www", "etc", "tmp", "proc", "sys", "dev", "run"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let busybox = which("busybox")?;
        fs::copy(busybox, root.join("bin/busybox"))?;
        fs::write(root.join("www/index.html"), "hello")?;
        for file in ["hosts", "resolv.conf"] {
            fs::write(root.join("etc").join(file), "")?;
        }
        Ok(())
    }

    /// What ours are run by, with a root and a network that need no preparation.
    fn copy_bundle(&mut self) -> Result<()> {
        let create = self.order(None)?;
        let sandbox = create.order.sandbox;
        let at = self.ours[0].start(create)?;
        let (_, list) = self.daemon.ctr(&["containers", "list", "--quiet"]);
        let id = list.trim();
        let (fine, info) = self.daemon.ctr(&["containers", "info", id]);
        ensure!(fine, "{info}");
        let info: Value = serde_json::from_str(&info)?;
        let mut spec = info["Spec"].clone();
        first_answer(at)?;
        self.ours[0].stop(sandbox)?;
        spec["root"]["path"] = json!(self.dir.path().join("root"));
        let namespaces = spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
        namespaces.retain(|one| one["type"] != "network");
        for mount in spec["mounts"].as_array_mut().context("mounts")? {
            if mount["type"] == "bind" {
                mount["source"] = mount["destination"].clone();
            }
        }
        self.bundle = spec;
        Ok(())
    }

    fn order(&mut self, port: Option<u16>) -> Result<CreateSandbox> {
        let port = port.unwrap_or_else(|| self.port());
        order(self.image, port)
    }

    fn port(&mut self) -> u16 {
        self.next_port = if self.next_port >= 29_999 { 20_000 } else { self.next_port + 1 };
        self.next_port
    }

    fn bare(&mut self, program: &'static str) -> Result<Bare> {
        let port = self.port();
        Bare::new(program, self.dir.path(), &self.bundle, (port, Root::Shared))
    }

    fn starts(&mut self, rounds: u64) -> Result<()> {
        let mut samples: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
        let mut add = |what: &str, took| samples.entry(what.to_owned()).or_default().push(took);
        let (mut round, mut waiting) = (0, 0);
        while round < rounds {
            for which in 0..self.ours.len() {
                let Ours { name, program, ahead, .. } = self.ours[which];
                if ahead == 0 && self.ours[which].tasks == Tasks::Keeper {
                    let bare = self.bare(program)?;
                    let start = Instant::now();
                    let running = bare.run()?;
                    first_answer(bare.at)?;
                    add(&format!("{program}: bare"), start.elapsed());
                    bare.end(running)?;
                } else if ahead > 0 {
                    self.await_tasks(waiting)?;
                }
                let create = self.order(None)?;
                let sandbox = create.order.sandbox;
                let start = Instant::now();
                let one = &mut self.ours[which];
                let at = one.start(create)?;
                let listening = start.elapsed();
                first_answer(at)?;
                let answered = start.elapsed();
                one.stop(sandbox)?;
                // The first ones make known that it scales.
                if ahead == 0 || waiting > 0 {
                    add(&format!("{name}: ours, listening"), listening);
                    add(&format!("{name}: ours"), answered);
                    add(&format!("{name}: ours, gone"), start.elapsed() - answered);
                }
            }
            round += 1;
            if round == 2 {
                waiting = self.ours.iter().map(|one| one.ahead).sum();
            }
            let (port, start) = (self.port(), Instant::now());
            self.by_ctr(port)?;
            add("ctr run", start.elapsed());
            let (fine, said) = self.daemon.ctr(&["tasks", "rm", "--force", "by-ctr"]);
            ensure!(fine, "{said}");
            let (fine, said) = self.daemon.ctr(&["containers", "rm", "by-ctr"]);
            ensure!(fine, "{said}");
        }
        for (what, samples) in &mut samples {
            samples.sort_unstable();
            let at = |share: usize| samples[(samples.len() - 1) * share / 100].as_secs_f64() * 1e3;
            let count = samples.len();
            out(&format!("{what:24} p50 {:6.1} ms   p99 {:6.1} ms   n {count}", at(50), at(99)))?;
        }
        Ok(())
    }

    /// Until so many tasks wait to be started.
    fn await_tasks(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.tasks()? < count {
            ensure!(Instant::now() < deadline, "no task is made ahead");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    /// containerd's, and what the keeper holds.
    fn tasks(&self) -> Result<usize> {
        Ok(self.lines(&["tasks", "list"])? + self.processes.spaces().all_held().len())
    }

    fn lines(&self, args: &[&str]) -> Result<usize> {
        let (fine, said) = self.daemon.ctr(args);
        ensure!(fine, "{said}");
        Ok(said.lines().skip(1).count())
    }

    /// As an operator would by hand, of a root directory, with the machine's network.
    fn by_ctr(&self, port: u16) -> Result<()> {
        let serve = format!("exec /bin/busybox httpd -f -h /www -p 127.0.0.1:{port}");
        let root = self.dir.path().join("root").display().to_string();
        let (fine, said) = self.daemon.ctr(&[
            "run",
            "--detach",
            "--net-host",
            "--rootfs",
            &root,
            "by-ctr",
            "/bin/busybox",
            "sh",
            "-c",
            &serve,
        ]);
        ensure!(fine, "{said}");
        first_answer((Ipv4Addr::LOCALHOST, port).into())
    }

    fn rates(&mut self, time: Duration, parallel: usize) -> Result<()> {
        for which in 0..self.ours.len() {
            let Ours { name, program, tasks, .. } = self.ours[which];
            let bare = [("bare", Root::Shared), ("bare, overlays", Root::Layered)];
            for (what, root) in bare.into_iter().filter(|_| tasks == Tasks::Keeper) {
                let before = processor_time();
                let (done, rate) = self.bare_rate(program, root, time, parallel)?;
                let cost = per_cycle(before, done);
                out(&format!("{program}: {what}, {parallel} at once: {rate:.1}/s{cost}"))?;
            }
            let (start, before) = (Instant::now(), processor_time());
            let done = self.cycles(which, u64::MAX, Some(start + time), parallel)?;
            let (rate, cost) = (per_second(done, start.elapsed()), per_cycle(before, done));
            out(&format!("{name}: ours, {parallel} at once: {rate:.1}/s{cost}"))?;
        }
        Ok(())
    }

    /// How many, and how many in a second.
    fn bare_rate(
        &mut self,
        program: &'static str,
        root: Root,
        time: Duration,
        parallel: usize,
    ) -> Result<(u64, f64)> {
        let ports: Vec<u16> = (0..parallel).map(|_| self.port()).collect();
        let done = AtomicU64::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = ports
                .iter()
                .map(|&port| {
                    scope.spawn({
                        let (done, dir, bundle) = (&done, self.dir.path(), &self.bundle);
                        move || -> Result<()> {
                            while start.elapsed() < time {
                                let bare = Bare::new(program, dir, bundle, (port, root))?;
                                let running = bare.run()?;
                                first_answer(bare.at)?;
                                bare.end(running)?;
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(())
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.join().map_err(|_panic| anyhow::anyhow!("a worker panicked"))??;
            }
            Ok(())
        })?;
        let done = done.load(Ordering::Relaxed);
        Ok((done, per_second(done, start.elapsed())))
    }

    /// Creates, calls and deletes; how often.
    fn cycles(
        &mut self,
        which: usize,
        count: u64,
        until: Option<Instant>,
        parallel: usize,
    ) -> Result<u64> {
        let (mut ordered, mut gone) = (0, 0);
        let over = |ordered| ordered >= count || until.is_some_and(|at| Instant::now() >= at);
        loop {
            while !over(ordered) && ordered - gone < u64::try_from(parallel)? {
                let create = self.order(None)?;
                self.ours[which].runtime.create(create);
                ordered += 1;
            }
            if gone == ordered {
                return Ok(gone);
            }
            let one = &mut self.ours[which];
            match one.next()? {
                Event::Listening { sandbox, address: Address::Tcp(at), .. } => {
                    let runtime = Arc::clone(&one.runtime);
                    // On a thread of its own: the next event need not wait for the answer.
                    drop(std::thread::spawn(move || {
                        if first_answer(at).is_ok() {
                            runtime.destroy(sandbox, Duration::ZERO);
                        }
                    }));
                }
                Event::Gone { failure, .. } if failure.cause == dirigent_core::Cause::Stopped => {
                    gone += 1;
                }
                Event::Created { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }

    fn leaves(&mut self, count: u64) -> Result<()> {
        for which in 0..self.ours.len() {
            let name = self.ours[which].name;
            // What an image has stays.
            self.cycles(which, 1, None, 1)?;
            let before = self.left()?;
            let start = Instant::now();
            self.cycles(which, count, None, 8)?;
            let rate = per_second(count, start.elapsed());
            out(&format!("{name}: {count} created, called and deleted, {rate:.1}/s"))?;
            // What was made ahead goes when nobody wants it for a minute.
            let deadline = Instant::now() + Duration::from_secs(120);
            let mut after = self.left()?;
            while after != before && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(200));
                after = self.left()?;
            }
            for (what, had) in &before {
                let has = after.get(what).copied().unwrap_or_default();
                out(&format!("{name}:   {what:16} {had:4} before {has:4} after"))?;
            }
            ensure!(after == before, "something is left");
        }
        Ok(())
    }

    /// What there is of sandboxes on the machine.
    fn left(&self) -> Result<BTreeMap<&'static str, usize>> {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.daemon.pid()))?;
        let directories = |path: &str| -> usize {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().is_dir()).count()
        };
        let groups = ["memory/", "pids/", "cpu/", ""].map(|controller| {
            directories(&format!("/sys/fs/cgroup/{controller}dirigent-containers"))
        });
        let pipes = self.ours.iter().map(|one| self.dir.path().join(one.name).join("sandboxes"));
        Ok(BTreeMap::from([
            ("containers", self.lines(&["containers", "list"])?),
            ("tasks", self.tasks()?),
            ("snapshots", self.lines(&["snapshots", "list"])?),
            ("leases", self.lines(&["leases", "list"])?),
            ("shims", self.daemon.shims().len()),
            ("mounts", mounts.lines().filter(|line| line.contains("/state/")).count()),
            ("control groups", groups.iter().sum()),
            ("networks lent", self.processes.spaces().lent().len()),
            ("directories", pipes.map(|path| directories(&path.display().to_string())).sum()),
        ]))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for one in &self.ours {
            one.runtime.close();
        }
        self.processes.close();
    }
}

impl Ours {
    fn next(&mut self) -> Result<Event> {
        self.events.blocking_recv().context("the runtime has ended")
    }

    fn start(&mut self, create: CreateSandbox) -> Result<SocketAddr> {
        self.runtime.create(create);
        loop {
            match self.next()? {
                Event::Created { .. } => {}
                Event::Listening { address: Address::Tcp(at), .. } => return Ok(at),
                other => bail!("{other:?}"),
            }
        }
    }

    fn stop(&mut self, sandbox: SandboxId) -> Result<()> {
        self.runtime.destroy(sandbox, Duration::ZERO);
        match self.next()? {
            Event::Gone { .. } => Ok(()),
            other => bail!("{other:?}"),
        }
    }
}

/// What bare ones have as their root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    /// The same for all, prepared once.
    Shared,
    /// A layer of its own in memory on that, as our sandboxes have: what an OCI runtime costs that is
    /// driven without containerd's tasks.
    Layered,
}

/// A bundle, and who runs it.
struct Bare {
    program: &'static str,
    bundle: PathBuf,
    id: String,
    at: SocketAddr,
    root: Root,
}

impl Bare {
    fn new(
        program: &'static str,
        dir: &Path,
        spec: &Value,
        (port, root): (u16, Root),
    ) -> Result<Self> {
        let id = format!("bare-{}-{port}", std::process::id());
        let bundle = dir.join("bundles").join(&id);
        fs::create_dir_all(&bundle)?;
        let mut spec = spec.clone();
        spec["linux"]["cgroupsPath"] = json!(format!("/dirigent-bare/{id}"));
        for variable in spec["process"]["env"].as_array_mut().context("an environment")? {
            let text = variable.as_str().unwrap_or_default();
            if text.starts_with("PORT=") {
                *variable = json!(format!("PORT={port}"));
            } else if text.starts_with("HOST=") {
                *variable = json!("HOST=127.0.0.1");
            }
        }
        if root == Root::Layered {
            spec["root"]["path"] = json!(layered(&bundle, &dir.join("root"))?);
        }
        fs::write(bundle.join("config.json"), spec.to_string())?;
        Ok(Self { program, bundle, id, at: (Ipv4Addr::LOCALHOST, port).into(), root })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn run(&self) -> Result<Child> {
        let bundle = self.bundle.display().to_string();
        Ok(self.command(&["run", "--bundle", &bundle, &self.id]).spawn()?)
    }

    fn end(&self, mut running: Child) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        // crun knows its sandbox a moment after that has answered.
        while !self.command(&["kill", &self.id, "KILL"]).stderr(Stdio::null()).status()?.success() {
            ensure!(Instant::now() < deadline, "`{} kill` does not work", self.program);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        // It removes what it made when it has ended.
        running.wait()?;
        if self.root == Root::Layered {
            unmount(self.bundle.join("root"), UnmountFlags::DETACH)?;
        }
        fs::remove_dir_all(&self.bundle)?;
        Ok(())
    }
}

/// What this process, containerd, shims and sandboxes have had of the processors, where they are in a
/// control group of their own of the first version: others of a busy machine do not count.
fn processor_time() -> Option<Duration> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut controllers = groups.lines().filter_map(|line| line.split_once(":cpuacct:"));
    let (_, own) = controllers.next().filter(|(_, path)| *path != "/")?;
    let groups = [own, "/dirigent-bare", "/dirigent-containers"];
    let used = groups.iter().filter_map(|group| {
        let file = format!("/sys/fs/cgroup/cpuacct{group}/cpuacct.usage");
        fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
    });
    Some(Duration::from_nanos(used.sum()))
}

fn per_cycle(before: Option<Duration>, count: u64) -> String {
    let (Some(before), Some(now)) = (before, processor_time()) else { return String::new() };
    let each =
        now.saturating_sub(before).as_secs_f64() * 1e3 / per_second(count, Duration::from_secs(1));
    format!(", {each:.1} ms of processor time each")
}

/// Mounts a root with a layer of its own.
fn layered(bundle: &Path, lower: &Path) -> Result<PathBuf> {
    let (layer, root) = (bundle.join("layer"), bundle.join("root"));
    fs::create_dir_all(&layer)?;
    fs::create_dir_all(&root)?;
    mount(c"layer", &layer, c"tmpfs", MountFlags::empty(), c"size=32m")?;
    let [upper, work] = ["upper", "work"].map(|name| layer.join(name));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let [lower, upper, work] = [lower, &upper, &work].map(|path| path.display().to_string());
    let options = CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}"))?;
    mount(c"overlay", &root, c"overlay", MountFlags::empty(), options.as_c_str())?;
    unmount(&layer, UnmountFlags::DETACH)?;
    Ok(root)
}

fn per_second(count: u64, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

fn which(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").context("no PATH")?;
    let mut places = env::split_paths(&path).map(|directory| directory.join(program));
    places.find(|place| place.is_file()).with_context(|| format!("no `{program}`"))
}

fn image() -> Image {
    let mut layer = Layer::new();
    layer.busybox().directory("tmp", 0o1777).file("www/index.html", 0o644, b"hello");
    let serve = "exec /bin/busybox httpd -f -h /www -p $HOST:$PORT";
    Image::new(layer, json!({ "Cmd": ["/bin/busybox", "sh", "-c", serve] }))
}

fn order(image: Digest, port: u16) -> Result<CreateSandbox> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Ok(CreateSandbox {
        order: StartSandbox {
            sandbox: SandboxId::new(Epoch(1), NEXT.fetch_add(1, Ordering::Relaxed)),
            revision: RevisionId { function: FunctionId::new(Epoch(1), 1), number: 1 },
            name: FunctionName::new("default", "hello")?,
            spec: Arc::new(Spec {
                sandbox: SandboxSpec {
                    image: Some("docker-archive:hello.tar".to_owned()),
                    ..SandboxSpec::new(RuntimeKind::Container, Vec::new())
                },
                resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(64) },
                env: BTreeMap::new(),
                concurrency: 1,
                artifact: Some(image),
            }),
            start_timeout: Duration::from_secs(30),
        },
        port,
    })
}

/// As soon as there is one.
fn first_answer(at: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if let Ok(mut stream) = TcpStream::connect(at) {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.ends_with("hello"), "{answer}");
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_micros(50));
    }
    bail!("no answer at {at}")
}
