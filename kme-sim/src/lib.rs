//! A simulator of QKD key management entities (KMEs) that speak ETSI GS QKD 014 V1.1.1, ETSI GS QKD 004
//! V2.1.1 and SKIP: servers with mutual TLS, a key relay between them, and faults that you can switch on
//! while they run. `docs/kme-sim.md` is its manual.
//!
//! The program and the tests of the workspace share this library.

pub mod admin;
pub mod api;
pub mod certs;
pub mod config;
mod der;
mod etsi004;
pub mod faults;
mod http;
mod json;
mod link;
mod network;
mod pem;
pub mod presets;
pub mod refusal;
mod relay;
pub mod server;
mod skip;
mod state;
pub mod supply;
pub mod test_key;
pub mod tls;

pub use config::{Config, ConfigError};
pub use server::{Simulator, StartError};
