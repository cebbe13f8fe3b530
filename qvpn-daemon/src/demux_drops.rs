//! What the demux counts.

/// Datagrams that a lane let pass and that belong to no peer.
#[derive(Default, Clone, Copy)]
pub(crate) struct DemuxDrops {
    /// For a control session that no peer has.
    pub(crate) unknown_index: u64,
    /// Handshake initiations with the key of no peer.
    pub(crate) no_peer: u64,
    pub(crate) malformed: u64,
    /// Handshake messages that got a cookie reply, under load.
    pub(crate) cookie: u64,
}
