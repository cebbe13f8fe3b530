//! The checks of `qvpn-ctl kms check` with a real KME, before any tunnel exists; each finding explains an
//! answer in words. [`check_status`] takes no key. [`check_keys`] spends up to [`KEYS_TAKEN`] and, given the
//! other site's KME, fetches them there.

mod finding;
mod status;
mod take;

pub use finding::{Finding, Probed, Step, Verdict, skipped};
pub use status::{StatusReport, check_status};
pub use take::{FetchReport, KEYS_TAKEN, Site, check_keys};
