//! Converts routes, rules and addresses to rtnetlink messages and back. Only this file knows the attributes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::plan::{
    GUARD_TABLE, LOCAL_PROTOCOL, MAIN_TABLE, OWN_MARK, OWN_MARK_MASK, ROUTE_PROTOCOL, RULE_PRIORITY, Route,
    Rule, RuleKind, Target,
};

/// A route in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelRoute {
    pub prefix: IpNet,
    pub table: u32,
    pub kind: RouteType,
    pub protocol: u8,
    pub metric: u32,
    pub tos: u8,
    pub oif: Option<u32>,
    pub gateway: Option<IpAddr>,
    pub preferred_source: Option<IpAddr>,
    pub mtu: Option<u32>,
}

impl KernelRoute {
    /// Returns `None` for messages that are not an IP route in a table (cached routes, other families).
    pub fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let unspecified: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut destination = unspecified;
        let (mut table, mut metric) = (u32::from(header.table), 0);
        let (mut oif, mut gateway, mut preferred_source, mut mtu) = (None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address)?,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(number) => metric = *number,
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::PrefSource(address) => preferred_source = ip(address),
                RouteAttribute::Metrics(list) => {
                    mtu = list.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
                }
                _ => {}
            }
        }
        Some(Self {
            prefix: IpNet::new(destination, header.destination_prefix_length).ok()?,
            table,
            kind: header.kind,
            protocol: header.protocol.into(),
            metric,
            tos: header.tos,
            oif,
            gateway,
            preferred_source,
            mtu,
        })
    }

    /// Whether it has one of our protocol numbers.
    pub fn is_ours(&self) -> bool {
        matches!(self.protocol, ROUTE_PROTOCOL | LOCAL_PROTOCOL)
    }

    /// Returns the same route in our table, as a copy for `local`.
    pub fn copied_for(&self, prefix: IpNet) -> Self {
        Self {
            prefix,
            table: GUARD_TABLE,
            protocol: LOCAL_PROTOCOL,
            // Better than the metric of the block.
            metric: u32::from(prefix.addr().is_ipv6()),
            mtu: None,
            ..self.clone()
        }
    }

    /// Formats the route as `ip route` does; `device` is the name of its interface.
    pub fn describe(&self, device: Option<&str>) -> String {
        let mut text = match self.kind {
            RouteType::Unicast => String::new(),
            RouteType::BlackHole => "blackhole ".to_owned(),
            other => format!("{other:?} ").to_lowercase(),
        };
        text += &self.prefix.to_string();
        if let Some(gateway) = self.gateway {
            text += &format!(" via {gateway}");
        }
        if let Some(device) = device {
            text += &format!(" dev {device}");
        }
        if self.table != MAIN_TABLE {
            text += &format!(" table {}", self.table);
        }
        format!("{text} proto {} metric {}", RouteProtocol::from(self.protocol), self.metric)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// Whether the kernel's `message` is our rule `rule`.
pub(crate) fn is_rule(message: &RuleMessage, rule: &Rule) -> bool {
    let (mut priority, mut table, mut mark, mut mask, mut target) =
        (0, u32::from(message.header.table), 0, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(n) => priority = *n,
            RuleAttribute::Table(n) => table = *n,
            RuleAttribute::FwMark(n) => mark = *n,
            RuleAttribute::FwMask(n) => mask = *n,
            RuleAttribute::Goto(n) => target = *n,
            _ => {}
        }
    }
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    is_our_rule(message)
        && message.header.family == family(rule.ipv6)
        && priority == rule.priority()
        && match rule.kind {
            RuleKind::Protected => {
                table == GUARD_TABLE && (mark, mask) == (OWN_MARK, OWN_MARK_MASK) && inverted
            }
            RuleKind::Bypass { mark: wanted } => mark == wanted && target == RULE_PRIORITY + 1,
            RuleKind::Landing => message.header.action == RuleAction::Nop,
        }
}

/// Whether a rule carries our protocol number.
pub(crate) fn is_our_rule(message: &RuleMessage) -> bool {
    let ours = RouteProtocol::from(ROUTE_PROTOCOL);
    message.attributes.iter().any(|a| matches!(a, RuleAttribute::Protocol(p) if *p == ours))
}

/// Returns the priority of a rule in the kernel.
pub(crate) fn rule_priority(message: &RuleMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|a| if let RuleAttribute::Priority(n) = a { Some(*n) } else { None })
        .unwrap_or(0)
}

