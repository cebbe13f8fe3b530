//! The sending thread of a lane: TUN → allowed IPs → sealed in place → UDP. It owns the sealing keys and ends them by
//! its own timer, whatever the control task does.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::LaneError;
use super::batch::{Batch, Run};
use super::detour::{Detours, Handed};
use super::outbox::Outbox;
use super::peers::Peers;
use super::start::{Dscp, Inbox, Shared};
use crate::allowed_ips::AllowedIps;
use crate::clock::BootNanos;
use crate::command::{LaneCommand, LaneEvent, SealingEnd};
use crate::key::{PeerId, SealingKey};
use crate::session::{HEADER, SealError, SealingSession, TAG};
use crate::stats::PeerStats;
use crate::sys::{self, Endpoint, Outgoing};
use crate::tun::TunQueue;
use crate::tun::split::{self, Split};
use crate::tun::vnet::Vnet;

/// Room for the largest packet that the TUN gives: a virtio header, an IPv6 header and 65,535 bytes.
const READ: usize = Vnet::LEN + 40 + 65_535;

/// Most reads before a batch is sent, however small they are.
const READS: usize = 128;

/// How long a batch waits for room in the socket's queue, in milliseconds.
const ROOM_WAIT: i32 = 50;

/// How long a peer's datagrams go one by one after the kernel refused several in one piece, in nanoseconds: its path may
/// have changed by then.
const APART: u64 = 10_000_000_000;

struct SendPeer {
    endpoint: Option<Endpoint>,
    keepalive: Option<u64>,
    last_sent: BootNanos,
    stats: Arc<PeerStats>,
    session: Option<SealingSession>,
    highest_epoch: Option<u64>,
    /// Whether the key ended by its own limits, which is counted apart from never having had one.
    ended: bool,
    /// Datagrams go one by one until then.
    apart_until: BootNanos,
    /// The lane that sends its packets instead of this one.
    detour: Option<u8>,
    /// Padding stays within it, where it is less than the device's.
    mtu: usize,
}

pub(super) struct Sending {
    shared: Shared,
    tun: TunQueue,
    socket: UdpSocket,
    v6: bool,
    inbox: Inbox,
    detours: Detours,
    outbox: Outbox,
    peers: Peers<SendPeer>,
    allowed: Arc<AllowedIps>,
    /// The destination looked up last: most packets follow one of their own flow.
    last: Option<(IpAddr, PeerId)>,
    mtu: usize,
    /// When something is due at the earliest; it may have moved on by then.
    due: Option<BootNanos>,
    packet: Vec<u8>,
    batch: Batch,
}

