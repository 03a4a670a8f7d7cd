//! What a link does to frames, one way between two hosts: decided by its policy and a seed, without
//! clock or device, so that the same frames meet the same fate again.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Frames that wait in a link at most; what comes then is dropped, as by any queue of a network.
const QUEUE: usize = 1000;

/// How a link is, one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Nothing passes.
    pub is_cut: bool,
    /// From the end of a frame's sending to its arrival.
    pub delay: Duration,
    /// The share of frames that are lost, of 0 to 1.
    pub loss: f64,
    /// Bytes per second, if it is slow.
    pub rate: Option<u32>,
}

impl Link {
    /// Nothing passes.
    #[must_use]
    pub fn cut() -> Self {
        Self { is_cut: true, ..Self::default() }
    }

    /// Ways in which links are bad that nobody's call may fail by, each with its name.
    #[must_use]
    pub fn bad() -> [(&'static str, Self); 3] {
        let well = Self::default();
        [
            ("late", Self { delay: Duration::from_millis(30), ..well }),
            ("lossy", Self { loss: 0.03, ..well }),
            ("slow", Self { rate: Some(500_000), ..well }),
        ]
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Dropped,
    Now,
    /// At this time, and never before one that came earlier.
    At(Duration),
}

/// A link with what is under way in it.
#[derive(Debug)]
pub(crate) struct Wire {
    link: Link,
    dice: StdRng,
    /// When the last frame that was taken is sent: a slow link sends one after the other.
    sent: Duration,
    /// When the last frame that was taken arrives.
    last: Duration,
    waiting: usize,
}

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            link: Link::default(),
            dice: StdRng::seed_from_u64(seed),
            sent: Duration::ZERO,
            last: Duration::ZERO,
            waiting: 0,
        }
    }

    pub(crate) fn set(&mut self, link: Link) {
        self.link = link;
    }

    /// A frame comes. One whose fate is a time has to be reported by [`Self::arrived`].
    pub(crate) fn take(&mut self, now: Duration, length: usize) -> Fate {
        let Link { is_cut, delay, loss, rate } = self.link;
        if is_cut || (loss > 0.0 && self.dice.random_bool(loss.min(1.0))) || self.waiting >= QUEUE {
            return Fate::Dropped;
        }
        let takes = rate.map_or(Duration::ZERO, |rate| {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            Duration::from_secs(1) * length / rate.max(1)
        });
        self.sent = self.sent.max(now) + takes;
        self.last = self.last.max(self.sent + delay);
        if self.last <= now && self.waiting == 0 {
            return Fate::Now;
        }
        self.waiting += 1;
        Fate::At(self.last)
    }

    /// A frame that waited is through, unless the link was cut meanwhile.
    pub(crate) fn arrived(&mut self) -> bool {
        self.waiting = self.waiting.saturating_sub(1);
        !self.link.is_cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn wire(link: Link) -> Wire {
        let mut wire = Wire::new(7);
        wire.set(link);
        wire
    }

    #[test]
    fn a_good_link_passes_all_and_a_cut_one_nothing() {
        assert_eq!(wire(Link::default()).take(MS, 1500), Fate::Now);
        assert_eq!(wire(Link::cut()).take(MS, 1500), Fate::Dropped);
    }

    #[test]
    fn frames_are_late_by_the_delay_and_never_overtake() {
        let mut wire = wire(Link { delay: 5 * MS, ..Link::default() });
        assert_eq!(wire.take(MS, 100), Fate::At(6 * MS));
        wire.set(Link::default());
        assert_eq!(wire.take(2 * MS, 100), Fate::At(6 * MS));
        assert!(wire.arrived() && wire.arrived());
        assert_eq!(wire.take(6 * MS, 100), Fate::Now);
    }

    #[test]
    fn what_is_under_way_when_the_link_is_cut_does_not_arrive() {
        let mut wire = wire(Link { delay: 5 * MS, ..Link::default() });
        assert_eq!(wire.take(MS, 100), Fate::At(6 * MS));
        wire.set(Link::cut());
        assert!(!wire.arrived());
    }

    #[test]
    fn a_slow_link_sends_one_after_the_other_and_its_queue_is_bounded() {
        let mut wire = wire(Link { rate: Some(100_000), ..Link::default() });
        assert_eq!(wire.take(MS, 1000), Fate::At(11 * MS));
        assert_eq!(wire.take(MS, 1000), Fate::At(21 * MS));
        let fates: Vec<Fate> = (0..QUEUE).map(|_| wire.take(MS, 1000)).collect();
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Dropped).count(), 2);
    }

    #[test]
    fn as_many_are_lost_as_is_said_and_the_same_again_with_the_same_seed() {
        let fates = |seed| {
            let mut wire = Wire::new(seed);
            wire.set(Link { loss: 0.2, ..Link::default() });
            (0..1000).map(|_| wire.take(MS, 100)).collect::<Vec<_>>()
        };
        let lost = fates(1).iter().filter(|fate| **fate == Fate::Dropped).count();
        assert!((150..250).contains(&lost), "{lost}");
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
    }
}
