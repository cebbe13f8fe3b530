//! Which packets are joined, and what happens to flags and checksums.

use super::*;

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
