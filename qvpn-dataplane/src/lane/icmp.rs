//! ICMP errors about packets that the tunnel can't carry, written to the TUN for their sender. Used if lanes
//! follow the kernel's routes, since the kernel can't see which peer a packet would go to.
//!
//! The source is the packet's destination. Our own address would be correct too, but the kernel drops
//! packets that come in from a device with an address of this host (a martian source).

use std::io::IoSlice;

use qvpn_types::Time;

use super::rate_limit::RateLimit;
use crate::checksum::{Sum, addresses_and_protocol};
use crate::tun::TunQueue;
use crate::tun::vnet::Vnet;

/// Why a packet is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IcmpError {
    /// There is no route, or its next hop belongs to no peer.
    NoRoute,
    /// The peer's allowed IPs don't contain the destination.
    Prohibited,
    /// It exceeds the MTU of the path to the peer, in bytes.
    TooBig(u16),
}

/// The rate of errors per second, and the burst, of each kind and lane.
const ERRORS_PER_SECOND: u32 = 100;
const BURST: u32 = 50;

/// The largest ICMP error in bytes (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

pub(super) struct IcmpErrors {
    unreachable: RateLimit,
    too_big: RateLimit,
}

impl IcmpErrors {
    pub(super) fn new() -> Self {
        let limit = || RateLimit::new(ERRORS_PER_SECOND, BURST);
        Self { unreachable: limit(), too_big: limit() }
    }

    /// Answers `packet` with an error, unless there were too many, or it must not be answered.
    pub(super) fn answer(&mut self, tun: &TunQueue, packet: &[u8], error: IcmpError, now: Time) {
        let limit = match error {
            IcmpError::TooBig(_) => &mut self.too_big,
            IcmpError::NoRoute | IcmpError::Prohibited => &mut self.unreachable,
        };
        if let Some(answer) = answer(packet, error).filter(|_| limit.allows(now)) {
            // If the TUN refuses it, the sender gets the error for its next packet.
            let _ = tun.write(&[IoSlice::new(&Vnet::default().bytes()), IoSlice::new(&answer)]);
        }
    }
}

/// Whether a packet of `len` bytes is too big for a path. An IPv4 packet that may be fragmented is not, since
/// the datagram around it may be fragmented too; nor is one that IPv6 guarantees to carry.
pub(super) fn exceeds(packet: &[u8], len: usize, mtu: usize) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => len > mtu && packet.get(6).is_some_and(|flags| flags & 0x40 != 0),
        _ => len > mtu.max(MAX_V6),
    }
}

/// Makes the error; `None` about packets that must not be answered (RFC 1122 section 3.2.2, RFC 4443 section
/// 2.4): errors, all fragments except the first, and packets from or to more than one host.
fn answer(packet: &[u8], error: IcmpError) -> Option<Vec<u8>> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => answer_v4(packet, error),
        6 if packet.len() >= 40 => answer_v6(packet, error),
        _ => None,
    }
}

fn answer_v4(packet: &[u8], error: IcmpError) -> Option<Vec<u8>> {
    let (source, destination) = (&packet[12..16], &packet[16..20]);
    let one_host = |a: &[u8]| !matches!(a[0], 0 | 127 | 224..);
    let header = usize::from(packet[0] & 15) * 4;
    let later_fragment = packet[6] & 0x1f != 0 || packet[7] != 0;
    let is_error = packet[9] == ICMP && matches!(packet.get(header), None | Some(3 | 4 | 5 | 11 | 12));
    if !one_host(source) || !one_host(destination) || later_fragment || is_error {
        return None;
    }
    let quoted = &packet[..packet.len().min(MAX_V4 - 28)];
    let total = u16::try_from(28 + quoted.len()).ok()?;
    let mut out = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, ICMP, 0, 0];
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out.extend_from_slice(destination);
    out.extend_from_slice(source);
    let checksum = Sum::default().bytes(&out).checksum();
    out[10..12].copy_from_slice(&checksum);
    let (code, mtu) = match error {
        IcmpError::NoRoute => (0, 0),
        IcmpError::Prohibited => (13, 0),
        IcmpError::TooBig(mtu) => (4, mtu),
    };
    out.extend_from_slice(&[3, code, 0, 0, 0, 0]);
    out.extend_from_slice(&mtu.to_be_bytes());
    out.extend_from_slice(quoted);
    let checksum = Sum::default().bytes(&out[20..]).checksum();
    out[22..24].copy_from_slice(&checksum);
    Some(out)
}

