//! The control session: a trait, and its implementation on boringtun's `Tunn` (Noise_IKpsk2 as WireGuard runs it).
//! boringtun reads the clock and the system's randomness itself, so it stands behind the trait and the rest is tested
//! without it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, digest::consts::U16};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_secret::with_scrubbed_stack;

use crate::wire::limits::MAX_PROBE;

/// What a session made of a datagram or of a tick.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LinkOutput {
    /// Datagrams to send to the peer.
    pub datagrams: Vec<Vec<u8>>,
    /// Packets that came out of a session.
    pub packets: Vec<Vec<u8>>,
    /// Which session that was: each that is made has a higher number than those before it.
    pub session: u64,
    /// The peer's key made the datagram, and it is no repetition. Never said of a start.
    pub authenticated: bool,
    /// A new session is in use.
    pub new_session: bool,
    /// The session gave up and was made anew.
    pub expired: bool,
    /// The peer's key made a start of a handshake that carries no later time than one before: a repetition, or the peer's
    /// clock was set back.
    pub stale_start: bool,
    /// The datagram came to nothing: the peer's key did not make it, not for a session that is in use, or it came before.
    pub dropped: bool,
}

/// A session that authenticates the peer by its X25519 key and carries small packets.
pub trait ControlLink {
    /// Takes a datagram that [`Gate::sort`] gave to this peer.
    fn receive(&mut self, from: IpAddr, datagram: &[u8]) -> LinkOutput;
    /// Seals a packet of at most [`MAX_PROBE`] bytes; `None` without a session.
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>>;
    /// The first message of a new handshake, whatever is under way.
    fn start(&mut self) -> Option<Vec<u8>>;
    /// To be called every 250 ms.
    fn tick(&mut self) -> LinkOutput;
    /// Since the handshake of the session in use; `None` without one.
    fn session_age(&self) -> Option<Duration>;
    /// Forgets all sessions.
    fn reset(&mut self);
}

/// Where a datagram belongs.
#[derive(Debug, PartialEq, Eq)]
pub enum Sorted {
    /// To the session of the peer with this number.
    Peer(u16),
    /// The first message of a handshake, by the holder of this X25519 key.
    Handshake {
        /// The sender's static key, as it says; the session proves it.
        x25519: [u8; 32],
    },
    /// An answer that proves an address under load (a cookie), to be sent back.
    Reply(Vec<u8>),
    /// No message of a control session, or not made for our key.
    Malformed,
}

/// Stands before all control sessions of a daemon: one rate limiter, and the table of who gets what.
pub struct Gate {
    local: Arc<SecretIdentity>,
    limiter: Arc<RateLimiter>,
    mac1_key: [u8; 32],
}

impl Gate {
    /// A gate for a daemon with `peers` peers: its limiter lets each start several handshakes a second.
    #[must_use]
    pub fn new(local: Arc<SecretIdentity>, peers: usize) -> Self {
        let public = PublicKey::from(*local.public().x25519());
        // Each start passes the limiter twice: here, and in the session.
        let limit = 100 + 20 * u64::try_from(peers).unwrap_or(0);
        let mac1_key = mac1_key(local.public());
        Self { limiter: Arc::new(RateLimiter::new(&public, limit)), local, mac1_key }
    }

    /// A cheap check for the lane, before anything is queued: whether a handshake message was made for our key.
    /// Messages of other types pass.
    pub fn mac1_filter(&self) -> impl Fn(&[u8]) -> bool + Send + Sync + 'static {
        let key = self.mac1_key;
        move |datagram| match datagram.first_chunk().map(|t| u32::from_le_bytes(*t)) {
            Some(1 | 2) => mac1_is_right(&key, datagram),
            _ => true,
        }
    }

    /// Says whose datagram it is.
    #[must_use]
    pub fn sort(&self, datagram: &[u8], from: SocketAddr) -> Sorted {
        let Ok(packet) = Tunn::parse_incoming_packet(datagram) else { return Sorted::Malformed };
        let index = match packet {
            Packet::HandshakeInit(_) => return self.sort_handshake(datagram, from),
            Packet::HandshakeResponse(p) => p.receiver_idx,
            Packet::PacketCookieReply(p) => p.receiver_idx,
            Packet::PacketData(p) => p.receiver_idx,
        };
        match peer_of_control_index(index) {
            Some(number) => Sorted::Peer(number),
            None => Sorted::Malformed,
        }
    }

    fn sort_handshake(&self, datagram: &[u8], from: SocketAddr) -> Sorted {
        let mut reply = [0u8; 64];
        match self.limiter.verify_packet(Some(from.ip()), datagram, &mut reply) {
            Ok(Packet::HandshakeInit(init)) => with_scrubbed_stack(|| {
                let secret = StaticSecret::from(*self.local.x25519().expose());
                let public = PublicKey::from(*self.local.public().x25519());
                match parse_handshake_anon(&secret, &public, &init) {
                    Ok(half) => Sorted::Handshake { x25519: half.peer_static_public },
                    Err(_) => Sorted::Malformed,
                }
            }),
            Err(TunnResult::WriteToNetwork(cookie)) => Sorted::Reply(cookie.to_vec()),
            _ => Sorted::Malformed,
        }
    }

    /// To be called once a second: the limiter counts by the second.
    pub fn tick(&self) {
        self.limiter.reset_count();
    }
}

