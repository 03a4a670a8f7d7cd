//! Steady calls of functions, of which each outcome is told apart and each execution can be found.
//!
//! The path of a call is its number, which functions write into their log: what was executed is
//! known from there. Every other call is a POST, which nobody may execute twice.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use dirigent_bench::load::{Call, Failure, Load, Progress, Sample};
use http::Method;

use crate::{net::Door, processors::Processors};

/// A call without an answer for so long is lost. Functions of the rig are given less.
const LOST_AFTER: Duration = Duration::from_secs(40);

/// What is called, and how often.
#[derive(Clone, Debug)]
pub struct Mix {
    /// What the numbers of its calls begin with: two loads of a cluster differ in it.
    pub name: String,
    /// Called in turn.
    pub functions: Vec<Arc<str>>,
    /// Of all together.
    pub per_second: u32,
    /// How long each execution takes.
    pub execution: Duration,
}

impl Mix {
    /// The call of a number.
    fn call(&self, number: usize) -> Call {
        let host = self.functions.get(number % self.functions.len().max(1));
        let turn = number / self.functions.len().max(1);
        let method = if self.is_repeatable(number) { Method::GET } else { Method::POST };
        Call {
            at: Duration::from_secs(1) * u32::try_from(number).unwrap_or(u32::MAX)
                / self.per_second.max(1),
            host: host.map_or_else(|| "none".into(), Arc::clone),
            path: format!("/{}?sleep_ms={}", self.id(number), self.execution.as_millis()),
            method,
            body: Bytes::new(),
            // Some connections are new: others are kept for longer than anything here takes.
            fresh: turn.is_multiple_of(4),
        }
    }

    /// Whether it may be executed again: each function gets both kinds.
    fn is_repeatable(&self, number: usize) -> bool {
        (number + number / self.functions.len().max(1)).is_multiple_of(2)
    }

    /// As functions write it.
    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }
}

/// Calls that go on until they are told to stop.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    begun: Instant,
    progress: Arc<Progress>,
    processors: Processors,
    mix: Mix,
    thread: Option<JoinHandle<Result<Vec<Sample>>>>,
}

impl Steady {
    pub(crate) fn start(door: Door, target: SocketAddr, mix: Mix) -> Result<Self> {
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::<Progress>::default());
        let (stopped, counts, planned) = (Arc::clone(&stop), Arc::clone(&progress), mix.clone());
        let calls = (0..)
            .map(move |number| planned.call(number))
            .take_while(move |_| !stopped.load(Ordering::Relaxed));
        let run = move || run(&door, target, calls, counts);
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(run)
            .context("cannot start the load")?;
        let (begun, processors) = (Instant::now(), Processors::watch());
        Ok(Self { stop, begun, progress, processors, mix, thread: Some(thread) })
    }

    /// The time since its start, as its samples tell times.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Calls that were answered with success so far.
    #[must_use]
    pub fn succeeded(&self) -> u64 {
        self.progress.succeeded.load(Ordering::Relaxed)
    }

    /// Makes no more calls, and waits for the answers of those that were made.
    ///
    /// # Errors
    /// If it could not run.
    pub fn stop(mut self) -> Result<Outcomes> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was started")?;
        let samples = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let busy = self.processors.busy();
        Ok(Outcomes { samples, busy, mix: self.mix.clone() })
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// On a thread that is in the host's network, and stays the only one of the runtime.
pub(crate) fn run(
    door: &Door,
    target: SocketAddr,
    calls: impl Iterator<Item = Call> + Send + 'static,
    progress: Arc<Progress>,
) -> Result<Vec<Sample>> {
    door.enter()?;
    let load = Load { deadline: LOST_AFTER, ..Load::http1(target) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load.run(calls, progress))
}

/// What became of the calls of a load.
#[derive(Debug)]
pub struct Outcomes {
    /// Each call.
    pub samples: Vec<Sample>,
    /// How busy all processors were meanwhile, in percent: with the rig, the cluster and all else.
    pub busy: u64,
    mix: Mix,
}

