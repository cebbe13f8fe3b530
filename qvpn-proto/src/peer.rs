//! The state of one tunnel at this site. Its inputs are datagrams, reports of KMEs and lanes, and the time;
//! its parts put their output into the outbox.

mod endpoints;
mod keys;
mod status;

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::{Direction, QkdPolicy, Role, Time};
use rand_core::CryptoRng;
use status::Status;

use crate::channel::ReceiveOutcome;
use crate::config::PeerConfig;
use crate::epochs::Epochs;
use crate::exchange::{Context, Counters, ExchangeRole, Initiator, Message, Responder};
use crate::hello::{Hellos, ReceivedHello};
use crate::instances::Instances;
use crate::kms::KmsReport;
use crate::lanes::PeerLanes;
use crate::message_limiter::MessageLimiter;
use crate::notice::PeerEvent;
use crate::orders::LaneReport;
use crate::outbox::{HelloRequest, Outbox};
use crate::output::{PeerOutput, Transmit};
use crate::session::control_session::ControlSession;
use crate::session::{ControlLink, Tai64n};
use crate::supply::Supply;
use crate::timers::Timer;
use crate::view::{PeerState, PeerView};
use crate::wire::{MessageId, MessageType, Reject, RejectReason};

/// The state of one tunnel at this site.
pub struct Peer<L> {
    config: PeerConfig,
    control: ControlSession<L>,
    hellos: Hellos,
    instances: Instances,
    role: Box<dyn ExchangeRole>,
    /// What earlier roles counted.
    counters: Counters,
    epochs: Epochs,
    supply: Supply,
    lanes: PeerLanes,
    limiter: MessageLimiter,
    out: Outbox,
    /// The state that was last reported.
    reported_state: PeerState,
}

impl<L: ControlLink> Peer<L> {
    /// Returns a peer that initiates handshakes at once. `instance` is random, and new at each start of this
    /// peer.
    #[must_use]
    pub fn new(config: PeerConfig, link: L, instance: [u8; 16], now: Time) -> Self {
        let mut out = Outbox::default();
        Self {
            control: ControlSession::new(&config, link, now, &mut out),
            hellos: Hellos::new(&config, instance),
            instances: Instances::default(),
            role: role(&config, Counters::default(), now),
            counters: Counters::default(),
            epochs: Epochs::new(&config, &instance, now),
            supply: Supply::new(now),
            lanes: PeerLanes::new(config.lanes),
            limiter: MessageLimiter::default(),
            out,
            reported_state: PeerState::Connecting,
            config,
        }
    }

    /// Processes a datagram that [`Demux`](crate::session::Demux) assigned to this peer.
    pub fn handle_datagram(&mut self, datagram: &[u8], from: SocketAddr, now: Time, rng: &mut dyn CryptoRng) {
        self.hellos.ensure_sent(now, &mut self.out, rng);
        let input = self.control.on_datagram(datagram, from, self.config.endpoint, now, &mut self.out);
        if let Some(endpoint) = input.found_at {
            self.lanes.move_to(endpoint, &mut self.out);
        }
        if input.switched {
            self.on_switched(now, rng);
        }
        if input.new_session {
            self.hellos.on_new_session(now, &mut self.out, rng);
        }
        if input.new_session && self.epochs.sealing(now).is_none() {
            // Earlier attempts failed because there was no path. There is one now.
            self.role.attempt_due(now);
        }
        for packet in input.packets {
            let interval = self.hellos.agreement.map_or(self.config.rekey_interval, |a| a.interval);
            if !self.limiter.admit(&packet, interval, now) {
                self.out.drops.limited += 1;
                continue;
            }
            match self.out.channel.receive(&packet, now, rng) {
                ReceiveOutcome::Message { id, kind, body } => {
                    let message = Message { id, message_type: kind, body: &body, session: input.session };
                    self.handle_message(message, now, rng);
                }
                ReceiveOutcome::Malformed => self.out.drops.malformed += 1,
                ReceiveOutcome::Nothing => {}
            }
        }
        self.process_pending(now, rng);
    }

