//! Events for people: the daemon turns them into log lines, events and counts.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::EpochNumber;

use crate::key_sources::KeySources;
use crate::wire::{RejectReason, RekeyReason};

/// Something that people should see.
#[derive(Debug, Clone, PartialEq)]
pub enum PeerEvent {
    /// The peer can be sent to, with a key that meets the policy in full.
    Up,
    /// Nothing can be sent, and why.
    Blocked {
        /// In words.
        reason: String,
    },
    /// Traffic flows without QKD, though the policy prefers it.
    Degraded {
        /// In words.
        reason: String,
    },
    /// A QKD key is there again.
    Recovered,
    /// The control session moved to another address.
    Roamed {
        /// The new address.
        endpoint: SocketAddr,
    },
    /// The MTU of the path to the peer changed: the largest inner packet that passes unfragmented.
    PathMtu {
        /// From [`MIN_PATH_MTU`](crate::path_mtu::MIN_PATH_MTU) to [`MAX_PATH_MTU`](crate::path_mtu::MAX_PATH_MTU).
        mtu: u16,
    },
    /// No packets pass by a lane any more.
    LaneSilent {
        /// The lane.
        lane: u8,
        /// The peer's UDP port for this lane; 0 if it isn't known.
        port: u16,
    },
    /// Packets pass by a lane again.
    LaneRecovered {
        /// The lane.
        lane: u8,
    },
    /// The peer stops.
    Bye,
    /// The chain of earlier epochs was lost; the next epoch starts one.
    ChainReset,
    /// An epoch came into force at this side.
    EpochActive {
        /// Its number on the wire.
        epoch: EpochNumber,
        /// What its key is made of.
        sources: KeySources,
        /// The QKD key that it used.
        qkd_key_id: Option<String>,
        /// Since the first `Propose` that this side sent or received.
        took: Duration,
    },
    /// An attempt for an epoch ended without one.
    EpochFailed {
        /// For the metric's label.
        reason: FailureReason,
        /// In words.
        detail: String,
    },
    /// A confirmation was wrong and is ignored; the fourth ends the attempt.
    WrongConfirmation {
        /// The epoch's number on the wire.
        epoch: EpochNumber,
        /// How many there were in this attempt.
        count: u8,
    },
    /// The responder asks for an epoch.
    RekeyAsked {
        /// Why.
        reason: RekeyReason,
    },
    /// The supply of QKD keys stopped or is too small; the stock runs down.
    SupplyStopped {
        /// Why, in words.
        detail: String,
        /// How many keys both ends still hold.
        stock: usize,
    },
    /// QKD keys arrive again.
    SupplyResumed,
    /// A QKD key was lost: its ID and why.
    KeyLost {
        /// The key ID.
        id: String,
        /// In words.
        why: String,
    },
    /// The peer's ML-KEM key is not the one that our config names, or ours is not the one that its config
    /// names.
    IdentityMismatch {
        /// In words.
        detail: String,
    },
    /// The peer's handshakes are refused since they carry a time before that of an earlier one, so this side
    /// initiated a handshake.
    ClockSetBack {
        /// In words, and what to do.
        detail: String,
    },
    /// The peer refused us, or we refused it.
    Refused {
        /// Whether we refused.
        by_us: bool,
        /// The reason.
        reason: RejectReason,
        /// In words, and what to do.
        detail: String,
    },
}

/// Why an attempt for an epoch failed; the names are the labels of `qvpn_peer_rekey_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureReason {
    /// No verified answer within 5 s.
    Timeout,
    /// The peer refused; the detail of the event says why.
    Rejected,
    /// The peer's confirmation was wrong four times.
    Confirmation,
    /// The peer restarted.
    Restarted,
    /// No QKD key that both ends hold, and the policy needs one.
    NoQkdKey,
    /// A value in the exchange was unusable, such as an X25519 point of small order.
    Crypto,
}

impl FailureReason {
    /// The metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Rejected => "rejected",
            Self::Confirmation => "confirmation",
            Self::Restarted => "restarted",
            Self::NoQkdKey => "no_qkd_key",
            Self::Crypto => "crypto",
        }
    }
}
