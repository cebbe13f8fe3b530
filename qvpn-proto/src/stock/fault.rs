//! What can be wrong with the supply of keys.

/// What is wrong with the supply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupplyFault {
    /// In words.
    pub text: String,
    /// A KME does not answer, or has no keys; otherwise a key is only late.
    pub hard: bool,
}

/// What is wrong with a supply of nothing else.
pub(super) const FROM_FILE: &str = "keys come from a file only, which is no QKD";
