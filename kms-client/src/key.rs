//! A QKD key and its name. The name is public and opaque; the bytes live in locked memory and have one owner.

use qvpn_secret::SecretBuf;

use crate::api::Api;

/// The longest key ID that is accepted, in bytes. ETSI GS QKD 014 says UUID; servers send other strings too.
pub const MAX_KEY_ID_LEN: usize = 256;

/// The size of the keys that are asked for, in bits.
pub const KEY_BITS: u32 = 256;

/// The smallest key that is accepted, in bits.
pub const MIN_KEY_BITS: u32 = 256;
/// The largest key that is accepted, in bits.
pub const MAX_KEY_BITS: u32 = 8192;
/// The most keys that one call asks for.
pub const MAX_KEYS_PER_CALL: u32 = 128;

/// A KME's name for a key: an opaque string, kept and echoed exactly as it came (ETSI GS QKD 014 section 6.4).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

/// Why a string can't be a key ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyIdError {
    /// It has no characters.
    #[error("a key ID is empty")]
    Empty,
    /// It has more than [`MAX_KEY_ID_LEN`] bytes.
    #[error("a key ID of {0} bytes is longer than {MAX_KEY_ID_LEN}")]
    TooLong(usize),
}

impl KeyId {
    /// A key ID from a KME, a peer or a user.
    ///
    /// # Errors
    /// [`KeyIdError`] if it is empty or longer than [`MAX_KEY_ID_LEN`] bytes.
    pub fn new(id: impl Into<String>) -> Result<Self, KeyIdError> {
        let id = id.into();
        match id.len() {
            0 => Err(KeyIdError::Empty),
            n if n > MAX_KEY_ID_LEN => Err(KeyIdError::TooLong(n)),
            _ => Ok(Self(id)),
        }
    }

    /// The exact string that the KME sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// For people: control characters are escaped, so that an ID can't forge a log line.
impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| {
            if c.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c)
            {
                write!(f, "{}", c.escape_unicode())
            } else {
                write!(f, "{c}")
            }
        })
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A key as the other site offers it: its ID, and the pair of KMEs that issued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    /// The key's ID.
    pub id: KeyId,
    /// `source_KME_ID` of the master's status, the KME that issued the key; empty if it isn't known.
    pub source_kme: String,
    /// `target_KME_ID` of the master's status, the KME that the slave asks; empty if it isn't known.
    pub target_kme: String,
}

/// One QKD key. It has no `Clone` and no `Debug`: it is moved to whoever uses it up.
///
/// ```compile_fail,E0599
/// fn copy(key: &kms_client::QkdKey) -> kms_client::QkdKey { key.clone() }
/// ```
/// ```compile_fail,E0277
/// fn print(key: &kms_client::QkdKey) -> String { format!("{key:?}") }
/// ```
pub struct QkdKey {
    /// The key's ID, to be told to the other site.
    pub id: KeyId,
    /// The key's bytes.
    pub secret: SecretBuf,
    /// The KME on the master's side of the link that issued the key; empty if no status told it.
    pub source_kme: String,
    /// The KME on the slave's side of the link; empty if no status told it.
    pub target_kme: String,
    /// Our name for the KME that gave us the key (`name` of its config).
    pub kme: String,
    /// What it came by; a key of [`Api::File`] is no QKD key.
    pub api: Api,
}

impl QkdKey {
    /// What the other site needs in order to fetch the same key.
    #[must_use]
    pub fn key_ref(&self) -> KeyRef {
        KeyRef {
            id: self.id.clone(),
            source_kme: self.source_kme.clone(),
            target_kme: self.target_kme.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_opaque_and_bounded() {
        for id in ["1", "BC490419-7d60-487f-adc1-4ddcc177c139", "Ключ/+ =", "{\"a\":1}"] {
            assert_eq!(KeyId::new(id).unwrap().as_str(), id);
        }
        assert_eq!(KeyId::new("").unwrap_err(), KeyIdError::Empty);
        assert!(KeyId::new("x".repeat(256)).is_ok());
        assert_eq!(KeyId::new("x".repeat(257)).unwrap_err(), KeyIdError::TooLong(257));
    }

    #[test]
    fn an_id_cannot_forge_a_log_line() {
        let id = KeyId::new("a\nroot: all fine\u{202e}").unwrap();
        assert_eq!(id.to_string(), "a\\u{a}root: all fine\\u{202e}");
        assert_eq!(id.as_str(), "a\nroot: all fine\u{202e}");
    }
}
