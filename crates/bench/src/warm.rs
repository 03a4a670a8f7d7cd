//! The warm path beside a rival: HAProxy in front of the same sandboxes, in alternating blocks of
//! the same run. Cost is processor time per request of the proxy; the closed loop of kept-alive
//! connections only keeps it busy.

mod rival;
pub mod sweep;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use dirigent_core::{
    Bytes as Size, MilliCpu,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use serde::Serialize;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

pub use self::rival::Kind;
pub(crate) use self::rival::Rival;
use crate::{Cluster, exchange, percentiles::sorted, replay};

/// What is compared.
#[derive(Clone, Debug)]
pub struct Options {
    /// The function behind both proxies.
    pub command: Vec<String>,
    /// The rival's program.
    pub haproxy: PathBuf,
    /// Invocations at once per sandbox: 0 (no limit, one sandbox) or 1 (16 sandboxes).
    pub concurrency: u32,
    /// Kept-alive connections of the client.
    pub connections: usize,
    /// Blocks of each kind.
    pub blocks: usize,
    /// Length of a block.
    pub block: Duration,
    /// Where the rival's configuration is written.
    pub scratch: PathBuf,
}

/// One block.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Block {
    /// Requests per second.
    pub per_second: f64,
    /// Processor time of the proxy per request, in microseconds.
    pub cpu_us: f64,
    /// Requests that failed.
    pub failed: u64,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Warm {
    /// See [`Options::concurrency`].
    pub concurrency: u32,
    /// Through Dirigent.
    pub dirigent: Vec<Block>,
    /// Through HAProxy.
    pub haproxy: Vec<Block>,
    /// Dirigent's processor time per request over HAProxy's: median of the blocks' ratios.
    pub cpu_ratio: f64,
    /// Lowest and highest of those ratios.
    pub cpu_ratio_range: (f64, f64),
    /// Dirigent's throughput over HAProxy's: median of the blocks' ratios.
    pub throughput_ratio: f64,
    /// Lowest and highest of those ratios.
    pub throughput_ratio_range: (f64, f64),
}

/// Sandboxes where each takes one invocation at a time.
const SINGLES: usize = 16;

/// After a block.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The name that the function is deployed as.
const NAME: &str = "warm";

/// Runs the blocks.
///
/// # Errors
/// If a part cannot be started or a block makes no request at all.
pub async fn run(cluster: &dyn Cluster, options: &Options) -> Result<Warm> {
    let sandboxes = deployed(cluster, &options.command, options.concurrency).await?;
    let program = &options.haproxy;
    let rival =
        Rival::start(Kind::HaProxy, program, &sandboxes, options.concurrency, &options.scratch)?;
    let (mut dirigent, mut haproxy) = (Vec::new(), Vec::new());
    warm_up(cluster.functions(), options).await?;
    warm_up(rival.address(), options).await?;
    for _ in 0..options.blocks {
        let before = cluster.cpu_used().await?;
        let (requests, failed) = block(cluster.functions(), options).await?;
        dirigent.push(figures(options, requests, failed, cluster.cpu_used().await? - before)?);
        let before = cpu_of(rival.pid())?;
        let (requests, failed) = block(rival.address(), options).await?;
        haproxy.push(figures(options, requests, failed, cpu_of(rival.pid())? - before)?);
    }
    cluster.remove(NAME).await?;
    let (cpu_ratio, cpu_ratio_range) = ratio(&dirigent, &haproxy, |block| block.cpu_us);
    let (throughput_ratio, throughput_ratio_range) =
        ratio(&dirigent, &haproxy, |block| block.per_second);
    let concurrency = options.concurrency;
    Ok(Warm {
        concurrency,
        dirigent,
        haproxy,
        cpu_ratio,
        cpu_ratio_range,
        throughput_ratio,
        throughput_ratio_range,
    })
}

/// Deploys the function; where all its sandboxes listen, once they do.
async fn deployed(
    cluster: &dyn Cluster,
    command: &[String],
    concurrency: u32,
) -> Result<Vec<SocketAddr>> {
    let count = if concurrency == 0 { 1 } else { SINGLES };
    let sandboxes = u32::try_from(count)?;
    let manifest = Manifest {
        name: NAME.parse().context("a benchmark's name")?,
        sandbox: Sandbox { command: command.to_vec(), ..replay::sleeper() },
        resources: ManifestResources { cpu: MilliCpu(100), memory: Size::mib(64) },
        scaling: Scaling { min: sandboxes, max: sandboxes, concurrency, ..Scaling::default() },
        invocation: Invocation { max_queue: 10_000, ..Invocation::default() },
        env: std::collections::BTreeMap::new(),
    };
    cluster.deploy(manifest).await?;
    addresses(cluster, NAME, count).await
}

/// Where so many sandboxes of a function listen, once they do.
pub(crate) async fn addresses(
    cluster: &dyn Cluster,
    name: &str,
    count: usize,
) -> Result<Vec<SocketAddr>> {
    let begun = Instant::now();
    loop {
        let addresses = cluster.addresses(name).await?;
        if addresses.len() == count {
            return Ok(addresses);
        }
        if begun.elapsed() > READY_WITHIN {
            bail!("{} of {count} sandboxes are ready", addresses.len());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn figures(options: &Options, requests: u64, failed: u64, cpu: Duration) -> Result<Block> {
    if requests == 0 {
        bail!("a block of {:?} made no request", options.block);
    }
    Ok(Block {
        per_second: requests as f64 / options.block.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
        failed,
    })
}

/// Median and range of the ratios of paired blocks.
fn ratio(ours: &[Block], theirs: &[Block], of: fn(&Block) -> f64) -> (f64, (f64, f64)) {
    let all = |blocks: &[Block]| -> Vec<f64> { blocks.iter().map(of).collect() };
    ratios(&all(ours), &all(theirs))
}

/// The same of any figures.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> (f64, (f64, f64)) {
    let ratios = sorted(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs));
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    let ends = (ratios.first().copied(), ratios.last().copied());
    (median, (ends.0.unwrap_or_default(), ends.1.unwrap_or_default()))
}

/// Until sandboxes run and connections are kept: not measured.
async fn warm_up(target: SocketAddr, options: &Options) -> Result<()> {
    let short = options.block.min(Duration::from_secs(2));
    let options = Options { block: short, ..options.clone() };
    let (requests, _failed) = block(target, &options).await?;
    if requests == 0 {
        bail!("nothing answers at {target}");
    }
    Ok(())
}

/// Requests answered and failed while a block lasts. The client has a thread of its own and no
/// more, so that it costs as little as it can on the machine that it shares with the proxies.
async fn block(target: SocketAddr, options: &Options) -> Result<(u64, u64)> {
    let Options { connections, block, .. } = *options;
    let client = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok::<_, std::io::Error>(runtime.block_on(closed_loop(target, connections, block)))
    });
    Ok(client.await.context("the client panicked")??)
}

