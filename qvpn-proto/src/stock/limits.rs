//! Maximum ages of the keys in stock, and of requests for them.

use std::time::Duration;

/// A key is erased at this age.
pub const MAX_KEY_AGE: Duration = Duration::from_secs(3600);
/// A key is dropped if the responder cannot get it within this time.
pub const KEY_FETCH_TIMEOUT: Duration = Duration::from_secs(120);
/// A request for keys that got no answer ends after this time, and another follows. The KMS client has
/// deadlines of its own, for each KME; this limit holds also where they fail.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