pub(crate) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.ipv6);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(rule.priority()));
    message.attributes.push(RuleAttribute::Protocol(ROUTE_PROTOCOL.into()));
    match rule.kind {
        RuleKind::Protected => {
            message.header.flags = RuleFlags::Invert;
            message.attributes.push(RuleAttribute::Table(GUARD_TABLE));
            message.attributes.push(RuleAttribute::FwMark(OWN_MARK));
            message.attributes.push(RuleAttribute::FwMask(OWN_MARK_MASK));
        }
        RuleKind::Bypass { mark } => {
            message.header.action = RuleAction::Goto;
            message.attributes.push(RuleAttribute::FwMark(mark));
            message.attributes.push(RuleAttribute::FwMask(u32::MAX));
            message.attributes.push(RuleAttribute::Goto(RULE_PRIORITY + 1));
        }
        RuleKind::Landing => message.header.action = RuleAction::Nop,
    }
    message
}

/// `index` is the tunnel's interface; `None` for the block.
pub(crate) fn route_message(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.prefix.addr().is_ipv6());
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.header.protocol = ROUTE_PROTOCOL.into();
    message.header.kind = match route.target {
        Target::Interface => RouteType::Unicast,
        Target::Unreachable | Target::LastResort => RouteType::Unreachable,
        Target::Throw => RouteType::Throw,
    };
    if route.target == Target::Interface && route.prefix.addr().is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Destination(route.prefix.addr().into()));
    message.attributes.push(RouteAttribute::Priority(route.metric()));
    if let Some(index) = index.filter(|_| route.target == Target::Interface) {
        message.attributes.push(RouteAttribute::Oif(index));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

fn family(ipv6: bool) -> AddressFamily {
    if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// Sends one request and collects what `keep` returns for the answers.
async fn request<T>(
    handle: &Handle,
    payload: RouteNetlinkMessage,
    flags: u16,
    mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut message = NetlinkMessage::from(payload);
    message.header.flags = NLM_F_REQUEST | flags;
    let mut answers =
        handle.clone().request(message).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    let mut kept = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(inner) => kept.extend(keep(inner)),
            _ => {}
        }
    }
    Ok(kept)
}

async fn command(handle: &Handle, payload: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    request(handle, payload, NLM_F_ACK | flags, |_| None::<()>).await.map(drop)
}

/// Adds a route, or with `replace` replaces the existing one.
pub(crate) async fn add_route(
    handle: &Handle,
    route: &Route,
    index: Option<u32>,
    replace: bool,
) -> io::Result<()> {
    let how = if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
    command(handle, RouteNetlinkMessage::NewRoute(route_message(route, index)), NLM_F_CREATE | how).await
}

/// Removes a route of ours; `Ok(false)` if it was absent.
pub(crate) async fn remove_route(handle: &Handle, route: &Route, index: Option<u32>) -> io::Result<bool> {
    let mut message = route_message(&Route { mtu: None, ..*route }, index);
    // Any scope.
    message.header.scope = RouteScope::NoWhere;
    absent_is_fine(command(handle, RouteNetlinkMessage::DelRoute(message), 0).await)
}

pub(crate) async fn add_rule(handle: &Handle, rule: &Rule) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewRule(rule_message(rule));
    match command(handle, message, NLM_F_CREATE | NLM_F_EXCL).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Removes a rule, in the kernel's form or in ours; `Ok(false)` if it was absent.
pub(crate) async fn remove_rule(handle: &Handle, message: RuleMessage) -> io::Result<bool> {
    absent_is_fine(command(handle, RouteNetlinkMessage::DelRule(message), 0).await)
}

/// Treats absence as success: ESRCH and ENOENT for routes and rules, ENODEV and EADDRNOTAVAIL for what was
/// removed with its device.
fn absent_is_fine(result: io::Result<()>) -> io::Result<bool> {
    const ESRCH: i32 = 3;
    const ENODEV: i32 = 19;
    match result {
        Ok(()) => Ok(true),
        Err(error) => match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound | io::ErrorKind::AddrNotAvailable, _) | (_, Some(ESRCH | ENODEV)) => {
                Ok(false)
            }
            _ => Err(error),
        },
    }
}

