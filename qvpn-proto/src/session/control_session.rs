//! The control session of one peer: initiates handshakes, follows the peer's address, pings a silent peer,
//! and measures the path.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::{Role, Time};
use rand_core::CryptoRng;

use super::control_link::{ControlLink, LinkKeys, LinkOutput};
use super::initiation::Tai64n;
use super::key_change::KeyChange;
use crate::config::PeerConfig;
use crate::liveness::{LOST_AFTER, Liveness, LivenessStep};
use crate::notice::PeerEvent;
use crate::outbox::Outbox;
use crate::path_mtu::PathMtu;
use crate::paths::ControlPath;
use crate::timers::Timer;
use crate::wire::{MessageType, Ping};

/// How long the responder waits for the initiator's handshake.
const RESPONDER_WAIT: Duration = Duration::from_secs(1);
const LINK_TICK_INTERVAL: Duration = Duration::from_millis(250);
/// How long an endpoint has to answer before the next one is called, as in RFC 8305, section 5.
const NEXT_ENDPOINT_WAIT: Duration = Duration::from_millis(250);
/// A peer that said `Bye` is called after this time: it may be about to start again.
const MIN_CALL_WAIT: Duration = Duration::from_secs(1);
/// A silent peer with which a session was just made is called again after this time.
const SILENT_WAIT: Duration = Duration::from_secs(5);

/// The status text while the peer's clock is set back.
pub const CLOCK_SET_BACK: &str = "its handshakes carry a time before that of an earlier one, so they count \
                                  as repetitions: its clock was set back; set it right (if it is right, \
                                  somebody repeats old handshakes). Handshakes are started from here instead";

/// The result of a datagram.
pub struct SessionInput {
    /// The number of the session in which the packets arrived.
    pub session: u64,
    pub packets: Vec<Vec<u8>>,
    /// Whether a new session is in use.
    pub new_session: bool,
    /// The endpoint at which a lost peer answered; the lanes then send there.
    pub found_at: Option<SocketAddr>,
    /// Whether other keys are in use now.
    pub switched: bool,
}

/// The control session and what it knows of the path.
pub struct ControlSession<L> {
    link: L,
    pub path: ControlPath,
    pub liveness: Liveness,
    /// The search for the path's MTU, if it is enabled.
    path_mtu: Option<PathMtu>,
    /// When the last session was made.
    session_at: Option<Time>,
    /// The change of our key, until an epoch is made with the new one.
    key_change: Option<KeyChange>,
    key_unanswered: bool,
}

/// Returns the delay of a role's first handshake.
fn first_wait(role: Role) -> Duration {
    match role {
        Role::Initiator => Duration::ZERO,
        Role::Responder => RESPONDER_WAIT,
    }
}

impl<L: ControlLink> ControlSession<L> {
    pub fn new(config: &PeerConfig, link: L, now: Time, out: &mut Outbox) -> Self {
        out.timers.set(Timer::LinkTick, Some(now));
        out.timers.set(Timer::Handshake, Some(now + first_wait(config.role)));
        let (path, liveness) = (ControlPath::new(config.endpoint), Liveness::new(config.liveness, now));
        let (key_change, key_unanswered) = (None, false);
        Self { link, path, liveness, path_mtu: None, session_at: None, key_change, key_unanswered }
    }

    /// Returns the time since the handshake of the session in use; `None` without one.
    pub fn age(&self) -> Option<Duration> {
        self.link.session_age()
    }

    pub fn is_up(&self) -> bool {
        self.age().is_some()
    }

    /// Returns the time since the last handshake, also if its session has ended.
    pub fn handshake_ago(&self, now: Time) -> Option<Duration> {
        self.session_at.map(|at| now.since(at))
    }

