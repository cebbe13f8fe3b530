//! Derives the kernel state that one tunnel needs (routes, rules, filter) from its config alone. Nothing here
//! queries the kernel, so the guard, the daemon and `qvpn-ctl` derive the same plan from the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use qvpn_api::Config;
use qvpn_api::config::{Local, Routes, Table};

use crate::exempt::exempt;

/// The `rtm_protocol` number of our routes and rules; `ip route` shows it as `proto 113` (ASCII "q"). Only
/// routes and rules with this number or [`LOCAL_PROTOCOL`] are ever removed.
pub const ROUTE_PROTOCOL: u8 = 113;

/// The `rtm_protocol` number of this site's own routes (`local`) that are copied into our table.
pub const LOCAL_PROTOCOL: u8 = 114;

/// The routing table of all tunnels in a network namespace ("qv" as a number).
pub const GUARD_TABLE: u32 = 0x7176;

/// Priority of the rule that looks up [`GUARD_TABLE`]: after `local` (0) and before what other programs
/// usually add.
pub const RULE_PRIORITY: u32 = 113;

/// The mark of our own datagrams where the config sets none. Only the bits in [`OWN_MARK_MASK`] count: the
/// low 16 bits are free for other programs.
pub const OWN_MARK: u32 = 0x7176_0000;

/// The bits of a mark that [`OWN_MARK`] uses.
pub const OWN_MARK_MASK: u32 = 0xffff_0000;

pub const MAIN_TABLE: u32 = 254;

/// Version 0.1 kept default routes in the table `LEGACY_TABLE_BASE + listen_port`, with two rules.
pub(crate) const LEGACY_TABLE_BASE: u32 = 1_000_000;
pub(crate) const LEGACY_PRIORITIES: [u32; 2] = [32_501, 32_500];

/// What the kernel does with packets that match a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Drops them with an ICMP error: the block below the tunnel's route.
    Unreachable,
    /// Drops them; has the worst metric, so every route of a routing daemon beats it.
    LastResort,
    /// Continues with the rules after ours; for prefixes that are exempt from the block.
    Throw,
    /// Sends them into the tunnel.
    Interface,
}

/// A route that qvpn adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The destination, with its host bits cleared.
    pub prefix: IpNet,
    pub table: u32,
    pub target: Target,
    /// The largest packet in bytes, if the path's MTU differs from the interface's.
    pub mtu: Option<u32>,
}

impl Route {
    /// Returns the metric. The block's metric is one worse than the tunnel route's. IPv6 starts at 1, since
    /// the kernel reads 0 as 1024 there.
    #[must_use]
    pub fn metric(&self) -> u32 {
        let best = u32::from(self.prefix.addr().is_ipv6());
        match self.target {
            Target::Interface => best,
            Target::Unreachable | Target::Throw => best + 1,
            Target::LastResort => u32::MAX,
        }
    }

    /// Formats the route as `ip route` arguments, with `interface` as the tunnel's name.
    #[must_use]
    pub fn describe(&self, interface: &str) -> String {
        let (family, metric) = (if self.prefix.addr().is_ipv6() { "-6 " } else { "" }, self.metric());
        let table = if self.table == MAIN_TABLE { String::new() } else { format!(" table {}", self.table) };
        let mtu = self.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        match self.target {
            Target::Interface => {
                format!("{family}{} dev {interface}{table} metric {metric}{mtu}", self.prefix)
            }
            Target::Unreachable | Target::LastResort => {
                format!("{family}unreachable {}{table} metric {metric}", self.prefix)
            }
            Target::Throw => format!("{family}throw {}{table} metric {metric}", self.prefix),
        }
    }
}

/// What a policy rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleKind {
    /// `nop`: the target of [`Bypass`](Self::Bypass).
    Landing,
    /// `fwmark M goto`: datagrams of a tunnel whose config sets a mark skip our table.
    Bypass {
        /// The config's mark.
        mark: u32,
    },
    /// `not fwmark M lookup T`: everything except our own datagrams is looked up in our table first.
    Protected,
}

/// A policy rule that qvpn adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Whether the rule is for IPv6 or for IPv4.
    pub ipv6: bool,
    pub kind: RuleKind,
}

