//! Maps inner addresses to peers: the longest prefix across all peers wins, as in WireGuard's cryptokey
//! routing.

use std::net::IpAddr;

use qvpn_types::PeerNumber;

use crate::prefix_table::{BadPrefix, PrefixTable};

/// Prefixes of both families, with their peers.
#[derive(Debug, Default)]
pub struct AllowedIps(PrefixTable<PeerNumber>);

impl AllowedIps {
    /// Builds a table of address, prefix length and peer. Bits beyond the prefix are ignored; the last of
    /// several equal prefixes wins.
    ///
    /// # Errors
    /// [`BadPrefix`] for a length beyond 32 or 128 bits.
    pub fn new(entries: impl IntoIterator<Item = (IpAddr, u8, PeerNumber)>) -> Result<Self, BadPrefix> {
        PrefixTable::new(entries).map(Self)
    }

    /// Returns the peer with the longest prefix that contains `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<PeerNumber> {
        self.0.lookup(address)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str, peer: u16) -> (IpAddr, u8, PeerNumber) {
        let (address, prefix) = text.split_once('/').unwrap();
        (address.parse().unwrap(), prefix.parse().unwrap(), PeerNumber(peer))
    }

    fn at(table: &AllowedIps, address: &str) -> Option<u16> {
        table.lookup(address.parse().unwrap()).map(|p| p.0)
    }

    #[test]
    fn the_longest_prefix_wins_and_gaps_belong_to_nobody() {
        let table = AllowedIps::new([
            net("10.0.0.0/8", 1),
            net("10.20.0.0/16", 2),
            net("10.20.255.255/32", 3),
            net("fd00::/8", 4),
        ])
        .unwrap();
        assert_eq!(at(&table, "9.255.255.255"), None);
        assert_eq!(at(&table, "10.0.0.0"), Some(1));
        assert_eq!(at(&table, "10.20.0.0"), Some(2));
        assert_eq!(at(&table, "10.20.255.254"), Some(2));
        assert_eq!(at(&table, "10.20.255.255"), Some(3));
        assert_eq!(at(&table, "10.21.0.0"), Some(1));
        assert_eq!(at(&table, "11.0.0.0"), None);
        assert_eq!(at(&table, "fdff::1"), Some(4));
        assert_eq!(at(&table, "fe00::"), None);
    }

    #[test]
    fn a_default_route_covers_the_first_and_the_last_address() {
        let table = AllowedIps::new([net("0.0.0.0/0", 1), net("::/0", 2), net("128.0.0.0/1", 3)]).unwrap();
        assert_eq!(at(&table, "0.0.0.0"), Some(1));
        assert_eq!(at(&table, "255.255.255.255"), Some(3));
        assert_eq!(at(&table, "::"), Some(2));
        assert_eq!(at(&table, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(2));
    }

    #[test]
    fn a_length_beyond_the_address_is_refused() {
        let bad = AllowedIps::new([net("10.0.0.0/33", 1)]).unwrap_err();
        assert_eq!(
            bad.to_string(),
            "10.0.0.0/33 is no prefix: an address of this family has at most 32 bits"
        );
        assert!(AllowedIps::new([net("::/129", 1)]).is_err());
    }

    fn brute_force(entries: &[(IpAddr, u8, PeerNumber)], address: IpAddr) -> Option<PeerNumber> {
        let bits = |a: IpAddr| match a {
            IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
            IpAddr::V6(a) => a.to_bits(),
        };
        let mut best: Option<(u8, PeerNumber)> = None;
        for (a, prefix, peer) in entries.iter().filter(|e| e.0.is_ipv4() == address.is_ipv4()) {
            let differ = (bits(*a) ^ bits(address)).leading_zeros() < u32::from(*prefix);
            if !differ && best.is_none_or(|b| *prefix >= b.0) {
                best = Some((*prefix, *peer));
            }
        }
        best.map(|b| b.1)
    }

    /// Addresses with few distinct bits, so that prefixes often nest and collide.
    fn address() -> impl Strategy<Value = IpAddr> {
        let ends = prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>()];
        prop_oneof![
            (0u32..8, 0u32..4, ends.clone())
                .prop_map(|(a, b, c)| IpAddr::V4(Ipv4Addr::from_bits(a << 29 | b << 16 | c & 0xff))),
            (0u32..8, 0u32..4, ends).prop_map(|(a, b, c)| {
                IpAddr::V6(Ipv6Addr::from_bits(
                    u128::from(a) << 125 | u128::from(b) << 64 | u128::from(c & 0xff),
                ))
            }),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_brute_force(
            entries in prop::collection::vec((address(), 0u8..=128, 0u16..6), 0..40),
            addresses in prop::collection::vec(address(), 1..40),
        ) {
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(a, p, peer)| (a, if a.is_ipv4() { p.min(32) } else { p }, PeerNumber(peer)))
                .collect();
            let table = AllowedIps::new(entries.clone()).unwrap();
            let edges = entries.iter().map(|e| e.0);
            for address in addresses.into_iter().chain(edges) {
                prop_assert_eq!(table.lookup(address), brute_force(&entries, address), "{}", address);
            }
        }
    }
}
