//! Ages of the keys in stock.

use std::time::Duration;

/// A key is erased after an hour.
pub const MAX_KEY_AGE: Duration = Duration::from_secs(3600);
/// A key that the responder cannot get for so long is dropped.
pub const GIVE_UP: Duration = Duration::from_secs(120);
