//! Why packets are dropped.

/// Why a peer's packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerDrop {
    /// No epoch has a valid key to send it: fail closed.
    NoEpoch,
    /// The key's age or packet limit was reached.
    Expired,
    /// Its counter was seen before or is too old.
    Replay,
    /// The AEAD rejected it.
    Auth,
    /// Its inner source is not in the peer's allowed IPs; or, under `routes = "kernel"`, its destination is
    /// not.
    NotAllowedIp,
    /// It was larger than the path MTU, under `routes = "kernel"`; the sender got an ICMP error.
    TooBig,
    /// The control session rejected it: it was not from the peer's key, late, or a repetition. A few are
    /// normal.
    Control,
    /// It arrived in the control session and exceeds what one peer may send in a second.
    Limited,
    /// It arrived in the control session and is not a valid message.
    Malformed,
    /// A message that was answered with `Reject`, or a wrong confirmation.
    Refused,
    /// A queue was full.
    QueueFull,
}

impl PeerDrop {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::NoEpoch,
        Self::Expired,
        Self::Replay,
        Self::Auth,
        Self::NotAllowedIp,
        Self::TooBig,
        Self::Control,
        Self::Limited,
        Self::Malformed,
        Self::Refused,
        Self::QueueFull,
    ];

    /// The fixed name, a key of [`PeerStatus::drops`](super::PeerStatus::drops).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEpoch => "no_epoch",
            Self::Expired => "expired",
            Self::Replay => "replay",
            Self::Auth => "auth",
            Self::NotAllowedIp => "not_allowed_ip",
            Self::TooBig => "too_big",
            Self::Control => "control",
            Self::Limited => "limited",
            Self::Malformed => "malformed",
            Self::Refused => "refused",
            Self::QueueFull => "queue_full",
        }
    }
}

/// Why a packet was dropped that could not be assigned to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterfaceDrop {
    /// No peer's allowed IPs contain the destination, no route of the kernel leads to a peer, or the key of
    /// a handshake initiation belongs to no peer.
    NoPeer,
    /// Not a packet of the protocol.
    Malformed,
    /// A receiver index that we didn't assign.
    UnknownIndex,
    /// A handshake message without a valid cookie while we are under load; some are answered with a cookie
    /// reply.
    Cookie,
    /// A queue was full.
    QueueFull,
}

impl InterfaceDrop {
    /// All reasons.
    pub const ALL: [Self; 5] =
        [Self::NoPeer, Self::Malformed, Self::UnknownIndex, Self::Cookie, Self::QueueFull];

    /// The fixed name, a key of [`InterfaceStatus::drops`](super::InterfaceStatus::drops).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPeer => "no_peer",
            Self::Malformed => "malformed",
            Self::UnknownIndex => "unknown_index",
            Self::Cookie => "cookie",
            Self::QueueFull => "queue_full",
        }
    }
}
