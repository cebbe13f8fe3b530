//! Numbers that must not be mistaken for each other.

use std::fmt;

/// The number of an epoch on the wire. It starts again with each instance of the initiator, so it orders epochs of one
/// instance only: a lane that ordered keys by it would accept an old key after the peer restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EpochNumber(pub u64);

/// The number of an epoch at this gateway. It never falls while the daemon runs, also when the peer restarts, and it orders
/// keys in lanes. It never goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LocalEpoch(pub u64);

impl LocalEpoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A peer of this daemon: small and dense, since lanes use it as an index and receiver indices hold it. It may be given
/// to another peer once its peer is removed.
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
