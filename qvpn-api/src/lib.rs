//! What users and programs see: the grammar of the config file, the status, the events and the control API.
//! The names here are fixed, because scripts, dashboards and other programs rely on them.

#![warn(missing_docs)]

pub mod config;
pub mod control;
pub mod events;
pub mod exit;
pub mod lookup;
mod permission;
pub mod status;

pub use config::{Config, ConfigError, ConfigErrors};
