//! All limits of the control messages. A message that exceeds one is dropped before it takes memory.

/// The maximum size of a control message in bytes, before it is cut into fragments.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// The maximum size of an IPv6 packet in the control session: 1,280 bytes less outer IPv6, UDP and
/// WireGuard's 32.
pub const MAX_LINK_PACKET: usize = 1200;
/// Largest packet that the control session carries: a padded `Ping` that probes the path, see
/// [`path_mtu`](crate::path_mtu). With the session's own bytes it is as large as a data packet with an inner
/// packet of this size.
pub const MAX_PROBE: usize = 1420;
/// The fixed IPv6 header before each fragment (RFC 8200 section 3), in bytes.
pub const IPV6_HEADER: usize = 40;
/// The header of a fragment in bytes, see [`fragment`](super::fragment).
pub const FRAGMENT_HEADER: usize = 14;
/// The payload of each fragment but the last, in bytes.
pub const FRAGMENT_PAYLOAD: usize = MAX_LINK_PACKET - IPV6_HEADER - FRAGMENT_HEADER;
/// The number of fragments of the largest message.
pub const MAX_FRAGMENTS: usize = MAX_MESSAGE.div_ceil(FRAGMENT_PAYLOAD);
/// The maximum length of an SAE ID or KME name in bytes: the length is one byte on the wire.
pub const MAX_NAME: usize = 255;
/// The maximum length of a key ID in bytes: the length is two bytes on the wire.
pub const MAX_KEY_ID: usize = qvpn_types::MAX_KEY_ID_BYTES;
/// The maximum number of QKD keys in one `StockOffer`. Keys with long names are bounded by [`MAX_MESSAGE`],
/// see [`offer_cost`](super::offer_cost).
pub const MAX_OFFER: usize = 100;
/// The bytes of a `StockOffer` or a `StockAck` before the first key.
pub const STOCK_HEADER: usize = 17;
pub const MAX_LANES: usize = 16;
/// The maximum number of peers of one daemon: a peer's number has 15 bits in each receiver index.
pub const MAX_PEERS: u16 = 1 << 15;
/// The minimum length of a QKD key in bytes (256 bits).
pub const MIN_QKD_KEY: usize = 32;

const _: () = assert!(MAX_FRAGMENTS <= 255);
