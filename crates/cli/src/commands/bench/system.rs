//! The system under test: a Dirigent of its own in a temporary directory, on free ports, ended
//! and removed with the measurement.

mod leaders;

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use dirigent_bench::{Answer, Census, Checked, Cluster, bare::Port, etcd::Etcd, image, warm};
use dirigent_core::{
    Address, Digest, RevisionState, RuntimeKind,
    control::{self, FunctionSummary},
    manifest::Manifest,
};
use http::Method;
use serde_json::Value;

use self::leaders::Killed;
use crate::{
    client::{Client, read_state},
    commands::{
        deploy,
        describe::{ClusterStatus, WorkerOffer},
        path,
        peers::all_data_planes,
    },
    config::PREFIX,
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
    project::Files,
    signals::Signals,
};

/// What runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// `dirigent up`.
    Up,
    /// A control plane alone on an etcd of so many members.
    OnEtcd(usize),
    /// Control planes, a data plane and so many emulated workers, a process each.
    Apart {
        /// Workers in their process.
        workers: u32,
        /// Members of the etcd that three control planes share; none: one of them, with a file.
        etcd: usize,
    },
    /// A control plane, a data plane and a worker that makes processes, each to be killed alone.
    Whole,
}

impl Shape {
    /// Members of its etcd.
    const fn etcd(self) -> usize {
        match self {
            Self::OnEtcd(members) | Self::Apart { etcd: members, .. } => members,
            Self::Up | Self::Whole => 0,
        }
    }

    /// Its control planes, by what they are.
    fn controls(self) -> &'static [&'static str] {
        let count = if matches!(self, Self::Apart { etcd: 1.., .. }) { CONTROLS.len() } else { 1 };
        CONTROLS.get(..count).unwrap_or_default()
    }
}

/// A running Dirigent, ended by [`System::run`].
#[derive(Debug)]
pub(crate) struct System {
    shape: Shape,
    printer: Printer,
    launched: Option<Launched>,
    etcd: Option<Etcd>,
    directory: PathBuf,
    /// What a sandbox of each function deployed asks for, in MiB: no list of functions tells it.
    memory_mib: Mutex<HashMap<String, u64>>,
    /// The artifacts of functions, by the first word of their commands.
    artifacts: Mutex<HashMap<String, Digest>>,
}

const CONTROL_PLANE: &str = "control plane";
/// Several that share an etcd, of which one may die.
const CONTROLS: [&str; 3] = [CONTROL_PLANE, "second control plane", "third control plane"];
const DATA_PLANE: &str = "data plane";

/// Ready in under 300 ms where nothing is wrong.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Its drain, what its sandboxes and tasks may take then, and as much again: longer only one takes
/// that hangs.
const STOPS_WITHIN: Duration = Duration::from_secs(45);

/// All of 5,000 workers are attached within this.
const ATTACHED_WITHIN: Duration = Duration::from_secs(60);

