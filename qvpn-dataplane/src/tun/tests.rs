//! Tests of split and coalesce against each other and against etherparse, an independent parser and writer
//! of packets.

use std::io::IoSlice;

use etherparse::{
    IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
    UdpHeader,
};
use proptest::prelude::*;

use super::coalesce::Coalescer;
use super::split;
use super::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet};

mod joining;
mod more_headers;
mod properties;

/// The headers of a flow's packets.
#[derive(Debug, Clone)]
struct Flow {
    v6: bool,
    tcp: bool,
    class: u8,
    ttl: u8,
    options: Vec<u8>,
    window: u16,
    ack: u32,
    ece: bool,
    port: u16,
}

impl Flow {
    /// Makes one packet with right lengths and checksums, by etherparse.
    fn packet(&self, id: u16, sequence: u32, psh: bool, payload: &[u8]) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.port, 80, sequence, self.window);
        tcp.ack = true;
        tcp.acknowledgment_number = self.ack;
        tcp.ece = self.ece;
        tcp.psh = psh;
        tcp.set_options_raw(&self.options).unwrap();
        let l4 = if self.tcp { tcp.header_len() } else { 8 } + payload.len();
        let mut out = Vec::new();
        if self.v6 {
            let header = Ipv6Header {
                traffic_class: self.class,
                flow_label: 0x12345.try_into().unwrap(),
                payload_length: u16::try_from(l4).unwrap(),
                next_header: if self.tcp { IpNumber::TCP } else { IpNumber::UDP },
                hop_limit: self.ttl,
                source: [0xfd; 16],
                destination: [0xfc; 16],
            };
            tcp.checksum = tcp.calc_checksum_ipv6(&header, payload).unwrap();
            header.write(&mut out).unwrap();
            self.l4(tcp, payload, |udp| udp.calc_checksum_ipv6(&header, payload).unwrap(), &mut out);
        } else {
            let protocol = if self.tcp { IpNumber::TCP } else { IpNumber::UDP };
            let mut header =
                Ipv4Header::new(u16::try_from(l4).unwrap(), self.ttl, protocol, [10, 1, 2, 3], [10, 4, 5, 6])
                    .unwrap();
            header.identification = id;
            header.dont_fragment = id == 0;
            header.dscp = (self.class >> 2).try_into().unwrap();
            header.ecn = (self.class & 3).try_into().unwrap();
            header.header_checksum = header.calc_header_checksum();
            tcp.checksum = tcp.calc_checksum_ipv4(&header, payload).unwrap();
            header.write(&mut out).unwrap();
            self.l4(tcp, payload, |udp| udp.calc_checksum_ipv4(&header, payload).unwrap(), &mut out);
        }
        out
    }

    fn l4(&self, tcp: TcpHeader, payload: &[u8], checksum: impl Fn(&UdpHeader) -> u16, out: &mut Vec<u8>) {
        if self.tcp {
            tcp.write(out).unwrap();
        } else {
            let length = u16::try_from(8 + payload.len()).unwrap();
            let mut udp = UdpHeader { source_port: self.port, destination_port: 80, length, checksum: 0 };
            udp.checksum = checksum(&udp);
            udp.write(out).unwrap();
        }
        out.extend(payload);
    }

    fn kind(&self) -> u8 {
        match (self.tcp, self.v6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        }
    }
}

/// Runs packets through the coalescer. Returns each write: virtio header, packet, and number of packets.
fn coalesce(udp: bool, packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>, usize)> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut places = Vec::new();
    for packet in packets {
        // As in the lane's buffer, headers and tags lie between the packets.
        buffer.extend([0xee; 16]);
        places.push(buffer.len()..buffer.len() + packet.len());
        buffer.extend(packet);
        buffer.extend([0xee; 16]);
    }
    let mut written = Vec::new();
    let mut write = |parts: &[IoSlice<'_>], count: usize| {
        let header = Vnet::parse(parts[0].first_chunk().unwrap());
        written.push((header, parts[1..].iter().flat_map(|part| part.iter().copied()).collect(), count));
    };
    let mut coalescer = Coalescer::new(udp);
    for place in places {
        coalescer.push(&mut buffer, place, &mut write);
    }
    coalescer.flush(&mut buffer, &mut write);
    written
}

/// Segments a packet from the coalescer or the kernel.
fn cut(header: Vnet, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
    if header == Vnet::default() {
        return vec![packet];
    }
    match split::plan(header, &mut packet).unwrap() {
        None => vec![packet],
        Some(split) => (0..split.count())
            .map(|n| {
                let mut out = vec![0; split.len(n)];
                split.write(&packet, n, &mut out);
                out
            })
            .collect(),
    }
}

