//! A control session without cryptography that behaves like WireGuard's. Numbers identify sessions,
//! initiations carry a time that must increase, a datagram is accepted once and unchanged, and a session is
//! replaced after 120 s and expires after 180 s.

use std::collections::{BTreeSet, VecDeque};
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use qvpn_proto::session::{ControlLink, LinkOutput};
use qvpn_types::Time;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;
/// Type, tunnel, session and counter.
pub const HEADER_BYTES: usize = 19;
const MAC_BYTES: usize = 8;
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
const INITIATION_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// State that the simulation and a link share.
#[derive(Default)]
pub struct Shared {
    /// The site's clock, in nanoseconds.
    pub now: AtomicU64,
    /// The offset of the site's wall clock from that clock.
    pub wall: AtomicU64,
    /// The session in use, for tests that send in it; 0 is none.
    pub session: AtomicU64,
}

struct Session {
    id: u64,
    number: u64,
    born: Time,
    ours: bool,
    sent: u64,
    seen: BTreeSet<u64>,
}

pub struct FakeLink {
    tunnel: u16,
    next: u64,
    sessions: VecDeque<Session>,
    made: u64,
    current: Option<u64>,
    /// Initiations that await a response, and the time of the last one.
    started: VecDeque<u64>,
    started_at: Option<Time>,
    /// The time in the peer's last initiation.
    greatest: u64,
    shared: Arc<Shared>,
}

pub fn frame(kind: u8, tunnel: u16, session: u64, count: u64, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&tunnel.to_be_bytes());
    out.extend_from_slice(&session.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(packet);
    let mac = mac(&out);
    out.extend_from_slice(&mac);
    out
}

/// Returns a message of a session, as if one side had sent it.
pub fn in_session(tunnel: u16, session: u64, count: u64, packet: &[u8]) -> Vec<u8> {
    frame(DATA, tunnel, session, count, packet)
}

fn mac(bytes: &[u8]) -> [u8; MAC_BYTES] {
    let mut hash = std::hash::DefaultHasher::new();
    hash.write(bytes);
    hash.finish().to_be_bytes()
}

/// Returns the tunnel of a datagram, for the demux.
pub fn tunnel_of(datagram: &[u8]) -> Option<u16> {
    datagram.get(1..3).map(|b| u16::from_be_bytes(b.try_into().unwrap()))
}

/// Returns the packet in a datagram.
pub fn packet_of(datagram: &[u8]) -> Option<&[u8]> {
    let inner = datagram.get(HEADER_BYTES..datagram.len().checked_sub(MAC_BYTES)?)?;
    (datagram[0] == DATA && !inner.is_empty()).then_some(inner)
}

/// Names the type of a datagram.
pub fn name_of(datagram: &[u8]) -> &'static str {
    match datagram.first() {
        Some(&INITIATION) => "start",
        Some(&RESPONSE) => "answer",
        _ => "empty",
    }
}

impl FakeLink {
    pub fn new(tunnel: u16, seed: u64, shared: Arc<Shared>) -> Self {
        shared.session.store(0, Relaxed);
        Self {
            tunnel,
            next: seed << 32,
            sessions: VecDeque::new(),
            made: 0,
            current: None,
            started: VecDeque::new(),
            started_at: None,
            greatest: 0,
            shared,
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.shared.now.load(Relaxed))
    }

    fn wall(&self) -> u64 {
        self.now().as_nanos() + self.shared.wall.load(Relaxed)
    }

    fn use_session(&mut self, session: Option<u64>) {
        self.current = session;
        self.shared.session.store(session.unwrap_or(0), Relaxed);
    }

    fn add(&mut self, id: u64, ours: bool) {
        if self.sessions.len() == 4 {
            // The session in use is never displaced.
            let oldest = self.sessions.iter().position(|s| Some(s.id) != self.current).unwrap();
            self.sessions.remove(oldest);
        }
        self.made += 1;
        let (number, born) = (self.made, self.now());
        self.sessions.push_back(Session { id, number, born, ours, sent: 0, seen: BTreeSet::new() });
    }

