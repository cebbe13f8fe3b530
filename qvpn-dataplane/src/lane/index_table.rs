//! A hash table by receiver index, with a cheap hash function.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

pub(crate) type IndexTable<T> = HashMap<u32, T, BuildHasherDefault<IndexHasher>>;

/// Hashes a receiver index by one multiplication. Receiver indices are random numbers of this gateway, so
/// that is enough.
#[derive(Default)]
pub(crate) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, index: u32) {
        // The table also uses the top bits.
        self.0 = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
