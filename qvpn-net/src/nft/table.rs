//! The nftables table of one tunnel.
//!
//! A change is two transactions, [`add_sets`] and [`switch`]: a packet meets the old rules of a chain with
//! the old sets, or the new rules with the new sets. In one transaction the kernel would start with the new
//! rules before the new sets' elements are found, and a table that is deleted and made again would be empty
//! for a packet between its chains: packets slip through both gaps.
//!
//! As `nft` would print it, for a tunnel with index 7 that listens on port 51820:
//!
//! ```text
//! table inet qvpn-qvpn0 {
//!     flags owner,persist
//!     set v4-1 { type ipv4_addr; flags interval; elements = { 10.20.0.0/16 } }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         iif { lo, 7 } accept
//!         udp dport 51820 ip saddr @v4-1 meta mark set meta mark & 0x0000ffff | 0x71760000 accept
//!         … what is exempt …
//!         ip saddr @v4-1 counter drop
//!     }
//!     chain forward { type filter hook forward priority 2147483647; … ip daddr @v4-1 counter drop }
//!     chain postrouting {
//!         type filter hook postrouting priority 2147483647; policy accept;
//!         oif { lo, 7 } accept
//!         meta mark & 0xffff0000 == 0x71760000 udp sport 51820 accept
//!         ip daddr @v4-1 counter drop
//!     }
//! }
//! ```

use super::expression::{End, Rule, Transport, Verdict};
use super::message::{Attributes, Kind, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use crate::exempt::exempt;
use crate::filter_plan::FilterPlan;

/// Only the process that made the table may change it, and `nft flush ruleset` skips it.
const TABLE_OWNER: u32 = 2;
/// The table stays when its owner ends, and another process may take it over.
const TABLE_PERSIST: u32 = 4;

const SET_INTERVAL: u32 = 4;
const ELEMENT_INTERVAL_END: u32 = 1;
/// Set elements in one message: an attribute holds at most 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// Before connection tracking.
const PRIORITY_RAW: i32 = -300;
/// After every other chain: nothing changes the packet after it.
const PRIORITY_LAST: i32 = i32::MAX;

/// A chain at a hook of netfilter (`NF_INET_…`).
#[derive(Clone, Copy)]
struct Chain {
    name: &'static str,
    hook: u32,
    priority: i32,
}

const CHAINS: [Chain; 3] = [
    Chain { name: "prerouting", hook: 0, priority: PRIORITY_RAW },
    Chain { name: "forward", hook: 2, priority: PRIORITY_LAST },
    Chain { name: "postrouting", hook: 4, priority: PRIORITY_LAST },
];

/// `lo` has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// Name of the table of `interface`.
pub(crate) fn table_name(interface: &str) -> String {
    format!("qvpn-{interface}")
}

/// Whether the kernel knows the `owner` and `persist` flags (Linux 6.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    Owned,
    Plain,
}

/// The sets of one version of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sets(u32);

impl Sets {
    /// Returns names that `existing` does not contain.
    pub fn new(existing: &[String]) -> Self {
        let number = |name: &String| name.rsplit_once('-')?.1.parse::<u32>().ok();
        Self(existing.iter().filter_map(number).max().unwrap_or(0).wrapping_add(1))
    }

    fn name(self, ipv6: bool) -> String {
        format!("{}-{}", if ipv6 { "v6" } else { "v4" }, self.0)
    }
}

/// Makes the table of `plan`, unless it exists, and its sets. No rule uses them yet.
pub(super) fn add_sets(plan: &FilterPlan, sets: Sets, wanted: Ownership) -> Messages {
    let mut batch = Messages::batch();
    table_and_sets(&mut batch, plan, sets, wanted);
    batch.commit()
}

fn table_and_sets(batch: &mut Messages, plan: &FilterPlan, sets: Sets, wanted: Ownership) {
    let table = table_name(plan.interface());
    new_table(batch, &table, wanted);
    for ipv6 in families(plan) {
        new_set(batch, &table, &sets.name(ipv6), ipv6);
        elements(batch, &table, &sets.name(ipv6), ipv6, plan.ranges(ipv6));
    }
}

/// Replaces the rules of each chain by those of `plan`, and removes the `stale` sets.
pub(super) fn switch(plan: &FilterPlan, sets: Sets, stale: &[String]) -> Messages {
    let mut batch = Messages::batch();
    chains_and_rules(&mut batch, plan, sets);
    for name in stale {
        batch.add(Kind::DelSet, 0, |a| {
            a.text(1, &table_name(plan.interface()));
            a.text(2, name);
        });
    }
    batch.commit()
}

