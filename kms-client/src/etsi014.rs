//! ETSI GS QKD 014 V1.1.1, over which most KMEs deliver keys.

pub(crate) mod classify;
pub(crate) mod client;
pub(crate) mod wire;
