//! The public half of a site's identity. A peer's config contains it, and keys that the site sends are
//! checked against it.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use sha2::{Digest, Sha384};

use crate::kem::EkBytes;
use crate::text::{Form, PUBLIC_PREFIX};
use crate::{IdentityError, dh};

const FORM: Form = Form { name: "public key", prefix: PUBLIC_PREFIX, bytes: PublicIdentity::LEN };

/// An X25519 public key (32 bytes, RFC 7748) and the SHA-384 hash (48 bytes, FIPS 180-4) of an ML-KEM-1024
/// encapsulation key (FIPS 203). Its text is one line of 114 characters that begins with `qvpn1-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicIdentity {
    x25519: [u8; 32],
    mlkem_hash: [u8; 48],
}

impl PublicIdentity {
    /// Length of the identity in bytes: X25519 public key, then the hash.
    pub const LEN: usize = 80;

    pub(crate) fn new(x25519: [u8; 32], ek: &EkBytes) -> Self {
        Self { x25519, mlkem_hash: Sha384::digest(ek).into() }
    }

    #[must_use]
    pub fn x25519(&self) -> &[u8; 32] {
        &self.x25519
    }

    /// Returns the SHA-384 hash of the encapsulation key.
    #[must_use]
    pub fn mlkem_hash(&self) -> &[u8; 48] {
        &self.mlkem_hash
    }

    /// Returns the 80 bytes that go into the transcript of an exchange.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(&self.x25519);
        bytes[32..].copy_from_slice(&self.mlkem_hash);
        bytes
    }

    /// Checks that `ek` is the encapsulation key of this identity and passes FIPS 203's input check.
    ///
    /// # Errors
    /// [`IdentityError::EncapsulationKey`] if the hash differs or the key is malformed.
    pub fn check_encapsulation_key(&self, ek: &EkBytes) -> Result<(), IdentityError> {
        let hash: [u8; 48] = Sha384::digest(ek).into();
        if hash != self.mlkem_hash || crate::kem::check(ek).is_err() {
            return Err(IdentityError::EncapsulationKey);
        }
        Ok(())
    }

    /// Returns the link-local address that the identity has in the tunnel unless its config names another
    /// one: fe80::/64 and 64 bits of SHA-384.
    #[must_use]
    pub fn link_local(&self) -> Ipv6Addr {
        let digest = Sha384::new().chain_update("qvpn/1 link-local").chain_update(self.to_bytes()).finalize();
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0xfe, 0x80]);
        address[8..].copy_from_slice(&digest[..8]);
        address.into()
    }

    /// Returns a digest of the identity that is short enough to read over a phone: 120 bits of SHA-384 in
    /// six groups of four characters. Its alphabet has no characters that are easily confused (no `0`, `1`,
    /// `l`, `o`).
    #[must_use]
    pub fn fingerprint(&self) -> String {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let digest =
            Sha384::new().chain_update("qvpn/1 fingerprint").chain_update(self.to_bytes()).finalize();
        let mut text = String::with_capacity(29);
        for (i, five) in digest[..15].chunks(5).enumerate() {
            let bits = five.iter().fold(0u64, |acc, b| acc << 8 | u64::from(*b));
            for j in 0..8u32 {
                if j % 4 == 0 && (i, j) != (0, 0) {
                    text.push('-');
                }
                let index = (bits >> (35 - 5 * j)) & 31;
                text.push(char::from(ALPHABET[usize::try_from(index).unwrap_or(0)]));
            }
        }
        text
    }
}

impl fmt::Display for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing here is secret, but the encoder writes into locked memory.
        let text = FORM.encode(&self.to_bytes());
        f.write_str(std::str::from_utf8(text.expose()).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for PublicIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let mut bytes = [0u8; Self::LEN];
        FORM.decode(text, &mut bytes)?;
        let (mut x25519, mut mlkem_hash) = ([0; 32], [0; 48]);
        x25519.copy_from_slice(&bytes[..32]);
        mlkem_hash.copy_from_slice(&bytes[32..]);
        // Any scalar is enough to detect a point of small order.
        if dh::agree(&qvpn_secret::Secret::filled(|s| s.fill(1)), &x25519).is_none() {
            return Err(IdentityError::SmallOrder);
        }
        Ok(Self { x25519, mlkem_hash })
    }
}
