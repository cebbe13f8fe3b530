//! Orders to the lanes of the data path, and what the lanes report. Keys move through these types and are
//! never copied.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_secret::Secret;
use qvpn_types::{Direction, LocalEpoch, Suite, Time};

/// An order to a lane. A lane must receive a peer's orders in the order in which they were issued.
pub enum LaneOrder {
    /// Open packets that carry `index`. The lane reports [`LaneReport::Installed`] once the key is in force.
    InstallOpening {
        /// The epoch. A later epoch has a higher number, even after the peer restarts.
        local_epoch: LocalEpoch,
        /// The receiver index of the packets, with the top bit set.
        index: u32,
        suite: Suite,
        /// The key for the peer's packets on this lane.
        key: Secret<32>,
        /// When the key must be erased.
        expires_at: Time,
    },
    /// Seal with this key from now on, and never again with an earlier one.
    InstallSealing {
        local_epoch: LocalEpoch,
        /// The receiver index that the peer chose.
        receiver_index: u32,
        suite: Suite,
        /// The key for our direction on this lane.
        key: Secret<32>,
        /// When sealing must end and the key must be erased.
        expires_at: Time,
        /// The maximum number of packets that it may seal.
        packets: u64,
    },
    /// Send one empty packet in the newest epoch.
    SendEmpty,
    /// Send to this endpoint until the peer's packets arrive from another one.
    SetEndpoint {
        /// The peer's endpoint for this lane.
        endpoint: SocketAddr,
    },
    /// Send an empty packet when nothing else was sent for this interval.
    SetKeepalive {
        /// `None` turns keepalives off.
        interval: Option<Duration>,
    },
    /// Send this lane's flows by another lane.
    Reroute {
        /// The lane to use; `None` is this lane itself.
        via: Option<u8>,
    },
    /// Erase the sealing key: nothing may be sent until another is installed.
    StopSealing,
    /// Erase opening keys of local epochs before `local_epoch` no later than `at`.
    CloseOlder {
        /// The first epoch that stays.
        local_epoch: LocalEpoch,
        /// End of the drain.
        at: Time,
    },
    /// Erase the opening key of this index now, since its attempt failed.
    Close { index: u32 },
}

/// A report of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneReport {
    /// The key of an install order is in force.
    Installed {
        lane: u8,
        local_epoch: LocalEpoch,
        /// Which of the lane's two keys it is.
        direction: Direction,
    },
    /// A packet of the peer opened in this epoch on this lane for the first time.
    FirstOpened { lane: u8, local_epoch: LocalEpoch },
    /// When packets were last sent, and authenticated ones last received, on any lane. It is reported about
    /// twice a second while it changes.
    Activity {
        /// The newest packet that was sealed.
        sent_at: Option<Time>,
        /// The newest packet that opened.
        received_at: Option<Time>,
    },
    /// An authentic packet of the newest epoch came from another endpoint, and the lane sends there from now
    /// on.
    Roamed { lane: u8, endpoint: SocketAddr },
    /// A lane stopped sealing because the key reached its packet limit or its age.
    SealingEnded { lane: u8, local_epoch: LocalEpoch },
}