async fn closed_loop(target: SocketAddr, connections: usize, block: Duration) -> (u64, u64) {
    let over = Arc::new(AtomicBool::new(false));
    let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut loops = JoinSet::new();
    for _ in 0..connections {
        let over = Arc::clone(&over);
        let (answered, failed) = (Arc::clone(&answered), Arc::clone(&failed));
        loops.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                if kept_alive(target, &over, &answered).await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    tokio::time::sleep(block).await;
    over.store(true, Ordering::Relaxed);
    let counted = (answered.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    // Whoever still waits for an answer is not part of the block, but gets it: a client that leaves
    // costs a sandbox its life where it takes one invocation at a time.
    let answers = async { while loops.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, answers).await.is_err() {
        loops.shutdown().await;
    }
    counted
}

/// Request after request on one connection.
async fn kept_alive(target: SocketAddr, over: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 << 10];
    while !over.load(Ordering::Relaxed) {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: warm\r\nuser-agent: bench\r\n\r\n").await?;
        exchange::expect_200(exchange::response(&mut stream, &mut buffer).await?)?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A mark of a process's memory as `/proc/PID/status` names it, such as `VmRSS:`, in bytes.
///
/// # Errors
/// If there is no such process.
pub fn memory_of(pid: u32, mark: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(mark));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {mark}"))? << 10)
}

/// User and system time of a process so far.
///
/// # Errors
/// If there is no such process.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    // Fields 14 and 15 of proc(5), counted after the program's name, which may hold spaces.
    let fields = text.rsplit_once(')').context("not a stat line")?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or_default())
        .sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
