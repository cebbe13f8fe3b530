//! One QKD link between two KMEs: a store of secret bits that its supply fills, and the keys taken from it.
//! Both KMEs hold the same bits, so the store is one number; a key gets its bytes when it is taken.

use std::time::Duration;

use qvpn_secret::SecretBuf;

use crate::api::DeliveredKey;
use crate::config::LinkConfig;
use crate::refusal::Refusal;
use crate::supply::{State, Supply};
use crate::test_key;

/// The system's random number generator failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

impl From<NoRandomness> for Refusal {
    fn from(error: NoRandomness) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The unit of pending bits: micro-bits a second times nanoseconds.
const UNITS_PER_BIT: u128 = 1_000_000_000_000_000;

/// A link and its store.
pub(crate) struct Link {
    pub(crate) kmes: [String; 2],
    pub(crate) key_size: u32,
    pub(crate) relay_delay: Duration,
    supply: Supply,
    max_bits: u64,
    stored_bits: u64,
    /// Yielded bits that aren't a whole block yet, in [`UNITS_PER_BIT`].
    pending: u128,
    paused: bool,
    /// Pulses that an eavesdropper measures and resends, percent.
    intercepted: u8,
    looked_at: Duration,
    totals: Totals,
    seed: Option<Vec<u8>>,
    next_key: u64,
}

/// The numbers of bits since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// Yielded by the supply.
    pub(crate) produced: u64,
    /// Lost because the store was full.
    pub(crate) lost: u64,
    /// Taken for keys, and for relaying keys.
    pub(crate) spent: u64,
}

impl Link {
    /// Makes the link of `config` with its initial keys, at time zero.
    pub(crate) fn new(config: &LinkConfig) -> Self {
        let bits = u64::from(config.key_size);
        Self {
            kmes: config.kmes.clone(),
            key_size: config.key_size,
            relay_delay: config.relay_delay,
            supply: config.supply.clone(),
            max_bits: config.max_keys.saturating_mul(bits),
            stored_bits: config.initial_keys.saturating_mul(bits),
            pending: 0,
            paused: false,
            intercepted: 0,
            looked_at: Duration::ZERO,
            totals: Totals::default(),
            seed: config.seed.clone(),
            next_key: 0,
        }
    }

    /// Whether the link joins `a` and `b`, in either order.
    pub(crate) fn joins(&self, a: &str, b: &str) -> bool {
        let [x, y] = &self.kmes;
        (x == a && y == b) || (x == b && y == a)
    }

    /// Brings the store up to `now`. Bits beyond the store's capacity are lost, as in a real one.
    pub(crate) fn advance(&mut self, now: Duration) {
        let before = self.supply.active_until(self.looked_at);
        self.looked_at = self.looked_at.max(now);
        if self.paused {
            return;
        }
        let active = self.supply.active_until(self.looked_at).saturating_sub(before);
        let rate = micro_bits(self.state().bits_per_s);
        self.pending = self.pending.saturating_add(rate.saturating_mul(active.as_nanos()));
        let block = u128::from(self.supply.block_bits.max(1)).saturating_mul(UNITS_PER_BIT);
        let blocks = self.pending / block;
        self.pending -= blocks * block;
        let gained = u64::try_from(blocks).unwrap_or(u64::MAX).saturating_mul(self.supply.block_bits.max(1));
        let stored = self.stored_bits.saturating_add(gained).min(self.max_bits.max(self.stored_bits));
        self.totals.produced = self.totals.produced.saturating_add(gained);
        self.totals.lost = self.totals.lost.saturating_add(gained - (stored - self.stored_bits));
        self.stored_bits = stored;
    }

    /// Returns the current rate and error rate, ignoring pauses and passes.
    pub(crate) fn state(&self) -> State {
        self.supply.state(f64::from(self.intercepted) / 100.0)
    }

    /// Whether anything is yielded at the moment.
    pub(crate) fn is_active(&self) -> bool {
        !self.paused && self.supply.is_active(self.looked_at)
    }

    /// Sets the share of pulses that an eavesdropper measures and resends.
    pub(crate) fn set_intercepted(&mut self, percent: u8, now: Duration) {
        self.advance(now);
        self.intercepted = percent.min(100);
    }