    /// Passes a datagram through the session.
    pub fn on_datagram(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        configured: Option<SocketAddr>,
        now: Time,
        out: &mut Outbox,
    ) -> SessionInput {
        let output = self.link.receive(from.ip(), datagram);
        let lost = self.is_lost(now) && self.path.endpoint != Some(from);
        let others = if lost { self.path.others(configured) } else { Vec::new() };
        out.drops.control += u64::from(output.dropped);
        if output.authenticated {
            self.liveness.on_received(now);
            self.path.initiations = 0;
            if self.path.set_endpoint(from) {
                self.path_moved(now);
                out.emit(PeerEvent::Roamed { endpoint: from });
            }
        }
        let LinkOutput {
            datagrams,
            packets,
            session,
            new_session,
            answered,
            stale_start,
            displacing_start,
            switched,
            ..
        } = output;
        // Replies return to the datagram's source, even a cookie to a sender that is not authenticated yet.
        datagrams.into_iter().for_each(|datagram| out.transmit(from, datagram));
        if stale_start || displacing_start {
            self.initiate_back(stale_start, from, now, out);
        }
        if new_session {
            out.channel.session_started(now);
            out.timers.set(Timer::Handshake, None);
            self.session_at = Some(now);
            self.key_unanswered = false;
            self.path.restart_calls();
            self.liveness.on_new_session();
            self.path_used(now);
        }
        // A NAT may answer from another address than the one that was called.
        let found_at = match others.contains(&from) {
            true => Some(from),
            false => configured.filter(|configured| others.contains(configured)),
        };
        let found_at = found_at.filter(|_| new_session && answered);
        SessionInput { session, packets, new_session, found_at, switched }
    }

    /// Whether nothing came for a while, so that the peer may be at another endpoint.
    fn is_lost(&self, now: Time) -> bool {
        now.since(self.liveness.quiet_since()) >= LOST_AFTER
    }

    /// Initiates a handshake in return for an initiation of the peer's key that starts nothing, at most once
    /// a second: a repetition thus costs little, and for a peer whose clock went back, or another gateway
    /// with its key, only our handshake helps, since it carries our time. It goes to the endpoint that we
    /// know and to the one that the initiation came from.
    fn initiate_back(&mut self, stale: bool, from: SocketAddr, now: Time, out: &mut Outbox) {
        if !self.path.on_stale_initiation(now) {
            return;
        }
        if stale && self.is_lost(now) && self.path.report_stale(now) {
            out.emit(PeerEvent::ClockSetBack { detail: CLOCK_SET_BACK.to_owned() });
        }
        for to in self.path.endpoint.into_iter().chain((self.path.endpoint != Some(from)).then_some(from)) {
            if let Some(datagram) = self.link.start() {
                out.transmit(to, datagram);
            }
        }
    }

    /// Returns the greatest time in an initiation of the peer.
    pub fn greatest_initiations(&self) -> Vec<([u8; 32], Option<Tai64n>)> {
        self.link.greatest_initiations()
    }

    pub fn on_link_tick(&mut self, role: Role, now: Time, out: &mut Outbox) {
        let output = self.link.tick();
        if let Some(to) = self.path.endpoint {
            output.datagrams.into_iter().for_each(|datagram| out.transmit(to, datagram));
        }
        if out.timers.get(Timer::Handshake).is_none() {
            if !self.is_up() {
                out.timers.set(Timer::Handshake, Some(now + first_wait(role)));
            } else if self.liveness.silence().is_some() {
                out.timers.set(Timer::Handshake, Some(now + SILENT_WAIT));
            }
        }
        out.timers.set(Timer::LinkTick, Some(now + LINK_TICK_INTERVAL));
    }

