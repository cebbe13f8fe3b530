//! What the daemon keeps for a peer beside the protocol's state: its lanes, its KMEs, and what was reported
//! about it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kms_client::KmeSet;
use qvpn_api::events::EventKind;
use qvpn_dataplane::PeerStats;
use qvpn_proto::KeySources;
use qvpn_proto::path_mtu::MAX_PATH_MTU;
use qvpn_proto::session::KeyedLinks;
use qvpn_proto::{Fetch, LaneReport, Peer, PeerEvent, PeerOutput, PeerState, PeerView};
use qvpn_types::{EpochNumber, KeyId, PeerNumber, Time};

use crate::context::DaemonContext;
use crate::key_origins::KeyOrigins;
use crate::kms_task;
use crate::lanes;
use crate::settings::PeerSettings;
use crate::state_file;
use crate::task_result::{PeerKey, PeerTaskResult, TaskResult};
use crate::translate::sources;

/// A peer that does not answer for this time may have another address: its host name is resolved again.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(15);
/// How often a host name is resolved while its peer can't be reached.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);
/// When a peer without a control session is first logged, with the reason, and how often after that.
const UNREACHABLE_LOG_DELAY: Duration = Duration::from_secs(20);
const UNREACHABLE_LOG_INTERVAL: Duration = Duration::from_secs(600);

/// At the start, this many peers are called at once, and the next ones this much later: each call is a key
/// exchange, and each answer another one.
const PARALLEL_CALLS: u32 = 16;
const CALL_DISTANCE: Duration = Duration::from_millis(10);

/// The time of the first call of the peer that comes `n`th in the config.
pub(crate) fn first_call(n: u32, now: Time) -> Time {
    now + CALL_DISTANCE * (n / PARALLEL_CALLS)
}

/// One peer.
pub(crate) struct PeerRuntime {
    id: PeerKey,
    settings: PeerSettings,
    kmes: Arc<KmeSet>,
    key_origins: Arc<KeyOrigins>,
    pub(crate) peer: Peer<KeyedLinks>,
    /// What each lane counts.
    lanes: Vec<Arc<PeerStats>>,
    /// Epochs that came into force, by what their keys are made of.
    rekeys: Vec<(KeySources, u64)>,
    /// The path's MTU for inner packets, in bytes, once it was measured and is less than the device's.
    mtu: Option<u16>,
    /// The timer that is set for it.
    timer: Option<Time>,
    /// The endpoint of the control session that was reported last.
    endpoint: Option<SocketAddr>,
    /// The state that was reported last, and whether the peer was ever up or degraded.
    reported: PeerState,
    was_up: bool,
    activity: (u64, u64),
    resolved_at: Option<Time>,
    /// When to log that the peer can't be reached; `None` while it can.
    unreachable_log_at: Option<Time>,
    /// How often two gateways with its key were seen.
    duplicates: u64,
    /// Where it was before this daemon started.
    last: Option<SocketAddr>,
    /// The addresses of the endpoint's host name.
    named: Vec<SocketAddr>,
}

