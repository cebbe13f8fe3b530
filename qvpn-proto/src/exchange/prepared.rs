//! An epoch that has keys and is not in force yet. Each role has at most one.

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, Time};

use crate::epoch::ActiveEpoch;
use crate::key_schedule::Chain;
use crate::wire::LaneSet;

/// An epoch whose opening keys the lanes are installing or have installed.
pub struct PreparedEpoch {
    /// The epoch that comes into force.
    pub epoch: ActiveEpoch,
    /// Lanes that have not installed the opening key yet.
    pub awaited: LaneSet,
    /// Our receiver index in each lane.
    pub indices: Vec<u32>,
    /// The peer's receiver index and our sealing key, for each lane.
    pub sealing: Vec<(u32, Secret<32>)>,
    /// The chain for the next epoch.
    pub chain: Chain,
    /// When this side sent or received the first `Propose`.
    pub began: Time,
    /// Whether a policy became stricter in the meantime; the epoch then never comes into force.
    pub ended: bool,
}

impl PreparedEpoch {
    /// Records that a lane installed the opening key. Returns whether it was the last lane of this epoch.
    pub fn on_installed(&mut self, lane: u8, epoch: LocalEpoch) -> bool {
        self.epoch.local_epoch == epoch && self.awaited.remove(lane) && self.awaited.is_empty()
    }

    /// Whether all lanes can open packets of this epoch.
    pub fn is_installed(&self) -> bool {
        self.awaited.is_empty()
    }
}
