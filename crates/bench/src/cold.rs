//! Cold starts beside bare starts of the same program, alternately in the same run: the floor is
//! what the machine takes to execute the program and get its first answer.

pub mod sweep;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, Isolation, MilliCpu,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use http::Method;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    Cluster, bare,
    load::{Call, Load},
    percentiles::{Summary, ms, summary},
    phases::{Phases, WAY, told},
    replay, static_server,
};

/// What to start, and how often.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program started bare; it listens on `$PORT`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The same as a function.
    pub sandbox: Sandbox,
    /// What the function may use.
    pub memory: Size,
    /// Starts of each kind.
    pub starts: usize,
    /// Starts of both kinds together per second.
    pub per_second: f64,
}

/// What was seen. Times from the call to the end of the first answer.
#[derive(Clone, Debug, Serialize)]
pub struct Cold {
    /// The isolation that was demanded and therefore measured; none demanded is what there is.
    pub isolation: Option<Isolation>,
    /// Bare spawn, connect when it listens, first answer.
    pub bare_ms: Summary,
    /// Through Dirigent, from the moment at which the call is due, on a kept connection.
    pub dirigent_ms: Summary,
    /// Phases told in `Server-Timing`: medians in milliseconds.
    pub phases_ms: Vec<(String, f64)>,
    /// The sum of the phases over what callers saw: 1 if nothing is unexplained. The phase `way`, to
    /// the data plane and back, is what a call to a running sandbox that was made shortly before
    /// took besides its own phases.
    pub phases_to_total: f64,
    /// The same without `way`, which is measured apart: what `Server-Timing` alone explains.
    pub told_to_total: f64,
    /// Calls that failed or were lost.
    pub failed: usize,
}

/// Alternates bare and cold starts.
///
/// # Errors
/// If a function cannot be deployed, or a bare start fails.
pub async fn run(cluster: &dyn Cluster, options: &Options) -> Result<Cold> {
    // A function for each start, so that each call is a cold one and none waits for a stop.
    for number in 0..options.starts {
        cluster.deploy(manifest(&name(number), 0, options)?).await?;
    }
    cluster.deploy_checked(manifest(RUNNING, 1, options)?).await?.live()?;
    let gap = Duration::from_secs_f64(1.0 / options.per_second);
    let load = Load::http1(cluster.functions());
    let calls: Vec<Call> = (0..options.starts).flat_map(|number| pair(number, gap)).collect();
    let (samples, bare) =
        tokio::try_join!(load.run(calls, Arc::default()), bare_starts(options, gap))?;
    for number in 0..options.starts {
        cluster.remove(&name(number)).await?;
    }
    cluster.remove(RUNNING).await?;
    let (mut dirigent, mut phases, mut failed) = (Vec::new(), Phases::default(), 0);
    for pair in samples.chunks_exact(2) {
        let [running, start] = pair else { continue };
        let fails = pair.iter().filter(|sample| sample.failure.is_some()).count();
        if fails > 0 {
            failed += fails;
            continue;
        }
        let way = ms(running.latency()) - told(running.timing.as_deref().unwrap_or_default());
        let timing = start.timing.as_deref().unwrap_or_default();
        dirigent.push(ms(start.latency()));
        phases.add(ms(start.latency()), &format!("{timing}, {WAY};dur={way}"));
    }
    Ok(Cold {
        isolation: options.sandbox.isolation,
        bare_ms: summary(bare),
        dirigent_ms: summary(dirigent),
        phases_ms: phases.medians(),
        phases_to_total: phases.explained(),
        told_to_total: phases.told(),
        failed,
    })
}

/// When the bare start of this number is made; its cold one follows after a gap.
fn due(number: usize, gap: Duration) -> Duration {
    gap * u32::try_from(2 * number).unwrap_or(u32::MAX)
}

/// Whose sandbox is never stopped.
const RUNNING: &str = "cold-running";

