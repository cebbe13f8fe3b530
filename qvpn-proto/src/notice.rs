//! Events for the operator. The daemon turns them into log lines, API events and counters.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_identity::PublicIdentity;
use qvpn_types::{EpochNumber, KeyId};

use crate::key_sources::KeySources;
use crate::wire::{RejectReason, RekeyReason};

/// An event for the operator.
#[derive(Debug, Clone, PartialEq)]
pub enum PeerEvent {
    /// The peer is reachable, with a key that meets the policy in full.
    Up,
    /// Nothing can be sent.
    Blocked {
        /// The cause, for the operator.
        reason: String,
    },
    /// Traffic flows without QKD, although the policy prefers it.
    Degraded {
        /// The cause, for the operator.
        reason: String,
    },
    /// The peer does not answer, though the keys are valid.
    Silent {
        /// The cause, for the operator.
        reason: String,
    },
    /// A QKD key is in use again, or a silent peer answers again.
    Recovered,
    /// The control session moved to another address.
    Roamed { endpoint: SocketAddr },
    /// The MTU of the path to the peer changed. It is the size in bytes of the largest inner packet that
    /// passes unfragmented.
    PathMtu {
        /// A value from [`MIN_PATH_MTU`](crate::path_mtu::MIN_PATH_MTU) to
        /// [`MAX_PATH_MTU`](crate::path_mtu::MAX_PATH_MTU).
        mtu: u16,
    },
    /// A lane no longer carries packets.
    LaneSilent {
        lane: u8,
        /// The peer's UDP port for this lane; 0 if it isn't known.
        port: u16,
    },
    /// A lane carries packets again.
    LaneRecovered { lane: u8 },
    /// The peer stops.
    Bye,
    /// The chain of earlier epochs was lost; the next epoch starts one.
    ChainReset,
    /// An epoch came into force at this side.
    EpochActive {
        /// The number on the wire.
        epoch: EpochNumber,
        sources: KeySources,
        /// The QKD key in it, if there is one.
        qkd_key_id: Option<KeyId>,
        /// The time since this side sent or received the first `Propose`.
        took: Duration,
    },
    /// An attempt failed.
    EpochFailed {
        /// The reason, for the metric's label.
        reason: FailureReason,
        /// The cause, for the operator.
        detail: String,
    },
    /// A confirmation was wrong and is ignored; the fourth ends the attempt.
    WrongConfirmation {
        /// The epoch's number on the wire.
        epoch: EpochNumber,
        /// The number of wrong ones in this attempt.
        count: u8,
    },
    /// The responder asks for an epoch.
    RekeyAsked { reason: RekeyReason },
    /// The supply of QKD keys stopped or is too small, so the stock shrinks.
    SupplyStopped {
        /// The cause, for the operator.
        detail: String,
        /// The number of keys that both sites still hold.
        stock: usize,
    },
    /// QKD keys arrive again.
    SupplyResumed,
    /// A QKD key was lost.
    KeyLost {
        id: KeyId,
        /// The cause, for the operator.
        why: String,
    },
    /// The peer's ML-KEM key is not the one that our config names, or ours is not the one that its config
    /// names.
    IdentityMismatch {
        /// The two keys, for the operator.
        detail: String,
    },
    /// The control session is under another key of the peer, or of ours.
    KeyChanged { own: bool, from: PublicIdentity, to: PublicIdentity },
    /// Two gateways use the peer's key: its instances alternate.
    IdentityDuplicate {
        /// Where the last two instances were; one if they share an endpoint.
        endpoints: Vec<SocketAddr>,
    },
    /// The peer's handshakes are refused because they carry an earlier time than a previous one. This side
    /// has initiated a handshake.
    ClockSetBack {
        /// The cause, for the operator, and what to do.
        detail: String,
    },
    /// One side refused the other's `Hello`.
    Refused {
        /// Whether this side refused.
        by_us: bool,
        reason: RejectReason,
        /// The cause, for the operator, and what to do.
        detail: String,
    },
}

/// Why an attempt failed. The names are the labels of `qvpn_peer_rekey_failures_total`.
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
    /// No QKD key is held by both sites, and the policy needs one.
    NoQkdKey,
    /// A value in the exchange was unusable, such as an X25519 point of small order.
    Crypto,
}

impl FailureReason {
    /// Returns the metric's label.
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
