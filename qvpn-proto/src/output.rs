//! What a [`Peer`](crate::Peer) wants done: datagrams to send, orders to lanes, keys to fetch, and events for
//! people.

use std::net::SocketAddr;

use crate::kms::Fetch;
use crate::notice::PeerEvent;
use crate::orders::LaneOrder;

/// What a peer wants done.
pub enum PeerOutput {
    /// An order to one lane's data path.
    Lane(u8, LaneOrder),
    /// QKD keys to fetch. At most one request is open at a time; it is answered by
    /// [`KmsReport`](crate::kms::KmsReport).
    Fetch(Fetch),
    /// Something that people should see: a line in the journal, an event, a count.
    Event(PeerEvent),
}

/// A datagram for the peer, to be sent from lane 0's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// UDP payload, at most 1,232 bytes; a larger one is a probe of the path, to be sent with "don't
    /// fragment".
    pub datagram: Vec<u8>,
}
