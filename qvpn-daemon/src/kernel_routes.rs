//! `routes = "kernel"`: converts the kernel's routes, which a mirror follows on its own thread, into the
//! lanes' table and into a report of which routes lead to which peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use qvpn_api::status::{RoutedPeerStatus, RoutingStatus, UnresolvedRoute};
use qvpn_dataplane::{KernelRoutes, NextHop, RoutedPeer, RoutedPeers};
use qvpn_net::{IpNet, KernelNextHop, MirrorReport, NetError, NextHopRoute, RouteMirror};
use qvpn_types::PeerNumber;
use tokio::sync::watch;

use crate::settings::PeerSettings;

/// The maximum number of routes that a status lists for a peer, and of those that lead to none.
const MAX_NAMED: usize = 20;

/// The state of the routes, built by the mirror's thread or after a reload.
#[derive(Default)]
pub(crate) struct RoutingTable {
    pub(crate) lanes: Arc<KernelRoutes>,
    routes: Arc<Vec<NextHopRoute>>,
    report: Report,
    error: Option<String>,
}

/// Which routes lead where.
#[derive(Default)]
struct Report {
    /// By peer number: how many routes lead there, and the first of them.
    peers: BTreeMap<u16, (u64, Vec<IpNet>)>,
    unresolved: (u64, Vec<UnresolvedRoute>),
}

/// The peers as the routes need them, shared with the mirror's thread.
type SharedPeers = Arc<Mutex<Arc<RoutedPeers>>>;

/// The routes of the kernel, and the peers that they lead to.
pub(crate) struct KernelRouting {
    table: u32,
    peers: SharedPeers,
    state: Arc<RoutingTable>,
}

/// The updates that the main loop waits for.
pub(crate) struct RouteUpdates {
    updates: watch::Receiver<Arc<RoutingTable>>,
    /// Keeps the channel open if there is no mirror.
    _sender: Arc<watch::Sender<Arc<RoutingTable>>>,
    _mirror: Option<RouteMirror>,
}

impl KernelRouting {
    pub(crate) fn new(table: u32) -> Self {
        Self { table, peers: SharedPeers::default(), state: Arc::default() }
    }

    /// Starts to follow the routes through the device with this index.
    ///
    /// # Errors
    /// No netlink socket, or no thread.
    pub(crate) fn follow(&self, device: u32) -> Result<RouteUpdates, NetError> {
        let (sender, updates) = watch::channel(Arc::<RoutingTable>::default());
        let sender = Arc::new(sender);
        let (peers, to) = (self.peers.clone(), sender.clone());
        let report = move |report| {
            let before = to.borrow().clone();
            let next = match report {
                MirrorReport::Routes(routes) => {
                    let peers = peers.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let next = RoutingTable::build(Arc::new(routes), &peers);
                    next.warn_of_unresolved(&before);
                    next
                }
                MirrorReport::Failed(error) => {
                    tracing::error!("{error}; the last routes stay in force");
                    before.with_error(error.to_string())
                }
            };
            to.send_replace(Arc::new(next));
        };
        let mirror = RouteMirror::start(self.table, device, report)?;
        Ok(RouteUpdates { updates, _sender: sender, _mirror: Some(mirror) })
    }

    /// Applies a table that the mirror built. Returns the lanes' table.
    pub(crate) fn update(&mut self, state: Arc<RoutingTable>) -> Arc<KernelRoutes> {
        let current = self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.state = match Arc::ptr_eq(state.lanes.peers(), &current) {
            true => state,
            // A reload changed the peers in the meantime.
            false => Arc::new(RoutingTable::build(state.routes.clone(), &current)),
        };
        self.state.lanes.clone()
    }

    /// Sets the peers. Returns the lanes' table.
    pub(crate) fn set_peers<'a>(
        &mut self,
        peers: impl Iterator<Item = (u16, &'a PeerSettings)>,
    ) -> Arc<KernelRoutes> {
        let peers = peers.map(|(number, settings)| {
            let next_hops = settings.config.next_hops();
            let own = next_hops.iter().map(|address| IpNet::from(*address));
            let allowed = settings.config.allowed_ips.iter().copied().chain(own);
            let allowed = allowed.map(|net| (net.addr(), net.prefix_len())).collect();
            RoutedPeer { peer: PeerNumber(number), next_hops, allowed }
        });
        // The prefix length of an `IpNet` is always valid, so this never fails.
        let peers = Arc::new(RoutedPeers::new(peers).unwrap_or_default());
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers.clone();
        self.state = Arc::new(RoutingTable::build(self.state.routes.clone(), &peers));
        self.state.lanes.clone()
    }

    /// Returns the routes in the form of the status; `peers` are those of the config, by number, in its
    /// order.
    pub(crate) fn status<'a>(
        &self,
        link_local: Option<String>,
        peers: impl Iterator<Item = (u16, &'a PeerSettings)>,
    ) -> RoutingStatus {
        let report = &self.state.report;
        let peers = peers.map(|(number, settings)| {
            let (routes, prefixes) = report.peers.get(&number).cloned().unwrap_or_default();
            RoutedPeerStatus {
                peer: settings.config.name.clone(),
                next_hops: settings.config.next_hops().iter().map(ToString::to_string).collect(),
                routes,
                prefixes: prefixes.iter().map(ToString::to_string).collect(),
            }
        });
        let leading = self.state.routes.iter().filter(|route| !route.next_hops.is_empty());
        RoutingStatus {
            table: self.table,
            link_local,
            routes: u64::try_from(leading.count()).unwrap_or(u64::MAX),
            peers: peers.collect(),
            unresolved_routes: report.unresolved.0,
            unresolved: report.unresolved.1.clone(),
            error: self.state.error.clone(),
        }
    }
}

