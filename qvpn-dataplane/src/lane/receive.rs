//! The receiving thread of a lane: UDP → decryption in place → replay window → inner source check → TUN. It
//! owns the opening keys and erases them by its own timer.

use std::io::{ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use qvpn_types::{Direction, LocalEpoch, PeerNumber, Time};

use super::config::{Admission, Filter, LaneContext};
use super::ecn;
use super::event_queue::EventQueue;
use super::index_table::IndexTable;
use super::inner::source_and_length;
use super::mailbox::{Inbox, Mailbox, ReceiveCommand, SendCommand};
use super::peer_table::PeerTable;
use super::routing::Routing;
use crate::error::LaneError;
use crate::event::LaneEvent;
use crate::key::OpeningKey;
use crate::session::{DATA, HEADER, OpenError, OpeningSession, TAG};
use crate::stats::{InterfaceStats, PeerStats};
use crate::tun::TunQueue;
use crate::tun::coalesce::Coalescer;
use crate::udp::batch::{Incoming, MAX_BATCH, SLOT_BYTES, SMALL_BATCH, receive_batch};
use crate::wake::poll_readable;

struct ReceivePeer {
    endpoint: Option<SocketAddr>,
    /// The endpoint changed and the control task has not been told yet. This is a flag, not a queue, so that
    /// an attacker on the path who changes source addresses cannot make a list grow.
    roam_unreported: bool,
    stats: Arc<PeerStats>,
    highest_epoch: Option<LocalEpoch>,
    /// The newest epoch in which a packet was opened. Only packets of this epoch change the endpoint.
    newest_heard: Option<LocalEpoch>,
}

/// Opened packets of one peer that are not in its counters yet. Writing to counters that other threads read
/// costs more.
#[derive(Default)]
struct PendingCounters {
    peer: Option<PeerNumber>,
    packets: u64,
    bytes: u64,
}

impl PendingCounters {
    fn add(&mut self, peers: &PeerTable<ReceivePeer>, peer: PeerNumber, size: usize) {
        if self.peer != Some(peer) {
            self.flush(peers);
            self.peer = Some(peer);
        }
        self.packets += 1;
        self.bytes += u64::try_from(size).unwrap_or(0);
    }

    /// Adds them to the peer's counters.
    fn flush(&mut self, peers: &PeerTable<ReceivePeer>) {
        let Self { peer, packets, bytes } = std::mem::take(self);
        if let Some(p) = peer.and_then(|peer| peers.get(peer)) {
            p.stats.rx.packets.add(packets);
            p.stats.rx.bytes.add(bytes);
        }
    }
}

/// The thread's state without its buffer, because the buffer is borrowed while a batch is handled.
struct ReceiveTables {
    context: LaneContext,
    tun: TunQueue,
    filter: Filter,
    events: EventQueue,
    to_sender: Mailbox<SendCommand>,
    peers: PeerTable<ReceivePeer>,
    sessions: IndexTable<OpeningSession>,
    routing: Routing,
    /// The last source and its peer: most packets have the same source as the packet before.
    last: Option<(IpAddr, PeerNumber)>,
    /// The time at which the next key expires.
    due: Option<Time>,
    pending: PendingCounters,
    coalescer: Coalescer,
}

pub(super) struct Receiver {
    socket: UdpSocket,
    inbox: Inbox<ReceiveCommand>,
    tables: ReceiveTables,
    buffer: Vec<u8>,
}

/// A message of at least this size counts as large.
const LARGE_MESSAGE_BYTES: usize = 16 * 1024;

/// The largest control datagram of type 4: a path MTU probe.
const MAX_PROBE_BYTES: usize = HEADER + 1420 + TAG;
/// The largest handshake message that is accepted: the smallest IPv6 MTU. Real ones are far smaller.
const MAX_HANDSHAKE_BYTES: usize = 1280;

impl Receiver {
    pub(super) fn new(
        context: LaneContext,
        tun: TunQueue,
        socket: UdpSocket,
        filter: Filter,
        inbox: Inbox<ReceiveCommand>,
        to_sender: Mailbox<SendCommand>,
    ) -> Self {
        let tables = ReceiveTables {
            events: EventQueue::new(context.sink.clone()),
            context,
            coalescer: Coalescer::new(tun.cuts_udp()),
            tun,
            filter,
            to_sender,
            peers: PeerTable::default(),
            sessions: IndexTable::default(),
            routing: Routing::default(),
            last: None,
            due: None,
            pending: PendingCounters::default(),
        };
        Self { socket, inbox, tables, buffer: vec![0; SLOT_BYTES * MAX_BATCH] }
    }

    pub(super) fn run(mut self) -> Result<(), LaneError> {
        let mut metadata = [None; MAX_BATCH];
        let mut want = MAX_BATCH;
        loop {
            let retry = self.tables.events.flush();
            while let Some(command) = self.inbox.take() {
                if matches!(command, ReceiveCommand::Shutdown) {
                    return Ok(());
                }
                self.tables.apply(command);
            }
            let now = (self.tables.context.clock)();
            if self.tables.due.is_some_and(|due| due <= now) {
                self.tables.expire_keys(now);
            }
            match receive_batch(self.socket.as_fd(), &mut self.buffer, &mut metadata[..want]) {
                Ok(got) => {
                    self.tables.handle_batch(&mut self.buffer, &metadata[..got], now);
                    let is_large = |message: &&Incoming| message.len >= LARGE_MESSAGE_BYTES;
                    let large = metadata[..got].iter().flatten().filter(is_large).count();
                    // In a flood there may be a few large messages among many small ones, and each takes a
                    // slot.
                    want = if large * 2 < got { MAX_BATCH } else { SMALL_BATCH };
                }
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (ErrorKind::WouldBlock, _) => {
                        let wait = self.tables.due.map(|at| at.since(now)).into_iter().chain(retry).min();
                        let ready = poll_readable([self.inbox.as_fd(), self.socket.as_fd()], wait);
                        if let [true, _] = ready.map_err(LaneError::SocketFailed)? {
                            self.inbox.clear_wake();
                        }
                    }
                    // The kernel also reports ICMP errors of earlier sends here.
                    (ErrorKind::Interrupted | ErrorKind::ConnectionRefused, _)
                    | (_, Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOBUFS | libc::ENOMEM)) => {}
                    _ => return Err(LaneError::SocketFailed(error)),
                },
            }
        }
    }
}

