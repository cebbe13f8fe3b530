//! What the filter of one tunnel must drop and let through. This module does not query the kernel.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::plan::RoutePlan;

/// The filter of one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterPlan {
    interface: String,
    device: Option<u32>,
    mark: (u32, u32),
    ports: RangeInclusive<u16>,
    kme_ports: BTreeSet<u16>,
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
    local: Vec<(IpNet, u32)>,
}

impl FilterPlan {
    /// Derives the filter of `plan`. `others` are the prefixes of this host's other tunnels, and `devices`
    /// the indices of the devices that `local` names.
    #[must_use]
    pub fn new(plan: &RoutePlan, others: &BTreeSet<IpNet>, devices: &BTreeMap<String, u32>) -> Self {
        // A prefix that is only blocked here yields to another tunnel that carries it.
        let allowed: BTreeSet<IpNet> = plan.allowed().filter(|_| plan.device().is_some()).collect();
        let others: BTreeSet<IpNet> = others.difference(&allowed).copied().collect();
        let own: BTreeSet<IpNet> = plan.filtered().filter(|prefix| !others.contains(prefix)).collect();
        let local = plan
            .local()
            .iter()
            .filter_map(|local| Some((local.prefix, *devices.get(&local.device)?)))
            .collect();
        Self {
            interface: plan.interface().to_owned(),
            device: plan.device(),
            mark: (plan.fwmark(), plan.fwmark_mask()),
            ports: plan.ports(),
            kme_ports: plan.kme_ports().clone(),
            v4: ranges(&own, &others, false),
            v6: ranges(&own, &others, true),
            local,
        }
    }

    /// Name of the tunnel's interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether nothing is protected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(crate) fn device(&self) -> Option<u32> {
        self.device
    }

    /// Mark and mask of our own datagrams.
    pub(crate) fn mark(&self) -> (u32, u32) {
        self.mark
    }

    pub(crate) fn ports(&self) -> &RangeInclusive<u16> {
        &self.ports
    }

    pub(crate) fn kme_ports(&self) -> &BTreeSet<u16> {
        &self.kme_ports
    }

    pub(crate) fn local(&self) -> &[(IpNet, u32)] {
        &self.local
    }

    /// The protected addresses of a family as disjoint ranges in ascending order, none next to another.
    pub(crate) fn ranges(&self, ipv6: bool) -> &[(u128, u128)] {
        if ipv6 { &self.v6 } else { &self.v4 }
    }
}

/// The addresses whose longest prefix is one of `own`.
fn ranges(own: &BTreeSet<IpNet>, others: &BTreeSet<IpNet>, ipv6: bool) -> Vec<(u128, u128)> {
    let family = |net: &&IpNet| net.addr().is_ipv6() == ipv6;
    // Of two that start at one address, the wider one first.
    let others: BTreeSet<(u128, Reverse<u128>)> = others
        .iter()
        .filter(family)
        .map(|net| {
            let (start, end) = bounds(net);
            (start, Reverse(end))
        })
        .collect();
    let mut parts = Vec::new();
    for net in own.iter().filter(family) {
        let (start, end) = bounds(net);
        let mut from = start;
        let mut closed = false;
        for (inner_start, Reverse(inner_end)) in others.range((start, Reverse(u128::MAX))..=(end, Reverse(0)))
        {
            // Prefixes nest or are disjoint: one that starts before and ends after this one contains it.
            if *inner_end > end || (*inner_start, *inner_end) == (start, end) || *inner_start < from {
                continue;
            }
            if *inner_start > from {
                parts.push((from, inner_start - 1));
            }
            match inner_end.checked_add(1).filter(|next| *next <= end) {
                Some(next) => from = next,
                None => {
                    closed = true;
                    break;
                }
            }
        }
        if !closed {
            parts.push((from, end));
        }
    }
    merge(parts)
}