    /// Processes the report of a [`PeerOutput::Fetch`].
    pub fn handle_kms(&mut self, report: KmsReport, now: Time, rng: &mut dyn CryptoRng) {
        // The current policy applies. It may be stricter than when the keys were requested.
        self.with_role(now, |role, ctx, _, out| out.report_lost(role.on_kms_report(report, ctx)));
        self.process_pending(now, rng);
    }

    /// Retries waiting requests at once, before their back-off ends: a KME of this site that failed answers
    /// again.
    pub fn on_kms_recovered(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.role.on_kms_recovered(now);
        self.process_pending(now, rng);
    }

    /// Processes a lane's report.
    pub fn handle_lane(&mut self, report: LaneReport, now: Time, rng: &mut dyn CryptoRng) {
        match report {
            LaneReport::Installed { lane, local_epoch, direction: Direction::Opening } => {
                self.with_role(now, |role, ctx, epochs, out| {
                    role.on_installed(lane, local_epoch, ctx, epochs, out, rng);
                });
            }
            LaneReport::Installed { direction: Direction::Sealing, .. } => {}
            LaneReport::FirstOpened { local_epoch, .. } => {
                self.control.liveness.on_received(now);
                self.with_role(now, |role, ctx, epochs, out| {
                    role.on_first_opened(local_epoch, ctx, epochs, out);
                });
            }
            LaneReport::Activity { sent_at, received_at } => {
                received_at.into_iter().for_each(|at| self.control.liveness.on_received(at));
                if sent_at.is_some() {
                    self.control.path_used(now);
                }
            }
            LaneReport::Roamed { lane, endpoint } => {
                self.lanes.on_roamed(lane, endpoint);
                // Messages go through lane 0's socket, so the control session follows it. Otherwise an
                // initiator whose peer's NAT lost the mapping would propose to the old endpoint.
                if lane == 0 && self.control.path.endpoint != Some(endpoint) {
                    self.set_endpoint(endpoint, now);
                    self.out.emit(PeerEvent::Roamed { endpoint });
                }
            }
            LaneReport::SealingEnded { local_epoch, .. } => {
                let lanes = self.config.lanes;
                if self.epochs.end_early(local_epoch, lanes, now, &mut self.out) {
                    self.with_role(now, |role, ctx, _, out| role.on_key_ended(ctx, out, rng));
                }
            }
        }
        self.process_pending(now, rng);
    }

    /// Handles due timers. Call it when [`poll_timeout`](Self::poll_timeout) has passed.
    pub fn handle_timeout(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.hellos.ensure_sent(now, &mut self.out, rng);
        for timer in Timer::ALL {
            if self.out.timers.take_due(timer, now) {
                self.on_timer(timer, now, rng);
            }
        }
        self.process_pending(now, rng);
    }

