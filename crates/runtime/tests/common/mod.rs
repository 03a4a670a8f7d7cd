//! A process runtime in a directory of its own, and what tests ask of it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dirigent_core::{
    Address, Bytes, Cause, Epoch, FunctionId, FunctionName, Isolation, MilliCpu, Resources,
    RevisionId, RuntimeKind, SandboxId, SandboxSpec, Spec, StartFailure,
    frame::{LogLine, LogQuery, StartSandbox},
    worker::CreateSandbox,
};
use dirigent_runtime::{
    Event, Runtime as _,
    process::{ProcessConfig, ProcessRuntime},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::sync::mpsc;

pub(crate) mod host;

/// No wait is longer: a machine may be slow, a test must end.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Where those listen that were started, by port: no two have the same.
static PLACES: Mutex<BTreeMap<u16, SocketAddr>> = Mutex::new(BTreeMap::new());

/// Where a sandbox is reached.
pub(crate) fn place(port: u16) -> SocketAddr {
    let known = PLACES.lock().expect("no panic").get(&port).copied();
    known.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into())
}

/// From now on.
pub(crate) fn listens_at(at: SocketAddr) {
    PLACES.lock().expect("no panic").insert(at.port(), at);
}

pub(crate) struct Rig {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) runtime: Arc<ProcessRuntime>,
    pub(crate) events: mpsc::Receiver<Event>,
}

pub(crate) fn helper() -> String {
    env!("CARGO_BIN_EXE_runtime-test-helper").to_owned()
}

