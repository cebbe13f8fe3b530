//! Numbers and names that several crates share. This crate does no I/O and holds no secrets.

#![forbid(unsafe_code)]

mod direction;
mod name;
mod number;
mod policy;
mod suite;
mod time;

pub use direction::Direction;
pub use name::{KeyId, KeyIdError, MAX_KEY_ID_BYTES, MAX_SAE_ID_BYTES, SaeId, SaeIdError};
pub use number::{EpochNumber, LocalEpoch, MAX_PACKETS, PeerNumber};
pub use policy::{LaneState, QkdPolicy, Role};
pub use suite::Suite;
pub use time::Time;
