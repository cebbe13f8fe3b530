//! Events that lanes report to the control task.

use std::net::SocketAddr;

use qvpn_types::{Direction, LocalEpoch, PeerNumber};

use crate::error::LaneError;

/// Why a lane stopped sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealingEnd {
    /// The key reached its maximum age.
    Expired,
    /// The key reached its packet limit.
    PacketLimit,
}

/// An event of one lane.
#[derive(Debug)]
pub enum LaneEvent {
    /// Acknowledges [`Lanes::install_opening`](crate::Lanes::install_opening) or
    /// [`Lanes::install_sealing`](crate::Lanes::install_sealing), from the thread that owns the key.
    Installed {
        lane: u8,
        peer: PeerNumber,
        epoch: LocalEpoch,
        direction: Direction,
        /// Whether the key is in force. A key is refused and erased if the peer is unknown, if its epoch
        /// isn't higher than every earlier one of this direction (a repeated epoch would repeat nonces), if
        /// its index is in use or has no top bit, or if the key has expired.
        in_force: bool,
    },
    /// The lane opened the first packet of an epoch. Sent once for each lane and epoch.
    FirstOpened { lane: u8, peer: PeerNumber, epoch: LocalEpoch },
    /// A datagram for the control task that passed the filter: types 1 to 3 (lane 0 only), or type 4 with
    /// the top bit of its index clear.
    Control {
        lane: u8,
        /// The sender; IPv4 is never in mapped form.
        from: SocketAddr,
        /// The whole UDP payload.
        datagram: Vec<u8>,
    },
    /// The peer's newest authenticated packet came from a new address, to which this lane sends from now on.
    Roamed {
        lane: u8,
        peer: PeerNumber,
        /// IPv4 is never in mapped form.
        endpoint: SocketAddr,
    },
    /// The sealing key reached one of its limits and is erased; the lane sends nothing until the next key.
    SealingEnded { lane: u8, peer: PeerNumber, epoch: LocalEpoch, why: SealingEnd },
    /// One of the lane's two threads stopped for good, and its keys are erased. The lane carries no more
    /// packets in the direction of that thread.
    Failed { lane: u8, error: LaneError },
}

/// Receives the events of lanes. Lanes call it while they handle packets, so it must return at once.
pub trait LaneSink: Send + Sync + 'static {
    /// Queues an event.
    ///
    /// # Errors
    /// The event itself, if the bounded queue is full. The lane drops a refused
    /// [`Control`](LaneEvent::Control) datagram and counts it as `queue_full`; it offers any other event
    /// again a little later.
    fn event(&self, event: LaneEvent) -> Result<(), LaneEvent>;
}