/// Checks lengths and checksums with etherparse.
fn is_right(packet: &[u8]) {
    let read = SlicedPacket::from_ip(packet).unwrap();
    let payload = match read.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => tcp.payload(),
        TransportSlice::Udp(udp) => {
            assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
            udp.payload()
        }
        other => panic!("{other:?}"),
    };
    let (checksum, expected) = match (read.net.as_ref().unwrap(), read.transport.as_ref().unwrap()) {
        (NetSlice::Ipv4(ip), l4) => {
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.total_len), packet.len());
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match l4 {
                TransportSlice::Tcp(tcp) => {
                    (tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, payload).unwrap())
                }
                TransportSlice::Udp(udp) => {
                    (udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, payload).unwrap())
                }
                other => panic!("{other:?}"),
            }
        }
        (NetSlice::Ipv6(ip), l4) => {
            let header = ip.header().to_header();
            assert_eq!(40 + usize::from(header.payload_length), packet.len());
            match l4 {
                TransportSlice::Tcp(tcp) => {
                    (tcp.checksum(), tcp.to_header().calc_checksum_ipv6(&header, payload).unwrap())
                }
                TransportSlice::Udp(udp) => {
                    (udp.checksum(), udp.to_header().calc_checksum_ipv6(&header, payload).unwrap())
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(checksum, expected);
}

fn flow() -> impl Strategy<Value = Flow> {
    let options = prop_oneof![Just(vec![]), Just(vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])];
    (any::<bool>(), any::<bool>(), any::<u8>(), 1u8.., options, any::<(u16, u32, bool)>(), 1u16..4).prop_map(
        |(v6, tcp, class, ttl, options, (window, ack, ece), port)| Flow {
            v6,
            tcp,
            class,
            ttl,
            options,
            window,
            ack,
            ece,
            port,
        },
    )
}

/// Makes segments as a sender does: equal sizes, a last one that may be shorter, PSH on the last.
fn burst(flow: &Flow, id: u16, sequence: u32, size: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
    let chunks: Vec<_> = bytes.chunks(size).collect();
    (0u16..)
        .zip(&chunks)
        .map(|(n, chunk)| {
            let last = usize::from(n) + 1 == chunks.len();
            let sequence = sequence.wrapping_add(u32::from(n) * u32::try_from(size).unwrap());
            flow.packet(if id == 0 { 0 } else { id.wrapping_add(n).max(1) }, sequence, last, chunk)
        })
        .collect()
}

/// Zeroes the IPv4 identification if the packet must not be fragmented: it has no meaning then (RFC 6864).
fn without_atomic_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesce(true, packets).into_iter().map(|joined| joined.2).collect()
}

/// Inserts `bytes` after an IPv4 or IPv6 header and corrects all lengths and checksums.
fn with_more_header(packet: &[u8], bytes: &[u8]) -> Vec<u8> {
    let v6 = packet[0] >> 4 == 6;
    let at = if v6 { 40 } else { 20 };
    let mut out = [&packet[..at], bytes, &packet[at..]].concat();
    if v6 {
        let len = u16::try_from(out.len() - 40).unwrap();
        out[4..6].copy_from_slice(&len.to_be_bytes());
    } else {
        out[0] += u8::try_from(bytes.len() / 4).unwrap();
        let len = u16::try_from(out.len()).unwrap();
        out[2..4].copy_from_slice(&len.to_be_bytes());
        out[10..12].fill(0);
        let sum = crate::checksum::Sum::default().bytes(&out[..at + bytes.len()]).checksum();
        out[10..12].copy_from_slice(&sum);
    }
    out
}

fn plain_flow(v6: bool, tcp: bool) -> Flow {
    Flow { v6, tcp, class: 0, ttl: 9, options: vec![], window: 1, ack: 1, ece: false, port: 5 }
}

/// Sets the checksum field to the sum of the pseudo-header, as the kernel leaves it.
fn with_partial_checksum(mut packet: Vec<u8>, l4: usize, tcp: bool, last: &[u8; 16]) -> Vec<u8> {
    let (protocol, offset) = if tcp { (6, 16) } else { (17, 6) };
    let sum = crate::checksum::Sum::default().bytes(&packet[8..24]).bytes(last).word(protocol);
    let sum = sum.word(u16::try_from(packet.len() - l4).unwrap()).folded();
    packet[l4 + offset..l4 + offset + 2].copy_from_slice(&sum);
    packet
}
