//! One end's state towards one site: it takes datagrams, KMS answers, lane reports and the time, and says what to send,
//! install and tell. Each duty has a file below; this one holds the state and the doors.

mod hello;
mod initiate;
mod path;
mod respond;
mod session;
mod supply;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use qvpn_secret::Secret;
use rand_core::CryptoRng;

use crate::channel::{ReceiveOutcome, ReliableChannel};
use crate::config::{PeerConfig, Role};
use crate::epoch::{ActiveEpoch, Indices, WeakKeys, drain};
use crate::key_sources::KeySources;
use crate::kms::{KeyKind, KmsReport};
use crate::notice::{FailureReason, PeerEvent};
use crate::orders::{Direction, LaneOrder, LaneReport};
use crate::output::{PeerOutput, Transmit};
use crate::path_mtu::PathMtu;
use crate::session::ControlLink;
use crate::stock::Budget;
use crate::timers::{Timer, Timers};
use crate::view::{ControlDrops, PeerState};
use crate::wire::{Hello, LaneSet, MessageId, MessageType, Reject, RejectReason, RekeyReason};
use hello::{Agreement, OwnHello, Refusal, RemoteHello};
use initiate::Initiator;
use qvpn_types::{LocalEpoch, Time};
use respond::Responder;
use session::Session;

/// The half of the exchange that this end plays.
enum Side {
    Initiator(Box<Initiator>),
    Responder(Box<Responder>),
}

/// One end's state towards one site.
pub struct Peer<L> {
    config: PeerConfig,
    link: L,
    instance: [u8; 16],
    started: Time,
    session: Session,
    channel: ReliableChannel,
    timers: Timers,
    transmits: VecDeque<Transmit>,
    events: VecDeque<PeerOutput>,
    own_hello: OwnHello,
    remote: Option<RemoteHello>,
    agreement: Option<Agreement>,
    refusal: Option<Refusal>,
    side: Side,
    indices: Indices,
    local_epoch: LocalEpoch,
    request: u64,
    active: Option<ActiveEpoch>,
    /// What opens epochs without QKD, since a stricter policy ends these and no others.
    weak: WeakKeys,
    had_epoch: bool,
    /// The search for the path's MTU, where it is wanted.
    path: Option<PathMtu>,
    /// Lanes on which this end hears nothing, and the other end by its last word.
    unheard: LaneSet,
    peer_rx_silent: LaneSet,
    last_qkd: Option<Time>,
    /// Neither end restarted since the last epoch.
    unbroken: bool,
    budget: Budget,
    supply_stopped: Option<String>,
    last_state: PeerState,
    rekeys: u64,
    failures: BTreeMap<FailureReason, u64>,
    drops: ControlDrops,
}

impl<L: ControlLink> Peer<L> {
    /// A peer that begins to look for its other end at once. `instance` is random, and new at each start of this peer.
    #[must_use]
    pub fn new(config: PeerConfig, link: L, instance: [u8; 16], now: Time) -> Self {
        let side = new_side(&config, now);
        let own_hello = OwnHello::new(&config, instance, 1);
        let mut peer = Self {
            session: Session::new(config.endpoint, now),
            indices: Indices::new(config.number, u16::from_be_bytes([instance[0], instance[1]])),
            config,
            link,
            instance,
            started: now,
            channel: ReliableChannel::default(),
            timers: Timers::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            own_hello,
            remote: None,
            agreement: None,
            refusal: None,
            side,
            local_epoch: LocalEpoch::default(),
            request: 0,
            active: None,
            weak: WeakKeys::default(),
            had_epoch: false,
            path: None,
            unheard: LaneSet::default(),
            peer_rx_silent: LaneSet::default(),
            last_qkd: None,
            unbroken: false,
            budget: Budget::new(now),
            supply_stopped: None,
            last_state: PeerState::Connecting,
            rekeys: 0,
            failures: BTreeMap::new(),
            drops: ControlDrops::default(),
        };
        peer.timers.set(Timer::LinkTick, Some(now));
        let wait = match peer.config.role {
            Role::Initiator => Duration::ZERO,
            Role::Responder => session::RESPONDER_WAIT,
        };
        peer.timers.set(Timer::Handshake, Some(now + wait));
        peer
    }

