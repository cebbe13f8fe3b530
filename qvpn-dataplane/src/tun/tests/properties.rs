//! Split and coalesce against each other, for any mixture of flows.

use proptest::sample::Index;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// For any mixture of flows, splitting the joined packets gives the same packets in the same order.
    #[test]
    fn splitting_joined_packets_gives_the_same_packets(
        bursts in proptest::collection::vec(
            (flow(), prop_oneof![Just(0u16), any::<u16>()], any::<u32>(), 1usize..1400, 1usize..6000), 1..6),
        uso: bool,
        spoilt in proptest::option::of((any::<Index>(), any::<Index>(), 1u8..)),
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
        flow in flow(), id in 1u16..60_000, sequence: u32, size in 1usize..1400, count in 2usize..45,
        rest in 1usize..1400,
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
                    let sent = u32::try_from(all.len()).unwrap();
                prop_assert_eq!(tcp.sequence_number(), sequence.wrapping_add(sent));
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
        prop_assert!(split::plan(unsaid, &mut whole.clone()).is_err(), "nobody says what the checksum is \
             over");
        let segments = cut(header, whole);
        prop_assert_eq!(segments.len(), len.div_ceil(size.into()));
        for segment in segments {
            prop_assert_eq!(&segment[40..l4], &routing);
            // The packet at its final destination.
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
        raw in proptest::collection::vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
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