impl PeerRuntime {
    /// Adds the peer to the lanes.
    pub(crate) fn new(
        id: PeerKey,
        settings: PeerSettings,
        kmes: Arc<KmeSet>,
        mut peer: Peer<KeyedLinks>,
        lanes: u8,
        context: &DaemonContext,
    ) -> Self {
        let endpoint = settings.endpoint();
        let lanes: Vec<Arc<PeerStats>> = (0..lanes).map(|_| Arc::default()).collect();
        for (number, stats) in (0u8..).zip(&lanes) {
            // The protocol orders the endpoint and the keepalive.
            context.lanes.add_peer(number, PeerNumber(id.number), None, None, stats.clone());
        }
        peer.set_keepalive(settings.config.persistent_keepalive);
        context.control_sources.moved(id.number, endpoint);
        Self {
            id,
            settings,
            kmes,
            key_origins: Arc::default(),
            peer,
            lanes,
            rekeys: Vec::new(),
            mtu: None,
            timer: None,
            endpoint,
            reported: PeerState::Connecting,
            was_up: false,
            activity: (0, 0),
            resolved_at: None,
            unreachable_log_at: None,
            duplicates: 0,
            last: None,
            named: Vec::new(),
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

    pub(crate) fn lanes(&self) -> &[Arc<PeerStats>] {
        &self.lanes
    }

    /// The path's MTU for inner packets, in bytes, if it was measured and is less than the device's.
    pub(crate) fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// How many epochs came into force, by what their keys are made of.
    pub(crate) fn rekeys(&self) -> &[(KeySources, u64)] {
        &self.rekeys
    }

    /// Puts changed settings in force. The peer's keys in use must be among those of the settings.
    pub(crate) fn reconfigure(
        &mut self,
        settings: PeerSettings,
        kmes: Arc<KmeSet>,
        context: &mut DaemonContext,
        now: Time,
    ) {
        let old = std::mem::replace(&mut self.settings, settings);
        self.peer.set_keepalive(self.settings.config.persistent_keepalive);
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

    /// Carries out all outputs of the peer. Call it after each call of a method of the peer.
    pub(crate) fn drain(&mut self, context: &mut DaemonContext, now: Time) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                PeerOutput::Lane(lane, order) => {
                    lanes::apply(&context.lanes, self.lane_id(), lane, order);
                }
                PeerOutput::Fetch(fetch) => self.fetch(fetch, context),
                PeerOutput::Event(event) => self.report(event, context, now),
            }
        }
        while let Some(transmit) = self.peer.poll_transmit() {
            context.transmit(&transmit.datagram, transmit.to);
        }
    }

    /// The time since the last authenticated packet. The lanes may know of a later one than the protocol.
    pub(crate) fn last_received_ago(&self, control: Option<Duration>, now: Time) -> Option<Duration> {
        let newest = self.lanes.iter().map(|stats| stats.rx.last_at.get()).max().filter(|at| *at != 0);
        let in_lanes = newest.map(|at| now.since(Time::from_nanos(at)));
        control.into_iter().chain(in_lanes).min()
    }

    /// Handles the timers that are due. What the lanes received counts first: the next timer may end the
    /// peer's time to answer.
    pub(crate) fn on_timeout(&mut self, context: &mut DaemonContext, now: Time) {
        self.report_activity(context, now);
        self.peer.handle_timeout(now, &mut context.rng);
    }

    /// Tells the peer what the lanes sent and received. Called twice a second.
    pub(crate) fn tick(&mut self, context: &mut DaemonContext, now: Time) {
        self.report_activity(context, now);
        let received_at: Vec<Time> =
            self.lanes.iter().map(|stats| Time::from_nanos(stats.rx.last_at.get())).collect();
        self.peer.poll_lanes(&received_at, now, &mut context.rng);
        self.resolve(context, now);
        self.log_unreachable(now);
    }

    /// Logs why there is no control session with the peer, which the library that makes handshakes doesn't.
    fn log_unreachable(&mut self, now: Time) {
        if !matches!(self.reported, PeerState::Connecting | PeerState::Blocked) {
            self.unreachable_log_at = None;
            return;
        }
        if now < *self.unreachable_log_at.get_or_insert(now + UNREACHABLE_LOG_DELAY) {
            return;
        }
        self.unreachable_log_at = Some(now + UNREACHABLE_LOG_INTERVAL);
        let view = self.peer.view(now);
        let unreachable = !view.session_up && view.endpoint.is_some();
        if let Some(reason) = view.reason.filter(|_| unreachable) {
            tracing::warn!("peer {}: {reason}", self.settings.config.name);
        }
    }

    /// Reports when the lanes last sent and received. The lanes stamp each batch, so this costs no clock.
    fn report_activity(&mut self, context: &mut DaemonContext, now: Time) {
        let last = |of: fn(&PeerStats) -> u64| self.lanes.iter().map(|stats| of(stats)).max().unwrap_or(0);
        let activity = (last(|s| s.tx.last_at.get()), last(|s| s.rx.last_at.get()));
        if activity != self.activity {
            self.activity = activity;
            let at = |nanos| (nanos != 0).then_some(Time::from_nanos(nanos));
            let report = LaneReport::Activity { sent_at: at(activity.0), received_at: at(activity.1) };
            self.peer.handle_lane(report, now, &mut context.rng);
        }
    }

