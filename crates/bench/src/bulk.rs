//! Large bodies and idle connections, beside HAProxy in front of the same sandbox and beside the
//! sandbox itself: what a byte costs, and what is kept in memory.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use dirigent_core::{
    Bytes as Size, MilliCpu,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use crate::{
    Cluster, exchange, replay,
    warm::{Kind, Rival, addresses, memory_of, ratios},
};

/// What is compared.
#[derive(Clone, Debug)]
pub struct Options {
    /// The function: sends `?bytes=N`, and answers how many a body had.
    pub command: Vec<String>,
    /// The rival's program.
    pub haproxy: PathBuf,
    /// Of each body.
    pub bytes: u64,
    /// Bodies in each direction through each.
    pub blocks: usize,
    /// Connections that are kept after a call each.
    pub idle: usize,
    /// Where the rival's configuration is written.
    pub scratch: PathBuf,
}

/// One way, in MiB per second; a value for each block.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Way {
    /// Through Dirigent.
    pub dirigent: Vec<f64>,
    /// Through HAProxy.
    pub haproxy: Vec<f64>,
    /// To and from the sandbox itself.
    pub direct: Vec<f64>,
}

impl Way {
    /// Dirigent's rate over HAProxy's: median of the blocks' ratios.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        ratios(&self.dirigent, &self.haproxy).0
    }
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Bulk {
    /// Bytes of each body.
    pub bytes: u64,
    /// From functions.
    pub down: Way,
    /// To functions.
    pub up: Way,
    /// By how much the most that Dirigent ever had in memory while bodies passed was above what it had
    /// before, in MiB.
    pub grown_mib: f64,
    /// Connections that were kept.
    pub idle: usize,
    /// What Dirigent has in memory with them, in MiB.
    pub idle_mib: f64,
    /// What HAProxy has in memory with as many, in MiB.
    pub haproxy_idle_mib: f64,
}

/// The name that the function is deployed as.
const NAME: &str = "bulk";
/// Moved at once.
const PIECE: usize = 256 << 10;
/// Silence for so long is the end.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long without a call a connection is idle.
const QUIET: Duration = Duration::from_secs(5);
/// Connections that are made at once.
const AT_ONCE: usize = 32;

/// Runs it. `pid` is the process that is called through `cluster`.
///
/// # Errors
/// If a part cannot be started, or a body is cut or altered in its length.
pub async fn run(cluster: &dyn Cluster, pid: u32, options: &Options) -> Result<Bulk> {
    let manifest = Manifest {
        name: NAME.parse().context("a benchmark's name")?,
        sandbox: Sandbox { command: options.command.clone(), ..replay::sleeper() },
        resources: ManifestResources { cpu: MilliCpu(100), memory: Size::mib(64) },
        scaling: Scaling { min: 1, max: 1, concurrency: 0, ..Scaling::default() },
        invocation: Invocation::default(),
        env: std::collections::BTreeMap::new(),
    };
    cluster.deploy(manifest).await?;
    let sandboxes = addresses(cluster, NAME, 1).await?;
    let direct = *sandboxes.first().context("one sandbox")?;
    let rival = Rival::start(Kind::HaProxy, &options.haproxy, &sandboxes, 0, &options.scratch)?;
    let ours = cluster.functions();
    let (mut down, mut up) = (Way::default(), Way::default());
    // Connections are kept and buffers are there.
    for target in [ours, rival.address()] {
        moved(target, Direction::Down, PIECE as u64).await?;
    }
    let before = mib(pid, "VmRSS:")?;
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot forget the highest mark")?;
    for _ in 0..options.blocks {
        for (way, direction) in [(&mut down, Direction::Down), (&mut up, Direction::Up)] {
            way.dirigent.push(moved(ours, direction, options.bytes).await?);
            way.haproxy.push(moved(rival.address(), direction, options.bytes).await?);
            way.direct.push(moved(direct, direction, options.bytes).await?);
        }
    }
    let grown_mib = mib(pid, "VmHWM:")? - before;
    let (idle_mib, haproxy_idle_mib) = (
        with_idle(ours, options.idle, pid).await?,
        with_idle(rival.address(), options.idle, rival.pid()).await?,
    );
    cluster.remove(NAME).await?;
    let Options { bytes, idle, .. } = *options;
    Ok(Bulk { bytes, down, up, grown_mib, idle, idle_mib, haproxy_idle_mib })
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Down,
    Up,
}

