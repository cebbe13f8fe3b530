//! The virtio header before each packet of a TUN device with offloads (`struct virtio_net_hdr`, legacy form
//! of 10 bytes in the machine's byte order; virtio 1.2, section 5.1.6).

/// The checksum at `csum_start + csum_offset` covers only the pseudo-header, and must be completed.
pub(crate) const NEEDS_CSUM: u8 = 1;
/// One packet, not to be segmented.
pub(crate) const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be segmented.
pub(crate) const GSO_TCPV4: u8 = 1;
/// TCP over IPv6, to be segmented.
pub(crate) const GSO_TCPV6: u8 = 4;
/// UDP datagrams of equal size; the last one may be shorter.
pub(crate) const GSO_UDP_L4: u8 = 5;
/// Flag on the TCP types: CWR is set on the first segment only.
pub(crate) const GSO_ECN: u8 = 0x80;

/// The header's fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vnet {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    /// Length of all headers in bytes; a hint.
    pub(crate) hdr_len: u16,
    /// Bytes of payload in each segment.
    pub(crate) gso_size: u16,
    /// Start of the checksummed part.
    pub(crate) csum_start: u16,
    /// Offset of the checksum in that part.
    pub(crate) csum_offset: u16,
}

impl Vnet {
    /// Length of the header in bytes.
    pub(crate) const LEN: usize = 10;

    pub(crate) fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    pub(crate) fn bytes(self) -> [u8; Self::LEN] {
        let ([h0, h1], [g0, g1]) = (self.hdr_len.to_ne_bytes(), self.gso_size.to_ne_bytes());
        let ([s0, s1], [o0, o1]) = (self.csum_start.to_ne_bytes(), self.csum_offset.to_ne_bytes());
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}
