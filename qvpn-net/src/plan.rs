//! Which routes and rules there shall be, worked out from the config alone. Nothing here asks the kernel, so that a boot
//! unit, the daemon and `qvpn-ctl` all come to the same plan for the same file.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use qvpn_api::Config;
use qvpn_api::config::Table;

/// The number in `rtm_protocol` (`ip route` shows it as `proto 113`, a "q") by which our routes and rules are known. Only
/// routes and rules with this number are ever removed.
pub const ROUTE_PROTOCOL: u8 = 113;

/// Under `table = "auto"`, default routes live in table (and are steered by firewall mark) `TABLE_BASE + listen_port`:
/// port 51820 gives table 1051820. Ports are unique on a host, so tables are.
pub const TABLE_BASE: u32 = 1_000_000;

/// Priority of the rule that asks the main table first, for all but its default route.
pub const PRIORITY_MAIN: u32 = 32_500;

/// Priority of the rule that sends whatever is left, and isn't our own datagrams, to our table.
pub const PRIORITY_OURS: u32 = 32_501;

/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Nowhere, with an ICMP answer: the block that lies under the tunnel route.
    Unreachable,
    /// Into the tunnel.
    Interface,
}

/// One route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination, with its host bits cleared.
    pub prefix: IpNet,
    /// Routing table.
    pub table: u32,
    /// Where it leads.
    pub target: Target,
    /// Largest packet in bytes, if the path's differs from the interface's.
    pub mtu: Option<u32>,
}

impl Route {
    /// The metric. The block's is one worse than the tunnel's and better than any other that is likely: a route to the
    /// same prefix from DHCP or a routing daemon must not take over when the tunnel's route goes. IPv6 starts at 1, since
    /// the kernel reads 0 as 1024 there.
    #[must_use]
    pub fn metric(&self) -> u32 {
        let best = u32::from(self.prefix.addr().is_ipv6());
        match self.target {
            Target::Interface => best,
            Target::Unreachable => best + 1,
        }
    }

    /// As `ip route` would have it, with `interface` as the tunnel's name.
    #[must_use]
    pub fn describe(&self, interface: &str) -> String {
        let (family, metric) = (if self.prefix.addr().is_ipv6() { "-6 " } else { "" }, self.metric());
        let table = if self.table == MAIN_TABLE { String::new() } else { format!(" table {}", self.table) };
        let mtu = self.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        match self.target {
            Target::Interface => {
                format!("{family}{} dev {interface}{table} metric {metric}{mtu}", self.prefix)
            }
            Target::Unreachable => format!("{family}unreachable {}{table} metric {metric}", self.prefix),
        }
    }
}

/// What a policy rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleKind {
    /// `lookup main suppress_prefixlength 0`: the main table for all but its default route, so that the LAN and other
    /// prefixes stay reachable.
    MainButDefault,
    /// `not fwmark M lookup T`: all but our own datagrams go by our table.
    Unmarked {
        /// Firewall mark of our own datagrams.
        mark: u32,
        /// Our table.
        table: u32,
    },
}

/// One policy rule of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// For IPv6 (else IPv4).
    pub ipv6: bool,
    /// What it does.
    pub kind: RuleKind,
}

impl Rule {
    /// Its place among all rules; lower is asked first.
    #[must_use]
    pub fn priority(&self) -> u32 {
        match self.kind {
            RuleKind::MainButDefault => PRIORITY_MAIN,
            RuleKind::Unmarked { .. } => PRIORITY_OURS,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "-6 " } else { "" };
        match self.kind {
            RuleKind::MainButDefault => {
                write!(f, "{family}lookup main suppress_prefixlength 0 priority {PRIORITY_MAIN}")
            }
            RuleKind::Unmarked { mark, table } => {
                write!(f, "{family}not fwmark {mark:#x} lookup {table} priority {PRIORITY_OURS}")
            }
        }
    }
}

/// Why no plan can be made. All are the config's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The kernel would refuse the name.
    #[error(
        "`{0}` can't be an interface name: use 1 to 15 characters, no `/`, no `:`, no space, not `.` or `..`"
    )]
    InterfaceName(String),
    /// A table that is the kernel's own.
    #[error(
        "table {0} belongs to the kernel: use \"auto\", \"off\", 254 (main) or a number from 1 to 252 or above 255"
    )]
    ReservedTable(u32),
    /// Nothing to derive the policy table from.
    #[error(
        "a default route ({0}) under table = \"auto\" needs a fixed listen_port, since the policy table's number comes from it"
    )]
    NoListenPort(IpNet),
}

