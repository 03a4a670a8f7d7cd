//! A worker on the bench: its control plane is played by the test.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use dirigent_core::{
    Address, ClusterId, Digest, Epoch, FunctionId, FunctionName, Resources, RevisionId,
    RuntimeKind, SandboxId, SandboxSpec, Spec, StartFailure, WorkerId,
    frame::{
        FromWorker, FromWorkerBulk, LogLine, StartSandbox, ToWorker, ToWorkerBulk, Welcome,
        WorkerHello,
    },
};
use dirigent_runtime::{
    Runtime,
    fake::{FakeConfig, FakeRuntime},
};
use dirigent_service::{Acceptor, End, Tasks, acceptor};
use dirigent_worker::{Config, Durability, Meter, Running, Settings};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    settings: Settings,
    tasks: Tasks,
    control: Acceptor<ToWorker, FromWorker>,
    bulk: Acceptor<ToWorkerBulk, FromWorkerBulk>,
    end: Option<End<ToWorker, FromWorker>>,
    bulk_end: Option<End<ToWorkerBulk, FromWorkerBulk>>,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) running: Running,
}

/// Ports of its own for each test, since tests of several processes run at once.
pub(crate) fn settings() -> Settings {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let pid = u16::try_from(std::process::id() % 397).unwrap();
    let first_port = 20000 + (pid * 23 + NEXT.fetch_add(1, Ordering::Relaxed) * 20) % 9900;
    let last_port = first_port + 40;
    Settings { first_port, last_port, ..Settings::default() }
}