impl Rule {
    /// Returns the priority among all rules; the kernel evaluates lower ones first.
    #[must_use]
    pub fn priority(&self) -> u32 {
        match self.kind {
            RuleKind::Bypass { .. } => RULE_PRIORITY - 1,
            RuleKind::Protected => RULE_PRIORITY,
            RuleKind::Landing => RULE_PRIORITY + 1,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, priority) = (if self.ipv6 { "-6 " } else { "" }, self.priority());
        match self.kind {
            RuleKind::Landing => write!(f, "{family}nop priority {priority}"),
            RuleKind::Bypass { mark } => {
                write!(f, "{family}fwmark {mark:#x} goto {} priority {priority}", RULE_PRIORITY + 1)
            }
            RuleKind::Protected => write!(
                f,
                "{family}not fwmark {OWN_MARK:#x}/{OWN_MARK_MASK:#x} lookup {GUARD_TABLE} priority {priority}"
            ),
        }
    }
}

/// Why no plan can be made; each is a fault of the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The kernel would refuse this interface name.
    #[error(
        "`{0}` can't be an interface name: use 1 to 15 characters, no `/`, no `:`, no space, not `.` or `..`"
    )]
    InterfaceName(String),
    /// The table belongs to the kernel or to qvpn.
    #[error(
        "table {0} belongs to the kernel or to qvpn: use \"auto\", \"off\", 254 (main) or a number from 1 to \
         252 or above 255 that is not {GUARD_TABLE}"
    )]
    ReservedTable(u32),
}

/// The routes, rules, blocks and filter of one tunnel.
///
/// Each allowed IP has two routes in one table: one into the tunnel, and below it an `unreachable` one with a
/// worse metric. If the device vanishes, the kernel drops the first route; the second one stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePlan {
    interface: String,
    /// Index of the tunnel's device, once it is known.
    device: Option<u32>,
    table: Table,
    fwmark: u32,
    ports: RangeInclusive<u16>,
    kme_ports: BTreeSet<u16>,
    allowed: BTreeMap<IpNet, RouteSettings>,
    /// Allowed IPs of disabled peers: blocked, and not led into the tunnel.
    idle: BTreeSet<IpNet>,
    /// Prefixes that are blocked although no peer has them: `protect`, and prefixes that peers had before.
    protect: BTreeSet<IpNet>,
    local: Vec<Local>,
    /// Whether `local` has the remembered networks; the guard has the latest list of them.
    connected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RouteSettings {
    table: u32,
    mtu: Option<u32>,
}

