//! One peer with all that the daemon keeps beside the protocol's state: its lanes, its KMEs, and what was said about it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use getrandom::SysRng;
use kms_client::KmeSet;
use qvpn_api::config;
use qvpn_api::events::EventKind;
use qvpn_api::status::LaneState;
use qvpn_dataplane::{InterfaceStats, LaneCommand, Lanes, PeerId, PeerStats};
use qvpn_identity::Psk;
use qvpn_proto::KeySources;
use qvpn_proto::path_mtu::MOST;
use qvpn_proto::session::WireGuardLink;
use qvpn_proto::wire::limits::MAX_LINK_PACKET;
use qvpn_proto::{Fetch, KmsReport, LaneReport, Peer, PeerEvent, PeerOutput, PeerState};
use qvpn_types::{PeerNumber, Time};
use rand_core::UnwrapErr;
use tokio::sync::mpsc;

use crate::events::Events;
use crate::kms_task;
use crate::lane_watch::{Change, HEARTBEAT, LaneWatch, SILENCE, Seen};
use crate::lanes::command;
use crate::metrics::Histogram;
use crate::queues::Known;
use crate::status::sources;

/// The largest control datagram that is no probe of the path: a packet and the session's own 32 bytes.
const LARGEST: usize = MAX_LINK_PACKET + 32;
/// A packet may arrive a little before the epoch counts as active at this end.
const EARLY: Duration = Duration::from_secs(1);
/// A peer that was sent to for so long without an answer is silent: its name may have another address by now.
const SILENT: Duration = Duration::from_secs(15);
/// How often a host name is looked up while its peer can't be reached.
const LOOK_UP: Duration = Duration::from_secs(10);

/// What all peers share.
pub(crate) struct Shared {
    pub(crate) lanes: Lanes,
    pub(crate) stats: Arc<InterfaceStats>,
    pub(crate) events: Arc<Events>,
    pub(crate) known: Known,
    pub(crate) answers: mpsc::Sender<Answer>,
    pub(crate) rng: UnwrapErr<SysRng>,
    /// How long rekeys took.
    pub(crate) rekeys: Histogram,
    /// A path's MTU is another one, which the routes don't know yet.
    pub(crate) mtu_changed: bool,
}

impl Shared {
    /// Sends a control datagram once; what is lost is repeated by the protocol.
    pub(crate) fn transmit(&self, datagram: &[u8], to: SocketAddr) {
        let sent = match datagram.len() > LARGEST {
            true => self.lanes.send_probe(datagram, to),
            false => self.lanes.send_control(datagram, to),
        };
        if let Err(error) = sent {
            tracing::debug!("control datagram to {to}: {error}");
        }
    }
}

/// Which peer a task works for. A number is used again after a removal, a serial never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotId {
    pub(crate) number: u16,
    pub(crate) serial: u64,
}

/// What a task found out.
pub(crate) enum Answer {
    /// For one peer.
    Peer { to: SlotId, news: News },
    /// A KME that failed answers again: for all peers that use it, or for those with this SAE.
    KmeAnswers { kme: String, sae: Option<String> },
}

/// What a peer asked for.
pub(crate) enum News {
    /// From the KMEs.
    Kms(KmsReport),
    /// The addresses of a host name.
    Resolved(io::Result<Vec<SocketAddr>>),
}

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
pub(crate) struct Slot {
    pub(crate) id: SlotId,
    pub(crate) config: config::Peer,
    pub(crate) psk: Option<Arc<Psk>>,
    pub(crate) kmes: Arc<KmeSet>,
    pub(crate) peer: Peer<WireGuardLink>,
    pub(crate) lanes: Vec<PeerLane>,
    /// Epochs that came into force, by what their keys are made of.
    pub(crate) rekeys: Vec<(KeySources, u64)>,
    /// Which of several lanes carry packets.
    pub(crate) watch: LaneWatch,
    /// What the path takes, in bytes, once it was measured and is less than the device's MTU.
    pub(crate) mtu: Option<u16>,
    /// What each lane was told to send at least: the empty packets of a keepalive.
    keepalives: Vec<Option<Duration>>,
    /// The timer that is set for it.
    pub(crate) armed: Option<Time>,
    /// Where its control session was when last told.
    endpoint: Option<SocketAddr>,
    /// The state that was told last, and whether traffic has ever flowed.
    told: PeerState,
    flowed: bool,
    activity: (u64, u64),
    looked_up: Option<Time>,
}

