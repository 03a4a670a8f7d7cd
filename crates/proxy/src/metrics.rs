//! What is counted, and the page for Prometheus.
//!
//! A function gets series of its own when it is first called, as long as there are fewer than the
//! cap; the others share the series `function=""`. A forgotten function's series go.

use std::{fmt::Write as _, sync::Mutex};

use dirigent_core::FunctionName;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::slot::lock;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFunction {
    function: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClass {
    function: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: &'static str,
}

fn seconds() -> Histogram {
    // 100 us to 105 s.
    Histogram::new(exponential_buckets(0.0001, 2.0, 21))
}

const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "left"];

/// See the module.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    invocations: Family<OfClass, Counter>,
    cold: Family<OfFunction, Counter>,
    retries: Family<OfFunction, Counter>,
    overruns: Family<OfFunction, Counter>,
    latency: Family<OfFunction, Histogram, fn() -> Histogram>,
    phases: Family<OfPhase, Histogram, fn() -> Histogram>,
    queued: Family<OfFunction, Gauge>,
    busy: Family<OfFunction, Gauge>,
    pub(crate) connections: Gauge,
    pub(crate) resting: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) shed: Counter,
    in_flight: Gauge,
    named: Mutex<std::collections::HashSet<FunctionName>>,
}

/// The series of one function, without a look-up.
#[derive(Debug)]
pub(crate) struct FunctionMetrics {
    classes: [Counter; 6],
    cold: Counter,
    retries: Counter,
    pub(crate) overruns: Counter,
    latency: Histogram,
}

impl FunctionMetrics {
    pub(crate) fn count(&self, status: u16, nanos: u64, cold: bool, attempts: u32) {
        let class = if status == 499 { 5 } else { usize::from(status / 100).saturating_sub(1) };
        if let Some(counter) = self.classes.get(class) {
            counter.inc();
        }
        if cold {
            self.cold.inc();
        }
        if attempts > 1 {
            self.retries.inc_by(u64::from(attempts - 1));
        }
        self.latency.observe(std::time::Duration::from_nanos(nanos).as_secs_f64());
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("dirigent_proxy");
        let this = Self {
            invocations: Family::default(),
            cold: Family::default(),
            retries: Family::default(),
            overruns: Family::default(),
            latency: Family::new_with_constructor(seconds),
            phases: Family::new_with_constructor(seconds),
            queued: Family::default(),
            busy: Family::default(),
            connections: Gauge::default(),
            resting: Gauge::default(),
            accepted: Counter::default(),
            shed: Counter::default(),
            in_flight: Gauge::default(),
            named: Mutex::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("invocations", "Invocations ended, by status class", this.invocations.clone());
        r.register("cold_starts", "Invocations that waited for a start", this.cold.clone());
        r.register("retries", "Attempts after the first", this.retries.clone());
        r.register("overruns", "Invocations abandoned while a handler ran", this.overruns.clone());
        r.register("latency_seconds", "From arrival to the end", this.latency.clone());
        r.register("cold_start_phase_seconds", "Phases of cold starts", this.phases.clone());
        r.register("queued_invocations", "Invocations waiting for a slot", this.queued.clone());
        r.register("busy_invocations", "Invocations in sandboxes", this.busy.clone());
        r.register("connections", "Client connections open", this.connections.clone());
        let rest = "Of these, without a call for long enough to have no buffers";
        r.register("connections_resting", rest, this.resting.clone());
        r.register("connections_accepted", "Client connections", this.accepted.clone());
        r.register("shed", "Connections and invocations refused at a bound", this.shed.clone());
        r.register("in_flight_invocations", "Invocations not yet ended", this.in_flight.clone());
        Self { registry, ..this }
    }

    pub(crate) fn function(&self, name: &FunctionName, cap: usize) -> FunctionMetrics {
        let function = self.label(name, cap);
        let of = OfFunction { function: function.clone() };
        FunctionMetrics {
            classes: CLASSES.map(|class| {
                let of = OfClass { function: function.clone(), class };
                self.invocations.get_or_create(&of).clone()
            }),
            cold: self.cold.get_or_create(&of).clone(),
            retries: self.retries.get_or_create(&of).clone(),
            overruns: self.overruns.get_or_create(&of).clone(),
            latency: self.latency.get_or_create(&of).clone(),
        }
    }

    fn label(&self, name: &FunctionName, cap: usize) -> String {
        let mut named = lock(&self.named);
        if named.contains(name) || named.len() < cap {
            named.insert(name.clone());
            return format!("{}/{}", name.namespace(), name.name());
        }
        String::new()
    }

    pub(crate) fn forget(&self, name: &FunctionName) {
        if !lock(&self.named).remove(name) {
            return;
        }
        let function = format!("{}/{}", name.namespace(), name.name());
        let of = OfFunction { function: function.clone() };
        for class in CLASSES {
            self.invocations.remove(&OfClass { function: function.clone(), class });
        }
        for family in [&self.cold, &self.retries, &self.overruns] {
            family.remove(&of);
        }
        self.latency.remove(&of);
        self.queued.remove(&of);
        self.busy.remove(&of);
    }

    pub(crate) fn phase(&self, phase: &'static str, nanos: u64) {
        let seconds = std::time::Duration::from_nanos(nanos).as_secs_f64();
        self.phases.get_or_create(&OfPhase { phase }).observe(seconds);
    }

    /// The page; `levels` are queued and busy invocations of each function.
    pub(crate) fn page(
        &self,
        levels: impl Iterator<Item = (FunctionName, u32, u32)>,
        in_flight: usize,
    ) -> String {
        for (name, queued, busy) in levels {
            if !lock(&self.named).contains(&name) {
                continue;
            }
            let function = format!("{}/{}", name.namespace(), name.name());
            let of = OfFunction { function };
            self.queued.get_or_create(&of).set(i64::from(queued));
            self.busy.get_or_create(&of).set(i64::from(busy));
        }
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let mut page = String::new();
        if encode(&mut page, &self.registry).is_err() {
            page.clear();
            writeln!(page, "# the page could not be written").expect("strings take everything");
        }
        page
    }
}