    /// Resolves the host name of the endpoint again if the peer can't be reached.
    fn resolve(&mut self, context: &DaemonContext, now: Time) {
        let Some(endpoint) = self.settings.config.endpoint.as_ref().filter(|e| e.ip().is_none()) else {
            return;
        };
        let recently = self.resolved_at.is_some_and(|at| now.since(at) < RESOLVE_INTERVAL);
        let (sent, received) = (Time::from_nanos(self.activity.0), Time::from_nanos(self.activity.1));
        let unanswered = sent.since(received) > UNANSWERED_LIMIT;
        let unreachable =
            matches!(self.reported, PeerState::Connecting | PeerState::Silent | PeerState::Blocked);
        if recently || !(unanswered || unreachable) {
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
        self.named.clone_from(&found);
        self.set_known_endpoints();
        // An address in use stays while the name still has it.
        if !self.peer.view(now).endpoint.is_some_and(|at| found.contains(&at)) {
            self.move_to(found[0], context, now);
        }
    }

    /// Gives the peer its known endpoints: it calls a silent peer at all of them.
    fn set_known_endpoints(&mut self) {
        let known: Vec<SocketAddr> = self.last.iter().chain(&self.named).copied().collect();
        self.peer.set_known_endpoints(&known);
    }

    /// Calls the peer at `call_at`: where the config says, and where it was before a restart.
    pub(crate) fn begin_calls(
        &mut self,
        last: Option<SocketAddr>,
        call_at: Time,
        context: &DaemonContext,
        now: Time,
    ) {
        self.last = last;
        self.set_known_endpoints();
        if let (Some(last), None) = (last, self.endpoint) {
            self.move_to(last, context, now);
        }
        if last.is_some() || call_at > now {
            self.peer.call_at(call_at);
        }
    }

    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Its X25519 keys, and what the state file stores about each.
    pub(crate) fn state(&self) -> impl Iterator<Item = ([u8; 32], state_file::PeerState)> + '_ {
        let endpoint = self.endpoint;
        let initiations = self.peer.greatest_initiations().into_iter();
        initiations.map(move |(key, initiation)| (key, state_file::PeerState { endpoint, initiation }))
    }

    /// Sends everything to `endpoint` from now on, until the peer roams.
    pub(crate) fn move_to(&mut self, endpoint: SocketAddr, context: &DaemonContext, now: Time) {
        self.peer.move_to(endpoint, now);
        self.endpoint = Some(endpoint);
        context.control_sources.moved(self.id.number, self.endpoint);
    }

    fn fetch(&self, fetch: Fetch, context: &DaemonContext) {
        let (to, results, kmes) = (self.id, context.results.clone(), self.kmes.clone());
        let origins = self.key_origins.clone();
        // Keys are fetched only where QKD is on, and then the config has the ID.
        let Some(sae) = self.settings.config.sae_id.clone() else { return };
        tokio::spawn(async move {
            let result = PeerTaskResult::Kms(kms_task::fetch(kmes, sae, fetch, &origins).await);
            // It fails only while the daemon stops; the keys are erased then.
            let _ = results.send(TaskResult::Peer { to, result }).await;
        });
    }

