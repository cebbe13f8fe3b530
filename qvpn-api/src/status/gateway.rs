//! Which gateway of a pair carries the traffic.

use serde::{Deserialize, Serialize};

/// One gateway, which may be one of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// `active`; `standby`; or `waiting`, if it will be active once the limit on takeovers permits it.
    pub state: String,
    /// How often it left standby since the daemon's start.
    pub takeovers: u64,
    /// While `waiting`: the seconds until it is active.
    pub active_in_s: Option<f64>,
}
