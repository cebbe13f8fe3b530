//! Delays that grow with each failure.

use std::time::Duration;

/// Returns a delay that doubles from `first` to `last` with each failure.
pub(crate) fn backoff(first: Duration, last: Duration, failures: u32) -> Duration {
    (first * (1u32 << failures.min(16))).min(last)
}
