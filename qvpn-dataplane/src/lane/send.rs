//! The sending thread of a lane: TUN → allowed IPs → sealed in place → UDP. It owns the sealing keys and ends them by
//! its own timer, whatever the control task does.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockAddr;

use super::LaneError;
use super::outbox::Outbox;
use super::start::{Inbox, Shared};
use crate::allowed_ips::AllowedIps;
use crate::clock::BootNanos;
use crate::command::{LaneCommand, LaneEvent, SealingEnd};
use crate::key::{PeerId, SealingKey};
use crate::session::{HEADER, SealError, SealingSession, TAG};
use crate::stats::PeerStats;
use crate::sys::{self, BATCH};
use crate::tun::TunQueue;
use crate::udp::socket_address;

/// Room for the largest inner packet, its header, padding and tag.
const SLOT: usize = HEADER + 65_535 + 16 + TAG;

/// How long a batch waits for room in the socket's queue, in milliseconds.
const ROOM_WAIT: i32 = 50;

struct SendPeer {
    endpoint: Option<SockAddr>,
    keepalive: Option<u64>,
    last_sent: BootNanos,
    stats: Arc<PeerStats>,
    session: Option<SealingSession>,
    highest_epoch: Option<u64>,
    /// Whether the key ended by its own limits, which is counted apart from never having had one.
    ended: bool,
}

/// A sealed packet of the batch: its slot, length and peer.
struct Sealed {
    slot: usize,
    len: usize,
    peer: PeerId,
}

pub(super) struct Sending {
    shared: Shared,
    tun: TunQueue,
    socket: UdpSocket,
    v6: bool,
    inbox: Inbox,
    outbox: Outbox,
    peers: BTreeMap<PeerId, SendPeer>,
    allowed: Arc<AllowedIps>,
    mtu: usize,
    slots: Vec<Vec<u8>>,
}

impl Sending {
    pub(super) fn new(shared: Shared, tun: TunQueue, socket: UdpSocket, v6: bool, inbox: Inbox) -> Self {
        Self {
            outbox: Outbox::new(shared.sink.clone()),
            mtu: shared.mtu.into(),
            shared,
            tun,
            socket,
            v6,
            inbox,
            peers: BTreeMap::new(),
            allowed: Arc::default(),
            slots: vec![vec![0; SLOT]; BATCH],
        }
    }

    pub(super) fn run(mut self) -> Result<(), LaneError> {
        loop {
            let retry = self.outbox.flush();
            let now = (self.shared.clock)();
            let deadline = self.do_due(now);
            let wait = deadline.map(|at| at.saturating_sub(now)).into_iter().chain(retry).min();
            let ready = sys::poll_readable([self.inbox.wake.as_fd(), self.tun.fd()], wait);
            let [woken, packets] = ready.map_err(LaneError::TunGone)?;
            if woken {
                sys::clear(self.inbox.wake.as_fd());
                while let Ok(command) = self.inbox.receiver.try_recv() {
                    if matches!(command, LaneCommand::Shutdown) {
                        return Ok(());
                    }
                    self.obey(command);
                }
            }
            if packets {
                self.pass_batch()?;
            }
        }
    }

    /// Ends keys and sends keepalives that are due; when the next is.
    fn do_due(&mut self, now: BootNanos) -> Option<BootNanos> {
        let mut next: Option<BootNanos> = None;
        let mut keepalives = Vec::new();
        let lane = self.shared.lane;
        for (&peer, p) in &mut self.peers {
            if let Some(session) = p.session.as_ref().filter(|s| s.expires_at <= now) {
                let epoch = session.epoch;
                p.session = None;
                p.ended = true;
                self.outbox.tell(move || LaneEvent::SealingEnded {
                    lane,
                    peer,
                    epoch,
                    why: SealingEnd::Expired,
                });
            }
            if let Some(session) = &p.session {
                next = Some(next.map_or(session.expires_at, |n| n.min(session.expires_at)));
                if let Some(every) = p.keepalive {
                    let due = p.last_sent + every;
                    if due <= now {
                        keepalives.push(peer);
                    }
                    let due = if due <= now { now + every } else { due };
                    next = next.map(|n| n.min(due));
                }
            }
        }
        for peer in keepalives {
            self.send_empty(peer, now);
        }
        next
    }

    fn obey(&mut self, command: LaneCommand) {
        let now = (self.shared.clock)();
        match command {
            LaneCommand::AddPeer { peer, endpoint, keepalive, stats } => {
                let added = SendPeer {
                    endpoint: endpoint.map(|a| socket_address(self.v6, a)),
                    keepalive: nanos(keepalive),
                    last_sent: now,
                    stats,
                    session: None,
                    highest_epoch: None,
                    ended: false,
                };
                self.peers.insert(peer, added);
            }
            LaneCommand::RemovePeer { peer } => {
                self.peers.remove(&peer);
            }
            LaneCommand::SetAllowedIps(table) => self.allowed = table,
            LaneCommand::SetMtu(mtu) => self.mtu = mtu.into(),
            LaneCommand::SetEndpoint { peer, addr } => {
                if let Some(p) = self.peers.get_mut(&peer) {
                    p.endpoint = Some(socket_address(self.v6, addr));
                }
            }
            LaneCommand::SetKeepalive { peer, keepalive } => {
                if let Some(p) = self.peers.get_mut(&peer) {
                    p.keepalive = nanos(keepalive);
                }
            }
            LaneCommand::InstallSealing { token, key, announce } => {
                let peer = key.peer;
                let in_force = self.install(&key, now);
                drop(key);
                let lane = self.shared.lane;
                self.outbox.tell(move || LaneEvent::Installed { lane, token, in_force });
                if in_force && announce {
                    self.send_empty(peer, now);
                }
            }
            LaneCommand::SendEmpty { peer } => self.send_empty(peer, now),
            LaneCommand::StopSealing { peer } => {
                if let Some(p) = self.peers.get_mut(&peer) {
                    p.session = None;
                }
            }
            LaneCommand::InstallOpening { .. }
            | LaneCommand::CloseOpening { .. }
            | LaneCommand::CloseOlder { .. }
            | LaneCommand::Shutdown => {}
        }
    }

