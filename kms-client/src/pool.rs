//! A peer's KMEs: which one is asked, which one is backing off after a failure, and what is known of each.

pub(crate) mod breaker;
pub(crate) mod health;
pub(crate) mod kme;
pub(crate) mod set;
