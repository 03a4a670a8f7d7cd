//! The leader's death with many workers: until all are back, until new work succeeds, and what became
//! of their sandboxes meanwhile.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, MilliCpu, RuntimeKind, SandboxId,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use http::Method;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    Answer, Cluster,
    load::{Call, Load, Progress, Sample},
    percentiles::{Summary, ms, summary},
    replay,
};

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Deaths of the leader.
    pub rounds: usize,
    /// Sandboxes that are there meanwhile.
    pub sandboxes: u32,
    /// Functions that are registered beside, and never called.
    pub functions: usize,
}

/// A system whose leader can be killed.
pub trait Led: Cluster {
    /// The leader is killed.
    fn kill_leader(&mut self) -> Answer<'_, ()>;

    /// Returns when another one leads, or the same one again, and all workers are attached to it.
    fn followed(&mut self) -> Answer<'_, Followed>;

    /// Whatever was killed runs again, and stands by.
    fn make_whole(&mut self) -> Answer<'_, ()>;

    /// A function's ready sandboxes, as the leader knows them.
    fn sandboxes<'a>(&'a self, name: &'a str) -> Answer<'a, BTreeSet<SandboxId>>;
}

/// How long it took, each from the leader's death.
#[derive(Clone, Copy, Debug)]
pub struct Followed {
    /// Until another one led.
    pub led: Duration,
    /// Until all workers were attached to it.
    pub back: Duration,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Recover {
    /// From the leader's death until another one led, in milliseconds.
    pub led_ms: Summary,
    /// Until all workers were attached to it.
    pub back_ms: Summary,
    /// From the leader's death, at which it was made, to the end of a call to a function without a sandbox.
    pub cold_ms: Summary,
    /// Calls to sandboxes that were there.
    pub warm: usize,
    /// Those of them that failed.
    pub warm_failed: usize,
    /// Calls that waited for a new sandbox, and failed.
    pub cold_failed: usize,
    /// Why the first call did that failed.
    pub first_failure: Option<String>,
    /// Sandboxes that were there before and not after.
    pub stopped: usize,
}

/// Registrations at once.
const CLIENTS: usize = 32;
/// The function whose sandboxes are there all the time.
const KEPT: &str = "kept";
/// Calls to it, equidistant, from before the leader's death until after another one's first steps.
const WARM_EVERY: Duration = Duration::from_millis(10);
const WARM: u32 = 500;
/// When the leader is killed, after the first of them.
const AT: Duration = Duration::from_millis(500);
/// All sandboxes are known within this.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Makes the sandboxes, then kills one leader after the other.
///
/// # Errors
/// If the load cannot be applied, or nobody takes over.
pub async fn run(system: &mut dyn Led, options: Options) -> Result<Recover> {
    let Options { rounds, sandboxes, functions } = options;
    let registering = iter(0..functions)
        .map(|number| manifest(&format!("beside-{number:06}"), 0))
        .map(|manifest| async { system.deploy(manifest?).await })
        .buffer_unordered(CLIENTS);
    registering.try_collect::<()>().await?;
    system.deploy(manifest(KEPT, sandboxes)?).await?;
    for round in 0..rounds {
        system.deploy(manifest(&name(round), 0)?).await?;
    }
    let before = known(system, sandboxes as usize).await?;
    if before.len() < sandboxes as usize {
        bail!("{} sandboxes of {sandboxes} are ready after {KNOWN_WITHIN:?}", before.len());
    }
    let (mut led, mut back) = (Vec::new(), Vec::new());
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    let (mut stopped, mut left) = (0, before);
    for round in 0..rounds {
        let load = Load::http1(system.functions());
        let going_on = (0..WARM).map(|number| call(WARM_EVERY * number, KEPT));
        let warming = load.run(going_on, Arc::new(Progress::default()));
        let losing = async {
            sleep(AT).await;
            system.kill_leader().await?;
            let first = std::iter::once(call(Duration::ZERO, &name(round)));
            tokio::try_join!(load.run(first, Arc::new(Progress::default())), system.followed())
        };
        let (warmed, lost) = tokio::join!(warming, losing);
        let (first, followed) = lost.context("after the leader's death")?;
        led.push(ms(followed.led));
        back.push(ms(followed.back));
        cold.extend(first);
        warm.extend(warmed?);
        // By the time at which all is as before, the next leader has judged what it found.
        system.make_whole().await?;
        let after = known(system, left.len()).await?;
        stopped += left.difference(&after).count();
        left = after;
    }
    let failed = |samples: &[Sample]| samples.iter().filter(|it| it.failure.is_some()).count();
    let answered = cold.iter().filter(|sample| sample.failure.is_none());
    Ok(Recover {
        led_ms: summary(led),
        back_ms: summary(back),
        cold_ms: summary(answered.map(|sample| ms(sample.latency()))),
        warm: warm.len(),
        warm_failed: failed(&warm),
        cold_failed: failed(&cold),
        first_failure: cold.iter().chain(&warm).find_map(replay::kind),
        stopped,
    })
}

/// The sandboxes that are ready, as soon as they are so many, or after a while.
async fn known(system: &dyn Led, count: usize) -> Result<BTreeSet<SandboxId>> {
    let begun = Instant::now();
    loop {
        let ready = system.sandboxes(KEPT).await?;
        if ready.len() >= count || begun.elapsed() > KNOWN_WITHIN {
            return Ok(ready);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn call(at: Duration, function: &str) -> Call {
    Call {
        at,
        host: function.into(),
        path: "/".to_owned(),
        method: Method::GET,
        body: Bytes::new(),
        fresh: false,
    }
}

/// Of the function that is called for the first time in this round.
fn name(round: usize) -> String {
    format!("cold-{round}")
}

/// With so many sandboxes all the time; none: one for each call.
fn manifest(name: &str, sandboxes: u32) -> Result<Manifest> {
    let scaling = Scaling { min: sandboxes, max: sandboxes.max(1), ..Scaling::default() };
    Ok(Manifest {
        name: name.parse().context("a benchmark's name")?,
        sandbox: Sandbox { runtime: RuntimeKind::Fake, ..replay::sleeper() },
        resources: ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
        scaling,
        invocation: Invocation::default(),
        env: std::collections::BTreeMap::new(),
    })
}
