//! Faults that a simulated KME shows on request.

pub(crate) mod answer;
pub mod catalog;
pub(crate) mod keys;
pub(crate) mod request;
pub(crate) mod tls;
