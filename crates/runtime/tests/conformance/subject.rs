//! The runtimes under test, each with one owner that can be restarted.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

#[cfg(feature = "containerd")]
use crate::{daemon, images};
use dirigent_core::{
    Address, Bytes, Digest, Epoch, FunctionId, FunctionName, Isolation, MilliCpu, Resources,
    RevisionId, RuntimeKind, SandboxId, SandboxSpec, Spec, StartFailure,
    frame::{LogQuery, StartSandbox},
    worker::CreateSandbox,
};
#[cfg(feature = "containerd")]
use dirigent_runtime::container::{ContainerConfig, ContainerRuntime, Tasks};
use dirigent_runtime::{
    Event, Runtime,
    fake::{FakeConfig, FakeRuntime},
    process::{ProcessConfig, ProcessRuntime},
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

/// Nothing here takes this long unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A runtime under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Fake,
    /// The process runtime, with this isolation.
    Process(Isolation),
    /// That of OCI images, and who runs its sandboxes.
    #[cfg(feature = "containerd")]
    Image(Tasks),
}

impl Subject {
    pub(crate) const ALL: &[Self] = &[
        Self::Fake,
        Self::Process(Isolation::Plain),
        Self::Process(Isolation::Basic),
        Self::Process(Isolation::Strict),
        #[cfg(feature = "containerd")]
        Self::Image(Tasks::Keeper),
        #[cfg(feature = "containerd")]
        Self::Image(Tasks::Containerd),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Process(Isolation::Plain) => "process_plain",
            Self::Process(Isolation::Basic) => "process_basic",
            Self::Process(Isolation::Strict) => "process_strict",
            #[cfg(feature = "containerd")]
            Self::Image(Tasks::Keeper) => "containerd",
            #[cfg(feature = "containerd")]
            Self::Image(Tasks::Containerd) => "containerd_tasks",
        }
    }

    pub(crate) fn kind(self) -> RuntimeKind {
        match self {
            Self::Fake => RuntimeKind::Fake,
            Self::Process(_) => RuntimeKind::Process,
            #[cfg(feature = "containerd")]
            Self::Image(_) => RuntimeKind::Container,
        }
    }

    /// Why it cannot be tested on this machine.
    pub(crate) fn missing(self) -> Option<String> {
        #[cfg(feature = "containerd")]
        if matches!(self, Self::Image(_)) {
            return daemon::missing();
        }
        let Self::Process(isolation) = self else { return None };
        let dir = tempfile::tempdir().unwrap();
        let (sender, _events) = mpsc::channel(16);
        let runtime = match ProcessRuntime::start(config(dir.path(), isolation), sender) {
            Ok(runtime) => runtime,
            Err(error) => return Some(error.to_string()),
        };
        let facts = runtime.facts();
        runtime.close();
        (facts.best < Some(isolation)).then(|| facts.missing.join("; "))
    }
}

/// Be the keeper of the process runtime.
pub(crate) fn keeper(args: impl Iterator<Item = String>) -> ExitCode {
    dirigent_runtime::keeper::main(args)
}

fn config(dir: &Path, isolation: Isolation) -> ProcessConfig {
    let this = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    ProcessConfig {
        max_isolation: isolation,
        parked: 1,
        // It ends by itself also when a test ends in the middle.
        keeper_idle: Duration::from_secs(5),
        ..ProcessConfig::new(dir, vec![this, "keeper".to_owned()])
    }
}

/// The containerd of this run, and the image of the function.
#[cfg(feature = "containerd")]
pub(crate) struct Shared {
    daemon: daemon::Daemon,
    dir: tempfile::TempDir,
    image: Digest,
}

#[cfg(feature = "containerd")]
pub(crate) static SHARED: std::sync::Mutex<Option<Shared>> = std::sync::Mutex::new(None);