impl RouteUpdates {
    /// For `routes = "config"`: never has an update.
    pub(crate) fn none() -> Self {
        let (sender, updates) = watch::channel(Arc::default());
        Self { updates, _sender: Arc::new(sender), _mirror: None }
    }

    /// Waits for the next table. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Option<Arc<RoutingTable>> {
        self.updates.changed().await.ok()?;
        Some(self.updates.borrow_and_update().clone())
    }
}

impl RoutingTable {
    fn build(routes: Arc<Vec<NextHopRoute>>, peers: &Arc<RoutedPeers>) -> Self {
        let hop = |hop: &KernelNextHop| NextHop { gateway: hop.gateway, weight: hop.weight };
        let hops: Vec<Vec<NextHop>> =
            routes.iter().map(|route| route.next_hops.iter().map(hop).collect()).collect();
        let entries = routes.iter().zip(&hops);
        let entries =
            entries.map(|(route, hops)| (route.prefix.addr(), route.prefix.prefix_len(), hops.as_slice()));
        // The prefix length of an `IpNet` is always valid, so this never fails.
        let lanes = Arc::new(KernelRoutes::new(peers.clone(), entries).unwrap_or_default());
        let report = Report::of(&routes, peers);
        Self { lanes, routes, report, error: None }
    }

    fn with_error(&self, error: String) -> Self {
        let report = Report { peers: self.report.peers.clone(), unresolved: self.report.unresolved.clone() };
        Self { lanes: self.lanes.clone(), routes: self.routes.clone(), report, error: Some(error) }
    }

    fn warn_of_unresolved(&self, before: &Self) {
        let (count, named) = &self.report.unresolved;
        if let (Some(first), 0) = (named.first(), before.report.unresolved.0) {
            tracing::warn!(
                "{count} of the kernel's routes lead to no peer, the first: {} via {}; route it by a peer's \
                 `tunnel_address`",
                first.prefix,
                first.next_hops.join(", ")
            );
        }
    }
}

impl Report {
    fn of(routes: &[NextHopRoute], peers: &RoutedPeers) -> Self {
        let mut report = Self::default();
        for route in routes {
            let gateways = || route.next_hops.iter().filter_map(|hop| hop.gateway);
            let mut found: Vec<u16> =
                gateways().filter_map(|gateway| peers.at(gateway)).map(|p| p.0).collect();
            found.sort_unstable();
            found.dedup();
            for peer in found {
                let (count, named) = report.peers.entry(peer).or_default();
                *count += 1;
                if named.len() < MAX_NAMED {
                    named.push(route.prefix);
                }
            }
            let unknown: Vec<String> =
                gateways().filter(|gateway| peers.at(*gateway).is_none()).map(|ip| ip.to_string()).collect();
            if !unknown.is_empty() {
                report.unresolved.0 += 1;
                if report.unresolved.1.len() < MAX_NAMED {
                    let prefix = route.prefix.to_string();
                    report.unresolved.1.push(UnresolvedRoute { prefix, next_hops: unknown });
                }
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: &str, gateways: &[&str]) -> NextHopRoute {
        let hop = |text: &&str| KernelNextHop { gateway: text.parse().ok(), weight: 1 };
        NextHopRoute {
            prefix: prefix.parse().unwrap(),
            metric: 0,
            next_hops: gateways.iter().map(hop).collect(),
        }
    }

    #[test]
    fn a_report_names_the_routes_of_each_peer_and_those_that_lead_to_none() {
        let peer = |number, hop: &str| RoutedPeer {
            peer: PeerNumber(number),
            next_hops: vec![hop.parse().unwrap()],
            allowed: Vec::new(),
        };
        let peers = RoutedPeers::new([peer(1, "10.77.0.2"), peer(2, "10.77.0.3")]).unwrap();
        let report = Report::of(
            &[
                route("10.20.0.0/16", &["10.77.0.2", "10.77.0.3"]),
                route("10.30.0.0/16", &["10.77.0.3"]),
                route("10.40.0.0/16", &["10.77.0.9", "10.77.0.2"]),
                // On link: the destination decides.
                route("10.77.0.0/24", &["on-link"]),
            ],
            &peers,
        );
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(report.peers[&1], (2, nets(&["10.20.0.0/16", "10.40.0.0/16"])));
        assert_eq!(report.peers[&2], (2, nets(&["10.20.0.0/16", "10.30.0.0/16"])));
        let wrong =
            UnresolvedRoute { prefix: "10.40.0.0/16".to_owned(), next_hops: vec!["10.77.0.9".to_owned()] };
        assert_eq!(report.unresolved, (1, vec![wrong]));
    }

    #[test]
    fn a_table_that_was_built_for_former_peers_is_built_again() {
        let mut routing = KernelRouting::new(254);
        let former = Arc::default();
        let late = RoutingTable::build(Arc::new(vec![route("10.20.0.0/16", &["10.77.0.2"])]), &former);
        assert_eq!(late.report.unresolved.0, 1);
        let own = RoutedPeer {
            peer: PeerNumber(1),
            next_hops: vec!["10.77.0.2".parse().unwrap()],
            allowed: Vec::new(),
        };
        let peers = Arc::new(RoutedPeers::new([own]).unwrap());
        *routing.peers.lock().unwrap() = peers.clone();
        let table = routing.update(Arc::new(late));
        assert!(Arc::ptr_eq(table.peers(), &peers));
        assert_eq!((routing.state.report.unresolved.0, routing.state.report.peers[&1].0), (0, 1));
    }
}
