//! All peers, owned by one task: each datagram, key, result and timeout goes to the peer that it concerns,
//! and what the peer then wants is done. No other task touches a peer, so there is no lock.

mod lifecycle;
mod membership;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qvpn_api::status::RoutingStatus;
use qvpn_dataplane::{InterfaceStats, KernelRoutes, LaneEvent};
use qvpn_identity::PublicIdentity;
use qvpn_net::{IpNet, RoutePlan};
use qvpn_proto::LaneReport;
use qvpn_proto::session::{DatagramClass, Demux};
use qvpn_types::{SaeId, Time};

use crate::certificates::CertificateWatch;
use crate::clock;
use crate::context::DaemonContext;
use crate::demux_drops::DemuxDrops;
use crate::error::DaemonError;
use crate::histogram::Histogram;
use crate::kernel_routes::{KernelRouting, RoutingTable};
use crate::key_index;
use crate::kme_counts::KmeCounts;
use crate::kms_task::{self, KmeReporting, Kmes};
use crate::peer_runtime::PeerRuntime;
use crate::settings::{PeerSettings, Settings};
use crate::state_file::PeerStates;
use crate::task_result::{PeerTaskResult, TaskResult};
use crate::translate;

/// At most one handshake from an unknown key is logged in this time.
const UNKNOWN_KEY_LOG_INTERVAL: Duration = Duration::from_secs(5);
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// A number that no peer has. What the table of allowed IPs gives to it is dropped.
const DISABLED_PEER: u16 = u16::MAX;
/// The smallest MTU that IPv6 allows, in bytes (RFC 8200).
const MIN_IPV6_MTU: u16 = 1280;

pub(crate) struct Peers {
    runtimes: BTreeMap<u16, PeerRuntime>,
    /// The numbers of the peers in the config's order.
    order: Vec<u16>,
    /// The peers' numbers by X25519 key; a peer may have two.
    by_key: HashMap<[u8; 32], u16>,
    timers: BTreeSet<(Time, u16)>,
    next_serial: u64,
    next_number: u16,
    demux: Demux,
    demux_drops: DemuxDrops,
    context: DaemonContext,
    kmes: Kmes,
    kme_counts: Arc<KmeCounts>,
    /// How many lanes each peer has.
    lanes: u8,
    /// Under `routes = "kernel"`.
    routing: Option<KernelRouting>,
    measure_paths: bool,
    /// Allowed IPs of disabled peers.
    idle: Vec<IpNet>,
    /// In standby: those that begin once this gateway is active.
    standby: Option<Vec<PeerSettings>>,
    started: Time,
    unknown_key_logged: Option<Time>,
    certificates: CertificateWatch,
    certificates_checked: Option<Time>,
}

impl Peers {
    /// In standby. [`activate`](Self::activate) begins.
    pub(crate) fn new(
        settings: &Settings,
        routing: Option<KernelRouting>,
        (kmes, kme_counts): (Kmes, Arc<KmeCounts>),
        demux: Demux,
        context: DaemonContext,
        now: Time,
    ) -> Self {
        let mut peers = Self {
            runtimes: BTreeMap::new(),
            order: Vec::new(),
            by_key: HashMap::new(),
            timers: BTreeSet::new(),
            next_serial: 1,
            next_number: 0,
            demux,
            demux_drops: DemuxDrops::default(),
            context,
            kmes,
            kme_counts,
            lanes: settings.fixed.lanes,
            routing,
            measure_paths: settings.measure_paths,
            idle: settings.idle.clone(),
            standby: Some(settings.peers.clone()),
            started: now,
            unknown_key_logged: None,
            certificates: CertificateWatch::default(),
            certificates_checked: None,
        };
        peers.configure_lanes(settings.device.mtu);
        peers
    }

