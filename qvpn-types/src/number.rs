//! Number types that must not be confused with each other.

use std::fmt;

/// The number of an epoch on the wire. It starts again with each instance of the initiator, so it orders
/// only the epochs of one instance: a lane that ordered keys by it would accept an old key after the peer
/// restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EpochNumber(pub u64);

/// The number of an epoch at this gateway; it orders keys in lanes. It never decreases while the daemon
/// runs, even if the peer restarts, and is never sent over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LocalEpoch(pub u64);

impl LocalEpoch {
    /// Returns the epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The maximum number of packets that one key may seal.
pub const MAX_PACKETS: u64 = 1 << 32;

/// The number of a peer of this daemon. It is small and dense, because lanes use it as an index and receiver
/// indices contain it. It may be reused once its peer is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PeerNumber(pub u16);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_number!(EpochNumber, LocalEpoch, PeerNumber);
