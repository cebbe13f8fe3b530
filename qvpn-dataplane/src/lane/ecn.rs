//! Explicit congestion notification through a tunnel: combines the outer header's ECN bits with the inner
//! ones (RFC 6040, section 4.2).

use crate::checksum::Sum;

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Combines the outer header's ECN bits into the packet. Returns `false` if the packet must be dropped: the
/// path is congested and the packet's sender does not support ECN.
pub(crate) fn decapsulate(outer: u8, packet: &mut [u8]) -> bool {
    let inner = class(packet) & 3;
    let ecn = match (inner, outer & 3) {
        (NOT_ECT, CE) => return false,
        (ECT_0 | ECT_1, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        _ => return true,
    };
    set(packet, ecn);
    true
}

fn class(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        [_, class, ..] => *class,
        _ => NOT_ECT,
    }
}

fn set(packet: &mut [u8], ecn: u8) {
    match packet {
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !0x30 | ecn << 4,
        [first, ..] => {
            let header = usize::from(*first & 15) * 4;
            if let Some(header) = packet.get_mut(..header).filter(|header| header.len() >= 20) {
                // The checksum is updated by the difference (RFC 1624), so a wrong one stays wrong.
                let old = u16::from_be_bytes([header[0], header[1]]);
                header[1] = header[1] & !3 | ecn;
                let new = u16::from_be_bytes([header[0], header[1]]);
                let sum = u16::from_be_bytes([header[10], header[11]]);
                let checksum = Sum::default().word(!sum).word(!old).word(new).checksum();
                header[10..12].copy_from_slice(&checksum);
            }
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header};

    fn v4(ecn: u8) -> Vec<u8> {
        let mut header = Ipv4Header::new(8, 64, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.identification = 0xbeef;
        header.ecn = ecn.try_into().unwrap();
        header.dscp = 46.try_into().unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut packet = header.to_bytes().to_vec();
        packet.extend([7; 8]);
        packet
    }

    fn v6(ecn: u8) -> Vec<u8> {
        let mut packet = vec![0u8; 48];
        packet[..4].copy_from_slice(&(0x6000_1234_u32 | u32::from(46 << 2 | ecn) << 20).to_be_bytes());
        packet
    }

    /// RFC 6040, figure 4: the forwarded ECN bits by inner (row) and outer (column) bits; `None` is a drop.
    const TABLE: [[Option<u8>; 4]; 4] = [
        // outer:  Not-ECT    ECT(1)         ECT(0)         CE
        [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
        [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
        [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)],
        [Some(CE), Some(CE), Some(CE), Some(CE)],
    ];

    #[test]
    fn the_table_of_rfc_6040_holds_and_all_else_stays() {
        for (inner, row) in (0u8..).zip(TABLE) {
            for (outer, expected) in (0u8..).zip(row) {
                for make in [v4, v6] {
                    let mut packet = make(inner);
                    let kept = decapsulate(outer | 0xb8, &mut packet).then_some(());
                    assert_eq!(kept.is_some(), expected.is_some(), "{inner} {outer}");
                    if let Some(ecn) = expected {
                        assert_eq!(packet, make(ecn), "{inner} {outer}");
                    }
                }
            }
        }
    }
}
