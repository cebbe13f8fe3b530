//! The words that the config and JSON use for the types of `qvpn-types`, which doesn't depend on serde.

use qvpn_types::{LaneState, QkdPolicy, Role, Suite};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// A type whose values are words.
pub(crate) trait Word: Copy + 'static {
    /// Its values, in the order of the help.
    const ALL: &'static [Self];
    /// The words of [`ALL`](Self::ALL).
    const WORDS: &'static [&'static str];

    fn word(self) -> &'static str;

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.word() == word)
    }
}

macro_rules! words {
    ($($type:ident [$($variant:ident),+],)+) => {$(
        impl Word for $type {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            const WORDS: &'static [&'static str] = &[$(Self::$variant.name()),+];

            fn word(self) -> &'static str {
                self.name()
            }
        }
    )+};
}

words! {
    Suite [ChaCha20Poly1305, Aes256Gcm],
    QkdPolicy [Required, Preferred, Off],
    Role [Initiator, Responder],
    LaneState [Up, Silent],
}

pub(crate) fn serialize<T: Word, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.word())
}

pub(crate) fn deserialize<'de, T: Word, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let word = String::deserialize(from)?;
    T::from_word(&word).ok_or_else(|| D::Error::unknown_variant(&word, T::WORDS))
}

/// The same for a value that may be `null`.
pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<T: Word, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_str(value.word()),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: Word, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        let Some(word) = Option::<String>::deserialize(from)? else { return Ok(None) };
        T::from_word(&word).map(Some).ok_or_else(|| D::Error::unknown_variant(&word, T::WORDS))
    }
}