    /// Takes a datagram that the gate gave to this peer.
    pub fn handle_datagram(&mut self, datagram: &[u8], from: SocketAddr, now: Time, rng: &mut dyn CryptoRng) {
        self.ensure_hello(now, rng);
        let (session, packets) = self.link_datagram(datagram, from, now);
        for packet in packets {
            match self.channel.receive(&packet, now, rng) {
                ReceiveOutcome::Message { id, kind, body } => {
                    self.handle_message(id, kind, &body, session, now, rng)
                }
                ReceiveOutcome::Malformed => self.drops.malformed += 1,
                ReceiveOutcome::Nothing => {}
            }
        }
        self.settle(now, rng);
    }

    /// Takes the answer to a [`PeerOutput::Fetch`].
    pub fn handle_kms(&mut self, report: KmsReport, now: Time, rng: &mut dyn CryptoRng) {
        self.take_kms(report, now);
        self.settle(now, rng);
    }

    /// A KME of this end that failed answers again: what waits for it is asked for at once, and not when its back-off ends.
    pub fn on_kms_recovered(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        match &mut self.side {
            Side::Initiator(initiator) => initiator.stock.on_kms_recovered(now),
            Side::Responder(responder) => responder.stock.on_kms_recovered(now),
        }
        self.settle(now, rng);
    }

    /// Takes a lane's report.
    pub fn handle_lane(&mut self, report: LaneReport, now: Time, rng: &mut dyn CryptoRng) {
        match report {
            LaneReport::Installed { lane, local_epoch, direction: Direction::Opening } => {
                self.installed(lane, local_epoch, now, rng);
            }
            LaneReport::Installed { direction: Direction::Sealing, .. } => {}
            LaneReport::FirstOpened { local_epoch, .. } => {
                self.session.heard(now);
                self.first_opened(local_epoch, now);
            }
            LaneReport::Activity { sent_at, received_at } => {
                self.session.activity(sent_at, received_at);
                self.path_used(now);
            }
            LaneReport::SealingEnded { local_epoch, .. } => self.sealing_ended(local_epoch, now, rng),
        }
        self.settle(now, rng);
    }

    /// Does what is due; to be called when [`poll_timeout`](Self::poll_timeout) has passed.
    pub fn handle_timeout(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.ensure_hello(now, rng);
        if self.timers.take_due(Timer::LinkTick, now) {
            self.link_tick(now);
        }
        if self.timers.take_due(Timer::Handshake, now) {
            self.start_handshake(now);
        }
        if self.timers.take_due(Timer::Liveness, now) {
            self.check_liveness(now, rng);
        }
        if self.timers.take_due(Timer::Stock, now) {
            self.age_stock(now);
        }
        if self.timers.take_due(Timer::AttemptEnd, now) {
            self.attempt_timed_out(now);
        }
        if self.timers.take_due(Timer::ProposeAgain, now) {
            self.propose_again(now, rng);
        }
        if self.timers.take_due(Timer::ConfirmAgain, now) {
            self.confirm_again(now, rng);
        }
        if self.timers.take_due(Timer::AskRekey, now) {
            self.ask_rekey(RekeyReason::NoEpoch, now, rng);
        }
        if self.timers.take_due(Timer::PendingEnd, now) {
            self.age_pending(now);
        }
        // Attempt, Retransmit, EpochEnd and PathMtu need no more than `settle`.
        self.timers.take_due(Timer::Retransmit, now);
        self.timers.take_due(Timer::EpochEnd, now);
        self.timers.take_due(Timer::PathMtu, now);
        self.settle(now, rng);
    }

    /// A datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Something to do or to tell.
    pub fn poll_event(&mut self) -> Option<PeerOutput> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// The operator wants a fresh epoch now.
    pub fn rekey(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        match &mut self.side {
            Side::Initiator(_) => self.attempt_due(now),
            Side::Responder(_) => {
                self.channel.send(MessageType::Rekey, &RekeyReason::Operator.to_bytes(), now, rng);
            }
        }
        self.settle(now, rng);
    }

