//! One QKD link between two KMEs: a store of secret bits that its supply fills, and the keys cut from it. Both ends hold
//! the same bits by nature, so the store is one number; a key gets its bytes when it is taken.

use std::time::Duration;

use qvpn_secret::SecretBuf;

use crate::api::DeliveredKey;
use crate::config::LinkConfig;
use crate::supply::Supply;
use crate::test_key;

/// The system's random generator failed; nothing can be done about it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

/// A link and what it holds.
pub(crate) struct Link {
    pub(crate) kmes: [String; 2],
    pub(crate) key_size: u32,
    pub(crate) relay_delay: Duration,
    supply: Supply,
    max_bits: u64,
    stored_bits: u64,
    paused: bool,
    active: Duration,
    looked_at: Duration,
    seed: Option<Vec<u8>>,
    next_key: u64,
}

impl Link {
    /// The link of `config` with its initial keys, at time zero.
    pub(crate) fn new(config: &LinkConfig) -> Self {
        let bits = u64::from(config.key_size);
        Self {
            kmes: config.kmes.clone(),
            key_size: config.key_size,
            relay_delay: config.relay_delay,
            supply: config.supply.clone(),
            max_bits: config.max_keys.saturating_mul(bits),
            stored_bits: config.initial_keys.saturating_mul(bits),
            paused: false,
            active: Duration::ZERO,
            looked_at: Duration::ZERO,
            seed: config.seed.clone(),
            next_key: 0,
        }
    }

    /// Whether the link joins `a` and `b`, in either order.
    pub(crate) fn joins(&self, a: &str, b: &str) -> bool {
        let [x, y] = &self.kmes;
        (x == a && y == b) || (x == b && y == a)
    }

    /// Brings the store up to `now`. Bits beyond the store's bound are lost, as in a real one.
    pub(crate) fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.looked_at);
        self.looked_at = self.looked_at.max(now);
        if self.paused {
            return;
        }
        let before = self.supply.bits_after(self.active);
        self.active = self.active.saturating_add(passed);
        let gained = self.supply.bits_after(self.active).saturating_sub(before);
        self.stored_bits = self.stored_bits.saturating_add(gained).min(self.max_bits);
    }

    /// Stops or restarts the supply; what is stored stays.
    pub(crate) fn set_paused(&mut self, paused: bool, now: Duration) {
        self.advance(now);
        self.paused = paused;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whole keys of the default size in the store.
    pub(crate) fn stored_keys(&self) -> u64 {
        self.stored_bits / u64::from(self.key_size)
    }

    /// Keys of the default size that the store can hold.
    pub(crate) fn max_keys(&self) -> u64 {
        self.max_bits / u64::from(self.key_size)
    }

    /// Whether at least `bits` are stored.
    pub(crate) fn has(&self, bits: u64) -> bool {
        self.stored_bits >= bits
    }

    /// Takes `bits` out of the store; the caller has asked [`has`](Self::has).
    pub(crate) fn spend(&mut self, bits: u64) {
        self.stored_bits = self.stored_bits.saturating_sub(bits);
    }

    /// The next key, `bytes` long, with an ID that no other key has.
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

/// A random key, `bytes` long.
pub(crate) fn random_key(bytes: usize) -> Result<SecretBuf, NoRandomness> {
    let mut key = SecretBuf::zeroed(bytes);
    random_bytes(key.expose_mut())?;
    Ok(key)
}

/// Fills `bytes` from the system's generator.
pub(crate) fn random_bytes(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| NoRandomness)
}

/// A random UUID (version 4), the form of key ID that ETSI GS QKD 014 clause 6.3 names.
pub(crate) fn random_id() -> Result<String, NoRandomness> {
    let mut bytes = [0u8; 16];
    random_bytes(&mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(rate: u64, max_keys: u64, initial_keys: u64) -> Link {
        Link::new(&LinkConfig {
            kmes: ["a".into(), "b".into()],
            key_size: 256,
            supply: Supply::Constant { bits_per_s: rate },
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
