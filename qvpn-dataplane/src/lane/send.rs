//! The sending thread of a lane: TUN → allowed IPs → encryption in place → UDP. It owns the sealing keys and
//! expires them by its own timer, independently of the control task.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use qvpn_types::{Direction, PeerNumber, Time};

use super::config::{Dscp, LaneContext};
use super::event_queue::EventQueue;
use super::forward::{ForwardedRead, Forwarder};
use super::icmp::{IcmpError, IcmpErrors, exceeds};
use super::inner::destination;
use super::mailbox::{Inbox, SendCommand};
use super::peer_table::PeerTable;
use super::rate_limit::RateLimit;
use super::routing::Routing;
use super::send_batch::{Run, SendBatch};
use super::send_peer::{SendPeer, count_sent, nonzero};
use crate::error::LaneError;
use crate::event::{LaneEvent, SealingEnd};
use crate::kernel_routes::Selection;
use crate::session::{HEADER, SealError, TAG};
use crate::tun::TunQueue;
use crate::tun::split::{self, Split};
use crate::tun::vnet::Vnet;
use crate::udp::Endpoint;
use crate::udp::batch::{Outgoing, send_batch};
use crate::wake::{poll_readable, poll_writable};

/// Room for the largest read of the TUN: a virtio header, an IPv6 header and 65,535 bytes.
const READ_BYTES: usize = Vnet::LEN + 40 + 65_535;

/// The largest number of reads before a batch is sent, even if they are small.
const MAX_READS_PER_BATCH: usize = 128;

/// How long a batch waits until the socket's queue has room.
const SOCKET_WRITABLE_TIMEOUT: Duration = Duration::from_millis(50);
/// How long datagrams to a peer are sent one by one after the kernel refused a joined send. The peer's path
/// may have changed by then.
const NO_GSO_DURATION: Duration = Duration::from_secs(10);

/// The rate and burst of packets to multicast addresses of the link. Each goes to all peers.
const MULTICAST_PER_SECOND: u32 = 500;
const MULTICAST_BURST: u32 = 500;

pub(super) struct Sender {
    context: LaneContext,
    tun: TunQueue,
    socket: UdpSocket,
    v6: bool,
    inbox: Inbox<SendCommand>,
    forwarder: Forwarder,
    events: EventQueue,
    peers: PeerTable<SendPeer>,
    routing: Routing,
    errors: IcmpErrors,
    multicast: RateLimit,
    /// The last destination and its peer: most packets have the same destination as the packet before.
    last: Option<(IpAddr, PeerNumber)>,
    mtu: usize,
    /// When the next timer may be due.
    due: Option<Time>,
    packet: Vec<u8>,
    batch: SendBatch,
}

