//! The control session: a trait, and its implementation on boringtun's `Tunn` (Noise_IKpsk2, as WireGuard
//! uses it). boringtun reads the clock and the system's randomness itself. The trait lets all other code be
//! tested without it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_secret::with_scrubbed_stack;
use qvpn_types::{PeerNumber, Time};

use super::demux::control_index;
use super::initiation::{Tai64n, initiation_time};
use super::numbers::SessionNumbers;
use super::token_bucket::{Bucket, Rate};
use crate::wire::limits::MAX_PROBE;

/// The result of a datagram or of a tick.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LinkOutput {
    /// Datagrams to send to the peer.
    pub datagrams: Vec<Vec<u8>>,
    /// Packets that the session delivered.
    pub packets: Vec<Vec<u8>>,
    /// The number of that session, higher than those of earlier ones. Sessions of parallel handshakes share
    /// one.
    pub session: u64,
    /// Whether the datagram was made with the peer's key and is not repeated. Never set for an initiation.
    pub authenticated: bool,
    /// Whether a new session is in use.
    pub new_session: bool,
    /// Whether the peer answered our initiation.
    pub answered: bool,
    /// Whether the session expired and was reset.
    pub expired: bool,
    /// Whether the peer's key made a handshake initiation whose time is before that of an earlier one: it is
    /// repeated, or the peer's clock was set back. It starts nothing; a handshake from this side helps.
    pub stale_start: bool,
    /// Whether the peer's key made a handshake initiation whose session would displace the one in use, since
    /// too many before it were never followed by a packet. It starts nothing, as above.
    pub displacing_start: bool,
    /// Whether the datagram was dropped: it is not authentic, not for a session in use, or repeated.
    pub dropped: bool,
    /// Whether the session of other keys is in use now; see [`ControlLink::keys`].
    pub switched: bool,
}

/// The keys of a session in use.
#[derive(Clone)]
pub struct LinkKeys {
    pub local: Arc<SecretIdentity>,
    pub remote: PublicIdentity,
}

/// A session that authenticates the peer by its X25519 key and carries small packets.
pub trait ControlLink {
    /// Processes a datagram that [`Demux::classify`](crate::session::Demux::classify) assigned to this peer.
    fn receive(&mut self, from: IpAddr, datagram: &[u8]) -> LinkOutput;
    /// Seals a packet of at most [`MAX_PROBE`] bytes; `None` without a session.
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>>;
    /// Returns a handshake initiation, also while another handshake is under way.
    fn start(&mut self) -> Option<Vec<u8>>;
    /// Runs the session's timers. Call it every 250 ms.
    fn tick(&mut self) -> LinkOutput;
    /// Returns the time since the handshake of the session in use; `None` without one.
    fn session_age(&self) -> Option<Duration>;
    /// Drops all sessions, but keeps the times of initiations.
    fn reset(&mut self);
    /// Returns the greatest time in an initiation of the peer, to be kept over restarts; `None` before the
    /// first.
    fn greatest_initiations(&self) -> Vec<([u8; 32], Option<Tai64n>)> {
        Vec::new()
    }
    /// Sets our key and those of the peer. The keys in use stay in use until a session of others is, but the
    /// peer's only if it is among `remotes`.
    fn set_keys(&mut self, _local: &Arc<SecretIdentity>, _remotes: &[PublicIdentity]) {}
    /// Returns the keys in use; `None` if the link always uses those that it was made with.
    fn keys(&self) -> Option<LinkKeys> {
        None
    }
    /// Returns handshake initiations with all other keys that may come into use.
    fn start_others(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }
    /// Whether a former key of ours is still held.
    fn holds_former_key(&self) -> bool {
        false
    }
    /// Erases a former key of ours with its sessions.
    fn drop_former_key(&mut self) {}
}

pub struct WireGuardLink {
    tunn: Tunn,
    local: Arc<SecretIdentity>,
    remote: [u8; 32],
    /// The upper 24 bits of the receiver indices.
    index: u32,
    limiter: Arc<RateLimiter>,
    /// The receiver indices of sessions that we answered. Each is in use once the peer sends in it.
    answered: VecDeque<u32>,
    /// The receiver index of the session that came into use last.
    confirmed: Option<u32>,
    /// The last receiver index that the `Tunn` assigned.
    last_index: u32,
    /// The greatest time in an initiation of the peer, over all resets.
    greatest: Option<Tai64n>,
    /// Limits fresh initiations; by the wall clock.
    initiations: Bucket,
    /// Whether the peer has sent in a session since the last reset.
    met: bool,
    numbers: SessionNumbers,
}

