//! What the daemon keeps for a peer beside the protocol's state: its lanes, its KMEs, and what was reported
//! about it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kms_client::KmeSet;
use qvpn_api::events::EventKind;
use qvpn_api::status::LaneState;
use qvpn_dataplane::PeerStats;
use qvpn_proto::KeySources;
use qvpn_proto::path_mtu::MOST;
use qvpn_proto::session::WireGuardLink;
use qvpn_proto::{Fetch, LaneReport, Peer, PeerEvent, PeerOutput, PeerState, PeerView};
use qvpn_types::{PeerNumber, Time};

use crate::context::DaemonContext;
use crate::kms_task;
use crate::lane_watch::{Change, HEARTBEAT, LaneWatch, SILENCE, Seen};
use crate::lanes;
use crate::settings::PeerSettings;
use crate::task_result::{PeerKey, PeerTaskResult, TaskResult};
use crate::translate::sources;

/// A packet may arrive a little before the epoch counts as active at this end.
const EARLY: Duration = Duration::from_secs(1);
/// A peer that does not answer for this time may have another address: its host name is resolved again.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(15);
/// How often a host name is resolved while its peer can't be reached.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);

/// One lane of a peer.
#[derive(Default)]
pub(crate) struct PeerLane {
    pub(crate) stats: Arc<PeerStats>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Of the only lane; of several, see [`LaneWatch`].
    state: Option<LaneState>,
    /// When the first epoch began that the only lane has heard nothing in.
    unheard: Option<Time>,
}

/// One peer.
pub(crate) struct PeerRuntime {
    id: PeerKey,
    settings: PeerSettings,
    kmes: Arc<KmeSet>,
    pub(crate) peer: Peer<WireGuardLink>,
    lanes: Vec<PeerLane>,
    /// Epochs that came into force, by what their keys are made of.
    rekeys: Vec<(KeySources, u64)>,
    /// Which of several lanes carry packets.
    watch: LaneWatch,
    /// What the path takes, in bytes, once it was measured and is less than the device's MTU.
    mtu: Option<u16>,
    /// The keepalive interval that each lane has.
    keepalives: Vec<Option<Duration>>,
    /// The timer that is set for it.
    timer: Option<Time>,
    /// The endpoint of the control session that was reported last.
    endpoint: Option<SocketAddr>,
    /// The state that was reported last, and whether the peer was ever up or degraded.
    reported: PeerState,
    was_up: bool,
    activity: (u64, u64),
    resolved_at: Option<Time>,
}

impl PeerRuntime {
    /// Adds the peer to the lanes.
    pub(crate) fn new(
        id: PeerKey,
        settings: PeerSettings,
        kmes: Arc<KmeSet>,
        peer: Peer<WireGuardLink>,
        lanes: u8,
        context: &DaemonContext,
    ) -> Self {
        let endpoint = settings.endpoint();
        let keepalive = settings.config.persistent_keepalive;
        let watch = LaneWatch::new(lanes);
        let keepalives = vec![keepalive; lanes.into()];
        let lanes: Vec<PeerLane> = (0..lanes)
            .map(|lane| PeerLane { endpoint: endpoint.and_then(|e| at_lane(e, lane)), ..PeerLane::default() })
            .collect();
        for (number, lane) in (0u8..).zip(&lanes) {
            let (peer, stats) = (PeerNumber(id.number), lane.stats.clone());
            context.lanes.add_peer(number, peer, lane.endpoint, keepalive, stats);
        }
        context.control_sources.moved(id.number, endpoint);
        Self {
            id,
            settings,
            kmes,
            peer,
            lanes,
            rekeys: Vec::new(),
            watch,
            mtu: None,
            keepalives,
            timer: None,
            endpoint,
            reported: PeerState::Connecting,
            was_up: false,
            activity: (0, 0),
            resolved_at: None,
        }
    }

    pub(crate) fn id(&self) -> PeerKey {
        self.id
    }

    pub(crate) fn settings(&self) -> &PeerSettings {
        &self.settings
    }

