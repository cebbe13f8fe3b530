//! Keeps both layers of the block, routes and filter, for any number of tunnels of one network namespace:
//! installs them, notices what other programs do to them, and restores them. The resident guard has all
//! tunnels of the host; a daemon without a guard has its own.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use crate::apply::Net;
use crate::changes::Changes;
use crate::error::NetError;
use crate::filter_plan::FilterPlan;
use crate::nft::{Filter, FilterChange, FilterWatch, table_name};
use crate::plan::RoutePlan;
use crate::tunnel_status::{Challenge, LayerState, Restored, TunnelStatus};
use crate::watch::{Change, Watch};

/// Notifications come in bursts; one comparison handles a whole burst.
const BURST_TIME: Duration = Duration::from_millis(10);
/// The delay until what could not be restored is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

struct Tunnel {
    plan: RoutePlan,
    /// The filter in the kernel; `None` while it must be installed.
    installed: Option<FilterPlan>,
    routes: LayerState,
    /// Packets dropped by tables that were replaced.
    dropped_before: u64,
    /// The foreign name of its device, once reported.
    renamed: Option<String>,
}

/// Both layers of the block.
pub struct Guard {
    net: Net,
    filter: Result<Filter, String>,
    route_watch: Option<Watch>,
    filter_watch: Option<FilterWatch>,
    tunnels: BTreeMap<String, Tunnel>,
    challenges: Vec<Challenge>,
    retry: bool,
}

impl Guard {
    /// Opens the netlink sockets. To be called within a tokio runtime. A kernel without nf_tables is no
    /// error: see [`without_filter`](Self::without_filter).
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub fn connect() -> Result<Self, NetError> {
        Ok(Self::with(Net::connect()?, Filter::connect()))
    }

    /// As [`connect`](Self::connect), with the given connection to nf_tables, or the reason why there is no
    /// filter.
    #[must_use]
    pub fn with(net: Net, filter: Result<Filter, NetError>) -> Self {
        Self {
            net,
            filter: filter.map_err(|error| error.to_string()),
            route_watch: None,
            filter_watch: None,
            tunnels: BTreeMap::new(),
            challenges: Vec::new(),
            retry: false,
        }
    }

    /// The connection to the kernel's routing.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Why there is no filter; `None` if there is one.
    #[must_use]
    pub fn without_filter(&self) -> Option<&str> {
        self.filter.as_ref().err().map(String::as_str)
    }

    /// From now on makes filters that every program may remove, for the removal of the package.
    pub fn disown(&mut self) {
        if let Ok(filter) = &mut self.filter {
            filter.disown();
        }
    }

    /// Returns the plan that is in force for `interface`.
    #[must_use]
    pub fn plan(&self, interface: &str) -> Option<&RoutePlan> {
        self.tunnels.get(interface).map(|tunnel| &tunnel.plan)
    }