fn answer_v6(packet: &[u8], error: IcmpError) -> Option<Vec<u8>> {
    let (source, destination) = (&packet[8..24], &packet[24..40]);
    let one_host = |a: &[u8]| a[0] != 0xff && a.iter().any(|byte| *byte != 0);
    let is_error = packet[6] == ICMPV6 && packet.get(40).is_none_or(|kind| *kind < 128);
    if !one_host(source) || !one_host(destination) || is_error {
        return None;
    }
    let quoted = &packet[..packet.len().min(MAX_V6 - 48)];
    let length = u16::try_from(8 + quoted.len()).ok()?;
    let mut out = vec![0x60, 0, 0, 0, 0, 0, ICMPV6, 64];
    out[4..6].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(destination);
    out.extend_from_slice(source);
    let (kind, code, mtu) = match error {
        IcmpError::NoRoute => (1, 0, 0),
        IcmpError::Prohibited => (1, 1, 0),
        IcmpError::TooBig(mtu) => (2, 0, u32::from(mtu).max(1280)),
    };
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&mtu.to_be_bytes());
    out.extend_from_slice(quoted);
    let checksum = addresses_and_protocol(&out, true, ICMPV6).word(length).bytes(&out[40..]).checksum();
    out[42..44].copy_from_slice(&checksum);
    Some(out)
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use etherparse::{icmpv4, icmpv6};

    use super::*;

    fn udp_v4(payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 10, 0, 2], [10, 20, 0, 2], 64).udp(1, 2);
        builder.write(&mut packet, &vec![7; payload]).unwrap();
        packet
    }

    fn udp_v6(payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64).udp(1, 2);
        builder.write(&mut packet, &vec![7; payload]).unwrap();
        packet
    }

    #[test]
    fn errors_are_whole_and_quote_the_packet() {
        for (error, wanted) in [
            (IcmpError::NoRoute, icmpv4::DestUnreachableHeader::Network),
            (IcmpError::Prohibited, icmpv4::DestUnreachableHeader::FilterProhibited),
            (
                IcmpError::TooBig(1337),
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1337 },
            ),
        ] {
            let packet = udp_v4(1000);
            let bytes = answer(&packet, error).unwrap();
            assert_eq!(bytes.len(), MAX_V4);
            let sliced = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("{sliced:?}") };
            assert_eq!((ip.header().source(), ip.header().destination()), ([10, 20, 0, 2], [10, 10, 0, 2]));
            assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
            let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("{sliced:?}") };
            assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(wanted));
            assert!(Sum::default().bytes(&bytes[20..]).is_right() && packet.starts_with(icmp.payload()));
        }
        for (error, wanted) in [
            (IcmpError::NoRoute, Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)),
            (
                IcmpError::Prohibited,
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Prohibited),
            ),
            (IcmpError::TooBig(1400), Icmpv6Type::PacketTooBig { mtu: 1400 }),
            (IcmpError::TooBig(1200), Icmpv6Type::PacketTooBig { mtu: 1280 }),
        ] {
            let packet = udp_v6(1400);
            let bytes = answer(&packet, error).unwrap();
            assert_eq!(bytes.len(), MAX_V6);
            let sliced = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("{sliced:?}") };
            assert_eq!(icmp.icmp_type(), wanted);
            let length = u16::try_from(bytes.len() - 40).unwrap();
            let sum = addresses_and_protocol(&bytes, true, ICMPV6).word(length).bytes(&bytes[40..]);
            assert!(sum.is_right() && packet.starts_with(icmp.payload()));
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let error = IcmpError::NoRoute;
        assert!(answer(&udp_v4(0), error).is_some() && answer(&udp_v6(0), error).is_some());
        let with = |packet: &[u8], at: usize, bytes: &[u8]| {
            let mut packet = packet.to_vec();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            packet
        };
        let (v4, v6) = (udp_v4(8), udp_v6(8));
        for (what, packet) in [
            ("from nobody", with(&v4, 12, &[0; 4])),
            ("to multicast", with(&v4, 16, &[239, 0, 0, 1])),
            ("to all", with(&v4, 16, &[255; 4])),
            ("a later fragment", with(&v4, 6, &[0, 3])),
            ("an error", with(&with(&v4, 9, &[1]), 20, &[3])),
            ("from nobody", with(&v6, 8, &[0; 16])),
            ("to multicast", with(&v6, 24, &[0xff])),
            ("an error", with(&with(&v6, 6, &[58]), 40, &[1])),
            ("cut", v4[..19].to_vec()),
            ("nothing", Vec::new()),
        ] {
            assert_eq!(answer(&packet, error), None, "{what}");
        }
        // An echo request may be answered.
        assert!(answer(&with(&with(&v4, 9, &[1]), 20, &[8]), error).is_some());
        assert!(answer(&with(&with(&v6, 6, &[58]), 40, &[128]), error).is_some());
    }

    #[test]
    fn only_what_no_router_may_fragment_is_too_big() {
        let mut v4 = udp_v4(8);
        v4[6] = 0;
        assert!(!exceeds(&v4, 1400, 1300));
        v4[6] = 0x40;
        assert!(exceeds(&v4, 1400, 1300) && !exceeds(&v4, 1300, 1300));
        let v6 = udp_v6(8);
        assert!(exceeds(&v6, 1400, 1300) && !exceeds(&v6, 1280, 1200) && exceeds(&v6, 1281, 1200));
    }
}
