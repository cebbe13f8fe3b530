//! A config on trial: what comes back unless somebody confirms it.

use std::sync::Arc;

use qvpn_types::Time;

pub(crate) struct Trial {
    /// The text that comes back.
    pub(crate) former: Arc<str>,
    pub(crate) deadline: Time,
}