#[cfg(feature = "containerd")]
impl Shared {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let this = std::env::current_exe().unwrap();
        let program = images::stripped(&this, &dir.path().join("program"));
        let mut layer = images::Layer::new();
        layer.program("conformance", &program).busybox().directory("tmp", 0o1777);
        let config = serde_json::json!({ "Entrypoint": ["/conformance"], "Cmd": ["function"] });
        let image = images::Image::new(layer, config).docker_archive(&dir.path().join("image"));
        Self { daemon: daemon::Daemon::start(), dir, image }
    }

    /// For a directory; `archive` is where the image's is copied, which goes when it is taken.
    fn with<T>(act: impl FnOnce(&Self) -> T) -> T {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        act(shared.get_or_insert_with(Self::new))
    }
}

/// With networks of their own, as a worker has it where the machine can do that.
#[cfg(feature = "containerd")]
fn by_containerd(
    dir: &Path,
    tasks: Tasks,
    sender: mpsc::Sender<Event>,
) -> (Arc<ContainerRuntime>, Arc<ProcessRuntime>) {
    let socket = Shared::with(|shared| shared.daemon.socket());
    let (unheard, _no_processes) = mpsc::channel(1);
    let processes =
        ProcessConfig { parked: 0, spaces: 2, ..config(&dir.join("pool"), Isolation::Strict) };
    let processes = ProcessRuntime::start(processes, unheard).unwrap();
    let config = ContainerConfig {
        socket,
        spaces: Some(processes.spaces()),
        tasks,
        ..ContainerConfig::new(&dir.join("oci"))
    };
    (ContainerRuntime::start(config, sender).unwrap(), processes)
}

/// A runtime at work.
pub(crate) struct Harness {
    pub(crate) subject: Subject,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: Arc<dyn Runtime>,
    owned: Owned,
    events: mpsc::Receiver<Event>,
}

/// The same runtime, as its owner knows it.
enum Owned {
    Fake(Arc<FakeRuntime>),
    Process(Arc<ProcessRuntime>),
    #[cfg(feature = "containerd")]
    Container(Arc<ContainerRuntime>, Arc<ProcessRuntime>),
}