impl Outcomes {
    /// How many ended in which way.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for sample in &self.samples {
            *kinds.entry(kind(sample)).or_default() += 1;
        }
        kinds
    }

    /// Calls without an answer: nobody said what became of them.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.samples.iter().filter(|sample| sample.failure == Some(Failure::NoAnswer)).count()
    }

    /// Calls that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.failure.is_some())
    }

    /// Calls by their numbers as functions write them, with whether each may be executed again and
    /// whether it was answered with success.
    pub fn numbers(&self) -> impl Iterator<Item = (String, bool, bool)> {
        self.samples.iter().map(|sample| {
            let may_repeat = self.mix.is_repeatable(sample.call);
            (self.mix.id(sample.call), may_repeat, sample.failure.is_none())
        })
    }

    /// Which function was called.
    #[must_use]
    pub fn host(&self, sample: &Sample) -> Arc<str> {
        self.mix.call(sample.call).host
    }

    /// The latency that so many of a hundred calls that succeeded do not exceed.
    #[must_use]
    pub fn percentile(&self, of_hundred: usize) -> Duration {
        let answered = self.samples.iter().filter(|sample| sample.failure.is_none());
        let mut all: Vec<Duration> = answered.map(Sample::latency).collect();
        all.sort_unstable();
        let at = (all.len() * of_hundred / 100).min(all.len().saturating_sub(1));
        all.get(at).copied().unwrap_or_default()
    }
}

/// How a call ended, in words.
#[must_use]
pub fn kind(sample: &Sample) -> String {
    match (sample.failure, sample.status) {
        (None, _) => "ok".to_owned(),
        (Some(Failure::Status), Some(status)) => match &sample.code {
            Some(code) => format!("{status} {code}"),
            // Errors of ours have a code: this is the load balancer's.
            None => format!("{status} of the load balancer"),
        },
        (Some(Failure::Status), None) => "an answer without a status".to_owned(),
        (Some(Failure::Connect), _) => "no connection".to_owned(),
        (Some(Failure::Reset), _) => "reset".to_owned(),
        (Some(Failure::Truncated), _) => "truncated".to_owned(),
        (Some(Failure::NoAnswer), _) => "lost".to_owned(),
        (Some(Failure::Saturated), _) => "not sent".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix() -> Mix {
        Mix {
            name: "a".to_owned(),
            functions: vec!["f0".into(), "f1".into()],
            per_second: 10,
            execution: Duration::from_millis(20),
        }
    }

    #[test]
    fn functions_are_called_in_turn_and_each_gets_calls_of_both_kinds() {
        let calls: Vec<Call> = (0..8).map(|number| mix().call(number)).collect();
        let of_f0: Vec<&Method> =
            calls.iter().filter(|call| &*call.host == "f0").map(|call| &call.method).collect();
        assert_eq!(of_f0, [Method::GET, Method::POST, Method::GET, Method::POST]);
        assert_eq!((calls[3].path.as_str(), calls[3].at), ("/a-3?sleep_ms=20", 3 * TENTH));
        assert!(calls[3].host.as_ref() == "f1" && calls[3].method == Method::GET);
    }

    const TENTH: Duration = Duration::from_millis(100);

    #[test]
    fn outcomes_are_told_in_words() {
        let sample = |failure, status, code: Option<&str>| Sample {
            call: 0,
            intended: Duration::ZERO,
            begun: Duration::ZERO,
            done: TENTH,
            head: None,
            status,
            failure,
            code: code.map(str::to_owned),
            message: None,
            timing: None,
            revision: None,
            sandbox: None,
            bytes: 0,
        };
        let refused = sample(Some(Failure::Status), Some(503), Some("no_capacity"));
        assert_eq!(kind(&refused), "503 no_capacity");
        let other = sample(Some(Failure::Status), Some(502), None);
        assert_eq!(kind(&other), "502 of the load balancer");
        let lost = sample(Some(Failure::NoAnswer), None, None);
        let outcomes = Outcomes { samples: vec![refused, other, lost], busy: 0, mix: mix() };
        assert_eq!((outcomes.lost(), outcomes.failed().count()), (1, 3));
        assert_eq!(outcomes.kinds().get("lost"), Some(&1));
    }
}
