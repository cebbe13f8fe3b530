//! A simulator of QKD key management entities that speak ETSI GS QKD 014 V1.1.1: real HTTPS servers with mutual TLS, a
//! key relay between them, and faults that can be switched on while they run. `docs/kme-sim.md` is its manual.
//!
//! The product is the program; this library is what the program and the tests of the workspace share.

pub mod admin;
pub mod api;
pub mod certs;
pub mod config;
mod der;
mod faulty;
mod http;
mod link;
pub mod misbehave;
pub mod network;
pub mod presets;
mod quirks;
mod relay;
pub mod server;
mod skip;
mod spoil;
pub mod supply;
pub mod test_key;
pub mod tls;
mod tls_faults;

pub use config::{Config, ConfigError};
pub use server::{Simulator, StartError};