fn chains_and_rules(batch: &mut Messages, plan: &FilterPlan, sets: Sets) {
    let table = table_name(plan.interface());
    for chain in CHAINS {
        new_chain(batch, &table, chain);
        batch.add(Kind::DelRule, 0, |a| {
            a.text(1, &table);
            a.text(2, chain.name);
        });
    }
    let mut rules = Rules { batch, table: &table, sets };
    incoming(&mut rules, plan);
    outgoing(&mut rules, plan, "forward");
    outgoing(&mut rules, plan, "postrouting");
}

/// Replaces a table with other flags or chains by that of `plan`, in one transaction, which has a shorter gap
/// than several. `supported` is what the kernel supports.
pub(super) fn replace(plan: &FilterPlan, sets: Sets, [supported, wanted]: [Ownership; 2]) -> Messages {
    let table = table_name(plan.interface());
    let mut batch = Messages::batch();
    // Made first, so that the removal succeeds if there is no such table or its owner has ended.
    new_table(&mut batch, &table, supported);
    batch.add(Kind::DelTable, 0, |a| a.text(1, &table));
    table_and_sets(&mut batch, plan, sets, wanted);
    chains_and_rules(&mut batch, plan, sets);
    batch.commit()
}

/// Removes the table of `interface`.
pub(super) fn remove(interface: &str) -> Messages {
    let mut batch = Messages::batch();
    batch.add(Kind::DelTable, NLM_F_ACK, |a| a.text(1, &table_name(interface)));
    batch.commit()
}

/// Takes over the table of `interface` if its owner has ended, and leaves its contents as they are.
pub(super) fn adopt(interface: &str) -> Messages {
    let mut batch = Messages::batch();
    batch.add(Kind::NewTable, NLM_F_ACK, |a| {
        a.text(1, &table_name(interface));
        a.number(2, TABLE_OWNER | TABLE_PERSIST);
    });
    batch.commit()
}

fn new_table(batch: &mut Messages, table: &str, ownership: Ownership) {
    batch.add(Kind::NewTable, NLM_F_CREATE, |a| {
        a.text(1, table);
        // Also given without flags: the kernel then refuses the message if the existing table has others.
        a.number(2, if ownership == Ownership::Owned { TABLE_OWNER | TABLE_PERSIST } else { 0 });
    });
}

fn new_set(batch: &mut Messages, table: &str, name: &str, ipv6: bool) {
    // nft's own types, so that `nft list` prints addresses.
    let (key_type, key_bytes) = if ipv6 { (8, 16) } else { (7, 4) };
    batch.add(Kind::NewSet, NLM_F_CREATE, |a| {
        a.text(1, table);
        a.text(2, name);
        a.number(3, SET_INTERVAL);
        a.number(4, key_type);
        a.number(5, key_bytes);
        a.number(10, u32::from(ipv6) + 1);
    });
}

fn elements(batch: &mut Messages, table: &str, name: &str, ipv6: bool, ranges: &[(u128, u128)]) {
    let last = if ipv6 { u128::MAX } else { u128::from(u32::MAX) };
    let starts_and_ends: Vec<(u128, bool)> = ranges
        .iter()
        .flat_map(|(start, end)| {
            // A range that contains the last address of the family has no end.
            let after = (*end < last).then(|| (end + 1, true));
            [Some((*start, false)), after].into_iter().flatten()
        })
        .collect();
    for chunk in starts_and_ends.chunks(ELEMENTS_PER_MESSAGE) {
        batch.add(Kind::NewSetElements, NLM_F_CREATE, |a| {
            a.text(1, table);
            a.text(2, name);
            a.nested(3, |list| chunk.iter().for_each(|(key, end)| element(list, ipv6, *key, *end)));
        });
    }
}

fn element(list: &mut Attributes<'_>, ipv6: bool, key: u128, end: bool) {
    let octets = key.to_be_bytes();
    let octets = if ipv6 { &octets[..] } else { &octets[12..] };
    list.nested(1, |element| {
        element.nested(1, |data| data.bytes(1, octets));
        if end {
            element.number(3, ELEMENT_INTERVAL_END);
        }
    });
}

fn new_chain(batch: &mut Messages, table: &str, chain: Chain) {
    const POLICY_ACCEPT: u32 = 1;
    batch.add(Kind::NewChain, NLM_F_CREATE, |a| {
        a.text(1, table);
        a.text(3, chain.name);
        a.nested(4, |hooked| {
            hooked.number(1, chain.hook);
            hooked.bytes(2, &chain.priority.to_be_bytes());
        });
        a.number(5, POLICY_ACCEPT);
        a.text(7, "filter");
    });
}

