//! What a gate learns of its function's calls, where the settings leave the keep-alive to it.
//!
//! [`Adaptive`] says how long the sandbox of each rank is worth its memory once it fell idle, and
//! whether one is to be started ahead of the next call. Here stands what it said: until when each
//! rank is held, and when one is expected to be needed. Ranks are counted in sandboxes: with several
//! invocations per sandbox, `n` of them are in use while they would be enough.
//!
//! The sandbox of the highest rank is the one that has been idle for longest, so whether one goes is
//! asked of the highest rank only. Each data plane learns from the calls that it sees, and keeps what
//! it learned while it knows the function: control planes may come and go.

use std::time::Duration;

use crate::{
    Time,
    policy::{
        adaptive::{Adaptive, Terms},
        scaling::{Ahead, Hold, Levels, Scaling as _},
    },
};

/// Starts ahead are made for ranks up to this: higher ones are needed in bursts, which nobody
/// foresees.
const FORESEEN: usize = 32;

/// The time that an invocation takes is learned after so many at the latest; before, whenever none
/// is left.
const SAMPLE: u64 = 64;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Learned {
    policy: Adaptive,
    ranks: Vec<Rank>,
    /// Ranks in use.
    present: u32,
    /// Invocations finished, and their busy nanoseconds, when their time was last learned.
    sampled: (u64, u64),
}

/// What was decided when a rank fell idle.
#[derive(Clone, Copy, Debug, Default)]
struct Rank {
    /// Its sandbox is held until then.
    until: Time,
    /// One is wanted from the first time to the second.
    ahead: Option<(Time, Time)>,
}

impl Rank {
    /// Until when its sandbox is held, if it is still there.
    fn held_until(&self) -> Time {
        match self.ahead {
            Some((from, until)) if from <= self.until => self.until.max(until),
            Some(_) | None => self.until,
        }
    }

    fn expects(&self, now: Time) -> bool {
        self.ahead.is_some_and(|(from, until)| (from..until).contains(&now))
    }
}

impl Learned {
    /// Of a function without a past, or with one that nobody watched: what is counted so far.
    pub(super) fn new(finished: u64, busy_integral: u64) -> Self {
        Self {
            policy: Adaptive::new(Terms::default()),
            ranks: Vec::new(),
            present: 0,
            sampled: (finished, busy_integral),
        }
    }

    /// What is known is of use for so long after the last call.
    pub(super) fn lasts() -> Duration {
        Terms::default().horizon * 2
    }

    /// An invocation came, and so many ranks are in use now.
    pub(super) fn arrived(&mut self, now: Time, present: u32) {
        self.policy.arrived(&Levels { now, busy: present, ..Levels::default() });
        self.needed(present);
    }

    /// So many ranks are in use now, and nobody came: an attempt is made once more, or those that
    /// are not needed any more have fallen idle.
    pub(super) fn settled(&mut self, now: Time, present: u32) {
        for rank in self.present + 1..=present {
            self.policy.needed(rank);
        }
        for rank in (present + 1..=self.present).rev() {
            self.policy.idled(now, rank);
            self.hold(now, rank);
        }
        self.needed(present);
    }

    fn needed(&mut self, present: u32) {
        for rank in self.present + 1..=present {
            if let Some(rank) = self.rank(rank) {
                rank.ahead = None;
            }
        }
        self.present = present;
    }

    /// So many invocations have finished, and were busy for so many nanoseconds together.
    pub(super) fn served(&mut self, finished: u64, busy_integral: u64, busy: u32) {
        let count = finished.saturating_sub(self.sampled.0);
        if busy == 0 || count >= SAMPLE {
            let spent = busy_integral.wrapping_sub(self.sampled.1);
            if let Some(each) = spent.checked_div(count) {
                self.policy.served(Duration::from_nanos(each));
                self.sampled = (finished, busy_integral);
            }
        }
    }

    /// A sandbox came, the `rank`th, after a start that took so long if it was started for this.
    pub(super) fn came(&mut self, now: Time, rank: u32, took: Option<Duration>) {
        if let Some(took) = took {
            self.policy.started(&Levels::default(), took);
        }
        if rank <= self.present {
            return;
        }
        // One that is expected is held as was decided then.
        let expected = self.rank(rank).filter(|rank| rank.expects(now));
        match expected {
            Some(rank) => rank.until = rank.held_until().max(rank.ahead.map_or(now, |(_, to)| to)),
            None => self.hold(now, rank),
        }
    }

    /// Nothing is known of the idle ones up to this rank: they are held from now on.
    pub(super) fn begin(&mut self, now: Time, present: u32, sandboxes: u32) {
        self.present = present;
        for rank in present + 1..=sandboxes {
            self.hold(now, rank);
        }
    }

    /// Idle ones are wanted elsewhere: nothing is started ahead of what nobody waits for.
    pub(super) fn void(&mut self) {
        self.ranks.iter_mut().for_each(|rank| rank.ahead = None);
    }

    /// When the sandbox of the highest rank goes, if it is not in use.
    pub(super) fn goes_at(&self, sandboxes: u32) -> Option<Time> {
        if sandboxes <= self.present {
            return None;
        }
        let place = usize::try_from(sandboxes).ok()?.checked_sub(1)?;
        Some(self.ranks.get(place).map_or(Time::ZERO, Rank::held_until))
    }

    /// Sandboxes that are expected to be needed now; 0 if none beside those in use.
    pub(super) fn expected(&self, now: Time) -> u32 {
        let mut foreseen = self.ranks.iter().take(FORESEEN).enumerate().skip(self.present as usize);
        let highest = foreseen.rfind(|(_, rank)| rank.expects(now));
        highest.map_or(0, |(place, _)| u32::try_from(place + 1).unwrap_or(u32::MAX))
    }

    /// When that changes next.
    pub(super) fn expects_at(&self, now: Time) -> Option<Time> {
        let foreseen = self.ranks.iter().take(FORESEEN).skip(self.present as usize);
        let changes = foreseen.filter_map(|rank| {
            let (from, until) = rank.ahead?;
            [from, until].into_iter().find(|at| *at > now)
        });
        changes.min()
    }

    fn rank(&mut self, rank: u32) -> Option<&mut Rank> {
        self.ranks.get_mut(usize::try_from(rank).ok()?.checked_sub(1)?)
    }

    /// The sandbox of a rank has nothing to do.
    fn hold(&mut self, now: Time, rank: u32) {
        let Hold { keep, ahead } = self.policy.hold(&Levels { now, ..Levels::default() }, rank);
        let count = usize::try_from(rank).unwrap_or(usize::MAX);
        if self.ranks.len() < count {
            self.ranks.resize(count, Rank::default());
        }
        let times = |ahead: Ahead| (now.after(ahead.from), now.after(ahead.until));
        if let Some(rank) = self.rank(rank) {
            *rank = Rank { until: now.after(keep), ahead: ahead.map(times) };
        }
    }
}

#[cfg(test)]
mod tests;
