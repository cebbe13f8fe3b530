//! The text forms of keys: a prefix for the kind of key, and base64 in constant time.

use base64ct::{Base64, Encoding};
use qvpn_secret::SecretBuf;

use crate::IdentityError;

pub(crate) const SECRET_PREFIX: &str = "qvpn1-secret-";
pub(crate) const PUBLIC_PREFIX: &str = "qvpn1-";
/// Length of a WireGuard key in characters: 32 bytes in base64.
const WIREGUARD_LEN: usize = 44;

/// The text form of one kind of key.
pub(crate) struct Form {
    pub(crate) name: &'static str,
    pub(crate) prefix: &'static str,
    pub(crate) bytes: usize,
}

impl Form {
    pub(crate) const fn chars(&self) -> usize {
        self.prefix.len() + self.bytes.div_ceil(3) * 4
    }

    /// Writes `bytes` as text of this form, in locked memory.
    pub(crate) fn encode(&self, bytes: &[u8]) -> SecretBuf {
        let mut text = SecretBuf::zeroed(self.chars());
        let (prefix, rest) = text.expose_mut().split_at_mut(self.prefix.len());
        prefix.copy_from_slice(self.prefix.as_bytes());
        // The buffer has exactly the encoded length, so this cannot fail.
        let _ = Base64::encode(bytes, rest);
        text
    }

    /// Parses text of this form into `out`, which must have `self.bytes` bytes.
    pub(crate) fn decode(&self, text: &str, out: &mut [u8]) -> Result<(), IdentityError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(IdentityError::Empty);
        }
        let found = if text.starts_with(SECRET_PREFIX) {
            SECRET_PREFIX
        } else if text.starts_with(PUBLIC_PREFIX) {
            PUBLIC_PREFIX
        } else {
            ""
        };
        if found != self.prefix {
            return Err(self.wrong_kind(found, text.len()));
        }
        let (want, got) = (self.chars(), text.len());
        if want != got {
            return Err(IdentityError::Length { expected: self.name, want, got });
        }
        match Base64::decode(&text[self.prefix.len()..], out) {
            Ok(bytes) if bytes.len() == self.bytes => Ok(()),
            _ => Err(IdentityError::Base64 { expected: self.name }),
        }
    }

    fn wrong_kind(&self, found: &str, len: usize) -> IdentityError {
        let (found, advice) = match found {
            SECRET_PREFIX => (
                "secret key",
                "keep it in its file, and make a new one with `qvpn-ctl genkey` if it was shown to anybody",
            ),
            PUBLIC_PREFIX => {
                ("public key", "public keys go into `public_key`, secret keys into `private_key_file`")
            }
            _ if len == WIREGUARD_LEN && !self.prefix.is_empty() => (
                "WireGuard key",
                "qvpn's keys hold an ML-KEM key too: make one with `qvpn-ctl genkey` and `qvpn-ctl pubkey`",
            ),
            _ => return IdentityError::Prefix { expected: self.name, prefix: self.prefix },
        };
        IdentityError::WrongKind { expected: self.name, found, advice }
    }
}