impl Harness {
    #[cfg_attr(
        not(feature = "containerd"),
        expect(clippy::unused_async, reason = "images are waited for")
    )]
    pub(crate) async fn new(subject: Subject) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::channel(256);
        let owned = match subject {
            Subject::Fake => Owned::Fake(FakeRuntime::start(FakeConfig::default(), sender)),
            Subject::Process(isolation) => {
                let config = config(dir.path(), isolation);
                Owned::Process(ProcessRuntime::start(config, sender).unwrap())
            }
            #[cfg(feature = "containerd")]
            Subject::Image(tasks) => {
                let (oci, processes) = by_containerd(dir.path(), tasks, sender);
                Owned::Container(oci, processes)
            }
        };
        #[cfg_attr(not(feature = "containerd"), expect(unused_mut, reason = "for images"))]
        let mut harness = Self { subject, dir, runtime: owned.runtime(), owned, events };
        assert_eq!(harness.runtime.recover().unwrap(), [], "nothing is left of others");
        #[cfg(feature = "containerd")]
        if matches!(subject, Subject::Image(_)) {
            harness.take_image().await;
        }
        harness
    }

    #[cfg(feature = "containerd")]
    async fn take_image(&mut self) {
        let (digest, archive) = self.image();
        self.runtime.unpack(digest, archive);
        assert_eq!(self.next().await, Event::Unpacked { digest, result: Ok(()) });
    }

    /// The function's image, in an archive that may be taken.
    #[cfg(feature = "containerd")]
    fn image(&self) -> (Digest, PathBuf) {
        let path = self.dir.path().join("image");
        let digest = Shared::with(|shared| {
            std::fs::copy(shared.dir.path().join("image"), &path).unwrap();
            shared.image
        });
        (digest, path)
    }

    /// The worker's process is gone; `meanwhile` happens; another one comes.
    pub(crate) async fn restart(&mut self, meanwhile: impl Future<Output = ()>) {
        let (sender, events) = mpsc::channel(256);
        self.owned = match (&self.owned, self.subject) {
            (Owned::Process(before), Subject::Process(isolation)) => {
                before.detach();
                meanwhile.await;
                let config = config(self.dir.path(), isolation);
                Owned::Process(ProcessRuntime::start(config, sender).unwrap())
            }
            (Owned::Fake(before), _) => {
                let after = before.taken_over(sender);
                meanwhile.await;
                Owned::Fake(after)
            }
            #[cfg(feature = "containerd")]
            (Owned::Container(before, processes), Subject::Image(tasks)) => {
                before.detach();
                processes.detach();
                meanwhile.await;
                let (oci, processes) = by_containerd(self.dir.path(), tasks, sender);
                Owned::Container(oci, processes)
            }
            #[cfg(feature = "containerd")]
            (Owned::Container(..), _) => unreachable!("it is what it was made as"),
            (Owned::Process(_), _) => unreachable!("it is what it was made as"),
        };
        self.runtime = self.owned.runtime();
        self.events = events;
    }

    /// What the keeper says does not work here, which some cases need.
    pub(crate) fn lacks(&self, what: &str) -> bool {
        let lacking = self.runtime.facts().missing.into_iter().find(|line| line.contains(what));
        if let Some(line) = &lacking {
            println!("skip: a case on {}: {line}", self.subject.name());
        }
        lacking.is_some()
    }

    pub(crate) async fn next(&mut self) -> Event {
        let event = tokio::time::timeout(DEADLINE, self.events.recv()).await;
        event.expect("an event comes in time").expect("the runtime goes on")
    }

    /// An order that nothing is special about; its program is this one.
    pub(crate) fn order(&self, env: &[(&str, &str)]) -> CreateSandbox {
        static SANDBOXES: AtomicU64 = AtomicU64::new(1);
        let spec = Spec {
            sandbox: SandboxSpec {
                isolation: match self.subject {
                    Subject::Process(isolation) => Some(isolation),
                    _ => None,
                },
                ..SandboxSpec::new(self.subject.kind(), self.command())
            },
            resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(64) },
            env: env.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            concurrency: 0,
            artifact: self.artifact(),
        };
        CreateSandbox {
            order: StartSandbox {
                sandbox: SandboxId::new(Epoch(1), SANDBOXES.fetch_add(1, Ordering::Relaxed)),
                revision: RevisionId { function: function(), number: 1 },
                name: FunctionName::new("default", "conform").unwrap(),
                spec: Arc::new(spec),
                start_timeout: DEADLINE,
            },
            port: free_port(),
        }
    }

    /// An image says itself what is run.
    fn command(&self) -> Vec<String> {
        match self.subject {
            Subject::Fake | Subject::Process(_) => ["dirigent", "function"].map(Into::into).into(),
            #[cfg(feature = "containerd")]
            Subject::Image(_) => Vec::new(),
        }
    }

    fn artifact(&self) -> Option<Digest> {
        match self.subject {
            Subject::Fake | Subject::Process(_) => None,
            #[cfg(feature = "containerd")]
            Subject::Image(_) => Some(Shared::with(|shared| shared.image)),
        }
    }

    /// Create a sandbox and wait until it listens.
    pub(crate) async fn ready(&mut self, create: CreateSandbox) -> (SandboxId, SocketAddr) {
        let (id, port) = (create.order.sandbox, create.port);
        self.runtime.create(create);
        assert_eq!(self.next().await, Event::Created { sandbox: id });
        match self.next().await {
            Event::Listening { sandbox, address: Address::Tcp(address), init } => {
                assert_eq!((sandbox, address.port()), (id, port));
                assert!(init < DEADLINE, "{init:?}");
                (sandbox, address)
            }
            other => panic!("not listening: {other:?}"),
        }
    }

    pub(crate) async fn gone(&mut self, sandbox: SandboxId) -> StartFailure {
        loop {
            match self.next().await {
                Event::Gone { sandbox: gone, failure } if gone == sandbox => return failure,
                _ => {}
            }
        }
    }

    /// Create one that is to fail, and see how it does.
    pub(crate) async fn failure(&mut self, create: CreateSandbox) -> StartFailure {
        let sandbox = create.order.sandbox;
        self.runtime.create(create);
        self.gone(sandbox).await
    }

    pub(crate) async fn stop(&mut self, sandbox: SandboxId) -> StartFailure {
        self.runtime.destroy(sandbox, Duration::from_secs(10));
        self.gone(sandbox).await
    }

    /// What the function wrote, read in a thread as the worker does.
    pub(crate) async fn logged(&self, sandbox: Option<SandboxId>, tail: u32) -> Vec<String> {
        let mut lines = self.log(sandbox, tail, false);
        let mut texts = Vec::new();
        while let Some(batch) = lines.recv().await {
            texts.extend(batch.into_iter().map(|line| line.text));
        }
        texts
    }

    pub(crate) fn log(
        &self,
        sandbox: Option<SandboxId>,
        tail: u32,
        follow: bool,
    ) -> mpsc::Receiver<Vec<dirigent_core::frame::LogLine>> {
        let (out, lines) = mpsc::channel(16);
        let runtime = Arc::clone(&self.runtime);
        let (since_ms, until_ms) = (None, None);
        let query =
            LogQuery { id: 1, function: function(), sandbox, since_ms, until_ms, tail, follow };
        drop(tokio::task::spawn_blocking(move || runtime.logs(query, out)));
        lines
    }

    /// Somebody else ends the function with SIGKILL. It cannot do that itself everywhere: the first process
    /// of a pid namespace is safe from itself.
    pub(crate) async fn kill(&self, address: SocketAddr) {
        if self.subject == Subject::Fake {
            assert_eq!(get(address, "/kill?signal=9").await, None, "the call is cut");
            return;
        }
        let mark = format!("PORT={}", address.port());
        let processes = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|line| line == mark.as_bytes())
        });
        let found: Vec<i32> =
            processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).collect();
        let [pid] = found[..] else { panic!("{found:?} have {mark}") };
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    /// An archive to be unpacked, and its digest.
    pub(crate) fn archive(&self) -> (Digest, PathBuf) {
        #[cfg(feature = "containerd")]
        if matches!(self.subject, Subject::Image(_)) {
            let path = self.dir.path().join("archive");
            let mut layer = images::Layer::new();
            layer.file("data.txt", 0o644, b"from the image").directory("tmp", 0o1777);
            let config = serde_json::json!({ "Cmd": ["/data.txt"] });
            return (images::Image::new(layer, config).docker_archive(&path), path);
        }
        let files = self.dir.path().join("files");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("data.txt"), "from the artifact").unwrap();
        let packed = dirigent_runtime::artifact::pack(&files).unwrap();
        let path = self.dir.path().join("archive");
        std::fs::copy(packed.archive.path(), &path).unwrap();
        (packed.digest, path)
    }
}

impl Owned {
    fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Self::Fake(fake) => Arc::clone(fake) as _,
            Self::Process(process) => Arc::clone(process) as _,
            #[cfg(feature = "containerd")]
            Self::Container(oci, _) => Arc::clone(oci) as _,
        }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        match &self.owned {
            Owned::Fake(_) => {}
            Owned::Process(runtime) => runtime.close(),
            #[cfg(feature = "containerd")]
            Owned::Container(runtime, processes) => {
                runtime.close();
                processes.close();
            }
        }
    }
}

pub(crate) fn function() -> FunctionId {
    FunctionId::new(Epoch(1), 1)
}

/// A port that nobody has now, of the range that sandboxes have.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() % 89).unwrap() * 100;
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20000 + (offset + n) % 9900;
        // Bound without listening: a look of the runtime at who listens must not see it.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // No keeper that is started meanwhile may inherit it.
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        if bind(&socket, &address).is_ok() {
            return port;
        }
    }
}

/// What the function answers; `None` if the connection broke.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let call = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    };
    tokio::time::timeout(DEADLINE, call).await.expect("an answer comes in time")
}

/// Wait until `holds`, looking often.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let over = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < over, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
