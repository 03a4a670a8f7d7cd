//! What a start costs: a bare spawn and the process runtime, in turns, same server.
//!
//! `cargo run --release -p dirigent-runtime --example start-cost [ROUNDS [PER_SECOND]]`. Prints
//! medians and 99th percentiles in microseconds. The server is this program itself. With `burst
//! [COUNT]` so many are started at once, five times, and the last one's answer counts.

use std::{
    collections::BTreeMap,
    env,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use dirigent_core::{
    Address, Bytes, Epoch, FunctionId, FunctionName, Isolation, Listen, MilliCpu, Resources,
    RevisionId, RuntimeKind, SandboxId, SandboxSpec, Spec, frame::StartSandbox,
    worker::CreateSandbox,
};
use dirigent_runtime::{
    Event, Runtime as _,
    process::{ProcessConfig, ProcessRuntime},
};
use tokio::sync::mpsc;

fn main() -> Result<ExitCode> {
    let mut args = env::args().skip(1);
    match args.next().as_deref() {
        Some("keeper") => Ok(dirigent_runtime::keeper::main(args)),
        Some("serve") => serve(),
        Some("burst") => {
            burst(args.next().map_or(Ok(200), |count| count.parse())?)?;
            Ok(ExitCode::SUCCESS)
        }
        rounds => {
            let rounds = rounds.map_or(Ok(200), str::parse)?;
            let rate = args.next().map_or(Ok(20), |rate| rate.parse())?;
            measure(rounds, rate)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn serve() -> Result<ExitCode> {
    let listener = match dirigent_runtime::passed_listener() {
        Some(listener) => listener,
        None => TcpListener::bind(format!("{}:{}", env::var("HOST")?, env::var("PORT")?))?,
    };
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"hello")?;
    }
}

/// The first answer, as soon as there is one.
fn first_answer(at: impl Into<SocketAddr>) -> Result<()> {
    let at = at.into();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if let Ok(mut stream) = TcpStream::connect(at) {
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_micros(50));
    }
    bail!("no answer at {at}")
}

fn bare(port: u16) -> Result<Duration> {
    let start = Instant::now();
    let mut child = Command::new(env::current_exe()?)
        .arg("serve")
        .env_clear()
        .env("PORT", port.to_string())
        .env("HOST", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    first_answer((Ipv4Addr::LOCALHOST, port))?;
    let took = start.elapsed();
    child.kill()?;
    child.wait()?;
    Ok(took)
}

const STRICT: [&str; 3] = ["strict: executed", "strict: seen listening", "strict: first answer"];
const STRICT_FD: [&str; 3] = ["strict fd: executed", "strict fd: ready", "strict fd: first answer"];

#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<Duration>>);

impl Samples {
    fn add(&mut self, what: &'static str, took: Duration) {
        self.0.entry(what).or_default().push(took);
    }
}

fn order(number: u64, port: u16, isolation: Isolation, listen: Listen) -> Result<CreateSandbox> {
    Ok(CreateSandbox {
        order: StartSandbox {
            sandbox: SandboxId::new(Epoch(1), number),
            revision: RevisionId { function: FunctionId::new(Epoch(1), 1), number: 1 },
            name: FunctionName::new("default", "hello")?,
            spec: Arc::new(Spec {
                sandbox: SandboxSpec {
                    isolation: Some(isolation),
                    listen,
                    ..SandboxSpec::new(
                        RuntimeKind::Process,
                        vec!["dirigent".to_owned(), "serve".to_owned()],
                    )
                },
                resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(64) },
                env: BTreeMap::new(),
                concurrency: 1,
                artifact: None,
            }),
            start_timeout: Duration::from_secs(10),
        },
        port,
    })
}

struct Bench {
    runtime: Arc<ProcessRuntime>,
    events: mpsc::Receiver<Event>,
    samples: Samples,
}

impl Bench {
    fn next(&mut self) -> Result<Event> {
        self.events.blocking_recv().context("the runtime has ended")
    }

    fn start(&mut self, names: [&'static str; 3], create: CreateSandbox) -> Result<()> {
        let sandbox = create.order.sandbox;
        let start = Instant::now();
        self.runtime.create(create);
        match self.next()? {
            Event::Created { .. } => {}
            other => bail!("{other:?}"),
        }
        let created = start.elapsed();
        let at = match self.next()? {
            Event::Listening { address: Address::Tcp(at), .. } => at,
            other => bail!("{other:?}"),
        };
        let listening = start.elapsed();
        first_answer(at)?;
        self.samples.add(names[0], created);
        self.samples.add(names[1], listening);
        self.samples.add(names[2], start.elapsed());
        self.runtime.destroy(sandbox, Duration::ZERO);
        match self.next()? {
            Event::Gone { .. } => Ok(()),
            other => bail!("{other:?}"),
        }
    }
}

fn burst(count: u16) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let exe = env::current_exe()?.to_string_lossy().into_owned();
    let config = ProcessConfig::new(directory.path(), vec![exe.clone(), "keeper".to_owned()]);
    let (tx, mut events) = mpsc::channel(1024);
    let runtime = ProcessRuntime::start(config, tx)?;
    runtime.recover()?;
    let best = runtime.facts().best.context("no isolation works")?;
    let mut out = std::io::stdout();
    for round in 0..5 {
        let ports: Vec<u16> = (20_000..20_000 + count).collect();
        let start = Instant::now();
        let mut children = Vec::new();
        for port in &ports {
            let mut command = Command::new(&exe);
            command.arg("serve").env_clear();
            command.env("PORT", port.to_string()).env("HOST", "127.0.0.1");
            children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        }
        for port in &ports {
            first_answer((Ipv4Addr::LOCALHOST, *port))?;
        }
        let bare = start.elapsed();
        for child in &mut children {
            child.kill()?;
            child.wait()?;
        }
        let start = Instant::now();
        for port in &ports {
            let number = u64::from(round * count + port);
            runtime.create(order(number, port + 5_000, best, Listen::Port)?);
        }
        let (mut listening, mut started) = (0, Vec::new());
        while listening < count {
            match events.blocking_recv().context("the runtime has ended")? {
                Event::Listening { sandbox, .. } => {
                    listening += 1;
                    started.push(sandbox);
                }
                Event::Created { .. } => {}
                other => bail!("{other:?}"),
            }
        }
        let took = start.elapsed();
        let start = Instant::now();
        for sandbox in &started {
            runtime.destroy(*sandbox, Duration::ZERO);
        }
        for _ in &started {
            events.blocking_recv().context("the runtime has ended")?;
        }
        let gone = start.elapsed();
        writeln!(out, "{count} at once: bare {bare:?}, {best} {took:?}, all gone {gone:?}")?;
    }
    runtime.close();
    Ok(())
}

fn measure(rounds: u64, per_second: u32) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let exe = env::current_exe()?.to_string_lossy().into_owned();
    let config = ProcessConfig::new(directory.path(), vec![exe, "keeper".to_owned()]);
    let (tx, events) = mpsc::channel(64);
    let runtime = ProcessRuntime::start(config, tx)?;
    runtime.recover()?;
    let mut out = std::io::stdout();
    writeln!(out, "{:?}", runtime.facts())?;
    let mut bench = Bench { runtime, events, samples: Samples::default() };
    let best = bench.runtime.facts().best;
    let (basic, strict) = (best >= Some(Isolation::Basic), best == Some(Isolation::Strict));
    let pause = Duration::from_secs(1) / per_second;
    let mut port = 20_000;
    for number in 0..rounds {
        let mut next_port = || {
            port = if port >= 29_999 { 20_000 } else { port + 1 };
            port
        };
        let bare = bare(next_port())?;
        bench.samples.add("bare: first answer", bare);
        std::thread::park_timeout(pause);
        let plain = order(number * 5, next_port(), Isolation::Plain, Listen::Port)?;
        bench.start(["plain: executed", "plain: seen listening", "plain: first answer"], plain)?;
        std::thread::park_timeout(pause);
        if !basic {
            continue;
        }
        let create = order(number * 5 + 1, next_port(), Isolation::Basic, Listen::Port)?;
        bench.start(["basic: executed", "basic: seen listening", "basic: first answer"], create)?;
        std::thread::park_timeout(pause);
        let create = order(number * 5 + 2, next_port(), Isolation::Basic, Listen::Fd)?;
        bench.start(["basic fd: executed", "basic fd: ready", "basic fd: first answer"], create)?;
        std::thread::park_timeout(pause);
        if !strict {
            continue;
        }
        let create = order(number * 5 + 3, next_port(), Isolation::Strict, Listen::Port)?;
        bench.start(STRICT, create)?;
        std::thread::park_timeout(pause);
        let create = order(number * 5 + 4, next_port(), Isolation::Strict, Listen::Fd)?;
        bench.start(STRICT_FD, create)?;
        std::thread::park_timeout(pause);
    }
    for (what, samples) in &mut bench.samples.0 {
        samples.sort_unstable();
        let at = |share: usize| samples[(samples.len() - 1) * share / 100].as_micros();
        writeln!(out, "{what:24} p50 {:6} us   p99 {:6} us   n {}", at(50), at(99), samples.len())?;
    }
    bench.runtime.close();
    Ok(())
}
