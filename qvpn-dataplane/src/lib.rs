//! Moves packets under keys that it is given: from a TUN device, sealed, to UDP, and back. It knows nothing of how keys
//! are agreed or what a peer may do; it does know when a key ends, and then it drops.
//!
//! The control task talks to lanes by [`LaneCommand`] and hears [`LaneEvent`]s through its [`LaneSink`].

mod allowed_ips;
mod checksum;
mod cipher;
mod clock;
mod command;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(any(test, feature = "internals"))]
pub mod internals;
mod key;
mod lane;
// One key at work, without any IO: lanes and simulations use it.
pub mod session;
mod stats;
mod sys;
mod tun;
mod udp;

pub use allowed_ips::{AllowedIps, BadPrefix};
pub use cipher::HAS_NULL_CIPHER;
pub use clock::{BootNanos, Clock, boot_clock};
pub use command::{LaneCommand, LaneEvent, LaneSink, SealingEnd};
pub use key::{MAX_PACKETS, MAX_PEERS, OpeningKey, PeerId, SealingKey, Suite};
pub use lane::{Admission, Dscp, Filter, LaneError, Lanes, LanesConfig, stand_before_others};
pub use stats::{Counter, InterfaceStats, PeerStats, RxStats, TxStats};
pub use tun::{TunError, TunQueue, open_tun};
pub use udp::{bind_lane_socket, send_to};