    fn current(&mut self) -> Option<&mut Session> {
        let (current, now) = (self.current?, self.now());
        self.sessions.iter_mut().find(|s| s.id == current && now.since(s.born) < REJECT_AFTER)
    }

    fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let tunnel = self.tunnel;
        let session = self.current()?;
        // Each side has its own counter: one uses even numbers, the other odd ones.
        session.sent += 2;
        Some(frame(DATA, tunnel, session.id, session.sent + u64::from(session.ours), packet))
    }
}

impl ControlLink for FakeLink {
    fn receive(&mut self, _from: IpAddr, datagram: &[u8]) -> LinkOutput {
        let mut out = LinkOutput::default();
        let Some((said, their_mac)) = datagram.split_last_chunk::<MAC_BYTES>() else { return out };
        if said.len() < HEADER_BYTES || mac(said) != *their_mac || tunnel_of(said) != Some(self.tunnel) {
            return out;
        }
        let number = |at: usize| u64::from_be_bytes(said[at..at + 8].try_into().unwrap());
        let (session, count) = (number(3), number(11));
        match said[0] {
            INITIATION => {
                if count <= self.greatest {
                    out.stale_start = count < self.greatest;
                    return out;
                }
                // The time of a clock that runs ahead is not kept.
                if count <= self.wall() + 60_000_000_000 {
                    self.greatest = count;
                }
                // The responder numbers the session, and the number is new each time, as with an ephemeral
                // key.
                self.next += 1;
                self.add(self.next, false);
                out.datagrams.push(frame(RESPONSE, self.tunnel, session, self.next, &[]));
            }
            RESPONSE if self.started.contains(&session) => {
                self.started.retain(|s| *s != session);
                self.add(count, true);
                self.use_session(Some(count));
                out.authenticated = true;
                (out.new_session, out.answered) = (true, true);
                out.datagrams.extend(self.seal(&[]));
            }
            DATA => {
                let now = self.now();
                let newest = self.sessions.back().map(|s| s.id);
                let Some(known) = self.sessions.iter_mut().find(|s| s.id == session) else { return out };
                if now.since(known.born) >= REJECT_AFTER || !known.seen.insert(count) {
                    return out;
                }
                out.authenticated = true;
                out.session = known.number;
                let begins = !known.ours && self.current != Some(session) && newest == Some(session);
                if begins {
                    self.use_session(Some(session));
                    out.new_session = true;
                }
                out.packets.extend(packet_of(datagram).map(<[u8]>::to_vec));
            }
            _ => {}
        }
        out
    }

    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.seal(packet)
    }

    fn start(&mut self) -> Option<Vec<u8>> {
        self.next += 1;
        self.started.push_back(self.next);
        if self.started.len() > 2 {
            self.started.pop_front();
        }
        self.started_at = Some(self.now());
        Some(frame(INITIATION, self.tunnel, self.next, self.wall(), &[]))
    }

    fn tick(&mut self) -> LinkOutput {
        let mut out = LinkOutput::default();
        let now = self.now();
        let ours = self.current().map(|s| (s.ours, now.since(s.born)));
        match ours {
            None if self.current.is_some() => {
                self.reset();
                out.expired = true;
            }
            Some((true, age))
                if age >= REKEY_AFTER
                    && self.started_at.is_none_or(|at| now.since(at) >= INITIATION_RETRY_INTERVAL) =>
            {
                out.datagrams.extend(self.start());
            }
            _ => {}
        }
        out
    }

    fn session_age(&self) -> Option<Duration> {
        let current = self.sessions.iter().find(|s| Some(s.id) == self.current)?;
        Some(self.now().since(current.born))
    }

    fn reset(&mut self) {
        self.sessions.clear();
        self.use_session(None);
        self.started.clear();
        self.started_at = None;
    }
}