/// The routes, rules and blocks of one interface.
///
/// For each allowed IP there are two routes in one table: one into the tunnel, and under it an `unreachable` one with a
/// worse metric. The kernel drops the first when the interface vanishes, whatever the reason; the second stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePlan {
    interface: String,
    fwmark: u32,
    prefixes: BTreeMap<IpNet, Placed>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    table: u32,
    mtu: Option<u32>,
}

impl RoutePlan {
    /// Plans what a whole config asks for.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(config: &Config) -> Result<Self, PlanError> {
        let i = &config.interface;
        let allowed = config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
        Self::new(&i.name, allowed, i.table, i.fwmark, i.listen_port)
    }

    /// Plans for `interface` with these allowed IPs (host bits are cleared, duplicates count once).
    ///
    /// `fwmark` is the config's (0 is none), `listen_port` the port of lane 0.
    ///
    /// # Errors
    /// A name, table or mark that the kernel would refuse or that can't work.
    pub fn new(
        interface: &str,
        allowed: impl IntoIterator<Item = IpNet>,
        table: Table,
        fwmark: u32,
        listen_port: u16,
    ) -> Result<Self, PlanError> {
        check_name(interface)?;
        if let Table::Id(n @ (0 | 253 | 255)) = table {
            return Err(PlanError::ReservedTable(n));
        }
        let mut plan =
            Self { interface: interface.to_owned(), fwmark, prefixes: BTreeMap::new(), rules: Vec::new() };
        if table == Table::Off {
            return Ok(plan);
        }
        let own_table = TABLE_BASE + u32::from(listen_port);
        for prefix in allowed {
            let prefix = prefix.trunc();
            let at = match table {
                Table::Id(n) => n,
                _ if prefix.prefix_len() > 0 => MAIN_TABLE,
                _ if listen_port == 0 => return Err(PlanError::NoListenPort(prefix)),
                _ => {
                    if plan.fwmark == 0 {
                        plan.fwmark = own_table;
                    }
                    let ipv6 = prefix.addr().is_ipv6();
                    // In the order of adding: the main table must be asked before ours takes everything.
                    for kind in
                        [RuleKind::MainButDefault, RuleKind::Unmarked { mark: plan.fwmark, table: own_table }]
                    {
                        let rule = Rule { ipv6, kind };
                        if !plan.rules.contains(&rule) {
                            plan.rules.push(rule);
                        }
                    }
                    own_table
                }
            };
            plan.prefixes.insert(prefix, Placed { table: at, mtu: None });
        }
        Ok(plan)
    }

    /// The same plan with the path MTU (bytes) on the tunnel routes of `prefixes`; `None` takes it away. Prefixes that
    /// aren't in the plan are ignored. IPv6 routes stay at 1280 or more (RFC 8200, section 5).
    #[must_use]
    pub fn with_mtu(mut self, prefixes: &[IpNet], mtu: Option<u32>) -> Self {
        for prefix in prefixes {
            let prefix = prefix.trunc();
            if let Some(placed) = self.prefixes.get_mut(&prefix) {
                placed.mtu = mtu.map(|mtu| if prefix.addr().is_ipv6() { mtu.max(1280) } else { mtu });
            }
        }
        self
    }

    /// Name of the tunnel's interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The mark that our own datagrams must carry (`SO_MARK`), or 0 for none. It is the config's, or the policy table's
    /// number when there is a default route and the config has none.
    #[must_use]
    pub fn fwmark(&self) -> u32 {
        self.fwmark
    }

    /// The `unreachable` routes.
    pub fn blocks(&self) -> impl Iterator<Item = Route> + '_ {
        self.prefixes.iter().map(|(prefix, placed)| Route {
            prefix: *prefix,
            table: placed.table,
            target: Target::Unreachable,
            mtu: None,
        })
    }

    /// The routes into the tunnel.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        self.prefixes.iter().map(|(prefix, placed)| Route {
            prefix: *prefix,
            table: placed.table,
            target: Target::Interface,
            mtu: placed.mtu,
        })
    }

    /// The policy rules, in the order in which they must be added; removing goes the other way.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether the kernel must regard marks in its reverse path check (`src_valid_mark`), as for an IPv4 default route.
    #[must_use]
    pub fn needs_src_valid_mark(&self) -> bool {
        self.rules.iter().any(|rule| !rule.ipv6)
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
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|s| s.parse().unwrap()).collect()
    }

    fn plan(list: &[&str], table: Table, fwmark: u32) -> RoutePlan {
        RoutePlan::new("qvpn0", nets(list), table, fwmark, 51820).unwrap()
    }

    fn described(plan: &RoutePlan) -> Vec<String> {
        plan.blocks().chain(plan.routes()).map(|r| r.describe("qvpn0")).collect()
    }

    #[test]
    fn each_prefix_gets_a_route_and_a_worse_block_in_one_table() {
        let plan = plan(&["10.20.3.4/16", "fd20::/48"], Table::Auto, 0);
        assert_eq!(
            described(&plan),
            [
                "unreachable 10.20.0.0/16 metric 1",
                "-6 unreachable fd20::/48 metric 2",
                "10.20.0.0/16 dev qvpn0 metric 0",
                "-6 fd20::/48 dev qvpn0 metric 1",
            ]
        );
        assert!(plan.rules().is_empty());
        assert_eq!(plan.fwmark(), 0);
        assert!(!plan.needs_src_valid_mark());
    }

    #[test]
    fn default_routes_get_a_policy_table_that_follows_from_the_port() {
        let plan = plan(&["0.0.0.0/0", "::/0", "10.0.0.0/8"], Table::Auto, 0);
        assert_eq!(
            described(&plan)[..3],
            [
                "unreachable 0.0.0.0/0 table 1051820 metric 1",
                "unreachable 10.0.0.0/8 metric 1",
                "-6 unreachable ::/0 table 1051820 metric 2",
            ]
        );
        let rules: Vec<String> = plan.rules().iter().map(ToString::to_string).collect();
        assert_eq!(
            rules,
            [
                "lookup main suppress_prefixlength 0 priority 32500",
                "not fwmark 0x100cac lookup 1051820 priority 32501",
                "-6 lookup main suppress_prefixlength 0 priority 32500",
                "-6 not fwmark 0x100cac lookup 1051820 priority 32501",
            ]
        );
        assert_eq!(plan.fwmark(), 1_051_820);
        assert!(plan.needs_src_valid_mark());
    }

    #[test]
    fn the_configs_mark_is_kept_and_ipv6_alone_needs_no_sysctl() {
        let plan = plan(&["::/0"], Table::Auto, 0x77);
        assert_eq!(plan.fwmark(), 0x77);
        assert!(!plan.needs_src_valid_mark());
        assert_eq!(plan.rules().len(), 2);
    }

    #[test]
    fn a_table_number_takes_all_and_off_takes_none() {
        let numbered = plan(&["0.0.0.0/0", "10.1.0.0/16"], Table::Id(77), 0);
        assert!(numbered.blocks().chain(numbered.routes()).all(|r| r.table == 77));
        assert!(numbered.rules().is_empty());
        let off = plan(&["0.0.0.0/0"], Table::Off, 5);
        assert_eq!(off.blocks().count() + off.routes().count() + off.rules().len(), 0);
        assert_eq!(off.fwmark(), 5);
    }

    #[test]
    fn an_mtu_stays_on_its_prefixes_and_above_ipv6s_minimum() {
        let plan = plan(&["10.1.0.0/16", "10.2.0.0/16", "fd01::/64"], Table::Auto, 0)
            .with_mtu(&nets(&["10.1.0.0/16", "fd01::/64", "10.9.0.0/16"]), Some(1200));
        let mtus: Vec<_> = plan.routes().map(|r| r.mtu).collect();
        assert_eq!(mtus, [Some(1200), None, Some(1280)]);
        assert!(plan.blocks().all(|r| r.mtu.is_none()));
    }

    #[test]
    fn what_cannot_work_is_refused_with_words() {
        for name in ["", "a name", "sixteen-letters-", "..", "a/b", "a:b"] {
            let error = RoutePlan::new(name, [], Table::Auto, 0, 1).unwrap_err();
            assert_eq!(error, PlanError::InterfaceName(name.to_owned()));
        }
        for n in [0, 253, 255] {
            let error = RoutePlan::new("q", [], Table::Id(n), 0, 1).unwrap_err();
            assert_eq!(error, PlanError::ReservedTable(n));
        }
        let error = RoutePlan::new("q", nets(&["::/0"]), Table::Auto, 0, 0).unwrap_err();
        assert!(error.to_string().contains("listen_port"), "{error}");
    }
}
