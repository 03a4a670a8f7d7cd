//! Many sandboxes made and gone: nothing of them may stay.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, MilliCpu,
    manifest::{Invocation, Manifest, ManifestResources, Scaling},
};
use http::Method;
use serde::Serialize;

use crate::{
    Cluster,
    load::{Call, Load},
    replay,
    traces::{Marks, ROUNDS, Settling, Traces},
};

/// What is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sandboxes in all.
    pub sandboxes: usize,
    /// Calls at once, each of which may need one.
    pub at_once: u32,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Churn {
    /// Different sandboxes that answered and went.
    pub made: usize,
    /// Calls that failed or were lost.
    pub failed: usize,
    /// What there was before, at zero sandboxes, after a first round.
    pub before: Traces,
    /// What there is after them, at zero again.
    pub after: Traces,
}

/// What is made once and prepared comes to rest within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes them in rounds, each from zero to zero.
///
/// # Errors
/// If the function cannot be deployed, or does not get to zero.
pub async fn run(cluster: &dyn Cluster, state: &Path, options: Options) -> Result<(Churn, Marks)> {
    cluster.deploy(manifest(options)?).await?;
    let (mut made, mut failed) = (BTreeSet::new(), 0);
    // What is made once, such as pools and logs, is there after the first round.
    failed += round(cluster, options.at_once, &mut BTreeSet::new()).await?;
    let marks = Marks::of(state);
    let before = at_rest(&marks).await;
    while made.len() < options.sandboxes && failed == 0 {
        failed += round(cluster, options.at_once, &mut made).await?;
    }
    let (mut after, mut rounds) = (at_rest(&marks).await, 0);
    while !after.is_back_at(before) && rounds < ROUNDS {
        rounds += 1;
        // One more uses one that is prepared, until there are as many of those as before.
        failed += round(cluster, 1, &mut made).await?;
        after = at_rest(&marks).await;
    }
    Ok((Churn { made: made.len(), failed, before, after }, marks))
}

/// What there is when nothing changes any more.
async fn at_rest(marks: &Marks) -> Traces {
    let (mut now, mut settling) = (marks.count(), Settling::default());
    let begun = Instant::now();
    while !settling.look(now) && begun.elapsed() < PATIENCE {
        tokio::time::sleep(PAUSE).await;
        now = marks.count();
    }
    now
}

/// One round; calls that failed.
async fn round(cluster: &dyn Cluster, at_once: u32, made: &mut BTreeSet<String>) -> Result<usize> {
    let call = Call {
        at: Duration::ZERO,
        host: NAME.into(),
        path: "/?sleep_ms=500".to_owned(),
        method: Method::POST,
        body: Bytes::new(),
        fresh: false,
    };
    let calls = vec![call; usize::try_from(at_once)?];
    let samples = Load::http1(cluster.functions()).run(calls, Arc::default()).await?;
    made.extend(samples.iter().filter_map(|sample| sample.sandbox.as_deref().map(str::to_owned)));
    replay::until_gone(cluster).await?;
    Ok(samples.iter().filter(|sample| sample.failure.is_some()).count())
}

const NAME: &str = "churn";

fn manifest(options: Options) -> Result<Manifest> {
    Ok(Manifest {
        name: NAME.parse().context("a benchmark's name")?,
        sandbox: replay::sleeper(),
        resources: ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
        scaling: Scaling {
            max: options.at_once,
            keep_alive: Duration::from_millis(100).into(),
            ..Scaling::default()
        },
        invocation: Invocation { max_queue: 10_000, ..Invocation::default() },
        env: std::collections::BTreeMap::new(),
    })
}
