//! A seeded random source, so that a machine's choices can be replayed.

/// PCG-XSH-RR 64/32 (O'Neill, 2014: <https://www.pcg-random.org>). Not for secrets.
#[derive(Clone, Debug)]
pub struct Pcg {
    state: u64,
}

/// Multiplier and increment of the reference implementation.
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

impl Pcg {
    /// The sequence of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_add(INCREMENT).wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT),
        }
    }

    /// The next 32 bits.
    pub fn draw(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        let mixed = ((old >> 18) ^ old) >> 27;
        let rotation = u32::try_from(old >> 59).unwrap_or(0);
        u32::try_from(mixed & u64::from(u32::MAX)).unwrap_or(0).rotate_right(rotation)
    }

    /// A number below `bound`, or 0 if there is none. Lemire's multiplication without the rejection
    /// step: the bias is below `bound` / 2^32.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::from(u32::try_from(bound).unwrap_or(u32::MAX));
        usize::try_from((u64::from(self.draw()) * bound) >> 32).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut random = Pcg::new(seed);
            (0..8).map(|_| random.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn numbers_stay_below_the_bound_and_reach_everything() {
        let mut random = Pcg::new(7);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            *seen.get_mut(random.below(10)).unwrap() += 1;
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert_eq!(random.below(0), 0);
        assert_eq!(random.below(1), 0);
    }
}
