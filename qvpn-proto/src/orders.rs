//! Orders to the lanes of the data path, and what the lanes report. Keys move through these types and are
//! never copied.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, Suite, Time};

/// An order to a lane. Orders of one peer must reach a lane in the order in which they came.
pub enum LaneOrder {
    /// Open packets that carry `index`. The lane reports [`LaneReport::Installed`] once the key is in force.
    InstallOpening {
        /// The epoch. A later epoch has a higher number, also after a restart of the peer.
        local_epoch: LocalEpoch,
        /// Receiver index of the packets, top bit set.
        index: u32,
        /// The AEAD.
        suite: Suite,
        /// The key for packets of the peer on this lane.
        key: Secret<32>,
        /// When the key must be erased.
        expires_at: Time,
    },
    /// Seal with this key from now on, and never again with an earlier one.
    InstallSealing {
        /// The epoch.
        local_epoch: LocalEpoch,
        /// Receiver index that the peer chose.
        receiver_index: u32,
        /// The AEAD.
        suite: Suite,
        /// The key for our direction on this lane.
        key: Secret<32>,
        /// When sealing must end and the key be erased.
        expires_at: Time,
        /// The most packets that it may seal.
        packets: u64,
    },
    /// Send one empty packet in the newest epoch.
    SendEmpty,
    /// Send there from now on, until packets of the peer come from elsewhere.
    SetEndpoint {
        /// The peer's endpoint for this lane.
        endpoint: SocketAddr,
    },
    /// Send an empty packet when nothing else was sent for this long.
    SetKeepalive {
        /// `None`: never.
        interval: Option<Duration>,
    },
    /// Send this lane's flows by another lane.
    Reroute {
        /// `None`: by itself.
        via: Option<u8>,
    },
    /// Erase the sealing key: nothing may be sent until another is installed.
    StopSealing,
    /// Erase opening keys of local epochs before `local_epoch` no later than `at`.
    CloseOlder {
        /// The first local_epoch that stays.
        local_epoch: LocalEpoch,
        /// End of the drain.
        at: Time,
    },
    /// Erase the opening key of this index now: its attempt failed.
    Close {
        /// The receiver index that goes.
        index: u32,
    },
}

/// Which way packets go under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Packets from the peer.
    Opening,
    /// Packets to the peer.
    Sealing,
}

/// What a lane reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneReport {
    /// An install order is in force.
    Installed {
        /// The lane.
        lane: u8,
        /// The epoch of the key.
        local_epoch: LocalEpoch,
        /// Which of the two keys of the lane.
        direction: Direction,
    },
    /// The first packet of the peer opened in this epoch, on this lane.
    FirstOpened {
        /// The lane.
        lane: u8,
        /// The epoch of the key.
        local_epoch: LocalEpoch,
    },
    /// When packets last went out and authenticated ones last came in on any lane; reported about twice a
    /// second while it changes.
    Activity {
        /// The newest packet that was sealed.
        sent_at: Option<Time>,
        /// The newest packet that opened.
        received_at: Option<Time>,
    },
    /// An authentic packet of the newest epoch came from elsewhere, and the lane sends there from now on.
    Roamed {
        /// The lane.
        lane: u8,
        /// The new endpoint.
        endpoint: SocketAddr,
    },
    /// A lane stopped sealing because the key reached its packet limit or its age.
    SealingEnded {
        /// The lane.
        lane: u8,
        /// The epoch that ended.
        local_epoch: LocalEpoch,
    },
}
