//! Maps addresses to values by their longest prefix. A table never changes once it is built, so prefixes are
//! flattened to sorted, disjoint ranges, and a look-up is one binary search.

use std::net::IpAddr;

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

/// Prefixes of both families, each with a value.
#[derive(Debug)]
pub(crate) struct PrefixTable<V> {
    v4: Ranges<u32, V>,
    v6: Ranges<u128, V>,
}

impl<V> Default for PrefixTable<V> {
    fn default() -> Self {
        Self { v4: Ranges::default(), v6: Ranges::default() }
    }
}

impl<V: PartialEq + Copy> PrefixTable<V> {
    /// Builds a table of address, prefix length and value. Bits beyond the prefix are ignored; the last of
    /// several equal prefixes wins.
    pub(crate) fn new(entries: impl IntoIterator<Item = (IpAddr, u8, V)>) -> Result<Self, BadPrefix> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, prefix, value) in entries {
            let max = if address.is_ipv4() { 32 } else { 128 };
            if prefix > max {
                return Err(BadPrefix { address, prefix, max });
            }
            match address {
                IpAddr::V4(a) => {
                    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                    v4.push(Prefix { first: a.to_bits() & !host, last: a.to_bits() | host, value });
                }
                IpAddr::V6(a) => {
                    let host = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                    v6.push(Prefix { first: a.to_bits() & !host, last: a.to_bits() | host, value });
                }
            }
        }
        Ok(Self { v4: Ranges::new(v4, |n| n.checked_add(1)), v6: Ranges::new(v6, |n| n.checked_add(1)) })
    }

    /// Returns the value of the longest prefix that contains `address`.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(a) => self.v4.lookup(a.to_bits()),
            IpAddr::V6(a) => self.v6.lookup(a.to_bits()),
        }
    }
}

struct Prefix<A, V> {
    first: A,
    last: A,
    value: V,
}

/// Disjoint ranges: range *i* is from `starts[i]` to just before `starts[i + 1]`.
#[derive(Debug)]
struct Ranges<A, V> {
    starts: Vec<A>,
    values: Vec<Option<V>>,
}

impl<A, V> Default for Ranges<A, V> {
    fn default() -> Self {
        Self { starts: Vec::new(), values: Vec::new() }
    }
}

impl<A: Ord + Copy, V: PartialEq + Copy> Ranges<A, V> {
    /// Flattens prefixes. Two prefixes are nested or disjoint, so a sweep in order of their starts needs
    /// only a stack of the open ones.
    fn new(mut prefixes: Vec<Prefix<A, V>>, next: impl Fn(A) -> Option<A>) -> Self {
        // Outer prefixes first. The sort is stable, so the last of several equal prefixes is on top of the
        // stack.
        prefixes.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
        let mut ranges = Self::default();
        let mut open: Vec<Prefix<A, V>> = Vec::new();
        let close = |ranges: &mut Self, open: &mut Vec<Prefix<A, V>>, before: Option<A>| {
            while open.last().is_some_and(|top| before.is_none_or(|first| top.last < first)) {
                let Some(top) = open.pop() else { break };
                if let Some(after) = next(top.last) {
                    ranges.push(after, open.last().map(|outer| outer.value));
                }
            }
        };
        for prefix in prefixes {
            close(&mut ranges, &mut open, Some(prefix.first));
            ranges.push(prefix.first, Some(prefix.value));
            open.push(prefix);
        }
        close(&mut ranges, &mut open, None);
        ranges
    }

    fn push(&mut self, start: A, value: Option<V>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.values.pop();
        }
        if self.values.last().copied().flatten() != value {
            self.starts.push(start);
            self.values.push(value);
        }
    }

    fn lookup(&self, address: A) -> Option<V> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.values[after.checked_sub(1)?]
    }
}
