//! What a key brings with it into a lane: whose it is, its epoch, its suite and its limits. The limits travel with the
//! key, so that a control task that hangs can't make a lane use one for too long.

use qvpn_secret::Secret;

use crate::clock::BootNanos;

/// The most peers that one set of lanes takes.
pub const MAX_PEERS: u32 = 65_536;

/// The most packets that any key seals, whatever its owner allows.
pub const MAX_PACKETS: u64 = 1 << 32;

/// A peer, by a number that the daemon gives it: small (below [`MAX_PEERS`]), since lanes use it as an index. It may be
/// given to another peer after [`RemovePeer`](crate::LaneCommand::RemovePeer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The AEAD of a data key; both ends are configured with the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439), the default.
    ChaCha20Poly1305 = 0,
    /// AES-256-GCM (NIST SP 800-38D), for machines with VAES and for CNSA 2.0.
    Aes256Gcm = 1,
    /// No protection at all: what the data path would do if ciphers cost nothing. Only the benchmarks have it.
    #[cfg(feature = "bench-null-cipher")]
    Null = 255,
}

/// A key that seals packets to a peer in one lane, consumed by [`InstallSealing`](crate::LaneCommand::InstallSealing).
pub struct SealingKey {
    /// The peer that opens what this key seals.
    pub peer: PeerId,
    /// The epoch; it must be higher than every epoch that this lane was given for this peer before.
    pub epoch: u64,
    /// The receiver index that the peer gave for this lane, top bit set.
    pub receiver_index: u32,
    /// The AEAD.
    pub suite: Suite,
    /// The key itself.
    pub key: Secret<32>,
    /// The instant from which on it seals nothing any more.
    pub expires_at: BootNanos,
    /// How many packets it may seal; [`MAX_PACKETS`] is the most, whatever this says.
    pub packets: u64,
}

/// A key that opens packets of a peer in one lane, consumed by [`InstallOpening`](crate::LaneCommand::InstallOpening).
pub struct OpeningKey {
    /// The peer that seals with this key.
    pub peer: PeerId,
    /// The epoch; it must be higher than every epoch that this lane was given for this peer before.
    pub epoch: u64,
    /// The receiver index that we gave the peer for this lane: top bit set, not in use by another key.
    pub index: u32,
    /// The AEAD.
    pub suite: Suite,
    /// The key itself.
    pub key: Secret<32>,
    /// The instant from which on it opens nothing any more.
    pub expires_at: BootNanos,
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKey")
            .field("peer", &self.peer)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpeningKey")
            .field("peer", &self.peer)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
