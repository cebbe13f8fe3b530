//! The words of [`Suite`] in the config and in JSON.

use qvpn_types::Suite;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// In the order in which help names them.
const SUITES: [Suite; 2] = [Suite::ChaCha20Poly1305, Suite::Aes256Gcm];

/// The words of the config, in the order of help.
pub(super) const SUITE_WORDS: &[&str] = &[SUITES[0].name(), SUITES[1].name()];

/// The suite of a word of the config.
pub(super) fn suite_from_word(word: &str) -> Option<Suite> {
    SUITES.into_iter().find(|suite| suite.name() == word)
}

pub(crate) fn serialize<S: Serializer>(suite: &Suite, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(suite.name())
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Suite, D::Error> {
    let word = String::deserialize(deserializer)?;
    suite_from_word(&word).ok_or_else(|| D::Error::unknown_variant(&word, SUITE_WORDS))
}
