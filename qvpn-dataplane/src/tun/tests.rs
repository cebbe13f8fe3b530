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
        // As in the lane, there are headers and tags between the packets.
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// For any mixture of flows, splitting the joined packets gives the same packets in the same order.
    #[test]
    fn cutting_what_was_joined_gives_the_same_packets(
        bursts in proptest::collection::vec(
            (flow(), prop_oneof![Just(0u16), any::<u16>()], any::<u32>(), 1usize..1400, 1usize..6000), 1..6),
        uso: bool,
        spoilt in proptest::option::of((any::<proptest::sample::Index>(), any::<proptest::sample::Index>(), 1u8..)),
    ) {
        let mut packets = Vec::new();
        for (flow, id, sequence, size, len) in &bursts {
            let bytes: Vec<u8> = (0u8..=255).cycle().take(*len).collect();
            packets.extend(burst(flow, *id, *sequence, (*size).max(len / 60), &bytes));
        }
        if let Some((which, at, with)) = spoilt {
            let which = which.index(packets.len());
            let at = at.index(packets[which].len());
            // The lane ensures that the length is the one in the IP header.
            if !matches!(at, 2..=5) {
                packets[which][at] ^= with;
            }
        }
        let joined = coalesce(uso, &packets);
        prop_assert_eq!(joined.iter().map(|j| j.2).sum::<usize>(), packets.len());
        let mut back = Vec::new();
        for (header, packet, count) in joined {
            prop_assert_eq!(header.gso_type == GSO_NONE, count == 1);
            back.extend(cut(header, packet));
        }
        let back: Vec<_> = back.into_iter().map(without_atomic_id).collect();
        let packets: Vec<_> = packets.into_iter().map(without_atomic_id).collect();
        prop_assert_eq!(back, packets);
    }

    /// A burst becomes one write, and its segments have right lengths and checksums.
    #[test]
    fn a_burst_of_one_flow_becomes_one_piece(
        flow in flow(), id in 1u16..60_000, sequence: u32, size in 1usize..1400, count in 2usize..45, rest in 1usize..1400,
    ) {
        let len = size * (count - 1) + rest.min(size);
        let packets = burst(&flow, id, sequence, size, &vec![0x5a; len]);
        let joined = coalesce(true, &packets);
        prop_assert_eq!(joined.len(), 1);
        let (header, packet, _) = joined.into_iter().next().unwrap();
        prop_assert_eq!(header.flags, NEEDS_CSUM);
        prop_assert_eq!(header.gso_type, flow.kind());
        prop_assert_eq!(usize::from(header.gso_size), size);
        for packet in cut(header, packet) {
            is_right(&packet);
        }
    }

    /// Super-packets are segmented into packets that etherparse accepts, with the payload in order.
    #[test]
    fn every_segment_has_right_lengths_and_checksums(
        flow in flow(), id: u16, sequence: u32, size in 1u16..1500, len in 1usize..60_000,
    ) {
        let bytes: Vec<u8> = (0u8..=250).cycle().take(len).collect();
        let packet = flow.packet(id.max(1), sequence, true, &bytes);
        let l4 = if flow.v6 { 40 } else { 20 };
        let header = Vnet {
            flags: NEEDS_CSUM,
            gso_type: flow.kind(),
            hdr_len: 0,
            gso_size: size,
            csum_start: l4,
            csum_offset: if flow.tcp { 16 } else { 6 },
        };
        let mut all: Vec<u8> = Vec::new();
        let segments = cut(header, packet);
        for (n, segment) in segments.iter().enumerate() {
            is_right(segment);
            let read = SlicedPacket::from_ip(segment).unwrap();
            match read.transport.unwrap() {
                TransportSlice::Tcp(tcp) => {
                    prop_assert_eq!(tcp.sequence_number(), sequence.wrapping_add(u32::try_from(all.len()).unwrap()));
                    prop_assert_eq!(tcp.psh(), n + 1 == segments.len());
                    all.extend(tcp.payload());
                }
                TransportSlice::Udp(udp) => all.extend(udp.payload()),
                other => panic!("{other:?}"),
            }
        }
        prop_assert_eq!(all, bytes);
    }

    /// With a routing header, the checksum covers the final destination.
    #[test]
    fn a_routing_header_names_the_destination_of_the_checksum(
        tcp: bool, last: [u8; 16], size in 1u16..1500, len in 1usize..60_000, sequence: u32,
    ) {
        let bytes: Vec<u8> = (0u8..=250).cycle().take(len).collect();
        let direct = plain_flow(true, tcp).packet(1, sequence, true, &bytes);
        // RFC 8200 section 4.4, in the form of type 2: one segment left, one address.
        let routing = [&[direct[6], 2, 2, 1, 0, 0, 0, 0][..], &last].concat();
        let mut whole = with_more_header(&direct, &routing);
        whole[6] = 43;
        let l4 = 40 + routing.len();
        let whole = with_partial_checksum(whole, l4, tcp, &last);
        let header = Vnet {
            flags: NEEDS_CSUM,
            gso_type: if tcp { GSO_TCPV6 } else { GSO_UDP_L4 },
            hdr_len: 0,
            gso_size: size,
            csum_start: u16::try_from(l4).unwrap(),
            csum_offset: if tcp { 16 } else { 6 },
        };
        let unsaid = Vnet { flags: 0, ..header };
        prop_assert!(split::plan(unsaid, &mut whole.clone()).is_err(), "nobody says what the checksum is over");
        let segments = cut(header, whole);
        prop_assert_eq!(segments.len(), len.div_ceil(size.into()));
        for segment in segments {
            prop_assert_eq!(&segment[40..l4], &routing);
            // The packet as the final destination sees it.
            let mut there = [&segment[..40], &segment[l4..]].concat();
            let length = u16::try_from(there.len() - 40).unwrap();
            there[4..6].copy_from_slice(&length.to_be_bytes());
            there[6] = segment[40];
            there[24..40].copy_from_slice(&last);
            is_right(&there);
        }
    }

    /// Random bytes and absurd headers make neither split nor coalesce panic.
    #[test]
    fn nonsense_is_refused_or_passes_alone(
        raw in proptest::collection::vec(any::<u8>(), 0..200), version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(6u8), Just(17), any::<u8>()], fields: (u8, u8, u16, u16),
        start in prop_oneof![0u16..260, any::<u16>()], offset in prop_oneof![0u16..260, any::<u16>()],
    ) {
        let mut packet = raw;
        if packet.len() > 9 {
            packet[0] = version;
            packet[if version >> 4 == 6 { 6 } else { 9 }] = protocol;
        }
        let (flags, gso_type, hdr_len, gso_size) = fields;
        for gso_type in [gso_type, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, 0] {
            let header = Vnet { flags, gso_type, hdr_len, gso_size, csum_start: start, csum_offset: offset };
            prop_assert_eq!(Vnet::parse(&header.bytes()), header);
            let mut packet = packet.clone();
            if let Ok(Some(split)) = split::plan(header, &mut packet) {
                let mut out = vec![0; split.len(0)];
                split.write(&packet, 0, &mut out);
                let last = split.count() - 1;
                let mut out = vec![0; split.len(last)];
                split.write(&packet, last, &mut out);
            }
        }
        let twice = [packet.clone(), packet.clone()];
        let joined = coalesce(true, &twice);
        prop_assert_eq!(joined.iter().map(|j| j.2).sum::<usize>(), 2);
    }
}

