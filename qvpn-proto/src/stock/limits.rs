//! Maximum ages of the keys in stock.

use std::time::Duration;

/// A key is erased at this age.
pub const MAX_KEY_AGE: Duration = Duration::from_secs(3600);
/// A key is dropped if the responder cannot get it within this time.
pub const KEY_FETCH_TIMEOUT: Duration = Duration::from_secs(120);
