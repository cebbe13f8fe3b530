//! Addresses, length and traffic class of inner IP packets.

use std::net::IpAddr;

/// Returns the destination of an IP packet and its traffic class.
pub(super) fn destination(packet: &[u8]) -> Option<(IpAddr, u8)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            Some((packet[16..20].first_chunk::<4>().map(|a| IpAddr::from(*a))?, packet[1]))
        }
        6 if packet.len() >= 40 => {
            let class = packet[0] << 4 | packet[1] >> 4;
            Some((packet[24..40].first_chunk::<16>().map(|a| IpAddr::from(*a))?, class))
        }
        _ => None,
    }
}

/// Returns the source of an IP packet and its length by its header, without padding.
pub(crate) fn source_and_length(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let length = |at: usize| packet.get(at..)?.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)));
    let (source, len) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => (IpAddr::from(*packet[12..].first_chunk::<4>()?), length(2)?),
        6 if packet.len() >= 40 => (IpAddr::from(*packet[8..].first_chunk::<16>()?), 40 + length(4)?),
        _ => return None,
    };
    let least = if source.is_ipv4() { 20 } else { 40 };
    (least..=packet.len()).contains(&len).then_some((source, len))
}

/// Returns a hash of the flow of an IP packet: addresses, protocol, and ports where there are any. All
/// fragments of a packet count as one flow without ports.
pub(super) fn flow_hash(packet: &[u8]) -> u32 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SCTP: u8 = 132;
    let (addresses, protocol, ports) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            let fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
            (&packet[12..20], packet[9], (!fragment).then_some(usize::from(packet[0] & 15) * 4))
        }
        Some(6) if packet.len() >= 40 => (&packet[8..40], packet[6], Some(40)),
        _ => return 0,
    };
    let ports = ports.filter(|_| matches!(protocol, TCP | UDP | SCTP));
    let ports = ports.and_then(|at| packet.get(at..at + 4)).unwrap_or_default();
    let words = addresses.chunks(4).chain(ports.chunks(4));
    // Steps of MurmurHash3's 64-bit finalizer, which makes each input bit affect all output bits.
    let mut hash = u64::from(protocol);
    for word in words {
        let word = word.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        hash = (hash ^ u64::from(word)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 33;
    }
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{flow_hash, source_and_length};

    #[test]
    fn flows_spread_evenly_and_each_stays_where_it_is() {
        let packet = |source: u8, port: u16| {
            let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 10, 0, source, 10, 20, 0, 2];
            packet.extend(port.to_be_bytes());
            packet.extend([0, 53, 0, 8, 0, 0]);
            packet
        };
        let upper = (0..100u8).flat_map(|source| (0..100u16).map(move |port| packet(source, 40_000 + port)));
        let upper = upper.filter(|packet| flow_hash(packet) >= 1 << 31).count();
        assert!((4_500..5_500).contains(&upper), "{upper} of 10000 flows in the upper half");
        let flow = packet(1, 40_000);
        let mut later = flow.clone();
        later[4] = 9;
        later[26] = 1;
        assert_eq!(flow_hash(&later), flow_hash(&flow), "neither identification nor payload counts");
        let mut first = flow.clone();
        first[6] = 0x20;
        let mut second = packet(1, 50_000);
        second[7] = 1;
        assert_eq!(flow_hash(&first), flow_hash(&second), "fragments stay together");
        assert_ne!(flow_hash(&packet(1, 40_000)), flow_hash(&packet(1, 40_001)));
        assert_eq!([flow_hash(&[]), flow_hash(&[0x45; 19]), flow_hash(&[0x60; 39])], [0; 3]);
        assert_ne!(flow_hash(&[0x60; 40]), 0);
    }

    #[test]
    fn a_header_that_lies_about_its_length_is_no_packet() {
        let v4 = |len: u16, there: usize| {
            let mut packet = vec![0; there];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            source_and_length(&packet).map(|(_, len)| len)
        };
        assert_eq!(v4(20, 32), Some(20), "the rest is padding");
        assert_eq!([v4(0, 32), v4(19, 32), v4(33, 32), v4(65_535, 32), v4(20, 19)], [None; 5]);
        let v6 = |len: u16, there: usize| {
            let mut packet = vec![0; there];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            source_and_length(&packet).map(|(_, len)| len)
        };
        assert_eq!(v6(0, 48), Some(40));
        assert_eq!([v6(9, 48), v6(65_535, 48), v6(0, 39)], [None; 3]);
        for other in [&[][..], &[0x45], &[0x50; 60], &[0xff; 60]] {
            assert_eq!(source_and_length(other), None);
        }
    }
}
