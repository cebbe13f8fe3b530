//! The settings and states of a peer that the protocol, the config and the status share.

/// The policy for epochs without a QKD key, from the laxest to the strictest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QkdPolicy {
    /// Epochs use ML-KEM and X25519 only.
    Off = 0,
    /// An epoch may do without a QKD key once the stock is empty and two intervals have passed; the state is
    /// then `degraded`.
    Preferred = 1,
    /// Each epoch needs a QKD key; without one, traffic stops.
    Required = 2,
}

impl QkdPolicy {
    /// Returns the name in the config and in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Preferred => "preferred",
            Self::Required => "required",
        }
    }

    /// Returns the policy with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Off, Self::Preferred, Self::Required].into_iter().find(|policy| policy.name() == name)
    }
}

/// Which side proposes epochs. The initiator is the master SAE of ETSI GS QKD 014.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Proposes epochs; is the master SAE.
    Initiator = 0,
    /// Answers proposals; is the slave SAE.
    Responder = 1,
}

impl Role {
    /// Returns the name in the config and in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        }
    }
}

/// Whether a lane carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneState {
    /// Packets pass in both directions.
    Up,
    /// Packets do not pass in one direction or in both: a firewall probably blocks the lane's UDP port.
    Silent,
}

impl LaneState {
    /// Returns the name in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Silent => "silent",
        }
    }
}
