//! Many calls at once to a function that has no sandbox, beside as many bare starts at once.

use std::{
    path::PathBuf,
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
use tokio::task::JoinSet;

use crate::{
    Cluster, bare, cold,
    load::{Call, Load},
    percentiles::{Summary, ms, sorted, summary},
    replay,
};

/// What was started for a burst is ready soon after its last answer.
const LAST_STARTS: Duration = Duration::from_secs(10);

/// What is called.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program started bare; it listens on `$PORT`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Calls at once.
    pub calls: usize,
    /// Sandboxes at most.
    pub max: u32,
    /// Each call sleeps for so long.
    pub execution: Duration,
    /// Bursts, each from zero.
    pub rounds: usize,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Burst {
    /// Calls at once.
    pub calls: usize,
    /// Sandboxes at most.
    pub max: u32,
    /// The last first answer of as many bare starts at once (at most `max` are started), in
    /// milliseconds; median over the rounds.
    pub bare_last_ms: f64,
    /// The last answer through Dirigent, per round.
    pub last_ms: Vec<f64>,
    /// The longest time without an answer while there were answers to come, per round: a control
    /// loop that ticks shows here.
    pub pause_ms: Vec<f64>,
    /// What `Server-Timing` said of each round's last answer.
    pub last_timing: Vec<String>,
    /// All answers of all rounds.
    pub answers_ms: Summary,
    /// Sandboxes made, per round: also those that were ready when nobody waited any more.
    pub sandboxes: Vec<usize>,
    /// Calls that failed or were lost.
    pub failed: usize,
}

/// Runs the rounds.
///
/// # Errors
/// If a function cannot be deployed or a bare start fails.
pub async fn run(cluster: &dyn Cluster, options: &Options) -> Result<Burst> {
    let (mut bare_last, mut last, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sandboxes, mut last_timing, mut failed) = (Vec::new(), Vec::new(), 0);
    let mut pause = Vec::new();
    let starts = options.calls.min(usize::try_from(options.max)?);
    for round in 0..options.rounds {
        bare_last.push(ms(bare_burst(options, starts).await?));
        let name = format!("burst-{round:03}");
        cluster.deploy(manifest(&name, options)?).await?;
        let call = Call {
            at: Duration::ZERO,
            host: name.as_str().into(),
            path: format!("/?sleep_ms={}", options.execution.as_millis()),
            method: Method::POST,
            body: Bytes::new(),
            fresh: false,
        };
        let calls = vec![call; options.calls];
        let samples = Load::http1(cluster.functions()).run(calls, Arc::default()).await?;
        failed += samples.iter().filter(|sample| sample.failure.is_some()).count();
        let latencies: Vec<f64> = samples.iter().map(|sample| ms(sample.latency())).collect();
        let slowest = samples.iter().max_by_key(|sample| sample.latency());
        last_timing.push(slowest.and_then(|sample| sample.timing.clone()).unwrap_or_default());
        pause.push(longest_pause(&latencies));
        last.push(latencies.iter().copied().fold(0.0, f64::max));
        all.extend(latencies);
        sandboxes.push(made(cluster, &name).await?);
        cluster.remove(&name).await?;
    }
    Ok(Burst {
        calls: options.calls,
        max: options.max,
        bare_last_ms: summary(bare_last).p50,
        last_ms: last,
        pause_ms: pause,
        last_timing,
        answers_ms: summary(all),
        sandboxes,
        failed,
    })
}

/// How many sandboxes a function got, once no more are starting. None has gone yet.
async fn made(cluster: &dyn Cluster, name: &str) -> Result<usize> {
    let deadline = Instant::now() + LAST_STARTS;
    while cluster.census().await?.starting > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(cluster.addresses(name).await?.len())
}

/// Of answers, from the burst on.
fn longest_pause(answers: &[f64]) -> f64 {
    let answers = sorted(std::iter::once(0.0).chain(answers.iter().copied()));
    answers.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

fn manifest(name: &str, options: &Options) -> Result<Manifest> {
    Ok(Manifest {
        name: name.parse().context("a benchmark's name")?,
        sandbox: replay::sleeper(),
        resources: ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
        scaling: Scaling { max: options.max, ..Scaling::default() },
        invocation: Invocation { max_queue: 10_000, ..Invocation::default() },
        env: std::collections::BTreeMap::new(),
    })
}

/// Starts the program `starts` times at once; until the last first answer.
async fn bare_burst(options: &Options, starts: usize) -> Result<Duration> {
    let ports = (0..starts).map(|_| bare::Port::keep()).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let mut children = Vec::with_capacity(starts);
    let mut answers = JoinSet::new();
    for port in &ports {
        children.push(bare::spawn(&options.program, &options.args, port)?);
        answers.spawn(cold::answer(port.address()));
    }
    let mut result = Ok(());
    while let Some(answer) = answers.join_next().await {
        result = result.and(answer.context("a bare start's task panicked")?);
    }
    let took = begun.elapsed();
    drop(children);
    result.map(|()| took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_between_two_answers_or_before_the_first() {
        assert_eq!(longest_pause(&[100.0, 90.0, 2100.0]), 2000.0);
        assert_eq!(longest_pause(&[100.0, 110.0]), 100.0);
        assert_eq!(longest_pause(&[]), 0.0);
    }
}
