//! Ages of the keys in stock.

use std::time::Duration;

/// A key is erased after an hour.
pub const MAX_KEY_AGE: Duration = Duration::from_secs(3600);
/// A key that the responder cannot get within this time is dropped.
pub const KEY_FETCH_TIMEOUT: Duration = Duration::from_secs(120);
