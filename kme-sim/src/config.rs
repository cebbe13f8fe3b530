//! The simulator's TOML file: which KMEs, SAEs and links there are. What can be wrong is refused here, each with the
//! line and column and what to write instead, so that the rest of the program works on values that make sense.

mod check;
mod load;
mod model;
mod problem;
mod raw;

pub use model::{Apis, Config, KmeConfig, KnownBy, LinkConfig, SaeConfig};
pub use problem::{ConfigError, Problem};
