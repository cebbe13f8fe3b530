//! Upgrades from version 0.1: its blocks were in the main table and in a table for each port, below two
//! rules.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::apply::Net;
use crate::changes::Work;
use crate::kernel::{self, KernelRoute, RouteFilter};
use crate::plan::{LEGACY_PRIORITIES, LEGACY_TABLE_BASE, MAIN_TABLE, ROUTE_PROTOCOL, RoutePlan};

impl Net {
    /// Removes what version 0.1 left in the main table and in its own tables, once our routes protect the
    /// same prefixes.
    pub(crate) async fn remove_legacy(&self, plan: &RoutePlan, work: &mut Work) {
        if !plan.uses_guard_table() {
            return;
        }
        let own: BTreeSet<IpNet> = plan.filtered().collect();
        let legacy_table = LEGACY_TABLE_BASE + u32::from(*plan.ports().start());
        for ipv6 in [false, true] {
            let what = "removing what version 0.1 left";
            let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
            let legacy = |found: &KernelRoute| {
                own.contains(&found.prefix) && (found.table == MAIN_TABLE || found.table == legacy_table)
            };
            let dump = kernel::dump_routes(&self.handle, ipv6, filter, legacy).await;
            for found in work.check(what, dump).unwrap_or_default() {
                self.remove_kernel_route(&found, work).await;
            }
            let dump = kernel::dump_rules(&self.handle, ipv6).await;
            let old = |rule: &_| {
                kernel::is_our_rule(rule) && LEGACY_PRIORITIES.contains(&kernel::rule_priority(rule))
            };
            let rules = work.check(what, dump).unwrap_or_default().into_iter().filter(old);
            for rule in rules {
                work.check(what, kernel::remove_rule(&self.handle, rule).await);
            }
        }
    }
}