    /// Calls a peer that is silent, or with which there is no session: initiates handshakes with every
    /// endpoint that is known, one after the other while there is no session. Pings it in a session that is
    /// up, and sets the timer for the next call.
    pub fn call(
        &mut self,
        configured: Option<SocketAddr>,
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        let up = self.is_up();
        if up && self.liveness.silence().is_none() {
            return;
        }
        if !self.path.is_calling() {
            self.path.begin_call(configured);
            if let Some(to) = self.path.endpoint {
                let initiations = self.link.start().into_iter().chain(self.link.start_others());
                initiations.for_each(|datagram| out.transmit(to, datagram));
            }
            if up {
                self.send_ping(1, now, out, rng);
            }
        } else {
            self.call_next(out);
        }
        // A session that fell silent had a path, which fails now, so all endpoints are tried at once.
        while up && self.path.is_calling() {
            self.call_next(out);
        }
        let wait = if self.path.is_calling() { NEXT_ENDPOINT_WAIT } else { self.path.retry_interval() };
        out.timers.set(Timer::Handshake, Some(now + wait));
    }

    /// Sends an initiation to the next of the other endpoints.
    fn call_next(&mut self, out: &mut Outbox) {
        if let Some((to, datagram)) = self.path.next_call(|| self.link.start()) {
            out.transmit(to, datagram);
            self.link.start_others().into_iter().for_each(|datagram| out.transmit(to, datagram));
        }
    }

    /// Sets our key and the peer's by the config. With a new one of ours the peer is called at once; the
    /// former one stays in use until it answers.
    pub fn set_keys(&mut self, config: &PeerConfig, now: Time, out: &mut Outbox) {
        self.link.set_keys(&config.local, &config.remotes());
        self.key_change = match (self.link.holds_former_key(), self.key_change.take()) {
            (true, None) => Some(KeyChange::new(now)),
            (true, change) => change,
            (false, _) => None,
        };
        out.timers.set(Timer::KeyChange, self.key_change.as_ref().map(|_| now));
    }

    /// Returns the keys in use, if the link has several.
    pub fn keys(&self) -> Option<LinkKeys> {
        self.link.keys()
    }

    /// Whether our former key is still held.
    pub fn holds_former_key(&self) -> bool {
        self.link.holds_former_key()
    }

    /// Whether our new key is in use, and an epoch with it is awaited.
    pub fn awaits_epoch(&self) -> bool {
        self.key_change.is_some() && !self.link.holds_former_key()
    }

    /// Whether the peer does not answer our new key, while the former one is erased.
    pub fn key_unanswered(&self) -> bool {
        self.key_unanswered && !self.is_up()
    }

    /// Ends the change of our key: an epoch is made with it.
    pub fn key_changed(&mut self, out: &mut Outbox) {
        self.key_change = None;
        out.timers.set(Timer::KeyChange, None);
    }

    /// Calls the peer with our new key, or ends the former one after its time. Returns whether that was in
    /// use.
    pub fn on_key_change(&mut self, now: Time, out: &mut Outbox) -> bool {
        let Some(change) = &mut self.key_change else { return false };
        if change.until <= now {
            let unanswered = self.link.holds_former_key();
            self.link.drop_former_key();
            self.key_change = None;
            self.key_unanswered |= unanswered;
            return unanswered;
        }
        if let Some(to) = self.path.endpoint {
            self.link.start_others().into_iter().for_each(|datagram| out.transmit(to, datagram));
        }
        out.timers.set(Timer::KeyChange, Some(change.next_call(now)));
        false
    }

    /// Initiates a handshake although a session is up.
    pub fn renew(&mut self, out: &mut Outbox) {
        if let Some(to) = self.path.endpoint
            && let Some(datagram) = self.link.start()
        {
            out.transmit(to, datagram);
        }
    }

    pub fn check_liveness(
        &mut self,
        configured: Option<SocketAddr>,
        now: Time,
        out: &mut Outbox,
        rng: &mut dyn CryptoRng,
    ) {
        match self.liveness.poll(self.is_up(), now) {
            LivenessStep::Nothing => {}
            LivenessStep::Ping(copies) => self.send_ping(copies, now, out, rng),
            LivenessStep::Silent => {
                self.path.restart_calls();
                self.call(configured, now, out, rng);
            }
        }
    }