    /// Never back to an earlier epoch, and never twice into one: a nonce must not repeat.
    fn install(&mut self, key: &SealingKey, now: BootNanos) -> bool {
        let Some(p) = self.peers.get_mut(&key.peer) else { return false };
        let later = p.highest_epoch.is_none_or(|highest| key.epoch > highest);
        if !later || key.expires_at <= now || key.receiver_index >> 31 == 0 {
            return false;
        }
        p.highest_epoch = Some(key.epoch);
        p.session = SealingSession::new(key);
        p.ended = false;
        p.session.is_some()
    }

    fn send_empty(&mut self, peer: PeerId, now: BootNanos) {
        let mut buffer = [0u8; HEADER + TAG];
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let (Some(session), Some(to)) = (&mut p.session, &p.endpoint) else { return };
        let Ok(len) = session.seal(&mut buffer, 0, 0, now) else { return };
        p.last_sent = now;
        match sys::send_batch(self.socket.as_fd(), &[(&buffer[..len], to)]) {
            Ok(_) => count_sent(&p.stats, len, now),
            Err(_) => p.stats.tx.queue_full.add(1),
        }
    }

    /// Reads packets while there are some, up to a batch, seals them and sends them by one system call.
    fn pass_batch(&mut self) -> Result<(), LaneError> {
        let now = (self.shared.clock)();
        let mut batch: Vec<Sealed> = Vec::with_capacity(BATCH);
        for slot in 0..BATCH {
            let read = self.tun.read(&mut self.slots[slot][HEADER..HEADER + 65_535]);
            let inner = match read {
                Ok(inner) => inner,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(LaneError::TunGone(error)),
            };
            if let Some(sealed) = self.seal(slot, inner, now) {
                batch.push(sealed);
            }
        }
        self.send_sealed(&batch, now);
        Ok(())
    }

    fn seal(&mut self, slot: usize, inner: usize, now: BootNanos) -> Option<Sealed> {
        let packet = &self.slots[slot][HEADER..HEADER + inner];
        let Some(destination) = destination(packet) else {
            self.shared.stats.malformed.add(1);
            return None;
        };
        let found = self.allowed.lookup(destination);
        let Some((peer, p)) = found.and_then(|peer| self.peers.get_mut(&peer).map(|p| (peer, p))) else {
            self.shared.stats.no_peer.add(1);
            return None;
        };
        let (Some(session), true) = (&mut p.session, p.endpoint.is_some()) else {
            if p.ended { &p.stats.tx.expired } else { &p.stats.tx.no_epoch }.add(1);
            return None;
        };
        let padded = inner.next_multiple_of(16).min(self.mtu.max(inner));
        match session.seal(&mut self.slots[slot], inner, padded, now) {
            Ok(len) => {
                p.last_sent = now;
                Some(Sealed { slot, len, peer })
            }
            Err(error) => {
                p.stats.tx.expired.add(1);
                let (lane, epoch) = (self.shared.lane, session.epoch);
                let why = match error {
                    SealError::Expired => SealingEnd::Expired,
                    SealError::PacketLimit => SealingEnd::PacketLimit,
                };
                p.session = None;
                p.ended = true;
                self.outbox.tell(move || LaneEvent::SealingEnded { lane, peer, epoch, why });
                None
            }
        }
    }

    fn send_sealed(&mut self, mut batch: &[Sealed], now: BootNanos) {
        while !batch.is_empty() {
            let datagrams: Vec<(&[u8], &SockAddr)> = batch
                .iter()
                .filter_map(|s| {
                    let to = self.peers.get(&s.peer)?.endpoint.as_ref()?;
                    Some((&self.slots[s.slot][..s.len], to))
                })
                .collect();
            let (sent, refused) = match sys::send_batch(self.socket.as_fd(), &datagrams) {
                Ok(sent) => (sent, 0),
                Err(error) if error.kind() == ErrorKind::Interrupted => (0, 0),
                // While we wait, the TUN's own queue holds senders back, which loses less than a drop here.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && sys::poll_writable(self.socket.as_fd(), ROOM_WAIT) =>
                {
                    (0, 0)
                }
                // The first was refused: count it, and go on with the rest.
                Err(_) => (0, 1),
            };
            for s in &batch[..sent] {
                if let Some(p) = self.peers.get(&s.peer) {
                    count_sent(&p.stats, s.len, now);
                }
            }
            for s in &batch[sent..sent + refused] {
                if let Some(p) = self.peers.get(&s.peer) {
                    p.stats.tx.queue_full.add(1);
                }
            }
            batch = &batch[sent + refused..];
        }
    }
}

fn count_sent(stats: &PeerStats, len: usize, now: BootNanos) {
    stats.tx.packets.add(1);
    stats.tx.bytes.add(u64::try_from(len).unwrap_or(0));
    stats.tx.last_at.raise_to(now);
}

fn nanos(span: Option<Duration>) -> Option<u64> {
    span.filter(|s| !s.is_zero()).map(|s| u64::try_from(s.as_nanos()).unwrap_or(u64::MAX / 2))
}

/// The destination of an IP packet.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => packet[16..20].first_chunk::<4>().map(|a| IpAddr::from(*a)),
        6 if packet.len() >= 40 => packet[24..40].first_chunk::<16>().map(|a| IpAddr::from(*a)),
        _ => None,
    }
}
