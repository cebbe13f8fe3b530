//! A config on trial, and the former config, which is restored unless somebody confirms the trial.

use std::sync::Arc;

use qvpn_types::Time;

pub(crate) struct Trial {
    /// The text of the former config.
    pub(crate) former: Arc<str>,
    pub(crate) deadline: Time,
}
