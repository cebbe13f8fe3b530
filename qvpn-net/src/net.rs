//! Makes the kernel agree with a plan. All of it can be repeated at will, and the order of steps is chosen so that a
//! prefix of the plan is never without its block.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::packet_route::rule::RuleMessage;
use tokio::task::JoinHandle;

use crate::error::NetError;
use crate::kernel::{self, Found};
use crate::plan::{PRIORITY_OURS, ROUTE_PROTOCOL, Route, RoutePlan, Rule, RuleKind, Target};
use crate::sysctl;
use crate::watch::Watch;

/// What was done, for the log and for `routes.restored`; each entry as `ip route` or `ip rule` would have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Added, since it was missing.
    pub added: Vec<String>,
    /// Put in the place of another, which is named.
    pub replaced: Vec<String>,
    /// Removed.
    pub removed: Vec<String>,
    /// What an operator should know though it is no error.
    pub warnings: Vec<String>,
}

impl Changes {
    /// Whether nothing had to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.replaced.is_empty() && self.removed.is_empty()
    }
}

/// A connection to the kernel's routing, in the network namespace of the thread that opened it.
pub struct Net {
    pub(crate) handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Net {
    /// Opens the netlink socket. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub fn connect() -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(NetError::Connect)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Puts the block in place: the `unreachable` routes, and the policy rules where there is a default route. Needs no
    /// interface, so it comes first, and at boot.
    ///
    /// # Errors
    /// [`NetError::Conflict`] where somebody else's route beats the block, so that the prefix could leak; no permission.
    /// Everything else is done all the same.
    pub async fn block(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        self.ensure(plan, false, false).await
    }

    /// Removes the block of `plan`: rules first, then the `unreachable` routes. Routes into the tunnel stay; see
    /// [`remove_routes`](Self::remove_routes).
    ///
    /// # Errors
    /// No permission, or a refusal of the kernel's.
    pub async fn unblock(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = Work::default();
        for rule in plan.rules().iter().rev() {
            self.remove_rule(rule, &mut work).await;
        }
        for route in plan.blocks() {
            self.remove_route(&route, plan.interface(), None, &mut work).await;
        }
        work.finish()
    }

    /// Removes every block of ours on this host, whichever config it came from.
    ///
    /// # Errors
    /// No permission, or a refusal of the kernel's.
    pub async fn unblock_all(&self) -> Result<Changes, NetError> {
        let mut work = Work::default();
        for ipv6 in [false, true] {
            let what = "removing our rules";
            let Some(mut rules) = work.check(what, kernel::dump_rules(&self.handle, ipv6).await) else {
                continue;
            };
            rules.retain(kernel::is_our_rule);
            // The rule that leads to our table before the one that spares the main table.
            rules.sort_by_key(|rule| std::cmp::Reverse(kernel::rule_priority(rule)));
            for rule in rules {
                let text = format!("rule with priority {}", kernel::rule_priority(&rule));
                let removed = kernel::remove_rule(&self.handle, rule).await;
                if work.check(what, removed) == Some(true) {
                    work.changes.removed.push(text);
                }
            }
            let ours = |found: &Found| found.is_ours() && found.kind == RouteType::Unreachable;
            let dump = kernel::dump_routes(&self.handle, ipv6, Some(ROUTE_PROTOCOL), ours).await;
            for found in work.check("removing our blocks", dump).unwrap_or_default() {
                let route = Route {
                    prefix: found.prefix,
                    table: found.table,
                    target: Target::Unreachable,
                    mtu: None,
                };
                self.remove_route(&route, "", None, &mut work).await;
            }
        }
        work.finish()
    }

    /// Puts everything of `plan` in place: the block, the rules, and the routes into the tunnel, whose interface must be
    /// up.
    ///
    /// # Errors
    /// As [`block`](Self::block), and if the interface isn't there or is down. Everything else is done all the same.
    pub async fn add_routes(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        self.ensure(plan, true, false).await
    }

    /// Removes the routes into the tunnel; the block stays.
    ///
    /// # Errors
    /// No permission, or a refusal of the kernel's.
    pub async fn remove_routes(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = Work::default();
        let what = "removing routes into the tunnel";
        let index = work.check(what, kernel::index_of(&self.handle, plan.interface()).await).flatten();
        // With the interface its routes went; what is there now isn't ours.
        if index.is_some() {
            for route in plan.routes() {
                self.remove_route(&route, plan.interface(), index, &mut work).await;
            }
        }
        work.finish()
    }

    /// Goes from `old` to `new` and touches only what differs: first all that is new, in the order of
    /// [`add_routes`](Self::add_routes), then what is no longer wanted.
    ///
    /// # Errors
    /// As [`add_routes`](Self::add_routes); what is no longer wanted is then removed all the same.
    pub async fn apply(&self, old: &RoutePlan, new: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = self.ensure_work(new, true, false).await;
        let wanted: BTreeSet<_> = new.routes().map(|r| (r.prefix, r.table)).collect();
        let stale = |route: &Route| !wanted.contains(&(route.prefix, route.table));
        let index = work.check("reload", kernel::index_of(&self.handle, old.interface()).await).flatten();
        if index.is_some() {
            for route in old.routes().filter(stale) {
                self.remove_route(&route, old.interface(), index, &mut work).await;
            }
        }
        for rule in old.rules().iter().rev().filter(|rule| !new.rules().contains(rule)) {
            self.remove_rule(rule, &mut work).await;
        }
        for route in old.blocks().filter(stale) {
            self.remove_route(&route, old.interface(), None, &mut work).await;
        }
        work.finish()
    }

    /// Watches for changes to our routes and rules, and to `interface`, from now on.
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub fn watch(&self, interface: &str) -> Result<Watch, NetError> {
        Watch::open(interface)
    }

    /// Puts back what is missing from `plan`, after [`Watch::changed`]. Unlike [`add_routes`](Self::add_routes) it takes
    /// the place of a route that somebody put in ours. [`Changes::is_empty`] if there was nothing to do.
    ///
    /// # Errors
    /// As [`add_routes`](Self::add_routes).
    pub async fn restore(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        self.ensure(plan, true, true).await
    }

    async fn ensure(&self, plan: &RoutePlan, tunnel: bool, force: bool) -> Result<Changes, NetError> {
        self.ensure_work(plan, tunnel, force).await.finish()
    }

    async fn ensure_work(&self, plan: &RoutePlan, tunnel: bool, force: bool) -> Work {
        let mut work = Work::default();
        if plan.blocks().next().is_none() {
            return work;
        }
        let index = work.check("routes", kernel::index_of(&self.handle, plan.interface()).await).flatten();
        let slots = self.slots(plan, &mut work).await;
        if !tunnel {
            self.check_unbeaten(plan, index, &slots, &mut work).await;
        }
        for route in plan.blocks() {
            self.ensure_route(&route, plan.interface(), index, &slots, force, &mut work).await;
        }
        self.ensure_rules(plan, &mut work).await;
        if plan.needs_src_valid_mark() {
            work.changes.warnings.extend(sysctl::prepare_default_route(plan.interface()));
        }
        if tunnel && index.is_none() {
            let (name, what) = (plan.interface().to_owned(), "routes into the tunnel".to_owned());
            work.errors.push(NetError::NoInterface { name, what });
        } else if tunnel {
            for route in plan.routes() {
                self.ensure_route(&route, plan.interface(), index, &slots, force, &mut work).await;
            }
        }
        work
    }

    /// What the kernel has for the prefixes of `plan`. One dump a family costs less than a question for each prefix, and
    /// only what concerns us is kept.
    async fn slots(&self, plan: &RoutePlan, work: &mut Work) -> Slots {
        let wanted: BTreeSet<_> = plan.blocks().map(|r| (r.table, r.prefix)).collect();
        let mut slots = Slots::new();
        for ipv6 in [false, true] {
            if !wanted.iter().any(|(_, prefix)| prefix.addr().is_ipv6() == ipv6) {
                continue;
            }
            let keep = |found: &Found| wanted.contains(&(found.table, found.prefix));
            let dump = kernel::dump_routes(&self.handle, ipv6, None, keep).await;
            for found in work.check("listing routes", dump).unwrap_or_default() {
                slots.entry((found.table, found.prefix)).or_default().push(found);
            }
        }
        slots
    }

    async fn ensure_route(
        &self,
        route: &Route,
        interface: &str,
        index: Option<u32>,
        slots: &Slots,
        force: bool,
        work: &mut Work,
    ) {
        let text = route.describe(interface);
        let there = slots.get(&(route.table, route.prefix)).map(Vec::as_slice).unwrap_or_default();
        let same = there.iter().find(|found| found.metric == route.metric() && found.tos == 0);
        if let Some(found) = same {
            let right = match route.target {
                Target::Unreachable => found.kind == RouteType::Unreachable,
                Target::Interface => {
                    found.kind == RouteType::Unicast && index.is_some() && found.oif == index
                }
            };
            // A subnet that the kernel made from the interface's own address does the same work as our route.
            if right && (found.mtu == route.mtu || !found.is_ours()) {
                return;
            }
            if !right && !force {
                let foreign = self.describe(found).await;
                work.errors.push(NetError::Conflict { ours: text, foreign });
                return;
            }
        }
        let was = match same {
            Some(found) => Some(self.describe(found).await),
            None => None,
        };
        let added = kernel::add_route(&self.handle, route, index, same.is_some()).await;
        if work.check(&text, added).is_some() {
            match was {
                Some(was) => work.changes.replaced.push(format!("{text} (was {was})")),
                None => work.changes.added.push(text),
            }
        }
    }

    /// Somebody else's route that beats the block carries the prefix out in clear: that is an error before it happens.
    async fn check_unbeaten(&self, plan: &RoutePlan, index: Option<u32>, slots: &Slots, work: &mut Work) {
        for block in plan.blocks() {
            let there = slots.get(&(block.table, block.prefix)).map(Vec::as_slice).unwrap_or_default();
            let through_us = |found: &Found| index.is_some() && found.oif == index;
            let beats =
                |found: &&Found| found.metric < block.metric() && !found.is_ours() && !through_us(found);
            if let Some(found) = there.iter().find(beats) {
                let foreign = self.describe(found).await;
                work.errors.push(NetError::Conflict { ours: block.describe(plan.interface()), foreign });
            }
        }
    }

    async fn ensure_rules(&self, plan: &RoutePlan, work: &mut Work) {
        for ipv6 in [false, true] {
            let wanted: Vec<&Rule> = plan.rules().iter().filter(|rule| rule.ipv6 == ipv6).collect();
            if wanted.is_empty() {
                continue;
            }
            let dump = kernel::dump_rules(&self.handle, ipv6).await;
            let Some(present) = work.check("listing rules", dump) else { continue };
            for rule in wanted {
                if present.iter().any(|message| kernel::is_rule(message, rule)) {
                    continue;
                }
                let text = format!("rule {rule}");
                if work.check(&text, kernel::add_rule(&self.handle, rule).await).is_some() {
                    work.changes.added.push(text);
                }
            }
        }
    }

    async fn remove_rule(&self, rule: &Rule, work: &mut Work) {
        let text = format!("rule {rule}");
        if rule.kind == RuleKind::MainButDefault {
            // Another interface of ours with a default route needs it too.
            let dump = kernel::dump_rules(&self.handle, rule.ipv6).await;
            let shared = |message: &RuleMessage| {
                kernel::is_our_rule(message) && kernel::rule_priority(message) == PRIORITY_OURS
            };
            match work.check(&text, dump) {
                Some(rules) if rules.iter().any(shared) => return,
                None => return,
                Some(_) => {}
            }
        }
        let removed = kernel::remove_rule(&self.handle, kernel::rule_message(rule)).await;
        if work.check(&format!("removing {text}"), removed) == Some(true) {
            work.changes.removed.push(text);
        }
    }

    async fn remove_route(&self, route: &Route, interface: &str, index: Option<u32>, work: &mut Work) {
        let text = route.describe(interface);
        let removed = kernel::remove_route(&self.handle, route, index).await;
        if work.check(&format!("removing {text}"), removed) == Some(true) {
            work.changes.removed.push(text);
        }
    }

    async fn describe(&self, found: &Found) -> String {
        let name = match found.oif {
            Some(index) => kernel::name_of(&self.handle, index).await.ok().flatten(),
            None => None,
        };
        found.describe(name.as_deref())
    }

    pub(crate) async fn index(&self, interface: &str, what: &str) -> Result<u32, NetError> {
        let found = kernel::index_of(&self.handle, interface).await;
        found
            .map_err(|error| NetError::refused(what, error))?
            .ok_or_else(|| NetError::NoInterface { name: interface.to_owned(), what: what.to_owned() })
    }
}

/// What the kernel has, by table and prefix.
type Slots = BTreeMap<(u32, IpNet), Vec<Found>>;

/// Collects what was done and what failed, since a block that half works is better than none.
#[derive(Default)]
struct Work {
    changes: Changes,
    errors: Vec<NetError>,
}

impl Work {
    fn check<T>(&mut self, what: &str, result: io::Result<T>) -> Option<T> {
        result.map_err(|error| self.errors.push(NetError::refused(what, error))).ok()
    }

    fn finish(self) -> Result<Changes, NetError> {
        for warning in &self.changes.warnings {
            tracing::warn!("{warning}");
        }
        NetError::from_many(self.errors)?;
        Ok(self.changes)
    }
}

pub(crate) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        rtnetlink::Error::RequestFailed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}
