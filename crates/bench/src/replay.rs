//! Replays a trace: deploys its functions, makes its calls at their times, and tells what users
//! felt. Definitions (as the published evaluation's): scheduling latency = response time less
//! execution time; slowdown = response time / execution time asked for.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, MilliCpu, RuntimeKind,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use http::Method;
use serde::Serialize;

use crate::{
    Census, Cluster,
    arrivals::{self, Arrivals, Shot},
    image,
    load::{Call, Failure, Load, Progress, Protocol, Sample},
    percentiles::{Summary, ms, sorted, summary},
    trace::{Trace, TraceFunction},
};

/// From the last answer to zero sandboxes takes the keep-alive and their ends.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at that.
const GONE_LOOK: Duration = Duration::from_millis(100);

/// How a trace is replayed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Options {
    /// Minutes of the trace.
    pub minutes: usize,
    /// How calls are spread over a minute.
    pub arrivals: Arrivals,
    /// Trace time per real time; 1 is as recorded.
    pub speed: f64,
    /// Of arrivals and durations.
    pub seed: u64,
    /// Whether functions get the memory that the trace names, else 16 MiB and 10m.
    pub trace_resources: bool,
    /// What the callers speak.
    pub protocol: Protocol,
    /// Whether functions are made from [`crate::image`], else they are processes.
    pub of_image: bool,
}

/// One second of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// From the start of the run.
    pub at_s: f64,
    /// Sandboxes then.
    #[serde(flatten)]
    pub census: Census,
}

/// What became of the calls that were due in one second of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Due {
    /// Calls.
    pub calls: usize,
    /// Those that waited for a sandbox to start.
    pub cold: usize,
    /// Those that failed, lost ones not counted.
    pub failed: usize,
    /// Those without an answer.
    pub lost: usize,
}

/// What a replay showed.
#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    /// Where the trace is from.
    pub origin: String,
    /// How it was replayed.
    pub options: Options,
    /// Functions deployed.
    pub functions: usize,
    /// How long the deploys took altogether, in milliseconds.
    pub deploy_ms: f64,
    /// Calls made.
    pub calls: usize,
    /// Calls neither answered nor failed by their deadline.
    pub lost: usize,
    /// Calls that failed, lost ones not counted, by kind.
    pub failed: Vec<(String, usize)>,
    /// Calls that waited for a sandbox to start.
    pub cold: usize,
    /// Per invocation, in milliseconds.
    pub scheduling_ms: Summary,
    /// Averages per function, in milliseconds.
    pub function_scheduling_ms: Summary,
    /// Per function, the geometric mean over its invocations.
    pub function_slowdown: Summary,
    /// Most sandboxes at once.
    pub sandboxes_max: u32,
    /// Memory of all sandboxes over memory of busy ones, both as their functions ask for it and
    /// time-weighted (PulseNet's cost).
    pub all_to_busy: f64,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// Calls by the second in which they were due, from the start of the run.
    pub due: Vec<Due>,
    /// Sorted scheduling latencies of all invocations in milliseconds, thinned for plotting.
    pub scheduling_cdf: Vec<(f64, f64)>,
    /// The same for averages per function.
    pub function_scheduling_cdf: Vec<(f64, f64)>,
    /// The same for slowdowns per function.
    pub slowdown_cdf: Vec<(f64, f64)>,
}

impl Replay {
    /// Whether nothing was lost and nothing failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.failed.is_empty()
    }

    /// Calls that failed, lost ones not counted.
    #[must_use]
    pub fn failed_total(&self) -> usize {
        self.failed.iter().map(|(_, count)| count).sum()
    }

    /// The summary's last line.
    #[must_use]
    pub fn verdict(&self) -> String {
        let failed = self.failed_total();
        format!("{} calls, {} lost, {failed} failed, {} cold", self.calls, self.lost, self.cold)
    }
}

/// Deploys the trace's functions, replays it, removes them. `tell` is called each second.
///
/// # Errors
/// If a function cannot be deployed or the load cannot be applied.
pub async fn replay(
    cluster: &dyn Cluster,
    trace: &Trace,
    options: Options,
    tell: &(dyn Fn(Second, &Progress) + Sync),
) -> Result<Replay> {
    let shots =
        arrivals::schedule(trace, options.minutes, options.arrivals, options.speed, options.seed);
    let begun = Instant::now();
    for function in &trace.functions {
        let manifest = manifest(function, options.trace_resources)?;
        let manifest = if options.of_image { image::contained(manifest) } else { manifest };
        cluster
            .deploy(manifest)
            .await
            .with_context(|| format!("cannot deploy {}", function.name))?;
    }
    let deploy_ms = ms(begun.elapsed());
    let progress = Arc::new(Progress::default());
    let mut seconds = Vec::new();
    let load = Load {
        deadline: Duration::from_secs(16 * 60),
        protocol: options.protocol,
        ..Load::http1(cluster.functions())
    };
    let running = load.run(calls(trace, &shots), Arc::clone(&progress));
    let watching = watch(cluster, |second| {
        seconds.push(second);
        tell(second, &progress);
    });
    let samples = tokio::select! {
        samples = running => samples?,
        never = watching => match never {},
    };
    for function in &trace.functions {
        cluster.remove(&function.name).await?;
    }
    Ok(evaluate(trace, options, &shots, &samples, Watched { deploy_ms, seconds }))
}

