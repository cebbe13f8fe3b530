//! What goes in and out of a [`Peer`](crate::Peer): orders to the lanes, requests to the KMS, notices for people, and
//! the reports that come back. Keys move through these types and are never copied.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_secret::{Secret, SecretBuf};

use crate::config::Suite;
use crate::time::Time;
use crate::wire::{RejectReason, RekeyReason};

/// What a peer wants done.
pub enum Event {
    /// An order to one lane's data path.
    Lane(u8, LaneOrder),
    /// QKD keys to fetch. At most one request is open at a time; it is answered by [`KmsReport`].
    Fetch(Fetch),
    /// Each lane sends there from now on, lane *i* at the port plus *i*, until data come from elsewhere: where the other end was it is
    /// no more, and it was called where the config says.
    LanesTo(SocketAddr),
    /// Something that people should see: a line in the journal, an event, a count.
    Notice(Notice),
}

/// An order to a lane. Orders of one peer must reach a lane in the order in which they came.
pub enum LaneOrder {
    /// Open packets that carry `index`. To be answered by [`LaneReport::Installed`] once in force.
    InstallOpening {
        /// Comes back in the report.
        token: u64,
        /// Counts this end's epochs with the peer; a later epoch has a larger one, also after the other end's restart.
        generation: u64,
        /// Receiver index of the packets, top bit set.
        index: u32,
        /// The AEAD.
        suite: Suite,
        /// The key for the other end's direction on this lane.
        key: Secret<32>,
        /// When the key must be erased.
        expires_at: Time,
    },
    /// Seal with this key from now on, and never again with an earlier one.
    InstallSealing {
        /// Comes back in the report.
        token: u64,
        /// As for the opening key.
        generation: u64,
        /// Receiver index that the other end chose.
        receiver_index: u32,
        /// The AEAD.
        suite: Suite,
        /// The key for our direction on this lane.
        key: Secret<32>,
        /// When sealing must end and the key be erased.
        expires_at: Time,
        /// At most so many packets.
        packets: u64,
    },
    /// Send one empty packet in the newest epoch.
    SendEmpty,
    /// Erase the sealing key: nothing may be sent until another is installed.
    StopSealing,
    /// Erase opening keys of generations before `generation` no later than `at`.
    CloseOlder {
        /// The first generation that stays.
        generation: u64,
        /// End of the drain.
        at: Time,
    },
    /// Erase the opening key of this index now: its attempt failed.
    Close {
        /// The receiver index that goes.
        index: u32,
    },
}

/// What a lane says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneReport {
    /// An install order is in force.
    Installed {
        /// The lane.
        lane: u8,
        /// From the order.
        token: u64,
    },
    /// The first packet of the other end opened in this epoch, on this lane.
    FirstOpened {
        /// The lane.
        lane: u8,
        /// From the order that installed the key.
        generation: u64,
    },
    /// When packets last went out and authenticated ones last came in on any lane; reported about twice a second while
    /// it changes.
    Activity {
        /// The newest packet that was sealed.
        sent_at: Option<Time>,
        /// The newest packet that opened.
        received_at: Option<Time>,
    },
    /// A lane stopped sealing because the key reached its packet limit or its age.
    SealingEnded {
        /// The lane.
        lane: u8,
        /// The epoch that ended.
        generation: u64,
    },
}

/// A request for QKD keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// As master SAE: `enc_keys` for the peer's SAE ID, ETSI GS QKD 014 section 5.2.
    New {
        /// Comes back in the report.
        request: u64,
        /// How many keys.
        number: usize,
        /// A source that is no QKD must not be asked: its keys would be refused.
        qkd_only: bool,
        /// Links, by their source and target KME, whose keys the other end can't get now: the last to be asked.
        stuck: Vec<(String, String)>,
    },
    /// As slave SAE: `dec_keys` with the peer's SAE ID as master, ETSI GS QKD 014 section 5.3.
    ById {
        /// Comes back in the report.
        request: u64,
        /// The keys, oldest first.
        keys: Vec<KeyName>,
        /// As with [`New`](Self::New).
        qkd_only: bool,
    },
}

/// Where a key comes from. Each end goes by its own source, whatever the other end says of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A QKD network.
    Qkd,
    /// A file: never called QKD, and never enough where QKD is required.
    File,
}

/// The name of a QKD key: its ID, and the two KMEs of the link that made it. Names are public.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    /// The key ID, opaque and echoed exactly; 1 to 255 bytes.
    pub id: String,
    /// The KME that issued it, as its status says; may be empty where it doesn't.
    pub source_kme: String,
    /// The KME at the other end.
    pub target_kme: String,
}

/// A key on its way into the stock.
pub struct FetchedKey {
    /// What it is called.
    pub name: KeyName,
    /// Where it comes from.
    pub kind: KeyKind,
    /// The key, at least 256 bits.
    pub secret: SecretBuf,
}

/// The answer to a [`Fetch`].
pub enum KmsReport {
    /// Keys arrived; for [`Fetch::ById`] perhaps not all, and `missing` says why.
    Keys {
        /// From the request.
        request: u64,
        /// The keys, in the order in which they are to be used.
        keys: Vec<FetchedKey>,
        /// What went wrong with the rest, in words for the operator, without key material.
        missing: Option<KmsTrouble>,
    },
    /// No key arrived.
    Failed {
        /// From the request.
        request: u64,
        /// What went wrong.
        trouble: KmsTrouble,
    },
}

