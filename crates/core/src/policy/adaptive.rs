//! A keep-alive learned per function and rank: an idle sandbox is held as long as what it spares
//! callers exceeds what it costs.
//!
//! Two prices and a distribution decide. The distribution is that of the idle periods of each rank
//! (see [`scaling`](super::scaling)): how long until a sandbox is needed again. What a sandbox
//! *spares* is slowdown, in doublings: a call of `s` that waits `c` for a start is slowed down by
//! `log2(1 + c/s)`, so short functions are worth most; of a higher rank it spares only the wait for
//! a slot of the others. What it *costs* is the share of time that it stands idle, at
//! [`Terms::price_milli`], and each start, at [`Terms::start`]. One price for all functions puts the
//! memory where it spares most: that is why the result lies below any keep-alive that is the same
//! for all, at any total.
//!
//! A function counts once, however often it is called, as in the published measure (slowdown per
//! function): a rank's worth is what it spares an average call, and what it spares the function's
//! tail, which is lost with the first few cold calls of a horizon. So there are three answers: held
//! (nearly) always, held for a while because most calls come soon, or let go at once. Where the idle
//! periods gather around a later time, as those of timers do, it is let go and started ahead.
//!
//! Nothing is known of a new function but that gaps span orders of magnitude: one gap spread evenly
//! over all octaves stands for that ([`gaps`]). Everything is halved after two horizons.
//!
//! Integers only, [`Adaptive::footprint`] bytes per function: at most 1 KB.

mod fixed;
mod gaps;
mod plan;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::{
    ewma::Ewma,
    scaling::{Ahead, Hold, Levels, Scaling},
    starts::{Inputs, SUPPOSED_START, outstanding},
};
use crate::Time;
use gaps::Gaps;
use plan::{Facts, Plan};

/// What is not learned. The defaults were fixed on one half of a trace and judged on the other, see
/// `docs/concepts/policies.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What a sandbox that always stands idle costs, in thousandths of a doubling of slowdown: at
    /// 1000 it is held all the time if that halves the response time of the function's calls. The
    /// knob between memory and waiting.
    pub price_milli: u64,
    /// A start costs as much as holding an idle sandbox for so long at a price of 1000. It is work
    /// for workers and control plane that memory does not show.
    pub start: Duration,
    /// How much of a function's worth lies in its tail, in percent; the rest is the average's.
    pub tail_percent: u64,
    /// Of so many calls none may be cold for the tail to be warm.
    pub tail_calls: u64,
    /// The time in which a function counts once. One that is called less often counts for less.
    pub horizon: Duration,
    /// The weight of the gap that stands for what is not known, in thousandths of one seen.
    pub prior_milli: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            price_milli: 1000,
            start: Duration::from_secs(20),
            tail_percent: 25,
            tail_calls: 30,
            horizon: Duration::from_secs(4 * 3600),
            prior_milli: 1000,
        }
    }
}

/// Ranks that are told apart in time; those above share what the last one has learned.
const RANKS: u32 = 32;

/// See the module.
#[derive(Clone, Debug)]
pub struct Adaptive {
    terms: Terms,
    service: Ewma,
    start: Ewma,
    /// By class of rank: 1, 2, 3-4, 5-8, ... 17-32; as far as they were seen.
    classes: Vec<Class>,
    /// When each rank fell idle, in milliseconds that wrap; 0 while it is in use.
    idle_since: Vec<u32>,
    born: Option<Time>,
    arrivals: u64,
}

#[derive(Clone, Debug)]
struct Class {
    gaps: Gaps,
    /// Arrivals that found all lower ranks in use.
    reached: u32,
    /// How many gaps were known when the plan was made; `None` before the first.
    planned_at: Option<u32>,
    plan: Plan,
}

impl Adaptive {
    /// A function without a past.
    #[must_use]
    pub const fn new(terms: Terms) -> Self {
        Self {
            terms,
            service: Ewma::new(),
            start: Ewma::new(),
            classes: Vec::new(),
            idle_since: Vec::new(),
            born: None,
            arrivals: 0,
        }
    }

    /// Bytes that it occupies.
    #[must_use]
    pub fn footprint(&self) -> usize {
        size_of::<Self>()
            + self.classes.capacity() * size_of::<Class>()
            + self.idle_since.capacity() * size_of::<u32>()
    }

    /// An invocation ended that had a slot for so long.
    pub fn served(&mut self, ran: Duration) {
        self.service.add(ran);
    }

    /// The sandbox of this rank (from 1) is not needed any more.
    pub fn idled(&mut self, now: Time, rank: u32) {
        if !(1..=RANKS).contains(&rank) {
            return;
        }
        let count = usize::try_from(rank).unwrap_or(0);
        if self.idle_since.len() < count {
            self.idle_since.reserve_exact(count - self.idle_since.len());
            self.idle_since.resize(count, 0);
        }
        if let Some(since) = self.idle_since.get_mut(count - 1) {
            *since = stamp(now);
        }
    }

