//! The HTTPS client that all network interfaces share: one connection for each operation, mutual TLS, and
//! failures explained in words.

pub(crate) mod body;
pub(crate) mod connect;
pub(crate) mod connector;
mod explain;
mod files;
pub(crate) mod http;
pub(crate) mod intermediary;
mod read_after_reset;
mod signature;
mod tls;
mod token;
mod token_signer;