    pub(crate) fn intercepted(&self) -> u8 {
        self.intercepted
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn stored_bits(&self) -> u64 {
        self.stored_bits
    }

    pub(crate) fn max_bits(&self) -> u64 {
        self.max_bits
    }

    /// Stops or restarts the supply; what is stored stays.
    pub(crate) fn set_paused(&mut self, paused: bool, now: Duration) {
        self.advance(now);
        self.paused = paused;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether at least `bits` bits are stored.
    pub(crate) fn has(&self, bits: u64) -> bool {
        self.stored_bits >= bits
    }

    /// Takes `bits` out of the store; the caller has called [`has`](Self::has).
    pub(crate) fn spend(&mut self, bits: u64) {
        self.stored_bits = self.stored_bits.saturating_sub(bits);
        self.totals.spent = self.totals.spent.saturating_add(bits);
    }

    /// Returns the next key, `bytes` long, with an ID that no other key has.
    pub(crate) fn next_key(&mut self, bytes: usize) -> Result<DeliveredKey, NoRandomness> {
        let n = self.next_key;
        let key = match &self.seed {
            Some(seed) => DeliveredKey { id: test_key::key_id(seed, n), key: test_key::key(seed, n, bytes) },
            None => DeliveredKey { id: random_id()?, key: random_key(bytes)? },
        };
        self.next_key += 1;
        Ok(key)
    }
}

/// Converts bits a second to whole micro-bits a second.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of f64 saturates")]
fn micro_bits(bits_per_s: f64) -> u128 {
    (bits_per_s * 1e6).round() as u128
}

/// Returns a random key, `bytes` long.
pub(crate) fn random_key(bytes: usize) -> Result<SecretBuf, NoRandomness> {
    let mut key = SecretBuf::zeroed(bytes);
    random_bytes(key.expose_mut())?;
    Ok(key)
}

/// Fills `bytes` from the system's generator.
pub(crate) fn random_bytes(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| NoRandomness)
}

/// Returns a random UUID (version 4), the form of key ID that ETSI GS QKD 014 clause 6.3 names.
pub(crate) fn random_id() -> Result<String, NoRandomness> {
    let mut bytes = [0u8; 16];
    random_bytes(&mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::{Passes, Source};

    impl Link {
        fn stored_keys(&self) -> u64 {
            self.stored_bits / u64::from(self.key_size)
        }
    }

    fn link(rate: u64, max_keys: u64, initial_keys: u64) -> Link {
        link_of(1, None, rate, max_keys, initial_keys)
    }

    fn link_of(
        block_bits: u64,
        passes: Option<Passes>,
        bits_per_s: u64,
        max_keys: u64,
        initial_keys: u64,
    ) -> Link {
        let source = Source::Constant { bits_per_s, qber: 0.02 };
        Link::new(&LinkConfig {
            kmes: ["a".into(), "b".into()],
            key_size: 256,
            supply: Supply { source, block_bits, passes },
            max_keys,
            initial_keys,
            relay_delay: Duration::ZERO,
            seed: None,
        })
    }

    #[test]
    fn the_store_fills_at_the_rate_up_to_its_bound() {
        let mut link = link(256, 5, 1);
        assert_eq!(link.stored_keys(), 1);
        for ms in (0..=2500).step_by(7) {
            link.advance(Duration::from_millis(ms));
        }
        link.advance(Duration::from_millis(2500));
        assert_eq!(link.stored_keys(), 3);
        link.advance(Duration::from_secs(100));
        assert_eq!(link.stored_keys(), 5);
        link.spend(5 * 256);
        assert!(!link.has(1));
        link.advance(Duration::from_secs(101));
        assert!(link.has(256) && !link.has(257));
    }

    #[test]
    fn a_paused_link_yields_nothing_and_keeps_what_it_has() {
        let mut link = link(256, 100, 0);
        link.set_paused(true, Duration::from_secs(2));
        link.advance(Duration::from_secs(50));
        assert_eq!(link.stored_keys(), 2);
        link.set_paused(false, Duration::from_secs(60));
        link.advance(Duration::from_secs(61));
        assert_eq!(link.stored_keys(), 3);
    }

    #[test]
    fn no_fraction_is_lost_between_two_looks_and_blocks_come_whole() {
        let mut odd = link(3, 1000, 0);
        for ms in 0..=1_000_000 {
            odd.advance(Duration::from_millis(ms));
        }
        assert_eq!(odd.stored_bits(), 3000);
        let mut blocks = link_of(1000, None, 300, 1000, 0);
        let bits: Vec<u64> = (0..8)
            .map(|s| {
                blocks.advance(Duration::from_secs(s));
                blocks.stored_bits()
            })
            .collect();
        assert_eq!(bits, [0, 0, 0, 0, 1000, 1000, 1000, 2000]);
        let mut fastest = link(u64::MAX, 5, 0);
        fastest.advance(Duration::MAX);
        assert_eq!(fastest.stored_keys(), 5);
    }

    #[test]
    fn a_satellite_gives_in_its_passes_only() {
        let passes = Passes { lasts: Duration::from_secs(10), every: Duration::from_secs(100) };
        let mut link = link_of(1, Some(passes), 256, 1000, 0);
        for (at, keys) in [(5, 5), (10, 10), (99, 10), (105, 15), (150, 20)] {
            link.advance(Duration::from_secs(at));
            assert_eq!(link.stored_keys(), keys, "{at}");
        }
        assert!(!link.is_active());
    }

    #[test]
    fn an_eavesdropper_stops_the_supply_and_its_leaving_restarts_it() {
        let mut link = link(256, 1000, 0);
        link.set_intercepted(100, Duration::from_secs(10));
        link.advance(Duration::from_secs(20));
        assert_eq!(link.stored_keys(), 10);
        assert!(link.state().qber > 0.2);
        link.set_intercepted(0, Duration::from_secs(30));
        link.advance(Duration::from_secs(40));
        assert_eq!(link.stored_keys(), 20);
        let Totals { produced, lost, spent } = link.totals();
        assert_eq!((produced, lost, spent), (20 * 256, 0, 0));
    }

    #[test]
    fn a_clock_that_steps_back_changes_nothing() {
        let mut link = link(256, 100, 0);
        link.advance(Duration::from_secs(10));
        link.advance(Duration::from_secs(5));
        link.advance(Duration::from_secs(10));
        assert_eq!(link.stored_keys(), 10);
    }

    #[test]
    fn keys_without_a_seed_differ() {
        let mut link = link(0, 0, 0);
        let (a, b) = (link.next_key(32).unwrap(), link.next_key(32).unwrap());
        assert_ne!(a.id, b.id);
        assert!(!a.key.ct_eq(b.key.expose()));
        assert_eq!(a.id.len(), 36);
    }
}
