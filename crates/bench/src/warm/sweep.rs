//! Warm calls at a rising rate, through Dirigent and through its rivals in turn; then all of them at
//! half of what HAProxy held. Calls to the sandbox itself, without a proxy, are the floor, and show
//! what the generator can do.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Method;
use maud::{Markup, html};
use serde::Serialize;

use super::{Kind, NAME, deployed, ratios, rival::Rival};
use crate::{
    Cluster,
    load::{Call, Load, WhenFull},
    sweep::{self, Seen, Shape, Step, Target, shown},
};

/// What is compared.
#[derive(Clone, Debug)]
pub struct Options {
    /// The function behind all proxies.
    pub command: Vec<String>,
    /// Invocations at once per sandbox: 0 (no limit, one sandbox) or 1 (16 sandboxes).
    pub concurrency: u32,
    /// The rivals, HAProxy first, with their programs.
    pub rivals: Vec<(Kind, PathBuf)>,
    /// Blocks of each at half of what HAProxy held.
    pub blocks: usize,
    /// Where the rivals' files are.
    pub scratch: PathBuf,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// See [`Options::concurrency`].
    pub concurrency: u32,
    /// Which rates.
    pub shape: Shape,
    /// Dirigent, the sandbox itself, then the rivals.
    pub targets: Vec<Target>,
    /// All of them at half of the highest rate that HAProxy held, if it held one.
    pub half: Option<Half>,
}

/// Blocks at one rate, in turn.
#[derive(Clone, Debug, Serialize)]
pub struct Half {
    /// The rate.
    pub rate: f64,
    /// Of each target, its blocks.
    pub blocks: Vec<(&'static str, Vec<Step>)>,
    /// Dirigent's 99th percentile over HAProxy's: median of the blocks' ratios.
    pub p99_ratio: f64,
    /// Lowest and highest of those ratios.
    pub p99_ratio_range: (f64, f64),
}

impl Half {
    /// Calls that failed through this target.
    #[must_use]
    pub fn failed(&self, name: &str) -> u64 {
        let of_it = self.blocks.iter().filter(|(target, _)| *target == name);
        of_it.flat_map(|(_, steps)| steps).flat_map(|step| step.failed.values()).sum()
    }
}

impl Sweep {
    /// The report's page.
    #[must_use]
    pub fn page(&self) -> String {
        let half = self.half.as_ref().map_or_else(Markup::default, at_half);
        sweep::page("Dirigent: warm calls", &self.shape.about(), &self.targets, &half)
    }