impl Sender {
    pub(super) fn new(
        context: LaneContext,
        tun: TunQueue,
        (socket, v6): (UdpSocket, bool),
        inbox: Inbox<SendCommand>,
        forwarder: Forwarder,
    ) -> Self {
        Self {
            events: EventQueue::new(context.sink.clone()),
            mtu: context.mtu.into(),
            context,
            tun,
            socket,
            v6,
            inbox,
            forwarder,
            peers: PeerTable::default(),
            routing: Routing::default(),
            errors: IcmpErrors::new(),
            multicast: RateLimit::new(MULTICAST_PER_SECOND, MULTICAST_BURST),
            last: None,
            due: None,
            packet: vec![0; READ_BYTES],
            batch: SendBatch::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<(), LaneError> {
        loop {
            let retry = self.events.flush();
            while let Some(command) = self.inbox.take() {
                // Datagrams that wait for the next send were sealed before this command.
                self.flush((self.context.clock)());
                if matches!(command, SendCommand::Shutdown) {
                    return Ok(());
                }
                self.apply(command);
            }
            let now = (self.context.clock)();
            if self.due.is_some_and(|due| due <= now) {
                self.due = self.run_timers(now);
            }
            self.send_forwarded(now);
            if !self.send_own(now)? {
                let wait = self.due.map(|at| at.since(now)).into_iter().chain(retry).min();
                let ready = poll_readable([self.inbox.as_fd(), self.tun.fd()], wait);
                if let [true, _] = ready.map_err(LaneError::TunGone)? {
                    self.inbox.clear_wake();
                }
            }
        }
    }

    /// Expires keys and sends due keepalives. Returns the time of the next deadline.
    fn run_timers(&mut self, now: Time) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut keepalives = Vec::new();
        let lane = self.context.lane;
        for (peer, p) in self.peers.iter_mut() {
            if let Some(epoch) = p.expire(now) {
                let why = SealingEnd::Expired;
                self.events.emit(LaneEvent::SealingEnded { lane, peer, epoch, why });
            }
            let (deadline, keepalive) = p.deadline(now);
            next = next.into_iter().chain(deadline).min();
            if keepalive {
                keepalives.push(peer);
            }
        }
        for peer in keepalives {
            self.send_empty(peer, now);
        }
        next
    }

    fn apply(&mut self, command: SendCommand) {
        let now = (self.context.clock)();
        // The command may move a deadline forward; the loop computes it again.
        self.due = Some(now);
        match command {
            SendCommand::AddPeer { peer, endpoint, keepalive, stats } => {
                let endpoint = endpoint.map(|a| Endpoint::new(self.v6, a));
                let added = SendPeer::new(endpoint, keepalive, stats, now);
                self.peers.insert(peer, added);
            }
            SendCommand::RemovePeer { peer } => {
                self.peers.remove(peer);
            }
            SendCommand::SetRouting(routing) => {
                self.routing = routing;
                self.last = None;
            }
            SendCommand::SetMtu(mtu) => self.mtu = mtu.into(),
            SendCommand::SetPeerMtu { peer, mtu } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.mtu = mtu.into();
                }
            }
            SendCommand::SetEndpoint { peer, endpoint } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.endpoint = Some(Endpoint::new(self.v6, endpoint));
                }
            }
            SendCommand::SetKeepalive { peer, keepalive } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.keepalive = nonzero(keepalive);
                }
            }
            SendCommand::Install { key, announce } => {
                let (lane, peer, epoch, direction) =
                    (self.context.lane, key.peer, key.epoch, Direction::Sealing);
                let in_force = self.peers.get_mut(peer).is_some_and(|p| p.install(&key, now));
                drop(key);
                self.events.emit(LaneEvent::Installed { lane, peer, epoch, direction, in_force });
                if in_force && announce {
                    self.send_empty(peer, now);
                }
            }
            SendCommand::SendEmpty { peer } => self.send_empty(peer, now),
            SendCommand::SetReroute { peer, via } => {
                let via = via.filter(|via| *via != self.context.lane);
                if let Some(p) = self.peers.get_mut(peer) {
                    if p.reroute.is_some() {
                        self.forwarder.wait_for_acknowledgements();
                    }
                    p.reroute = via;
                }
            }
            SendCommand::StopSealing { peer } => {
                if let Some(p) = self.peers.get_mut(peer) {
                    p.session = None;
                }
            }
            // `run` returns before this command gets here.
            SendCommand::Shutdown => {}
        }
    }

    fn send_empty(&mut self, peer: PeerNumber, now: Time) {
        let mut buffer = [0u8; HEADER + TAG];
        let Some(p) = self.peers.get_mut(peer) else { return };
        let (Some(session), Some(to)) = (&mut p.session, &p.endpoint) else { return };
        let Ok(len) = session.seal(&mut buffer, 0, 0, now) else { return };
        p.last_sent = now;
        let out = Outgoing { bytes: &buffer[..len], segment: None, tos: 0, to };
        match send_batch(self.socket.as_fd(), std::iter::once(out), 1) {
            Ok(_) => count_sent(&p.stats, 1, len, now),
            Err(_) => p.stats.tx.queue_full.add(1),
        }
    }

    /// Seals and sends the reads that other lanes forwarded.
    fn send_forwarded(&mut self, now: Time) {
        let (mut forwarded, mut more): (Option<Vec<ForwardedRead>>, bool) = (None, false);
        while let Some(read) = self.forwarder.take() {
            let len = read.bytes.len().min(READ_BYTES);
            self.packet[..len].copy_from_slice(&read.bytes[..len]);
            self.send_forwarded_read(read.peer, len, now);
            forwarded.get_or_insert_default().push(read);
            if self.batch.is_full() {
                more = true;
                break;
            }
        }
        if let Some(forwarded) = forwarded {
            self.flush(now);
            // The drop acknowledges them as sent.
            drop(forwarded);
        }
        if more {
            self.inbox.wake_again();
        }
    }

    /// Reads at most a batch of the lane's own packets, seals and sends them. Returns whether there may be
    /// more.
    fn send_own(&mut self, now: Time) -> Result<bool, LaneError> {
        let mut more = true;
        for _ in 0..MAX_READS_PER_BATCH {
            match self.tun.read(&mut self.packet) {
                Ok(len) => self.handle(len, now),
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
        // A super-packet is slightly more than one send to the socket. The rest is kept for the next send,
        // which follows at once.
        match self.batch.complete() {
            complete if more && complete > 0 && complete < self.batch.runs().len() => {
                self.send_runs(complete, now);
                self.batch.keep_last();
            }
            _ => self.flush(now),
        }
        Ok(more)
    }

    /// Sends what one read of this lane's queue returned: one packet, or several of one flow.
    fn handle(&mut self, len: usize, now: Time) {
        let header = self.packet.first_chunk().map(Vnet::parse).filter(|_| len > Vnet::LEN);
        let packet = &self.packet[Vnet::LEN.min(len)..len];
        let (Some(header), Some((destination, tos))) = (header, destination(packet)) else {
            return self.context.stats.malformed.add(1);
        };
        let selection = match self.last {
            Some((last, peer)) if last == destination => Selection::Peer(peer),
            _ => self.routing.select(destination, packet),
        };
        match selection {
            Selection::Peer(peer) => {
                self.last = Some((destination, peer));
                self.send_to(peer, header, tos, len, now);
            }
            Selection::PeerOfFlow(peer) => self.send_to(peer, header, tos, len, now),
            Selection::Everyone => self.send_to_everyone(header, tos, len, now),
            Selection::NotAllowed(peer) => {
                if let Some(p) = self.peers.get(peer) {
                    p.stats.tx.not_allowed_ip.add(1);
                }
                self.errors.answer(&self.tun, packet, IcmpError::Prohibited, now);
            }
            Selection::NoPeer => self.no_peer(len, now),
        }
    }

    fn no_peer(&mut self, len: usize, now: Time) {
        self.context.stats.no_peer.add(1);
        if self.routing.answers_errors() {
            self.errors.answer(&self.tun, &self.packet[Vnet::LEN..len], IcmpError::NoRoute, now);
        }
    }

    /// Sends the packets of the last read to a peer, by another lane if it is rerouted.
    fn send_to(&mut self, peer: PeerNumber, header: Vnet, tos: u8, len: usize, now: Time) {
        let Some(p) = self.peers.get(peer) else { return self.no_peer(len, now) };
        match p.reroute {
            Some(via) => self.forward(peer, via, header, len),
            None => self.send_read(peer, header, tos, len, now),
        }
    }

    /// Sends the packets of the last read to each peer that has a key.
    fn send_to_everyone(&mut self, header: Vnet, tos: u8, len: usize, now: Time) {
        if !self.multicast.allows(now) {
            return self.context.stats.no_peer.add(1);
        }
        // Completes the checksum once for all peers.
        let Ok(None) = split::plan(header, &mut self.packet[Vnet::LEN..len]) else {
            return self.context.stats.malformed.add(1);
        };
        let header = Vnet::default();
        self.packet[..Vnet::LEN].copy_from_slice(&header.bytes());
        let live = self.peers.iter_mut().filter(|(_, p)| p.is_live()).map(|(peer, _)| peer);
        for peer in live.collect::<Vec<_>>() {
            self.send_to(peer, header, tos, len, now);
        }
    }

    fn send_forwarded_read(&mut self, peer: PeerNumber, len: usize, now: Time) {
        let header = self.packet.first_chunk().map(Vnet::parse).filter(|_| len > Vnet::LEN);
        let packet = &self.packet[Vnet::LEN.min(len)..len];
        match (header, destination(packet)) {
            (Some(header), Some((_, tos))) => self.send_read(peer, header, tos, len, now),
            _ => self.context.stats.malformed.add(1),
        }
    }

    /// Seals the packets of the last read for a peer. `tos` is their traffic class.
    fn send_read(&mut self, peer: PeerNumber, header: Vnet, tos: u8, len: usize, now: Time) {
        let packet = &mut self.packet[Vnet::LEN..len];
        let Ok(split) = split::plan(header, packet) else {
            return self.context.stats.malformed.add(1);
        };
        if self.routing.answers_errors() && self.too_big(peer, split, len, now) {
            return;
        }
        let tos = match self.context.dscp {
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

    /// Whether packets of the last read are too big for the peer's path; their sender then gets an error.
    fn too_big(&mut self, peer: PeerNumber, split: Option<Split>, len: usize, now: Time) -> bool {
        let Some(p) = self.peers.get(peer) else { return false };
        let packet = &self.packet[Vnet::LEN..len];
        let largest = split.map_or(packet.len(), |split| split.len(0));
        if !exceeds(packet, largest, p.mtu) {
            return false;
        }
        p.stats.tx.too_big.add(split.map_or(1, |split| u64::try_from(split.count()).unwrap_or(1)));
        let mtu = u16::try_from(p.mtu).unwrap_or(u16::MAX);
        self.errors.answer(&self.tun, packet, IcmpError::TooBig(mtu), now);
        true
    }

    fn forward(&mut self, peer: PeerNumber, via: u8, header: Vnet, len: usize) {
        if self.forwarder.forward(via, peer, &self.packet[..len]) {
            return;
        }
        let segments = len.checked_div(header.gso_size.into()).unwrap_or(1).max(1);
        if let Some(p) = self.peers.get(peer) {
            p.stats.tx.queue_full.add(u64::try_from(segments).unwrap_or(1));
        }
    }

    /// Seals segments of the last read while the batch has room. Returns the first segment that is left.
    fn seal(
        &mut self,
        peer: PeerNumber,
        tos: u8,
        len: usize,
        split: Option<Split>,
        segments: std::ops::Range<usize>,
        now: Time,
    ) -> usize {
        let packet = &self.packet[Vnet::LEN..len];
        let Some(p) = self.peers.get_mut(peer) else { return segments.end };
        let left = |from: usize| u64::try_from(segments.end - from).unwrap_or(0);
        let (Some(session), true) = (&mut p.session, p.endpoint.is_some()) else {
            if p.ended { &p.stats.tx.expired } else { &p.stats.tx.no_epoch }.add(left(segments.start));
            return segments.end;
        };
        let alone = now < p.no_gso_until;
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
                    let (lane, epoch) = (self.context.lane, session.epoch);
                    let why = match error {
                        SealError::Expired => SealingEnd::Expired,
                        SealError::PacketLimit => SealingEnd::PacketLimit,
                    };
                    p.session = None;
                    p.ended = true;
                    self.events.emit(LaneEvent::SealingEnded { lane, peer, epoch, why });
                    return segments.end;
                }
            }
        }
        segments.end
    }

    /// Sends the batch.
    fn flush(&mut self, now: Time) {
        self.send_runs(self.batch.runs().len(), now);
        self.batch.clear();
    }

    /// Sends the first `count` runs.
    fn send_runs(&mut self, count: usize, now: Time) {
        let (mut first, mut count) = (0, count);
        while first < count {
            let run = self.batch.runs()[first];
            let datagrams = self.batch.runs()[first..count].iter().map_while(|run| {
                let to = self.peers.get(run.peer)?.endpoint.as_ref()?;
                let segment = u16::try_from(run.size).ok().filter(|_| run.count > 1);
                Some(Outgoing { bytes: self.batch.datagrams(run), segment, tos: run.tos, to })
            });
            match send_batch(self.socket.as_fd(), datagrams, count - first) {
                Ok(sent @ 1..) => {
                    for run in &self.batch.runs()[first..first + sent] {
                        if let Some(p) = self.peers.get(run.peer) {
                            count_sent(&p.stats, run.count, run.bytes(), now);
                        }
                    }
                    first += sent;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // While this thread waits, the TUN's own queue slows senders down, which loses less than a
                // drop here.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && poll_writable(self.socket.as_fd(), SOCKET_WRITABLE_TIMEOUT) => {}
                // Some devices and paths refuse joined datagrams: the device has no checksum offload (EIO),
                // or the size exceeds the path's MTU (EINVAL). The kernel fragments such a datagram if it is
                // sent alone.
                Err(error)
                    if run.count > 1
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                        ) =>
                {
                    if let Some(p) = self.peers.get_mut(run.peer) {
                        p.no_gso_until = now + NO_GSO_DURATION;
                        p.stats.tx.refused.add(u64::try_from(run.count).unwrap_or(0));
                    }
                    count += run.count - 1;
                    self.batch.split_run(first);
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
