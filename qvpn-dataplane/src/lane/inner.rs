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

#[cfg(test)]
mod tests {
    use super::source_and_length;

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