impl Slot {
    /// Makes a peer known to the lanes.
    pub(crate) fn new(
        id: SlotId,
        config: config::Peer,
        psk: Option<Arc<Psk>>,
        kmes: Arc<KmeSet>,
        peer: Peer<WireGuardLink>,
        lanes: u8,
        shared: &Shared,
    ) -> Self {
        let endpoint = address(&config);
        let watch = LaneWatch::new(lanes);
        let keepalives = vec![config.persistent_keepalive; lanes.into()];
        let lanes: Vec<PeerLane> = (0..lanes)
            .map(|lane| PeerLane { endpoint: endpoint.and_then(|e| at_lane(e, lane)), ..PeerLane::default() })
            .collect();
        for (number, lane) in (0u8..).zip(&lanes) {
            let command = LaneCommand::AddPeer {
                peer: PeerId(id.number.into()),
                endpoint: lane.endpoint,
                keepalive: config.persistent_keepalive,
                stats: lane.stats.clone(),
            };
            shared.lanes.send(number, command);
        }
        shared.known.moved(id.number, endpoint);
        Self {
            id,
            config,
            psk,
            kmes,
            peer,
            lanes,
            rekeys: Vec::new(),
            watch,
            mtu: None,
            keepalives,
            armed: None,
            endpoint,
            told: PeerState::Connecting,
            flowed: false,
            activity: (0, 0),
            looked_up: None,
        }
    }

    /// The peer's number in the lanes.
    pub(crate) fn lane_id(&self) -> PeerId {
        PeerId(self.id.number.into())
    }