/// The peer's number in a receiver index of a control session; `None` for a data session's, which has the top bit set.
#[must_use]
pub fn peer_of_control_index(index: u32) -> Option<u16> {
    u16::try_from(index >> 8).ok().filter(|n| *n < crate::wire::limits::MAX_PEERS)
}

/// `HASH("mac1----" ‖ public key)`, WireGuard paper section 5.4.4.
fn mac1_key(public: &PublicIdentity) -> [u8; 32] {
    let mut hash = Blake2s256::default();
    hash.update(b"mac1----");
    hash.update(public.x25519());
    hash.finalize_fixed().into()
}

fn mac1_is_right(key: &[u8; 32], datagram: &[u8]) -> bool {
    let Some((message, macs)) = datagram.len().checked_sub(32).and_then(|cut| datagram.split_at_checked(cut))
    else {
        return false;
    };
    let Ok(mut mac) = <Blake2sMac<U16> as KeyInit>::new_from_slice(key) else { return false };
    Update::update(&mut mac, message);
    mac.verify_slice(&macs[..16]).is_ok()
}

/// The control session on boringtun.
pub struct WireGuardLink {
    tunn: Tunn,
    local: Arc<SecretIdentity>,
    remote: [u8; 32],
    number: u16,
    limiter: Arc<RateLimiter>,
    /// We answered a handshake; the session with this receiver index is in use once the peer sends in it.
    answered: Option<u32>,
    /// The peer has spoken in a session since the last reset.
    met: bool,
    /// The sessions that the `Tunn` may still know, by our receiver index, with their numbers.
    sessions: VecDeque<(u32, u64)>,
    made: u64,
}

/// As many sessions as a `Tunn` keeps.
const SESSIONS: usize = 8;

impl WireGuardLink {
    /// A session with `remote`, whose receiver indices hold `number`.
    #[must_use]
    pub fn new(remote: &PublicIdentity, number: u16, gate: &Gate) -> Self {
        let (local, limiter) = (gate.local.clone(), gate.limiter.clone());
        let tunn = tunn(&local, remote.x25519(), number, &limiter);
        let remote = *remote.x25519();
        let sessions = VecDeque::with_capacity(SESSIONS);
        Self { tunn, local, remote, number, limiter, answered: None, met: false, sessions, made: 0 }
    }

    fn made(&mut self, index: u32) {
        if self.sessions.len() == SESSIONS {
            self.sessions.pop_front();
        }
        self.made += 1;
        self.sessions.push_back((index, self.made));
    }

    /// Notes which session `datagram` belongs to, and whether one came into use by it.
    fn follow_sessions(&mut self, datagram: &[u8], out: &mut LinkOutput) {
        // Our response to a start. That may be a repetition of an old one, since a session that was made anew has
        // forgotten when the last came: what the peer sends in the session proves it.
        let answer = out.datagrams.first().filter(|d| d.first() == Some(&2));
        if let Some(index) = answer.and_then(|answer| field(answer, 4)) {
            self.made(index);
            self.answered = Some(index);
        } else if out.new_session {
            // The peer's response to our start.
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

/// A number in a datagram's header.
fn field(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The session's own PSK stays unused, since its `Debug` would print it; ours goes into the key schedule.
fn tunn(local: &SecretIdentity, remote: &[u8; 32], number: u16, limiter: &Arc<RateLimiter>) -> Tunn {
    with_scrubbed_stack(|| {
        let secret = StaticSecret::from(*local.x25519().expose());
        Tunn::new(secret, PublicKey::from(*remote), None, None, u32::from(number), Some(limiter.clone()))
    })
}

/// Sorts one result into `out`; whether there may be more to come.
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
        // Without a session boringtun would queue the packet; our messages repeat themselves.
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
        // boringtun may take a session that the peer never spoke in for the one in use.
        self.tunn.time_since_last_handshake().filter(|_| self.met)
    }

    fn reset(&mut self) {
        self.tunn = tunn(&self.local, &self.remote, self.number, &self.limiter);
        self.answered = None;
        self.met = false;
        self.sessions.clear();
    }
}
