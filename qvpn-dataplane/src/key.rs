//! Keys for lanes, with their peer, epoch, suite and limits. The limits travel with the key, so that a lane
//! never uses a key beyond them, even if the control task hangs.

use std::fmt;

use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, PeerNumber, Suite, Time};

/// A key that seals packets to a peer in one lane, consumed by
/// [`Lanes::install_sealing`](crate::Lanes::install_sealing).
pub struct SealingKey {
    /// The peer that opens what this key seals.
    pub peer: PeerNumber,
    /// It must be higher than every earlier epoch of a sealing key of this lane and peer.
    pub epoch: LocalEpoch,
    /// The receiver index that the peer gave for this lane, top bit set.
    pub receiver_index: u32,
    pub suite: Suite,
    pub key: Secret<32>,
    /// The key seals nothing from this instant on.
    pub expires_at: Time,
    /// How many packets it may seal, at most [`MAX_PACKETS`](qvpn_types::MAX_PACKETS); a larger limit is
    /// reduced to it.
    pub packets: u64,
}

/// A key that opens packets of a peer in one lane, consumed by
/// [`Lanes::install_opening`](crate::Lanes::install_opening).
pub struct OpeningKey {
    /// The peer that seals with this key.
    pub peer: PeerNumber,
    /// It must be higher than every earlier epoch of an opening key of this lane and peer.
    pub epoch: LocalEpoch,
    /// The receiver index that we gave the peer for this lane: top bit set, not in use by another key.
    pub index: u32,
    pub suite: Suite,
    pub key: Secret<32>,
    /// The key opens nothing from this instant on.
    pub expires_at: Time,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey")
            .field("peer", &self.peer)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningKey")
            .field("peer", &self.peer)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
