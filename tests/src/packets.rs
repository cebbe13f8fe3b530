//! How the tests recognise packets.

/// Each datagram of a stream begins with this, so that a capture shows whether one passed in clear.
pub const PAYLOAD_TAG: &[u8; 16] = b"qvpn lab payload";

/// Whether a datagram is a data packet of the tunnel: type 4 with an index whose top bit is set.
#[must_use]
pub fn is_data(datagram: &[u8]) -> bool {
    datagram.starts_with(&[4, 0, 0, 0]) && datagram.get(7).is_some_and(|b| b & 0x80 != 0)
}