/// Adds a copy of a foreign route, or replaces the existing copy.
pub(crate) async fn add_copy(handle: &Handle, route: &KernelRoute) -> io::Result<()> {
    let mut message = message_of(route);
    message.header.scope = match (route.gateway, route.prefix.addr()) {
        (None, IpAddr::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    // Otherwise the kernel looks for the gateway among the protected prefixes.
    if route.gateway.is_some() {
        message.header.flags |= RouteFlags::Onlink;
    }
    message.attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    message.attributes.extend(route.preferred_source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    command(handle, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Removes a route in the kernel's form; `Ok(false)` if it was absent.
pub(crate) async fn remove_kernel_route(handle: &Handle, route: &KernelRoute) -> io::Result<bool> {
    let mut message = message_of(route);
    message.header.scope = RouteScope::NoWhere;
    absent_is_fine(command(handle, RouteNetlinkMessage::DelRoute(message), 0).await)
}

fn message_of(route: &KernelRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.prefix.addr().is_ipv6());
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.header.protocol = route.protocol.into();
    message.header.kind = route.kind;
    message.header.tos = route.tos;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Destination(route.prefix.addr().into()));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    message
        .attributes
        .extend(route.oif.filter(|_| route.kind == RouteType::Unicast).map(RouteAttribute::Oif));
    message
}

/// Which routes a dump lists; the kernel filters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RouteFilter {
    pub protocol: Option<u8>,
    pub table: Option<u32>,
    pub oif: Option<u32>,
}

/// Returns all routes of one family that pass `filter` and `keep`.
pub(crate) async fn dump_routes(
    handle: &Handle,
    ipv6: bool,
    filter: RouteFilter,
    keep: impl Fn(&KernelRoute) -> bool,
) -> io::Result<Vec<KernelRoute>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ipv6);
    if let Some(protocol) = filter.protocol {
        message.header.protocol = protocol.into();
    }
    message.attributes.extend(filter.table.map(RouteAttribute::Table));
    message.attributes.extend(filter.oif.map(RouteAttribute::Oif));
    let dump = request(handle, RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP, |answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => KernelRoute::parse(&route).filter(&keep),
        _ => None,
    });
    match dump.await {
        // The table has never had a route.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

/// Returns all rules of one family.
pub(crate) async fn dump_rules(handle: &Handle, ipv6: bool) -> io::Result<Vec<RuleMessage>> {
    let mut message = RuleMessage::default();
    message.header.family = family(ipv6);
    request(handle, RouteNetlinkMessage::GetRule(message), NLM_F_DUMP, |answer| match answer {
        RouteNetlinkMessage::NewRule(rule) => Some(rule),
        _ => None,
    })
    .await
}

/// Returns the index of an interface, if it exists.
pub(crate) async fn index_of(handle: &Handle, name: &str) -> io::Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Ok(get_link(handle, message).await?.map(|link| link.header.index))
}

/// Whether an interface is set up, as its administrator asked.
pub(crate) async fn is_up(handle: &Handle, index: u32) -> io::Result<bool> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Ok(get_link(handle, message).await?.is_some_and(|link| link.header.flags.contains(LinkFlags::Up)))
}

/// Returns the name of an interface, for messages to people.
pub(crate) async fn name_of(handle: &Handle, index: u32) -> io::Result<Option<String>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Ok(get_link(handle, message).await?.as_ref().and_then(link_name).map(ToOwned::to_owned))
}

/// Returns the name in a link message.
pub(crate) fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.as_str()) } else { None })
}

async fn get_link(handle: &Handle, message: LinkMessage) -> io::Result<Option<LinkMessage>> {
    const ENODEV: i32 = 19;
    let found = request(handle, RouteNetlinkMessage::GetLink(message), 0, |answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    })
    .await;
    match found {
        Ok(links) => Ok(links.into_iter().next()),
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps the kernel from making an IPv6 link-local address for an interface when it goes up.
pub(crate) async fn forbid_link_local(handle: &Handle, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![mode]));
    command(handle, RouteNetlinkMessage::SetLink(message), 0).await
}

/// Sets an interface's MTU (bytes) if given, and sets it up if asked.
pub(crate) async fn set_link(handle: &Handle, index: u32, mtu: Option<u32>, up: bool) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    command(handle, RouteNetlinkMessage::SetLink(message), 0).await
}

/// Gives an interface another name.
pub(crate) async fn rename(handle: &Handle, index: u32, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    command(handle, RouteNetlinkMessage::SetLink(message), 0).await
}

/// Sets an interface down.
pub(crate) async fn set_down(handle: &Handle, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    command(handle, RouteNetlinkMessage::SetLink(message), 0).await
}