    /// Puts a changed config in force: a fresh `Hello` tells the other end. The identities must be the same as before.
    /// An active epoch that breaks a stricter policy stops at once.
    pub fn reconfigure(&mut self, config: PeerConfig, now: Time, rng: &mut dyn CryptoRng) {
        let role_changed = config.role != self.config.role;
        let sae_changed =
            (&config.sae_local, &config.sae_remote) != (&self.config.sae_local, &self.config.sae_remote);
        if let (Some(endpoint), true) = (config.endpoint, config.endpoint != self.config.endpoint) {
            self.session.endpoint = Some(endpoint);
            self.path_moved(now);
        }
        self.config = config;
        if role_changed || sae_changed {
            self.side = new_side(&self.config, now);
        }
        if let Side::Initiator(initiator) = &mut self.side {
            initiator.stock.set_target(self.config.stock);
        }
        self.drop_unanswered();
        self.fresh_hello(now, rng);
        self.reconsider(now, rng);
        self.stop_weak_epochs(now);
        self.attempt_due(now);
        self.settle(now, rng);
    }

    /// Says goodbye and stops sending; poll the last datagrams afterwards.
    pub fn shut_down(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.channel.send_once(MessageType::Bye, &[], rng);
        self.stop_sealing();
        self.pump(now);
    }

    /// This end hears nothing on these lanes. The other end is told, since it can't know that what it sends there is lost.
    pub fn set_rx_silent(&mut self, lanes: LaneSet, now: Time, rng: &mut dyn CryptoRng) {
        if self.unheard != lanes {
            self.unheard = lanes;
            self.channel.send(MessageType::Lanes, &lanes.to_bytes(), now, rng);
            self.settle(now, rng);
        }
    }

