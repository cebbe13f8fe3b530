//! The route layer: makes the kernel's routes and rules agree with a plan. Each step can be repeated, and no
//! prefix of the plan is without its block between two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::route::RouteType;
use tokio::task::JoinHandle;

use crate::changes::{Changes, Work};
use crate::error::NetError;
use crate::kernel::{self, KernelRoute, RouteFilter};
use crate::plan::{GUARD_TABLE, LOCAL_PROTOCOL, ROUTE_PROTOCOL, RULE_PRIORITY, Route, RoutePlan, Target};
use crate::sysctl;
use crate::watch::Watch;

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

    /// Puts the block in place: the `unreachable` routes, the rules, and the routes of `local`. It needs no
    /// device, so it can run first, at boot.
    ///
    /// # Errors
    /// [`NetError::Conflict`] if a foreign route in a table of the operator's beats the block, or a missing
    /// permission. Everything else is still applied.
    pub async fn block(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = self.ensure_work(plan, false, false).await;
        if work.errors.is_empty() {
            self.remove_legacy(plan, &mut work).await;
        }
        work.finish()
    }

    /// Removes the block of `plan`. Routes into the tunnel stay; see
    /// [`remove_routes`](Self::remove_routes).
    ///
    /// # Errors
    /// No permission, or a refusal by the kernel.
    pub async fn unblock(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = Work::default();
        self.remove_unused_rules(plan, &BTreeSet::new(), &mut work).await;
        for route in plan.blocks() {
            self.remove_route(&route, plan.interface(), None, &mut work).await;
        }
        if !plan.local().is_empty() {
            let unprotected = plan.clone().with_local(Vec::new());
            self.sync_local(plan, &unprotected, &mut work).await;
        }
        work.finish()
    }

    /// Removes all our blocks in this network namespace, from any config.
    ///
    /// # Errors
    /// A missing permission, or a refusal by the kernel.
    pub async fn unblock_all(&self) -> Result<Changes, NetError> {
        let mut work = Work::default();
        for ipv6 in [false, true] {
            self.remove_all_rules(ipv6, &mut work).await;
            for protocol in [ROUTE_PROTOCOL, LOCAL_PROTOCOL] {
                let ours = |found: &KernelRoute| {
                    found.protocol != ROUTE_PROTOCOL || found.kind != RouteType::Unicast
                };
                let filter = RouteFilter { protocol: Some(protocol), ..RouteFilter::default() };
                let dump = kernel::dump_routes(&self.handle, ipv6, filter, ours).await;
                for found in work.check("removing our blocks", dump).unwrap_or_default() {
                    self.remove_kernel_route(&found, &mut work).await;
                }
            }
        }
        work.finish()
    }

    /// Installs all of `plan`: the block, the rules, and the routes into the tunnel, whose device must be up.
    ///
    /// # Errors
    /// As [`block`](Self::block), and if the device isn't there or is down. Everything else is still applied.
    pub async fn add_routes(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        self.ensure_work(plan, true, false).await.finish()
    }

    /// Removes the routes into the tunnel; the block stays.
    ///
    /// # Errors
    /// No permission, or a refusal by the kernel.
    pub async fn remove_routes(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = Work::default();
        let index = work.check("removing routes into the tunnel", self.device(plan).await).flatten();
        // The kernel removed the routes together with the device; a route that is there now isn't ours.
        if index.is_some() {
            for route in plan.routes() {
                self.remove_route(&route, plan.interface(), index, &mut work).await;
            }
        }
        work.finish()
    }

    /// Replaces `old` by `new` and changes only what differs: first all that is new, in the order of
    /// [`add_routes`](Self::add_routes), then removes what is no longer wanted.
    ///
    /// # Errors
    /// As [`add_routes`](Self::add_routes); what is no longer wanted is removed in any case.
    pub async fn apply(&self, old: &RoutePlan, new: &RoutePlan) -> Result<Changes, NetError> {
        let mut work = self.ensure_work(new, true, false).await;
        let wanted: BTreeSet<_> = new.routes().map(|r| (r.prefix, r.table)).collect();
        let index = work.check("reload", self.device(old).await).flatten();
        if index.is_some() {
            for route in old.routes().filter(|route| !wanted.contains(&(route.prefix, route.table))) {
                self.remove_route(&route, old.interface(), index, &mut work).await;
            }
        }
        self.remove_stale(old, new, &mut work).await;
        work.finish()
    }

    /// Replaces `old` by `new` for a tunnel without a device: first all that is new, then what is no longer
    /// wanted, with the routes into the tunnel.
    ///
    /// # Errors
    /// As [`block`](Self::block).
    pub async fn apply_block(&self, old: &RoutePlan, new: &RoutePlan) -> Result<Changes, NetError> {
        let mut changes = self.block(new).await?;
        let mut work = Work::default();
        self.remove_stale(old, new, &mut work).await;
        changes.extend(work.finish()?);
        changes.extend(self.remove_routes(old).await?);
        Ok(changes)
    }

    /// Removes blocks, rules and copies of `old` that `new` does not want.
    async fn remove_stale(&self, old: &RoutePlan, new: &RoutePlan, work: &mut Work) {
        let kept: BTreeSet<_> = new.rules().into_iter().collect();
        let blocks: BTreeSet<_> = new.blocks().map(|r| (r.prefix, r.table, r.metric())).collect();
        let stale: Vec<Route> =
            old.blocks().filter(|r| !blocks.contains(&(r.prefix, r.table, r.metric()))).collect();
        if old.rules().iter().any(|rule| !kept.contains(rule)) {
            let wanted: BTreeSet<IpNet> = new.filtered().collect();
            self.remove_unused_rules(old, &wanted, work).await;
        }
        for route in stale {
            self.remove_route(&route, old.interface(), None, work).await;
        }
        if old.local() != new.local() {
            self.sync_local(old, new, work).await;
        }
    }

    /// Watches for changes to our routes and rules, and to `interface`, from now on.
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub fn watch(&self, interface: &str) -> Result<Watch, NetError> {
        Watch::open(interface)
    }

    /// Watches for changes to devices and their addresses, from now on.
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub fn watch_devices(&self) -> Result<Watch, NetError> {
        Watch::open_devices()
    }

    /// Restores what is missing from `plan`, after [`Watch::changed`]. Unlike
    /// [`add_routes`](Self::add_routes) it also replaces a foreign route that took the place of ours.
    /// [`Changes::is_empty`] if there was nothing to do.
    ///
    /// # Errors
    /// As [`add_routes`](Self::add_routes).
    pub async fn restore(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        self.ensure_work(plan, true, true).await.finish()
    }

    /// As [`restore`](Self::restore), for a tunnel that has no device now.
    ///
    /// # Errors
    /// As [`block`](Self::block).
    pub async fn restore_block(&self, plan: &RoutePlan) -> Result<Changes, NetError> {
        self.ensure_work(plan, false, true).await.finish()
    }

    /// Returns the prefixes that other tunnels of this network namespace carry now.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub async fn other_tunnels(&self, plan: &RoutePlan) -> Result<BTreeSet<IpNet>, NetError> {
        let what = "listing the routes of other tunnels";
        let own = self.device(plan).await.map_err(|error| NetError::refused(what, error))?;
        let mut found = BTreeSet::new();
        let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), table: Some(GUARD_TABLE), oif: None };
        for ipv6 in [false, true] {
            let others = |route: &KernelRoute| route.kind == RouteType::Unicast && route.oif != own;
            let dump = kernel::dump_routes(&self.handle, ipv6, filter, others).await;
            let dump = dump.map_err(|error| NetError::refused(what, error))?;
            found.extend(dump.into_iter().map(|route| route.prefix));
        }
        Ok(found)
    }

    /// Returns the indices of the existing devices among these names.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub async fn devices(
        &self,
        names: impl IntoIterator<Item = &str>,
    ) -> Result<BTreeMap<String, u32>, NetError> {
        let mut found = BTreeMap::new();
        for name in names {
            let index = kernel::index_of(&self.handle, name).await;
            let index = index.map_err(|error| NetError::refused(format!("looking up {name}"), error))?;
            found.extend(index.map(|index| (name.to_owned(), index)));
        }
        Ok(found)
    }

    /// Returns the tunnel's device, if it exists: by the index in the plan, otherwise by name.
    pub(crate) async fn device(&self, plan: &RoutePlan) -> io::Result<Option<u32>> {
        match plan.device() {
            Some(index) => Ok(kernel::name_of(&self.handle, index).await?.map(|_| index)),
            None => kernel::index_of(&self.handle, plan.interface()).await,
        }
    }

    async fn ensure_work(&self, plan: &RoutePlan, tunnel: bool, force: bool) -> Work {
        let mut work = Work::default();
        if plan.blocks().next().is_none() {
            return work;
        }
        let index = work.check("routes", self.device(plan).await).flatten();
        let present = self.present(plan, &mut work).await;
        if !tunnel {
            self.check_unbeaten(plan, index, &present, &mut work).await;
        }
        for route in plan.blocks() {
            self.ensure_route(&route, plan.interface(), index, &present, force, &mut work).await;
        }
        if !plan.local().is_empty() {
            self.sync_local(plan, plan, &mut work).await;
        }
        self.remove_intruders(&present, &mut work).await;
        self.ensure_rules(plan, &mut work).await;
        if plan.needs_src_valid_mark() {
            work.changes.warnings.extend(sysctl::set_src_valid_mark());
        }
        if plan.allowed().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4()) {
            work.changes.warnings.extend(sysctl::warn_of_strict_reverse_path(plan.interface()));
        }
        if tunnel && index.is_none() {
            let (name, what) = (plan.interface().to_owned(), "routes into the tunnel".to_owned());
            work.errors.push(NetError::NoInterface { name, what });
        } else if tunnel {
            for route in plan.routes() {
                self.ensure_route(&route, plan.interface(), index, &present, force, &mut work).await;
            }
        }
        work
    }

    /// Returns the kernel's routes for the prefixes of `plan`, and all routes of our table. One dump of a
    /// table costs less than a request for each prefix.
    async fn present(&self, plan: &RoutePlan, work: &mut Work) -> Present {
        let wanted: BTreeSet<_> = plan.blocks().chain(plan.routes()).map(|r| (r.table, r.prefix)).collect();
        let tables: BTreeSet<u32> = wanted.iter().map(|(table, _)| *table).collect();
        let mut present = Present::new();
        for (table, ipv6) in tables.iter().flat_map(|table| [(*table, false), (*table, true)]) {
            let filter = RouteFilter { table: Some(table), ..RouteFilter::default() };
            let keep = |found: &KernelRoute| {
                found.table == table
                    && (table == GUARD_TABLE || wanted.contains(&(found.table, found.prefix)))
            };
            let dump = kernel::dump_routes(&self.handle, ipv6, filter, keep).await;
            for found in work.check("listing routes", dump).unwrap_or_default() {
                present.entry((found.table, found.prefix)).or_default().push(found);
            }
        }
        present
    }

    async fn ensure_route(
        &self,
        route: &Route,
        interface: &str,
        index: Option<u32>,
        present: &Present,
        force: bool,
        work: &mut Work,
    ) {
        let text = route.describe(interface);
        let there = present.get(&(route.table, route.prefix)).map(Vec::as_slice).unwrap_or_default();
        let same = there.iter().find(|found| found.metric == route.metric() && found.tos == 0);
        if let Some(found) = same {
            let right = match route.target {
                Target::Unreachable | Target::LastResort => found.kind == RouteType::Unreachable,
                Target::Throw => found.kind == RouteType::Throw,
                Target::Interface => {
                    found.kind == RouteType::Unicast && index.is_some() && found.oif == index
                }
            };
            // A connected route of the tunnel's own address has the same effect as our route.
            if right && (found.mtu == route.mtu || !found.is_ours()) {
                return;
            }
            // Two tunnels that take a route from each other would never stop; the first one keeps it.
            let other_tunnel = route.target == Target::Interface
                && (found.protocol, found.kind) == (ROUTE_PROTOCOL, RouteType::Unicast)
                && found.oif != index;
            if other_tunnel || (!right && !force && route.table != GUARD_TABLE) {
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

    /// In a table of the operator's, a foreign route that beats the block is an error, reported before it
    /// leaks.
    async fn check_unbeaten(&self, plan: &RoutePlan, index: Option<u32>, present: &Present, work: &mut Work) {
        for block in plan.blocks().filter(|r| r.table != GUARD_TABLE && r.target == Target::Unreachable) {
            let there = present.get(&(block.table, block.prefix)).map(Vec::as_slice).unwrap_or_default();
            let through_us = |found: &KernelRoute| index.is_some() && found.oif == index;
            let beats = |found: &&KernelRoute| {
                found.metric < block.metric() && !found.is_ours() && !through_us(found)
            };
            if let Some(found) = there.iter().find(beats) {
                let foreign = self.describe(found).await;
                work.errors.push(NetError::Conflict { ours: block.describe(plan.interface()), foreign });
            }
        }
    }

    /// Removes routes that others put into our table.
    async fn remove_intruders(&self, present: &Present, work: &mut Work) {
        for found in present.values().flatten().filter(|r| r.table == GUARD_TABLE && !r.is_ours()) {
            self.remove_kernel_route(found, work).await;
        }
    }

    async fn ensure_rules(&self, plan: &RoutePlan, work: &mut Work) {
        for ipv6 in [false, true] {
            let wanted: Vec<_> = plan.rules().into_iter().filter(|rule| rule.ipv6 == ipv6).collect();
            if wanted.is_empty() {
                continue;
            }
            let dump = kernel::dump_rules(&self.handle, ipv6).await;
            let Some(present) = work.check("listing rules", dump) else { continue };
            for rule in &wanted {
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

    /// Removes our rules of a family unless our table has routes of another tunnel, or `plan` keeps some of
    /// `wanted`.
    async fn remove_unused_rules(&self, plan: &RoutePlan, wanted: &BTreeSet<IpNet>, work: &mut Work) {
        if !plan.uses_guard_table() {
            return;
        }
        let own: BTreeSet<IpNet> = plan.blocks().map(|route| route.prefix).collect();
        for ipv6 in [false, true] {
            let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), table: Some(GUARD_TABLE), oif: None };
            let others = |found: &KernelRoute| {
                found.kind == RouteType::Unreachable
                    && (!own.contains(&found.prefix) || wanted.contains(&found.prefix))
            };
            let dump = kernel::dump_routes(&self.handle, ipv6, filter, others).await;
            if work.check("listing routes", dump).is_some_and(|others| others.is_empty()) {
                self.remove_all_rules(ipv6, work).await;
            }
        }
    }

    async fn remove_all_rules(&self, ipv6: bool, work: &mut Work) {
        let what = "removing our rules";
        let dump = kernel::dump_rules(&self.handle, ipv6).await;
        let Some(mut rules) = work.check(what, dump) else { return };
        rules.retain(kernel::is_our_rule);
        // Remove the rule that looks up our table first: our own datagrams must not meet it without their
        // bypass.
        rules.sort_by_key(|rule| kernel::rule_priority(rule) != RULE_PRIORITY);
        for rule in rules {
            let text = format!(
                "{}rule with priority {}",
                if ipv6 { "-6 " } else { "" },
                kernel::rule_priority(&rule)
            );
            let removed = kernel::remove_rule(&self.handle, rule).await;
            if work.check(what, removed) == Some(true) {
                work.changes.removed.push(text);
            }
        }
    }

    async fn remove_route(&self, route: &Route, interface: &str, index: Option<u32>, work: &mut Work) {
        let text = route.describe(interface);
        let removed = kernel::remove_route(&self.handle, route, index).await;
        if work.check(&format!("removing {text}"), removed) == Some(true) {
            work.changes.removed.push(text);
        }
    }

    pub(crate) async fn remove_kernel_route(&self, found: &KernelRoute, work: &mut Work) {
        let text = self.describe(found).await;
        let removed = kernel::remove_kernel_route(&self.handle, found).await;
        if work.check(&format!("removing {text}"), removed) == Some(true) {
            work.changes.removed.push(text);
        }
    }

    pub(crate) async fn describe(&self, found: &KernelRoute) -> String {
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

/// The kernel's routes, by table and prefix.
type Present = BTreeMap<(u32, IpNet), Vec<KernelRoute>>;

pub(crate) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        rtnetlink::Error::RequestFailed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}