    /// The sandbox of this rank is needed once more, by somebody who has come before.
    pub fn needed(&mut self, rank: u32) {
        let place = usize::try_from(rank.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(since) = self.idle_since.get_mut(place) {
            *since = 0;
        }
    }

    fn class(&mut self, rank: u32) -> &mut Class {
        let index = class_of(rank);
        if self.classes.len() <= index {
            // Exactly, so that a function that stays small costs little.
            self.classes.reserve_exact(index + 1 - self.classes.len());
            self.classes.resize_with(index + 1, || Class {
                gaps: Gaps::default(),
                reached: 0,
                planned_at: None,
                plan: Plan::default(),
            });
        }
        self.classes.get_mut(index).expect("just made")
    }

    /// Halves what is known when it reaches back two horizons, so that a function may change.
    fn age(&mut self, now: Time) {
        let born = *self.born.get_or_insert(now);
        let lived = now.since(born);
        if lived > self.terms.horizon * 2 {
            self.born = Some(born + lived / 2);
            self.arrivals /= 2;
            for class in &mut self.classes {
                class.gaps.halve();
                class.reached /= 2;
                class.planned_at = None;
            }
        }
    }

    fn facts(&self, now: Time, rank: u32) -> Facts {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let start = micros(self.start.get().unwrap_or(SUPPOSED_START));
        let service = micros(self.service.get().unwrap_or(SUPPOSED_START)).max(1);
        // Beside `n` busy sandboxes a call waits at most until one of them is free.
        let wait = match u64::from(rank.saturating_sub(1)) {
            0 => start,
            others => start.min(service / others),
        };
        // Less than a minute of a life says little about how often it is called.
        let lived = now.since(self.born.unwrap_or(now)).as_secs().max(60);
        let class = self.classes.get(class_of(rank));
        let reached = class.map_or(0, |class| u64::from(class.reached)) * 1024;
        let reached = reached / width_of(class_of(rank)) / self.arrivals.max(1);
        Facts {
            spared: fixed::log2_one_plus(wait, service),
            start_ms: start / 1000,
            service_ms: service / 1000,
            calls_q8: (self.arrivals << 8).saturating_mul(self.terms.horizon.as_secs()) / lived,
            reached_q10: reached.clamp(1, 1024),
        }
    }
}

/// Ranks that share a distribution: 1, 2, 3-4, 5-8, ...
fn class_of(rank: u32) -> usize {
    let class = u32::BITS - (rank.clamp(1, RANKS) - 1).leading_zeros();
    usize::try_from(class).unwrap_or(0)
}

/// How many ranks a class has.
const fn width_of(class: usize) -> u64 {
    if class < 2 { 1 } else { 1 << (class - 1) }
}

/// Milliseconds that wrap after 49 days, never 0.
fn stamp(now: Time) -> u32 {
    let ms = now.0 / 1_000_000 % u64::from(u32::MAX);
    u32::try_from(ms).unwrap_or(0) + 1
}

impl Scaling for Adaptive {
    fn arrived(&mut self, levels: &Levels) {
        self.age(levels.now);
        self.arrivals += 1;
        let rank = levels.present();
        let place = usize::try_from(rank.saturating_sub(1)).unwrap_or(usize::MAX);
        let since = self.idle_since.get_mut(place).map_or(0, std::mem::take);
        let now = stamp(levels.now);
        let class = self.class(rank);
        class.reached = class.reached.saturating_add(1);
        if since > 0 {
            class.gaps.add(u64::from(now.wrapping_sub(since)));
        }
    }

    fn finished(&mut self, levels: &Levels, ran: Duration) {
        self.served(ran);
        self.idled(levels.now, levels.present().saturating_add(1));
    }

    fn started(&mut self, _levels: &Levels, took: Duration) {
        self.start.add(took);
    }

    fn starts(&mut self, levels: &Levels) -> u32 {
        outstanding(&Inputs::of(levels, self.service.get(), self.start.get()))
    }

    fn hold(&mut self, levels: &Levels, rank: u32) -> Hold {
        let class = self.class(rank);
        let known = class.gaps.known();
        // A plan is made anew when a sixteenth more is known: often at first, then hardly ever.
        if class.planned_at.is_none_or(|then| known > then + then / 16) {
            let facts = self.facts(levels.now, rank);
            let terms = self.terms;
            let class = self.class(rank);
            class.plan = plan::best(&class.gaps, &facts, &terms);
            class.planned_at = Some(known);
        }
        let plan = self.class(rank).plan;
        let early = self.start.get().unwrap_or(SUPPOSED_START) * 2;
        Hold {
            keep: gaps::edge(plan.keep),
            ahead: plan.ahead.map(|(from, until)| Ahead {
                from: gaps::edge(from).saturating_sub(early),
                until: gaps::edge(until),
            }),
        }
    }
}