impl RoutePlan {
    /// Returns the plan for a whole config.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(config: &Config) -> Result<Self, PlanError> {
        let i = &config.interface;
        let allowed = config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
        // Routing protocols use these addresses, and must not do so in clear.
        let next_hops = config.peers.iter().filter(|_| i.routes == Routes::Kernel);
        let next_hops = next_hops.flat_map(|peer| peer.tunnel_address.iter().copied());
        let next_hops = next_hops.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
        let allowed = allowed.chain(next_hops.map(IpNet::from));
        let plan = Self::new(&i.name, allowed, i.table, i.fwmark, i.listen_port)?
            .with_protect(i.protect.iter().copied())
            .with_idle(idle(config));
        let last = i.listen_port.saturating_add(u16::from(i.lanes.saturating_sub(1)));
        let servers = config.kms.iter().flat_map(|kms| &kms.kmes).filter_map(|kme| kme.server());
        let kme_ports = servers.filter_map(|server| port_of(&server.url));
        Ok(plan
            .with_ports(i.listen_port..=last, kme_ports)
            .with_local(i.local.clone())
            .with_connected(i.local_connected))
    }

    /// Plans for `interface` with these allowed IPs (host bits are cleared, duplicates count once).
    ///
    /// `fwmark` is the config's (0 is none), `listen_port` the port of lane 0.
    ///
    /// # Errors
    /// A name or table that the kernel would refuse or that can't work.
    pub fn new(
        interface: &str,
        allowed: impl IntoIterator<Item = IpNet>,
        table: Table,
        fwmark: u32,
        listen_port: u16,
    ) -> Result<Self, PlanError> {
        check_name(interface)?;
        let number = match table {
            Table::Id(n @ (0 | 253 | 255 | GUARD_TABLE)) => return Err(PlanError::ReservedTable(n)),
            Table::Id(n) => Some(n),
            Table::Auto => Some(GUARD_TABLE),
            Table::Off => None,
        };
        let settings = |number| RouteSettings { table: number, mtu: None };
        let allowed = allowed.into_iter().map(|prefix| prefix.trunc());
        let allowed = number.map(|n| allowed.map(|prefix| (prefix, settings(n))).collect());
        Ok(Self {
            interface: interface.to_owned(),
            device: None,
            table,
            fwmark,
            ports: listen_port..=listen_port,
            kme_ports: BTreeSet::new(),
            allowed: allowed.unwrap_or_default(),
            idle: BTreeSet::new(),
            protect: BTreeSet::new(),
            local: Vec::new(),
            connected: false,
        })
    }

    /// Adds prefixes that are blocked outside the tunnel.
    #[must_use]
    pub fn with_protect(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.protect.extend(prefixes.into_iter().map(|prefix| prefix.trunc()));
        self.protect.retain(|prefix| !self.allowed.contains_key(prefix));
        self
    }

    /// Marks allowed IPs as those of disabled peers.
    #[must_use]
    pub fn with_idle(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.idle = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        self
    }

    /// Returns the allowed IPs of disabled peers.
    #[must_use]
    pub fn idle(&self) -> &BTreeSet<IpNet> {
        &self.idle
    }

    /// Sets the UDP ports of the lanes and the TCP ports of the KMEs.
    #[must_use]
    pub fn with_ports(mut self, lanes: RangeInclusive<u16>, kmes: impl IntoIterator<Item = u16>) -> Self {
        self.ports = lanes;
        self.kme_ports = kmes.into_iter().collect();
        self
    }

    /// Sets this site's own networks inside protected prefixes.
    #[must_use]
    pub fn with_local(mut self, local: Vec<Local>) -> Self {
        self.local = local;
        self
    }

    /// Marks `local` as the remembered connected networks.
    #[must_use]
    pub fn with_connected(mut self, connected: bool) -> Self {
        self.connected = connected;
        self
    }

    /// Returns whether `local` has the remembered connected networks.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Sets the index of the tunnel's device; the device may have any name.
    #[must_use]
    pub fn on_device(mut self, index: Option<u32>) -> Self {
        self.device = index;
        self
    }

    /// Keeps the block of the prefixes that `old` blocked, except those that a wider allowed IP contains: its
    /// traffic then goes through that peer's tunnel.
    #[must_use]
    pub fn keeping(self, old: &Self) -> Self {
        let carried = |prefix: &IpNet| {
            self.allowed.contains_key(prefix) || self.allowed.keys().any(|wider| wider.contains(prefix))
        };
        let kept: Vec<IpNet> = old.filtered().filter(|prefix| !carried(prefix)).collect();
        self.with_protect(kept)
    }

    /// Removes the block of prefixes that lie inside `prefixes` and that no peer has.
    #[must_use]
    pub fn releasing(mut self, prefixes: &[IpNet]) -> Self {
        self.protect.retain(|kept| !prefixes.iter().any(|prefix| prefix.contains(kept)));
        self
    }

    /// Sets the path MTU (bytes) on the tunnel routes of `prefixes`; `None` removes it. Prefixes that aren't
    /// in the plan are ignored. IPv6 routes stay at 1280 or more (RFC 8200 section 5).
    #[must_use]
    pub fn with_mtu(mut self, prefixes: &[IpNet], mtu: Option<u32>) -> Self {
        for prefix in prefixes {
            let prefix = prefix.trunc();
            if let Some(settings) = self.allowed.get_mut(&prefix) {
                settings.mtu = mtu.map(|mtu| if prefix.addr().is_ipv6() { mtu.max(1280) } else { mtu });
            }
        }
        self
    }

    /// Returns the name of the tunnel's interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Returns the index of the tunnel's device, if it is known.
    #[must_use]
    pub fn device(&self) -> Option<u32> {
        self.device
    }

    /// Returns the mark that our own datagrams carry (`SO_MARK`): the config's, or [`OWN_MARK`].
    #[must_use]
    pub fn fwmark(&self) -> u32 {
        if self.fwmark == 0 { OWN_MARK } else { self.fwmark }
    }

    /// Returns the config's mark; 0 if it sets none.
    pub(crate) fn configured_fwmark(&self) -> u32 {
        self.fwmark
    }

    pub(crate) fn table(&self) -> Table {
        self.table
    }

    /// Returns the bits of the mark that count.
    #[must_use]
    pub fn fwmark_mask(&self) -> u32 {
        if self.fwmark == 0 { OWN_MARK_MASK } else { u32::MAX }
    }

    /// Returns the UDP ports of the lanes.
    #[must_use]
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.ports.clone()
    }

    /// Returns the TCP ports of the KMEs.
    #[must_use]
    pub fn kme_ports(&self) -> &BTreeSet<u16> {
        &self.kme_ports
    }

    /// Returns this site's own networks inside protected prefixes.
    #[must_use]
    pub fn local(&self) -> &[Local] {
        &self.local
    }

    /// Whether routes into the tunnel are in [`GUARD_TABLE`], rather than in a table of the operator's or in
    /// none.
    #[must_use]
    pub fn uses_guard_table(&self) -> bool {
        self.table == Table::Auto
    }

    /// Returns the prefixes that the filter and the routes protect: none under `table = "off"` or a number
    /// without `protect`.
    pub fn filtered(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.allowed().chain(self.protect.iter().copied())
    }

    /// Returns the allowed IPs that are protected.
    pub fn allowed(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.allowed.keys().copied().filter(|_| self.uses_guard_table())
    }

    /// Returns the prefixes that are blocked although no peer has them.
    #[must_use]
    pub fn protect(&self) -> &BTreeSet<IpNet> {
        &self.protect
    }

    /// Returns the `unreachable` routes, and the `throw` routes of the prefixes that are exempt from them.
    pub fn blocks(&self) -> impl Iterator<Item = Route> + '_ {
        let route = |prefix, table, target| Route { prefix, table, target, mtu: None };
        let (table, target) = match self.uses_guard_table() {
            true => (GUARD_TABLE, Target::Unreachable),
            false => (MAIN_TABLE, Target::LastResort),
        };
        let allowed = self.allowed.iter();
        let allowed = allowed.map(move |(prefix, at)| route(*prefix, at.table, Target::Unreachable));
        let protect = self.protect.iter().map(move |prefix| route(*prefix, table, target));
        let exempt = exempt().filter(|prefix| {
            self.uses_guard_table() && self.filtered().any(|wider| wider.contains(prefix) && wider != *prefix)
        });
        allowed.chain(protect).chain(exempt.map(move |prefix| route(prefix, GUARD_TABLE, Target::Throw)))
    }

    /// Returns the routes into the tunnel.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        let led = self.allowed.iter().filter(|(prefix, _)| !self.idle.contains(*prefix));
        led.map(|(prefix, settings)| Route {
            prefix: *prefix,
            table: settings.table,
            target: Target::Interface,
            mtu: settings.mtu,
        })
    }

    /// Returns the policy rules in the order in which they must be added. Remove them in the reverse order.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        if !self.uses_guard_table() {
            return Vec::new();
        }
        let families = [false, true].into_iter();
        let families = families.filter(|ipv6| self.filtered().any(|net| net.addr().is_ipv6() == *ipv6));
        let kinds = match self.fwmark {
            0 => vec![RuleKind::Protected],
            // The bypass must exist before the rule that it skips.
            mark => vec![RuleKind::Landing, RuleKind::Bypass { mark }, RuleKind::Protected],
        };
        families.flat_map(|ipv6| kinds.iter().map(move |kind| Rule { ipv6, kind: *kind })).collect()
    }

    /// Whether the kernel must consider marks in its reverse path check (`src_valid_mark`). It must where
    /// policy routing protects IPv4 prefixes, since an endpoint may lie in a protected prefix.
    #[must_use]
    pub fn needs_src_valid_mark(&self) -> bool {
        self.uses_guard_table() && self.filtered().any(|net| net.addr().is_ipv4())
    }
}

/// Returns the allowed IPs that only disabled peers have.
fn idle(config: &Config) -> BTreeSet<IpNet> {
    let of = |disabled| {
        let peers = config.peers.iter().filter(move |peer| peer.disabled == disabled);
        peers.flat_map(|peer| peer.allowed_ips.iter().copied()).collect::<BTreeSet<_>>()
    };
    of(true).difference(&of(false)).copied().collect()
}

/// Returns the port of an `https` URL.
fn port_of(url: &str) -> Option<u16> {
    let authority = url.strip_prefix("https://")?.split('/').next()?;
    match authority.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') => port.parse().ok(),
        _ => Some(443),
    }
}

fn check_name(name: &str) -> Result<(), PlanError> {
    let bad = name.is_empty()
        || name.len() > 15
        || name == "."
        || name == ".."
        || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if bad { Err(PlanError::InterfaceName(name.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
