//! Maps by id whose lookup costs the same however many there are.
//!
//! Their order is that of insertion but for what was removed; nothing is decided by it. Growing
//! moves all of it at once, so they are for what is registered, not for what is called.

use std::hash::{BuildHasherDefault, Hasher};

use indexmap::IndexMap;

pub(crate) type IdMap<K, V> = IndexMap<K, V, BuildHasherDefault<IdHasher>>;

/// The same in every process. Ids are counters that nobody but us makes, so that there is nobody to
/// be kept from choosing those that collide.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

/// 2^64 over the golden ratio (Knuth, *The Art of Computer Programming*, 6.4): neighbours come to lie
/// far apart.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(26) ^ n).wrapping_mul(FACTOR);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
