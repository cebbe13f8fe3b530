//! Moves packets under keys that it is given: from a TUN device, sealed, to UDP, and back. It knows neither how keys are
//! agreed nor what a peer may do; it does know when a key expires, and then it drops packets.
//!
//! The control task commands lanes by the methods of [`Lanes`] and gets [`LaneEvent`]s through its [`LaneSink`].

#![deny(unsafe_code)]

mod allowed_ips;
mod checksum;
mod cipher;
mod clock;
mod error;
mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(any(test, feature = "internals"))]
pub mod internals;
mod key;
mod lane;
mod sched;
// Keys in use, without any I/O: lanes and simulations use them.
pub mod session;
mod stats;
mod tun;
mod udp;
mod wake;

pub use allowed_ips::{AllowedIps, BadPrefix};
pub use cipher::HAS_NULL_CIPHER;
#[cfg(feature = "bench-null-cipher")]
pub use cipher::use_null_cipher;
pub use clock::{Clock, boot_clock};
pub use error::LaneError;
pub use event::{Direction, LaneEvent, LaneSink, SealingEnd};
pub use key::{MAX_PACKETS, OpeningKey, SealingKey};
pub use lane::{Admission, Dscp, Filter, Lanes, LanesConfig};
pub use sched::raise_priority;
pub use stats::{Counter, InterfaceStats, PeerStats, RxStats, TxStats};
pub use tun::{TunError, TunQueue, open_tun};
pub use udp::bind_lane_socket;
