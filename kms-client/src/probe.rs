//! What `qvpn-ctl kms check` asks of a real KME before any tunnel exists, and what each answer means in words. Looking takes
//! no key; [`take()`] spends up to [`KEYS_TAKEN`], and fetches them at the other site's KME if it is given.

mod finding;
mod status;
mod take;

pub use finding::{Finding, Probed, Step, Verdict, skipped};
pub use status::{Looked, look};
pub use take::{End, KEYS_TAKEN, Taken, take};