fn merge(mut parts: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    parts.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (start, end) in parts {
        match merged.last_mut() {
            Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

fn bounds(net: &IpNet) -> (u128, u128) {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    (number(net.network()), number(net.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Formats ranges as `first-last`, for IPv4.
    fn shown(own: &[&str], others: &[&str]) -> Vec<String> {
        let ip = |n: u128| std::net::Ipv4Addr::from(u32::try_from(n).unwrap());
        ranges(&set(own), &set(others), false)
            .into_iter()
            .map(|(start, end)| format!("{}-{}", ip(start), ip(end)))
            .collect()
    }

    #[test]
    fn neighbouring_and_nested_prefixes_are_one_range() {
        assert_eq!(shown(&["10.0.0.0/9", "10.128.0.0/9", "10.3.0.0/16"], &[]), ["10.0.0.0-10.255.255.255"]);
        assert_eq!(shown(&["0.0.0.0/0"], &[]), ["0.0.0.0-255.255.255.255"]);
        assert_eq!(ranges(&set(&["::/0"]), &set(&[]), true), [(0, u128::MAX)]);
    }

    #[test]
    fn a_longer_prefix_of_another_tunnel_is_not_ours() {
        assert_eq!(
            shown(&["10.0.0.0/8"], &["10.20.0.0/16", "10.20.4.0/24"]),
            ["10.0.0.0-10.19.255.255", "10.21.0.0-10.255.255.255"]
        );
        // Unless ours is still longer.
        assert_eq!(
            shown(&["10.0.0.0/8", "10.20.4.0/24"], &["10.20.0.0/16"]),
            ["10.0.0.0-10.19.255.255", "10.20.4.0-10.20.4.255", "10.21.0.0-10.255.255.255"]
        );
        assert_eq!(shown(&["10.20.0.0/16"], &["10.0.0.0/8", "0.0.0.0/0"]), ["10.20.0.0-10.20.255.255"]);
        assert_eq!(shown(&["0.0.0.0/0"], &["128.0.0.0/1"]), ["0.0.0.0-127.255.255.255"]);
        assert_eq!(shown(&["10.0.0.0/31"], &["10.0.0.0/32", "10.0.0.1/32"]), [""; 0]);
    }

    #[test]
    fn a_config_without_a_device_takes_no_prefix_from_a_tunnel_that_carries_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let plan =
            RoutePlan::new("qvpn1", [net("10.20.0.0/16")], qvpn_api::config::Table::Auto, 0, 1).unwrap();
        let carried = set(&["10.20.0.0/16"]);
        let empty = |plan: &RoutePlan| FilterPlan::new(plan, &carried, &BTreeMap::new()).is_empty();
        assert!(empty(&plan));
        assert!(!empty(&plan.on_device(Some(7))));
    }

    proptest::proptest! {
        /// Compared with the definition: an address is ours if the longest prefix that contains it is ours.
        #[test]
        fn ranges_agree_with_the_longest_prefix(
            nets in proptest::collection::vec((0u32..64, 26u8..=32, proptest::bool::ANY), 0..12),
        ) {
            let address = |low: u32| IpAddr::from(std::net::Ipv4Addr::from(low));
            let net = |low: u32, len: u8| IpNet::new(address(low), len).unwrap().trunc();
            let all: BTreeMap<IpNet, bool> =
                nets.into_iter().map(|(low, len, ours)| (net(low, len), ours)).collect();
            let pick = |wanted: bool| {
                all.iter().filter(|(_, ours)| **ours == wanted).map(|(net, _)| *net).collect()
            };
            let found = ranges(&pick(true), &pick(false), false);
            for low in 0u32..64 {
                let ip = address(low);
                let containing = all.iter().filter(|(net, _)| net.contains(&ip));
                let around = containing.max_by_key(|(net, _)| net.prefix_len());
                let ours = around.is_some_and(|(_, ours)| *ours);
                let inside = found.iter().any(|(start, end)| (*start..=*end).contains(&u128::from(low)));
                proptest::prop_assert_eq!(inside, ours, "{}", ip);
            }
            proptest::prop_assert!(found.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", found);
        }
    }
}