fn tcp(id: u16, sequence: u32, change: impl FnOnce(&mut TcpHeader), payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(1, 2, sequence, 100);
    header.ack = true;
    change(&mut header);
    let ip = Ipv4Header::new(
        u16::try_from(header.header_len() + payload.len()).unwrap(),
        64,
        IpNumber::TCP,
        [10, 0, 0, 1],
        [10, 0, 0, 2],
    );
    let mut ip = ip.unwrap();
    ip.identification = id;
    let mut out = Vec::new();
    PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .tcp_header(header)
        .write(&mut out, payload)
        .unwrap();
    out
}

fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesce(true, packets).into_iter().map(|joined| joined.2).collect()
}

#[test]
fn what_differs_is_not_joined() {
    let first = || tcp(7, 1000, |_| {}, &[1; 100]);
    let second = |change: fn(&mut TcpHeader)| tcp(8, 1100, change, &[2; 100]);
    assert_eq!(counts(&[first(), second(|_| {})]), [2], "the plain case");
    assert_eq!(counts(&[first(), second(|t| t.psh = true)]), [2], "PSH ends a group");
    assert_eq!(counts(&[first(), second(|t| t.fin = true)]), [2], "so does FIN");
    for (what, change) in [
        ("SYN", (|t| t.syn = true) as fn(&mut TcpHeader)),
        ("RST", |t| t.rst = true),
        ("URG", |t| t.urg = true),
        ("CWR", |t| t.cwr = true),
        ("ECE", |t| t.ece = true),
        ("no ACK", |t| t.ack = false),
        ("another acknowledgement", |t| t.acknowledgment_number = 9),
        ("another window", |t| t.window_size = 9),
        ("another port", |t| t.source_port = 9),
        ("options", |t| t.set_options_raw(&[1, 1, 1, 1]).unwrap()),
    ] {
        assert_eq!(counts(&[first(), second(change)]), [1, 1], "{what}");
    }
    assert_eq!(counts(&[first(), tcp(8, 1101, |_| {}, &[2; 100])]), [1, 1], "a gap");
    assert_eq!(counts(&[first(), tcp(9, 1100, |_| {}, &[2; 100])]), [1, 1], "a jump of the identification");
    assert_eq!(counts(&[first(), tcp(8, 1100, |_| {}, &[2; 101])]), [1, 1], "a larger one");
    assert_eq!(counts(&[first(), tcp(8, 1100, |_| {}, &[])]), [1, 1], "no payload");
    let short = [first(), tcp(8, 1100, |_| {}, &[2; 50]), tcp(9, 1150, |_| {}, &[2; 50])];
    assert_eq!(counts(&short), [2, 1], "a shorter one ends a group");
    for (what, at, with) in [
        ("class", 1, 4),
        ("ECN", 1, 2),
        ("TTL", 8, 1),
        ("more fragments", 6, 0x20),
        ("a fragment", 7, 1),
        ("address", 19, 1),
    ] {
        let mut other = second(|_| {});
        other[at] ^= with;
        let ip = Ipv4Header::from_slice(&other).unwrap().0;
        other[10..12].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
        assert_eq!(counts(&[first(), other]), [1, 1], "{what}");
    }
    for at in [10, 36, 60] {
        let mut bent = second(|_| {});
        bent[at] ^= 1;
        assert_eq!(counts(&[first(), bent]), [1, 1], "a wrong checksum by byte {at}");
        let mut bent = first();
        bent[at] ^= 1;
        assert_eq!(counts(&[bent, second(|_| {})]), [1, 1], "a wrong checksum in the first by byte {at}");
    }
}

