//! The protocol without I/O: control messages, the epoch exchange, keys, epochs, liveness, paths, timers.
//!
//! A [`Peer`] is the state of one tunnel at this site. It has no clock, socket or randomness of its own: each
//! call gets the time and a random source, and the caller polls the output.

mod backoff;
pub mod channel;
pub mod config;
pub mod epoch;
mod epochs;
pub mod exchange;
mod hello;
mod instances;
pub mod key_schedule;
pub mod key_sources;
pub mod kms;
mod lanes;
mod liveness;
mod message_limiter;
pub mod notice;
pub mod orders;
mod outbox;
pub mod output;
pub mod path_mtu;
mod paths;
pub mod peer;
pub mod session;
pub mod stock;
mod supply;
mod timers;
pub mod view;
pub mod wire;

pub use config::{PeerConfig, role_by_keys};
pub use key_sources::KeySources;
pub use kms::{Fetch, FetchedKey, KeyKind, KeyName, KmsFailure, KmsFailureKind, KmsReport};
pub use notice::{FailureReason, PeerEvent};
pub use orders::{LaneOrder, LaneReport};
pub use output::{PeerOutput, Transmit};
pub use peer::Peer;
pub use qvpn_types::{LaneState, QkdPolicy, Role};
pub use view::{ControlDrops, LaneView, PeerState, PeerView};
