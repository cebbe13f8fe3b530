//! An epoch whose keys are made and which is not in force yet. Both roles have at most one.

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, Time};

use crate::epoch::ActiveEpoch;
use crate::key_schedule::Chain;
use crate::wire::LaneSet;

/// Its opening keys are on their way into the lanes or there.
pub struct PreparedEpoch {
    /// What it becomes in force.
    pub epoch: ActiveEpoch,
    /// Lanes that have not installed the opening key yet.
    pub awaited: LaneSet,
    /// Our receiver index in each lane.
    pub indices: Vec<u32>,
    /// The peer's receiver index and our sealing key, for each lane.
    pub sealing: Vec<(u32, Secret<32>)>,
    /// For the next epoch.
    pub chain: Chain,
    /// When this side sent or got the first `Propose`.
    pub began: Time,
    /// A policy became stricter meanwhile: the epoch never comes into force.
    pub ended: bool,
}

impl PreparedEpoch {
    /// A lane installed the opening key of an epoch. Returns whether it was the last lane of this epoch.
    pub fn on_installed(&mut self, lane: u8, epoch: LocalEpoch) -> bool {
        self.epoch.local_epoch == epoch && self.awaited.remove(lane) && self.awaited.is_empty()
    }

    /// Whether all lanes can open packets of this epoch.
    pub fn is_installed(&self) -> bool {
        self.awaited.is_empty()
    }
}
