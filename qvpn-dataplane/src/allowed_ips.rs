//! Maps inner addresses to peers: the longest prefix across all peers wins, as in WireGuard's cryptokey
//! routing. A table never changes once it is built, so prefixes are flattened to sorted, disjoint ranges,
//! and a look-up is one binary search.

use std::net::IpAddr;

use qvpn_types::PeerNumber;

/// A prefix length that is too long for its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{address}/{prefix} is no prefix: an address of this family has at most {max} bits")]
pub struct BadPrefix {
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub prefix: u8,
    /// The maximum prefix length of this family.
    pub max: u8,
}

/// Prefixes of both families, with their peers.
#[derive(Debug, Default)]
pub struct AllowedIps {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl AllowedIps {
    /// Builds a table of address, prefix length and peer. Bits beyond the prefix are ignored; the last of
    /// several equal prefixes wins.
    ///
    /// # Errors
    /// [`BadPrefix`] for a length beyond 32 or 128 bits.
    pub fn new(entries: impl IntoIterator<Item = (IpAddr, u8, PeerNumber)>) -> Result<Self, BadPrefix> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, prefix, peer) in entries {
            let max = if address.is_ipv4() { 32 } else { 128 };
            if prefix > max {
                return Err(BadPrefix { address, prefix, max });
            }
            match address {
                IpAddr::V4(a) => {
                    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                    v4.push(Prefix { first: a.to_bits() & !host, last: a.to_bits() | host, peer });
                }
                IpAddr::V6(a) => {
                    let host = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                    v6.push(Prefix { first: a.to_bits() & !host, last: a.to_bits() | host, peer });
                }
            }
        }
        Ok(Self { v4: Ranges::new(v4, |n| n.checked_add(1)), v6: Ranges::new(v6, |n| n.checked_add(1)) })
    }

    /// Returns the peer with the longest prefix that contains `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<PeerNumber> {
        match address {
            IpAddr::V4(a) => self.v4.lookup(a.to_bits()),
            IpAddr::V6(a) => self.v6.lookup(a.to_bits()),
        }
    }
}

struct Prefix<A> {
    first: A,
    last: A,
    peer: PeerNumber,
}

/// Disjoint ranges: range *i* is from `starts[i]` to just before `starts[i + 1]`.
#[derive(Debug, Default)]
struct Ranges<A> {
    starts: Vec<A>,
    peers: Vec<Option<PeerNumber>>,
}

impl<A: Ord + Copy> Ranges<A> {
    /// Flattens prefixes. Two prefixes are nested or disjoint, so a sweep in order of their starts needs
    /// only a stack of the open ones.
    fn new(mut prefixes: Vec<Prefix<A>>, next: impl Fn(A) -> Option<A>) -> Self {
        // Outer prefixes first. The sort is stable, so the last of equal prefixes is on top of the stack.
        prefixes.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
        let mut ranges = Self { starts: Vec::new(), peers: Vec::new() };
        let mut open: Vec<Prefix<A>> = Vec::new();
        let close = |ranges: &mut Self, open: &mut Vec<Prefix<A>>, before: Option<A>| {
            while open.last().is_some_and(|top| before.is_none_or(|first| top.last < first)) {
                let Some(top) = open.pop() else { break };
                if let Some(after) = next(top.last) {
                    ranges.push(after, open.last().map(|outer| outer.peer));
                }
            }
        };
        for prefix in prefixes {
            close(&mut ranges, &mut open, Some(prefix.first));
            ranges.push(prefix.first, Some(prefix.peer));
            open.push(prefix);
        }
        close(&mut ranges, &mut open, None);
        ranges
    }

    fn push(&mut self, start: A, peer: Option<PeerNumber>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.peers.pop();
        }
        if self.peers.last().copied().flatten() != peer {
            self.starts.push(start);
            self.peers.push(peer);
        }
    }

    fn lookup(&self, address: A) -> Option<PeerNumber> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.peers[after.checked_sub(1)?]
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