#[test]
fn flags_that_mean_the_end_or_the_beginning_stand_on_the_right_segment() {
    let packet = tcp(3, 10, |t| (t.fin, t.psh, t.cwr) = (true, true, true), &[9; 250]);
    let header = Vnet {
        flags: 1,
        gso_type: GSO_TCPV4 | 0x80,
        hdr_len: 40,
        gso_size: 100,
        csum_start: 20,
        csum_offset: 16,
    };
    let flags: Vec<_> = cut(header, packet)
        .iter()
        .map(|segment| {
            is_right(segment);
            let tcp = TcpHeader::from_slice(&segment[20..]).unwrap().0;
            (tcp.cwr, tcp.psh, tcp.fin)
        })
        .collect();
    assert_eq!(flags, [(true, false, false), (false, false, false), (false, true, true)]);
}

#[test]
fn a_checksum_that_the_kernel_left_to_us_is_completed() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let flow =
            Flow { v6, tcp, class: 0, ttl: 9, options: vec![], window: 1, ack: 1, ece: false, port: 5 };
        for payload in [&b"odd"[..], b"even", b""] {
            let whole = flow.packet(77, 1, false, payload);
            let l4 = if v6 { 40 } else { 20 };
            let offset = if tcp { 16 } else { 6 };
            let mut partial = whole.clone();
            let protocol = if tcp { 6 } else { 17 };
            let sum = crate::checksum::addresses_and_protocol(&whole, v6, protocol)
                .word(u16::try_from(whole.len() - l4).unwrap());
            partial[l4 + offset..l4 + offset + 2].copy_from_slice(&sum.folded());
            let header = Vnet {
                flags: NEEDS_CSUM,
                csum_start: u16::try_from(l4).unwrap(),
                csum_offset: u16::try_from(offset).unwrap(),
                ..Vnet::default()
            };
            assert_eq!(cut(header, partial), [whole]);
        }
    }
}

