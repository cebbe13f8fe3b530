//! Segments super-packets of the kernel as the kernel itself would (`tcp_gso_segment`, `__udp_gso_segment`):
//! lengths, IPv4 identification, sequence numbers, flags and checksums. In a packet that is not to be
//! segmented, it completes the partial checksum.

use super::vnet::{self, Vnet};
use crate::checksum::{Sum, addresses_and_protocol};

/// A header that doesn't fit its packet; the packet is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Offsets of the checksum in the TCP and UDP headers.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// How to segment a large packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    v6: bool,
    tcp: bool,
    /// Offset of the TCP or UDP header.
    l4: usize,
    /// Length of all headers in bytes; they are repeated in each segment.
    pub(crate) header: usize,
    /// Bytes of payload in each segment except the last.
    size: usize,
    /// Bytes of payload in the whole packet.
    payload: usize,
    /// The sum of the pseudo-header without its length.
    pseudo: Sum,
}

/// Plans the segments of a packet from the TUN device. Returns `None` if it is one packet, ready to be sent:
/// a partial checksum was completed in place.
pub(crate) fn plan(header: Vnet, packet: &mut [u8]) -> Result<Option<Split>, Malformed> {
    let version = packet.first().ok_or(Malformed)? >> 4;
    let least = match version {
        4 => 20,
        6 => 40,
        _ => return Err(Malformed),
    };
    if packet.len() < least {
        return Err(Malformed);
    }
    let v6 = version == 6;
    let l4 = usize::from(header.csum_start);
    let tcp = match header.gso_type & !vnet::GSO_ECN {
        vnet::GSO_NONE => {
            if header.flags & vnet::NEEDS_CSUM != 0 {
                complete(packet, l4, header.csum_offset.into(), least)?;
            }
            return Ok(None);
        }
        vnet::GSO_TCPV4 if !v6 => true,
        vnet::GSO_TCPV6 if v6 => true,
        vnet::GSO_UDP_L4 => false,
        _ => return Err(Malformed),
    };
    let size = usize::from(header.gso_size);
    if size == 0 || l4 < least {
        return Err(Malformed);
    }
    let l4_header = if tcp { usize::from(packet.get(l4 + 12).ok_or(Malformed)? >> 4) * 4 } else { 8 };
    let whole = l4 + l4_header;
    if (tcp && l4_header < 20) || packet.len() < whole || packet.len() > 65_535 + least {
        return Err(Malformed);
    }
    // An IPv6 extension header may change the addresses of the pseudo-header: a routing header names the
    // final destination. The checksum field holds the right sum, which the kernel computed with the length
    // of the whole packet.
    let pseudo = if v6 && l4 > least {
        if header.flags & vnet::NEEDS_CSUM == 0 {
            return Err(Malformed);
        }
        let at = l4 + if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        Sum::default().bytes(&packet[at..at + 2]).word(!low(packet.len() - l4))
    } else {
        addresses_and_protocol(packet, v6, if tcp { TCP } else { UDP })
    };
    Ok(Some(Split { v6, tcp, l4, header: whole, size, payload: packet.len() - whole, pseudo }))
}

/// Completes the checksum of a packet whose checksum field holds the sum of the pseudo-header.
fn complete(packet: &mut [u8], start: usize, offset: usize, least: usize) -> Result<(), Malformed> {
    let at = start + offset;
    if start < least || at + 2 > packet.len() {
        return Err(Malformed);
    }
    let sum = Sum::default().bytes(&packet[start..]);
    // In TCP, a checksum of 0 has no special meaning.
    let checksum = if offset == UDP_CHECKSUM { sum.udp_checksum() } else { sum.checksum() };
    packet[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}

impl Split {
    /// Returns the number of segments; a packet without payload is one.
    pub(crate) fn count(&self) -> usize {
        self.payload.div_ceil(self.size).max(1)
    }

    /// Returns the length of a segment in bytes.
    pub(crate) fn len(&self, segment: usize) -> usize {
        self.header + self.size.min(self.payload.saturating_sub(segment * self.size))
    }

    /// Writes a segment of `packet` into `out`, which has exactly [`len`](Self::len) bytes.
    pub(crate) fn write(&self, packet: &[u8], segment: usize, out: &mut [u8]) {
        let from = self.header + segment * self.size;
        let payload = out.len() - self.header;
        out[..self.header].copy_from_slice(&packet[..self.header]);
        out[self.header..].copy_from_slice(&packet[from..from + payload]);
        self.finish(segment, out);
    }

    /// Adjusts the headers of a segment whose bytes are already copied.
    pub(crate) fn finish(&self, segment: usize, out: &mut [u8]) {
        let len = out.len();
        if self.v6 {
            out[4..6].copy_from_slice(&short(len - 40));
        } else {
            let header = usize::from(out[0] & 15) * 4;
            out[2..4].copy_from_slice(&short(len));
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(low(segment));
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[10..12].fill(0);
            let header = header.clamp(20, self.l4);
            let checksum = Sum::default().bytes(&out[..header]).checksum();
            out[10..12].copy_from_slice(&checksum);
        }
        let l4 = &mut out[self.l4..];
        let pseudo = self.pseudo.word(low(l4.len()));
        if self.tcp {
            let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            let sequence = sequence.wrapping_add(u32::try_from(segment * self.size).unwrap_or(0));
            l4[4..8].copy_from_slice(&sequence.to_be_bytes());
            if segment > 0 {
                l4[13] &= !CWR;
            }
            if segment + 1 < self.count() {
                l4[13] &= !(FIN | PSH);
            }
            l4[16..18].fill(0);
            let checksum = pseudo.bytes(l4).checksum();
            l4[16..18].copy_from_slice(&checksum);
        } else {
            let length = short(l4.len());
            l4[4..6].copy_from_slice(&length);
            l4[6..8].fill(0);
            let checksum = pseudo.bytes(l4).udp_checksum();
            l4[6..8].copy_from_slice(&checksum);
        }
    }
}

/// Returns a length as a header field. No packet here is longer than 65,575 bytes; a longer one would only
/// carry a wrong length.
fn short(len: usize) -> [u8; 2] {
    low(len).to_be_bytes()
}

fn low(number: usize) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or(0)
}
