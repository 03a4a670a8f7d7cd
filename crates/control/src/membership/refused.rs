//! Certificates that are refused although they have not run out.
//!
//! The set only grows: by what was removed here, and by what other control planes have told the store
//! that they share. What has run out is forgotten a day later, as clocks differ.

use std::collections::BTreeMap;

/// After this nobody's clock takes a certificate for a good one: milliseconds.
const KEPT_MS: u64 = 24 * 3600 * 1000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refused {
    by_serial: BTreeMap<String, Refusal>,
    /// Whether others may have refused more, and were not heard yet.
    is_partial: bool,
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    /// When the certificate runs out: milliseconds since 1970.
    until_ms: u64,
    /// Whether the store has it.
    is_told: bool,
}

impl Refused {
    /// What is known at the start.
    pub(super) fn new(known: &BTreeMap<String, u64>) -> Self {
        let mut this = Self::default();
        this.add(known);
        this
    }

    pub(super) fn holds(&self, serial: &str) -> bool {
        self.by_serial.contains_key(serial)
    }

    pub(super) const fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// There are others, who are to be heard first.
    pub(super) const fn awaits_others(&mut self) {
        self.is_partial = true;
    }

    /// These too, from here.
    pub(super) fn add(&mut self, more: &BTreeMap<String, u64>) {
        for (serial, until_ms) in more {
            let new = Refusal { until_ms: *until_ms, is_told: false };
            self.by_serial.entry(serial.clone()).or_insert(new);
        }
    }

    /// The store has these, and no others; whether more is known than before.
    pub(super) fn heard(&mut self, all: &BTreeMap<String, u64>) -> bool {
        let mut is_news = std::mem::take(&mut self.is_partial);
        for (serial, refusal) in &mut self.by_serial {
            refusal.is_told = all.contains_key(serial);
        }
        for (serial, until_ms) in all {
            self.by_serial.entry(serial.clone()).or_insert_with(|| {
                is_news = true;
                Refusal { until_ms: *until_ms, is_told: true }
            });
        }
        is_news
    }

    /// What the store is to be told: what it lacks and has not run out.
    pub(super) fn untold(&self, now_ms: u64) -> Vec<(String, u64)> {
        let untold = |refusal: &Refusal| !refusal.is_told && refusal.until_ms > now_ms;
        let all = self.by_serial.iter().filter(|(_, refusal)| untold(refusal));
        all.map(|(serial, refusal)| (serial.clone(), refusal.until_ms)).collect()
    }

    /// The store has these.
    pub(super) fn told(&mut self, these: &[(String, u64)]) {
        for (serial, _until_ms) in these {
            if let Some(refusal) = self.by_serial.get_mut(serial) {
                refusal.is_told = true;
            }
        }
    }

    /// Forgets what has run out for good; which of it the store has.
    pub(super) fn forget(&mut self, now_ms: u64) -> Vec<String> {
        let is_over = |refusal: &Refusal| refusal.until_ms.saturating_add(KEPT_MS) <= now_ms;
        let over = self.by_serial.extract_if(.., |_, refusal| is_over(refusal));
        over.filter(|(_, refusal)| refusal.is_told).map(|(serial, _)| serial).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(all: &[(&str, u64)]) -> BTreeMap<String, u64> {
        all.iter().map(|(serial, until_ms)| ((*serial).to_owned(), *until_ms)).collect()
    }

    #[test]
    fn what_is_refused_stays_so_whatever_the_store_says() {
        let mut refused = Refused::new(&these(&[("a", 10)]));
        refused.awaits_others();
        assert!(refused.is_partial());
        assert_eq!(refused.untold(5), [("a".to_owned(), 10)]);
        // To have heard that there is nothing is news too.
        assert!(refused.heard(&these(&[])));
        assert!(!refused.is_partial());
        assert!(refused.heard(&these(&[("b", 20)])));
        assert!(!refused.heard(&these(&[("b", 20)])));
        refused.told(&refused.untold(5));
        assert_eq!(refused.untold(5), []);
        // An older copy of the store: it is told once more, but not what has run out.
        assert!(!refused.heard(&these(&[])));
        assert!(refused.holds("a") && refused.holds("b") && !refused.holds("c"));
        assert_eq!(refused.untold(10), [("b".to_owned(), 20)]);
    }

    #[test]
    fn what_has_run_out_is_forgotten_a_day_later() {
        let mut refused = Refused::new(&these(&[("here", 10), ("late", 11)]));
        refused.heard(&these(&[("there", 10)]));
        assert_eq!(refused.forget(KEPT_MS + 9), [""; 0]);
        assert_eq!(refused.forget(KEPT_MS + 10), ["there"]);
        assert!(!refused.holds("here") && !refused.holds("there") && refused.holds("late"));
    }
}