/// Why keys are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsTrouble {
    /// What it means for the keys that were asked for.
    pub kind: TroubleKind,
    /// The client's error in words: which KME, what was asked, what to do.
    pub text: String,
}

/// What a KMS failure means for the keys that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// The KME does not know the key, or not yet: a slave KME may lag.
    NotFound,
    /// No KME could be asked, or none has keys: try again later.
    Unavailable,
}

/// What people should see. The daemon turns notices into log lines, events and counts.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
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
    /// The largest inner packet that the path to the peer takes in one piece, in bytes, is another one.
    PathMtu {
        /// From [`LEAST`](crate::path_mtu::LEAST) to [`MOST`](crate::path_mtu::MOST).
        mtu: u16,
    },
    /// The peer said that it stops.
    Bye,
    /// The chain of earlier epochs was lost; the next epoch starts one.
    ChainReset,
    /// An epoch came into force at this end.
    EpochActive {
        /// Its number on the wire.
        epoch: u64,
        /// What its key is made of.
        sources: Sources,
        /// The QKD key that it used.
        qkd_key_id: Option<String>,
        /// From the first `Propose` that this end sent or got.
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
        epoch: u64,
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
    /// The peer's ML-KEM key is not the one that our config names, or ours is not the one that its config names.
    IdentityMismatch {
        /// In words.
        detail: String,
    },
    /// The other end's handshakes are refused since they carry a time before that of an earlier one; this end started a
    /// handshake instead.
    ClockSetBack {
        /// In words, and what to do.
        detail: String,
    },
    /// The other end refused us, or we refused it.
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
    /// The other end refused; the reason is in the notice.
    Rejected,
    /// The other end's confirmation was wrong four times.
    Confirmation,
    /// The other end restarted.
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

/// What an epoch's key is made of; ML-KEM and X25519 always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sources {
    /// A QKD key.
    pub qkd: bool,
    /// A key from a file, which is no QKD key.
    pub file: bool,
    /// The pre-shared key.
    pub psk: bool,
    /// The chain of the epoch before.
    pub chain: bool,
}

impl Sources {
    /// The names, in the order in which people read them.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (self.qkd, "qkd"),
            (self.file, "file"),
            (true, "mlkem"),
            (true, "x25519"),
            (self.psk, "psk"),
            (self.chain, "chain"),
        ];
        all.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect()
    }
}

/// A datagram for the peer, to be sent from lane 0's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// UDP payload, at most 1,232 bytes; a larger one is a probe of the path, to be sent with "don't fragment".
    pub datagram: Vec<u8>,
}

/// Whether packets can be sent to a peer; the names are those of `show`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// There was no epoch since the start yet.
    Connecting,
    /// An epoch that meets the policy in full is active.
    Up,
    /// An epoch without QKD is active, though the policy prefers it.
    Degraded,
    /// No valid key: nothing is sent.
    Blocked,
}

impl State {
    /// The name in `show`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Blocked => "blocked",
        }
    }
}

/// What came for the control session of a peer and was dropped, since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ControlDrops {
    /// Datagrams that the session dropped: not made by the peer's key, late, or come before.
    pub control: u64,
    /// In the session, but no message.
    pub malformed: u64,
    /// Messages that were answered by a `Reject`, and confirmations that prove nothing.
    pub refused: u64,
}

/// What `show` tells of a peer. Spans are relative to the moment of asking; `None` is unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// Whether packets can be sent.
    pub state: State,
    /// Why, in words, and what to do; `None` while all is well.
    pub reason: Option<String>,
    /// Our role.
    pub role: crate::config::Role,
    /// Our policy.
    pub policy: crate::config::QkdPolicy,
    /// Where the control session's datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// The active epoch's number on the wire.
    pub epoch: Option<u64>,
    /// Since it came into force.
    pub epoch_age: Option<Duration>,
    /// Until its sealing ends.
    pub epoch_expires_in: Option<Duration>,
    /// Until the next attempt is due; `None` at the responder without an epoch.
    pub next_rekey_in: Option<Duration>,
    /// What the active epoch's key is made of.
    pub sources: Option<Sources>,
    /// The QKD key of the active epoch.
    pub qkd_key_id: Option<String>,
    /// Since a QKD key last went into an epoch.
    pub qkd_key_age: Option<Duration>,
    /// QKD keys that this end holds and, at the initiator, the other end acknowledged; `None` where QKD is off.
    pub qkd_stock: Option<usize>,
    /// Keys from a file that are held likewise; `None` where QKD is off.
    pub file_stock: Option<usize>,
    /// How long the QKD keys last at the agreed interval and the supply seen lately; while that keeps up, how long they would last
    /// without.
    pub qkd_stock_lasts: Option<Duration>,
    /// Epochs that came into force since the start.
    pub rekeys: u64,
    /// Failed attempts by reason.
    pub rekey_failures: Vec<(FailureReason, u64)>,
    /// What came for the control session and was dropped.
    pub drops: ControlDrops,
    /// Since the last handshake of the control session.
    pub control_handshake_ago: Option<Duration>,
    /// The agreed interval, or ours before it is agreed.
    pub rekey_interval: Duration,
    /// The agreed number of lanes, or ours before it is agreed.
    pub lanes: u8,
    /// The lanes on which the other end hears nothing of ours.
    pub unheard_there: crate::wire::Lanes,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dashboards and alerts look for these.
    #[test]
    fn names_of_states_and_failures_are_the_published_ones() {
        let states = [State::Connecting, State::Up, State::Degraded, State::Blocked];
        assert_eq!(states.map(State::name), ["connecting", "up", "degraded", "blocked"]);
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
