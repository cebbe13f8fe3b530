//! The networks that this host's devices are connected to, and which of them a plan blocks.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteProtocol, RouteType};

use crate::apply::{Net, to_io};
use crate::device::address_of;
use crate::error::NetError;
use crate::exempt::exempt;
use crate::kernel::{self, KernelRoute, RouteFilter};
use crate::plan::{GUARD_TABLE, MAIN_TABLE, ROUTE_PROTOCOL, RoutePlan};

/// A network that a device of this host is connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectedNetwork {
    /// The network.
    pub prefix: IpNet,
    /// The device's name.
    pub device: String,
    /// Whether the device leads to the WAN: a default route or a route to an endpoint goes through it.
    pub uplink: bool,
    /// Whether another host chose the network: routes of the device come from DHCP or router advertisements.
    pub dynamic: bool,
}

impl Net {
    /// Returns the networks that devices are connected to, without link-local ones. `endpoints` are those of
    /// the peers.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub async fn connected(&self, endpoints: &[IpAddr]) -> Result<Vec<ConnectedNetwork>, NetError> {
        let what = "listing this host's networks";
        let mut routes = Vec::new();
        for ipv6 in [false, true] {
            let filter = RouteFilter { table: Some(MAIN_TABLE), ..RouteFilter::default() };
            let keep = |found: &KernelRoute| {
                found.table == MAIN_TABLE && found.kind == RouteType::Unicast && found.oif.is_some()
            };
            let dump = kernel::dump_routes(&self.handle, ipv6, filter, keep).await;
            routes.extend(dump.map_err(|error| NetError::refused(what, error))?);
        }
        let leads_to_an_endpoint = |route: &KernelRoute| endpoints.iter().any(|ip| route.prefix.contains(ip));
        let uplinks = devices(&routes, |route| route.prefix.prefix_len() == 0 || leads_to_an_endpoint(route));
        let dynamic = devices(&routes, |route| {
            matches!(RouteProtocol::from(route.protocol), RouteProtocol::Dhcp | RouteProtocol::Ra)
        });
        let mut names: BTreeMap<u32, Option<String>> = BTreeMap::new();
        let mut found = BTreeSet::new();
        for route in &routes {
            let Some(index) = route.oif.filter(|_| is_connected(route)) else { continue };
            let name = match names.entry(index) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let name = kernel::name_of(&self.handle, index).await;
                    new.insert(name.map_err(|error| NetError::refused(what, error))?)
                }
            };
            let Some(device) = name else { continue };
            found.insert(ConnectedNetwork {
                prefix: route.prefix,
                device: device.clone(),
                uplink: uplinks.contains(&index),
                dynamic: dynamic.contains(&index),
            });
        }
        Ok(found.into_iter().collect())
    }
}

impl Net {
    /// Returns the prefixes that our `unreachable` routes block, in the table that `plan` uses for `protect`.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub async fn blocked(&self, plan: &RoutePlan) -> Result<BTreeSet<IpNet>, NetError> {
        let table = if plan.uses_guard_table() { GUARD_TABLE } else { MAIN_TABLE };
        let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), table: Some(table), oif: None };
        let mut found = BTreeSet::new();
        for ipv6 in [false, true] {
            let keep = |route: &KernelRoute| route.table == table && route.kind == RouteType::Unreachable;
            let dump = kernel::dump_routes(&self.handle, ipv6, filter, keep).await;
            let dump = dump.map_err(|error| NetError::refused("listing our blocks", error))?;
            found.extend(dump.into_iter().map(|route| route.prefix));
        }
        Ok(found)
    }
}

fn devices(routes: &[KernelRoute], wanted: impl Fn(&KernelRoute) -> bool) -> BTreeSet<u32> {
    routes.iter().filter(|route| wanted(route)).filter_map(|route| route.oif).collect()
}

fn is_connected(route: &KernelRoute) -> bool {
    RouteProtocol::from(route.protocol) == RouteProtocol::Kernel
        && route.gateway.is_none()
        && route.prefix.prefix_len() > 0
        && !exempt().any(|net| net.contains(&route.prefix))
}

impl Net {
    /// Returns the addresses of this host's devices, each with the device's name.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub async fn own_addresses(&self) -> Result<Vec<(IpAddr, String)>, NetError> {
        let refused = |error| NetError::refused("listing this host's addresses", error);
        let all: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(to_io).map_err(refused)?;
        let mut found = Vec::new();
        for message in all {
            let Some(net) = address_of(&message) else { continue };
            let name = kernel::name_of(&self.handle, message.header.index).await.map_err(refused)?;
            found.extend(name.map(|name| (net.addr(), name)));
        }
        Ok(found)
    }
}

impl RoutePlan {
    /// Returns those of `connected` that lie inside a protected prefix and that `local` does not name, each
    /// with that prefix. Uplinks are left out: what the tunnel needs there passes by its mark.
    #[must_use]
    pub fn blocked_networks<'c>(
        &self,
        connected: &'c [ConnectedNetwork],
    ) -> Vec<(&'c ConnectedNetwork, IpNet)> {
        let named = |network: &ConnectedNetwork| {
            self.local().iter().any(|local| {
                local.device == network.device
                    && (local.prefix.contains(&network.prefix) || network.prefix.contains(&local.prefix))
            })
        };
        let around = |network: &ConnectedNetwork| {
            self.filtered().filter(|net| net.contains(&network.prefix)).max_by_key(IpNet::prefix_len)
        };
        connected
            .iter()
            .filter(|network| !network.uplink && network.device != self.interface() && !named(network))
            .filter_map(|network| Some((network, around(network)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use qvpn_api::config::{Local, Table};

    use super::*;

    fn network(prefix: &str, device: &str, uplink: bool) -> ConnectedNetwork {
        let (prefix, device) = (prefix.parse().unwrap(), device.to_owned());
        ConnectedNetwork { prefix, device, uplink, dynamic: false }
    }

    #[test]
    fn only_networks_without_a_line_are_blocked() {
        let plan = RoutePlan::new("qvpn0", ["10.0.0.0/8".parse().unwrap()], Table::Auto, 0, 1).unwrap();
        let plan = plan.with_protect(["0.0.0.0/0".parse().unwrap()]);
        let connected = [
            network("10.10.0.0/16", "lan", false),
            network("192.168.1.0/24", "guests", false),
            network("10.77.0.0/30", "qvpn0", false),
            network("198.51.100.0/24", "wan", true),
            network("fd10::/64", "lan", false),
        ];
        let shown = |plan: &RoutePlan| {
            let blocked = plan.blocked_networks(&connected);
            blocked.iter().map(|(n, p)| format!("{} {} {p}", n.prefix, n.device)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&plan), ["10.10.0.0/16 lan 10.0.0.0/8", "192.168.1.0/24 guests 0.0.0.0/0"]);
        let local =
            |prefix: &str, device: &str| Local { prefix: prefix.parse().unwrap(), device: device.to_owned() };
        // An entry for another device does not count.
        let plan = plan.with_local(vec![local("10.10.0.0/16", "lan"), local("192.168.0.0/16", "lan")]);
        assert_eq!(shown(&plan), ["192.168.1.0/24 guests 0.0.0.0/0"]);
    }
}
