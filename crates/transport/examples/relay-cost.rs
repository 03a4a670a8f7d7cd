//! What a worker's relay adds to a connection to a sandbox, beside the same connection made directly,
//! in turn in the same run: `cargo run --release -p dirigent-transport --example relay-cost`.
//!
//! Client, relay and sandbox are one process here, so processor time is that of all of them: what a
//! data plane and a worker spend together. Round trips are of 256 bytes there and 256 back, as a small
//! call is; each connection in bulk carries 64 MiB one way.

#![expect(clippy::print_stdout, reason = "a program for developers")]

use std::{
    error::Error,
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use dirigent_core::{Address, Epoch, SandboxId};
use dirigent_service::{
    OnCancel, Tasks,
    tls::{Authority, Files, Issue, request},
};
use dirigent_transport::{Reach, Tunnels, relay};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BLOCKS: usize = 7;
const TRIPS: usize = 2000;
const CONNECTIONS: usize = 300;
const BULK: usize = 64 << 20;
const MESSAGE: usize = 256;
const HOUR: Duration = Duration::from_secs(3600);

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// How a sandbox is reached.
enum Way {
    Direct(SocketAddr),
    Relayed(Tunnels, SocketAddr, SandboxId),
}

impl Way {
    async fn connect(&self) -> Result<Box<dyn Socket>> {
        match self {
            Self::Direct(at) => {
                let stream = TcpStream::connect(at).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Relayed(tunnels, at, sandbox) => {
                let opened = tunnels.open(*at, "w", *sandbox, Arc::default()).await?;
                Ok(Box::new(UnixStream::from_std(opened)?))
            }
        }
    }
}

/// Of one block.
#[derive(Clone, Copy, Default)]
struct Figures {
    trip_us: f64,
    trip_cpu_us: f64,
    connect_us: f64,
    connect_cpu_us: f64,
    bulk_mib_per_s: f64,
    bulk_cpu_ms: f64,
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn micros(time: Duration, times: usize) -> f64 {
    time.as_secs_f64() * 1e6 / times as f64
}

async fn block(way: &Way) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut stream = way.connect().await?;
    let (mut took, began) = (Vec::with_capacity(TRIPS), cpu());
    for _ in 0..TRIPS {
        let begun = Instant::now();
        stream.write_all(&[b'e'; MESSAGE]).await?;
        stream.read_exact(&mut [0; MESSAGE]).await?;
        took.push(micros(begun.elapsed(), 1));
    }
    figures.trip_cpu_us = micros(cpu() - began, TRIPS);
    figures.trip_us = median(took);

    let (mut took, began) = (Vec::with_capacity(CONNECTIONS), cpu());
    for _ in 0..CONNECTIONS {
        let begun = Instant::now();
        let mut stream = way.connect().await?;
        stream.write_all(&[b'e'; MESSAGE]).await?;
        stream.read_exact(&mut [0; MESSAGE]).await?;
        took.push(micros(begun.elapsed(), 1));
    }
    figures.connect_cpu_us = micros(cpu() - began, CONNECTIONS);
    figures.connect_us = median(took);

    let mut stream = way.connect().await?;
    let (begun, began, mut left, mut buffer) = (Instant::now(), cpu(), BULK, vec![0; 64 << 10]);
    stream.write_all(&[b'b'; MESSAGE]).await?;
    while left > 0 {
        left = left.saturating_sub(stream.read(&mut buffer).await?.max(1));
    }
    figures.bulk_cpu_ms = (cpu() - began).as_secs_f64() * 1e3;
    figures.bulk_mib_per_s = BULK as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64();
    Ok(figures)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// A sandbox: sends back what begins with `e`, and a lot once it hears something that does not.
async fn sandbox(listener: TcpListener, tasks: &Tasks) {
    while let Ok((mut stream, _)) = listener.accept().await {
        drop(stream.set_nodelay(true));
        tasks.run("connection", OnCancel::Abort, async move {
            let mut buffer = [0; MESSAGE];
            while stream.read_exact(&mut buffer).await.is_ok() {
                let bulk = [b'x'; 64 << 10];
                let times = if buffer[0] == b'e' { 0 } else { BULK / bulk.len() };
                for _ in 0..times {
                    if stream.write_all(&bulk).await.is_err() {
                        return;
                    }
                }
                if times == 0 && stream.write_all(&buffer).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn files(dir: &Path, authority: &Authority, member: &str) -> Result<Files> {
    let (key, request) = request()?;
    let uri = format!("{}/{member}", authority.uri());
    let now = SystemTime::now();
    let issue = Issue { uri: &uri, serves: true, hosts: &[], life: HOUR, now };
    let path = dir.join(member.replace('/', "-"));
    fs::write(&path, authority.sign(&request, issue)? + &key)?;
    Ok(Files::open(&dir.join("ca.pem"), &path)?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let (dir, tasks) = (tempfile::tempdir()?, Tasks::new());
    let (pem, key) = Authority::make("dirigent://cost", SystemTime::now())?;
    fs::write(dir.path().join("ca.pem"), &pem)?;
    let authority = Authority::load(pem, &key)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    // On a thread of its own, as it is a process of its own: woken whoever speaks to it.
    std::thread::spawn(move || {
        let alone = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        alone.block_on(async {
            sandbox(TcpListener::from_std(listener)?, &Tasks::new()).await;
            Ok::<_, std::io::Error>(())
        })
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let relay_at = listener.local_addr()?;
    let worker = files(dir.path(), &authority, "worker/w")?;
    // No control plane: nobody was removed.
    let reach = Reach::certified(vec!["127.0.0.1:1".parse()?], worker.clone(), None)?;
    relay(listener, worker, Arc::new(move |_| Some(Address::Tcp(at))), reach, &tasks);
    let tunnels = Tunnels::new(files(dir.path(), &authority, "data-plane/d")?, &tasks);
    let ways = [Way::Direct(at), Way::Relayed(tunnels, relay_at, SandboxId::new(Epoch(1), 1))];
    let mut seen = [Vec::new(), Vec::new()];
    for _ in 0..BLOCKS {
        for (way, seen) in ways.iter().zip(&mut seen) {
            seen.push(block(way).await?);
        }
    }
    println!("{:38} {:>9} {:>9}  ratio (range of blocks)", "", "direct", "relayed");
    let show = |name: &str, of: fn(&Figures) -> f64| {
        let [direct, relayed] = seen.each_ref().map(|all| all.iter().map(of).collect::<Vec<_>>());
        let mut ratios: Vec<f64> = direct.iter().zip(&relayed).map(|(a, b)| b / a).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
        let (direct, relayed) = (median(direct), median(relayed));
        let ratio = median(ratios);
        println!("{name:38} {direct:9.1} {relayed:9.1}  {ratio:.2} ({low:.2} to {high:.2})");
    };
    show("round trip, us", |seen| seen.trip_us);
    show("round trip, processor us", |seen| seen.trip_cpu_us);
    show("new connection and round trip, us", |seen| seen.connect_us);
    show("the same, processor us", |seen| seen.connect_cpu_us);
    show("one way, MiB/s", |seen| seen.bulk_mib_per_s);
    show("64 MiB, processor ms", |seen| seen.bulk_cpu_ms);
    tasks.stop();
    Ok(())
}
