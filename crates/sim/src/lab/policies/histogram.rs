//! The hybrid histogram policy of Shahrad et al., *Serverless in the Wild* (USENIX ATC 2020),
//! section 4.2, with its constants: idle times in bins of one minute over four hours; the pre-warming
//! window ends at the 5th percentile less 10 %, the keep-alive at the 99th plus 10 %; a histogram
//! whose bin counts have a coefficient of variation below 2 says nothing yet, nor does one where
//! more idle times lie outside than inside: then nothing is unloaded for four hours.
//!
//! The paper forecasts by ARIMA where most idle times are longer than the histogram. A trace of
//! eight hours holds at most one such time per function, of which nothing can be forecast; it is
//! treated like "not representative". The paper speaks of applications with one state each; here
//! ranks above the first follow the function's keep-alive, and the first alone is started ahead.

use std::time::Duration;

use dirigent_core::{
    Time,
    policy::{
        ewma::Ewma,
        scaling::{Ahead, Hold, Levels, Scaling},
        starts::{Inputs, outstanding},
    },
};

/// Bins of a minute: "a range of 4 hours".
const BINS: usize = 240;
const RANGE: Duration = Duration::from_secs(240 * 60);
const MINUTE: u64 = 60_000_000_000;
/// "head and tail cutoffs at the 5th and 99th percentiles".
const HEAD: f64 = 0.05;
const TAIL: f64 = 0.99;
/// "margin of 10 %".
const MARGIN: f64 = 0.10;
/// "a CV threshold of 2".
const REPRESENTATIVE: f64 = 2.0;

/// See the module.
#[derive(Clone, Debug)]
pub struct Histogram {
    bins: Vec<u32>,
    inside: u32,
    outside: u32,
    idle_since: Option<Time>,
    service: Ewma,
    start: Ewma,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            bins: vec![0; BINS],
            inside: 0,
            outside: 0,
            idle_since: None,
            service: Ewma::new(),
            start: Ewma::new(),
        }
    }
}

impl Histogram {
    fn is_representative(&self) -> bool {
        if self.inside == 0 || self.outside > self.inside {
            return false;
        }
        let mean = f64::from(self.inside) / BINS as f64;
        let square = |count: &u32| (f64::from(*count) - mean).powi(2);
        let variance = self.bins.iter().map(square).sum::<f64>() / BINS as f64;
        variance.sqrt() / mean >= REPRESENTATIVE
    }

    /// The bin in which so large a part of the idle times is reached.
    fn quantile(&self, part: f64) -> usize {
        let wanted = part * f64::from(self.inside);
        let mut sum = 0.0;
        let reached = |count: &u32| {
            sum += f64::from(*count);
            sum >= wanted
        };
        self.bins.iter().position(reached).unwrap_or(BINS - 1)
    }
}

impl Scaling for Histogram {
    fn arrived(&mut self, levels: &Levels) {
        if levels.present() == 1
            && let Some(since) = self.idle_since.take()
        {
            let idle = levels.now.since(since).as_nanos() / u128::from(MINUTE);
            match usize::try_from(idle).ok().and_then(|bin| self.bins.get_mut(bin)) {
                Some(bin) => {
                    *bin += 1;
                    self.inside += 1;
                }
                None => self.outside += 1,
            }
        }
    }

    fn finished(&mut self, levels: &Levels, ran: Duration) {
        self.service.add(ran);
        if levels.present() == 0 {
            self.idle_since = Some(levels.now);
        }
    }

    fn started(&mut self, _levels: &Levels, took: Duration) {
        self.start.add(took);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        outstanding(&Inputs::of(levels, self.service.get(), self.start.get()))
    }

    fn hold(&mut self, _levels: &Levels, rank: u32) -> Hold {
        if !self.is_representative() {
            return Hold::keep(RANGE);
        }
        // The head is rounded down to its bin's begin, the tail up to its bin's end.
        let minutes =
            |bins: usize, factor: f64| Duration::from_secs_f64(bins as f64 * 60.0 * factor);
        let head = minutes(self.quantile(HEAD), 1.0 - MARGIN);
        let tail = minutes(self.quantile(TAIL) + 1, 1.0 + MARGIN);
        if head.is_zero() {
            return Hold::keep(tail);
        }
        let ahead = (rank == 1).then_some(Ahead { from: head, until: tail });
        Hold { keep: Duration::ZERO, ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(policy: &mut Histogram, minutes: &[u64]) {
        let mut now = 0;
        for gap in minutes {
            policy.finished(&at(now), Duration::from_millis(10));
            now += gap * MINUTE;
            policy.arrived(&Levels { busy: 1, ..at(now) });
        }
        policy.finished(&at(now), Duration::from_millis(10));
    }

    fn at(now: u64) -> Levels {
        Levels { now: Time(now), ..Levels::default() }
    }

    #[test]
    fn a_timer_is_unloaded_and_started_ahead() {
        let mut policy = Histogram::default();
        play(&mut policy, &[10; 30]);
        let Hold { keep, ahead } = policy.hold(&at(0), 1);
        let Some(Ahead { from, until }) = ahead else { panic!("no start ahead") };
        assert_eq!((keep, from), (Duration::ZERO, Duration::from_secs(9 * 60)));
        assert_eq!(until.as_secs(), 11 * 66);
        assert_eq!(policy.hold(&at(0), 2), Hold::keep(Duration::ZERO));
    }

    #[test]
    fn without_a_pattern_it_is_kept_for_the_range() {
        let mut policy = Histogram::default();
        assert_eq!(policy.hold(&at(0), 1), Hold::keep(RANGE));
        let spread: Vec<u64> = (0..240).collect();
        play(&mut policy, &spread);
        assert_eq!(policy.hold(&at(0), 1), Hold::keep(RANGE));
    }
}
