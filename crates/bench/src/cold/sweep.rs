//! Cold starts at a rising rate, each of a function of its own, beside bare starts at the same: how
//! many a machine makes and removes, and what they take until then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use dirigent_core::Isolation;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use maud::Markup;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Options, bare_start, call, manifest, name};
use crate::{
    Cluster,
    load::{self, Load},
    replay,
    sweep::{self, Seen, Shape, Step, Target},
};

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// As in [`super::Cold`].
    pub isolation: Option<Isolation>,
    /// Which rates.
    pub shape: Shape,
    /// Starts through Dirigent, then bare ones.
    pub targets: Vec<Target>,
}

impl Sweep {
    /// The report's page.
    #[must_use]
    pub fn page(&self) -> String {
        let about = self.shape.about();
        sweep::page("Dirigent: cold starts", &about, &self.targets, &Markup::default())
    }

    /// The highest rate that Dirigent held over the highest that bare starts did; 0 if one held none.
    #[must_use]
    pub fn rate_ratio(&self) -> f64 {
        match &*self.targets {
            [ours, bare] if bare.holds > 0.0 => ours.holds / bare.holds,
            _ => 0.0,
        }
    }
}

/// The steps of each take turns, so that what else the machine does hits both.
const TARGETS: [&str; 2] = ["dirigent", "bare"];
/// Of a slow step, so that its percentiles say something.
const CALLS_MIN: f64 = 100.0;
/// Registrations at once.
const CLIENTS: usize = 64;
/// Bare starts under way at once, at most.
const OPEN_MAX: usize = 1000;
/// A call is lost after so long.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes the steps. `options.starts` and `options.per_second` are not used.
///
/// # Errors
/// If a function cannot be deployed or a load cannot be applied.
pub async fn run(
    cluster: &dyn Cluster,
    options: &Options,
    shape: Shape,
    tell: &(dyn Fn(&str, &Step) + Sync),
) -> Result<Sweep> {
    let take = async |number: usize, rate: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let calls = (rate * shape.seconds).max(CALLS_MIN) as usize;
        let length = Duration::from_secs_f64(calls as f64 / rate);
        let seen = if number == 0 {
            cold_step(cluster, options, calls, length).await?
        } else {
            bare_step(options, calls, length).await?
        };
        Ok(seen.step(rate, shape.limit_ms))
    };
    let targets = sweep::run(shape, &TARGETS, take, tell).await?;
    Ok(Sweep { isolation: options.sandbox.isolation, shape, targets })
}

/// When the start of that number is due.
fn due(number: usize, calls: usize, length: Duration) -> Duration {
    length.mul_f64(number as f64 / calls as f64)
}

async fn cold_step(
    cluster: &dyn Cluster,
    options: &Options,
    calls: usize,
    length: Duration,
) -> Result<Seen> {
    let deploy = async |number| cluster.deploy(manifest(&name(number), 0, options)?).await;
    iter(0..calls).map(deploy).buffer_unordered(CLIENTS).try_collect::<()>().await?;
    let mut seen = Seen::with_phases(length);
    let load = Load { deadline: DEADLINE, ..Load::http1(cluster.functions()) };
    let all = (0..calls).map(move |number| call(due(number, calls, length), name(number).into()));
    load.stream(all, Arc::default(), |sample| seen.add(&sample)).await?;
    // The next step finds the machine as this one did.
    replay::until_gone(cluster).await?;
    let remove = async |number| cluster.remove(&name(number)).await;
    iter(0..calls).map(remove).buffer_unordered(CLIENTS).try_collect::<()>().await?;
    Ok(seen)
}

async fn bare_step(options: &Options, calls: usize, length: Duration) -> Result<Seen> {
    let begun = Instant::now();
    let all = (0..calls).map(move |number| (due(number, calls, length), ()));
    // Each is due at the time of its number; the pacer gives the number.
    let mut pacer = load::pace(begun, all)?;
    let mut seen = Seen::new(length);
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            next = pacer.recv() => {
                let Some((number, ())) = next else { break };
                if open.len() >= OPEN_MAX {
                    seen.fail("saturated".to_owned());
                    continue;
                }
                let (options, intended) = (options.clone(), due(number, calls, length));
                open.spawn(async move {
                    let late = begun.elapsed().saturating_sub(intended);
                    // Not until it has ended: a call does not wait for that either.
                    bare_start(&options).await.map(|took| (intended, late + took))
                });
            }
            Some(done) = open.join_next(), if !open.is_empty() => count(&mut seen, done)?,
        }
    }
    while let Some(done) = open.join_next().await {
        count(&mut seen, done)?;
    }
    Ok(seen)
}

/// When a bare start was due, and how long after that it had its answer.
type Bare = Result<(Duration, Duration)>;

fn count(seen: &mut Seen, done: Result<Bare, tokio::task::JoinError>) -> Result<()> {
    match done.context("a bare start panicked")? {
        Ok((intended, latency)) => seen.add_latency(intended, latency),
        Err(error) => seen.fail(format!("{error:#}")),
    }
    Ok(())
}