    /// A new address of the peer, from its host name.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr, now: Time) {
        if self.session.endpoint != Some(endpoint) {
            self.session.endpoint = Some(endpoint);
            self.path_moved(now);
            if self.link.session_age().is_none() {
                self.timers.set(Timer::Handshake, Some(now));
            }
        }
    }

    fn handle_message(
        &mut self,
        id: MessageId,
        kind: MessageType,
        body: &[u8],
        session: u64,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        match kind {
            MessageType::Hello => self.take_hello(id, body, session, now, rng),
            MessageType::StockOffer | MessageType::StockAck => self.take_stock(kind, body, now),
            MessageType::Propose => self.take_propose(id, body, now, rng),
            MessageType::Accept => self.take_accept(body, now, rng),
            MessageType::Confirm => self.take_confirm(body, now),
            MessageType::Rekey => self.asked_to_rekey(body, now),
            MessageType::Ping => self.channel.send_once(MessageType::Pong, &[], rng),
            MessageType::Bye => self.emit(PeerEvent::Bye),
            MessageType::Lanes => match LaneSet::parse(body) {
                Ok(lanes) => self.peer_rx_silent = lanes,
                Err(_) => self.drops.malformed += 1,
            },
            MessageType::Reject => self.take_reject(body, now, rng),
            // A Pong says no more than that it came; acknowledgements end in the channel.
            MessageType::Pong | MessageType::Ack => {}
        }
    }

    fn take_reject(&mut self, body: &[u8], now: Time, rng: &mut dyn CryptoRng) {
        let Ok(reject) = Reject::parse(body) else {
            self.drops.malformed += 1;
            return;
        };
        if self.own_hello.message_id == Some(reject.id) {
            self.refused_by_peer(reject.reason);
        } else {
            self.attempt_rejected(reject.id, reject.reason, now, rng);
        }
    }

    fn reject(&mut self, id: MessageId, reason: RejectReason, now: Time, rng: &mut dyn CryptoRng) {
        self.drops.refused += 1;
        self.channel.send(MessageType::Reject, &Reject { id, reason }.to_bytes(), now, rng);
    }

    fn emit(&mut self, event: PeerEvent) {
        self.events.push_back(PeerOutput::Event(event));
    }

    fn order(&mut self, lane: u8, order: LaneOrder) {
        self.events.push_back(PeerOutput::Lane(lane, order));
    }

    /// The same order for each lane.
    fn order_all(&mut self, order: impl Fn() -> LaneOrder) {
        for lane in 0..self.config.lanes {
            self.order(lane, order());
        }
    }

    fn stop_sealing(&mut self) {
        self.order_all(|| LaneOrder::StopSealing);
        self.active = None;
    }

    /// Whether an epoch made of these may not be used: QKD is required here, or at the other end by what it last said.
    fn breaks_policy(&self, sources: KeySources) -> bool {
        self.qkd_only() && !sources.qkd
    }

    /// A policy that became stricter ends the epochs that break it at once, in both directions. The others' packets that are still
    /// on their way open until the drain is over.
    fn stop_weak_epochs(&mut self, now: Time) {
        if !self.qkd_only() {
            return;
        }
        match self.side {
            Side::Initiator(_) => self.end_weak_attempt(now),
            Side::Responder(_) => self.end_weak_pending(),
        }
        for indices in self.weak.take() {
            self.close(indices);
        }
        if self.active.as_ref().is_some_and(|a| self.breaks_policy(a.sources)) {
            self.stop_sealing();
        }
    }

    /// Orders the opening keys of an epoch into its lanes, and returns those lanes.
    fn open_in(
        &mut self,
        active: &ActiveEpoch,
        indices: &[u32],
        keys: Vec<Secret<32>>,
        expires_at: Time,
        now: Time,
    ) -> LaneSet {
        if !active.sources.qkd {
            self.weak.add(active.local_epoch, indices.to_vec(), expires_at, now);
        }
        let (local_epoch, suite) = (active.local_epoch, self.config.suite);
        let mut lanes = LaneSet::default();
        for ((lane, index), key) in (0u8..).zip(indices.iter().copied()).zip(keys) {
            lanes.add(lane);
            self.order(lane, LaneOrder::InstallOpening { local_epoch, index, suite, key, expires_at });
        }
        lanes
    }

    /// Epochs before this one only drain from now on.
    fn drain_older(&mut self, local_epoch: LocalEpoch, interval: Duration, now: Time) {
        let at = now + drain(interval);
        self.weak.close_older(local_epoch, at);
        self.order_all(|| LaneOrder::CloseOlder { local_epoch, at });
    }

    /// Counts and tells a failed attempt.
    fn failed(&mut self, reason: FailureReason, detail: String) {
        *self.failures.entry(reason).or_default() += 1;
        self.emit(PeerEvent::EpochFailed { reason, detail });
    }

    /// An epoch came into force: its sealing keys were ordered.
    fn activate(&mut self, active: ActiveEpoch, took: Duration, now: Time) {
        self.rekeys += 1;
        if active.sources.qkd {
            self.last_qkd = Some(now);
        }
        self.unbroken = true;
        self.emit(PeerEvent::EpochActive {
            epoch: active.epoch,
            sources: active.sources,
            qkd_key_id: active.qkd_key_id.clone().filter(|_| active.sources.qkd),
            took,
        });
        self.had_epoch = true;
        self.active = Some(active);
    }

    /// What follows from any change: attempts that are due, fetches, messages, state, timers.
    fn settle(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.drive_supply(now, rng);
        self.drive_attempt(now, rng);
        self.drive_supply(now, rng);
        self.drive_path(now, rng);
        self.pump(now);
        self.tell_state(now);
        let end = self.active.as_ref().map(|a| a.sealing_ends).filter(|end| *end > now);
        self.timers.set(Timer::EpochEnd, end);
        let up = self.link.session_age().is_some();
        self.timers.set(Timer::Retransmit, self.channel.next_due().filter(|_| up));
        self.timers.set(Timer::Liveness, self.session.liveness_due());
    }

    fn sources(&self, kind: Option<KeyKind>, chain: bool) -> KeySources {
        KeySources {
            qkd: kind == Some(KeyKind::Qkd),
            file: kind == Some(KeyKind::File),
            psk: self.config.psk.is_some(),
            chain,
        }
    }

    fn remote_hello(&self) -> Option<&Hello> {
        self.remote.as_ref().map(|r| &r.hello)
    }
}

fn new_side(config: &PeerConfig, now: Time) -> Side {
    match config.role {
        Role::Initiator => Side::Initiator(Box::new(Initiator::new(config.stock))),
        Role::Responder => Side::Responder(Box::new(Responder::new(now))),
    }
}
