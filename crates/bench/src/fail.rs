//! A part is killed under a steady load: what callers feel of it, window by window, what it costs
//! them, and when all is as before.

mod page;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, MilliCpu,
    manifest::{Invocation, Manifest, ManifestResources, Scaling},
};
use http::Method;
use serde::Serialize;

use crate::{
    Cluster,
    latencies::Latencies,
    load::{Call, Failure, Load, Progress, Sample},
    percentiles::{Summary, at as at_percentile, ms, sorted, summary},
    replay,
};

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The only control plane.
    ControlPlane,
    /// The only data plane.
    DataPlane,
    /// The worker daemon, not its keeper.
    Worker,
    /// The program in a sandbox that is called.
    Sandbox,
}

impl Part {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ControlPlane => "control plane",
            Self::DataPlane => "data plane",
            Self::Worker => "worker",
            Self::Sandbox => "sandbox",
        }
    }

    /// What callers may lose with it, in words.
    #[must_use]
    pub const fn cost(self) -> &'static str {
        match self {
            Self::ControlPlane | Self::Worker => "no call",
            Self::DataPlane => "the calls in its hands, and those made while nobody listens",
            Self::Sandbox => "the call in it, if it may not be repeated",
        }
    }

    /// Whether the death of this part may cost that call.
    fn may_cost(self, sample: &Sample, is_repeatable: bool, killed: Killed) -> bool {
        let overlaps = sample.intended <= killed.back && sample.done >= killed.at;
        let is_broken =
            matches!(sample.failure, Some(Failure::Reset | Failure::Truncated | Failure::Connect));
        match self {
            Self::ControlPlane | Self::Worker => false,
            Self::DataPlane => overlaps && is_broken,
            Self::Sandbox => {
                let is_told = sample.code.as_deref() == Some("sandbox_lost");
                let is_cut = sample.failure == Some(Failure::Truncated);
                overlaps && !is_repeatable && (is_told || is_cut)
            }
        }
    }

    /// How many calls it may cost at most.
    const fn cost_max(self) -> usize {
        match self {
            Self::ControlPlane | Self::Worker => 0,
            Self::DataPlane => usize::MAX,
            // A sandbox takes one call at a time here.
            Self::Sandbox => 1,
        }
    }
}

/// When a part was killed, and when it was there again, from the begin of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed {
    /// SIGKILL was sent.
    pub at: Duration,
    /// It took up its work.
    pub back: Duration,
}

/// The load, and what is killed in it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Options {
    /// What.
    pub part: Part,
    /// Calls a second to sandboxes that run; every second one may be repeated.
    pub per_second: f64,
    /// Calls a second to functions without a sandbox.
    pub cold_per_second: f64,
    /// Each call sleeps for so many milliseconds.
    pub execution_ms: u64,
    /// Seconds of the load.
    pub seconds: f64,
    /// Seconds from its begin to the kill.
    pub kill_at: f64,
    /// Milliseconds of a window.
    pub window_ms: u64,
}

/// The calls that were due in one window.
#[derive(Clone, Debug, Serialize)]
pub struct Window {
    /// Its begin, in seconds from the kill: less than 0 before it.
    pub at_s: f64,
    /// Calls due in it.
    pub calls: usize,
    /// Those that failed, lost ones too.
    pub failed: usize,
    /// Of those that were answered, milliseconds.
    pub p50_ms: f64,
    /// The slowest of them.
    pub max_ms: f64,
}

/// One of the two kinds of calls.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// `warm` or `cold`.
    pub name: &'static str,
    /// Answered calls due before the kill, in milliseconds.
    pub before_ms: Summary,
    /// Answered calls due from the kill on.
    pub after_ms: Summary,
    /// From the kill to the last answer or failure of a window that was not as before: one with a
    /// failure, or with a median above twice that of nine in ten windows before the kill. It ends
    /// with a second in which all are as before, once the part works again. 0 if all were.
    pub as_before_after_ms: f64,
    /// Window by window.
    pub windows: Vec<Window>,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Fail {
    /// What was done.
    pub options: Options,
    /// Calls made.
    pub calls: usize,
    /// Without an answer or an error: lost.
    pub lost: usize,
    /// Failed, by kind.
    pub failed: Vec<(String, usize)>,
    /// Failures that the part's death explains.
    pub explained: usize,
    /// Failures that nothing explains.
    pub unexplained: usize,
    /// From the kill until the part worked again, milliseconds.
    pub back_after_ms: f64,
    /// Warm calls, then cold ones.
    pub series: Vec<Series>,
}

