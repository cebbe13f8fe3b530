//! Cisco's Secure Key Integration Protocol (draft-cisco-skip-02).

pub(crate) mod client;
pub(crate) mod wire;
