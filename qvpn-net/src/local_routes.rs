//! This site's own routes inside protected prefixes (`local`), copied from the main table into ours, each
//! with its device. With a `throw` route instead, packets would leave by the default route while that device
//! is down.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rtnetlink::packet_route::route::RouteType;

use crate::apply::Net;
use crate::changes::Work;
use crate::kernel::{self, KernelRoute, RouteFilter};
use crate::plan::{GUARD_TABLE, LOCAL_PROTOCOL, MAIN_TABLE, RoutePlan};

impl Net {
    /// Copies the routes of `new`'s `local` into our table, and removes copies that only `old` wanted or
    /// whose original is gone.
    pub(crate) async fn sync_local(&self, old: &RoutePlan, new: &RoutePlan, work: &mut Work) {
        let names = old.local().iter().chain(new.local()).map(|local| local.device.as_str());
        let Some(devices) = work.note(self.devices(names).await) else { return };
        for ipv6 in [false, true] {
            let mut wanted = Vec::new();
            for local in new.local().iter().filter(|local| local.prefix.addr().is_ipv6() == ipv6) {
                let Some(index) = devices.get(&local.device) else { continue };
                let filter =
                    RouteFilter { table: Some(MAIN_TABLE), oif: Some(*index), ..RouteFilter::default() };
                let keep = |found: &KernelRoute| {
                    let nested = local.prefix.contains(&found.prefix) || found.prefix.contains(&local.prefix);
                    let unicast = found.kind == RouteType::Unicast && found.prefix.prefix_len() > 0;
                    found.table == MAIN_TABLE && found.oif == Some(*index) && unicast && nested
                };
                let dump = kernel::dump_routes(&self.handle, ipv6, filter, keep).await;
                let found = work.check("listing routes of this site", dump).unwrap_or_default();
                wanted.extend(copies(&local.prefix, found));
            }
            self.sync_copies(ipv6, &wanted, old, new, &devices, work).await;
        }
    }

    async fn sync_copies(
        &self,
        ipv6: bool,
        wanted: &[KernelRoute],
        old: &RoutePlan,
        new: &RoutePlan,
        devices: &BTreeMap<String, u32>,
        work: &mut Work,
    ) {
        let filter = RouteFilter { protocol: Some(LOCAL_PROTOCOL), table: Some(GUARD_TABLE), oif: None };
        let concerns = |found: &KernelRoute| {
            let all = old.local().iter().chain(new.local());
            let mut of_device = all.filter(|local| devices.get(&local.device).copied() == found.oif);
            of_device.any(|local| local.prefix.contains(&found.prefix))
        };
        let dump = kernel::dump_routes(&self.handle, ipv6, filter, concerns).await;
        let present = work.check("listing copies of this site's routes", dump).unwrap_or_default();
        for copy in wanted.iter().filter(|copy| !present.contains(copy)) {
            let text = self.describe(copy).await;
            // Its device may have gone down in the meantime.
            if work.check(&text, kernel::add_copy(&self.handle, copy).await).is_some() {
                work.changes.added.push(text);
            }
        }
        for stale in present.iter().filter(|found| !wanted.iter().any(|copy| copy.prefix == found.prefix)) {
            self.remove_kernel_route(stale, work).await;
        }
    }
}

/// Returns the copies of `found` within `local`: the best route of each prefix; a wider route is copied with
/// the prefix of `local`.
fn copies(local: &IpNet, mut found: Vec<KernelRoute>) -> Vec<KernelRoute> {
    found.sort_by_key(|route| (std::cmp::Reverse(route.prefix.prefix_len()), route.metric));
    let mut wanted: Vec<KernelRoute> = Vec::new();
    for route in found {
        let prefix = if local.contains(&route.prefix) { route.prefix } else { *local };
        if !wanted.iter().any(|known| known.prefix == prefix) {
            wanted.push(route.copied_for(prefix));
        }
    }
    wanted
}
