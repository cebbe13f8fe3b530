//! Control sessions: boringtun behind a trait, the assignment of datagrams to peers, and the admission of
//! handshakes from unauthenticated senders.

pub mod control_link;
pub(crate) mod control_session;
pub mod demux;
pub mod initiation;
mod key_change;
pub mod keyed_links;
pub mod limiter;
mod numbers;
pub(crate) mod token_bucket;

pub use control_link::{ControlLink, LinkKeys, LinkOutput, WireGuardLink};
pub use demux::{DatagramClass, Demux, peer_of_control_index};
pub use initiation::Tai64n;
pub use keyed_links::KeyedLinks;
pub use limiter::{Admission, HandshakeLimiter};
