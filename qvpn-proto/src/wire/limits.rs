//! All limits of the control messages in one place. A peer that exceeds one gets its message dropped, never
//! memory.

/// Largest control message, in bytes, before it is cut into fragments.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Largest IPv6 packet that the control session carries: 1,280 bytes less outer IPv6, UDP and WireGuard's 32.
pub const MAX_LINK_PACKET: usize = 1200;
/// Largest packet that the control session carries: a padded `Ping` that probes the path, see
/// [`path_mtu`](crate::path_mtu). With the session's own bytes it is as large as a data packet with an inner
/// packet of this size.
pub const MAX_PROBE: usize = 1420;
/// Fixed IPv6 header before each fragment (RFC 8200 section 3).
pub const IPV6_HEADER: usize = 40;
/// Our own header of a fragment, see [`fragment`](super::fragment).
pub const FRAGMENT_HEADER: usize = 14;
/// Payload bytes of each fragment but the last.
pub const FRAGMENT_PAYLOAD: usize = MAX_LINK_PACKET - IPV6_HEADER - FRAGMENT_HEADER;
/// Fragments of the largest message.
pub const MAX_FRAGMENTS: usize = MAX_MESSAGE.div_ceil(FRAGMENT_PAYLOAD);
/// Longest key ID, SAE ID or KME name, in bytes: its length travels in one byte.
pub const MAX_NAME: usize = 255;
/// Most QKD keys in one `StockOffer`; those with long names are bounded by [`MAX_MESSAGE`], see
/// [`offer_cost`](super::offer_cost).
pub const MAX_OFFER: usize = 100;
/// Bytes of a `StockOffer` or a `StockAck` before the first key.
pub const STOCK_HEADER: usize = 17;
/// Most lanes.
pub const MAX_LANES: usize = 16;
/// Peers of one daemon: their number takes 15 bits of each receiver index.
pub const MAX_PEERS: u16 = 1 << 15;
/// Shortest QKD key, in bytes (256 bits).
pub const MIN_QKD_KEY: usize = 32;

const _: () = assert!(MAX_FRAGMENTS <= 255);
