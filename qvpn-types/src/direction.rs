//! The two directions of a tunnel.

/// The direction of a data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The key seals packets to the peer.
    Sealing,
    /// The key opens packets from the peer.
    Opening,
}