impl ReceiveTables {
    /// Erases expired keys and sets `due` to the next expiry.
    fn expire_keys(&mut self, now: Time) {
        self.sessions.retain(|_, s| s.expires_at > now);
        self.due = self.sessions.values().map(|s| s.expires_at).min();
    }

    fn apply(&mut self, command: ReceiveCommand) {
        let now = (self.context.clock)();
        match command {
            ReceiveCommand::AddPeer { peer, endpoint, stats } => {
                self.sessions.retain(|_, s| s.peer != peer);
                self.peers.insert(
                    peer,
                    ReceivePeer {
                        endpoint,
                        roam_unreported: false,
                        stats,
                        highest_epoch: None,
                        newest_heard: None,
                    },
                );
            }
            ReceiveCommand::RemovePeer { peer } => {
                self.peers.remove(peer);
                self.sessions.retain(|_, s| s.peer != peer);
            }
            ReceiveCommand::SetRouting(routing) => {
                self.routing = routing;
                self.last = None;
            }
            ReceiveCommand::SetEndpoint { peer, endpoint } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.endpoint = Some(endpoint);
                    p.roam_unreported = false;
                }
            }
            ReceiveCommand::Install(key) => {
                let (lane, peer, epoch, direction) =
                    (self.context.lane, key.peer, key.epoch, Direction::Opening);
                let in_force = self.install(&key, now);
                drop(key);
                self.events.emit(LaneEvent::Installed { lane, peer, epoch, direction, in_force });
            }
            ReceiveCommand::Close { index } => {
                self.sessions.remove(&index);
            }
            ReceiveCommand::CloseOlder { peer, epoch, at } => {
                for session in self.sessions.values_mut().filter(|s| s.peer == peer && s.epoch < epoch) {
                    session.expires_at = session.expires_at.min(at);
                }
                self.expire_keys(now);
            }
            // `run` returns before this command gets here.
            ReceiveCommand::Shutdown => {}
        }
    }

    fn install(&mut self, key: &OpeningKey, now: Time) -> bool {
        let Some(p) = self.peers.get_mut(key.peer) else { return false };
        let later = p.highest_epoch.is_none_or(|highest| key.epoch > highest);
        let free = !self.sessions.contains_key(&key.index);
        if !later || !free || key.expires_at <= now || key.index >> 31 == 0 {
            return false;
        }
        let Some(session) = OpeningSession::new(key) else { return false };
        p.highest_epoch = Some(key.epoch);
        self.sessions.insert(key.index, session);
        self.due = Some(self.due.map_or(key.expires_at, |due| due.min(key.expires_at)));
        true
    }

    /// Opens the datagrams of a batch and writes their packets to the TUN in the same order.
    fn handle_batch(&mut self, buffer: &mut [u8], metadata: &[Option<Incoming>], now: Time) {
        for (place, message) in metadata.iter().enumerate() {
            let Some(message) = message else {
                self.context.stats.malformed.add(1);
                continue;
            };
            let start = place * SLOT_BYTES;
            let end = start + message.len;
            // An empty message holds one empty datagram.
            for start in (start..end.max(start + 1)).step_by(message.segment.max(1)) {
                self.handle(buffer, start..end.min(start + message.segment), message, now);
            }
        }
        let (tun, stats) = (&self.tun, &self.context.stats);
        self.coalescer
            .flush(buffer, &mut |parts: &[IoSlice<'_>], packets| write_packets(tun, stats, parts, packets));
        self.pending.flush(&self.peers);
    }

    fn handle(&mut self, buffer: &mut [u8], at: Range<usize>, message: &Incoming, now: Time) {
        let datagram = &mut buffer[at.clone()];
        let (kind, index) = match (field(datagram, 0), field(datagram, 4)) {
            (Some(kind), Some(index)) => (kind, index),
            _ => return self.context.stats.malformed.add(1),
        };
        match kind {
            DATA if index >> 31 == 1 && datagram.len() >= HEADER + TAG => {
                if let Some(len) = self.open(datagram, index, message, now) {
                    let (tun, stats) = (&self.tun, &self.context.stats);
                    let packet = at.start + HEADER..at.start + HEADER + len;
                    self.coalescer.push(buffer, packet, &mut |parts: &[IoSlice<'_>], packets| {
                        write_packets(tun, stats, parts, packets);
                    });
                }
            }
            DATA if index >> 31 == 0 && datagram.len() >= HEADER + TAG => {
                self.control(datagram, message.from, MAX_PROBE_BYTES, now);
            }
            1..=3 if self.context.lane == 0 => self.control(datagram, message.from, MAX_HANDSHAKE_BYTES, now),
            _ => self.context.stats.malformed.add(1),
        }
    }

    fn control(&mut self, datagram: &[u8], from: SocketAddr, max: usize, now: Time) {
        if datagram.len() > max {
            return self.context.stats.malformed.add(1);
        }
        match (self.filter)(datagram, from, now) {
            Admission::Admitted => {}
            Admission::Malformed => return self.context.stats.malformed.add(1),
            Admission::Unproven => return self.context.stats.cookie.add(1),
            Admission::TooMany => return self.context.stats.queue_full.add(1),
        }
        let event = LaneEvent::Control { lane: self.context.lane, from, datagram: datagram.to_vec() };
        if !self.events.try_emit(event) {
            self.context.stats.queue_full.add(1);
        }
    }

    /// Opens a datagram in place. Returns the length of the inner packet after the header, if it goes to the
    /// TUN.
    fn open(&mut self, datagram: &mut [u8], index: u32, message: &Incoming, now: Time) -> Option<usize> {
        let Some(session) = self.sessions.get_mut(&index) else {
            self.context.stats.unknown_index.add(1);
            return None;
        };
        let (peer, epoch) = (session.peer, session.epoch);
        let Some(p) = self.peers.get_mut(peer) else {
            self.context.stats.unknown_index.add(1);
            return None;
        };
        let size = datagram.len();
        let (text, highest) = match session.open(datagram, now) {
            Ok(opened) => opened,
            Err(error) => {
                match error {
                    OpenError::Expired => &p.stats.rx.expired,
                    OpenError::Replay => &p.stats.rx.replay,
                    OpenError::Auth => &p.stats.rx.auth,
                }
                .add(1);
                return None;
            }
        };
        self.pending.add(&self.peers, peer, size);
        let p = self.peers.get_mut(peer)?;
        p.stats.rx.last_at.raise_to(now.as_nanos());
        let lane = self.context.lane;
        if std::mem::replace(&mut session.fresh, false) {
            self.events.emit(LaneEvent::FirstOpened { lane, peer, epoch });
        }
        if p.newest_heard.is_none_or(|newest| epoch > newest) {
            p.newest_heard = Some(epoch);
        }
        if highest && p.newest_heard == Some(epoch) && p.endpoint != Some(message.from) {
            p.endpoint = Some(message.from);
            self.to_sender.put(SendCommand::SetEndpoint { peer, endpoint: message.from });
            p.roam_unreported = true;
        }
        if let (true, Some(endpoint)) = (p.roam_unreported, p.endpoint) {
            // If there is no room now, the next packet triggers the report.
            p.roam_unreported = !self.events.try_emit(LaneEvent::Roamed { lane, peer, endpoint });
        }
        if text.is_empty() {
            return None;
        }
        let Some((source, len)) = source_and_length(text) else {
            p.stats.rx.not_allowed_ip.add(1);
            return None;
        };
        if self.last != Some((source, peer)) && !self.routing.allows(peer, source) {
            p.stats.rx.not_allowed_ip.add(1);
            return None;
        }
        self.last = Some((source, peer));
        if !ecn::decapsulate(message.tos, &mut text[..len]) {
            self.context.stats.malformed.add(1);
            return None;
        }
        Some(len)
    }
}

/// Writes coalesced packets to the TUN.
fn write_packets(tun: &TunQueue, stats: &InterfaceStats, parts: &[IoSlice<'_>], packets: usize) {
    if tun.write(parts).is_err() {
        stats.queue_full.add(u64::try_from(packets).unwrap_or(0));
    }
}

fn field(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}
