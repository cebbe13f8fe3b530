//! The positions of values that are checked again after parsing.

use super::error::Position;
use super::source_map::SourceMap;

#[derive(Debug, Clone, Default)]
pub(super) struct ValuePositions {
    /// The included files.
    pub(super) files: SourceMap,
    pub(super) name: Position,
    pub(super) private_key_file: Position,
    pub(super) listen_port: Position,
    pub(super) metrics_listen: Position,
    /// The position of `local`, or of `[interface]` if it is absent.
    pub(super) local: Position,
    pub(super) local_written: bool,
    pub(super) kmes: Vec<KmePositions>,
    pub(super) peers: Vec<PeerPositions>,
    /// One position for each name of `[access]`, in the order of its keys.
    pub(super) access: Vec<Position>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct KmePositions {
    pub(super) url: Position,
    pub(super) ca_file: Position,
    pub(super) cert_file: Position,
    pub(super) key_file: Position,
    pub(super) keys_file: Position,
}

#[derive(Debug, Clone, Default)]
pub(super) struct PeerPositions {
    /// One for each public key.
    pub(super) public_keys: Vec<Position>,
    pub(super) endpoint: Position,
    pub(super) preshared_key_file: Position,
    /// One position for each prefix.
    pub(super) allowed_ips: Vec<Position>,
}
