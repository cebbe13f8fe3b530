//! Coalesces packets of one flow into one write to the kernel, by the rules of the kernel's GRO
//! (`inet_gro_receive`, `tcp_gro_receive`, `udp_gro_receive`). There is only one open group, so packets keep
//! their order.
//!
//! A group needs no copy: the write consists of the first packet, with adjusted headers, and of the payloads
//! of the others in place.

use std::io::IoSlice;
use std::ops::Range;

use super::vnet::{self, Vnet};
use crate::checksum::addresses_and_protocol;

/// The largest number of packets in a group: the kernel segments no UDP packet into more
/// (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;
/// The largest size of a group in bytes: the IPv4 total length.
const MAX_PACKET_BYTES: usize = 65_535;

const TCP: u8 = 6;
const UDP: u8 = 17;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// The headers of a packet that may be joined.
#[derive(Debug, Clone, Copy)]
struct Shape {
    v6: bool,
    tcp: bool,
    l4: usize,
    /// Length of all headers in bytes.
    header: usize,
    /// Length of the payload in bytes, at least 1.
    payload: usize,
}

/// The sequence of IPv4 identifications in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    /// One packet so far, or IPv6.
    Unknown,
    /// It increases by one with each packet.
    Rising,
    /// It is the same in each packet, which "don't fragment" allows (RFC 6864).
    Fixed,
}

#[derive(Debug)]
struct Group {
    shape: Shape,
    id: Id,
    /// Length of the group as one packet, in bytes.
    len: usize,
    /// The FIN and PSH flags of the packets that joined.
    flags: u8,
}

/// The open group. Packets are ranges of one buffer, which the caller keeps until [`flush`](Self::flush).
#[derive(Debug)]
pub(crate) struct Coalescer {
    group: Option<Group>,
    /// The whole first packet, then the payloads of the others.
    pieces: Vec<Range<usize>>,
    /// Whether the kernel segments joined UDP datagrams (USO).
    udp: bool,
}