/// Two calls on kept connections, as any client has: one to a running sandbox, which shows what the
/// way to the data plane and back takes, and the cold one.
fn pair(number: usize, gap: Duration) -> [Call; 2] {
    let begin = due(number, gap);
    [call(begin + gap / 2, RUNNING.into()), call(begin + gap, name(number).into())]
}

fn call(at: Duration, host: Arc<str>) -> Call {
    let (path, method, body) = ("/".to_owned(), Method::POST, Bytes::new());
    Call { at, host, path, method, body, fresh: false }
}

async fn bare_starts(options: &Options, gap: Duration) -> Result<Vec<f64>> {
    let begun = Instant::now();
    let mut took = Vec::with_capacity(options.starts);
    for number in 0..options.starts {
        tokio::time::sleep(due(number, gap).saturating_sub(begun.elapsed())).await;
        took.push(ms(bare_start(options).await?));
    }
    Ok(took)
}

fn name(number: usize) -> String {
    format!("cold-{number:05}")
}

fn manifest(name: &str, min: u32, options: &Options) -> Result<Manifest> {
    Ok(Manifest {
        name: name.parse().context("a benchmark's name")?,
        sandbox: options.sandbox.clone(),
        resources: ManifestResources { cpu: MilliCpu(10), memory: options.memory },
        scaling: Scaling { min, keep_alive: Duration::from_secs(1).into(), ..Scaling::default() },
        invocation: Invocation::default(),
        env: std::collections::BTreeMap::new(),
    })
}

/// Executes the program and waits for its first answer.
async fn bare_start(options: &Options) -> Result<Duration> {
    let port = bare::Port::keep()?;
    let begun = Instant::now();
    let _ends_with_this = bare::spawn(&options.program, &options.args, &port)?;
    answer(port.address()).await?;
    Ok(begun.elapsed())
}

/// Connects as soon as somebody listens and waits for the first answer.
pub(crate) async fn answer(address: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    let mut stream = loop {
        if let Ok(stream) = TcpStream::connect(address).await {
            break stream;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("the bare program did not listen within 60 s");
        }
        // The timers of the runtime are too coarse for what is measured; 50 us block nobody.
        let pause = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 50_000 };
        drop(rustix::thread::nanosleep(&pause));
    };
    stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
    let request =
        b"POST / HTTP/1.1\r\nhost: bare\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.context("cannot send to the bare program")?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.context("cannot hear the bare program")?;
    if !heard.starts_with(b"HTTP/1.1 200") {
        bail!("the bare program did not answer 200: {}", String::from_utf8_lossy(&heard));
    }
    Ok(())
}

impl Options {
    /// The [static server](static_server) that is `program`.
    #[must_use]
    pub fn smallest(program: PathBuf, starts: usize, per_second: f64) -> Self {
        let (sandbox, memory) = (static_server::sandbox(), static_server::MEMORY);
        Self { program, args: Vec::new(), sandbox, memory, starts, per_second }
    }

    /// The built-in program, which is `program` with `args`.
    #[must_use]
    pub fn built_in(program: PathBuf, args: Vec<String>, starts: usize, per_second: f64) -> Self {
        let (sandbox, memory) = (replay::sleeper(), Size::mib(32));
        Self { program, args, sandbox, memory, starts, per_second }
    }

    /// A program in an interpreter's language, given to it as an argument. Seldom enough that one
    /// start has ended before the next one.
    #[must_use]
    pub fn interpreted(interpreter: &Path, code: [&str; 2], starts: usize) -> Self {
        let args = code.map(str::to_owned).to_vec();
        let command = std::iter::once(interpreter.display().to_string()).chain(args.clone());
        let sandbox = Sandbox { command: command.collect(), ..replay::sleeper() };
        let program = interpreter.to_owned();
        // Node reserves more than 128 MiB at its start.
        Self { program, args, sandbox, memory: Size::mib(256), starts, per_second: 5.0 }
    }
}