/// The number of sessions that a `Tunn` keeps, each at the place of its receiver index modulo this number.
const MAX_SESSIONS: u32 = 8;
/// The maximum lead of a peer's clock for its time to be kept. One handshake from a clock in 2038 must not
/// make us refuse that peer until then.
const MAX_CLOCK_LEAD: Duration = Duration::from_secs(60);
/// The rate of fresh initiations of one peer; each costs three key agreements.
const INITIATION_RATE: Rate = Rate { a_second: 4, burst: 16 };

impl WireGuardLink {
    /// Creates a session with `remote` whose receiver indices contain `number`.
    #[must_use]
    pub fn new(local: Arc<SecretIdentity>, remote: &PublicIdentity, number: PeerNumber) -> Self {
        Self::with_slot(local, remote, number, 0)
    }

    /// Creates one of several links with a peer: each has a `slot` of its own in its receiver indices.
    pub(super) fn with_slot(
        local: Arc<SecretIdentity>,
        remote: &PublicIdentity,
        number: PeerNumber,
        slot: u8,
    ) -> Self {
        let index = control_index(number, slot);
        // This limiter limits nothing: the `HandshakeLimiter` does, for all sessions together.
        let limiter = Arc::new(RateLimiter::new(&PublicKey::from(*local.public().x25519()), u64::MAX));
        let tunn = tunn(&local, remote.x25519(), index, &limiter);
        let remote = *remote.x25519();
        Self {
            tunn,
            local,
            remote,
            index,
            limiter,
            answered: VecDeque::new(),
            confirmed: None,
            last_index: 0,
            greatest: None,
            initiations: Bucket::default(),
            met: false,
            numbers: SessionNumbers::default(),
        }
    }

    /// Starts with this as the greatest time in an initiation of the peer, from before a restart.
    #[must_use]
    pub fn with_greatest_initiation(self, greatest: Option<Tai64n>) -> Self {
        Self { greatest, ..self }
    }

    pub(super) fn set_greatest_initiation(&mut self, greatest: Option<Tai64n>) {
        self.greatest = greatest;
    }

    /// Decides whether an initiation may start a session; returns the output if not.
    fn refuse_initiation(&mut self, datagram: &[u8], since_epoch: Duration) -> Option<LinkOutput> {
        let dropped = LinkOutput { dropped: true, ..LinkOutput::default() };
        let Some(time) = initiation_time(datagram, &self.local, &self.remote) else { return Some(dropped) };
        // Sessions that the peer never used must not displace the one that it uses.
        let next_place = (self.last_index.wrapping_add(1)) % MAX_SESSIONS;
        let displaces = self.confirmed.is_some_and(|index| index % MAX_SESSIONS == next_place);
        if self.greatest == Some(time) {
            return Some(dropped);
        }
        if self.greatest.is_some_and(|greatest| time < greatest) {
            return Some(LinkOutput { stale_start: true, ..dropped });
        }
        if displaces {
            return Some(LinkOutput { displacing_start: true, ..dropped });
        }
        let now = Time::from_nanos(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX));
        self.initiations.forgive(now, INITIATION_RATE);
        if !self.initiations.take(now, INITIATION_RATE) {
            return Some(dropped);
        }
        if time <= Tai64n::from_unix(since_epoch + MAX_CLOCK_LEAD) {
            self.greatest = Some(time);
        }
        None
    }

    /// Notes the receiver index in our initiation.
    fn note_index(&mut self, datagram: &[u8]) {
        if datagram.first() == Some(&1) {
            self.last_index = field(datagram, 4).unwrap_or(self.last_index);
            self.numbers.on_initiated(self.last_index);
        }
    }

    fn made(&mut self, index: u32) {
        self.answered.retain(|other| other % MAX_SESSIONS != index % MAX_SESSIONS);
        self.numbers.on_made(index, MAX_SESSIONS);
    }

    /// Records which session `datagram` belongs to, and whether it brought one into use.
    fn follow_sessions(&mut self, datagram: &[u8], out: &mut LinkOutput) {
        // This is our response to an initiation, which may be an old one: a session that was reset has
        // forgotten the time of the last one. What the peer sends in the new session proves that the
        // initiation is fresh.
        let answer = out.datagrams.first().filter(|d| d.first() == Some(&2));
        if let Some(index) = answer.and_then(|answer| field(answer, 4)) {
            self.made(index);
            self.answered.push_back(index);
            self.last_index = index;
        } else if out.new_session {
            // The peer's response to our initiation.
            out.answered = true;
            if let Some(index) = field(datagram, 8) {
                self.made(index);
                self.numbers.on_used(index);
                self.confirmed = Some(index);
            }
        } else if out.authenticated
            && let Some(index) = field(datagram, 4)
        {
            out.session = self.numbers.of(index);
            if let Some(at) = self.answered.iter().position(|answered| *answered == index) {
                // Earlier ones that the peer never used are given up.
                self.answered.drain(..=at);
                self.numbers.on_used(index);
                self.confirmed = Some(index);
                out.new_session = true;
            }
        }
        self.met |= out.new_session;
    }
}

