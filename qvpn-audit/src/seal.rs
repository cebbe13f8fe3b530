//! The keys that seal lines: each makes the next one, and none leads back. Callers erase the stack
//! afterwards.

use base64ct::{Base64, Encoding};
use hkdf::hmac::{Hmac, KeyInit, Mac};
use qvpn_secret::{Secret, SecretBuf, with_scrubbed_stack};
use sha2::Sha256;

use crate::error::AuditError;

const PREFIX: &str = "qvpn1-audit-";
const LEN: usize = 32;
/// Base64 of 32 bytes.
const CHARS: usize = 44;

/// What a key is used for. The labels differ in their first byte, so no input of one is an input of another.
const NEXT: &[u8] = b"\x01qvpn audit next key";
const LINE: &[u8] = b"\x02qvpn audit line";
const SLOT: &[u8] = b"\x03qvpn audit key file";

/// The key of one line.
pub(crate) struct SealKey(pub(crate) Secret<LEN>);

impl SealKey {
    pub(crate) fn generate() -> Result<Self, AuditError> {
        let mut key = Secret::zeroed();
        getrandom::fill(key.expose_mut()).map_err(AuditError::Randomness)?;
        Ok(Self(key))
    }

    /// A second handle with its own copy of the key.
    pub(crate) fn duplicate(&self) -> Self {
        Self(duplicate(&self.0))
    }

    /// The key of the next line.
    pub(crate) fn next(&self) -> Self {
        Self(Secret::filled(|out| self.mac(NEXT, &[], out)))
    }

    /// The key of the line `n` lines later.
    pub(crate) fn after(self, n: u64) -> Self {
        (0..n).fold(self, |key, _| key.next())
    }

    /// The seal of a line.
    pub(crate) fn seal(&self, line: &[u8]) -> [u8; 32] {
        let mut seal = [0; 32];
        self.mac(LINE, &[line], &mut seal);
        seal
    }

    /// What shows that a slot of the key's file is whole.
    pub(crate) fn slot_check(&self, content: &[u8]) -> [u8; 32] {
        let mut check = [0; 32];
        self.mac(SLOT, &[content], &mut check);
        check
    }

    fn mac(&self, label: &[u8], parts: &[&[u8]], out: &mut [u8; 32]) {
        // HMAC takes keys of all lengths.
        let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(self.0.expose()) else { return };
        mac.update(label);
        parts.iter().for_each(|part| mac.update(part));
        out.copy_from_slice(&mac.finalize().into_bytes());
    }
}

fn duplicate(key: &Secret<LEN>) -> Secret<LEN> {
    Secret::filled(|out| out.copy_from_slice(key.expose()))
}

/// The key of line 0, which verifies all lines. It is kept away from the machine.
pub struct VerificationKey(Secret<LEN>);

impl VerificationKey {
    pub(crate) fn of(first: &SealKey) -> Self {
        Self(duplicate(&first.0))
    }

    pub(crate) fn first(&self) -> SealKey {
        SealKey(duplicate(&self.0))
    }

    /// The line `qvpn1-audit-…`, without a line break.
    #[must_use]
    pub fn to_text(&self) -> SecretBuf {
        let mut text = SecretBuf::zeroed(PREFIX.len() + CHARS);
        let (prefix, rest) = text.expose_mut().split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        // The buffer has exactly the encoded length, so this cannot fail.
        let _ = with_scrubbed_stack(|| Base64::encode(self.0.expose(), rest).is_ok());
        text
    }

    /// Parses the line. White space around it is ignored.
    ///
    /// # Errors
    /// If it is another text.
    pub fn from_text(text: &str) -> Result<Self, AuditError> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(AuditError::NoVerificationKey)?;
        let mut key = Secret::<LEN>::zeroed();
        let whole = with_scrubbed_stack(|| {
            Base64::decode(rest, key.expose_mut()).is_ok_and(|bytes| bytes.len() == LEN)
        });
        match whole {
            true => Ok(Self(key)),
            false => Err(AuditError::NoVerificationKey),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_to_the_next_ones_and_seals_under_each_differ() {
        let first = SealKey(Secret::filled(|b| b.fill(7)));
        let third = first.next().next();
        assert!(SealKey(Secret::filled(|b| b.fill(7))).after(2).0.ct_eq(third.0.expose()));
        assert_ne!(first.seal(b"x"), third.seal(b"x"));
        assert_ne!(first.seal(b"x"), first.slot_check(b"x"));
        // HMAC-SHA-256 of the label under a key of 32 times 7, by another implementation (Python's hmac).
        assert_eq!(data_encoding::HEXLOWER.encode(first.next().0.expose()), NEXT_OF_SEVENS);
    }

    const NEXT_OF_SEVENS: &str = "1369b09c56ffedb0a0970b05b50d1dc1a5ea5abce7be55b017535605a0399f54";

    #[test]
    fn the_verification_key_has_a_text_form() {
        let key = VerificationKey(Secret::filled(|b| b.fill(0xfb)));
        let text = key.to_text();
        let text = std::str::from_utf8(text.expose()).unwrap();
        assert_eq!(text, "qvpn1-audit-+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=");
        assert!(VerificationKey::from_text(&format!(" {text}\n")).unwrap().0.ct_eq(&[0xfb; 32]));
        for bad in ["", "qvpn1-audit-", &text[1..], &text[..50], &text.replace('+', "*")] {
            assert!(matches!(VerificationKey::from_text(bad), Err(AuditError::NoVerificationKey)), "{bad}");
        }
    }
}
