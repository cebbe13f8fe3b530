//! IP options, extension headers and absurd virtio headers.

use super::*;

const NOPS: [u8; 4] = [1; 4];

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
