//! Several data planes against one ideal queue: the same calls of one function by the product's own
//! machines, with the slots of a fixed number of sandboxes spread over 1, 2, 4 and 16 data planes.
//!
//! A call waits at the data plane where it came, also if a slot idles at another one, until that
//! has been recalled and granted anew. With affinity all calls of a function come to one of them.

use std::time::Duration;

use anyhow::Result;
use dirigent_core::policy::random::Pcg;
use dirigent_trace::percentiles::{at as percentile, sorted};
use serde::Serialize;

use super::{
    calls::{Call, StartTime, nanos},
    frontier::Bar,
    machines::{Setup, ideal_waits, run},
};

/// One setting measured.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// Mean of exponential service times in milliseconds.
    pub service_ms: u64,
    /// Data planes.
    pub planes: usize,
    /// Whether all calls come to one of them.
    pub affinity: bool,
    /// 99th percentile of waits, in milliseconds.
    pub wait_p99_ms: f64,
    /// The same of one ideal queue.
    pub ideal_p99_ms: f64,
}

impl Spread {
    /// How many times the ideal.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.wait_p99_ms / self.ideal_p99_ms
    }

    /// Whether it is one of those that must hold: shorter calls are over before a slot has moved.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.service_ms >= 10
    }

    /// `wait p99 at most 1.2 x one ideal queue for service times of 10 ms and more`.
    #[must_use]
    pub fn bar(&self) -> Bar {
        let affinity = if self.affinity { "with affinity" } else { "without affinity" };
        let text = format!(
            "{} data planes {affinity}, service {} ms: wait p99 {:.2} ms <= 1.2 x {:.2} ms ({:.2})",
            self.planes,
            self.service_ms,
            self.wait_p99_ms,
            self.ideal_p99_ms,
            self.ratio()
        );
        Bar { text, holds: self.ratio() <= 1.2 }
    }
}

/// Sandboxes of the function, one call at a time in each.
const SANDBOXES: u32 = 16;
/// Busy so much of the time: calls wait often, and no queue grows without end.
const LOAD: f64 = 0.8;
/// Mean service times in milliseconds.
pub const SERVICES: [u64; 4] = [1, 10, 100, 1000];
/// Enough for a p99: 200 calls lie above it.
pub const CALLS: u64 = 20_000;
/// From one machine of a cluster to another: there and back 0.1 ms (67 us on one host).
const LINK: Duration = Duration::from_micros(50);

/// All numbers of data planes, for each of these mean service times in milliseconds.
///
/// # Errors
/// If the machines refuse something.
pub fn measure(services: &[u64], count: u64, seed: u64) -> Result<Vec<Spread>> {
    let mut spreads = Vec::new();
    for &service_ms in services {
        let calls = calls(service_ms, count, seed);
        let ideal_p99_ms = p99_ms(&ideal_waits(&calls, SANDBOXES as usize));
        for (planes, affinity) in
            [(1, true), (2, false), (4, false), (16, false), (2, true), (4, true), (16, true)]
        {
            let setup = Setup {
                planes,
                affinity,
                sandboxes: (SANDBOXES, SANDBOXES),
                keep_alive: Duration::from_secs(600).into(),
                link: LINK,
                start: StartTime::Fixed(Duration::from_millis(5)),
            };
            let end = calls.last().map_or(0, |call| call.at) + 1;
            let felt = run(&calls, setup, Pcg::new(seed), (0, end))?;
            let wait_p99_ms = p99_ms(&felt.waits);
            spreads.push(Spread { service_ms, planes, affinity, wait_p99_ms, ideal_p99_ms });
        }
    }
    Ok(spreads)
}

fn p99_ms(waits: &[u64]) -> f64 {
    percentile(&sorted(waits.iter().map(|wait| *wait as f64 / 1e6)), 99.0)
}

/// Calls at random times with random service times, both exponential.
fn calls(service_ms: u64, count: u64, seed: u64) -> Vec<Call> {
    let mut random = Pcg::new(seed ^ service_ms);
    let mean = Duration::from_millis(service_ms);
    let mut draw = |mean: f64| {
        let unit = (f64::from(random.draw()) + 1.0) / (f64::from(u32::MAX) + 2.0);
        nanos(Duration::from_secs_f64(-unit.ln() * mean))
    };
    let gap = mean.as_secs_f64() / (LOAD * f64::from(SANDBOXES));
    let mut at = 0;
    let call = |_: u64| {
        at += draw(gap);
        Call { at, runs: draw(mean.as_secs_f64()).max(1) }
    };
    (0..count).map(call).collect()
}
