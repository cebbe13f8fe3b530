//! Control sessions: boringtun behind a trait, which peer a datagram belongs to, and the admission of
//! handshakes whose sender is not authenticated yet.

pub mod control_link;
pub(crate) mod control_session;
pub mod demux;
pub mod limiter;
mod token_bucket;

pub use control_link::{ControlLink, LinkOutput, WireGuardLink};
pub use demux::{DatagramClass, Demux, peer_of_control_index};
pub use limiter::{Admission, HandshakeLimiter};