    pub(crate) fn into_settings(self) -> PeerSettings {
        self.settings
    }

    pub(crate) fn view(&self, now: Time) -> PeerView {
        self.peer.view(now)
    }

    pub(crate) fn lanes(&self) -> &[PeerLane] {
        &self.lanes
    }

    /// What the path takes, in bytes, if that was measured and is less than the device's MTU.
    pub(crate) fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// How many epochs came into force, by what their keys are made of.
    pub(crate) fn rekeys(&self) -> &[(KeySources, u64)] {
        &self.rekeys
    }

    /// Puts changed settings in force. The peer's identity must be the same as before.
    pub(crate) fn reconfigure(
        &mut self,
        settings: PeerSettings,
        kmes: Arc<KmeSet>,
        context: &mut DaemonContext,
        now: Time,
    ) {
        let old = std::mem::replace(&mut self.settings, settings);
        self.kmes = kmes;
        let moved = old.config.endpoint != self.settings.config.endpoint;
        if moved && let Some(endpoint) = self.settings.endpoint() {
            self.move_to(endpoint, context, now);
        }
        if moved || !old.same_exchange(&self.settings) {
            let config = self.settings.protocol(self.id.number);
            self.peer.reconfigure(config, now, &mut context.rng);
        }
    }

    /// The peer's number in the lanes.
    pub(crate) fn lane_id(&self) -> PeerNumber {
        PeerNumber(self.id.number)
    }

    /// Notes the timer that is set for the peer, and returns the former one.
    pub(crate) fn set_timer(&mut self, at: Option<Time>) -> Option<Time> {
        std::mem::replace(&mut self.timer, at)
    }

