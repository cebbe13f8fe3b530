//! QKD keys held ahead, so that no epoch waits for a KMS. The initiator's half fetches new keys and offers them; the
//! responder's half fetches the same keys by their IDs and says which it holds.

mod budget;
mod master;
mod slave;

pub use budget::{Budget, Trouble, Verdict};
pub use master::MasterStock;
pub use slave::SlaveStock;

use std::time::Duration;

/// A key is erased after an hour.
pub const MAX_KEY_AGE: Duration = Duration::from_secs(3600);
/// A key that the responder cannot get for so long is dropped.
pub const GIVE_UP: Duration = Duration::from_secs(120);

/// What is wrong with a supply of nothing else.
const FROM_FILE: &str = "keys come from a file only, which is no QKD";

/// A wait that doubles from `first` to `last` with each failure.
pub(crate) fn backoff(first: Duration, last: Duration, failures: u32) -> Duration {
    (first * (1u32 << failures.min(16))).min(last)
}

#[cfg(test)]
mod tests;