    /// Returns the interfaces that are guarded.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.tunnels.keys().map(String::as_str)
    }

    /// Starts watching what other programs do; see [`changed`](Self::changed).
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub fn watch(&mut self) -> Result<(), NetError> {
        self.route_watch = Some(Watch::open_all()?);
        self.filter_watch = match self.filter {
            Ok(_) => Some(FilterWatch::open()?),
            Err(_) => None,
        };
        Ok(())
    }

    /// Installs both layers for `plan`, replacing the previous plan. The routes into the tunnel are added
    /// once it has a device ([`RoutePlan::on_device`]). If a part fails, the rest is in force.
    ///
    /// # Errors
    /// All that failed.
    pub async fn set(&mut self, plan: RoutePlan) -> Result<Changes, NetError> {
        let name = plan.interface().to_owned();
        let mut errors = Vec::new();
        let mut changes = Changes::default();
        // If the filter grows, it goes first: it drops what the routes let out in the meantime.
        let old = self.tunnels.get(&name).map(|tunnel| tunnel.plan.clone());
        let tunnel = Tunnel {
            plan: plan.clone(),
            installed: None,
            routes: LayerState::Missing,
            dropped_before: self.dropped_so_far(&name),
            renamed: None,
        };
        self.tunnels.insert(name.clone(), tunnel);
        let had_table = self.filter.as_ref().is_ok_and(|filter| filter.is_installed(&name).unwrap_or(false));
        match self.update_filter(&name).await {
            Ok(true) if !had_table && plan.filtered().next().is_some() => {
                changes.added.push(shown_table(&name))
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
        let routes = match (&old, plan.device()) {
            (Some(old), Some(_)) => self.net.apply(old, &plan).await,
            (None, Some(_)) => self.net.add_routes(&plan).await,
            (Some(old), None) => self.net.apply_block(old, &plan).await,
            (None, None) => self.net.block(&plan).await,
        };
        self.note_routes(&name, routes.is_ok());
        match routes {
            Ok(done) => {
                if !done.removed.is_empty() {
                    errors.extend(self.restore_others(&name).await);
                }
                changes.extend(done);
            }
            Err(error) => errors.push(error),
        }
        // The prefixes that each tunnel carries may have changed with the routes.
        let names: Vec<String> = self.tunnels.keys().cloned().collect();
        for name in names {
            errors.extend(self.update_filter(&name).await.err());
        }
        NetError::from_many(errors).map(|()| changes)
    }

    /// Removes both layers of a tunnel, with the routes into it.
    ///
    /// # Errors
    /// All that failed.
    pub async fn release(&mut self, plan: &RoutePlan) -> Result<Changes, NetError> {
        let interface = plan.interface();
        self.tunnels.remove(interface);
        let mut errors = Vec::new();
        let mut changes = Changes::default();
        for done in [self.net.remove_routes(plan).await, self.net.unblock(plan).await] {
            match done {
                Ok(done) => changes.extend(done),
                Err(error) => errors.push(error),
            }
        }
        match self.filter.as_mut().map(|filter| filter.remove(interface)) {
            Ok(Ok(true)) => changes.removed.push(shown_table(interface)),
            Ok(Err(error)) => errors.push(error),
            _ => {}
        }
        errors.extend(self.restore_others(interface).await);
        NetError::from_many(errors).map(|()| changes)
    }

    /// Restores blocks that other tunnels shared with what was removed for `interface`.
    async fn restore_others(&self, interface: &str) -> Vec<NetError> {
        let mut errors = Vec::new();
        for (_, tunnel) in self.tunnels.iter().filter(|(name, _)| *name != interface) {
            errors.extend(self.net.restore_block(&tunnel.plan).await.err());
        }
        errors
    }

    /// Removes all our blocks in this network namespace, from any config.
    ///
    /// # Errors
    /// All that failed.
    pub async fn release_all(&mut self) -> Result<Changes, NetError> {
        self.tunnels.clear();
        let mut errors = Vec::new();
        let mut changes = Changes::default();
        match self.net.unblock_all().await {
            Ok(done) => changes.extend(done),
            Err(error) => errors.push(error),
        }
        if let Ok(filter) = &mut self.filter {
            let tables = filter.tables().map_err(|error| errors.push(error)).unwrap_or_default();
            for interface in tables {
                match filter.remove(&interface) {
                    Ok(true) => changes.removed.push(shown_table(&interface)),
                    Ok(false) => {}
                    Err(error) => errors.push(error),
                }
            }
        }
        NetError::from_many(errors).map(|()| changes)
    }

    /// Waits until another program changes something, or until it is time to try again. Cancel safe.
    pub async fn changed(&mut self) {
        let retry = self.retry;
        tokio::select! {
            change = next_route_change(&mut self.route_watch) => {
                match change {
                    Some(change) => self.on_route_change(change),
                    None => self.route_watch = None,
                }
            }
            changes = next_filter_change(&mut self.filter_watch) => {
                match changes {
                    Some(changes) => changes.into_iter().for_each(|change| self.on_filter_change(change)),
                    None => self.filter_watch = None,
                }
            }
            () = tokio::time::sleep(RETRY_INTERVAL), if retry => {}
        }
    }

    /// Collects the other changes of a burst, and restores both layers.
    pub async fn restore(&mut self) -> Restored {
        self.settle().await;
        let mut restored =
            Restored { challenges: std::mem::take(&mut self.challenges), ..Restored::default() };
        if self.route_watch.is_none() || (self.filter_watch.is_none() && self.filter.is_ok()) {
            restored.errors.extend(self.watch().err());
        }
        let names: Vec<String> = self.tunnels.keys().cloned().collect();
        for name in &names {
            let Some(tunnel) = self.tunnels.get(name) else { continue };
            let plan = tunnel.plan.clone();
            let done = match plan.device() {
                Some(_) => self.net.restore(&plan).await,
                None => self.net.restore_block(&plan).await,
            };
            self.note_routes(name, done.is_ok());
            match done {
                Ok(done) => restored.changes.extend(done),
                Err(error) => restored.errors.push(error),
            }
        }
        for name in &names {
            match self.update_filter(name).await {
                Ok(true) => restored.changes.replaced.push(shown_table(name)),
                Ok(false) => {}
                Err(error) => restored.errors.push(error),
            }
        }
        self.retry = !restored.errors.is_empty();
        restored
    }

    /// Returns the current state of the block of `interface`.
    #[must_use]
    pub fn status(&self, interface: &str) -> Option<TunnelStatus> {
        let tunnel = self.tunnels.get(interface)?;
        let protected: Vec<IpNet> = tunnel.plan.filtered().collect();
        let filter = match (&tunnel.installed, protected.is_empty()) {
            (_, true) => LayerState::Off,
            (Some(_), false) => LayerState::InForce,
            (None, false) => LayerState::Missing,
        };
        let local = tunnel.plan.local().iter().map(|local| (local.prefix, local.device.clone()));
        Some(TunnelStatus {
            routes: if protected.is_empty() { LayerState::Off } else { tunnel.routes },
            filter,
            local: local.collect(),
            protected,
            dropped: self.filter.is_ok().then(|| self.dropped_so_far(interface)),
            without_filter: self.without_filter().map(str::to_owned),
        })
    }

    async fn settle(&mut self) {
        let over = tokio::time::Instant::now() + BURST_TIME;
        while tokio::time::timeout_at(over, self.changed()).await.is_ok() {
            if self.retry {
                return;
            }
        }
    }

    /// Installs the filter of `interface` unless it is in force. Returns whether that was needed.
    async fn update_filter(&mut self, interface: &str) -> Result<bool, NetError> {
        let (Some(tunnel), Ok(filter)) = (self.tunnels.get(interface), &mut self.filter) else {
            return Ok(false);
        };
        let others = self.net.other_tunnels(&tunnel.plan).await?;
        let names = tunnel.plan.local().iter().map(|local| local.device.as_str());
        let devices = self.net.devices(names).await?;
        let wanted = FilterPlan::new(&tunnel.plan, &others, &devices);
        if tunnel.installed.as_ref() == Some(&wanted) {
            return Ok(false);
        }
        let dropped = filter.dropped(interface).ok().flatten().unwrap_or(0);
        match filter.install(&wanted) {
            // The kernel lacks a part of nf_tables: only the routes keep clear text in.
            Err(NetError::NoFilter(error)) => {
                let reason = NetError::NoFilter(error).to_string();
                tracing::warn!("{reason}");
                self.filter = Err(reason);
                return Ok(false);
            }
            result => result?,
        }
        if let Some(tunnel) = self.tunnels.get_mut(interface) {
            tunnel.installed = Some(wanted);
            tunnel.dropped_before += dropped;
        }
        Ok(true)
    }

    fn note_routes(&mut self, interface: &str, in_force: bool) {
        if let Some(tunnel) = self.tunnels.get_mut(interface) {
            tunnel.routes = if in_force { LayerState::InForce } else { LayerState::Missing };
        }
    }

    fn dropped_so_far(&self, interface: &str) -> u64 {
        let before = self.tunnels.get(interface).map_or(0, |tunnel| tunnel.dropped_before);
        let now = self.filter.as_ref().ok().and_then(|filter| filter.dropped(interface).ok().flatten());
        before + now.unwrap_or(0)
    }

    fn on_route_change(&mut self, change: Change) {
        tracing::debug!("routes: {change:?}");
        match change {
            Change::Route { prefix, device, text } => {
                for (name, tunnel) in &self.tunnels {
                    if around(&tunnel.plan, &prefix, device) {
                        let effect = "it leads around the tunnel and has no effect: our table comes first, \
                                      and the filter drops what leaves elsewhere";
                        self.challenges.push(challenge(name, format!("route {text}"), effect));
                    }
                }
            }
            Change::Rule(text) => {
                for name in self.tunnels.keys() {
                    let effect = "it comes before ours; the filter drops what it leads around the tunnel";
                    self.challenges.push(challenge(name, text.clone(), effect));
                }
            }
            Change::Device { index, name } => self.on_device(index, name.as_deref()),
            _ => {}
        }
    }

    fn on_device(&mut self, index: u32, now: Option<&str>) {
        for (name, tunnel) in &mut self.tunnels {
            if tunnel.plan.device() != Some(index) {
                continue;
            }
            let renamed = now.filter(|now| *now != name.as_str()).map(str::to_owned);
            let reported = std::mem::replace(&mut tunnel.renamed, renamed.clone());
            let (what, effect) = match (now, renamed) {
                (None, _) => {
                    tunnel.plan = tunnel.plan.clone().on_device(None);
                    let what = format!("device {name} was deleted, or moved to another network namespace");
                    (what, "its prefixes are blocked; restart its daemon")
                }
                (Some(_), Some(now)) if reported.as_ref() != Some(&now) => {
                    let what = format!("device {name} is now called {now}");
                    (what, "the tunnel continues, since it is known by its index")
                }
                _ => continue,
            };
            self.challenges.push(challenge(name, what, effect));
        }
    }

    fn on_filter_change(&mut self, change: FilterChange) {
        let own = self.filter.as_ref().ok().and_then(|filter| filter.port().ok());
        match change {
            FilterChange::Table { interface, port, removed } if Some(port) != own => {
                if let Some(tunnel) = self.tunnels.get_mut(&interface)
                    && tunnel.installed.take().is_some()
                {
                    let verb = if removed { "removed or emptied" } else { "changed" };
                    let what = format!("{} was {verb}", shown_table(&interface));
                    self.challenges.push(challenge(&interface, what, "it is restored"));
                }
            }
            FilterChange::Table { .. } => {}
            FilterChange::Missed => self.tunnels.values_mut().for_each(|tunnel| tunnel.installed = None),
        }
    }
}

/// Whether a route to `prefix` through `device` leads around the tunnel of `plan`.
fn around(plan: &RoutePlan, prefix: &IpNet, device: Option<u32>) -> bool {
    (device.is_none() || device != plan.device())
        && prefix.prefix_len() > 0
        && plan.filtered().any(|protected| protected.contains(prefix))
        && !plan.local().iter().any(|local| local.prefix.contains(prefix))
}

fn challenge(interface: &str, what: String, effect: &str) -> Challenge {
    Challenge { interface: interface.to_owned(), what, effect: effect.to_owned() }
}

fn shown_table(interface: &str) -> String {
    format!("nftables table inet {}", table_name(interface))
}

/// Waits for the next change; forever if nothing is watched.
async fn next_route_change(watch: &mut Option<Watch>) -> Option<Change> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

async fn next_filter_change(watch: &mut Option<FilterWatch>) -> Option<Vec<FilterChange>> {
    match watch {
        Some(watch) => watch.changed().await.ok(),
        None => std::future::pending().await,
    }
}
