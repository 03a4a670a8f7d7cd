//! What the control plane counts, as a page for Prometheus (OpenMetrics text). Per function only
//! what is active now, and at most [`SERIES`] of them: a million functions do not make a million
//! series.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, atomic::Ordering},
};

use dirigent_core::{
    Epoch, Fault,
    control::{FunctionSummary, Measure, WorkerSummary},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::store::Counts;

/// Functions shown at most.
pub(crate) const SERIES: u32 = 100;

/// Adds a page of another role to the one that is served.
pub type PageSource = Arc<dyn Fn(&mut String) + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabel {
    fault: FaultValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum FaultValue {
    #[expect(non_camel_case_types, reason = "the label's value is the variant's name")]
    function,
    #[expect(non_camel_case_types, reason = "the label's value is the variant's name")]
    worker,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    starts: Counter,
    start_failures: Family<FaultLabel, Counter>,
    stops: Counter,
    ready_seconds: Histogram,
    workers_lost: Counter,
    recovered: Gauge,
    epoch: Gauge,
    leads: Gauge,
    detached: Gauge,
    store: Counts,
}

impl Metrics {
    pub(crate) fn new(store: Counts) -> Self {
        let mut registry = Registry::with_prefix("dirigent_control");
        // 0.5 ms to 16 s: a start takes from about a millisecond to the start timeout.
        let ready_seconds = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let this = Self {
            starts: Counter::default(),
            start_failures: Family::default(),
            stops: Counter::default(),
            ready_seconds,
            workers_lost: Counter::default(),
            recovered: Gauge::default(),
            epoch: Gauge::default(),
            leads: Gauge::default(),
            detached: Gauge::default(),
            store,
            registry: Registry::default(),
        };
        registry.register("sandbox_starts", "Sandboxes decided to be started", this.starts.clone());
        registry.register(
            "sandbox_start_failures",
            "Starts that failed, by whose fault it was",
            this.start_failures.clone(),
        );
        registry.register("sandbox_stops", "Sandboxes told to stop", this.stops.clone());
        registry.register(
            "sandbox_ready_seconds",
            "From the decision to start a sandbox to its being ready",
            this.ready_seconds.clone(),
        );
        registry.register("workers_lost", "Workers that became lost", this.workers_lost.clone());
        registry.register(
            "recovered",
            "1 once the leader has left its recovery",
            this.recovered.clone(),
        );
        registry.register("epoch", "The last term of this control plane", this.epoch.clone());
        registry.register("leads", "1 while this control plane leads", this.leads.clone());
        registry.register(
            "detached",
            "1 while this control plane leads and cannot reach the store",
            this.detached.clone(),
        );
        Self { registry, ..this }
    }

    /// A term begins.
    pub(crate) fn took_office(&self, epoch: Epoch) {
        self.epoch.set(i64::try_from(epoch.term()).unwrap_or(i64::MAX));
        self.recovered.set(0);
        self.leads.set(1);
    }

    /// The term is over.
    pub(crate) fn resigned(&self) {
        self.leads.set(0);
        self.recovered.set(0);
        self.detached.set(0);
    }

    /// The leader lost its store, or has it again.
    pub(crate) fn detached(&self, detached: bool) {
        self.detached.set(i64::from(detached));
    }

    /// Whether the leader is without its store.
    pub(crate) fn is_detached(&self) -> bool {
        self.detached.get() == 1
    }

    pub(crate) fn measure(&self, measure: Measure) {
        match measure {
            Measure::StartDecided => {
                self.starts.inc();
            }
            Measure::SandboxReady { took } => self.ready_seconds.observe(took.as_secs_f64()),
            Measure::StartFailed { fault } => {
                let fault = match fault {
                    Fault::Function => FaultValue::function,
                    Fault::Worker => FaultValue::worker,
                };
                self.start_failures.get_or_create(&FaultLabel { fault }).inc();
            }
            Measure::SandboxStopped => {
                self.stops.inc();
            }
            Measure::WorkerLost => {
                self.workers_lost.inc();
            }
            Measure::Recovered => {
                self.recovered.set(1);
            }
        }
    }

    /// Functions recorded.
    pub(crate) fn functions(&self) -> u64 {
        self.store.functions.load(Ordering::Relaxed)
    }

    /// Writes that the store has applied.
    pub(crate) fn store_writes(&self) -> u64 {
        self.store.writes.load(Ordering::Relaxed)
    }

    /// Transactions that they took.
    pub(crate) fn store_transactions(&self) -> u64 {
        self.store.transactions.load(Ordering::Relaxed)
    }

    /// The whole page.
    pub(crate) fn page(
        &self,
        top: &[FunctionSummary],
        workers: &[WorkerSummary],
        others: &[PageSource],
    ) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(8 << 10);
        text::encode(&mut page, &self.registry)?;
        self.levels(&mut page, top, workers)?;
        for source in others {
            source(&mut page);
        }
        // Each part ends with this mark; the page may have it only once, at its end.
        let mut page = page.replace("# EOF\n", "");
        page.push_str("# EOF\n");
        Ok(page)
    }

    fn levels(
        &self,
        page: &mut String,
        top: &[FunctionSummary],
        workers: &[WorkerSummary],
    ) -> fmt::Result {
        head(page, "control_store_writes", "counter", "Writes that the store has applied")?;
        writeln!(page, "dirigent_control_store_writes_total {}", self.store_writes())?;
        head(page, "control_store_transactions", "counter", "Transactions that they took")?;
        writeln!(page, "dirigent_control_store_transactions_total {}", self.store_transactions())?;
        head(page, "control_functions", "gauge", "Functions recorded")?;
        writeln!(page, "dirigent_control_functions {}", self.functions())?;

        head(page, "function_sandboxes", "gauge", "Sandboxes of active functions")?;
        for function in top {
            let name = &function.name;
            for (state, n) in [("ready", function.ready), ("starting", function.starting)] {
                writeln!(
                    page,
                    "dirigent_function_sandboxes{{function=\"{name}\",state=\"{state}\"}} {n}"
                )?;
            }
        }
        head(page, "function_busy", "gauge", "Invocations in sandboxes")?;
        for function in top {
            let (name, busy) = (&function.name, function.busy);
            writeln!(page, "dirigent_function_busy{{function=\"{name}\"}} {busy}")?;
        }
        head(page, "function_queued", "gauge", "Invocations that wait for a slot")?;
        for function in top {
            let (name, queued) = (&function.name, function.queued);
            writeln!(page, "dirigent_function_queued{{function=\"{name}\"}} {queued}")?;
        }
        head(page, "function_invocations", "counter", "Invocations since the leader took office")?;
        for function in top {
            let (name, n) = (&function.name, function.arrivals_total);
            writeln!(page, "dirigent_function_invocations_total{{function=\"{name}\"}} {n}")?;
        }
        head(page, "worker_sandboxes", "gauge", "Sandboxes on a worker")?;
        for worker in workers {
            let (id, state, n) = (worker.id, &worker.state, worker.sandboxes);
            writeln!(page, "dirigent_worker_sandboxes{{worker=\"{id}\",state=\"{state}\"}} {n}")?;
        }
        head(page, "worker_memory_reserved_bytes", "gauge", "Memory reserved on a worker")?;
        for worker in workers {
            let (id, bytes) = (worker.id, worker.memory.0.0);
            writeln!(page, "dirigent_worker_memory_reserved_bytes{{worker=\"{id}\"}} {bytes}")?;
        }
        Ok(())
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(page, "# HELP dirigent_{name} {help}.")?;
    writeln!(page, "# TYPE dirigent_{name} {kind}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_page_has_every_part_and_one_end() {
        let store = Counts::default();
        store.writes.store(7, Ordering::Relaxed);
        let metrics = Metrics::new(store);
        metrics.took_office(Epoch(3));
        metrics.measure(Measure::StartDecided);
        metrics.measure(Measure::SandboxReady { took: Duration::from_millis(3) });
        metrics.measure(Measure::StartFailed { fault: Fault::Worker });
        let other: PageSource = Arc::new(|page| page.push_str("other 1\n# EOF\n"));
        let page = metrics.page(&[], &[], &[other]).unwrap();
        for line in [
            "dirigent_control_epoch 3",
            "dirigent_control_leads 1",
            "dirigent_control_sandbox_starts_total 1",
            "dirigent_control_sandbox_ready_seconds_count 1",
            "dirigent_control_sandbox_start_failures_total{fault=\"worker\"} 1",
            "dirigent_control_store_writes_total 7",
            "other 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in {page}");
        }
        assert_eq!(page.matches("# EOF").count(), 1);
        assert!(page.ends_with("# EOF\n"));
    }
}
