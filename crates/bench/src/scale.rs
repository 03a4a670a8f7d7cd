//! The control plane at scale: cold calls through a data plane, each to a function without a sandbox,
//! on workers whose sandboxes cost nothing. What is left is what Dirigent itself takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, MilliCpu, RuntimeKind,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use http::Method;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    Cluster,
    load::{Call, Load, Progress, Sample},
    percentiles::{Summary, ms, sorted, summary},
    phases::phase_of,
    replay,
};

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Calls, each the first one of its function.
    pub calls: usize,
    /// Calls a second, equidistant.
    pub per_second: f64,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// Calls answered with a sandbox of their own.
    pub created: usize,
    /// From the first call to the last answer, in seconds.
    pub seconds: f64,
    /// Sandboxes created a second.
    pub sandboxes_created_per_s: f64,
    /// From the moment at which a call is due to the end of its answer, in milliseconds.
    pub latency: Summary,
    /// From the demand's arrival at the control plane to the decision to start, in milliseconds.
    pub decide: Summary,
    /// A round trip of one byte on a loopback connection in the same run, in milliseconds: the median.
    pub round_trip_ms: f64,
    /// Calls that failed.
    pub failed: usize,
    /// Why the first of them did.
    pub first_failure: Option<String>,
}

/// Sandboxes without a call go after this.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Registrations at once.
const CLIENTS: usize = 64;
/// Round trips for the median.
const ROUND_TRIPS: usize = 2000;

/// Registers a function for each call; nothing runs yet.
///
/// # Errors
/// If a registration fails.
pub async fn register(cluster: &dyn Cluster, options: Options) -> Result<()> {
    iter(0..options.calls)
        .map(|number| async move { cluster.deploy(manifest(number)?).await })
        .buffer_unordered(CLIENTS)
        .try_collect::<()>()
        .await
}

/// Makes the calls, and waits until every sandbox is gone again.
///
/// # Errors
/// If the load cannot be applied, or sandboxes stay.
pub async fn run(
    cluster: &dyn Cluster,
    options: Options,
    progress: Arc<Progress>,
) -> Result<Scale> {
    let round_trip_ms = round_trip().await.context("loopback round trips")?;
    let gap = Duration::from_secs_f64(1.0 / options.per_second);
    let load = Load::http1(cluster.functions());
    let samples = load.run(calls(options.calls, gap), progress).await?;
    replay::until_gone(cluster).await?;
    let well: Vec<&Sample> = samples.iter().filter(|sample| sample.failure.is_none()).collect();
    let created = well.iter().filter(|sample| sample.is_cold()).count();
    let last = well.iter().map(|sample| sample.done).max().unwrap_or_default();
    let decided = well.iter().filter_map(|sample| phase_of(sample.timing.as_deref()?, "decide"));
    let seconds = last.as_secs_f64();
    Ok(Scale {
        created,
        seconds,
        sandboxes_created_per_s: created as f64 / seconds.max(f64::MIN_POSITIVE),
        latency: summary(well.iter().map(|sample| ms(sample.latency()))),
        decide: summary(decided),
        round_trip_ms,
        failed: samples.len() - well.len(),
        first_failure: samples.iter().find_map(replay::kind),
    })
}

fn calls(count: usize, gap: Duration) -> impl Iterator<Item = Call> + Send + 'static {
    (0..count).map(move |number| Call {
        at: gap * u32::try_from(number).unwrap_or(u32::MAX),
        host: name(number).into(),
        path: "/".to_owned(),
        method: Method::GET,
        body: Bytes::new(),
        fresh: false,
    })
}

fn name(number: usize) -> String {
    format!("scale-{number:06}")
}

fn manifest(number: usize) -> Result<Manifest> {
    Ok(Manifest {
        name: name(number).parse().context("a benchmark's name")?,
        sandbox: Sandbox { runtime: RuntimeKind::Fake, ..replay::sleeper() },
        resources: ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
        scaling: Scaling { keep_alive: KEEP_ALIVE.into(), ..Scaling::default() },
        invocation: Invocation::default(),
        env: std::collections::BTreeMap::new(),
    })
}

/// The median round trip of a byte over a loopback connection of this process to itself.
async fn round_trip() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut near = TcpStream::connect(listener.local_addr()?).await?;
    let (mut far, _) = listener.accept().await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = async {
        let mut byte = [0];
        while far.read_exact(&mut byte).await.is_ok() && far.write_all(&byte).await.is_ok() {}
    };
    let trips = async {
        let mut took = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            near.write_all(&[1]).await?;
            near.read_exact(&mut [0]).await?;
            took.push(ms(begun.elapsed()));
        }
        anyhow::Ok(took)
    };
    let took = tokio::select! {
        took = trips => took?,
        () = echo => bail!("a connection to oneself broke"),
    };
    Ok(crate::percentiles::at(&sorted(took), 50.0))
}