/// Counts sandboxes once a second, without end.
pub async fn watch(cluster: &dyn Cluster, mut tell: impl FnMut(Second)) -> Infallible {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        // A census that fails is a second without a figure, not a failed run.
        if let Ok(census) = cluster.census().await {
            tell(Second { at_s: begun.elapsed().as_secs_f64(), census });
        }
    }
}

/// A function that sleeps as long as each call asks.
fn manifest(function: &TraceFunction, trace_resources: bool) -> Result<Manifest> {
    let resources = match function.memory_mib {
        Some(mib) if trace_resources => {
            ManifestResources { cpu: MilliCpu(100), memory: Size::mib(mib.max(16)) }
        }
        _ => ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
    };
    Ok(Manifest {
        name: function.name.parse().context("a trace function's name")?,
        sandbox: sleeper(),
        resources,
        scaling: Scaling { max: 1000, ..Scaling::default() },
        invocation: Invocation {
            timeout: Duration::from_secs(15 * 60),
            queue_timeout: Duration::from_secs(15 * 60),
            max_queue: 10_000,
            ..Invocation::default()
        },
        env: std::collections::BTreeMap::new(),
    })
}

/// The built-in program that sleeps or spins as asked.
#[must_use]
pub fn sleeper() -> Sandbox {
    Sandbox::new(RuntimeKind::Process, ["dirigent", "example", "spin"].map(str::to_owned).to_vec())
}

fn calls(trace: &Trace, shots: &[Shot]) -> Vec<Call> {
    let hosts: Vec<Arc<str>> = trace.functions.iter().map(|f| f.name.as_str().into()).collect();
    let call = |shot: &Shot| Call {
        at: shot.at,
        host: Arc::clone(&hosts[shot.function]),
        path: format!("/?sleep_ms={}", shot.execution.as_millis()),
        method: Method::POST,
        body: Bytes::new(),
        fresh: false,
    };
    shots.iter().map(call).collect()
}

struct Watched {
    deploy_ms: f64,
    seconds: Vec<Second>,
}

fn evaluate(
    trace: &Trace,
    options: Options,
    shots: &[Shot],
    samples: &[Sample],
    watched: Watched,
) -> Replay {
    let mut scheduling = Vec::with_capacity(samples.len());
    let mut per_function = vec![(0_usize, 0.0_f64, 0.0_f64); trace.functions.len()];
    for sample in samples.iter().filter(|sample| sample.failure.is_none()) {
        let shot = &shots[sample.call];
        let wait = ms(sample.latency().saturating_sub(shot.execution));
        scheduling.push(wait);
        let slowdown = sample.latency().as_secs_f64() / shot.execution.as_secs_f64();
        let (count, waits, logs) = &mut per_function[shot.function];
        *count += 1;
        *waits += wait;
        *logs += slowdown.max(1.0).ln();
    }
    let called = || per_function.iter().filter(|(count, _, _)| *count > 0);
    let averages = sorted(called().map(|(count, waits, _)| waits / *count as f64));
    let slowdowns = sorted(called().map(|(count, _, logs)| (logs / *count as f64).exp()));
    let scheduling = sorted(scheduling);
    let of = |failure| samples.iter().filter(|s| s.failure == Some(failure)).count();
    Replay {
        origin: trace.origin.clone(),
        options,
        functions: trace.functions.len(),
        deploy_ms: watched.deploy_ms,
        calls: samples.len(),
        lost: of(Failure::NoAnswer),
        failed: failures(samples),
        cold: samples.iter().filter(|sample| sample.is_cold()).count(),
        scheduling_ms: summary(scheduling.iter().copied()),
        function_scheduling_ms: summary(averages.iter().copied()),
        function_slowdown: summary(slowdowns.iter().copied()),
        sandboxes_max: watched.seconds.iter().map(|s| s.census.ready).max().unwrap_or_default(),
        all_to_busy: all_to_busy(&watched.seconds),
        scheduling_cdf: cdf(&scheduling),
        function_scheduling_cdf: cdf(&averages),
        slowdown_cdf: cdf(&slowdowns),
        due: due(samples),
        seconds: watched.seconds,
    }
}

