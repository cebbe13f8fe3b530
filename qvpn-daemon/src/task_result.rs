//! What background tasks send to the task that owns the peers.

use std::io;
use std::net::SocketAddr;

use qvpn_proto::KmsReport;
use qvpn_types::SaeId;

/// Identifies a peer between a request and its result. A number is used again after a peer is removed; a
/// serial number never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerKey {
    pub(crate) number: u16,
    pub(crate) serial: u64,
}

pub(crate) enum TaskResult {
    Peer {
        to: PeerKey,
        result: PeerTaskResult,
    },
    /// A KME that had failed answers again: for all peers that use it, or for those with this SAE.
    KmeRecovered {
        kme: String,
        sae: Option<SaeId>,
    },
}

/// The result of a task that a peer asked for.
pub(crate) enum PeerTaskResult {
    Kms(KmsReport),
    /// The addresses of a host name.
    Resolved(io::Result<Vec<SocketAddr>>),
}