    fn on_timer(&mut self, timer: Timer, now: Time, rng: &mut dyn CryptoRng) {
        let configured = self.config.endpoint;
        match timer {
            Timer::LinkTick => self.control.on_link_tick(self.config.role, now, &mut self.out),
            Timer::Handshake => self.control.call(configured, now, &mut self.out, rng),
            Timer::Liveness => self.control.check_liveness(configured, now, &mut self.out, rng),
            Timer::KeyChange => self.on_key_change(now, rng),
            Timer::Stock => self.out.report_lost(self.role.age_stock(now)),
            Timer::AttemptEnd
            | Timer::ProposeAgain
            | Timer::ConfirmAgain
            | Timer::AskRekey
            | Timer::PendingEnd => self.with_role(now, |role, ctx, epochs, out| {
                role.on_timeout(timer, ctx, epochs, out, rng);
            }),
            Timer::Refusal => {
                if self.hellos.on_refusal_timeout(now, &mut self.out) {
                    self.compare_hellos(now, rng);
                    self.role.attempt_due(now);
                }
            }
            // `process_pending` does all the work of these timers, and sets the timer of an attempt again.
            Timer::Attempt | Timer::Retransmit | Timer::EpochEnd | Timer::PathMtu => {}
        }
    }

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.poll_transmit()
    }

    /// Returns the next output to carry out or to report.
    pub fn poll_event(&mut self) -> Option<PeerOutput> {
        self.out.poll_output()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.out.timers.next()
    }

    /// Makes a fresh epoch due now, at the operator's request.
    pub fn rekey(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.with_role(now, |role, ctx, _, out| role.on_operator_rekey(ctx, out, rng));
        self.process_pending(now, rng);
    }

    /// Applies a changed config and sends a new `Hello`. The peer's keys in use must be among those of the
    /// config. An active epoch that breaks a stricter policy ends at once.
    pub fn reconfigure(&mut self, mut config: PeerConfig, now: Time, rng: &mut dyn CryptoRng) {
        self.control.set_keys(&config, now, &mut self.out);
        self.follow_keys(now, rng);
        if let Some(keys) = self.control.keys() {
            config.use_keys(keys);
        }
        let role_changed = config.role != self.config.role;
        let qkd_ends = config.policy == QkdPolicy::Off && self.config.policy != QkdPolicy::Off;
        let sae_changed =
            (&config.sae_local, &config.sae_remote) != (&self.config.sae_local, &self.config.sae_remote);
        if let (Some(endpoint), true) = (config.endpoint, config.endpoint != self.config.endpoint) {
            self.control.reconfigure_endpoint(endpoint, now);
        }
        self.control.liveness.set_after(config.liveness);
        self.config = config;
        if role_changed || sae_changed {
            self.replace_role(now, rng);
        } else if qkd_ends {
            self.role.erase_stock();
            self.hellos.new_instance(rng);
        }
        self.role.set_stock_target(self.config.stock);
        self.role.drop_unanswered_attempt(&mut self.out);
        self.hellos.renew(&self.config, now, &mut self.out, rng);
        self.compare_hellos(now, rng);
        self.end_epochs_without_qkd(now);
        self.role.attempt_due(now);
        self.process_pending(now, rng);
    }

    /// Sends `Bye` and stops sending. Poll the last datagrams afterwards.
    pub fn shut_down(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.out.channel.send_once(MessageType::Bye, &[], rng);
        self.epochs.stop_sealing(self.config.lanes, &mut self.out);
        self.control.flush(now, &mut self.out);
    }

    /// Decides which lanes carry packets. Call it twice a second, with the time at which each lane last
    /// received an authentic packet; zero is never.
    pub fn poll_lanes(&mut self, received_at: &[Time], now: Time, rng: &mut dyn CryptoRng) {
        let (active, agreed) = (self.epochs.sealing(now).is_some(), self.status(now).agreed_lanes());
        self.lanes.poll(received_at, (active, agreed), now, &mut self.out, rng);
        self.process_pending(now, rng);
    }

    /// Sets the keepalive interval of the lanes, which also applies without traffic.
    pub fn set_keepalive(&mut self, interval: Option<Duration>) {
        self.lanes.set_keepalive(interval);
    }

    /// Returns the greatest time in a handshake initiation of each of the peer's X25519 keys. A daemon
    /// keeps them over restarts, so that recorded initiations start nothing.
    #[must_use]
    pub fn greatest_initiations(&self) -> Vec<([u8; 32], Option<Tai64n>)> {
        self.control.greatest_initiations()
    }

    /// Returns the status that `show` prints.
    #[must_use]
    pub fn view(&self, now: Time) -> PeerView {
        self.status(now).view()
    }

    fn context(&self, now: Time) -> Context<'_> {
        let session_up = self.control.is_up();
        Context { now, config: &self.config, hellos: &self.hellos, session_up }
    }

    /// Runs a step of the role.
    fn with_role(
        &mut self,
        now: Time,
        act: impl FnOnce(&mut dyn ExchangeRole, &Context<'_>, &mut Epochs, &mut Outbox),
    ) {
        let session_up = self.control.is_up();
        let ctx = Context { now, config: &self.config, hellos: &self.hellos, session_up };
        act(self.role.as_mut(), &ctx, &mut self.epochs, &mut self.out);
    }

    fn handle_message(&mut self, message: Message<'_>, now: Time, rng: &mut dyn CryptoRng) {
        if message.message_type != MessageType::Hello && self.hellos.predates_instance(message.session) {
            // If that goes on, the sites disagree about which session is the newer one.
            if self.hellos.on_mismatch(now) {
                self.control.renew(&mut self.out);
            }
            return;
        }
        match message.message_type {
            MessageType::Hello => self.on_hello(message, now, rng),
            MessageType::StockOffer
            | MessageType::StockAck
            | MessageType::Propose
            | MessageType::Accept
            | MessageType::Confirm
            | MessageType::Rekey => self.with_role(now, |role, ctx, epochs, out| {
                role.on_message(message, ctx, epochs, out, rng);
            }),
            MessageType::Ping => self.control.on_ping(message.body, now, &mut self.out, rng),
            MessageType::Pong => self.control.on_pong(message.body, now, &mut self.out),
            MessageType::Bye => {
                self.control.on_bye(now, &mut self.out);
                self.out.emit(PeerEvent::Bye);
            }
            MessageType::Lanes => self.lanes.on_message(message.body, &mut self.out),
            MessageType::Reject => self.on_reject(message.body, now),
            // The channel handles acknowledgements.
            MessageType::Ack => {}
        }
        let Some(request) = self.out.hello.take() else { return };
        match request {
            HelloRequest::Repeat => self.hellos.send(now, &mut self.out, rng),
            HelloRequest::Renew => self.hellos.renew(&self.config, now, &mut self.out, rng),
        }
        if self.hellos.on_mismatch(now) {
            self.control.renew(&mut self.out);
        }
    }

    fn on_hello(&mut self, message: Message<'_>, now: Time, rng: &mut dyn CryptoRng) {
        match self.hellos.receive(message.id, message.body, message.session, now, &mut self.out, rng) {
            ReceivedHello::Unusable(reason, detail) => self.refuse(message.id, reason, detail, now, rng),
            ReceivedHello::Known => {}
            ReceivedHello::New { restarted } => {
                if restarted {
                    self.check_duplicate(now);
                    self.on_peer_restarted(now, rng);
                }
                self.compare_hellos(now, rng);
                self.role.attempt_due(now);
            }
        }
    }

    /// Reports two gateways that use the peer's key.
    fn check_duplicate(&mut self, now: Time) {
        let Some(remote) = &self.hellos.remote else { return };
        let endpoint = self.control.path.endpoint;
        if let Some(endpoints) = self.instances.on_change(remote.hello.instance, endpoint, now) {
            self.out.emit(PeerEvent::IdentityDuplicate { endpoints });
        }
    }

    /// Handles an instance not seen before: it has no state, so the exchange under way ends.
    fn on_peer_restarted(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        self.epochs.no_restart_since_epoch = false;
        self.hellos.send(now, &mut self.out, rng);
        self.lanes.on_peer_restarted(now, &mut self.out, rng);
        self.with_role(now, |role, ctx, epochs, out| role.on_peer_restarted(ctx, epochs, out));
    }

    /// Compares both `Hello`s, and refuses the peer's if they are not compatible.
    fn compare_hellos(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        match self.hellos.compare(&self.config) {
            Ok(true) => self.end_epochs_without_qkd(now),
            Ok(false) => {}
            Err((id, reason, detail)) => self.refuse(id, reason, detail, now, rng),
        }
    }

    fn refuse(
        &mut self,
        id: MessageId,
        reason: RejectReason,
        detail: String,
        now: Time,
        rng: &mut dyn CryptoRng,
    ) {
        self.role.drop_attempt(&mut self.out);
        self.hellos.refuse(id, reason, detail, now, &mut self.out, rng);
    }

    fn on_reject(&mut self, body: &[u8], now: Time) {
        let Ok(reject) = Reject::parse(body) else {
            self.out.drops.malformed += 1;
            return;
        };
        if self.hellos.own.message_id != Some(reject.id) {
            self.with_role(now, |role, ctx, epochs, out| {
                role.on_reject(reject.id, reject.reason, ctx, epochs, out);
            });
        } else if self.hellos.on_refused(reject.reason, &self.config, &mut self.out) {
            self.role.drop_attempt(&mut self.out);
        }
    }

    /// Ends unfinished epochs that break a stricter policy. If the policy is our own, also ends the other
    /// epochs without QKD, at once and in both directions; packets of epochs with QKD that are under way open
    /// until the drain ends. A `Hello` alone ends no epoch in force, since only X25519 authenticates it: the
    /// peer, if it is strict, opens and seals nothing in that epoch any more.
    fn end_epochs_without_qkd(&mut self, now: Time) {
        if !self.context(now).qkd_only() {
            return;
        }
        self.with_role(now, |role, ctx, epochs, out| role.on_stricter_policy(ctx, epochs, out));
        if self.config.policy != QkdPolicy::Required {
            return;
        }
        self.epochs.close_without_qkd(&mut self.out);
        if self.epochs.active.as_ref().is_some_and(|epoch| !epoch.sources.qkd) {
            self.epochs.stop_sealing(self.config.lanes, &mut self.out);
        }
    }

    /// Does everything that follows from a change, in an order in which no step changes an earlier decision:
    /// the stock decides which attempts are possible, the stock and attempts queue messages, then messages,
    /// state and timers follow.
    fn process_pending(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let session_up = self.control.is_up();
        let ctx = Context { now, config: &self.config, hellos: &self.hellos, session_up };
        self.supply.poll(self.role.as_mut(), &ctx, &mut self.out, rng);
        self.role.poll(&ctx, &mut self.epochs, &mut self.out, rng);
        self.control.poll_path_mtu(now, &mut self.out, rng);
        self.control.flush(now, &mut self.out);
        self.lanes.on_epochs(self.epochs.rekeys, now);
        self.lanes.poll_endpoints(self.control.path.endpoint, &mut self.out);
        self.poll_key_change();
        self.report_state(now);
        let end = self.epochs.sealing(now).map(|epoch| epoch.sealing_ends);
        self.out.timers.set(Timer::EpochEnd, end);
        let retransmit = self.out.channel.next_due().filter(|_| self.control.is_up());
        self.out.timers.set(Timer::Retransmit, retransmit);
        self.control.liveness.set_round_trip(self.out.channel.round_trip());
        self.out.timers.set(Timer::Liveness, self.control.liveness.due(self.control.is_up()));
    }

    fn status(&self, now: Time) -> Status<'_> {
        Status {
            ctx: self.context(now),
            path: &self.control.path,
            liveness: &self.control.liveness,
            session_up: self.control.is_up(),
            key_unanswered: self.control.key_unanswered(),
            handshake_ago: self.control.handshake_ago(now),
            epochs: &self.epochs,
            role: self.role.as_ref(),
            supply: &self.supply,
            lanes: &self.lanes,
            drops: self.out.drops,
        }
    }

    /// Reports a change of the state.
    fn report_state(&mut self, now: Time) {
        let status = self.status(now);
        let state = status.state();
        if state == self.reported_state {
            return;
        }
        let reason = status.reason().unwrap_or_default();
        let before = std::mem::replace(&mut self.reported_state, state);
        match state {
            PeerState::Up if matches!(before, PeerState::Degraded | PeerState::Silent) => {
                self.out.emit(PeerEvent::Recovered);
            }
            PeerState::Up => self.out.emit(PeerEvent::Up),
            PeerState::Degraded => self.out.emit(PeerEvent::Degraded { reason }),
            PeerState::Blocked => self.out.emit(PeerEvent::Blocked { reason }),
            PeerState::Silent => self.out.emit(PeerEvent::Silent { reason }),
            PeerState::Connecting => {}
        }
    }
}

fn role(config: &PeerConfig, counters: Counters, now: Time) -> Box<dyn ExchangeRole> {
    match config.role {
        Role::Initiator => Box::new(Initiator::new(config.stock, counters)),
        Role::Responder => Box::new(Responder::new(counters, now)),
    }
}