/// A function that writes: its arguments are a virtio header followed by the parts of a packet, and the
/// number of packets that they represent.
pub(crate) trait Write: FnMut(&[IoSlice<'_>], usize) {}
impl<F: FnMut(&[IoSlice<'_>], usize)> Write for F {}

impl Coalescer {
    pub(crate) fn new(udp: bool) -> Self {
        Self { group: None, pieces: Vec::with_capacity(MAX_SEGMENTS), udp }
    }

    /// Adds the packet at `at`, whose length must be the one in its IP header. It joins the open group if it
    /// fits. Otherwise that group is written, and the packet opens a new group or is written alone.
    pub(crate) fn push(&mut self, buffer: &mut [u8], at: Range<usize>, write: &mut impl Write) {
        let shape = shape(&buffer[at.clone()]).filter(|shape| shape.tcp || self.udp);
        if let Some(shape) = shape
            && let Some(closes) = self.join(buffer, &at, shape)
        {
            if closes {
                self.flush(buffer, write);
            }
            return;
        }
        self.flush(buffer, write);
        match shape {
            Some(shape) if !shape.tcp || flags(&buffer[at.clone()], shape.l4) & !ECE == ACK => {
                self.group = Some(Group { shape, id: Id::Unknown, len: at.len(), flags: 0 });
                self.pieces.push(at);
            }
            _ => write(&[IoSlice::new(&NO_OFFLOAD_HEADER), IoSlice::new(&buffer[at])], 1),
        }
    }

    /// Adds a packet to the group if it continues it. Returns `None` if it doesn't, and otherwise whether
    /// the group is complete.
    fn join(&mut self, buffer: &[u8], at: &Range<usize>, shape: Shape) -> Option<bool> {
        let group = self.group.as_mut()?;
        let first = self.pieces.first()?.clone();
        let (head, packet) = (&buffer[first], &buffer[at.clone()]);
        let same_shape =
            (shape.v6, shape.tcp, shape.header) == (group.shape.v6, group.shape.tcp, group.shape.header);
        if !same_shape
            || shape.payload > group.shape.payload
            || group.len + shape.payload > MAX_PACKET_BYTES
            || !same_flow(head, packet, shape)
        {
            return None;
        }
        let id = next_id(head, packet, self.pieces.len(), group.id, shape.v6)?;
        let mut closes = shape.payload < group.shape.payload;
        if shape.tcp {
            let sequence = |p: &[u8]| p.get(shape.l4 + 4..)?.first_chunk().map(|s| u32::from_be_bytes(*s));
            let so_far = u32::try_from(group.len - shape.header).ok()?;
            if sequence(packet)? != sequence(head)?.wrapping_add(so_far) {
                return None;
            }
            closes |= flags(packet, shape.l4) & (PSH | FIN) != 0;
        }
        // The kernel does not verify the checksums of a group, so they are verified here.
        if (self.pieces.len() == 1 && !adds_up(head, shape)) || !adds_up(packet, shape) {
            return None;
        }
        if shape.tcp {
            group.flags |= flags(packet, shape.l4) & (PSH | FIN);
        }
        group.id = id;
        group.len += shape.payload;
        self.pieces.push(at.start + shape.header..at.end);
        Some(closes || self.pieces.len() == MAX_SEGMENTS)
    }

    /// Writes the open group.
    pub(crate) fn flush(&mut self, buffer: &mut [u8], write: &mut impl Write) {
        let Some(group) = self.group.take() else { return };
        let count = self.pieces.len();
        let mut header = Vnet::default();
        if let (true, Some(first)) = (count > 1, self.pieces.first()) {
            header = finish(&mut buffer[first.clone()], &group);
        }
        let header = header.bytes();
        let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
        slices[0] = IoSlice::new(&header);
        for (slice, piece) in slices[1..].iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(&buffer[piece.clone()]);
        }
        write(&slices[..=count], count);
        self.pieces.clear();
    }
}

/// The virtio header of a packet that is written alone.
const NO_OFFLOAD_HEADER: [u8; Vnet::LEN] = [0; Vnet::LEN];

/// ECN-Echo may be set in a group if it is set in all its packets.
const ECE: u8 = 0x40;

fn flags(packet: &[u8], l4: usize) -> u8 {
    packet.get(l4 + 13).copied().unwrap_or(0)
}

/// Returns the headers of a TCP or UDP packet with payload that may be joined: without IPv4 options,
/// fragmentation and extension headers, and for TCP with ACK and without SYN, RST, URG and CWR.
fn shape(packet: &[u8]) -> Option<Shape> {
    let (v6, l4, protocol) = match packet.first()? {
        0x45 if packet.len() >= 20 => {
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & !DONT_FRAGMENT;
            (false, 20, (fragment == 0).then_some(packet[9])?)
        }
        first if first >> 4 == 6 && packet.len() >= 40 => (true, 40, packet[6]),
        _ => return None,
    };
    let tcp = protocol == TCP;
    let header = match protocol {
        TCP => {
            let words = usize::from(packet.get(l4 + 12)? >> 4);
            let stop = flags(packet, l4) & (SYN | RST | URG | CWR);
            (words >= 5 && stop == 0 && flags(packet, l4) & ACK != 0).then_some(l4 + words * 4)?
        }
        UDP => {
            let length = packet.get(l4 + 4..l4 + 6)?;
            let checksum = packet.get(l4 + 6..l4 + 8)?;
            let whole = usize::from(u16::from_be_bytes([length[0], length[1]])) == packet.len() - l4;
            (whole && checksum != [0, 0]).then_some(l4 + 8)?
        }
        _ => return None,
    };
    let payload = packet.len().checked_sub(header).filter(|payload| *payload > 0)?;
    Some(Shape { v6, tcp, l4, header, payload })
}

const DONT_FRAGMENT: u16 = 0x4000;

/// Returns whether all fields that must be equal in a group are equal: addresses, ports, traffic class with
/// its ECN bits, TTL, and for TCP the acknowledgement, window, flags and options.
fn same_flow(head: &[u8], packet: &[u8], shape: Shape) -> bool {
    let equal = |range: Range<usize>| head.get(range.clone()) == packet.get(range);
    let ip =
        if shape.v6 { equal(0..4) && equal(6..40) } else { equal(0..2) && equal(6..10) && equal(12..20) };
    let l4 = shape.l4;
    ip && equal(l4..l4 + 4)
        && (!shape.tcp
            || (equal(l4 + 8..l4 + 13)
                && flags(head, l4) | PSH | FIN == flags(packet, l4) | PSH | FIN
                && equal(l4 + 14..l4 + 16)
                && equal(l4 + 18..shape.header)))
}

/// Returns the sequence of identifications with this packet, or `None` if the packet breaks it.
fn next_id(head: &[u8], packet: &[u8], count: usize, id: Id, v6: bool) -> Option<Id> {
    if v6 {
        return Some(Id::Unknown);
    }
    let number = |p: &[u8]| p.get(4..)?.first_chunk().map(|n| u16::from_be_bytes(*n));
    let step = number(packet)?.wrapping_sub(number(head)?);
    let rising = usize::from(step) == count;
    let fixed = step == 0 && head.get(6)? & 0x40 != 0;
    match id {
        Id::Unknown | Id::Rising if rising => Some(Id::Rising),
        Id::Unknown | Id::Fixed if fixed => Some(Id::Fixed),
        _ => None,
    }
}

/// Returns whether the checksums of a packet are right.
fn adds_up(packet: &[u8], shape: Shape) -> bool {
    let ip = shape.v6
        || packet.get(..20).is_some_and(|header| crate::checksum::Sum::default().bytes(header).is_right());
    let l4 = packet.get(shape.l4..).unwrap_or_default();
    let protocol = if shape.tcp { TCP } else { UDP };
    let Ok(length) = u16::try_from(l4.len()) else { return false };
    ip && addresses_and_protocol(packet, shape.v6, protocol).word(length).bytes(l4).is_right()
}

/// Changes the first packet's headers to those of the whole group, with a partial checksum. Returns the
/// virtio header for it.
fn finish(first: &mut [u8], group: &Group) -> Vnet {
    let Shape { v6, tcp, l4, header, payload } = group.shape;
    let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    if v6 {
        first[4..6].copy_from_slice(&short(group.len - 40).to_be_bytes());
    } else {
        first[2..4].copy_from_slice(&short(group.len).to_be_bytes());
        first[10..12].fill(0);
        let checksum = crate::checksum::Sum::default().bytes(&first[..20]).checksum();
        first[10..12].copy_from_slice(&checksum);
    }
    let length = short(group.len - l4);
    let protocol = if tcp { TCP } else { UDP };
    let pseudo = addresses_and_protocol(first, v6, protocol).word(length).folded();
    let (kind, offset) = match (tcp, v6) {
        (true, false) => (vnet::GSO_TCPV4, 16),
        (true, true) => (vnet::GSO_TCPV6, 16),
        (false, _) => (vnet::GSO_UDP_L4, 6),
    };
    first[l4 + offset..l4 + offset + 2].copy_from_slice(&pseudo);
    if tcp {
        first[l4 + 13] |= group.flags;
    } else {
        first[l4 + 4..l4 + 6].copy_from_slice(&length.to_be_bytes());
    }
    Vnet {
        flags: vnet::NEEDS_CSUM,
        gso_type: kind,
        hdr_len: short(header),
        gso_size: short(payload),
        csum_start: short(l4),
        csum_offset: short(offset),
    }
}
