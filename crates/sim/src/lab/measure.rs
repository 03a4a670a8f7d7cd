//! What a function felt under a policy, and what that comes to over all functions.
//!
//! - *Slowdown* of a call: response time / execution time.
//! - *Memory cost*: all sandboxes / busy ones, each weighted with time; those that start count.
//! - *Tail*: the geometric mean over functions of the 99th percentile of a function's slowdowns (of
//!   fewer than 100 calls that is the worst one).
//! - *Slowdown of a function*: the geometric mean of its calls' slowdowns.

use serde::Serialize;

use super::calls::Call;
use dirigent_trace::percentiles::{at as percentile, sorted};

/// Measures one function within a window of time.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    from: u64,
    to: u64,
    last: u64,
    all: u128,
    busy: u128,
    came: usize,
    felt: Felt,
}

/// What one function felt.
#[derive(Clone, Debug, Default)]
pub struct Felt {
    /// Of each call that came within the window.
    pub slowdowns: Vec<f64>,
    /// Of those: they waited for the sandbox in which they ran to start.
    pub cold: u64,
    /// Starts decided within the window.
    pub created: u64,
    /// Sandbox seconds, all and busy.
    pub all_s: f64,
    /// See `all_s`.
    pub busy_s: f64,
    /// Waits of all calls in nanoseconds.
    pub waits: Vec<u64>,
    /// MiB of one of its sandboxes.
    pub memory_mib: u64,
}

impl Meter {
    /// Of a window in nanoseconds.
    pub(crate) fn new(from: u64, to: u64) -> Self {
        Self { from, to, last: 0, all: 0, busy: 0, came: 0, felt: Felt::default() }
    }

    fn is_measured(&self, at: u64) -> bool {
        (self.from..self.to).contains(&at)
    }

    /// Calls after it count no more.
    pub(crate) const fn end(&self) -> u64 {
        self.to
    }

    /// Calls of the window that have no sandbox yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.came - self.felt.slowdowns.len()
    }

    /// Time passes with so many sandboxes.
    pub(crate) fn pass(&mut self, now: u64, all: u32, busy: u32) {
        let passed = u128::from(now.min(self.to).saturating_sub(self.last.max(self.from)));
        self.all += passed * u128::from(all);
        self.busy += passed * u128::from(busy);
        self.last = now;
    }

    pub(crate) fn came(&mut self, at: u64) {
        self.came += usize::from(self.is_measured(at));
    }

    /// A call that came `at` begins to run now.
    pub(crate) fn bound(&mut self, at: u64, now: u64, runs: u64, cold: bool) {
        if self.is_measured(at) {
            let wait = now - at;
            self.felt.slowdowns.push((wait + runs) as f64 / runs.max(1) as f64);
            self.felt.waits.push(wait);
            self.felt.cold += u64::from(cold);
        }
    }

    pub(crate) fn started(&mut self, now: u64) {
        self.felt.created += u64::from(self.is_measured(now));
    }

    /// A call gets a sandbox of its own, which takes so long to start.
    pub(crate) fn served_once(&mut self, call: Call, takes: u64) {
        let begin = call.at + takes;
        self.bound(call.at, begin, call.runs, true);
        let end = (begin + call.runs).min(self.to);
        self.busy += u128::from(end.saturating_sub(begin.max(self.from)));
    }

    pub(crate) fn close(mut self, all: u32, busy: u32) -> Felt {
        self.pass(self.to.max(self.last), all, busy);
        self.felt.all_s = self.all as f64 / 1e9;
        self.felt.busy_s = self.busy as f64 / 1e9;
        self.felt
    }
}

/// What is known in advance of one function, interval by interval, within a window of time.
#[derive(Debug)]
pub(crate) struct Span {
    meter: Meter,
}

impl Span {
    pub(crate) fn new((from, to): (u64, u64)) -> Self {
        Self { meter: Meter::new(from, to) }
    }

    fn within(&self, from: u64, to: u64) -> u128 {
        let Meter { from: begin, to: end, .. } = self.meter;
        u128::from(to.min(end).saturating_sub(from.max(begin)))
    }

    /// A sandbox is kept through this time.
    pub(crate) fn idle(&mut self, from: u64, to: u64) {
        self.meter.all += self.within(from, to);
    }

    /// A sandbox starts in this time.
    pub(crate) fn start(&mut self, from: u64, to: u64) {
        self.idle(from, to);
        self.meter.started(to);
    }

    /// A call runs in its sandbox from the moment that it comes.
    pub(crate) fn run(&mut self, at: u64, runs: u64) {
        self.idle(at, at + runs);
        self.meter.busy += self.within(at, at + runs);
        self.meter.came(at);
        self.meter.bound(at, at, runs, false);
    }

    pub(crate) fn felt(mut self) -> Felt {
        self.meter.last = self.meter.to;
        self.meter.close(0, 0)
    }
}

/// A policy's figures over all functions: one point of the frontier.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// All sandboxes over busy ones.
    pub cost: f64,
    /// The same, each sandbox weighted with the memory of its function.
    pub cost_by_memory: f64,
    /// Geometric mean over functions of the p99 of slowdown.
    pub tail: f64,
    /// Over functions, of their slowdowns (geometric means).
    pub slowdown_p50: f64,
    /// See `slowdown_p50`.
    pub slowdown_p99: f64,
    /// Calls that waited for the start of the sandbox in which they ran.
    pub cold: u64,
    /// Sandboxes created.
    pub created: u64,
    /// Calls measured.
    pub calls: u64,
    /// Functions that were called.
    pub functions: u64,
}

impl Figures {
    /// Sums up functions.
    #[must_use]
    pub fn of(felt: &[Felt]) -> Self {
        let mut figures = Self::default();
        let (mut all, mut busy, mut all_memory, mut busy_memory) = (0.0, 0.0, 0.0, 0.0);
        let (mut tails, mut means) = (0.0, Vec::new());
        for one in felt {
            let memory = one.memory_mib as f64;
            all += one.all_s;
            busy += one.busy_s;
            all_memory += one.all_s * memory;
            busy_memory += one.busy_s * memory;
            figures.cold += one.cold;
            figures.created += one.created;
            figures.calls += one.slowdowns.len() as u64;
            if one.slowdowns.is_empty() {
                continue;
            }
            figures.functions += 1;
            let slowdowns = sorted(one.slowdowns.iter().copied());
            tails += percentile(&slowdowns, 99.0).ln();
            let logs: f64 = slowdowns.iter().map(|slowdown| slowdown.ln()).sum();
            means.push((logs / slowdowns.len() as f64).exp());
        }
        let means = sorted(means);
        figures.cost = all / busy;
        figures.cost_by_memory = all_memory / busy_memory;
        figures.tail = (tails / figures.functions.max(1) as f64).exp();
        figures.slowdown_p50 = percentile(&means, 50.0);
        figures.slowdown_p99 = percentile(&means, 99.0);
        figures
    }

    /// Whether this is nowhere worse and somewhere better.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        let no_worse = self.cost <= other.cost && self.tail <= other.tail;
        no_worse && (self.cost < other.cost || self.tail < other.tail)
    }
}