fn all_to_busy(seconds: &[Second]) -> f64 {
    let all: u64 = seconds.iter().map(|second| second.census.memory_mib).sum();
    let busy: u64 = seconds.iter().map(|second| second.census.busy_mib).sum();
    all as f64 / busy.max(1) as f64
}

fn due(samples: &[Sample]) -> Vec<Due> {
    let mut seconds = Vec::new();
    for sample in samples {
        let Ok(second) = usize::try_from(sample.intended.as_secs()) else { continue };
        if seconds.len() <= second {
            seconds.resize(second + 1, Due::default());
        }
        let due = &mut seconds[second];
        due.calls += 1;
        due.cold += usize::from(sample.is_cold());
        match sample.failure {
            None => {}
            Some(Failure::NoAnswer) => due.lost += 1,
            Some(_) => due.failed += 1,
        }
    }
    seconds
}

/// Why a call failed, if it did: in the platform's code where it gave one.
#[must_use]
pub fn kind(sample: &Sample) -> Option<String> {
    let failure = sample.failure?;
    Some(match (&sample.code, sample.status, failure) {
        (Some(code), _, _) => code.clone(),
        (None, Some(status), Failure::Status) => format!("status {status}"),
        (None, _, Failure::NoAnswer) => "no answer".to_owned(),
        (None, _, failure) => format!("{failure:?}").to_lowercase(),
    })
}

/// Failures by kind; lost calls are apart.
#[must_use]
pub fn failures(samples: &[Sample]) -> Vec<(String, usize)> {
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    let answered = samples.iter().filter(|sample| sample.failure != Some(Failure::NoAnswer));
    for kind in answered.filter_map(kind) {
        *kinds.entry(kind).or_default() += 1;
    }
    kinds.into_iter().collect()
}

/// Waits until no sandbox is left.
pub(crate) async fn until_gone(cluster: &dyn Cluster) -> Result<()> {
    let begun = Instant::now();
    loop {
        let census = cluster.census().await?;
        if census.ready + census.starting == 0 {
            return Ok(());
        }
        if begun.elapsed() > GONE_WITHIN {
            bail!("sandboxes are left after {GONE_WITHIN:?}: {census:?}");
        }
        tokio::time::sleep(GONE_LOOK).await;
    }
}

/// Points of a cumulative distribution, few enough to be drawn.
fn cdf(sorted: &[f64]) -> Vec<(f64, f64)> {
    const POINTS: usize = 400;
    let last = sorted.len().saturating_sub(1);
    let step = (sorted.len() / POINTS).max(1);
    let points = sorted.iter().enumerate();
    points
        .filter(|(index, _)| index % step == 0 || *index == last)
        .map(|(index, value)| (*value, (index + 1) as f64 / sorted.len() as f64))
        .collect()
}

/// One line that tells how a run goes.
#[must_use]
pub fn live_line(second: &Second, progress: &Progress) -> String {
    format!(
        "{:5.0} s  {:7} sent  {:7} answered  {:3} failed   sandboxes {:4} busy {:4} queued {:3}",
        second.at_s,
        progress.sent.load(Ordering::Relaxed),
        progress.succeeded.load(Ordering::Relaxed),
        progress.failed.load(Ordering::Relaxed),
        second.census.ready + second.census.starting,
        second.census.busy,
        second.census.queued,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(intended_ms: u64, timing: &str, failure: Option<Failure>) -> Sample {
        Sample {
            call: 0,
            intended: Duration::from_millis(intended_ms),
            begun: Duration::from_millis(intended_ms),
            done: Duration::from_millis(intended_ms + 1500),
            head: None,
            status: None,
            failure,
            code: None,
            message: None,
            timing: Some(timing.to_owned()),
            revision: None,
            sandbox: None,
            bytes: 0,
        }
    }

    #[test]
    fn cold_starts_and_errors_are_counted_in_the_second_in_which_the_call_was_due() {
        let seen = due(&[
            sample(100, "queue;dur=1, create;dur=2", None),
            sample(2100, "queue;dur=1", Some(Failure::Reset)),
            sample(900, "queue;dur=1", None),
            sample(2999, "", Some(Failure::NoAnswer)),
        ]);
        let wanted = [
            Due { calls: 2, cold: 1, ..Due::default() },
            Due::default(),
            Due { calls: 2, failed: 1, lost: 1, ..Due::default() },
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn sandboxes_are_weighed_by_their_memory() {
        let second = |memory_mib, busy_mib| {
            let census = Census { ready: 2, busy: 1, memory_mib, busy_mib, ..Census::default() };
            Second { at_s: 0.0, census }
        };
        // One of 16 MiB is busy beside an idle one of 1 GiB, then the other way round.
        let ratio = all_to_busy(&[second(1040, 16), second(1040, 1024)]);
        assert!((ratio - 2.0).abs() < 1e-9, "{ratio}");
        assert!((all_to_busy(&[]) - 0.0).abs() < 1e-9);
    }
}
