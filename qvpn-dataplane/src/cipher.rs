//! The AEAD under a key: ChaCha20-Poly1305 or AES-256-GCM of `aws-lc-rs`, in place. For the benchmarks alone there is a
//! third one that does nothing, so that all other costs of the data path can be measured; it exists only with the feature
//! `bench-null-cipher`, with which the daemon refuses to compile.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use qvpn_secret::{Secret, with_scrubbed_stack};

use crate::key::Suite;

/// Bytes of the tag after the ciphertext.
pub const TAG: usize = 16;

/// Whether this build has the null cipher, which protects nothing.
pub const HAS_NULL_CIPHER: bool = cfg!(feature = "bench-null-cipher");

/// The cipher refused: a wrong tag, or more bytes than one nonce may cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// A key in its cipher's own form: on the heap, so that a move copies no key, and erased by the allocator that zeroes on
/// free; what its making left on the stack is wiped.
pub(crate) enum Cipher {
    /// Either suite; the library keeps them apart.
    Aead(Box<LessSafeKey>),
    /// Changes no byte, and accepts every tag.
    #[cfg(feature = "bench-null-cipher")]
    Null,
}

impl Cipher {
    /// `None` if the library refuses the key, which a key of 32 bytes never meets.
    pub(crate) fn new(suite: Suite, key: &Secret<32>) -> Option<Self> {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
            #[cfg(feature = "bench-null-cipher")]
            Suite::Null => return Some(Self::Null),
        };
        with_scrubbed_stack(|| {
            let key = UnboundKey::new(algorithm, key.expose()).ok()?;
            Some(Self::Aead(Box::new(LessSafeKey::new(key))))
        })
    }

    /// Encrypts `text` in place; the tag. A counter must never come twice under one key.
    #[inline]
    pub(crate) fn seal(&self, counter: u64, text: &mut [u8]) -> Result<[u8; TAG], Refused> {
        match self {
            Self::Aead(key) => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(counter), Aad::empty(), text)
                    .map_err(|_| Refused)?;
                tag.as_ref().try_into().map_err(|_| Refused)
            }
            #[cfg(feature = "bench-null-cipher")]
            Self::Null => Ok([0; TAG]),
        }
    }

    /// Decrypts ciphertext and tag in place; the plaintext in front of them.
    #[inline]
    pub(crate) fn open<'a>(&self, counter: u64, sealed: &'a mut [u8]) -> Result<&'a mut [u8], Refused> {
        match self {
            Self::Aead(key) => key.open_in_place(nonce(counter), Aad::empty(), sealed).map_err(|_| Refused),
            #[cfg(feature = "bench-null-cipher")]
            Self::Null => {
                let text = sealed.len().checked_sub(TAG).ok_or(Refused)?;
                Ok(&mut sealed[..text])
            }
        }
    }
}

/// Four zero bytes and the counter, as in WireGuard.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439 and NIST's own vectors are the library's to test; here only that both ends of ours agree, and that a
    /// changed byte or counter is noticed.
    #[test]
    fn a_cipher_opens_only_what_it_sealed() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let cipher = Cipher::new(suite, &Secret::filled(|b| b.fill(9))).unwrap();
            let mut sealed = *b"sixteen bytes......and their tag";
            let tag = cipher.seal(3, &mut sealed[..16]).unwrap();
            assert_ne!(sealed[..16], *b"sixteen bytes...");
            sealed[16..].copy_from_slice(&tag);
            assert_eq!(cipher.open(4, &mut sealed.clone()), Err(Refused));
            let mut forged = sealed;
            forged[0] ^= 1;
            assert_eq!(cipher.open(3, &mut forged), Err(Refused));
            assert_eq!(cipher.open(3, &mut sealed[..16].to_vec()), Err(Refused));
            assert_eq!(cipher.open(3, &mut sealed).unwrap(), b"sixteen bytes...");
        }
    }
}
