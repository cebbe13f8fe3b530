//! The kernel's routes through one device, with their next hops, from rtnetlink messages. This module does no
//! I/O. Its numbers are from `linux/rtnetlink.h` and `linux/nexthop.h`.

mod hop;
mod objects;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::netlink::{attributes, u32_at};
use crate::plan::{LOCAL_PROTOCOL, ROUTE_PROTOCOL};
pub use hop::KernelNextHop;
use hop::address;
pub(crate) use objects::NextHopObjects;

/// A route of the kernel's and its next hops through one device; or a route that rejects packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHopRoute {
    /// The destination.
    pub prefix: IpNet,
    /// The metric; the kernel prefers the lowest.
    pub metric: u32,
    /// The next hops; empty for a route that rejects packets (`blackhole`, `unreachable`, `prohibit`).
    pub next_hops: Vec<KernelNextHop>,
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTN_UNICAST: u8 = 1;
/// The types `blackhole`, `unreachable` and `prohibit`: packets go nowhere, and no shorter route applies.
pub(crate) const REJECTING: [u8; 3] = [6, 7, 8];
/// Flag of a route or a next hop: its device is down.
const RTNH_F_DEAD: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
/// Bytes of `struct rtmsg` and of `struct rtnexthop`.
const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

/// Whether the payload of an `RTM_NEWROUTE` names a next hop object and not its next hops, as with the
/// sysctl `nexthop_compat_mode` off.
pub(crate) fn needs_objects(payload: &[u8]) -> bool {
    let all = attributes(payload.get(RTMSG..).unwrap_or_default());
    let has = |kind| all.iter().any(|(found, _)| *found == kind);
    has(RTA_NH_ID) && !has(RTA_OIF) && !has(RTA_MULTIPATH)
}

/// Parses the payload of an `RTM_NEWROUTE`. Returns `None` for routes that neither lead a packet through
/// `device` nor reject it: those of other tables, devices and types, our own, those for one traffic class,
/// and those whose device is down.
pub(crate) fn parse(
    payload: &[u8],
    table: u32,
    device: u32,
    objects: &NextHopObjects,
) -> Option<NextHopRoute> {
    let [family, length, _, tos, short_table, protocol, _, kind, ..] = *payload.first_chunk::<RTMSG>()?;
    let flags = u32_at(payload, 8)?;
    let down = flags & (u32::from(RTNH_F_DEAD) | RTM_F_CLONED) != 0;
    let rejects = REJECTING.contains(&kind);
    let ours = matches!(protocol, ROUTE_PROTOCOL | LOCAL_PROTOCOL);
    if (kind != RTN_UNICAST && !rejects) || tos != 0 || down || ours {
        return None;
    }
    let mut destination: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut number, mut metric, mut object) = (u32::from(short_table), 0, None);
    let (mut single, mut several) = (Hop::default(), None);
    for (kind, value) in attributes(payload.get(RTMSG..)?) {
        match kind {
            RTA_DST => destination = address(value)?,
            RTA_TABLE => number = u32_at(value, 0)?,
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_NH_ID => object = u32_at(value, 0),
            RTA_MULTIPATH => several = Some(multipath(value, device)),
            other => single.attribute(other, value),
        }
    }
    let next_hops = match (several, object) {
        // The kernel gives such an IPv6 route the device `lo`.
        _ if rejects => Vec::new(),
        (Some(several), _) => several,
        (None, Some(id)) if single.device.is_none() => objects.through(id, device),
        (None, _) if single.device == Some(device) => {
            vec![KernelNextHop { gateway: single.gateway, weight: 1 }]
        }
        (None, _) => Vec::new(),
    };
    let prefix = IpNet::new(destination, length).ok()?;
    let wanted = number == table && (rejects || !next_hops.is_empty());
    wanted.then_some(NextHopRoute { prefix, metric, next_hops })
}

/// Returns the route that the kernel uses for each prefix: the one with the lowest metric, and of equal ones
/// the first.
pub(crate) fn preferred(routes: impl IntoIterator<Item = NextHopRoute>) -> Vec<NextHopRoute> {
    let mut best: BTreeMap<IpNet, NextHopRoute> = BTreeMap::new();
    for route in routes {
        match best.get(&route.prefix) {
            Some(known) if known.metric <= route.metric => {}
            _ => {
                best.insert(route.prefix, route);
            }
        }
    }
    best.into_values().collect()
}

/// The attributes of one next hop.
#[derive(Default)]
struct Hop {
    device: Option<u32>,
    gateway: Option<IpAddr>,
}

impl Hop {
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        match kind {
            RTA_OIF => self.device = u32_at(value, 0),
            RTA_GATEWAY => self.gateway = address(value),
            // The value is an address family and an address of it.
            RTA_VIA => self.gateway = value.get(2..).and_then(address),
            _ => {}
        }
    }
}

/// Returns the live next hops through `device` of an `RTA_MULTIPATH`.
fn multipath(bytes: &[u8], device: u32) -> Vec<KernelNextHop> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while let Some([l0, l1, flags, hops, d0, d1, d2, d3]) = rest.first_chunk::<RTNEXTHOP>().copied() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(inner) = rest.get(RTNEXTHOP..length) else { break };
        let mut hop = Hop::default();
        attributes(inner).into_iter().for_each(|(kind, value)| hop.attribute(kind, value));
        if u32::from_ne_bytes([d0, d1, d2, d3]) == device && flags & RTNH_F_DEAD == 0 {
            found.push(KernelNextHop { gateway: hop.gateway, weight: u16::from(hops) + 1 });
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests;