#[test]
fn udp_waits_for_a_kernel_that_cuts_it() {
    let flow = Flow {
        v6: false,
        tcp: false,
        class: 0,
        ttl: 9,
        options: vec![],
        window: 1,
        ack: 1,
        ece: false,
        port: 5,
    };
    let packets = burst(&flow, 5, 0, 100, &[1; 300]);
    let counts = |uso| coalesce(uso, &packets).into_iter().map(|joined| joined.2).collect::<Vec<_>>();
    assert_eq!(counts(true), [3]);
    assert_eq!(counts(false), [1, 1, 1]);
    let mut unsummed = packets;
    unsummed[1][26..28].fill(0);
    assert_eq!(coalesce(true, &unsummed).len(), 3, "a checksum of zero says that there is none");
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

const NOPS: [u8; 4] = [1; 4];

fn plain_flow(v6: bool, tcp: bool) -> Flow {
    Flow { v6, tcp, class: 0, ttl: 9, options: vec![], window: 1, ack: 1, ece: false, port: 5 }
}

/// Inserts destination options of eight bytes (padding) before TCP or UDP.
fn with_extension(packet: &[u8]) -> Vec<u8> {
    let mut out = with_more_header(packet, &[packet[6], 0, 1, 4, 0, 0, 0, 0]);
    out[6] = 60;
    out
}

#[test]
fn odd_packets_pass_unmerged_and_unchanged() {
    let bursts = |v6, tcp| burst(&plain_flow(v6, tcp), 5, 0, 100, &[7; 300]);
    assert_eq!(counts(&bursts(false, true)), [3], "the plain case");
    let mut cases = Vec::new();
    for tcp in [false, true] {
        cases.push(("IPv4 options", bursts(false, tcp).iter().map(|p| with_more_header(p, &NOPS)).collect()));
        cases.push(("an extension header", bursts(true, tcp).iter().map(|p| with_extension(p)).collect()));
        for v6 in [false, true] {
            let empty = plain_flow(v6, tcp).packet(9, 0, false, b"");
            cases.push(("no payload", vec![empty.clone(), empty]));
        }
    }
    // TCP header lengths below 20 bytes, or beyond the end of the packet.
    for v6 in [false, true] {
        let l4 = if v6 { 40 } else { 20 };
        for words in [0u8, 1, 4, 6, 15] {
            let odd = |mut p: Vec<u8>| {
                p.truncate(l4 + 20 + 20);
                p[l4 + 12] = words << 4;
                p
            };
            cases.push(("an odd TCP header length", bursts(v6, true).into_iter().map(odd).collect()));
        }
    }
    // Packets truncated anywhere, even within the headers.
    for v6 in [false, true] {
        for len in [1, 10, 19, 20, 21, 33, 39, 40, 47, 59] {
            let cut = |mut p: Vec<u8>| {
                p.truncate(len);
                p
            };
            cases.push(("a stub", bursts(v6, true).into_iter().map(cut).collect()));
        }
    }
    cases.push((
        "fragments",
        [0x2000u16, 0x2001, 0x0010]
            .into_iter()
            .map(|field| {
                let mut p = bursts(false, false)[0].clone();
                p[6..8].copy_from_slice(&field.to_be_bytes());
                p
            })
            .collect(),
    ));
    let mut length = bursts(false, false);
    length[1][24] ^= 1;
    cases.push(("a UDP length that is wrong", length));
    for (what, packets) in cases {
        let written = coalesce(true, &packets);
        assert_eq!(written.len(), packets.len(), "{what}");
        for ((header, packet, _), original) in written.into_iter().zip(packets) {
            assert_eq!((header, packet), (Vnet::default(), original), "{what}");
        }
    }
}

/// Sets the checksum field to the sum of the pseudo-header, as the kernel leaves it.
fn with_partial_checksum(mut packet: Vec<u8>, l4: usize, tcp: bool, last: &[u8; 16]) -> Vec<u8> {
    let (protocol, offset) = if tcp { (6, 16) } else { (17, 6) };
    let sum = crate::checksum::Sum::default().bytes(&packet[8..24]).bytes(last).word(protocol);
    let sum = sum.word(u16::try_from(packet.len() - l4).unwrap()).folded();
    packet[l4 + offset..l4 + offset + 2].copy_from_slice(&sum);
    packet
}

/// The kernel's super-packets may have IPv4 options and extension headers.
#[test]
fn super_packets_with_more_headers_are_cut_right() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let whole = plain_flow(v6, tcp).packet(77, 1, true, &[9; 1000]);
        let (whole, more) = if v6 {
            (with_partial_checksum(with_extension(&whole), 48, tcp, &[0xfc; 16]), 8)
        } else {
            (with_more_header(&whole, &NOPS), 4)
        };
        let header = Vnet {
            flags: NEEDS_CSUM,
            gso_type: plain_flow(v6, tcp).kind(),
            hdr_len: 0,
            gso_size: 300,
            csum_start: if v6 { 40 } else { 20 } + more,
            csum_offset: if tcp { 16 } else { 6 },
        };
        let segments = cut(header, whole);
        assert_eq!(segments.len(), 4);
        for segment in segments {
            is_right(&segment);
        }
    }
}

