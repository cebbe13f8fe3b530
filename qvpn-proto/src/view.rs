//! The status of a peer, as `qvpn-ctl show` prints it.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::{EpochNumber, KeyId, LaneState, QkdPolicy, Role};

use crate::epoch::Parties;
use crate::key_sources::KeySources;
use crate::notice::FailureReason;
use crate::wire::LaneSet;

/// Whether packets can be sent to a peer. The names are those that `show` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// There was no epoch since the start.
    Connecting,
    /// An epoch that meets the policy in full is active.
    Up,
    /// An epoch without QKD is active, although the policy prefers QKD.
    Degraded,
    /// The keys are valid, and the peer does not answer.
    Silent,
    /// There is no valid key, so nothing is sent.
    Blocked,
}

impl PeerState {
    /// Returns the name that `show` prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Silent => "silent",
            Self::Blocked => "blocked",
        }
    }
}

/// One lane of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneView {
    /// Whether it carries packets; `None` if that isn't known.
    pub state: Option<LaneState>,
    /// The lane that carries this one's flows, if that is another one.
    pub via: Option<u8>,
    /// The endpoint to which it sends.
    pub endpoint: Option<SocketAddr>,
}

/// Dropped datagrams and messages of a peer's control session since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ControlDrops {
    /// Datagrams that the session dropped: not authentic, late, or repeated.
    pub control: u64,
    /// Authentic packets beyond what one peer may send.
    pub limited: u64,
    /// Authentic packets that are not a message.
    pub malformed: u64,
    /// Messages that were answered by a `Reject`, and wrong confirmations.
    pub refused: u64,
}

/// The status of a peer. Durations are relative to the time of the call; `None` means unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// Whether packets can be sent.
    pub state: PeerState,
    /// The cause of the state, and what to do; `None` while there is no problem.
    pub reason: Option<String>,
    pub role: Role,
    /// The keys of the epoch in force, or of the control session.
    pub parties: Parties,
    pub policy: QkdPolicy,
    /// The destination of the control session's datagrams.
    pub endpoint: Option<SocketAddr>,
    /// The active epoch's number on the wire.
    pub epoch: Option<EpochNumber>,
    /// The time since it came into force.
    pub epoch_age: Option<Duration>,
    /// The time until its sealing ends.
    pub epoch_expires_in: Option<Duration>,
    /// Milliseconds until the next attempt is due, negative when the next epoch is overdue; `None` at the
    /// responder without an epoch.
    pub next_rekey_in_ms: Option<i64>,
    /// The sources of the active epoch's key.
    pub sources: Option<KeySources>,
    /// The QKD key of the active epoch.
    pub qkd_key_id: Option<KeyId>,
    /// The time since a QKD key last went into an epoch.
    pub qkd_key_age: Option<Duration>,
    /// The number of QKD keys that this side holds and, at the initiator, the peer acknowledged; `None` if
    /// QKD is off.
    pub qkd_stock: Option<usize>,
    /// The number of keys from a file, counted in the same way; `None` if QKD is off.
    pub file_stock: Option<usize>,
    /// How long the QKD keys last at the agreed interval and the recent supply. While the supply keeps up,
    /// how long they would last without it.
    pub qkd_stock_lasts: Option<Duration>,
    /// The number of epochs that came into force since the start.
    pub rekeys: u64,
    /// Failed attempts by reason.
    pub rekey_failures: Vec<(FailureReason, u64)>,
    /// Dropped datagrams and messages of the control session.
    pub drops: ControlDrops,
    /// Whether there is a control session.
    pub session_up: bool,
    /// The time since the last handshake of the control session, also if that has ended.
    pub control_handshake_ago: Option<Duration>,
    /// The time since the last authenticated packet, control or data.
    pub last_received_ago: Option<Duration>,
    /// The agreed interval, or ours before there is an agreement.
    pub rekey_interval: Duration,
    /// The agreed number of lanes, or ours before there is an agreement.
    pub lanes: u8,
    /// The lanes on which the peer receives nothing.
    pub peer_rx_silent: LaneSet,
    /// All lanes of this site.
    pub lane_views: Vec<LaneView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dashboards and alerts match these names.
    #[test]
    fn names_of_states_and_failures_are_the_published_ones() {
        let states = [
            PeerState::Connecting,
            PeerState::Up,
            PeerState::Degraded,
            PeerState::Silent,
            PeerState::Blocked,
        ];
        assert_eq!(states.map(PeerState::name), ["connecting", "up", "degraded", "silent", "blocked"]);
        let reasons = [
            FailureReason::Timeout,
            FailureReason::Rejected,
            FailureReason::Confirmation,
            FailureReason::Restarted,
            FailureReason::NoQkdKey,
            FailureReason::Crypto,
        ];
        let names = ["timeout", "rejected", "confirmation", "restarted", "no_qkd_key", "crypto"];
        assert_eq!(reasons.map(FailureReason::name), names);
    }
}
