//! What a run has seen, and whether everything held.

use std::{collections::BTreeMap, fmt, time::Duration};

use dirigent_bench::load::{Failure, Sample};

use super::Past;
use crate::load::kind;

/// At most so many complaints are printed in full.
const SHOWN: usize = 20;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Faults that were done.
    pub faults: usize,
    /// Calls by how they ended.
    pub kinds: BTreeMap<String, usize>,
    /// Calls without an answer.
    pub lost: usize,
    /// Failures by the fault that explains them.
    pub explained: BTreeMap<String, usize>,
    /// First calls amid a fault: answered, failed with an explanation.
    pub cold: (usize, usize),
    /// The latencies of those that were answered.
    pub cold_delays: Vec<Duration>,
    /// Deploys amid a fault: acknowledged, refused.
    pub deploys: (usize, usize),
    /// Executions as functions tell them.
    pub executions: usize,
    /// Of the calls that succeeded.
    pub p99: Duration,
    /// How busy all processors were, in percent.
    pub busy: u64,
    broken: Vec<String>,
}

impl Report {
    /// Something did not hold.
    pub(super) fn broken(&mut self, what: String) {
        self.broken.push(what);
    }

    /// The first call of a function amid a fault.
    pub(super) fn cold(&mut self, fault: &Past, sample: &Sample) {
        if sample.failure.is_none() {
            self.cold.0 += 1;
            self.cold_delays.push(sample.latency());
        } else if sample.failure != Some(Failure::NoAnswer) && fault.explains(sample) {
            self.cold.1 += 1;
        } else {
            self.broken(format!("a first call amid {}: {}", fault.name, kind(sample)));
        }
    }

    /// Whether everything held.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty() && self.lost == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: usize = self.kinds.values().sum();
        let explained: usize = self.explained.values().sum();
        let p99 = self.p99.as_secs_f64() * 1e3;
        writeln!(f, "calls: {calls}, p99 {p99:.0} ms; processors {} % busy", self.busy)?;
        for (kind, count) in &self.kinds {
            writeln!(f, "  {count:>7}  {kind}")?;
        }
        writeln!(f, "failures that a fault explains: {explained}")?;
        for (fault, count) in &self.explained {
            writeln!(f, "  {count:>7}  {fault}")?;
        }
        let mut delays = self.cold_delays.clone();
        delays.sort_unstable();
        let median = delays.get(delays.len() / 2).copied().unwrap_or_default();
        let slowest = delays.last().copied().unwrap_or_default();
        let ((started, failed), (deployed, refused)) = (self.cold, self.deploys);
        writeln!(
            f,
            "first calls amid faults: {started} answered, {failed} failed with their host; \
             median {:.1} s, slowest {:.1} s",
            median.as_secs_f64(),
            slowest.as_secs_f64()
        )?;
        writeln!(f, "deploys amid faults: {deployed} done, {refused} refused")?;
        writeln!(f, "executions that functions told of: {}", self.executions)?;
        for complaint in self.broken.iter().take(SHOWN) {
            writeln!(f, "BROKEN: {complaint}")?;
        }
        let verdict = if self.is_clean() { "every bar holds" } else { "BARS ARE BROKEN" };
        write!(
            f,
            "{} faults, {calls} calls: {} lost, {} unexplained or otherwise wrong; {verdict}",
            self.faults,
            self.lost,
            self.broken.len()
        )
    }
}
