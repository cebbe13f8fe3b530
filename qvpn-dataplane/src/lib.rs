//! The data path. It encrypts packets from a TUN device and sends them over UDP, and decrypts received ones,
//! with keys that it is given. Key agreement and peer policy are outside this crate. Each key has an expiry
//! time and a packet limit, after which packets are dropped.
//!
//! The control task commands lanes by the methods of [`Lanes`] and receives [`LaneEvent`]s through its
//! [`LaneSink`].

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
mod kernel_routes;
mod key;
mod lane;
mod prefix_table;
mod sched;
// Keys in use, without I/O; used by lanes and by simulations.
pub mod session;
mod stats;
mod tun;
mod udp;
mod wake;

pub use allowed_ips::AllowedIps;
pub use cipher::HAS_NULL_CIPHER;
#[cfg(feature = "bench-null-cipher")]
pub use cipher::use_null_cipher;
pub use clock::{Clock, boot_clock};
pub use error::LaneError;
pub use event::{LaneEvent, LaneSink, SealingEnd};
pub use kernel_routes::{KernelRoutes, NextHop, RoutedPeer, RoutedPeers};
pub use key::{OpeningKey, SealingKey};
pub use lane::{Admission, Dscp, Filter, Lanes, LanesConfig};
pub use prefix_table::BadPrefix;
pub use sched::raise_priority;
pub use stats::{Counter, InterfaceStats, PeerStats, RxStats, TxStats};
pub use tun::{TunError, TunQueue, open_tun};
pub use udp::bind_lane_socket;