fn config(state: PathBuf, settings: Settings) -> Config {
    Config { state, settings, durability: Durability::Host, ingress: None, meter: Meter::default() }
}

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::with(settings()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let (sender, events) = mpsc::channel(64);
        let runtime = FakeRuntime::start(FakeConfig::default(), sender);
        Self::over(tempfile::tempdir().unwrap(), settings, runtime, events).await
    }

    async fn over(
        dir: tempfile::TempDir,
        settings: Settings,
        runtime: Arc<FakeRuntime>,
        events: mpsc::Receiver<dirigent_runtime::Event>,
    ) -> Self {
        let (dialer, control) = acceptor("worker");
        let (bulk_dialer, bulk) = acceptor("worker");
        let tasks = Tasks::new();
        let config = config(dir.path().join("worker"), settings.clone());
        let runtimes: Vec<(Arc<dyn Runtime>, _)> = vec![(Arc::clone(&runtime) as _, events)];
        let running =
            dirigent_worker::start(config, runtimes, dialer, bulk_dialer, &tasks).await.unwrap();
        Self { dir, settings, tasks, control, bulk, end: None, bulk_end: None, runtime, running }
    }

    /// The worker's process ends and another begins; its sandboxes are not asked.
    pub(crate) async fn restart(self) -> Self {
        self.tasks.stop();
        assert!(self.tasks.wait(DEADLINE).await, "its tasks end");
        let (sender, events) = mpsc::channel(64);
        let runtime = self.runtime.taken_over(sender);
        let Self { dir, settings, .. } = self;
        Self::over(dir, settings, runtime, events).await
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("worker")
    }

    pub(crate) async fn attach(&mut self) -> WorkerHello {
        self.attach_to(Welcome { cluster: ClusterId(7), epoch: Epoch(1) }).await
    }

    pub(crate) async fn attach_to(&mut self, welcome: Welcome) -> WorkerHello {
        let (identity, mut end) = timeout(DEADLINE, self.control.accept()).await.unwrap().unwrap();
        assert_eq!(&*identity, "worker");
        let first = timeout(DEADLINE, end.rx.recv()).await.unwrap().unwrap();
        let FromWorker::Hello(hello) = first else { panic!("{first:?}") };
        end.tx.send(ToWorker::Welcome { welcome, you: WorkerId(1) }).await.unwrap();
        self.end = Some(end);
        *hello
    }

    pub(crate) fn break_stream(&mut self) {
        self.end = None;
    }

    pub(crate) async fn say(&mut self, frame: ToWorker) {
        // A worker that left does not hear it.
        drop(self.end.as_ref().unwrap().tx.send(frame).await);
    }

    /// The next frame that is `wanted`; all before it are dropped.
    pub(crate) async fn hear(&mut self, wanted: impl Fn(&FromWorker) -> bool) -> FromWorker {
        let end = self.end.as_mut().unwrap();
        timeout(DEADLINE, async {
            loop {
                let frame = end.rx.recv().await.expect("the worker stays");
                if wanted(&frame) {
                    return frame;
                }
            }
        })
        .await
        .expect("the frame comes in time")
    }

    /// The worker gives the stream up.
    pub(crate) async fn closed(&mut self) {
        let end = self.end.as_mut().unwrap();
        let drained = async { while end.rx.recv().await.is_some() {} };
        timeout(DEADLINE, drained).await.expect("the worker leaves");
        self.end = None;
    }

    pub(crate) async fn order(&mut self, n: u64, env: &[(&str, &str)], artifact: Option<Digest>) {
        let order = StartSandbox {
            sandbox: sandbox(n),
            revision: RevisionId { function: function(), number: 1 },
            name: FunctionName::new("default", "f").unwrap(),
            spec: Arc::new(spec(env, artifact)),
            start_timeout: DEADLINE,
        };
        self.say(ToWorker::StartSandbox(Box::new(order))).await;
    }

    pub(crate) async fn ready(
        &mut self,
        n: u64,
        env: &[(&str, &str)],
        artifact: Option<Digest>,
    ) -> SocketAddr {
        self.order(n, env, artifact).await;
        let wanted = |frame: &FromWorker| {
            matches!(frame, FromWorker::SandboxReady { .. } | FromWorker::SandboxGone { .. })
        };
        match self.hear(wanted).await {
            FromWorker::SandboxReady { sandbox: ready, address: Address::Tcp(address), .. } => {
                assert_eq!(ready, sandbox(n));
                address
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn gone(&mut self, n: u64) -> StartFailure {
        let wanted = |frame: &FromWorker| matches!(frame, FromWorker::SandboxGone { sandbox: gone, .. } if *gone == sandbox(n));
        let FromWorker::SandboxGone { failure, .. } = self.hear(wanted).await else { panic!() };
        failure
    }

    /// Take the next bulk connection, closing the one there is.
    pub(crate) async fn attach_bulk(&mut self) {
        self.bulk_end = None;
        let (_, end) = timeout(DEADLINE, self.bulk.accept()).await.unwrap().unwrap();
        self.bulk_end = Some(end);
    }

    pub(crate) async fn say_bulk(&mut self, frame: ToWorkerBulk) {
        self.bulk_end.as_ref().unwrap().tx.send(frame).await.unwrap();
    }

    pub(crate) async fn chunk(&mut self, digest: Digest, data: &[u8], end: bool) {
        self.say_bulk(ToWorkerBulk::Chunk { digest, data: data.to_vec(), end }).await;
    }

    pub(crate) async fn hear_bulk(&mut self) -> FromWorkerBulk {
        let end = self.bulk_end.as_mut().unwrap();
        timeout(DEADLINE, end.rx.recv()).await.unwrap().unwrap()
    }

    pub(crate) fn bulk_is_quiet(&mut self) -> bool {
        self.bulk_end.as_mut().unwrap().rx.try_recv().is_err()
    }

    /// The next `n` lines of a log query.
    pub(crate) async fn lines(&mut self, query: u64, n: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < n {
            let FromWorkerBulk::LogLines { id, lines, end, .. } = self.hear_bulk().await else {
                panic!("no log lines")
            };
            assert_eq!(id, query);
            assert!(!end, "only {texts:?}");
            texts.extend(lines.into_iter().map(|LogLine { text, .. }| text));
        }
        texts
    }

    pub(crate) async fn logs_end(&mut self, query: u64) -> bool {
        let frame = self.hear_bulk().await;
        matches!(frame, FromWorkerBulk::LogLines { id, end: true, .. } if id == query)
    }
}

pub(crate) async fn start_without_runtimes() -> String {
    let dir = tempfile::tempdir().unwrap();
    let (dialer, _control) = acceptor("worker");
    let (bulk_dialer, _bulk) = acceptor("worker");
    let config = config(dir.path().to_owned(), settings());
    let started =
        dirigent_worker::start(config, Vec::new(), dialer, bulk_dialer, &Tasks::new()).await;
    started.unwrap_err().to_string()
}

pub(crate) fn sandbox(n: u64) -> SandboxId {
    SandboxId::new(Epoch(1), n)
}

pub(crate) fn function() -> FunctionId {
    FunctionId::new(Epoch(1), 1)
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

fn spec(env: &[(&str, &str)], artifact: Option<Digest>) -> Spec {
    Spec {
        sandbox: SandboxSpec::new(RuntimeKind::Fake, vec!["fake".to_owned()]),
        resources: Resources::default(),
        env: env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        concurrency: 1,
        artifact,
    }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
