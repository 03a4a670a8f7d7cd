//! The distribution of a rank's idle periods: counts in two bins per octave, from 128 ms to five
//! hours. Finer bins were measured and gained nothing: what is between two edges is decided alike.

use std::time::Duration;

/// Milliseconds of the first edge, as a power of two: what comes sooner is one bin.
const FIRST: u32 = 7;
/// Octaves above it.
const OCTAVES: u32 = 17;
/// Bins per octave, as a power of two.
const FINE: u32 = 1;

/// Bins; the last one has what is longer than all edges as well.
pub(super) const BINS: usize = 1 + (OCTAVES << FINE) as usize;

/// Counts by bin.
#[derive(Clone, Debug)]
pub(super) struct Gaps {
    counts: [u16; BINS],
}

impl Default for Gaps {
    fn default() -> Self {
        Self { counts: [0; BINS] }
    }
}

impl Gaps {
    /// One more idle period of so many milliseconds.
    pub(super) fn add(&mut self, ms: u64) {
        if let Some(count) = self.counts.get_mut(bin(ms)) {
            *count += 1;
            if *count == u16::MAX {
                self.halve();
            }
        }
    }

    pub(super) fn halve(&mut self) {
        for count in &mut self.counts {
            *count /= 2;
        }
    }

    /// How many are known.
    pub(super) fn known(&self) -> u32 {
        self.counts.iter().map(|count| u32::from(*count)).sum()
    }

    /// Of each bin: its lower edge and its upper edge in milliseconds, and how many fell into it.
    pub(super) fn bins(&self) -> impl Iterator<Item = (u64, u64, u16)> {
        (0_u8..).zip(self.counts).map(|(bin, count)| (edge_ms(bin), edge_ms(bin + 1), count))
    }
}

fn bin(ms: u64) -> usize {
    let Some(octave) = ms.max(1).ilog2().checked_sub(FIRST) else { return 0 };
    let part = (ms >> (octave + FIRST - FINE)) % (1 << FINE);
    let bin = 1 + (u64::from(octave) << FINE) + part;
    usize::try_from(bin).unwrap_or(BINS).min(BINS - 1)
}

/// The lower edge of a bin in milliseconds.
fn edge_ms(bin: u8) -> u64 {
    let Some(above) = u32::from(bin).checked_sub(1) else { return 0 };
    let (octave, part) = (above >> FINE, u64::from(above % (1 << FINE)));
    ((1 << FINE) + part) << (octave + FIRST - FINE)
}

/// The lower edge of a bin.
pub(super) fn edge(bin: u8) -> Duration {
    Duration::from_millis(edge_ms(bin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_lies_between_the_edges_of_its_bin() {
        for ms in (0..2000).chain([59_999, 60_000, 3_600_000, 16_000_000]) {
            let number = u8::try_from(bin(ms)).unwrap();
            assert!((edge_ms(number)..edge_ms(number + 1)).contains(&ms), "{ms} in {number}");
        }
        assert_eq!(bin(u64::MAX), BINS - 1);
        let mut edges = (0..=u8::try_from(BINS).unwrap()).map(edge_ms);
        assert!(edges.clone().is_sorted() && edges.all(|edge| edge < 17_000_000));
    }

    #[test]
    fn counts_never_overflow() {
        let mut gaps = Gaps::default();
        for _ in 0..200_000 {
            gaps.add(1000);
        }
        gaps.add(100);
        assert!((30_000..66_000).contains(&gaps.known()));
        assert_eq!(gaps.bins().filter(|(.., count)| *count > 0).count(), 2);
    }
}
