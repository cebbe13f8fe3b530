//! Reads the time in a handshake initiation (WireGuard paper, section 5.4.2). boringtun compares it with the
//! last one and then forgets it with the session.

use std::time::Duration;

use blake2::Blake2s256;
use blake2::digest::{FixedOutput, Update};
use qvpn_identity::{SecretIdentity, dh};
use qvpn_secret::{ct_eq, with_scrubbed_stack};
use xchacha20poly1305::{AeadInPlace, ChaCha20Poly1305, KeyInit};

/// A time in TAI64N, as handshake initiations carry it: 8 bytes of seconds from 2^62 and 4 bytes of
/// nanoseconds, both big-endian. It is not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tai64n([u8; 12]);

/// The label of 1970-01-01, plus the leap seconds that boringtun adds.
const UNIX_EPOCH: u64 = (1 << 62) + 37;

impl Tai64n {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn to_bytes(self) -> [u8; 12] {
        self.0
    }

    /// Makes a time from the time since 1970-01-01 UTC.
    #[must_use]
    pub fn from_unix(since_epoch: Duration) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&UNIX_EPOCH.saturating_add(since_epoch.as_secs()).to_be_bytes());
        bytes[8..].copy_from_slice(&since_epoch.subsec_nanos().to_be_bytes());
        Self(bytes)
    }
}

/// Returns the time in an initiation that `remote` made for `local`; `None` for any other datagram.
#[must_use]
pub fn initiation_time(datagram: &[u8], local: &SecretIdentity, remote: &[u8; 32]) -> Option<Tai64n> {
    let (static_key, time) = (datagram.get(40..88)?, datagram.get(88..116)?);
    with_scrubbed_stack(|| {
        let (claimed, chaining_key, transcript) = open_static(datagram, local)?;
        if !ct_eq(&claimed, remote) {
            return None;
        }
        let transcript = hash(&[&transcript, static_key]);
        let (_, key) = derive(&chaining_key, dh::agree(local.x25519(), remote)?.expose());
        open::<12>(&key, &transcript, time).map(Tai64n)
    })
}

/// Returns the X25519 key that the sender of an initiation for `local` claims to hold; `None` for any other
/// datagram.
#[must_use]
pub fn claimed_key(datagram: &[u8], local: &SecretIdentity) -> Option<[u8; 32]> {
    with_scrubbed_stack(|| open_static(datagram, local).map(|(claimed, ..)| claimed))
}

/// Opens the static key in an initiation. Returns it with the chaining key and the transcript before it.
fn open_static(datagram: &[u8], local: &SecretIdentity) -> Option<([u8; 32], [u8; 32], [u8; 32])> {
    let ephemeral: &[u8; 32] = datagram.get(8..40)?.first_chunk()?;
    let static_key = datagram.get(40..88)?;
    let chaining_key = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
    let transcript = hash(&[&chaining_key, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
    let transcript = hash(&[&transcript, local.public().x25519()]);
    let transcript = hash(&[&transcript, ephemeral]);
    let (chaining_key, _) = derive(&chaining_key, ephemeral);
    let (chaining_key, key) = derive(&chaining_key, dh::agree(local.x25519(), ephemeral)?.expose());
    Some((open::<32>(&key, &transcript, static_key)?, chaining_key, transcript))
}

/// BLAKE2s with 32 bytes of output.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::default();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize_fixed().into()
}

/// HMAC-BLAKE2s (RFC 2104) with a key of 32 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut pad = [byte; 64];
        pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        pad
    };
    let mut inner = Blake2s256::default();
    inner.update(&pad(0x36));
    parts.iter().for_each(|part| inner.update(part));
    let inner: [u8; 32] = inner.finalize_fixed().into();
    hash(&[&pad(0x5c), &inner])
}

/// The paper's `KDF2`: returns the next chaining key, and a key.
fn derive(chaining_key: &[u8; 32], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let secret = hmac(chaining_key, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&first, &[2]]);
    (first, second)
}

/// Opens a field with nonce 0.
fn open<const N: usize>(key: &[u8; 32], transcript: &[u8], sealed: &[u8]) -> Option<[u8; N]> {
    let (text, tag) = sealed.split_at_checked(N)?;
    let mut text: [u8; N] = text.try_into().ok()?;
    let tag: [u8; 16] = tag.try_into().ok()?;
    let cipher = ChaCha20Poly1305::new(key.into());
    cipher.decrypt_in_place_detached(&[0; 12].into(), transcript, &mut text, &tag.into()).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    #[test]
    fn times_order_by_seconds_and_then_by_nanoseconds() {
        let at = |secs, nanos| Tai64n::from_unix(Duration::new(secs, nanos));
        assert!(at(1, 999_999_999) < at(2, 0) && at(2, 0) < at(2, 1) && at(255, 0) < at(256, 0));
        assert_eq!(at(0, 7).to_bytes(), [0x40, 0, 0, 0, 0, 0, 0, 37, 0, 0, 0, 7]);
        assert_eq!(Tai64n::from_bytes(at(5, 5).to_bytes()), at(5, 5));
    }

    #[test]
    fn what_no_peer_made_has_no_time() {
        let of = |seed| SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed));
        let (us, them) = (of(1), of(2));
        for datagram in [&[][..], &[1; 115], &[1; 148], &[0; 148]] {
            assert_eq!(initiation_time(datagram, &us, them.public().x25519()), None);
            assert_eq!(claimed_key(datagram, &us), None);
        }
    }
}
