//! ETSI GS QKD 004 V2.1.1: key streams over TLS, in the byte format of ETSI's C reference and of the Python
//! server that is based on it. The document itself defines calls and no bytes.

mod association;
pub(crate) mod client;
mod status;
mod transport;
pub(crate) mod wire;
