//! The receiving thread of a lane: UDP → opened in place → replay window → inner source check → TUN. It owns the opening
//! keys and erases them by its own timer.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::LaneError;
use super::ecn;
use super::outbox::Outbox;
use super::peers::Peers;
use super::start::{Admission, Filter, Inbox, Mailbox, Shared};
use crate::allowed_ips::AllowedIps;
use crate::clock::BootNanos;
use crate::command::{LaneCommand, LaneEvent};
use crate::key::{OpeningKey, PeerId};
use crate::session::{DATA, HEADER, OpenError, OpeningSession, TAG};
use crate::stats::{InterfaceStats, PeerStats};
use crate::sys::{self, BATCH, FEW, Incoming, SLOT};
use crate::tun::TunQueue;
use crate::tun::coalesce::Coalescer;

struct ReceivePeer {
    endpoint: Option<SocketAddr>,
    /// The endpoint moved and the control task doesn't know yet. One flag, not a queue: whoever sits on the path and
    /// changes source addresses must not make a list grow.
    untold: bool,
    stats: Arc<PeerStats>,
    highest_epoch: Option<u64>,
    /// The newest epoch in which something opened: only its packets move the endpoint.
    newest_heard: Option<u64>,
}

/// Packets of one peer that opened and are not counted yet: counters that other threads read cost more than these.
#[derive(Default)]
struct Tally {
    peer: Option<PeerId>,
    packets: u64,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, peers: &Peers<ReceivePeer>, peer: PeerId, size: usize) {
        if self.peer != Some(peer) {
            self.count(peers);
            self.peer = Some(peer);
        }
        self.packets += 1;
        self.bytes += u64::try_from(size).unwrap_or(0);
    }

    /// Adds what was tallied to the counters that others read.
    fn count(&mut self, peers: &Peers<ReceivePeer>) {
        let Self { peer, packets, bytes } = std::mem::take(self);
        if let Some(p) = peer.and_then(|peer| peers.get(peer)) {
            p.stats.rx.packets.add(packets);
            p.stats.rx.bytes.add(bytes);
        }
    }
}

/// Receiver indices are random numbers of our own, so they are spread already.
#[derive(Default)]
pub(crate) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, index: u32) {
        // The table looks at the topmost bits, too.
        self.0 = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A table by receiver index.
pub(crate) type ByIndex<T> = HashMap<u32, T, BuildHasherDefault<IndexHasher>>;
type Sessions = ByIndex<OpeningSession>;

/// The tables, apart from the buffer that is borrowed while a batch is handled.
struct Tables {
    shared: Shared,
    tun: TunQueue,
    filter: Filter,
    outbox: Outbox,
    to_sender: Mailbox,
    peers: Peers<ReceivePeer>,
    sessions: Sessions,
    allowed: Arc<AllowedIps>,
    /// The source looked up last: most packets follow one of their own flow.
    last: Option<(IpAddr, PeerId)>,
    /// When a key ends at the earliest.
    due: Option<BootNanos>,
    tally: Tally,
    coalescer: Coalescer,
}

pub(super) struct Receiving {
    socket: UdpSocket,
    inbox: Inbox,
    tables: Tables,
    buffer: Vec<u8>,
}

/// Messages of so many bytes are large.
const LARGE: usize = 16 * 1024;

/// Bytes of the largest control datagram that is no handshake: a probe of the path.
const PROBE: usize = HEADER + 1420 + TAG;
/// Handshakes are far smaller than the smallest IPv6 MTU.
const HANDSHAKE: usize = 1280;

impl Receiving {
    pub(super) fn new(
        shared: Shared,
        tun: TunQueue,
        socket: UdpSocket,
        filter: Filter,
        inbox: Inbox,
        to_sender: Mailbox,
    ) -> Self {
        let tables = Tables {
            outbox: Outbox::new(shared.sink.clone()),
            shared,
            coalescer: Coalescer::new(tun.cuts_udp()),
            tun,
            filter,
            to_sender,
            peers: Peers::default(),
            sessions: Sessions::default(),
            allowed: Arc::default(),
            last: None,
            due: None,
            tally: Tally::default(),
        };
        Self { socket, inbox, tables, buffer: vec![0; SLOT * BATCH] }
    }

    pub(super) fn run(mut self) -> Result<(), LaneError> {
        let mut news = [None; BATCH];
        let mut want = BATCH;
        loop {
            let retry = self.tables.outbox.flush();
            while let Ok(command) = self.inbox.receiver.try_recv() {
                if matches!(command, LaneCommand::Shutdown) {
                    return Ok(());
                }
                self.tables.obey(command);
            }
            let now = (self.tables.shared.clock)();
            if self.tables.due.is_some_and(|due| due <= now) {
                self.tables.end_due(now);
            }
            match sys::receive_batch(self.socket.as_fd(), &mut self.buffer, &mut news[..want]) {
                Ok(got) => {
                    self.tables.take_batch(&mut self.buffer, &news[..got], now);
                    let large = news[..got].iter().flatten().filter(|message| message.len >= LARGE).count();
                    // Under a flood a few large ones stand among many small ones, each of which takes a place of its own.
                    want = if large * 2 < got { BATCH } else { FEW };
                }
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (ErrorKind::WouldBlock, _) => {
                        let wait =
                            self.tables.due.map(|at| at.saturating_sub(now)).into_iter().chain(retry).min();
                        let ready = sys::poll_readable([self.inbox.wake.as_fd(), self.socket.as_fd()], wait);
                        if let [true, _] = ready.map_err(LaneError::SocketFailed)? {
                            sys::clear(self.inbox.wake.as_fd());
                        }
                    }
                    // An ICMP error of an earlier send shows up here, too.
                    (ErrorKind::Interrupted | ErrorKind::ConnectionRefused, _)
                    | (_, Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOBUFS | libc::ENOMEM)) => {}
                    _ => return Err(LaneError::SocketFailed(error)),
                },
            }
        }
    }
}

