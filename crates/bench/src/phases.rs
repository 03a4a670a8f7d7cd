//! Where the time of calls went, as `Server-Timing` tells it.

use crate::percentiles::summary;

/// The phases in `name;dur=1.5, name;dur=2`, in milliseconds.
pub(crate) fn phases(timing: &str) -> impl Iterator<Item = (&str, f64)> {
    timing.split(',').filter_map(|part| {
        let (name, value) = part.trim().split_once(";dur=")?;
        Some((name, value.parse().ok()?))
    })
}

/// One phase of a `Server-Timing`.
pub(crate) fn phase_of(timing: &str, phase: &str) -> Option<f64> {
    phases(timing).find(|(name, _)| *name == phase).map(|(_, took)| took)
}

/// All of it.
pub(crate) fn told(timing: &str) -> f64 {
    phases(timing).map(|(_, took)| took).sum()
}

/// The phase that no `Server-Timing` tells: to the data plane and back.
pub(crate) const WAY: &str = "way";

/// The phases of many calls.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    names: Vec<String>,
    values: Vec<Vec<f64>>,
    /// Of all phases.
    sums: f64,
    /// Of those without [`WAY`].
    told: f64,
    totals: f64,
}

impl Phases {
    /// Reads `name;dur=1.5, name;dur=2`, which is to add up to what the caller saw.
    pub(crate) fn add(&mut self, total: f64, timing: &str) {
        self.totals += total;
        for (name, value) in phases(timing) {
            self.sums += value;
            if name != WAY {
                self.told += value;
            }
            let index = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
                self.names.push(name.to_owned());
                self.values.push(Vec::new());
                self.names.len() - 1
            });
            self.values[index].push(value);
        }
    }

    /// Of each phase, in the order in which they were first told.
    pub(crate) fn medians(&self) -> Vec<(String, f64)> {
        let medians = self.values.iter().map(|values| summary(values.iter().copied()).p50);
        self.names.iter().cloned().zip(medians).collect()
    }

    /// All phases over what callers saw.
    pub(crate) fn explained(&self) -> f64 {
        self.share(self.sums)
    }

    /// The same without [`WAY`].
    pub(crate) fn told(&self) -> f64 {
        self.share(self.told)
    }

    fn share(&self, sum: f64) -> f64 {
        if self.totals > 0.0 { sum / self.totals } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_server_timing() {
        let mut phases = Phases::default();
        phases.add(4.0, "queue;dur=1, create;dur=2.5");
        phases.add(5.0, "queue;dur=3, create;dur=2.5");
        assert_eq!(phases.medians(), [("queue".to_owned(), 1.0), ("create".to_owned(), 2.5)]);
        assert!((phases.explained() - 1.0).abs() < 1e-9);
        // The way is no phase that is told.
        phases.add(11.0, "queue;dur=10, way;dur=1");
        assert!((phases.explained() - 1.0).abs() < 1e-9);
        assert!((phases.told() - 0.95).abs() < 1e-9);
    }
}