    /// The path takes another size. Padding stays within it, and the routes follow.
    fn path_changed(&mut self, mtu: u16, context: &mut DaemonContext) {
        self.mtu = (mtu < MAX_PATH_MTU).then_some(mtu);
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
            self.path_changed(MAX_PATH_MTU, context);
        }
    }

    /// Records that the peer is up, for the first time or again.
    fn on_up(&mut self, peer: String) -> EventKind {
        let before = std::mem::replace(&mut self.reported, PeerState::Up);
        match std::mem::replace(&mut self.was_up, true) {
            true => EventKind::PeerRecovered { peer, from: before.name().to_owned() },
            false => EventKind::PeerUp { peer, endpoint: self.endpoint.map(|e| e.to_string()) },
        }
    }

    /// Counts an epoch that came into force.
    fn epoch_active(&mut self, epoch: EpochNumber, made_of: KeySources, key: Option<KeyId>) -> EventKind {
        match self.rekeys.iter_mut().find(|(sources, _)| *sources == made_of) {
            Some((_, n)) => *n += 1,
            None => self.rekeys.push((made_of, 1)),
        }
        EventKind::EpochActive {
            peer: self.settings.config.name.clone(),
            epoch: epoch.0,
            sources: sources(made_of),
            kme: key.as_ref().and_then(|id| self.key_origins.kme(id)),
            qkd_key_id: key.map(String::from),
        }
    }

    fn report(&mut self, event: PeerEvent, context: &mut DaemonContext, now: Time) {
        let peer = self.settings.config.name.clone();
        let kind = match event {
            PeerEvent::Up | PeerEvent::Recovered => self.on_up(peer),
            PeerEvent::Blocked { reason } => {
                self.reported = PeerState::Blocked;
                EventKind::PeerBlocked { peer, reason }
            }
            PeerEvent::Degraded { reason } => {
                self.reported = PeerState::Degraded;
                self.was_up = true;
                EventKind::PeerDegraded { peer, reason }
            }
            PeerEvent::Silent { reason } => {
                self.reported = PeerState::Silent;
                EventKind::PeerSilent { peer, reason }
            }
            PeerEvent::Roamed { endpoint } => {
                let from = self.endpoint.replace(endpoint).map(|e| e.to_string());
                context.control_sources.moved(self.id.number, self.endpoint);
                EventKind::PeerRoamed { peer, from, to: endpoint.to_string() }
            }
            PeerEvent::LaneSilent { lane, port } => EventKind::LaneSilent { peer, lane, port },
            PeerEvent::LaneRecovered { lane } => EventKind::LaneRecovered { peer, lane },
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
            PeerEvent::EpochActive { epoch, sources, qkd_key_id, took } => {
                tracing::debug!("peer {peer}: epoch {epoch} took {took:?}");
                context.rekeys.observe(took);
                self.epoch_active(epoch, sources, qkd_key_id)
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
            PeerEvent::KeyChanged { own, from, to } => {
                let (from, to) = (from.fingerprint(), to.fingerprint());
                EventKind::IdentityChanged { peer, own, from, to }
            }
            PeerEvent::IdentityDuplicate { endpoints } => {
                self.duplicates += 1;
                let endpoints = endpoints.iter().map(ToString::to_string).collect();
                EventKind::IdentityDuplicate { peer, endpoints }
            }
            event @ (PeerEvent::WrongConfirmation { .. }
            | PeerEvent::RekeyAsked { .. }
            | PeerEvent::KeyLost { .. }
            | PeerEvent::ClockSetBack { .. }
            | PeerEvent::Refused { .. }) => return log(&peer, event),
        };
        context.events.emit(kind);
    }
}

/// Logs an event that only the log reports.
fn log(peer: &str, event: PeerEvent) {
    match event {
        PeerEvent::WrongConfirmation { epoch, count } => {
            tracing::warn!("peer {peer}: epoch {epoch}: wrong confirmation number {count}, ignored");
        }
        PeerEvent::RekeyAsked { reason } => {
            tracing::info!("peer {peer}: the other site asks for a new epoch: {}", reason.words());
        }
        PeerEvent::KeyLost { id, why } => tracing::warn!("peer {peer}: QKD key {id} lost: {why}"),
        PeerEvent::ClockSetBack { detail } => tracing::warn!("peer {peer}: {detail}"),
        PeerEvent::Refused { by_us, reason, detail } => {
            let who = if by_us { "we refused" } else { "it refused us" };
            tracing::warn!("peer {peer}: {who} ({}): {detail}", reason.name());
        }
        _ => {}
    }
}
