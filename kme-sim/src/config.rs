//! The simulator's TOML file: which KMEs, SAEs and links there are. Each error has its line and column and
//! what to write instead.

mod check;
mod load;
mod model;
mod problem;
mod raw;

pub use model::{Apis, Config, KmeConfig, KnownBy, LinkConfig, SaeConfig};
pub use problem::{ConfigError, Problem};