/// One body on a connection of its own; MiB per second from the request to the last byte.
async fn moved(target: SocketAddr, direction: Direction, bytes: u64) -> Result<f64> {
    let work = move || match direction {
        Direction::Down => download(target, bytes),
        Direction::Up => upload(target, bytes),
    };
    let took = tokio::task::spawn_blocking(work).await.context("the client panicked")??;
    Ok(bytes as f64 / f64::from(1 << 20) / took.as_secs_f64())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn download(target: SocketAddr, bytes: u64) -> Result<Duration> {
    let mut stream = connect(target)?;
    let begun = Instant::now();
    let request =
        format!("GET /?bytes={bytes} HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut piece = vec![0; PIECE];
    let mut came = head(&mut stream, &mut piece)? as u64;
    while came < bytes {
        match stream.read(&mut piece)? {
            0 => bail!("{came} of {bytes} bytes came"),
            read => came += read as u64,
        }
    }
    if came > bytes {
        bail!("{came} bytes came, {bytes} were asked for");
    }
    Ok(begun.elapsed())
}

fn upload(target: SocketAddr, bytes: u64) -> Result<Duration> {
    let mut stream = connect(target)?;
    let begun = Instant::now();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let next = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        stream.write_all(&piece[..next])?;
        left -= next as u64;
    }
    let mut filled = head(&mut stream, &mut piece)?;
    let counted = bytes.to_string();
    while filled < counted.len() {
        match stream.read(&mut piece[filled..])? {
            0 => bail!("the count of bytes is cut"),
            read => filled += read,
        }
    }
    if piece[..filled] != *counted.as_bytes() {
        bail!("{} of {bytes} bytes arrived", String::from_utf8_lossy(&piece[..filled]));
    }
    Ok(begun.elapsed())
}

/// Reads the head of a response; what came of the body stands at the beginning of the buffer then.
fn head(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..])? {
            0 => bail!("no response"),
            read => filled += read,
        }
        let Some(end) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") else {
            continue;
        };
        exchange::expect_200(std::str::from_utf8(&buffer[..end])?)?;
        buffer.copy_within(end + 4..filled, 0);
        return Ok(filled - end - 4);
    }
}

/// What a process has in memory, in MiB, once so many connections to it have been quiet for a while.
async fn with_idle(target: SocketAddr, count: usize, pid: u32) -> Result<f64> {
    let _kept = idle(target, count).await?;
    tokio::time::sleep(QUIET).await;
    mib(pid, "VmRSS:")
}

/// Connections after a call each, which keep quiet.
async fn idle(target: SocketAddr, count: usize) -> Result<Vec<tokio::net::TcpStream>> {
    let one = async |_| {
        let mut stream = tokio::net::TcpStream::connect(target).await.context("cannot connect")?;
        let mut buffer = vec![0; 4 << 10];
        let request = format!("GET /?bytes=2 HTTP/1.1\r\nhost: {NAME}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        exchange::expect_200(exchange::response(&mut stream, &mut buffer).await?)?;
        Ok::<_, anyhow::Error>(stream)
    };
    let all = iter(0..count).map(one).buffer_unordered(AT_ONCE).try_collect();
    all.await.with_context(|| format!("{count} connections cannot be kept"))
}

/// A mark of a process's memory, in MiB.
fn mib(pid: u32, mark: &str) -> Result<f64> {
    Ok(memory_of(pid, mark)? as f64 / f64::from(1 << 20))
}