impl Fail {
    /// The report's page.
    #[must_use]
    pub fn page(&self) -> String {
        page::page(self)
    }
}

/// The function that has sandboxes.
pub const WARM: &str = "fail-warm";
/// A call is lost after so long.
const DEADLINE: Duration = Duration::from_secs(30);
/// All of its sandboxes are ready within this.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// All is as before when it was for so many seconds.
const QUIET_S: f64 = 1.0;
/// Of the sandboxes that warm calls keep busy, so many are there, that none waits.
const SPARE: f64 = 3.0;

/// Deploys the functions, and waits until the warm one's sandboxes are ready; how many they are.
///
/// # Errors
/// If a function cannot be deployed or its sandboxes do not become ready.
pub async fn prepare(cluster: &dyn Cluster, options: &Options) -> Result<usize> {
    let busy = options.per_second * options.execution_ms as f64 / 1000.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    let count = (busy * SPARE).clamp(4.0, 200.0) as u32;
    cluster.deploy(manifest(WARM, count)?).await?;
    for number in 0..count_cold(options) {
        cluster.deploy(manifest(&cold(number), 0)?).await?;
    }
    let (begun, count) = (Instant::now(), count as usize);
    loop {
        let ready = cluster.addresses(WARM).await?.len();
        if ready >= count {
            return Ok(count);
        }
        if begun.elapsed() > READY_WITHIN {
            bail!("{ready} of {count} sandboxes are ready after {READY_WITHIN:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes the calls. `kill` begins with them, kills the part when it is time, has it started again,
/// and tells the moments of both.
///
/// # Errors
/// If the load cannot be applied, or of `kill`.
pub async fn run(
    target: SocketAddr,
    options: Options,
    progress: Arc<Progress>,
    kill: impl Future<Output = Result<(Instant, Instant)>>,
) -> Result<Fail> {
    let plan = calls(&options);
    let kinds: Vec<(bool, bool)> =
        plan.iter().map(|call| (call.host.as_ref() == WARM, call.method == Method::GET)).collect();
    let load = Load { deadline: DEADLINE, ..Load::http1(target) };
    let begun = Instant::now();
    let (samples, (at, back)) = tokio::try_join!(load.run_from(begun, plan, progress), kill)?;
    let since = |moment: Instant| moment.saturating_duration_since(begun);
    Ok(evaluate(options, &samples, &kinds, Killed { at: since(at), back: since(back) }))
}

fn cold(number: usize) -> String {
    format!("fail-cold-{number:04}")
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn count(options: &Options, per_second: f64) -> usize {
    (per_second * options.seconds) as usize
}

fn count_cold(options: &Options) -> usize {
    count(options, options.cold_per_second)
}

fn calls(options: &Options) -> Vec<Call> {
    let path = format!("/?sleep_ms={}", options.execution_ms);
    let call = |at: f64, host: Arc<str>, method: Method| Call {
        at: Duration::from_secs_f64(at),
        host,
        path: path.clone(),
        method,
        body: Bytes::new(),
        fresh: false,
    };
    let host: Arc<str> = WARM.into();
    let warm = (0..count(options, options.per_second)).map(|number| {
        // Only what is idempotent may be repeated where a sandbox dies in the middle of it.
        let method = if number.is_multiple_of(2) { Method::GET } else { Method::POST };
        call(number as f64 / options.per_second, Arc::clone(&host), method)
    });
    let cold = (0..count_cold(options)).map(|number| {
        call(number as f64 / options.cold_per_second, cold(number).into(), Method::POST)
    });
    let mut all: Vec<Call> = warm.chain(cold).collect();
    all.sort_by_key(|call| call.at);
    all
}

fn manifest(name: &str, min: u32) -> Result<Manifest> {
    Ok(Manifest {
        name: name.parse().context("a benchmark's name")?,
        sandbox: replay::sleeper(),
        resources: ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
        scaling: Scaling { min, max: 500, ..Scaling::default() },
        invocation: Invocation { max_queue: 10_000, ..Invocation::default() },
        env: std::collections::BTreeMap::new(),
    })
}

fn evaluate(options: Options, samples: &[Sample], kinds: &[(bool, bool)], killed: Killed) -> Fail {
    let part = options.part;
    let failures = samples
        .iter()
        .filter(|sample| sample.failure.is_some_and(|failure| failure != Failure::NoAnswer));
    let (mut explained, mut unexplained) = (0, 0);
    for sample in failures {
        let is_repeatable = kinds.get(sample.call).is_some_and(|(_, repeatable)| *repeatable);
        if part.may_cost(sample, is_repeatable, killed) && explained < part.cost_max() {
            explained += 1;
        } else {
            unexplained += 1;
        }
    }
    let of = |warm: bool| -> Vec<&Sample> {
        let is = |sample: &&Sample| kinds.get(sample.call).is_some_and(|(is, _)| *is == warm);
        samples.iter().filter(is).collect()
    };
    Fail {
        calls: samples.len(),
        lost: samples.iter().filter(|one| one.failure == Some(Failure::NoAnswer)).count(),
        failed: replay::failures(samples),
        explained,
        unexplained,
        back_after_ms: ms(killed.back.saturating_sub(killed.at)),
        series: vec![
            series("warm", &of(true), killed, options),
            series("cold", &of(false), killed, options),
        ],
        options,
    }
}

fn series(name: &'static str, samples: &[&Sample], killed: Killed, options: Options) -> Series {
    let at = killed.at;
    let well = || samples.iter().filter(|sample| sample.failure.is_none());
    let of = |after: bool| {
        let those = well().filter(|sample| (sample.intended >= at) == after);
        summary(those.map(|sample| ms(sample.latency())))
    };
    let width = Duration::from_millis(options.window_ms);
    let windows = windows(samples, at, width);
    let begin = |window: &(Window, Duration)| window.0.at_s;
    let before = windows.iter().filter(|window| begin(window) + width.as_secs_f64() <= 0.0);
    // Not the worst of them: the first calls of all find a machine that nobody has called yet.
    let usual = at_percentile(&sorted(before.map(|(window, _)| window.p50_ms)), 90.0);
    let is_as_before = |window: &Window| window.failed == 0 && window.p50_ms <= 2.0 * usual;
    let after = windows.iter().filter(|window| begin(window) + width.as_secs_f64() > 0.0);
    // What comes after a quiet second is another matter, such as another program on the machine.
    let (mut last, mut calm_from) = (None, killed.back.saturating_sub(killed.at).as_secs_f64());
    for (window, done) in after.filter(|(window, _)| !is_as_before(window)) {
        if window.at_s > calm_from + QUIET_S {
            break;
        }
        last = last.max(Some(*done));
        calm_from = calm_from.max(done.saturating_sub(at).as_secs_f64());
    }
    Series {
        name,
        before_ms: of(false),
        after_ms: of(true),
        as_before_after_ms: last.map_or(0.0, |done| ms(done.saturating_sub(at))),
        windows: windows.into_iter().map(|(window, _)| window).collect(),
    }
}

/// The windows that have calls, each with the moment at which the last of its calls had ended. The
/// kill is between two.
fn windows(samples: &[&Sample], at: Duration, width: Duration) -> Vec<(Window, Duration)> {
    let mut windows = std::collections::BTreeMap::<i64, (Latencies, Window, Duration)>::new();
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    for sample in samples {
        let number = (micros(sample.intended) - micros(at)).div_euclid(micros(width).max(1));
        let at_s = number as f64 * width.as_secs_f64();
        let (latencies, window, done) = windows.entry(number).or_insert_with(|| {
            let window = Window { at_s, calls: 0, failed: 0, p50_ms: 0.0, max_ms: 0.0 };
            (Latencies::default(), window, Duration::ZERO)
        });
        window.calls += 1;
        *done = sample.done.max(*done);
        if sample.failure.is_some() {
            window.failed += 1;
        } else {
            latencies.add(sample.latency());
        }
    }
    let window = |(latencies, window, done): (Latencies, Window, Duration)| {
        let summary = latencies.summary();
        (Window { p50_ms: summary.p50, max_ms: summary.max, ..window }, done)
    };
    windows.into_values().map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options {
        part: Part::Sandbox,
        per_second: 100.0,
        cold_per_second: 1.0,
        execution_ms: 10,
        seconds: 4.0,
        kill_at: 2.0,
        window_ms: 100,
    };
    const KILLED: Killed =
        Killed { at: Duration::from_millis(2005), back: Duration::from_millis(2505) };

    fn sample(call: usize, at_ms: u64, took_ms: u64, failure: Option<Failure>) -> Sample {
        let (intended, done) =
            (Duration::from_millis(at_ms), Duration::from_millis(at_ms + took_ms));
        Sample {
            call,
            intended,
            begun: intended,
            done,
            head: None,
            status: None,
            failure,
            code: failure
                .filter(|failure| *failure == Failure::Status)
                .map(|_| "sandbox_lost".to_owned()),
            message: None,
            timing: None,
            revision: None,
            sandbox: None,
            bytes: 0,
        }
    }

    /// Every call takes 10 ms, but for these.
    fn seen(part: Part, others: &[Sample]) -> Fail {
        let plan = calls(&OPTIONS);
        let kinds: Vec<_> = plan
            .iter()
            .map(|call| (call.host.as_ref() == WARM, call.method == Method::GET))
            .collect();
        let mut samples: Vec<Sample> = plan
            .iter()
            .enumerate()
            .map(|(number, call)| {
                sample(number, u64::try_from(call.at.as_millis()).unwrap(), 10, None)
            })
            .collect();
        for other in others {
            // By its time: the call of that number may be another one's.
            let index = plan
                .iter()
                .position(|call| {
                    let is_post = call.method == Method::POST && &*call.host == WARM;
                    call.at >= other.intended && is_post == (other.call == 1)
                })
                .unwrap();
            samples[index] = Sample { call: index, ..other.clone() };
        }
        evaluate(Options { part, ..OPTIONS }, &samples, &kinds, KILLED)
    }

    #[test]
    fn a_sandbox_may_cost_one_call_that_may_not_be_repeated() {
        let lost = |call, at| sample(call, at, 30, Some(Failure::Status));
        let fail = seen(Part::Sandbox, &[lost(1, 1990)]);
        assert_eq!((fail.explained, fail.unexplained), (1, 0));
        assert_eq!(fail.failed, [("sandbox_lost".to_owned(), 1)]);
        // A second one, one that could be repeated, one before the kill, and another kind.
        assert_eq!(seen(Part::Sandbox, &[lost(1, 1990), lost(1, 2010)]).unexplained, 1);
        assert_eq!(seen(Part::Sandbox, &[lost(0, 1990)]).unexplained, 1);
        assert_eq!(seen(Part::Sandbox, &[lost(1, 1500)]).unexplained, 1);
        let reset = sample(1, 1990, 30, Some(Failure::Reset));
        assert_eq!(seen(Part::Sandbox, &[reset]).unexplained, 1);
    }

    #[test]
    fn each_part_may_cost_what_it_holds_and_no_more() {
        let refused = [2010, 2200, 2490].map(|at| sample(1, at, 0, Some(Failure::Connect)));
        assert_eq!(seen(Part::DataPlane, &refused).unexplained, 0);
        assert_eq!(seen(Part::ControlPlane, &refused).unexplained, 3);
        assert_eq!(seen(Part::Worker, &refused).unexplained, 3);
        let late = sample(1, 2600, 0, Some(Failure::Connect));
        assert_eq!(seen(Part::DataPlane, &[late]).unexplained, 1);
        // Nothing may cost an answer.
        let silent = seen(Part::DataPlane, &[sample(1, 2100, 30_000, Some(Failure::NoAnswer))]);
        assert_eq!((silent.lost, silent.explained, silent.unexplained), (1, 0, 0));
    }

    #[test]
    fn all_is_as_before_once_no_window_has_failures_or_is_slow() {
        let quiet = seen(Part::Worker, &[]);
        assert_eq!(quiet.series[0].as_before_after_ms, 0.0);
        assert_eq!(quiet.series[0].windows.iter().map(|w| w.calls).sum::<usize>(), 400);
        assert_eq!(quiet.back_after_ms, 500.0);
        // The window from 2205 ms on, whose last call is due at 2300 ms.
        let failed = seen(Part::DataPlane, &[sample(1, 2230, 0, Some(Failure::Connect))]);
        let warm = &failed.series[0];
        assert_eq!(warm.as_before_after_ms, 305.0);
        let window = warm.windows.iter().find(|window| window.failed == 1).unwrap();
        assert!((window.at_s - 0.2).abs() < 1e-9, "{window:?}");
        // One slow call of many is no slow window; ten of ten are.
        let one = seen(Part::Worker, &[sample(1, 3010, 800, None)]);
        assert_eq!(one.series[0].as_before_after_ms, 0.0);
        let slow: Vec<Sample> =
            (301..=310).map(|number| sample(number % 2, 10 * number as u64, 800, None)).collect();
        assert_eq!(seen(Part::Worker, &slow).series[0].as_before_after_ms, 1895.0);
    }
}