    /// Does everything that the peer wants done. Call it after each call into the peer.
    pub(crate) fn drain(&mut self, context: &mut DaemonContext, now: Time) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                PeerOutput::Lane(lane, order) => {
                    lanes::apply(&context.lanes, self.lane_id(), lane, order);
                }
                PeerOutput::Fetch(fetch) => self.fetch(fetch, context),
                PeerOutput::LanesTo(endpoint) => self.lanes_to(endpoint, context),
                PeerOutput::Event(event) => self.report(event, context, now),
            }
        }
        while let Some(transmit) = self.peer.poll_transmit() {
            context.transmit(&transmit.datagram, transmit.to);
        }
        self.teach_lanes(context, now);
    }

    /// Twice a second: what the lanes did, and whether they hear anything.
    pub(crate) fn tick(&mut self, context: &mut DaemonContext, now: Time) {
        let last = |of: fn(&PeerStats) -> u64| self.lanes.iter().map(|l| of(&l.stats)).max().unwrap_or(0);
        let activity = (last(|s| s.tx.last_at.get()), last(|s| s.rx.last_at.get()));
        if activity != self.activity {
            self.activity = activity;
            let at = |nanos| (nanos != 0).then_some(Time::from_nanos(nanos));
            let report = LaneReport::Activity { sent_at: at(activity.0), received_at: at(activity.1) };
            self.peer.handle_lane(report, now, &mut context.rng);
        }
        self.watch_lanes(context, now);
        self.resolve(context, now);
    }

    /// Looks which lanes carry packets, and leads the flows of the others by those.
    fn watch_lanes(&mut self, context: &mut DaemonContext, now: Time) {
        let view = self.peer.view(now);
        if view.lanes < 2 {
            self.watch_one(context, now);
        }
        self.keep_alive(view.lanes, context);
        let heard: Vec<Time> =
            self.lanes.iter().map(|lane| Time::from_nanos(lane.stats.rx.last_at.get())).collect();
        let changes = self.watch.look(&Seen {
            now,
            active: view.epoch.is_some(),
            agreed: view.lanes,
            heard: &heard,
            peer_rx_silent: view.peer_rx_silent,
        });
        for change in changes {
            match change {
                Change::Silent(lane) => self.lane_silent(lane, context),
                Change::Back(lane) => {
                    let peer = self.settings.config.name.clone();
                    context.events.emit(EventKind::LaneRecovered { peer, lane });
                }
                Change::Detour(lane, via) => {
                    let peer = self.lane_id();
                    context.lanes.set_reroute(lane, peer, via);
                }
            }
        }
        self.peer.set_rx_silent(self.watch.unheard(), now, &mut context.rng);
    }

    /// The only lane sends no heartbeats: it is silent when nothing came in an epoch.
    fn watch_one(&mut self, context: &DaemonContext, now: Time) {
        let Some(lane) = self.lanes.first_mut() else { return };
        let Some(unheard) = lane.unheard else { return };
        if Time::from_nanos(lane.stats.rx.last_at.get()) + EARLY >= unheard {
            lane.unheard = None;
            lane.state = Some(LaneState::Up);
        } else if now.since(unheard) > SILENCE && lane.state != Some(LaneState::Silent) {
            lane.state = Some(LaneState::Silent);
            self.lane_silent(0, context);
        }
    }

    fn lane_silent(&self, lane: u8, context: &DaemonContext) {
        let port = self.lanes.get(usize::from(lane)).and_then(|l| l.endpoint).map_or(0, |e| e.port());
        let peer = self.settings.config.name.clone();
        context.events.emit(EventKind::LaneSilent { peer, lane, port });
    }

    /// Where there are several lanes, each sends something twice a second, so that silence means something.
    fn keep_alive(&mut self, agreed: u8, context: &DaemonContext) {
        let peer = self.lane_id();
        let wanted = match self.settings.config.persistent_keepalive {
            configured if agreed < 2 => configured,
            configured => Some(configured.map_or(HEARTBEAT, |every| every.min(HEARTBEAT))),
        };
        for (lane, told) in (0u8..).zip(&mut self.keepalives) {
            if *told != wanted {
                *told = wanted;
                context.lanes.set_keepalive(lane, peer, wanted);
            }
        }
    }

    /// Whether anything passes by a lane, and the lane by which its flows go instead.
    pub(crate) fn lane_state(&self, lane: u8, agreed: u8) -> (Option<LaneState>, Option<u8>) {
        let state = match agreed {
            0 | 1 => self.lanes.get(usize::from(lane)).and_then(|l| l.state).filter(|_| lane == 0),
            _ => self.watch.state(lane),
        };
        (state, self.watch.via(lane))
    }

    /// Resolves the host name of the endpoint again if the peer can't be reached.
    fn resolve(&mut self, context: &DaemonContext, now: Time) {
        let Some(endpoint) = self.settings.config.endpoint.as_ref().filter(|e| e.ip().is_none()) else {
            return;
        };
        let recently = self.resolved_at.is_some_and(|at| now.since(at) < RESOLVE_INTERVAL);
        let (sent, received) = (Time::from_nanos(self.activity.0), Time::from_nanos(self.activity.1));
        let unanswered = sent.since(received) > UNANSWERED_LIMIT;
        if recently || !(unanswered || matches!(self.reported, PeerState::Connecting | PeerState::Blocked)) {
            return;
        }
        self.resolved_at = Some(now);
        let (host, port) = (endpoint.host.clone(), endpoint.port);
        let (to, results) = (self.id, context.results.clone());
        tokio::spawn(async move {
            let found = tokio::net::lookup_host((host.as_str(), port)).await;
            let result = PeerTaskResult::Resolved(found.map(Iterator::collect));
            // It fails only while the daemon stops.
            let _ = results.send(TaskResult::Peer { to, result }).await;
        });
    }

    /// Handles the result of resolving the host name.
    pub(crate) fn resolved(
        &mut self,
        found: io::Result<Vec<SocketAddr>>,
        context: &mut DaemonContext,
        now: Time,
    ) {
        let Some(endpoint) = &self.settings.config.endpoint else { return };
        let found = match found {
            Ok(found) if !found.is_empty() => found,
            Ok(_) => return tracing::warn!("peer {}: {endpoint} has no address", self.settings.config.name),
            Err(error) => {
                let name = &self.settings.config.name;
                return tracing::warn!(
                    "peer {name}: resolving {endpoint}: {error}; check the name and the DNS servers"
                );
            }
        };
        // An address in use stays while the name still has it.
        if !self.peer.view(now).endpoint.is_some_and(|at| found.contains(&at)) {
            self.move_to(found[0], context, now);
        }
    }

    /// Sends everything to `endpoint` from now on, until the peer roams.
    pub(crate) fn move_to(&mut self, endpoint: SocketAddr, context: &DaemonContext, now: Time) {
        self.peer.set_endpoint(endpoint, now);
        self.endpoint = Some(endpoint);
        context.control_sources.moved(self.id.number, self.endpoint);
        self.lanes_to(endpoint, context);
    }

    fn lanes_to(&mut self, endpoint: SocketAddr, context: &DaemonContext) {
        self.lanes.iter_mut().for_each(|lane| lane.endpoint = None);
        self.teach(endpoint, context);
    }

    /// An authentic packet of the newest epoch came to a lane from elsewhere. Messages go by lane 0's socket,
    /// so the control session follows it: else an initiator whose peer's NAT forgot the mapping would propose
    /// to the old place.
    pub(crate) fn lane_roamed(
        &mut self,
        lane: u8,
        endpoint: SocketAddr,
        context: &mut DaemonContext,
        now: Time,
    ) {
        if let Some(state) = self.lanes.get_mut(usize::from(lane)) {
            state.endpoint = Some(endpoint);
        }
        if lane == 0 && self.endpoint != Some(endpoint) {
            self.peer.set_endpoint(endpoint, now);
            self.report(PeerEvent::Roamed { endpoint }, context, now);
        }
    }

    /// A lane that knows no endpoint starts where the control session is.
    fn teach_lanes(&mut self, context: &DaemonContext, now: Time) {
        if self.lanes.iter().any(|lane| lane.endpoint.is_none())
            && let Some(endpoint) = self.peer.view(now).endpoint
        {
            self.teach(endpoint, context);
        }
    }

    fn teach(&mut self, endpoint: SocketAddr, context: &DaemonContext) {
        let peer = self.lane_id();
        for (number, lane) in (0u8..).zip(&mut self.lanes) {
            if lane.endpoint.is_none()
                && let Some(addr) = at_lane(endpoint, number)
            {
                lane.endpoint = Some(addr);
                context.lanes.set_endpoint(number, peer, addr);
            }
        }
    }

    fn fetch(&self, fetch: Fetch, context: &DaemonContext) {
        let (to, results, kmes) = (self.id, context.results.clone(), self.kmes.clone());
        let sae = self.settings.config.sae_id.clone().unwrap_or_default();
        tokio::spawn(async move {
            let result = PeerTaskResult::Kms(kms_task::fetch(kmes, sae, fetch).await);
            // It fails only while the daemon stops; the keys are erased then.
            let _ = results.send(TaskResult::Peer { to, result }).await;
        });
    }

    /// The path takes another size. Padding stays within it, and the routes follow.
    fn path_changed(&mut self, mtu: u16, context: &mut DaemonContext) {
        self.mtu = (mtu < MOST).then_some(mtu);
        context.mtu_changed = true;
        let (peer, mtu) = (self.lane_id(), self.mtu.unwrap_or(u16::MAX));
        for (lane, _) in (0u8..).zip(&self.lanes) {
            context.lanes.set_peer_mtu(lane, peer, mtu);
        }
    }

    /// Begins or ends measuring the path. What was measured is forgotten at the end.
    pub(crate) fn measure_path(&mut self, measure: bool, context: &mut DaemonContext, now: Time) {
        self.peer.measure_path(measure, now);
        if !measure && self.mtu.is_some() {
            self.path_changed(MOST, context);
        }
    }

    fn report(&mut self, event: PeerEvent, context: &mut DaemonContext, now: Time) {
        let peer = self.settings.config.name.clone();
        let kind = match event {
            PeerEvent::Up | PeerEvent::Recovered => {
                let before = std::mem::replace(&mut self.reported, PeerState::Up);
                match std::mem::replace(&mut self.was_up, true) {
                    true => EventKind::PeerRecovered { peer, from: before.name().to_owned() },
                    false => EventKind::PeerUp { peer, endpoint: self.endpoint.map(|e| e.to_string()) },
                }
            }
            PeerEvent::Blocked { reason } => {
                self.reported = PeerState::Blocked;
                EventKind::PeerBlocked { peer, reason }
            }
            PeerEvent::Degraded { reason } => {
                self.reported = PeerState::Degraded;
                self.was_up = true;
                EventKind::PeerDegraded { peer, reason }
            }
            PeerEvent::Roamed { endpoint } => {
                let from = self.endpoint.replace(endpoint).map(|e| e.to_string());
                context.control_sources.moved(self.id.number, self.endpoint);
                EventKind::PeerRoamed { peer, from, to: endpoint.to_string() }
            }
            PeerEvent::Bye => EventKind::PeerBye { peer },
            PeerEvent::PathMtu { mtu } => {
                self.path_changed(mtu, context);
                EventKind::PeerMtu { peer, mtu: mtu.into() }
            }
            PeerEvent::ChainReset => {
                let reason =
                    "the chain of earlier epochs was lost or did not match, so this epoch starts a new one";
                EventKind::ChainReset { peer, reason: reason.to_owned() }
            }
            PeerEvent::EpochActive { epoch, sources: made_of, qkd_key_id, took } => {
                tracing::debug!("peer {peer}: epoch {epoch} took {took:?}");
                self.epoch_began(now);
                context.rekeys.observe(took);
                match self.rekeys.iter_mut().find(|(sources, _)| *sources == made_of) {
                    Some((_, n)) => *n += 1,
                    None => self.rekeys.push((made_of, 1)),
                }
                EventKind::EpochActive { peer, epoch: epoch.0, sources: sources(made_of), qkd_key_id }
            }
            PeerEvent::EpochFailed { reason, detail } => {
                EventKind::EpochFailed { peer, epoch: None, reason: format!("{}: {detail}", reason.name()) }
            }
            PeerEvent::SupplyStopped { detail, .. } => {
                let lasts = self.peer.view(now).qkd_stock_lasts;
                EventKind::QkdSupplyStopped {
                    peer,
                    reason: detail,
                    stock_lasts_s: lasts.map(|d| d.as_secs()),
                }
            }
            PeerEvent::SupplyResumed => EventKind::QkdSupplyResumed { peer },
            PeerEvent::IdentityMismatch { detail } => {
                let endpoint = self.endpoint.map(|e| e.to_string());
                EventKind::IdentityMismatch { peer: Some(peer), endpoint, reason: detail }
            }
            PeerEvent::WrongConfirmation { epoch, count } => {
                return tracing::warn!(
                    "peer {peer}: epoch {epoch}: wrong confirmation number {count}, ignored"
                );
            }
            PeerEvent::RekeyAsked { reason } => {
                return tracing::info!(
                    "peer {peer}: the other site asks for a new epoch: {}",
                    reason.words()
                );
            }
            PeerEvent::KeyLost { id, why } => {
                return tracing::warn!("peer {peer}: QKD key {id:?} lost: {why}");
            }
            PeerEvent::ClockSetBack { detail } => return tracing::warn!("peer {peer}: {detail}"),
            PeerEvent::Refused { by_us, reason, detail } => {
                let who = if by_us { "we refused" } else { "it refused us" };
                return tracing::warn!("peer {peer}: {who} ({}): {detail}", reason.name());
            }
        };
        context.events.emit(kind);
    }

    fn epoch_began(&mut self, now: Time) {
        if let Some(lane) = self.lanes.first_mut() {
            lane.unheard.get_or_insert(now);
        }
    }
}

/// Lane *i* uses the port *i* above lane 0's.
fn at_lane(endpoint: SocketAddr, lane: u8) -> Option<SocketAddr> {
    Some(SocketAddr::new(endpoint.ip(), endpoint.port().checked_add(lane.into())?))
}