    /// The highest rate that a target held.
    #[must_use]
    pub fn holds(&self, name: &str) -> f64 {
        self.targets.iter().find(|target| target.name == name).map_or(0.0, |target| target.holds)
    }
}

/// The targets that are no rivals.
pub const OURS: &str = "dirigent";
/// See [`OURS`].
pub const DIRECT: &str = "direct";

/// A call is lost after so long.
const DEADLINE: Duration = Duration::from_secs(10);
/// Calls open at once, and connections, as of most clients; others wait. Each thread of a proxy keeps
/// as many to the sandbox at worst: together they stay below the 1024 descriptors that it may have.
const OPEN_MAX: usize = 100;
/// p99 of a block says something from so many calls on.
const BLOCK_CALLS: f64 = 10_000.0;
/// But it does not last longer than so many seconds.
const BLOCK_MAX: f64 = 10.0;

/// Makes the steps, then the blocks.
///
/// # Errors
/// If a part cannot be started or a load cannot be applied.
pub async fn run(
    cluster: &dyn Cluster,
    options: &Options,
    shape: Shape,
    tell: &(dyn Fn(&str, &Step) + Sync),
) -> Result<Sweep> {
    let Options { command, concurrency, rivals, scratch, blocks } = options;
    let sandboxes = deployed(cluster, command, *concurrency).await?;
    let direct = *sandboxes.first().context("a sandbox is ready")?;
    let start = |(kind, program): &(Kind, PathBuf)| {
        Rival::start(*kind, program, &sandboxes, *concurrency, scratch)
    };
    let running: Vec<Rival> = rivals.iter().map(start).collect::<Result<_>>()?;
    let mut targets = vec![(OURS, cluster.functions()), (DIRECT, direct)];
    if *concurrency > 0 {
        // One sandbox of many is no floor of all.
        targets.truncate(1);
    }
    let names = rivals.iter().map(|(kind, _)| kind.name());
    targets.extend(names.zip(running.iter().map(Rival::address)));
    for (_, address) in &targets {
        // Connections are kept from here on.
        drop(step(*address, shape.from, 1.0).await?);
    }
    let take = async |number: usize, rate: f64| {
        let seen = step(targets[number].1, rate, shape.seconds).await?;
        // Another one is not behind the rivals.
        let now = cluster.addresses(NAME).await?;
        if now.iter().any(|address| !sandboxes.contains(address)) {
            let name = targets[number].0;
            bail!("a sandbox was replaced under {rate:.0} calls a second through {name}");
        }
        Ok(seen.step(rate, shape.limit_ms))
    };
    let names: Vec<&str> = targets.iter().map(|(name, _)| *name).collect();
    let seen = sweep::run(shape, &names, take, tell).await?;
    let mut sweep = Sweep { concurrency: *concurrency, shape, targets: seen, half: None };
    let held = sweep.holds(Kind::HaProxy.name());
    if held > 0.0 {
        sweep.half = Some(half(&targets, held / 2.0, *blocks, shape).await?);
    }
    cluster.remove(NAME).await?;
    Ok(sweep)
}

async fn half(
    targets: &[(&'static str, SocketAddr)],
    rate: f64,
    count: usize,
    shape: Shape,
) -> Result<Half> {
    let seconds = (BLOCK_CALLS / rate).clamp(shape.seconds, BLOCK_MAX.max(shape.seconds));
    let mut blocks: Vec<_> = targets.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for _ in 0..count {
        for ((_, address), (_, steps)) in targets.iter().zip(&mut blocks) {
            steps.push(step(*address, rate, seconds).await?.step(rate, shape.limit_ms));
        }
    }
    let p99 = |wanted: &str| -> Vec<f64> {
        let of_it = blocks.iter().filter(|(name, _)| *name == wanted);
        of_it.flat_map(|(_, steps)| steps).map(|step: &Step| step.latency_ms.p99).collect()
    };
    let (p99_ratio, p99_ratio_range) = ratios(&p99(OURS), &p99(Kind::HaProxy.name()));
    Ok(Half { rate, blocks, p99_ratio, p99_ratio_range })
}

/// Calls at a rate. The client has one thread beside the one that keeps the time, so that it costs
/// as little as it can on the machine that it shares with the proxies.
async fn step(target: SocketAddr, rate: f64, seconds: f64) -> Result<Seen> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let calls = (rate * seconds).max(1.0) as usize;
    let client = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut seen = Seen::new(Duration::from_secs_f64(seconds));
        let load = Load {
            deadline: DEADLINE,
            open_max: OPEN_MAX,
            when_full: WhenFull::Waits,
            ..Load::http1(target)
        };
        let host: Arc<str> = NAME.into();
        let call = move |number: usize| Call {
            at: Duration::from_secs_f64(number as f64 / rate),
            host: Arc::clone(&host),
            path: "/".to_owned(),
            method: Method::GET,
            body: Bytes::new(),
            fresh: false,
        };
        let run = load.stream((0..calls).map(call), Arc::default(), |sample| seen.add(&sample));
        runtime.block_on(run)?;
        anyhow::Ok(seen)
    });
    client.await.context("the client panicked")?
}

fn at_half(half: &Half) -> Markup {
    html! {
        h2 { "At half of what HAProxy held: " (format!("{:.0}", half.rate)) " a second, in turn" }
        table {
            tr { th { "block" } @for (name, _) in &half.blocks { th { (name) " p50, ms" } th { "p99" } } }
            @for block in 0..half.blocks.iter().map(|(_, steps)| steps.len()).max().unwrap_or(0) {
                tr {
                    td { (block + 1) }
                    @for step in half.blocks.iter().filter_map(|(_, steps)| steps.get(block)) {
                        td { (shown(step.latency_ms.p50)) } td { (shown(step.latency_ms.p99)) }
                    }
                }
            }
        }
        p { "p99, Dirigent's over HAProxy's: median " (format!("{:.2}", half.p99_ratio)) " of the blocks." }
    }
}