    fn send_ping(&mut self, copies: u8, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        let body = self.liveness.ping(now, rng).to_bytes();
        (0..copies).for_each(|_| out.channel.send_once(MessageType::Ping, &body, rng));
    }

    /// Answers a `Ping`, and takes note of what it reports.
    pub fn on_ping(&mut self, body: &[u8], now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        let Ok(ping) = Ping::parse(body) else {
            out.drops.malformed += 1;
            return;
        };
        self.liveness.on_report(ping.heard_ago, now);
        let pong = self.liveness.pong(&ping, now);
        out.channel.send_once(MessageType::Pong, &pong.to_bytes(), rng);
    }

    pub fn on_pong(&mut self, body: &[u8], now: Time, out: &mut Outbox) {
        let Ok(pong) = Ping::parse(body) else {
            out.drops.malformed += 1;
            return;
        };
        if !out.channel.on_pong(&pong.nonce)
            && let Some(took) = self.liveness.on_pong(&pong, now)
        {
            out.channel.on_round_trip(took);
        }
    }

    /// Records that the peer stops.
    pub fn on_bye(&mut self, now: Time, out: &mut Outbox) {
        self.liveness.on_bye(now);
        self.path.restart_calls();
        out.timers.set(Timer::Handshake, Some(now + MIN_CALL_WAIT));
    }

    /// Sets the peer's endpoint, as the config or the data path names it.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr, now: Time) -> bool {
        let moved = self.path.set_endpoint(endpoint);
        if moved {
            self.path_moved(now);
        }
        moved
    }

    /// Sets another endpoint from the config.
    pub fn reconfigure_endpoint(&mut self, endpoint: SocketAddr, now: Time) {
        self.path.set_endpoint(endpoint);
        self.path_moved(now);
    }

    /// Sends due packets through the session.
    pub fn flush(&mut self, now: Time, out: &mut Outbox) {
        let Some(to) = self.path.endpoint else { return };
        if !self.is_up() {
            return;
        }
        out.channel.flush(now);
        while let Some(packet) = out.channel.next_packet() {
            if let Some(datagram) = self.link.send(&packet) {
                out.transmit(to, datagram);
            }
        }
    }

    /// Starts or stops the measurement of the path's MTU.
    pub fn measure_path(&mut self, measure: bool, now: Time, out: &mut Outbox) {
        match (measure, &self.path_mtu) {
            (true, None) => self.path_mtu = Some(PathMtu::new(now)),
            (false, Some(_)) => {
                self.path_mtu = None;
                out.timers.set(Timer::PathMtu, None);
            }
            _ => {}
        }
    }

    fn path_moved(&mut self, now: Time) {
        if let Some(path_mtu) = &mut self.path_mtu {
            path_mtu.moved(now);
        }
    }

    /// Records that packets are sent over the path.
    pub fn path_used(&mut self, now: Time) {
        if let Some(path_mtu) = &mut self.path_mtu {
            path_mtu.sent(now);
        }
    }

    /// Processes acknowledged probes, sends due ones, and reports a changed MTU.
    pub fn poll_path_mtu(&mut self, now: Time, out: &mut Outbox, rng: &mut dyn CryptoRng) {
        let ready = self.is_up() && self.path.endpoint.is_some();
        let Some(path_mtu) = &mut self.path_mtu else { return };
        let before = path_mtu.mtu();
        while let Some(id) = out.channel.take_passed() {
            path_mtu.acknowledged(&id, now);
        }
        // Without a session no probe can be sent. The next session calls this function again.
        if ready {
            for size in path_mtu.due(now, out.channel.round_trip()) {
                let id = out.channel.probe(size.into(), rng);
                path_mtu.probed(id, size);
            }
            out.timers.set(Timer::PathMtu, Some(path_mtu.next()));
        } else {
            out.timers.set(Timer::PathMtu, None);
        }
        let mtu = path_mtu.mtu();
        if mtu != before {
            out.emit(PeerEvent::PathMtu { mtu });
        }
    }
}
