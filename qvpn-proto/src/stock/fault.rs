//! Faults of the key supply.

use super::limits::REQUEST_TIMEOUT;
use crate::kms::{KmsFailure, KmsFailureKind};

/// A fault of the key supply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupplyFault {
    /// The cause, for the operator.
    pub text: String,
    /// Whether a KME does not answer or has no keys; otherwise a key is only late.
    pub hard: bool,
}

/// The fault of a supply that has only keys from files.
pub(super) const FROM_FILE: &str = "keys come from a file only, which is no QKD";

/// The failure of a request that got no answer in time.
pub(super) fn no_answer() -> KmsFailure {
    let seconds = REQUEST_TIMEOUT.as_secs();
    KmsFailure {
        kind: KmsFailureKind::Unavailable,
        text: format!("no KME answered within {seconds} s; `qvpn-ctl doctor` looks at each of them"),
    }
}