    /// In the config's order.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &PeerRuntime> {
        self.order.iter().filter_map(|number| self.runtimes.get(number))
    }

    pub(crate) fn kmes(&self) -> &Kmes {
        &self.kmes
    }

    pub(crate) fn kme_counts(&self) -> &Arc<KmeCounts> {
        &self.kme_counts
    }

    /// The channel for reports of KMEs that a reload opens.
    pub(crate) fn kme_reporting(&self) -> KmeReporting {
        KmeReporting {
            events: self.context.events.clone(),
            results: self.context.results.clone(),
            counts: self.kme_counts.clone(),
        }
    }

    pub(crate) fn demux_drops(&self) -> DemuxDrops {
        self.demux_drops
    }

    pub(crate) fn interface_stats(&self) -> &InterfaceStats {
        &self.context.stats
    }

    pub(crate) fn rekey_durations(&self) -> &Histogram {
        &self.context.rekeys
    }

    pub(crate) fn started(&self) -> Time {
        self.started
    }

    /// What the next start needs to know about each peer.
    pub(crate) fn states(&self) -> PeerStates {
        self.runtimes.values().flat_map(PeerRuntime::state).collect()
    }

    /// When the next peer has a timeout.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Handles the timeouts that are due.
    pub(crate) fn on_timeout(&mut self, now: Time) {
        let due: Vec<u16> = self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
        for number in due {
            self.with(number, now, |runtime, context| runtime.on_timeout(context, now));
        }
    }

    /// Call it twice a second.
    pub(crate) fn tick(&mut self, now: Time) {
        for number in self.numbers() {
            self.with(number, now, |runtime, context| runtime.tick(context, now));
        }
        self.erase_former_keys();
        self.poll_kmes(now);
    }

    /// Handles an event of a lane.
    ///
    /// # Errors
    /// [`DaemonError::LaneFailed`]: the daemon must end.
    pub(crate) fn lane_event(&mut self, event: LaneEvent, now: Time) -> Result<(), DaemonError> {
        let (number, report) = match event {
            LaneEvent::Control { from, datagram, .. } => {
                self.datagram(&datagram, from, now);
                return Ok(());
            }
            LaneEvent::Failed { lane, error } => return Err(DaemonError::LaneFailed { lane, error }),
            LaneEvent::Roamed { lane, peer, endpoint } => (peer.0, LaneReport::Roamed { lane, endpoint }),
            LaneEvent::Installed { lane, peer, epoch: local_epoch, direction, in_force } => {
                if !in_force {
                    // Without an acknowledgement the attempt times out, and another follows.
                    tracing::error!("lane {lane} refused a key of peer number {peer}");
                    return Ok(());
                }
                (peer.0, LaneReport::Installed { lane, local_epoch, direction })
            }
            LaneEvent::FirstOpened { lane, peer, epoch } => {
                (peer.0, LaneReport::FirstOpened { lane, local_epoch: epoch })
            }
            LaneEvent::SealingEnded { lane, peer, epoch, why } => {
                tracing::debug!("lane {lane}: sealing in epoch {epoch} of peer number {peer} ended: {why:?}");
                (peer.0, LaneReport::SealingEnded { lane, local_epoch: epoch })
            }
        };
        self.with(number, now, |runtime, context| runtime.peer.handle_lane(report, now, &mut context.rng));
        Ok(())
    }

    fn datagram(&mut self, datagram: &[u8], from: SocketAddr, now: Time) {
        if self.standby.is_some() {
            self.demux_drops.no_peer += 1;
            return;
        }
        let number = match self.demux.classify(datagram, from, now, &mut self.context.rng) {
            DatagramClass::Peer(number) => number.0,
            DatagramClass::Handshake { x25519 } => match self.by_key.get(&x25519) {
                Some(number) => *number,
                None => {
                    self.demux_drops.no_peer += 1;
                    return self.unknown_key(&x25519, from, now);
                }
            },
            DatagramClass::Reply(datagram) => {
                self.demux_drops.cookie += 1;
                return self.context.transmit(&datagram, from);
            }
            DatagramClass::Malformed => {
                self.demux_drops.malformed += 1;
                return;
            }
        };
        if !self.runtimes.contains_key(&number) {
            self.demux_drops.unknown_index += 1;
            return;
        }
        self.with(number, now, |runtime, context| {
            runtime.peer.handle_datagram(datagram, from, now, &mut context.rng);
        });
    }

    fn unknown_key(&mut self, key: &[u8; 32], from: SocketAddr, now: Time) {
        if self.unknown_key_logged.is_some_and(|at| now.since(at) < UNKNOWN_KEY_LOG_INTERVAL) {
            return;
        }
        self.unknown_key_logged = Some(now);
        self.context.events.emit(key_index::unknown_key(key, from));
    }

    /// Handles the result of a task.
    pub(crate) fn task_result(&mut self, result: TaskResult, now: Time) {
        let (to, result) = match result {
            TaskResult::Peer { to, result } => (to, result),
            TaskResult::KmeRecovered { kme, sae } => return self.kme_recovered(&kme, sae.as_ref(), now),
        };
        // The peer may have been removed meanwhile; its keys are erased here.
        if self.runtimes.get(&to.number).is_none_or(|runtime| runtime.id() != to) {
            return;
        }
        self.with(to.number, now, |runtime, context| match result {
            PeerTaskResult::Kms(report) => runtime.peer.handle_kms(report, now, &mut context.rng),
            PeerTaskResult::Resolved(found) => runtime.resolved(found, context, now),
        });
    }

    fn kme_recovered(&mut self, kme: &str, sae: Option<&SaeId>, now: Time) {
        let uses = |runtime: &PeerRuntime| {
            let settings = runtime.settings();
            settings.uses_kme(kme) && sae.is_none_or(|sae| settings.config.sae_id.as_ref() == Some(sae))
        };
        let numbers: Vec<u16> =
            self.runtimes.iter().filter(|(_, runtime)| uses(runtime)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.with(number, now, |runtime, context| runtime.peer.on_kms_recovered(now, &mut context.rng));
        }
    }

    /// Probes KMEs that failed or were idle for a while, and warns of certificates that expire.
    fn poll_kmes(&mut self, now: Time) {
        let check_certificates =
            self.certificates_checked.is_none_or(|at| now.since(at) >= CERTIFICATE_CHECK_INTERVAL);
        if check_certificates {
            self.certificates_checked = Some(now);
        }
        for (config, kme) in self.kmes.iter() {
            let all = self.in_order().map(PeerRuntime::settings).chain(self.standby.iter().flatten());
            let users = all.filter(|peer| peer.uses_kme(&config.name));
            let saes: Vec<&SaeId> = users.filter_map(|peer| peer.config.sae_id.as_ref()).collect();
            kms_task::probe(kme, &saes, &self.context.results);
            if check_certificates {
                let due = self.certificates.due(&config.name, &kme.certificates(), clock::unix_seconds());
                due.into_iter().for_each(|event| self.context.events.emit(event));
            }
        }
    }

    /// Starts a fresh epoch with each of these peers.
    pub(crate) fn rekey<'a>(&mut self, keys: impl Iterator<Item = &'a PublicIdentity>, now: Time) {
        let numbers: Vec<u16> = keys.filter_map(|key| self.by_key.get(key.x25519()).copied()).collect();
        for number in numbers {
            self.with(number, now, |runtime, context| runtime.peer.rekey(now, &mut context.rng));
        }
    }

    /// The same routes with the MTU of each peer's path.
    pub(crate) fn with_mtus(&self, plan: RoutePlan) -> RoutePlan {
        if self.routing.is_some() {
            // A prefix may have several peers. Lanes answer what is too big for one of them.
            return plan;
        }
        self.runtimes.values().fold(plan, |plan, runtime| {
            plan.with_mtu(&runtime.settings().config.allowed_ips, runtime.mtu().map(u32::from))
        })
    }

    /// Whether the MTU of a path changed since the last call. Where a path is too narrow for IPv6's smallest
    /// packet inside the tunnel, the lanes let outer packets be fragmented.
    pub(crate) fn take_mtu_changed(&mut self) -> bool {
        let changed = std::mem::take(&mut self.context.mtu_changed);
        if changed {
            let narrow = self.runtimes.values().any(|r| r.mtu().is_some_and(|mtu| mtu < MIN_IPV6_MTU));
            self.context.lanes.set_narrow(narrow);
        }
        changed
    }

    /// Gives the lanes the table of allowed IPs, and the MTU of the device.
    fn configure_lanes(&mut self, mtu: u16) {
        for lane in 0..self.lanes {
            self.context.lanes.set_mtu(lane, mtu);
        }
        if let Some(routing) = &mut self.routing {
            let runtimes = self.runtimes.iter();
            let table = routing.set_peers(runtimes.map(|(number, runtime)| (*number, runtime.settings())));
            return self.set_kernel_routes(&table);
        }
        let waiting = self.standby.iter().flatten();
        let table = translate::allowed_ips(
            self.runtimes
                .iter()
                .map(|(number, runtime)| (*number, runtime.settings().config.allowed_ips.as_slice()))
                .chain([(DISABLED_PEER, self.idle.as_slice())])
                .chain(waiting.map(|peer| (DISABLED_PEER, peer.config.allowed_ips.as_slice()))),
        );
        let table = Arc::new(table);
        for lane in 0..self.lanes {
            self.context.lanes.set_allowed_ips(lane, table.clone());
        }
    }

    fn set_kernel_routes(&self, table: &Arc<KernelRoutes>) {
        for lane in 0..self.lanes {
            self.context.lanes.set_kernel_routes(lane, table.clone());
        }
    }

    /// The kernel's routes changed.
    pub(crate) fn routes_changed(&mut self, table: Arc<RoutingTable>) {
        if let Some(routing) = &mut self.routing {
            let table = routing.update(table);
            self.set_kernel_routes(&table);
        }
    }

    /// The kernel's routes in the status' words; `link_local` is our address for them.
    pub(crate) fn routing_status(&self, link_local: Option<String>) -> Option<RoutingStatus> {
        let peers = self.order.iter();
        let peers = peers.filter_map(|number| Some((*number, self.runtimes.get(number)?.settings())));
        self.routing.as_ref().map(|routing| routing.status(link_local, peers))
    }

    /// Says goodbye to all peers and ends the lanes, which erases their keys.
    pub(crate) fn shut_down(mut self, now: Time) -> Kmes {
        for number in self.numbers() {
            self.with(number, now, |runtime, context| runtime.peer.shut_down(now, &mut context.rng));
        }
        self.context.lanes.shutdown();
        self.kmes
    }

    fn numbers(&self) -> Vec<u16> {
        self.runtimes.keys().copied().collect()
    }

    /// Lets `work` call into a peer, does what the peer then wants, and sets its timer.
    fn with(&mut self, number: u16, now: Time, work: impl FnOnce(&mut PeerRuntime, &mut DaemonContext)) {
        let Some(runtime) = self.runtimes.get_mut(&number) else { return };
        work(runtime, &mut self.context);
        runtime.drain(&mut self.context, now);
        let next = runtime.peer.poll_timeout();
        if let Some(former) = runtime.set_timer(next) {
            self.timers.remove(&(former, number));
        }
        if let Some(at) = next {
            self.timers.insert((at, number));
        }
    }
}
