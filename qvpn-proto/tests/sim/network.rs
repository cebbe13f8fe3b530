//! Faults of the network.

use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

/// The network's faults. Chances are per mille.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    pub loss: u32,
    pub duplicate: u32,
    /// The chance that a byte is changed.
    pub corrupt: u32,
    /// The chance that a delivered datagram arrives a second time from another address, up to minutes later.
    pub replay: u32,
    /// The minimum delay.
    pub delay: Duration,
    /// The maximum additional delay, so datagrams overtake each other.
    pub jitter: Duration,
}

pub const CLEAN: Faults = Faults {
    loss: 0,
    duplicate: 0,
    corrupt: 0,
    replay: 0,
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
};
pub const ROUGH: Faults = Faults {
    loss: 200,
    duplicate: 100,
    delay: Duration::from_millis(50),
    jitter: Duration::from_millis(150),
    ..CLEAN
};

impl Faults {
    pub fn delay(&self, rng: &mut ChaCha20Rng) -> Duration {
        self.delay + up_to(self.jitter, rng)
    }
}

pub fn chance(per_mille: u32, rng: &mut ChaCha20Rng) -> bool {
    per_mille > 0 && rng.next_u32() % 1000 < per_mille
}

pub fn up_to(most: Duration, rng: &mut ChaCha20Rng) -> Duration {
    let nanos = u64::try_from(most.as_nanos()).unwrap();
    Duration::from_nanos(if nanos == 0 { 0 } else { rng.next_u64() % nanos })
}

pub fn below(most: usize, rng: &mut ChaCha20Rng) -> usize {
    usize::try_from(rng.next_u64() % u64::try_from(most).unwrap()).unwrap()
}
