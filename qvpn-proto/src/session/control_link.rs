//! The control session: a trait, and its implementation on boringtun's `Tunn` (Noise_IKpsk2, as WireGuard
//! uses it). boringtun reads the clock and the system's randomness itself. The trait lets all other code be
//! tested without it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_secret::with_scrubbed_stack;
use qvpn_types::PeerNumber;

use crate::wire::limits::MAX_PROBE;

/// The result of a datagram or of a tick.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LinkOutput {
    /// Datagrams to send to the peer.
    pub datagrams: Vec<Vec<u8>>,
    /// Packets that the session delivered.
    pub packets: Vec<Vec<u8>>,
    /// The number of that session, higher than those of all earlier ones.
    pub session: u64,
    /// Whether the datagram was made with the peer's key and is not repeated. Never set for an initiation.
    pub authenticated: bool,
    /// Whether a new session is in use.
    pub new_session: bool,
    /// Whether the peer answered our initiation.
    pub answered: bool,
    /// Whether the session expired and was reset.
    pub expired: bool,
    /// Whether the peer's key made a handshake initiation whose time is not later than that of an earlier
    /// one: it is repeated, or the peer's clock was set back.
    pub stale_start: bool,
    /// Whether the datagram was dropped: it is not authentic, not for a session in use, or repeated.
    pub dropped: bool,
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
    /// Forgets all sessions.
    fn reset(&mut self);
}

pub struct WireGuardLink {
    tunn: Tunn,
    local: Arc<SecretIdentity>,
    remote: [u8; 32],
    number: PeerNumber,
    limiter: Arc<RateLimiter>,
    /// The receiver index of the session that we answered. It is in use once the peer sends in it.
    answered: Option<u32>,
    /// Whether the peer has sent in a session since the last reset.
    met: bool,
    /// The sessions that the `Tunn` may still hold, by our receiver index, with their numbers.
    sessions: VecDeque<(u32, u64)>,
    made: u64,
}

/// The number of sessions that a `Tunn` keeps.
const MAX_SESSIONS: usize = 8;

impl WireGuardLink {
    /// Creates a session with `remote` whose receiver indices contain `number`.
    #[must_use]
    pub fn new(local: Arc<SecretIdentity>, remote: &PublicIdentity, number: PeerNumber) -> Self {
        // This limiter limits nothing: the `HandshakeLimiter` does, for all sessions together.
        let limiter = Arc::new(RateLimiter::new(&PublicKey::from(*local.public().x25519()), u64::MAX));
        let tunn = tunn(&local, remote.x25519(), number, &limiter);
        let remote = *remote.x25519();
        let sessions = VecDeque::with_capacity(MAX_SESSIONS);
        Self { tunn, local, remote, number, limiter, answered: None, met: false, sessions, made: 0 }
    }

    fn made(&mut self, index: u32) {
        if self.sessions.len() == MAX_SESSIONS {
            self.sessions.pop_front();
        }
        self.made += 1;
        self.sessions.push_back((index, self.made));
    }

    /// Records which session `datagram` belongs to, and whether it brought one into use.
    fn follow_sessions(&mut self, datagram: &[u8], out: &mut LinkOutput) {
        // This is our response to an initiation, which may be an old one: a session that was reset has
        // forgotten the time of the last one. What the peer sends in the new session proves that the
        // initiation is fresh.
        let answer = out.datagrams.first().filter(|d| d.first() == Some(&2));
        if let Some(index) = answer.and_then(|answer| field(answer, 4)) {
            self.made(index);
            self.answered = Some(index);
        } else if out.new_session {
            // The peer's response to our initiation.
            out.answered = true;
            if let Some(index) = field(datagram, 8) {
                self.made(index);
            }
            self.answered = None;
        } else if out.authenticated
            && let Some(index) = field(datagram, 4)
        {
            out.session = self.sessions.iter().rfind(|(i, _)| *i == index).map_or(0, |(_, number)| *number);
            if self.answered == Some(index) {
                self.answered = None;
                out.new_session = true;
            }
        }
        self.met |= out.new_session;
    }
}

/// Returns a number in a datagram's header.
fn field(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The session's own PSK stays unused, since its `Debug` would print it. Our PSK goes into the key schedule.
fn tunn(local: &SecretIdentity, remote: &[u8; 32], number: PeerNumber, limiter: &Arc<RateLimiter>) -> Tunn {
    with_scrubbed_stack(|| {
        let secret = StaticSecret::from(*local.x25519().expose());
        Tunn::new(secret, PublicKey::from(*remote), None, None, u32::from(number.0), Some(limiter.clone()))
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
        with_scrubbed_stack(|| match self.tunn.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.to_vec()),
            _ => None,
        })
    }

    fn tick(&mut self) -> LinkOutput {
        let mut out = LinkOutput::default();
        let mut buffer = [0u8; 256];
        match self.tunn.update_timers(&mut buffer) {
            TunnResult::Err(_) => {
                self.reset();
                out.expired = true;
            }
            TunnResult::WriteToNetwork(datagram) => out.datagrams.push(datagram.to_vec()),
            _ => {}
        }
        out
    }

    fn session_age(&self) -> Option<Duration> {
        // boringtun may consider a session in use in which the peer never sent anything.
        self.tunn.time_since_last_handshake().filter(|_| self.met)
    }

    fn reset(&mut self) {
        self.tunn = tunn(&self.local, &self.remote, self.number, &self.limiter);
        self.answered = None;
        self.met = false;
        self.sessions.clear();
    }
}