/// Adds rules to the chains of one table.
struct Rules<'a> {
    batch: &'a mut Messages,
    table: &'a str,
    sets: Sets,
}

impl Rules<'_> {
    fn add(&mut self, chain: &str, fill: impl FnOnce(Rule<'_, '_>)) {
        self.batch.add(Kind::NewRule, NLM_F_CREATE | NLM_F_APPEND, |a| {
            a.text(1, self.table);
            a.text(2, chain);
            a.nested(4, |list| fill(Rule::new(list)));
        });
    }
}

fn incoming(rules: &mut Rules<'_>, plan: &FilterPlan) {
    let chain = "prerouting";
    for device in [LOOPBACK].into_iter().chain(plan.device()) {
        rules.add(chain, |rule| rule.input_device(device).verdict(Verdict::Accept));
    }
    for (prefix, device) in plan.local() {
        rules.add(chain, |rule| {
            rule.input_device(*device).prefix(End::Source, prefix).verdict(Verdict::Accept);
        });
    }
    let (mark, mask) = plan.mark();
    for ipv6 in families(plan) {
        let set = &rules.sets.name(ipv6);
        // With the mark, the reverse path check uses the route of our own datagrams (`src_valid_mark`).
        rules.add(chain, |rule| {
            rule.ports(Transport::Udp, End::Destination, plan.ports())
                .in_set(End::Source, ipv6, set)
                .set_mark(mark, mask)
                .verdict(Verdict::Accept);
        });
        for port in plan.kme_ports() {
            rules.add(chain, |rule| {
                rule.ports(Transport::Tcp, End::Source, &(*port..=*port))
                    .in_set(End::Source, ipv6, set)
                    .set_mark(mark, mask)
                    .verdict(Verdict::Accept);
            });
        }
        rules.add(chain, |rule| rule.icmp_error(ipv6).verdict(Verdict::Accept));
    }
    for prefix in exempt() {
        // Link-local addresses are exempt as source and as destination; multicast and broadcast addresses are
        // never sources.
        for end in [End::Destination, End::Source] {
            rules.add(chain, |rule| rule.prefix(end, &prefix).verdict(Verdict::Accept));
        }
    }
    rules.add(chain, |rule| rule.neighbour_discovery().verdict(Verdict::Accept));
    for ipv6 in families(plan) {
        let set = &rules.sets.name(ipv6);
        rules.add(chain, |rule| {
            rule.in_set(End::Source, ipv6, set).counter().verdict(Verdict::Drop);
        });
    }
}

fn outgoing(rules: &mut Rules<'_>, plan: &FilterPlan, chain: &str) {
    for device in [LOOPBACK].into_iter().chain(plan.device()) {
        rules.add(chain, |rule| rule.output_device(device).verdict(Verdict::Accept));
    }
    for (prefix, device) in plan.local() {
        rules.add(chain, |rule| {
            rule.output_device(*device).prefix(End::Destination, prefix).verdict(Verdict::Accept);
        });
    }
    // Forwarded packets have passed the chain `forward` already, which has no exemption for the mark.
    if chain == "postrouting" {
        let (mark, mask) = plan.mark();
        rules.add(chain, |rule| {
            rule.mark(mark, mask).ports(Transport::Udp, End::Source, plan.ports()).verdict(Verdict::Accept);
        });
        for port in plan.kme_ports() {
            rules.add(chain, |rule| {
                rule.mark(mark, mask)
                    .ports(Transport::Tcp, End::Destination, &(*port..=*port))
                    .verdict(Verdict::Accept);
            });
        }
    }
    for prefix in exempt() {
        rules.add(chain, |rule| rule.prefix(End::Destination, &prefix).verdict(Verdict::Accept));
    }
    rules.add(chain, |rule| rule.neighbour_discovery().verdict(Verdict::Accept));
    for ipv6 in families(plan) {
        let set = &rules.sets.name(ipv6);
        rules.add(chain, |rule| {
            rule.in_set(End::Destination, ipv6, set).counter().verdict(Verdict::Drop);
        });
    }
}

/// Returns the families that have protected prefixes.
fn families(plan: &FilterPlan) -> impl Iterator<Item = bool> {
    [false, true].into_iter().filter(|ipv6| !plan.ranges(*ipv6).is_empty())
}
