//! Names from KMEs and configs: opaque strings with a maximum length.

use std::fmt;

/// The maximum length of a [`KeyId`] in bytes. ETSI GS QKD 014 specifies a UUID; servers also send other
/// strings, such as several UUIDs joined by "+", 1,184 bytes in total.
pub const MAX_KEY_ID_BYTES: usize = 1200;

/// The maximum length of an [`SaeId`] in bytes: a `Hello` has one byte for the length.
pub const MAX_SAE_ID_BYTES: usize = 255;

/// A KME's name for a key: an opaque string, kept and echoed exactly as received (ETSI GS QKD 014 section
/// 6.4).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

/// Why a string can't be a [`KeyId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyIdError {
    /// The string is empty.
    #[error("a key ID is empty")]
    Empty,
    /// The string has more than [`MAX_KEY_ID_BYTES`] bytes.
    #[error("a key ID of {0} bytes is longer than {MAX_KEY_ID_BYTES}")]
    TooLong(usize),
}

impl KeyId {
    /// Makes a key ID from a string of a KME, a peer or a user.
    ///
    /// # Errors
    /// [`KeyIdError`] if it is empty or longer than [`MAX_KEY_ID_BYTES`].
    pub fn new(id: impl Into<String>) -> Result<Self, KeyIdError> {
        let id = id.into();
        match id.len() {
            0 => Err(KeyIdError::Empty),
            n if n > MAX_KEY_ID_BYTES => Err(KeyIdError::TooLong(n)),
            _ => Ok(Self(id)),
        }
    }

    /// Returns the exact string from the KME.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

/// Writes the ID for people: control and direction characters are escaped, so that an ID can't forge a log
/// line.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(&self.0, f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The ID of a secure application entity (SAE), as its KME knows it: opaque, never normalised (ETSI GS QKD
/// 014 section 5).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaeId(String);

/// Why a string can't be an [`SaeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaeIdError {
    /// The string is empty or longer than [`MAX_SAE_ID_BYTES`].
    #[error("an SAE ID has 1 to {MAX_SAE_ID_BYTES} bytes")]
    Length,
    /// The string contains a control character.
    #[error("an SAE ID can't hold {0:?}")]
    Control(char),
}

impl SaeId {
    /// Makes an SAE ID from a string of a config or a peer.
    ///
    /// # Errors
    /// [`SaeIdError`] if it is empty, too long or contains a control character.
    pub fn new(id: impl Into<String>) -> Result<Self, SaeIdError> {
        let id = id.into();
        if id.is_empty() || id.len() > MAX_SAE_ID_BYTES {
            return Err(SaeIdError::Length);
        }
        match id.chars().find(|c| c.is_control()) {
            Some(c) => Err(SaeIdError::Control(c)),
            None => Ok(Self(id)),
        }
    }

    /// Returns the exact string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SaeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(&self.0, f)
    }
}

impl fmt::Debug for SaeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SaeId({self})")
    }
}

fn write_escaped(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    text.chars().try_for_each(|c| {
        let hides = ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
        if c.is_control() || hides { write!(f, "{}", c.escape_unicode()) } else { write!(f, "{c}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_are_opaque_and_bounded() {
        for id in ["1", "BC490419-7d60-487f-adc1-4ddcc177c139", "Ключ/+ =", "{\"a\":1}"] {
            assert_eq!(KeyId::new(id).unwrap().as_str(), id);
        }
        assert_eq!(KeyId::new("").unwrap_err(), KeyIdError::Empty);
        assert!(KeyId::new("x".repeat(MAX_KEY_ID_BYTES)).is_ok());
        let too_long = MAX_KEY_ID_BYTES + 1;
        assert_eq!(KeyId::new("x".repeat(too_long)).unwrap_err(), KeyIdError::TooLong(too_long));
    }

    #[test]
    fn a_key_id_cannot_forge_a_log_line() {
        let id = KeyId::new("a\nroot: all fine\u{202e}").unwrap();
        assert_eq!(id.to_string(), "a\\u{a}root: all fine\\u{202e}");
        assert_eq!(id.as_str(), "a\nroot: all fine\u{202e}");
    }

    #[test]
    fn sae_ids_are_opaque_and_bounded() {
        for id in ["SITE-A", "Ä b", &"x".repeat(255)] {
            assert_eq!(SaeId::new(id).unwrap().as_str(), id);
        }
        assert_eq!(SaeId::new("").unwrap_err(), SaeIdError::Length);
        assert_eq!(SaeId::new("x".repeat(256)).unwrap_err(), SaeIdError::Length);
        assert_eq!(SaeId::new("a\nb").unwrap_err(), SaeIdError::Control('\n'));
    }
}