/// Returns the time since 1970-01-01 UTC by the wall clock, from which boringtun makes the times of our own
/// initiations. Zero before 1970.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Returns a number in a datagram's header.
fn field(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The session's own PSK stays unused, since its `Debug` would print it. Our PSK goes into the key schedule.
fn tunn(local: &SecretIdentity, remote: &[u8; 32], index: u32, limiter: &Arc<RateLimiter>) -> Tunn {
    with_scrubbed_stack(|| {
        let secret = StaticSecret::from(*local.x25519().expose());
        Tunn::new(secret, PublicKey::from(*remote), None, None, index, Some(limiter.clone()))
    })
}

/// Adds one result to `out`. Returns whether more results may follow.
fn take(result: TunnResult<'_>, out: &mut LinkOutput) -> bool {
    match result {
        TunnResult::WriteToNetwork(datagram) => {
            // The empty packet that follows the peer's response.
            if datagram.first() == Some(&4) {
                out.authenticated = true;
                out.new_session = true;
            }
            out.datagrams.push(datagram.to_vec());
            true
        }
        TunnResult::WriteToTunnelV6(packet, _) => {
            out.packets.push(packet.to_vec());
            out.authenticated = true;
            false
        }
        TunnResult::WriteToTunnelV4(..) | TunnResult::Done | TunnResult::Err(_) => false,
    }
}

impl ControlLink for WireGuardLink {
    fn receive(&mut self, from: IpAddr, datagram: &[u8]) -> LinkOutput {
        let mut out = LinkOutput::default();
        let is_data = datagram.first() == Some(&4);
        let mut buffer = [0u8; 2048];
        if datagram.len() > buffer.len() {
            out.dropped = true;
            return out;
        }
        if datagram.first() == Some(&1)
            && let Some(refused) = self.refuse_initiation(datagram, since_epoch())
        {
            return refused;
        }
        let result = with_scrubbed_stack(|| {
            let result = self.tunn.decapsulate(Some(from), datagram, &mut buffer);
            // `Done` for a data packet is an authentic empty one.
            if is_data && matches!(result, TunnResult::Done) {
                out.authenticated = true;
            }
            out.stale_start = matches!(result, TunnResult::Err(WireGuardError::WrongTai64nTimestamp));
            out.dropped = matches!(result, TunnResult::Err(_));
            take(result, &mut out)
        });
        let mut more = result;
        while more {
            let result = self.tunn.decapsulate(None, &[], &mut buffer);
            more = take(result, &mut out);
        }
        self.follow_sessions(datagram, &mut out);
        out
    }

    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        // Without a session, boringtun would queue the packet. Our messages are retransmitted anyway.
        self.session_age()?;
        let mut buffer = [0u8; MAX_PROBE + 64];
        if packet.len() > MAX_PROBE {
            return None;
        }
        match self.tunn.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.to_vec()),
            _ => None,
        }
    }

    fn start(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0u8; 256];
        let datagram =
            with_scrubbed_stack(|| match self.tunn.format_handshake_initiation(&mut buffer, true) {
                TunnResult::WriteToNetwork(datagram) => Some(datagram.to_vec()),
                _ => None,
            })?;
        self.note_index(&datagram);
        Some(datagram)
    }

    fn tick(&mut self) -> LinkOutput {
        self.numbers.on_tick();
        let mut out = LinkOutput::default();
        let mut buffer = [0u8; 256];
        match self.tunn.update_timers(&mut buffer) {
            TunnResult::Err(_) => {
                self.reset();
                out.expired = true;
            }
            TunnResult::WriteToNetwork(datagram) => {
                let datagram = datagram.to_vec();
                self.note_index(&datagram);
                out.datagrams.push(datagram);
            }
            _ => {}
        }
        out
    }

    fn session_age(&self) -> Option<Duration> {
        // boringtun may consider a session in use in which the peer never sent anything.
        self.tunn.time_since_last_handshake().filter(|_| self.met)
    }

    fn reset(&mut self) {
        self.tunn = tunn(&self.local, &self.remote, self.index, &self.limiter);
        self.answered.clear();
        self.confirmed = None;
        self.last_index = 0;
        self.met = false;
        self.numbers.reset();
    }

    fn greatest_initiations(&self) -> Vec<([u8; 32], Option<Tai64n>)> {
        vec![(self.remote, self.greatest)]
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    fn pair() -> [WireGuardLink; 2] {
        let [a, b] =
            [1, 2].map(|seed| Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed))));
        let link = |own: &Arc<SecretIdentity>, other: &SecretIdentity, number| {
            WireGuardLink::new(own.clone(), other.public(), PeerNumber(number))
        };
        [link(&a, &b, 1), link(&b, &a, 2)]
    }

    #[test]
    fn the_time_of_an_initiation_is_the_one_that_boringtun_wrote() {
        let [mut a, mut b] = pair();
        let before = Tai64n::from_unix(since_epoch());
        let initiation = a.start().unwrap();
        b.receive(IpAddr::from([192, 0, 2, 1]), &initiation);
        let time = b.greatest.unwrap();
        assert!(before <= time && time <= Tai64n::from_unix(since_epoch() + Duration::from_secs(1)));
    }

    #[test]
    fn a_time_far_ahead_of_our_clock_is_accepted_and_not_kept() {
        let [mut a, mut b] = pair();
        let initiation = a.start().unwrap();
        let behind = |seconds| since_epoch() - Duration::from_secs(seconds);
        for year in 1..=3 {
            assert_eq!(b.refuse_initiation(&initiation, behind(year * 31_536_000)), None);
            assert_eq!(b.greatest, None);
        }
        assert_eq!(b.refuse_initiation(&initiation, behind(61)), None);
        assert_eq!(b.greatest, None);
        assert_eq!(b.refuse_initiation(&initiation, behind(58)), None);
        assert!(b.greatest.is_some());
        assert!(b.refuse_initiation(&initiation, since_epoch()).unwrap().dropped);
    }

    #[test]
    fn a_time_from_before_a_restart_counts() {
        let [mut a, b] = pair();
        let old = a.start().unwrap();
        let new = a.start().unwrap();
        let kept = initiation_time(&new, &b.local, &b.remote);
        let mut b = b.with_greatest_initiation(kept);
        let from = IpAddr::from([192, 0, 2, 1]);
        let out = b.receive(from, &old);
        assert!(out.stale_start && out.dropped && out.datagrams.is_empty());
        let out = b.receive(from, &new);
        assert!(!out.stale_start && out.dropped, "the last one, repeated");
        assert_eq!(b.receive(from, &a.start().unwrap()).datagrams.len(), 1);
    }

    #[test]
    fn initiations_are_limited_and_a_clock_that_goes_back_does_not_stop_them() {
        let [mut a, mut b] = pair();
        let now = since_epoch();
        let mut admitted =
            |at| (0..30).filter(|_| b.refuse_initiation(&a.start().unwrap(), at).is_none()).count();
        assert_eq!(admitted(now), 16);
        assert_eq!(admitted(now + Duration::from_secs(1)), 4);
        assert_eq!(admitted(now - Duration::from_secs(86_400)), 16);
    }
}