/// How often attached workers are counted: an answer tells of all of them, which the leader has to
/// write while it takes the others in.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// How often is looked whether it is ready or has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl System {
    /// Starts one, measures it, and ends it, however the measurement ends.
    pub(crate) async fn run(
        printer: Printer,
        measure: impl AsyncFnOnce(&mut Self) -> Result,
    ) -> Result {
        Self::run_as(Shape::Up, printer, measure).await
    }

    /// As [`Self::run`], in another shape.
    pub(crate) async fn run_as(
        shape: Shape,
        printer: Printer,
        measure: impl AsyncFnOnce(&mut Self) -> Result,
    ) -> Result {
        // Before the first process is started, so that none is left behind.
        let mut signals = Signals::new()?;
        let mut system = Self::start(shape, printer).await?;
        let measured = tokio::select! {
            biased;
            () = signals.next() => Err(Fail::interrupted()),
            measured = measure(&mut system) => measured,
        };
        // The failure of the measurement comes first.
        let ended = system.end().await;
        measured.and(ended)
    }

    async fn start(shape: Shape, printer: Printer) -> Result<Self> {
        let directory = scratch_directory()?;
        // Whatever does not start, what did is ended with this.
        let mut this = Self {
            shape,
            printer,
            launched: None,
            etcd: None,
            directory,
            memory_mib: Mutex::default(),
            artifacts: Mutex::default(),
        };
        let members = shape.etcd();
        if members > 0 {
            let scratch = this.directory.join("etcd");
            let started = tokio::task::spawn_blocking(move || Etcd::start(&scratch, members)).await;
            let started = started.or_fail(Kind::Internal, || "etcd")?;
            this.etcd = Some(started.or_fail(
                Kind::Unavailable,
                || "etcd does not start; on Debian: apt-get install etcd-server",
            )?);
        }
        this.launched = Some(this.launch(printer).await?);
        Ok(this)
    }

    async fn launch(&self, printer: Printer) -> Result<Launched> {
        launch(&self.state(), self.shape, self.etcd.as_ref(), printer).await
    }

    /// Ends it and starts it again on what it has stored.
    pub(crate) async fn restart(&mut self, printer: Printer) -> Result {
        self.end().await?;
        self.launched = Some(self.launch(printer).await?);
        Ok(())
    }

    fn launched(&self) -> &Launched {
        self.launched.as_ref().expect("only `stop` and a failed restart end it")
    }

    /// From its start until it was ready.
    pub(crate) fn ready_after(&self) -> Duration {
        self.launched().ready_after
    }

    /// Memory resident now, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        resident(self.pid())
    }

    /// The first of its processes, which is all of it in the shape `Up`.
    pub(super) fn pid(&self) -> u32 {
        self.launched().processes.first()
    }

    /// What each of its processes has used so far.
    pub(super) fn used(&self) -> Result<Vec<Used>> {
        let used = |(part, child): &(&'static str, Child)| {
            let cpu = warm::cpu_of(child.id()).or_fail(Kind::Internal, || "processor time")?;
            Ok(Used { part, cpu, resident: resident(child.id())? })
        };
        self.launched().processes.0.iter().map(used).collect()
    }

    /// Where functions are called, for as long as a data plane is there.
    pub(super) fn address(&self) -> SocketAddr {
        self.functions()
    }

    /// Kills one of its processes. Until it is started again the system is not whole.
    pub(super) fn kill(&mut self, part: &str) -> Result {
        self.launched_mut().processes.kill(part)
    }

    /// Starts a process that was killed again, as it was, and waits until it works.
    pub(super) async fn start_again(&mut self, part: &str, printer: Printer) -> Result {
        let state = self.state();
        self.launched_mut().start_again(part, &state, printer).await
    }

    fn launched_mut(&mut self) -> &mut Launched {
        self.launched.as_mut().expect("only `stop` and a failed restart end it")
    }

    /// From the start of the other processes until all workers and the data plane were attached.
    pub(super) fn attached_after(&self) -> Duration {
        self.launched().attached_after
    }

    /// Its state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where a measurement may put files; removed with the system.
    pub(crate) fn scratch(&self) -> &Path {
        &self.directory
    }

    /// Drains and ends it, if that was not done yet. It must end well. Its files stay until the
    /// value goes.
    pub(crate) async fn end(&mut self) -> Result {
        match self.launched.take() {
            Some(launched) => launched.stop().await,
            None => Ok(()),
        }
    }

    /// What its workers can do.
    pub(super) async fn offers(&self) -> Result<Vec<WorkerOffer>> {
        let client = &self.launched().client;
        let status: ClusterStatus = client.call(Method::GET, "/v1/status", None::<&()>).await?;
        Ok(status.workers)
    }

    /// Transactions of its store so far, in this life.
    pub(super) async fn transactions(&self) -> Result<u64> {
        let client = &self.launched().client;
        let status: Value = client.call(Method::GET, "/v1/status", None::<&()>).await?;
        let count = status.pointer("/counts/store_transactions").and_then(Value::as_u64);
        count.ok_or_else(|| Fail::internal("the status has no `store_transactions`"))
    }

    /// Sends the program of functions whose command begins with `./` and its name.
    pub(crate) async fn send(&self, program: PathBuf) -> Result {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let command = format!("./{name}");
        self.send_files(command, &Files::File(program)).await
    }

    /// Sends an image of this program, for functions whose command begins with its place there.
    ///
    /// # Errors
    /// Also if no worker runs images here.
    pub(super) async fn send_image(&self) -> Result {
        let workers = self.offers().await?;
        let mut offers = workers.iter().flat_map(|worker| &worker.runtimes);
        if !offers.any(|offer| offer.runtime == RuntimeKind::Container) {
            let why = workers.iter().flat_map(|worker| worker.missing.iter().cloned());
            return Err(Fail::unavailable("images cannot be run here")
                .details(why)
                .hint(format!("{CONTAINERD} says where containerd listens, if it is elsewhere")));
        }
        let directory = self.directory.clone();
        let written = tokio::task::spawn_blocking(move || image::write(&directory)).await;
        let archive = written.or_fail(Kind::Internal, || "an image of this program")?;
        let archive = archive.or_fail(Kind::Unavailable, || "an image of this program")?;
        self.send_files(image::PROGRAM.to_owned(), &Files::Image(archive)).await
    }

    /// Returns when the worker has let go of the image, which is in the machine's containerd, once no
    /// function needs it.
    pub(super) async fn image_is_gone(&self) -> Result {
        let images = self.state().join("worker/oci/images");
        let begun = Instant::now();
        loop {
            let left = std::fs::read_dir(&images).map_or(0, Iterator::count);
            if left == 0 {
                return Ok(());
            }
            if begun.elapsed() > STOPS_WITHIN {
                return Err(Fail::unavailable("the image of the measurement stays in containerd")
                    .hint("with `--verbose` it says why"));
            }
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }

    async fn send_files(&self, command: String, files: &Files) -> Result {
        let digest = deploy::send(&self.launched().client, files, self.printer).await?;
        self.artifacts.lock().expect("no holder panics").insert(command, digest);
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<control::Answer> {
        self.launched().client.ask(method, path).await.map_err(Fail::into_error)
    }

    async fn put(&self, manifest: &Manifest, query: &str) -> anyhow::Result<control::Answer> {
        let memory_mib = manifest.resources.memory.0 >> 20;
        let name = manifest.name.name().to_owned();
        self.memory_mib.lock().expect("no holder panics").insert(name, memory_mib);
        let path = format!("{}?{query}", path(&manifest.name));
        let program = manifest.sandbox.command.first().map_or("", String::as_str);
        let artifact = self.artifacts.lock().expect("no holder panics").get(program).copied();
        let body = serde_json::json!({ "manifest": manifest, "artifact": artifact });
        let answer = self.launched().client.call(Method::PUT, &path, Some(&body)).await;
        answer.map_err(Fail::into_error)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(Launched { mut processes, .. }) = self.launched.take() {
            // Not stopped in order: the measurement panicked. Whom this does not reach is killed.
            drop(processes.tell_to_end());
            let begun = Instant::now();
            while begun.elapsed() < STOPS_WITHIN && processes.is_running() {
                std::thread::park_timeout(LOOK_EVERY);
            }
        }
        // Nobody writes there any more.
        self.etcd = None;
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) part: &'static str,
    pub(super) cpu: Duration,
    /// Bytes.
    pub(super) resident: u64,
}

fn resident(pid: u32) -> Result<u64> {
    warm::memory_of(pid, "VmRSS:").or_fail(Kind::Internal, || "memory")
}

/// The processes of a Dirigent, by what they are. The others hang on the first. None of them outlives
/// the value.
#[derive(Debug)]
struct Processes(Vec<(&'static str, Child)>);

impl Processes {
    /// The id of the first one.
    fn first(&self) -> u32 {
        self.0.first().expect("it begins with one").1.id()
    }

    fn is_running(&mut self) -> bool {
        self.0.iter_mut().any(|(_, child)| matches!(child.try_wait(), Ok(None)))
    }

    /// One that has ended, if any has.
    fn ended(&mut self) -> Result<Option<(&'static str, ExitStatus)>> {
        for (part, child) in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                return Ok(Some((*part, status)));
            }
        }
        Ok(None)
    }

    /// Kills one of them by what it is.
    fn kill(&mut self, part: &str) -> Result {
        let child = &mut self.place(part)?.1;
        child.kill().or_fail(Kind::Internal, || format!("cannot kill the {part}"))?;
        child.wait()?;
        Ok(())
    }

    fn place(&mut self, part: &str) -> Result<&mut (&'static str, Child)> {
        let place = self.0.iter_mut().find(|(name, _)| *name == part);
        place.ok_or_else(|| Fail::internal(format!("there is no {part} alone")))
    }

    /// Those that hang on the first one before it. All are told, also if one of them cannot be.
    fn tell_to_end(&mut self) -> Result {
        let tell = |(part, child): &mut (&'static str, Child)| {
            // The id of one that has ended may be somebody else's.
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            let pid = rustix::process::Pid::from_child(child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .or_fail(Kind::Internal, || format!("cannot stop the {part}"))
        };
        self.0.iter_mut().rev().map(tell).fold(Ok(()), Result::and)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (_, child) in self.0.iter_mut().rev() {
            // Nothing where it has ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// One life of a Dirigent.
#[derive(Debug)]
struct Launched {
    /// The control plane, or all in one; then the data plane and the workers, where they are
    /// processes of their own.
    processes: Processes,
    /// How each of them is started, by what it is.
    commands: HashMap<&'static str, Start>,
    attached_after: Duration,
    /// Nobody can be called where the control plane runs alone.
    functions: Option<SocketAddr>,
    client: Client,
    ready_after: Duration,
    killed: Option<Killed>,
    /// Those that the processes listen on.
    _ports: Vec<Port>,
}

/// What a process is started with.
#[derive(Clone, Debug)]
struct Start {
    args: Vec<String>,
    state: PathBuf,
}

impl Start {
    fn spawn(&self, printer: Printer) -> Result<(Child, Said)> {
        // Left by an earlier life, it would be taken for this one's.
        for file in ["functions", "api"] {
            drop(std::fs::remove_file(self.state.join(file)));
        }
        spawn(&self.args, &self.state, printer)
    }
}

impl Launched {
    /// Starts a process again, as it was.
    fn spawn_again(&mut self, part: &str, printer: Printer) -> Result {
        let start = self.commands.get(part).cloned();
        let start = start.ok_or_else(|| Fail::internal(format!("there is no {part} alone")))?;
        let (child, _) = start.spawn(printer)?;
        self.processes.place(part)?.1 = child;
        Ok(())
    }

    async fn start_again(&mut self, part: &str, state: &Path, printer: Printer) -> Result {
        self.spawn_again(part, printer)?;
        let begun = Instant::now();
        while !self.works(part, state).await? {
            if let Some((part, status)) = self.processes.ended()? {
                let hint = "with `--verbose` it says why";
                return Err(Fail::unavailable(format!("the {part} ended: {status}")).hint(hint));
            }
            if begun.elapsed() > READY_WITHIN {
                let text = format!("the {part} does not work again after {READY_WITHIN:?}");
                return Err(Fail::unavailable(text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Whether a process that was started again does what it is for.
    async fn works(&mut self, part: &str, state: &Path) -> Result<bool> {
        match part {
            CONTROL_PLANE => {
                let Some((_, client)) = found(state, true).await? else { return Ok(false) };
                self.client = client;
                Ok(true)
            }
            DATA_PLANE => {
                let Some(address) = self.functions else { return Ok(false) };
                Ok(tokio::net::TcpStream::connect(address).await.is_ok())
            }
            _ => Ok(attached(&self.client).await? > 0),
        }
    }

    async fn stop(self) -> Result {
        let Self { mut processes, .. } = self;
        let told = processes.tell_to_end();
        let begun = Instant::now();
        while processes.is_running() {
            if begun.elapsed() > STOPS_WITHIN {
                let text = format!("it did not end within {STOPS_WITHIN:?}: killed");
                return told.and(Err(Fail::internal(text)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for (part, child) in processes.0.iter_mut().rev() {
            let status = child.wait()?;
            if !status.success() {
                return Err(Fail::internal(format!("the {part} ended badly: {status}")));
            }
        }
        told
    }
}

/// Starts one of this shape on `state` and free ports, and waits until it is ready.
async fn launch(
    state: &Path,
    shape: Shape,
    etcd: Option<&Etcd>,
    printer: Printer,
) -> Result<Launched> {
    let begun = Instant::now();
    let controls = shape.controls();
    let ports = (0..=controls.len()).map(|_| Port::keep()).collect::<Result<Vec<_>, _>>();
    let ports = ports.or_fail(Kind::Unavailable, || "no free port")?;
    let mut peers: Vec<SocketAddr> = ports.iter().map(Port::address).collect();
    let listen = peers.pop().ok_or_else(|| Fail::internal("there is no port for calls"))?;
    let start = first_start(state, shape, etcd, &peers)?;
    let part = if matches!(shape, Shape::Up) { "system" } else { CONTROL_PLANE };
    let (child, said) = start.spawn(printer)?;
    let commands = HashMap::from([(part, start)]);
    let mut processes = Processes(vec![(part, child)]);
    let alone = !matches!(shape, Shape::Up);
    let (functions, client) = loop {
        if let Some(found) = found(state, alone).await? {
            break found;
        }
        if let Some((part, status)) = processes.ended()? {
            let said = said.lock().expect("no holder panics").clone();
            return Err(Fail::unavailable(format!("the {part} ended: {status}")).details(said));
        }
        if begun.elapsed() > READY_WITHIN {
            let text = format!("the {part} is not ready after {READY_WITHIN:?}");
            return Err(Fail::unavailable(text));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let (attached_after, ready_after) = (Duration::ZERO, begun.elapsed());
    let mut launched = Launched {
        processes,
        commands,
        attached_after,
        functions,
        client,
        ready_after,
        killed: None,
        _ports: ports,
    };
    launched.add_controls(state, etcd, &peers, printer).await?;
    let workers = match shape {
        Shape::Apart { workers, .. } => {
            ("workers", workers, vec!["--emulate".to_owned(), workers.to_string()])
        }
        Shape::Whole => {
            ("worker", 1, ["--stop-sandboxes", "--sandboxes", "5000"].map(str::to_owned).to_vec())
        }
        Shape::Up | Shape::OnEtcd(_) => return Ok(launched),
    };
    launched.functions = Some(listen);
    join_others(&mut launched, state, &peers, workers, printer).await?;
    Ok(launched)
}

/// What is started first: all in one, or a control plane.
fn first_start(
    state: &Path,
    shape: Shape,
    etcd: Option<&Etcd>,
    peers: &[SocketAddr],
) -> Result<Start> {
    if !matches!(shape, Shape::Up) {
        let at = peers.first().ok_or_else(|| Fail::internal("there is no port for peers"))?;
        return Ok(Start::control_plane(state.to_owned(), CONTROL_PLANE, etcd, *at));
    }
    let args = ["up", "--listen", "127.0.0.1:0", "--drain", "5s", "--sandboxes", "5000"];
    let args = [&args[..], &["--api", "127.0.0.1:0"]].concat();
    Ok(Start { args: args.into_iter().map(str::to_owned).collect(), state: state.to_owned() })
}

/// Starts a data plane and so many workers with those arguments, and waits until all are attached.
async fn join_others(
    launched: &mut Launched,
    state: &Path,
    peers: &[SocketAddr],
    (name, workers, of_workers): (&'static str, u32, Vec<String>),
    printer: Printer,
) -> Result {
    let begun = Instant::now();
    let token = state.join("peer-token").display().to_string();
    let listen = launched.functions.map(|address| address.to_string()).unwrap_or_default();
    let of_data_plane = ["--listen", &listen, "--admin", "127.0.0.1:0", "--drain", "5s"];
    let of_data_plane = of_data_plane.map(str::to_owned).to_vec();
    for (part, role, more) in
        [(DATA_PLANE, "data-plane", of_data_plane), (name, "worker", of_workers)]
    {
        let control = peers.iter().flat_map(|at| ["--control".to_owned(), at.to_string()]);
        let common = [role, "--peer-token", &token].map(str::to_owned);
        let args = common.into_iter().chain(control).chain(more).collect();
        let start = Start { args, state: state.join(part.replace(' ', "-")) };
        let (child, _) = start.spawn(printer)?;
        launched.processes.0.push((part, child));
        launched.commands.insert(part, start);
    }
    loop {
        let planes = all_data_planes(&launched.client).await?;
        let is_whole = attached(&launched.client).await? >= u64::from(workers);
        if is_whole && planes.iter().any(|plane| plane.state == "ready") {
            launched.attached_after = begun.elapsed();
            return Ok(());
        }
        if let Some((part, status)) = launched.processes.ended()? {
            let hint = "with `--verbose` it says why";
            return Err(Fail::unavailable(format!("the {part} ended: {status}")).hint(hint));
        }
        if begun.elapsed() > ATTACHED_WITHIN {
            let text =
                format!("not all of {workers} workers are attached after {ATTACHED_WITHIN:?}");
            return Err(Fail::unavailable(text));
        }
        tokio::time::sleep(COUNT_EVERY).await;
    }
}

/// Workers that are attached.
async fn attached(client: &Client) -> Result<u64> {
    let status: Value = client.call(Method::GET, "/v1/status", None::<&()>).await?;
    Ok(status.pointer("/counts/workers").and_then(Value::as_u64).unwrap_or(0))
}

/// Where containerd listens.
const CONTAINERD: &str = "DIRIGENT_CONTAINERD_SOCKET";

/// The last lines that a process wrote.
type Said = Arc<Mutex<Vec<String>>>;

fn spawn(args: &[String], state: &Path, printer: Printer) -> Result<(Child, Said)> {
    let exe = std::env::current_exe().or_fail(Kind::Internal, || "where is this program")?;
    let mut command = Command::new(exe);
    // What is measured is not configured by what the caller's own `up` is; where this machine has its
    // containerd is no matter of either.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) && name != CONTAINERD {
            command.env_remove(name);
        }
    }
    let mut child = command
        // Of what is measured nothing stays in a containerd that others use too.
        .env("DIRIGENT_CONTAINERD_KEEP_IMAGES", "0s")
        .args(args)
        .arg("--state")
        .arg(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal goes to the whole group: this one ends it in order.
        .process_group(0)
        .spawn()
        .or_fail(Kind::Internal, || "cannot start `dirigent`")?;
    let said = listen_to(child.stderr.take(), printer);
    Ok((child, said))
}

/// Where functions are called and the API, once it is ready.
async fn found(state: &Path, alone: bool) -> Result<Option<(Option<SocketAddr>, Client)>> {
    let Ok(client) = Client::find(None, state, None) else { return Ok(None) };
    if alone {
        let status = client.call::<Value>(Method::GET, "/v1/status", None::<&()>).await;
        let leads = status.is_ok_and(|status| status["role"] == "leader");
        return Ok(leads.then_some((None, client)));
    }
    let Ok(functions) = read_state(state, "functions") else { return Ok(None) };
    let text = functions.trim().trim_start_matches("http://").trim_end_matches('/');
    let functions = text.parse().or_fail(Kind::Internal, || format!("`{text}`: where"))?;
    Ok(Some((Some(functions), client)))
}

/// Passes on what it says (with `--verbose`) and keeps the last lines: nobody reading would stop
/// it once the pipe is full.
fn listen_to(stderr: Option<ChildStderr>, printer: Printer) -> Arc<Mutex<Vec<String>>> {
    const KEPT: usize = 20;
    let said = Arc::new(Mutex::new(Vec::new()));
    if let Some(stderr) = stderr {
        let said = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                printer.detail(&line);
                let mut said = said.lock().expect("no holder panics");
                if said.len() == KEPT {
                    said.remove(0);
                }
                said.push(line);
            }
        });
    }
    said
}

/// A directory that other users may enter, since sandboxes run as users of their own.
fn scratch_directory() -> Result<PathBuf> {
    let name = format!("dirigent-bench-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory)
        .or_fail(Kind::Unavailable, || format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

impl Cluster for System {
    fn functions(&self) -> SocketAddr {
        self.launched().functions.expect("only registration is measured without a data plane")
    }

    fn deploy(&self, manifest: Manifest) -> Answer<'_, ()> {
        Box::pin(async move { self.put(&manifest, "check=false").await.map(drop) })
    }

    fn deploy_checked(&self, manifest: Manifest) -> Answer<'_, Checked> {
        Box::pin(async move {
            match self.put(&manifest, "check=true&wait=true").await? {
                control::Answer::Settled { revision, state: RevisionState::Live, .. } => {
                    let name = manifest.name.name();
                    Ok(Checked::Live(format!("{name}-{:05}", revision.number)))
                }
                control::Answer::Settled {
                    state: RevisionState::Failed,
                    failure: Some(failure),
                    ..
                } => Ok(Checked::Failed(failure.cause)),
                other => anyhow::bail!("the deploy did not become live: {other:?}"),
            }
        })
    }

    fn remove(&self, name: &str) -> Answer<'_, ()> {
        let name = name.to_owned();
        Box::pin(async move {
            let name = name.parse().context("a benchmark's name")?;
            self.ask(Method::DELETE, &path(&name)).await.map(drop)
        })
    }

    fn census(&self) -> Answer<'_, Census> {
        Box::pin(async move {
            match self.ask(Method::GET, "/v1/top?limit=1000").await? {
                control::Answer::Top(functions) => {
                    Ok(sum(&functions, &self.memory_mib.lock().expect("no holder panics")))
                }
                other => anyhow::bail!("not an answer to `top`: {other:?}"),
            }
        })
    }

    fn addresses(&self, name: &str) -> Answer<'_, Vec<SocketAddr>> {
        let name = name.to_owned();
        Box::pin(async move {
            let name = name.parse().context("a benchmark's name")?;
            let control::Answer::Function(function) = self.ask(Method::GET, &path(&name)).await?
            else {
                anyhow::bail!("not a description of `{name}`");
            };
            let ready = function.sandboxes.into_iter().filter(|one| one.state == "ready");
            let address = |one: control::SandboxDescription| match one.address {
                Some(Address::Tcp(address)) => Ok(address),
                other => anyhow::bail!("{} does not listen on TCP: {other:?}", one.id),
            };
            ready.map(address).collect()
        })
    }

    fn cpu_used(&self) -> Answer<'_, Duration> {
        Box::pin(async move { warm::cpu_of(self.launched().processes.first()) })
    }
}

fn sum(functions: &[FunctionSummary], memory_mib: &HashMap<String, u64>) -> Census {
    functions.iter().fold(Census::default(), |sum, function| {
        // The built-in `hello`, which nobody calls here, is none that was deployed.
        let each = memory_mib.get(function.name.name()).copied().unwrap_or_default();
        let all = function.ready + function.starting;
        // Where a sandbox takes one call at a time; else calls would count for sandboxes.
        let busy = function.busy.min(function.ready);
        Census {
            ready: sum.ready + function.ready,
            starting: sum.starting + function.starting,
            busy: sum.busy + function.busy,
            queued: sum.queued + function.queued,
            memory_mib: sum.memory_mib + u64::from(all) * each,
            busy_mib: sum.busy_mib + u64::from(busy) * each,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn started(program: &str, arg: &str) -> Child {
        Command::new(program).arg(arg).spawn().unwrap()
    }

    #[test]
    fn no_process_outlives_its_owner() {
        let two = [("one", started("sleep", "1000")), ("two", started("sleep", "1000"))];
        let pids = [0, 1].map(|number: usize| two[number].1.id());
        let mut processes = Processes(two.into());
        assert!(processes.is_running() && processes.ended().unwrap().is_none());
        assert_eq!(processes.first(), pids[0]);
        drop(processes);
        // Each was waited for: a process that is only dead would be there still.
        assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    }

    #[test]
    fn all_that_run_are_told_to_end_where_one_has_ended() {
        let mut ended = started("true", "");
        ended.wait().unwrap();
        let one = ("one", started("sleep", "1000"));
        let mut processes = Processes(vec![one, ("two", ended), ("three", started("sleep", "9"))]);
        assert_eq!(processes.ended().unwrap().unwrap().0, "two");
        processes.tell_to_end().unwrap();
        let signals = processes.0.iter_mut().map(|(_, child)| child.wait().unwrap().signal());
        assert_eq!(signals.collect::<Vec<_>>(), [Some(15), None, Some(15)]);
    }
}