pub(crate) fn config(directory: &Path) -> ProcessConfig {
    let mut config = ProcessConfig::new(directory, vec![helper(), "keeper".to_owned()]);
    config.parked = 2;
    // The kernel counts processes by uid: one test's must not be another's.
    static RIGS: AtomicU64 = AtomicU64::new(0);
    let rig = RIGS.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 37;
    config.uid_base += u32::try_from(rig % 10_000).expect("it is small") << 16;
    config
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Rig {
    pub(crate) fn new(change: impl FnOnce(&mut ProcessConfig)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = config(directory.path());
        change(&mut config);
        let (tx, events) = mpsc::channel(1024);
        let runtime = ProcessRuntime::start(config, tx).expect("a keeper");
        assert_eq!(runtime.recover().expect("recovers"), []);
        Self { directory, runtime, events }
    }

    /// Whether sandboxes that demand nothing get `basic`, be it without its network rules.
    pub(crate) fn has_basic(&self) -> bool {
        self.runtime.facts().usual >= Some(Isolation::Basic)
    }

    /// What a sandbox demands to get `basic`: nothing where something of it is missing, as for root
    /// without `nft`, since there it cannot be demanded.
    pub(crate) fn basic(&self) -> Option<Isolation> {
        self.runtime
            .facts()
            .best
            .map(|best| best.min(Isolation::Basic))
            .filter(|l| *l > Isolation::Plain)
    }

    /// Whether a network of its own can be demanded.
    pub(crate) fn has_strict(&self) -> bool {
        self.runtime.facts().best == Some(Isolation::Strict)
    }

    /// What happens next.
    pub(crate) fn event(&mut self) -> Event {
        next(&mut self.events)
    }

    pub(crate) fn listening(&mut self, sandbox: SandboxId) {
        assert_eq!(self.event(), Event::Created { sandbox });
        let event = self.event();
        let Event::Listening { sandbox: s, address: Address::Tcp(at), .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!(s, sandbox);
        listens_at(at);
    }

    pub(crate) fn gone(&mut self, sandbox: SandboxId) -> StartFailure {
        loop {
            match self.event() {
                Event::Gone { sandbox: s, failure } if s == sandbox => return failure,
                Event::Created { .. } | Event::Listening { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// A server that listens.
    pub(crate) fn serve(&mut self, isolation: Option<Isolation>) -> (SandboxId, u16) {
        let create = server(isolation);
        let (sandbox, port) = (create.order.sandbox, create.port);
        self.runtime.create(create);
        self.listening(sandbox);
        (sandbox, port)
    }

    pub(crate) fn destroy(&mut self, sandbox: SandboxId) {
        self.runtime.destroy(sandbox, Duration::ZERO);
        assert_eq!(self.gone(sandbox).cause, Cause::Stopped);
    }

    /// The lines of a function's log.
    pub(crate) fn lines(&self, function: FunctionId) -> Vec<LogLine> {
        let (tx, mut rx) = mpsc::channel(64);
        self.runtime.logs(
            LogQuery {
                id: 1,
                function,
                sandbox: None,
                since_ms: None,
                until_ms: None,
                tail: 1_000,
                follow: false,
            },
            tx,
        );
        let mut lines = Vec::new();
        while let Ok(batch) = rx.try_recv() {
            lines.extend(batch);
        }
        lines
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.runtime.close();
    }
}

pub(crate) fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    let mut event = None;
    until("an event", || {
        event = events.try_recv().ok();
        event.is_some()
    });
    event.expect("was waited for")
}

/// Wait for a condition, with a deadline.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// A port that was free a moment ago, outside of the range from which connections get theirs.
pub(crate) fn free_port() -> u16 {
    static OFFSET: AtomicU64 = AtomicU64::new(0);
    loop {
        let offset = OFFSET.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 37;
        let port = u16::try_from(10_000 + offset % 9_000).expect("a port");
        // Bound without listening: a look of the runtime at who listens must not see it.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // No keeper that is started meanwhile may inherit it.
        let flags = SocketFlags::CLOEXEC;
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
        if bind(&socket, &address).is_ok() {
            return port;
        }
    }
}

pub(crate) fn create(command: &[&str], isolation: Option<Isolation>) -> CreateSandbox {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    CreateSandbox {
        order: StartSandbox {
            sandbox: SandboxId::new(Epoch(1), number),
            revision: RevisionId { function: FunctionId::new(Epoch(1), number), number: 3 },
            name: FunctionName::new("default", "hello").expect("a name"),
            spec: Arc::new(Spec {
                sandbox: SandboxSpec {
                    isolation,
                    ..SandboxSpec::new(
                        RuntimeKind::Process,
                        command.iter().map(|&word| word.to_owned()).collect(),
                    )
                },
                resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(64) },
                env: BTreeMap::new(),
                concurrency: 1,
                artifact: None,
            }),
            start_timeout: DEADLINE,
        },
        port: free_port(),
    }
}

pub(crate) fn server(isolation: Option<Isolation>) -> CreateSandbox {
    create(&["dirigent", "serve"], isolation)
}

/// Change a specification.
pub(crate) fn with(mut create: CreateSandbox, change: impl FnOnce(&mut Spec)) -> CreateSandbox {
    change(Arc::make_mut(&mut create.order.spec));
    create
}

pub(crate) fn mode(create: CreateSandbox, mode: &str) -> CreateSandbox {
    with(create, |spec| {
        spec.env.insert("MODE".to_owned(), mode.to_owned());
    })
}

/// One question to the helper's server.
pub(crate) fn ask(port: u16, question: &str) -> String {
    let mut stream = TcpStream::connect(place(port)).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    stream.write_all(format!("{question}\n").as_bytes()).expect("writes");
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => answer,
        Err(error) => format!("{answer}! {error}"),
    }
}

/// The output of a shell command in the sandbox, which must succeed.
pub(crate) fn run(port: u16, command: &str) -> String {
    let answer = ask(port, &format!("run {command}"));
    let output = answer.strip_prefix("0:");
    output.unwrap_or_else(|| panic!("`{command}` failed: {answer}")).to_owned()
}

/// A shell command in the sandbox, which must fail; what it says.
pub(crate) fn refused(port: u16, command: &str) -> String {
    let answer = ask(port, &format!("run {command}"));
    assert!(!answer.starts_with("0:"), "`{command}` worked: {answer}");
    answer
}
