//! The output of a [`Peer`](crate::Peer): datagrams to send, orders to lanes, keys to fetch, and events for
//! the operator.

use std::net::SocketAddr;

use crate::kms::Fetch;
use crate::notice::PeerEvent;
use crate::orders::LaneOrder;

/// An output of a peer, other than a datagram.
pub enum PeerOutput {
    /// An order to one lane's data path.
    Lane(u8, LaneOrder),
    /// QKD keys to fetch. At most one request is open at a time; answer it with a
    /// [`KmsReport`](crate::kms::KmsReport).
    Fetch(Fetch),
    /// An event for the operator: a log line, an API event, a counter.
    Event(PeerEvent),
}

/// A datagram for the peer. Send it from lane 0's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    pub to: SocketAddr,
    /// The UDP payload, at most 1,232 bytes. A larger one is a path probe: send it with "don't fragment".
    pub datagram: Vec<u8>,
}