impl Tables {
    /// Erases keys that ended, and notes when the next does.
    fn end_due(&mut self, now: BootNanos) {
        self.sessions.retain(|_, s| s.expires_at > now);
        self.due = self.sessions.values().map(|s| s.expires_at).min();
    }

    fn obey(&mut self, command: LaneCommand) {
        let now = (self.shared.clock)();
        match command {
            LaneCommand::AddPeer { peer, endpoint, stats, .. } => {
                self.sessions.retain(|_, s| s.peer != peer);
                self.peers.insert(
                    peer,
                    ReceivePeer { endpoint, untold: false, stats, highest_epoch: None, newest_heard: None },
                );
            }
            LaneCommand::RemovePeer { peer } => {
                self.peers.remove(peer);
                self.sessions.retain(|_, s| s.peer != peer);
            }
            LaneCommand::SetAllowedIps(table) => {
                self.allowed = table;
                self.last = None;
            }
            LaneCommand::SetEndpoint { peer, addr } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.endpoint = Some(addr);
                    p.untold = false;
                }
            }
            LaneCommand::InstallOpening { token, key } => {
                let in_force = self.install(&key, now);
                drop(key);
                let lane = self.shared.lane;
                self.outbox.tell(move || LaneEvent::Installed { lane, token, in_force });
            }
            LaneCommand::CloseOpening { index } => {
                self.sessions.remove(&index);
            }
            LaneCommand::CloseOlder { peer, than_epoch, at } => {
                for session in self.sessions.values_mut().filter(|s| s.peer == peer && s.epoch < than_epoch) {
                    session.expires_at = session.expires_at.min(at);
                }
                self.end_due(now);
            }
            LaneCommand::SetMtu(_)
            | LaneCommand::SetPeerMtu { .. }
            | LaneCommand::SetKeepalive { .. }
            | LaneCommand::InstallSealing { .. }
            | LaneCommand::SendEmpty { .. }
            | LaneCommand::SetDetour { .. }
            | LaneCommand::StopSealing { .. }
            | LaneCommand::Shutdown => {}
        }
    }

    fn install(&mut self, key: &OpeningKey, now: BootNanos) -> bool {
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

    /// Opens what came and writes it to the TUN, in the same order.
    fn take_batch(&mut self, buffer: &mut [u8], news: &[Option<Incoming>], now: BootNanos) {
        for (place, message) in news.iter().enumerate() {
            let Some(message) = message else {
                self.shared.stats.malformed.add(1);
                continue;
            };
            let start = place * SLOT;
            let end = start + message.len;
            // An empty datagram is one, too.
            for start in (start..end.max(start + 1)).step_by(message.segment.max(1)) {
                self.take(buffer, start..end.min(start + message.segment), message, now);
            }
        }
        let (tun, stats) = (&self.tun, &self.shared.stats);
        self.coalescer
            .flush(buffer, &mut |parts: &[IoSlice<'_>], packets| hand_over(tun, stats, parts, packets));
        self.tally.count(&self.peers);
    }

    fn take(&mut self, buffer: &mut [u8], at: Range<usize>, message: &Incoming, now: BootNanos) {
        let datagram = &mut buffer[at.clone()];
        let (kind, index) = match (field(datagram, 0), field(datagram, 4)) {
            (Some(kind), Some(index)) => (kind, index),
            _ => return self.shared.stats.malformed.add(1),
        };
        match kind {
            DATA if index >> 31 == 1 && datagram.len() >= HEADER + TAG => {
                if let Some(len) = self.open(datagram, index, message, now) {
                    let (tun, stats) = (&self.tun, &self.shared.stats);
                    let packet = at.start + HEADER..at.start + HEADER + len;
                    self.coalescer.push(buffer, packet, &mut |parts: &[IoSlice<'_>], packets| {
                        hand_over(tun, stats, parts, packets);
                    });
                }
            }
            DATA if index >> 31 == 0 && datagram.len() >= HEADER + TAG => {
                self.control(datagram, message.from, PROBE, now);
            }
            1..=3 if self.shared.lane == 0 => self.control(datagram, message.from, HANDSHAKE, now),
            _ => self.shared.stats.malformed.add(1),
        }
    }

    fn control(&mut self, datagram: &[u8], from: SocketAddr, most: usize, now: BootNanos) {
        if datagram.len() > most {
            return self.shared.stats.malformed.add(1);
        }
        match (self.filter)(datagram, from, now) {
            Admission::Admitted => {}
            Admission::Malformed => return self.shared.stats.malformed.add(1),
            Admission::Unproven => return self.shared.stats.cookie.add(1),
            Admission::TooMany => return self.shared.stats.queue_full.add(1),
        }
        let event = LaneEvent::Control { lane: self.shared.lane, from, datagram: datagram.to_vec() };
        if !self.outbox.try_tell(event) {
            self.shared.stats.queue_full.add(1);
        }
    }

    /// Opens a datagram in place: how many bytes of packet stand after its header, if one is to be handed over.
    fn open(&mut self, datagram: &mut [u8], index: u32, message: &Incoming, now: BootNanos) -> Option<usize> {
        let Some(session) = self.sessions.get_mut(&index) else {
            self.shared.stats.unknown_index.add(1);
            return None;
        };
        let (peer, epoch) = (session.peer, session.epoch);
        let Some(p) = self.peers.get_mut(peer) else {
            self.shared.stats.unknown_index.add(1);
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
        self.tally.add(&self.peers, peer, size);
        let p = self.peers.get_mut(peer)?;
        p.stats.rx.last_at.raise_to(now);
        let lane = self.shared.lane;
        if std::mem::replace(&mut session.fresh, false) {
            self.outbox.tell(move || LaneEvent::FirstOpened { lane, peer, epoch });
        }
        if p.newest_heard.is_none_or(|newest| epoch > newest) {
            p.newest_heard = Some(epoch);
        }
        if highest && p.newest_heard == Some(epoch) && p.endpoint != Some(message.from) {
            p.endpoint = Some(message.from);
            self.to_sender.put(LaneCommand::SetEndpoint { peer, addr: message.from });
            p.untold = true;
        }
        if let (true, Some(endpoint)) = (p.untold, p.endpoint) {
            // Where there is no room now, the next packet tries again.
            p.untold = !self.outbox.try_tell(LaneEvent::Roamed { lane, peer, endpoint });
        }
        if text.is_empty() {
            return None;
        }
        let Some((source, len)) = source_and_length(text) else {
            p.stats.rx.not_allowed_ip.add(1);
            return None;
        };
        let owner = match self.last {
            Some((last, owner)) if last == source => Some(owner),
            _ => self.allowed.lookup(source),
        };
        if owner != Some(peer) {
            p.stats.rx.not_allowed_ip.add(1);
            return None;
        }
        self.last = Some((source, peer));
        if !ecn::decapsulate(message.tos, &mut text[..len]) {
            self.shared.stats.malformed.add(1);
            return None;
        }
        Some(len)
    }
}

/// Writes what was coalesced to the TUN.
fn hand_over(tun: &TunQueue, stats: &InterfaceStats, parts: &[IoSlice<'_>], packets: usize) {
    if tun.write(parts).is_err() {
        stats.queue_full.add(u64::try_from(packets).unwrap_or(0));
    }
}

fn field(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The source of an IP packet, and its length by its own header, which the padding goes beyond.
pub(crate) fn source_and_length(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let length = |at: usize| packet.get(at..)?.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)));
    let (source, len) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => (IpAddr::from(*packet[12..].first_chunk::<4>()?), length(2)?),
        6 if packet.len() >= 40 => (IpAddr::from(*packet[8..].first_chunk::<16>()?), 40 + length(4)?),
        _ => return None,
    };
    let least = if source.is_ipv4() { 20 } else { 40 };
    (least..=packet.len()).contains(&len).then_some((source, len))
}

#[cfg(test)]
mod tests {
    use super::source_and_length;

    #[test]
    fn a_header_that_lies_about_its_length_is_no_packet() {
        let v4 = |len: u16, there: usize| {
            let mut packet = vec![0; there];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            source_and_length(&packet).map(|(_, len)| len)
        };
        assert_eq!(v4(20, 32), Some(20), "the rest is padding");
        assert_eq!([v4(0, 32), v4(19, 32), v4(33, 32), v4(65_535, 32), v4(20, 19)], [None; 5]);
        let v6 = |len: u16, there: usize| {
            let mut packet = vec![0; there];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            source_and_length(&packet).map(|(_, len)| len)
        };
        assert_eq!(v6(0, 48), Some(40));
        assert_eq!([v6(9, 48), v6(65_535, 48), v6(0, 39)], [None; 3]);
        for other in [&[][..], &[0x45], &[0x50; 60], &[0xff; 60]] {
            assert_eq!(source_and_length(other), None);
        }
    }
}
