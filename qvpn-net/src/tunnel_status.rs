//! The state of one tunnel's block, and what happened to it.

use ipnet::IpNet;

use crate::changes::Changes;
use crate::error::NetError;

/// Whether a layer protects a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// It is in force.
    InForce,
    /// It should be in force and is not.
    Missing,
    /// The config asks for no such layer.
    Off,
}

impl LayerState {
    /// Returns the word in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Missing => "missing",
            Self::Off => "off",
        }
    }
}

/// The current state of one tunnel's block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The route layer.
    pub routes: LayerState,
    /// The filter layer.
    pub filter: LayerState,
    /// Prefixes whose packets leave this host only through the tunnel.
    pub protected: Vec<IpNet>,
    /// This site's own networks inside protected prefixes, each with its device.
    pub local: Vec<(IpNet, String)>,
    /// Packets that the filter dropped, if it can be read.
    pub dropped: Option<u64>,
    /// Why there is no filter, if this machine has none.
    pub without_filter: Option<String>,
}

/// What another program did to the block of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The tunnel's interface.
    pub interface: String,
    /// What was done, in the format of `ip route` or `nft`.
    pub what: String,
    /// The effect.
    pub effect: String,
}

/// What happened since the last call of [`Guard::changed`](crate::Guard::changed).
#[derive(Debug, Default)]
pub struct Restored {
    /// What was restored.
    pub changes: Changes,
    /// What other programs did.
    pub challenges: Vec<Challenge>,
    /// What could not be restored; it is tried again.
    pub errors: Vec<NetError>,
}