/// A kernel bug must lead to a dropped packet and not to memory damage.
#[test]
fn absurd_virtio_headers_over_good_packets_are_refused_or_stay_in_bounds() {
    let absurd = [0u16, 1, 19, 20, 39, 40, 41, 1000, 1051, 1052, 1059, 1060, 1061, 32_768, 65_534, 65_535];
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let packet = plain_flow(v6, tcp).packet(77, 1, true, &[9; 1000]);
        for gso_type in [GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | 0x80, 2, 0x7f, 0xff] {
            for (csum_start, csum_offset) in absurd.iter().flat_map(|a| absurd.iter().map(|b| (*a, *b))) {
                for gso_size in [0, 1, 1000, 65_535] {
                    let header = Vnet {
                        flags: NEEDS_CSUM,
                        gso_type,
                        hdr_len: csum_start,
                        gso_size,
                        csum_start,
                        csum_offset,
                    };
                    let mut packet = packet.clone();
                    let Ok(Some(split)) = split::plan(header, &mut packet) else { continue };
                    for segment in [0, split.count() / 2, split.count() - 1] {
                        assert!(split.len(segment) <= packet.len());
                        let mut out = vec![0; split.len(segment)];
                        split.write(&packet, segment, &mut out);
                    }
                }
            }
        }
    }
}