    /// Does all that the peer wants done. To be called after each call into it.
    pub(crate) fn drain(&mut self, shared: &mut Shared, now: Time) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                PeerOutput::Lane(lane, order) => {
                    let command = command(PeerNumber(self.id.number), order);
                    shared.lanes.send(lane, command);
                }
                PeerOutput::Fetch(fetch) => self.fetch(fetch, shared),
                PeerOutput::LanesTo(endpoint) => self.lanes_to(endpoint, shared),
                PeerOutput::Event(notice) => self.notice(notice, shared, now),
            }
        }
        while let Some(transmit) = self.peer.poll_transmit() {
            shared.transmit(&transmit.datagram, transmit.to);
        }
        self.teach_lanes(shared, now);
    }

    /// Twice a second: what the lanes did, and whether they hear anything.
    pub(crate) fn tick(&mut self, shared: &mut Shared, now: Time) {
        let last = |of: fn(&PeerStats) -> u64| self.lanes.iter().map(|l| of(&l.stats)).max().unwrap_or(0);
        let activity = (last(|s| s.tx.last_at.get()), last(|s| s.rx.last_at.get()));
        if activity != self.activity {
            self.activity = activity;
            let at = |nanos| (nanos != 0).then_some(Time::from_nanos(nanos));
            let report = LaneReport::Activity { sent_at: at(activity.0), received_at: at(activity.1) };
            self.peer.handle_lane(report, now, &mut shared.rng);
        }
        self.watch_lanes(shared, now);
        self.look_up(shared, now);
    }

    /// Looks which lanes carry packets, and leads the flows of the others by those.
    fn watch_lanes(&mut self, shared: &mut Shared, now: Time) {
        let view = self.peer.view(now);
        if view.lanes < 2 {
            self.watch_one(shared, now);
        }
        self.keep_alive(view.lanes, shared);
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
                Change::Silent(lane) => self.lane_silent(lane, shared),
                Change::Back(lane) => {
                    let peer = self.config.name.clone();
                    shared.events.emit(EventKind::LaneRecovered { peer, lane });
                }
                Change::Detour(lane, via) => {
                    let peer = self.lane_id();
                    shared.lanes.send(lane, LaneCommand::SetDetour { peer, via });
                }
            }
        }
        self.peer.set_rx_silent(self.watch.unheard(), now, &mut shared.rng);
    }

    /// The only lane sends no heartbeats: it is silent when nothing came in an epoch.
    fn watch_one(&mut self, shared: &Shared, now: Time) {
        let Some(lane) = self.lanes.first_mut() else { return };
        let Some(unheard) = lane.unheard else { return };
        if Time::from_nanos(lane.stats.rx.last_at.get()) + EARLY >= unheard {
            lane.unheard = None;
            lane.state = Some(LaneState::Up);
        } else if now.since(unheard) > SILENCE && lane.state != Some(LaneState::Silent) {
            lane.state = Some(LaneState::Silent);
            self.lane_silent(0, shared);
        }
    }

    fn lane_silent(&self, lane: u8, shared: &Shared) {
        let port = self.lanes.get(usize::from(lane)).and_then(|l| l.endpoint).map_or(0, |e| e.port());
        let peer = self.config.name.clone();
        shared.events.emit(EventKind::LaneSilent { peer, lane, port });
    }

    /// Where there are several lanes, each sends something twice a second, so that silence means something.
    fn keep_alive(&mut self, agreed: u8, shared: &Shared) {
        let peer = self.lane_id();
        let wanted = match self.config.persistent_keepalive {
            configured if agreed < 2 => configured,
            configured => Some(configured.map_or(HEARTBEAT, |every| every.min(HEARTBEAT))),
        };
        for (lane, told) in (0u8..).zip(&mut self.keepalives) {
            if *told != wanted {
                *told = wanted;
                shared.lanes.send(lane, LaneCommand::SetKeepalive { peer, keepalive: wanted });
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

    /// Looks a host name up where that may help.
    fn look_up(&mut self, shared: &Shared, now: Time) {
        let Some(endpoint) = self.config.endpoint.as_ref().filter(|e| e.ip().is_none()) else { return };
        let recently = self.looked_up.is_some_and(|at| now.since(at) < LOOK_UP);
        let (sent, received) = (Time::from_nanos(self.activity.0), Time::from_nanos(self.activity.1));
        let unanswered = sent.since(received) > SILENT;
        if recently || !(unanswered || matches!(self.told, PeerState::Connecting | PeerState::Blocked)) {
            return;
        }
        self.looked_up = Some(now);
        let (host, port) = (endpoint.host.clone(), endpoint.port);
        let (to, answers) = (self.id, shared.answers.clone());
        tokio::spawn(async move {
            let found = tokio::net::lookup_host((host.as_str(), port)).await;
            let news = News::Resolved(found.map(Iterator::collect));
            // It fails only when the daemon is stopping.
            let _ = answers.send(Answer::Peer { to, news }).await;
        });
    }

    /// A look-up ended.
    pub(crate) fn resolved(&mut self, found: io::Result<Vec<SocketAddr>>, shared: &mut Shared, now: Time) {
        let Some(endpoint) = &self.config.endpoint else { return };
        let found = match found {
            Ok(found) if !found.is_empty() => found,
            Ok(_) => return tracing::warn!("peer {}: {endpoint} has no address", self.config.name),
            Err(error) => {
                let name = &self.config.name;
                return tracing::warn!(
                    "peer {name}: looking up {endpoint}: {error}; check the name and the DNS servers"
                );
            }
        };
        // While one of several addresses is in use, it stays.
        if !self.peer.view(now).endpoint.is_some_and(|at| found.contains(&at)) {
            self.move_to(found[0], shared, now);
        }
    }

    /// Sends everything to `endpoint` from now on, until the peer roams.
    pub(crate) fn move_to(&mut self, endpoint: SocketAddr, shared: &Shared, now: Time) {
        self.peer.set_endpoint(endpoint, now);
        self.endpoint = Some(endpoint);
        shared.known.moved(self.id.number, self.endpoint);
        self.lanes_to(endpoint, shared);
    }

    fn lanes_to(&mut self, endpoint: SocketAddr, shared: &Shared) {
        self.lanes.iter_mut().for_each(|lane| lane.endpoint = None);
        self.teach(endpoint, shared);
    }

    /// An authentic packet of the newest epoch came to a lane from elsewhere. Messages go by lane 0's socket, so the control
    /// session follows it: else an initiator whose peer's NAT forgot the mapping would propose to the old place.
    pub(crate) fn lane_roamed(&mut self, lane: u8, endpoint: SocketAddr, shared: &mut Shared, now: Time) {
        if let Some(state) = self.lanes.get_mut(usize::from(lane)) {
            state.endpoint = Some(endpoint);
        }
        if lane == 0 && self.endpoint != Some(endpoint) {
            self.peer.set_endpoint(endpoint, now);
            self.notice(PeerEvent::Roamed { endpoint }, shared, now);
        }
    }

    /// A lane that knows no endpoint starts where the control session is.
    fn teach_lanes(&mut self, shared: &Shared, now: Time) {
        if self.lanes.iter().any(|lane| lane.endpoint.is_none())
            && let Some(endpoint) = self.peer.view(now).endpoint
        {
            self.teach(endpoint, shared);
        }
    }

    fn teach(&mut self, endpoint: SocketAddr, shared: &Shared) {
        let peer = self.lane_id();
        for (number, lane) in (0u8..).zip(&mut self.lanes) {
            if lane.endpoint.is_none()
                && let Some(addr) = at_lane(endpoint, number)
            {
                lane.endpoint = Some(addr);
                shared.lanes.send(number, LaneCommand::SetEndpoint { peer, addr });
            }
        }
    }

    fn fetch(&self, fetch: Fetch, shared: &Shared) {
        let (to, answers, kmes) = (self.id, shared.answers.clone(), self.kmes.clone());
        let sae = self.config.sae_id.clone().unwrap_or_default();
        tokio::spawn(async move {
            let news = News::Kms(kms_task::fetch(kmes, sae, fetch).await);
            // It fails only when the daemon is stopping; the keys are erased then.
            let _ = answers.send(Answer::Peer { to, news }).await;
        });
    }

    /// The path takes another size: padding stays within it, and the routes follow.
    fn path_changed(&mut self, mtu: u16, shared: &mut Shared) {
        self.mtu = (mtu < MOST).then_some(mtu);
        shared.mtu_changed = true;
        let (peer, mtu) = (self.lane_id(), self.mtu.unwrap_or(u16::MAX));
        for (lane, _) in (0u8..).zip(&self.lanes) {
            shared.lanes.send(lane, LaneCommand::SetPeerMtu { peer, mtu });
        }
    }

    /// What was measured holds no longer, since nobody measures any more.
    pub(crate) fn forget_path(&mut self, shared: &mut Shared) {
        if self.mtu.is_some() {
            self.path_changed(MOST, shared);
        }
    }

    fn notice(&mut self, notice: PeerEvent, shared: &mut Shared, now: Time) {
        let peer = self.config.name.clone();
        let kind = match notice {
            PeerEvent::Up | PeerEvent::Recovered => {
                let before = std::mem::replace(&mut self.told, PeerState::Up);
                match std::mem::replace(&mut self.flowed, true) {
                    true => EventKind::PeerRecovered { peer, from: before.name().to_owned() },
                    false => EventKind::PeerUp { peer, endpoint: self.endpoint.map(|e| e.to_string()) },
                }
            }
            PeerEvent::Blocked { reason } => {
                self.told = PeerState::Blocked;
                EventKind::PeerBlocked { peer, reason }
            }
            PeerEvent::Degraded { reason } => {
                self.told = PeerState::Degraded;
                self.flowed = true;
                EventKind::PeerDegraded { peer, reason }
            }
            PeerEvent::Roamed { endpoint } => {
                let from = self.endpoint.replace(endpoint).map(|e| e.to_string());
                shared.known.moved(self.id.number, self.endpoint);
                EventKind::PeerRoamed { peer, from, to: endpoint.to_string() }
            }
            PeerEvent::Bye => EventKind::PeerBye { peer },
            PeerEvent::PathMtu { mtu } => {
                self.path_changed(mtu, shared);
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
                shared.rekeys.observe(took);
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
                return tracing::info!("peer {peer}: the other site asks for an epoch: {}", reason.words());
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
        shared.events.emit(kind);
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

/// The configured endpoint, if it is an address.
pub(crate) fn address(peer: &config::Peer) -> Option<SocketAddr> {
    let endpoint = peer.endpoint.as_ref()?;
    Some(SocketAddr::new(endpoint.ip()?, endpoint.port))
}
