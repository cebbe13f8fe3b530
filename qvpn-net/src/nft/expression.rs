//! The expressions of nf_tables rules that the filter uses, each as `nft` would write it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::message::Attributes;

const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const LIST_ELEMENT: u16 = 1;

/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;

/// Metadata that the kernel keeps for a packet.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Meta {
    Mark = 3,
    InputDevice = 4,
    OutputDevice = 5,
    Protocol = 15,
    Transport = 16,
}

/// The source or the destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// The verdict of a rule for packets that match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// The expressions of one rule, in their order.
pub(super) struct Rule<'a, 'b> {
    list: &'a mut Attributes<'b>,
}

impl<'a, 'b> Rule<'a, 'b> {
    pub fn new(list: &'a mut Attributes<'b>) -> Self {
        Self { list }
    }

    /// `meta oif INDEX`
    pub fn output_device(self, index: u32) -> Self {
        self.meta(Meta::OutputDevice).equals(&index.to_ne_bytes())
    }

    /// `meta iif INDEX`
    pub fn input_device(self, index: u32) -> Self {
        self.meta(Meta::InputDevice).equals(&index.to_ne_bytes())
    }

    /// `meta mark & MASK == MARK`
    pub fn mark(self, mark: u32, mask: u32) -> Self {
        self.meta(Meta::Mark).bitwise(mask, 0).equals(&mark.to_ne_bytes())
    }

    /// `meta mark set meta mark & ~MASK | MARK`
    pub fn set_mark(self, mark: u32, mask: u32) -> Self {
        self.meta(Meta::Mark).bitwise(!mask, mark).expression("meta", |a| {
            a.number(2, Meta::Mark as u32);
            a.number(3, REGISTER);
        })
    }

    /// `udp sport FIRST-LAST` and the like.
    pub fn ports(self, transport: Transport, end: End, ports: &RangeInclusive<u16>) -> Self {
        let protocol = match transport {
            Transport::Tcp => IPPROTO_TCP,
            Transport::Udp => IPPROTO_UDP,
        };
        const GREATER_OR_EQUAL: u32 = 5;
        const LESS_OR_EQUAL: u32 = 3;
        self.meta(Meta::Transport)
            .equals(&[protocol])
            .payload(2, if end == End::Source { 0 } else { 2 }, 2)
            .compare(GREATER_OR_EQUAL, &ports.start().to_be_bytes())
            .compare(LESS_OR_EQUAL, &ports.end().to_be_bytes())
    }

    /// `ip daddr PREFIX` and the like.
    pub fn prefix(self, end: End, prefix: &IpNet) -> Self {
        let rule = self.address(end, prefix.addr().is_ipv6());
        match (prefix.addr(), prefix.netmask()) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => rule.masked(&mask.octets()).equals(&address.octets()),
            (IpAddr::V6(address), IpAddr::V6(mask)) => rule.masked(&mask.octets()).equals(&address.octets()),
            // The address and its mask are of the same family.
            _ => rule,
        }
    }

    /// `ip daddr @SET` and the like.
    pub fn in_set(self, end: End, ipv6: bool, set: &str) -> Self {
        self.address(end, ipv6).expression("lookup", |a| {
            a.text(1, set);
            a.number(2, REGISTER);
        })
    }

    /// Neighbour discovery: `icmpv6 type 133-137`.
    pub fn neighbour_discovery(self) -> Self {
        self.icmp(true, 133..=137)
    }

    /// ICMP errors about packets that were sent before.
    pub fn icmp_error(self, ipv6: bool) -> Self {
        if ipv6 { self.icmp(true, 1..=4) } else { self.icmp(false, 3..=12).not_echo() }
    }

    /// `counter`
    pub fn counter(self) -> Self {
        self.expression("counter", |_| {})
    }

    pub fn verdict(self, verdict: Verdict) {
        let code = match verdict {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
        };
        let _ = self.expression("immediate", |a| {
            a.number(1, VERDICT_REGISTER);
            a.nested(2, |data| data.nested(DATA_VERDICT, |verdict| verdict.number(1, code)));
        });
    }

    fn icmp(self, ipv6: bool, types: RangeInclusive<u8>) -> Self {
        const GREATER_OR_EQUAL: u32 = 5;
        const LESS_OR_EQUAL: u32 = 3;
        self.meta(Meta::Transport)
            .equals(&[if ipv6 { IPPROTO_ICMPV6 } else { IPPROTO_ICMP }])
            .payload(2, 0, 1)
            .compare(GREATER_OR_EQUAL, &[*types.start()])
            .compare(LESS_OR_EQUAL, &[*types.end()])
    }

    /// ICMP types 5 (redirect), 8 (echo request), 9 and 10 (router discovery) lie between the errors.
    fn not_echo(self) -> Self {
        const NOT_EQUAL: u32 = 1;
        [5, 8, 9, 10].into_iter().fold(self, |rule, kind| rule.compare(NOT_EQUAL, &[kind]))
    }

    fn address(self, end: End, ipv6: bool) -> Self {
        let (offset, length) = match (end, ipv6) {
            (End::Source, false) => (12, 4),
            (End::Destination, false) => (16, 4),
            (End::Source, true) => (8, 16),
            (End::Destination, true) => (24, 16),
        };
        let family = if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        self.meta(Meta::Protocol).equals(&[family]).payload(1, offset, length)
    }

    fn meta(self, key: Meta) -> Self {
        self.expression("meta", |a| {
            a.number(1, REGISTER);
            a.number(2, key as u32);
        })
    }

    /// `base` is 1 for the network header, 2 for the transport header.
    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", |a| {
            a.number(1, REGISTER);
            a.number(2, base);
            a.number(3, offset);
            a.number(4, length);
        })
    }

    fn bitwise(self, mask: u32, xor: u32) -> Self {
        self.bitwise_bytes(&mask.to_ne_bytes(), &xor.to_ne_bytes())
    }

    fn masked(self, mask: &[u8]) -> Self {
        let zeros = [0; 16];
        let xor = zeros.get(..mask.len()).unwrap_or_default();
        self.bitwise_bytes(mask, xor)
    }

    fn bitwise_bytes(self, mask: &[u8], xor: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        self.expression("bitwise", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, length);
            a.nested(4, |data| data.bytes(DATA_VALUE, mask));
            a.nested(5, |data| data.bytes(DATA_VALUE, xor));
        })
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(0, value)
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        self.expression("cmp", |a| {
            a.number(1, REGISTER);
            a.number(2, operator);
            a.nested(3, |data| data.bytes(DATA_VALUE, value));
        })
    }

    fn expression(self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> Self {
        self.list.nested(LIST_ELEMENT, |element| {
            element.text(1, name);
            element.nested(2, fill);
        });
        self
    }
}