impl Sending {
    pub(super) fn new(
        shared: Shared,
        tun: TunQueue,
        socket: UdpSocket,
        v6: bool,
        inbox: Inbox,
        detours: Detours,
    ) -> Self {
        Self {
            outbox: Outbox::new(shared.sink.clone()),
            mtu: shared.mtu.into(),
            shared,
            tun,
            socket,
            v6,
            inbox,
            detours,
            peers: Peers::default(),
            allowed: Arc::default(),
            last: None,
            due: None,
            packet: vec![0; READ],
            batch: Batch::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<(), LaneError> {
        loop {
            let retry = self.outbox.flush();
            while let Ok(command) = self.inbox.receiver.try_recv() {
                // What was kept for the next send was sealed before this command.
                self.flush((self.shared.clock)());
                if matches!(command, LaneCommand::Shutdown) {
                    return Ok(());
                }
                self.obey(command);
            }
            let now = (self.shared.clock)();
            if self.due.is_some_and(|due| due <= now) {
                self.due = self.do_due(now);
            }
            self.pass_handed(now);
            if !self.pass_batch(now)? {
                let wait = self.due.map(|at| at.saturating_sub(now)).into_iter().chain(retry).min();
                let ready = sys::poll_readable([self.inbox.wake.as_fd(), self.tun.fd()], wait);
                if let [true, _] = ready.map_err(LaneError::TunGone)? {
                    sys::clear(self.inbox.wake.as_fd());
                }
            }
        }
    }

    /// Ends keys and sends keepalives that are due; when the next is.
    fn do_due(&mut self, now: BootNanos) -> Option<BootNanos> {
        let mut next: Option<BootNanos> = None;
        let mut keepalives = Vec::new();
        let lane = self.shared.lane;
        for (peer, p) in self.peers.iter_mut() {
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
        // What is due may be another now; the loop looks again.
        self.due = Some(now);
        match command {
            LaneCommand::AddPeer { peer, endpoint, keepalive, stats } => {
                let added = SendPeer {
                    endpoint: endpoint.map(|a| Endpoint::new(self.v6, a)),
                    keepalive: nanos(keepalive),
                    last_sent: now,
                    stats,
                    session: None,
                    highest_epoch: None,
                    ended: false,
                    apart_until: 0,
                    detour: None,
                    mtu: usize::MAX,
                };
                self.peers.insert(peer, added);
            }
            LaneCommand::RemovePeer { peer } => {
                self.peers.remove(peer);
            }
            LaneCommand::SetAllowedIps(table) => {
                self.allowed = table;
                self.last = None;
            }
            LaneCommand::SetMtu(mtu) => self.mtu = mtu.into(),
            LaneCommand::SetPeerMtu { peer, mtu } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.mtu = mtu.into();
                }
            }
            LaneCommand::SetEndpoint { peer, addr } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.endpoint = Some(Endpoint::new(self.v6, addr));
                }
            }
            LaneCommand::SetKeepalive { peer, keepalive } => {
                if let Some(p) = self.peers.get_mut(peer) {
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
            LaneCommand::SetDetour { peer, via } => {
                let via = via.filter(|via| *via != self.shared.lane);
                if let Some(p) = self.peers.get_mut(peer) {
                    if p.detour.is_some() {
                        self.detours.wait();
                    }
                    p.detour = via;
                }
            }
            LaneCommand::StopSealing { peer } => {
                if let Some(p) = self.peers.get_mut(peer) {
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
        let Some(p) = self.peers.get_mut(key.peer) else { return false };
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
        let Some(p) = self.peers.get_mut(peer) else { return };
        let (Some(session), Some(to)) = (&mut p.session, &p.endpoint) else { return };
        let Ok(len) = session.seal(&mut buffer, 0, 0, now) else { return };
        p.last_sent = now;
        let out = Outgoing { bytes: &buffer[..len], segment: None, tos: 0, to };
        match sys::send_batch(self.socket.as_fd(), std::iter::once(out), 1) {
            Ok(_) => count_sent(&p.stats, 1, len, now),
            Err(_) => p.stats.tx.queue_full.add(1),
        }
    }

    /// Seals and sends what other lanes handed over.
    fn pass_handed(&mut self, now: BootNanos) {
        let (mut handed, mut more): (Option<Vec<Handed>>, bool) = (None, false);
        while let Some(one) = self.detours.take() {
            let len = one.bytes.len().min(READ);
            self.packet[..len].copy_from_slice(&one.bytes[..len]);
            self.take(len, now, false);
            handed.get_or_insert_default().push(one);
            if self.batch.is_full() {
                more = true;
                break;
            }
        }
        if let Some(handed) = handed {
            self.flush(now);
            // Only now they count as sent.
            drop(handed);
        }
        if more {
            sys::signal(self.inbox.wake.as_fd());
        }
    }

    /// Reads while there is something, up to a batch, seals it and sends it; whether there may be more.
    fn pass_batch(&mut self, now: BootNanos) -> Result<bool, LaneError> {
        let mut more = true;
        for _ in 0..READS {
            match self.tun.read(&mut self.packet) {
                Ok(len) => self.take(len, now, true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(LaneError::TunGone(error)),
            }
            if self.batch.is_full() {
                break;
            }
        }
        // A super-packet is a little more than one piece for the socket; what is beyond goes with the next one, which is
        // read at once.
        match self.batch.complete() {
            complete if more && complete > 0 && complete < self.batch.runs().len() => {
                self.send_runs(complete, now);
                self.batch.keep_last();
            }
            _ => self.flush(now),
        }
        Ok(more)
    }

    /// Takes what one read gave, of our `own` queue or handed over: a packet, or several that belong to one flow.
    fn take(&mut self, len: usize, now: BootNanos, own: bool) {
        let header = self.packet.first_chunk().map(Vnet::parse).filter(|_| len > Vnet::LEN);
        let packet = &mut self.packet[Vnet::LEN.min(len)..len];
        let (Some(header), Some((destination, tos))) = (header, destination(packet)) else {
            return self.shared.stats.malformed.add(1);
        };
        let peer = match self.last {
            Some((last, peer)) if last == destination => Some(peer),
            _ => self.allowed.lookup(destination),
        };
        let Some((peer, detour)) = peer.and_then(|peer| Some((peer, self.peers.get_mut(peer)?.detour)))
        else {
            return self.shared.stats.no_peer.add(1);
        };
        self.last = Some((destination, peer));
        if let (Some(via), true) = (detour, own) {
            return self.hand_over(peer, via, header, len);
        }
        let Ok(split) = split::plan(header, packet) else {
            return self.shared.stats.malformed.add(1);
        };
        let tos = match self.shared.dscp {
            Dscp::Inherit => tos,
            Dscp::Fixed(dscp) => dscp << 2 | tos & 3,
        };
        let count = split.map_or(1, |split| split.count());
        let mut next = 0;
        while next < count {
            next = self.seal(peer, tos, len, split, next..count, now);
            if next < count {
                self.flush(now);
            }
        }
    }

    fn hand_over(&mut self, peer: PeerId, via: u8, header: Vnet, len: usize) {
        if self.detours.hand_over(via, &self.packet[..len]) {
            return;
        }
        let segments = len.checked_div(header.gso_size.into()).unwrap_or(1).max(1);
        if let Some(p) = self.peers.get(peer) {
            p.stats.tx.queue_full.add(u64::try_from(segments).unwrap_or(1));
        }
    }

    /// Seals segments of the packet that was read while the batch has room for them; the first that is left.
    fn seal(
        &mut self,
        peer: PeerId,
        tos: u8,
        len: usize,
        split: Option<Split>,
        segments: std::ops::Range<usize>,
        now: BootNanos,
    ) -> usize {
        let packet = &self.packet[Vnet::LEN..len];
        let Some(p) = self.peers.get_mut(peer) else { return segments.end };
        let left = |from: usize| u64::try_from(segments.end - from).unwrap_or(0);
        let (Some(session), true) = (&mut p.session, p.endpoint.is_some()) else {
            if p.ended { &p.stats.tx.expired } else { &p.stats.tx.no_epoch }.add(left(segments.start));
            return segments.end;
        };
        let alone = now < p.apart_until;
        p.last_sent = now;
        for segment in segments.clone() {
            let inner = split.map_or(packet.len(), |split| split.len(segment));
            let padded = inner.next_multiple_of(16).min(self.mtu.min(p.mtu).max(inner));
            let Some(room) = self.batch.room(HEADER + padded + TAG) else { return segment };
            let out = &mut room[HEADER..HEADER + inner];
            match split {
                Some(split) => split.write(packet, segment, out),
                None => out.copy_from_slice(packet),
            }
            match session.seal(room, inner, padded, now) {
                Ok(len) => self.batch.add(peer, tos, len, alone),
                Err(error) => {
                    p.stats.tx.expired.add(left(segment));
                    let (lane, epoch) = (self.shared.lane, session.epoch);
                    let why = match error {
                        SealError::Expired => SealingEnd::Expired,
                        SealError::PacketLimit => SealingEnd::PacketLimit,
                    };
                    p.session = None;
                    p.ended = true;
                    self.outbox.tell(move || LaneEvent::SealingEnded { lane, peer, epoch, why });
                    return segments.end;
                }
            }
        }
        segments.end
    }

    /// Sends the batch.
    fn flush(&mut self, now: BootNanos) {
        self.send_runs(self.batch.runs().len(), now);
        self.batch.clear();
    }

    /// Sends the first `count` runs.
    fn send_runs(&mut self, count: usize, now: BootNanos) {
        let (mut first, mut count) = (0, count);
        while first < count {
            let run = self.batch.runs()[first];
            let datagrams = self.batch.runs()[first..count].iter().map_while(|run| {
                let to = self.peers.get(run.peer)?.endpoint.as_ref()?;
                let segment = u16::try_from(run.size).ok().filter(|_| run.count > 1);
                Some(Outgoing { bytes: self.batch.datagrams(run), segment, tos: run.tos, to })
            });
            match sys::send_batch(self.socket.as_fd(), datagrams, count - first) {
                Ok(sent @ 1..) => {
                    for run in &self.batch.runs()[first..first + sent] {
                        if let Some(p) = self.peers.get(run.peer) {
                            count_sent(&p.stats, run.count, run.bytes(), now);
                        }
                    }
                    first += sent;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // While we wait, the TUN's own queue holds senders back, which loses less than a drop here.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && sys::poll_writable(self.socket.as_fd(), ROOM_WAIT) => {}
                // Some devices and paths take no datagrams in one piece: no checksum offload (EIO), or a size beyond the
                // path's MTU (EINVAL), which the kernel fragments when it comes alone.
                Err(error)
                    if run.count > 1
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                        ) =>
                {
                    if let Some(p) = self.peers.get_mut(run.peer) {
                        p.apart_until = now + APART;
                        p.stats.tx.refused.add(u64::try_from(run.count).unwrap_or(0));
                    }
                    count += run.count - 1;
                    self.batch.take_apart(first);
                }
                Ok(0) | Err(_) => {
                    self.count_refused(&run);
                    first += 1;
                }
            }
        }
    }

    fn count_refused(&self, run: &Run) {
        if let Some(p) = self.peers.get(run.peer) {
            p.stats.tx.queue_full.add(u64::try_from(run.count).unwrap_or(0));
        }
    }
}

fn count_sent(stats: &PeerStats, packets: usize, bytes: usize, now: BootNanos) {
    let count = u64::try_from(packets).unwrap_or(0);
    stats.tx.packets.add(count);
    stats.tx.joined.add(if packets > 1 { count } else { 0 });
    stats.tx.bytes.add(u64::try_from(bytes).unwrap_or(0));
    stats.tx.last_at.raise_to(now);
}

fn nanos(span: Option<Duration>) -> Option<u64> {
    span.filter(|s| !s.is_zero()).map(|s| u64::try_from(s.as_nanos()).unwrap_or(u64::MAX / 2))
}

/// The destination of an IP packet, and its traffic class.
fn destination(packet: &[u8]) -> Option<(IpAddr, u8)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            Some((packet[16..20].first_chunk::<4>().map(|a| IpAddr::from(*a))?, packet[1]))
        }
        6 if packet.len() >= 40 => {
            let class = packet[0] << 4 | packet[1] >> 4;
            Some((packet[24..40].first_chunk::<16>().map(|a| IpAddr::from(*a))?, class))
        }
        _ => None,
    }
}
