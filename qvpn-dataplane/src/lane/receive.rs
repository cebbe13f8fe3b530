//! The receiving thread of a lane: UDP → opened in place → replay window → inner source check → TUN. It owns the opening
//! keys and erases them by its own timer.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use super::LaneError;
use super::outbox::Outbox;
use super::start::{Filter, Inbox, Mailbox, Shared};
use crate::allowed_ips::AllowedIps;
use crate::clock::BootNanos;
use crate::command::{LaneCommand, LaneEvent};
use crate::key::{OpeningKey, PeerId};
use crate::session::{DATA, HEADER, OpenError, OpeningSession, TAG};
use crate::stats::PeerStats;
use crate::sys::{self, BATCH};
use crate::tun::TunQueue;

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

/// The tables, apart from the buffers that are borrowed while a batch is handled.
struct Tables {
    shared: Shared,
    tun: TunQueue,
    filter: Filter,
    outbox: Outbox,
    to_sender: Mailbox,
    peers: BTreeMap<PeerId, ReceivePeer>,
    sessions: BTreeMap<u32, OpeningSession>,
    allowed: Arc<AllowedIps>,
}

pub(super) struct Receiving {
    socket: UdpSocket,
    inbox: Inbox,
    tables: Tables,
    buffers: Vec<Vec<u8>>,
}

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
            tun,
            filter,
            to_sender,
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            allowed: Arc::default(),
        };
        Self { socket, inbox, tables, buffers: vec![vec![0; 65_535]; BATCH] }
    }

    pub(super) fn run(mut self) -> Result<(), LaneError> {
        loop {
            let retry = self.tables.outbox.flush();
            let now = (self.tables.shared.clock)();
            let deadline = self.tables.end_due(now);
            let wait = deadline.map(|at| at.saturating_sub(now)).into_iter().chain(retry).min();
            let ready = sys::poll_readable([self.inbox.wake.as_fd(), self.socket.as_fd()], wait);
            let [woken, datagrams] = ready.map_err(LaneError::SocketFailed)?;
            if woken {
                sys::clear(self.inbox.wake.as_fd());
                while let Ok(command) = self.inbox.receiver.try_recv() {
                    if matches!(command, LaneCommand::Shutdown) {
                        return Ok(());
                    }
                    self.tables.obey(command);
                }
            }
            if datagrams {
                let now = (self.tables.shared.clock)();
                let tables = &mut self.tables;
                let got = sys::receive_batch(self.socket.as_fd(), &mut self.buffers, |datagram, from| {
                    tables.take(datagram, from, now);
                });
                match got.map_err(|e| (e.kind(), e.raw_os_error(), e)) {
                    // An ICMP error of an earlier send shows up here, too.
                    Ok(_)
                    | Err((
                        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused,
                        ..,
                    )) => {}
                    Err((
                        _,
                        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOBUFS | libc::ENOMEM),
                        _,
                    )) => {}
                    Err((_, _, error)) => return Err(LaneError::SocketFailed(error)),
                }
            }
        }
    }
}

impl Tables {
    /// Erases keys that ended; when the next does.
    fn end_due(&mut self, now: BootNanos) -> Option<BootNanos> {
        self.sessions.retain(|_, s| s.expires_at > now);
        self.sessions.values().map(|s| s.expires_at).min()
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
                self.peers.remove(&peer);
                self.sessions.retain(|_, s| s.peer != peer);
            }
            LaneCommand::SetAllowedIps(table) => self.allowed = table,
            LaneCommand::SetEndpoint { peer, addr } => {
                if let Some(p) = self.peers.get_mut(&peer) {
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
            | LaneCommand::SetKeepalive { .. }
            | LaneCommand::InstallSealing { .. }
            | LaneCommand::SendEmpty { .. }
            | LaneCommand::StopSealing { .. }
            | LaneCommand::Shutdown => {}
        }
    }

    fn install(&mut self, key: &OpeningKey, now: BootNanos) -> bool {
        let Some(p) = self.peers.get_mut(&key.peer) else { return false };
        let later = p.highest_epoch.is_none_or(|highest| key.epoch > highest);
        let free = !self.sessions.contains_key(&key.index);
        if !later || !free || key.expires_at <= now || key.index >> 31 == 0 {
            return false;
        }
        let Some(session) = OpeningSession::new(key) else { return false };
        p.highest_epoch = Some(key.epoch);
        self.sessions.insert(key.index, session);
        true
    }

    fn take(&mut self, datagram: &mut [u8], from: SocketAddr, now: BootNanos) {
        let (kind, index) = match (field(datagram, 0), field(datagram, 4)) {
            (Some(kind), Some(index)) => (kind, index),
            _ => return self.shared.stats.malformed.add(1),
        };
        match kind {
            DATA if index >> 31 == 1 && datagram.len() >= HEADER + TAG => {
                self.open(datagram, index, from, now)
            }
            DATA if index >> 31 == 0 && datagram.len() >= HEADER + TAG => self.control(datagram, from),
            1..=3 if self.shared.lane == 0 => {
                if kind == 3 || (self.filter)(datagram) {
                    self.control(datagram, from);
                } else {
                    self.shared.stats.malformed.add(1);
                }
            }
            _ => self.shared.stats.malformed.add(1),
        }
    }

    fn control(&mut self, datagram: &[u8], from: SocketAddr) {
        // The largest control datagram fits the smallest IPv6 MTU.
        if datagram.len() > 1280 {
            return self.shared.stats.malformed.add(1);
        }
        let event = LaneEvent::Control { lane: self.shared.lane, from, datagram: datagram.to_vec() };
        if !self.outbox.try_tell(event) {
            self.shared.stats.queue_full.add(1);
        }
    }

    fn open(&mut self, datagram: &mut [u8], index: u32, from: SocketAddr, now: BootNanos) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return self.shared.stats.unknown_index.add(1);
        };
        let (peer, epoch) = (session.peer, session.epoch);
        let Some(p) = self.peers.get_mut(&peer) else {
            return self.shared.stats.unknown_index.add(1);
        };
        let size = datagram.len();
        let (text, highest) = match session.open(datagram, now) {
            Ok(opened) => opened,
            Err(OpenError::Expired) => return p.stats.rx.expired.add(1),
            Err(OpenError::Replay) => return p.stats.rx.replay.add(1),
            Err(OpenError::Auth) => return p.stats.rx.auth.add(1),
        };
        p.stats.rx.packets.add(1);
        p.stats.rx.bytes.add(u64::try_from(size).unwrap_or(0));
        p.stats.rx.last_at.raise_to(now);
        let lane = self.shared.lane;
        if std::mem::replace(&mut session.fresh, false) {
            self.outbox.tell(move || LaneEvent::FirstOpened { lane, peer, epoch });
        }
        if p.newest_heard.is_none_or(|newest| epoch > newest) {
            p.newest_heard = Some(epoch);
        }
        if highest && p.newest_heard == Some(epoch) && p.endpoint != Some(from) {
            p.endpoint = Some(from);
            self.to_sender.put(LaneCommand::SetEndpoint { peer, addr: from });
            p.untold = true;
        }
        if let (true, Some(endpoint)) = (p.untold, p.endpoint) {
            // Where there is no room now, the next packet tries again.
            p.untold = !self.outbox.try_tell(LaneEvent::Roamed { lane, peer, endpoint });
        }
        if text.is_empty() {
            return;
        }
        let Some((source, len)) = source_and_length(text) else {
            return p.stats.rx.not_allowed_ip.add(1);
        };
        if self.allowed.lookup(source) != Some(peer) {
            return p.stats.rx.not_allowed_ip.add(1);
        }
        if self.tun.write(&text[..len]).is_err() {
            self.shared.stats.queue_full.add(1);
        }
    }
}

fn field(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The source of an IP packet, and its length by its own header, which the padding goes beyond.
fn source_and_length(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let length = |at: usize| packet.get(at..)?.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)));
    let (source, len) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => (IpAddr::from(*packet[12..].first_chunk::<4>()?), length(2)?),
        6 if packet.len() >= 40 => (IpAddr::from(*packet[8..].first_chunk::<16>()?), 40 + length(4)?),
        _ => return None,
    };
    let least = if source.is_ipv4() { 20 } else { 40 };
    (least..=packet.len()).contains(&len).then_some((source, len))
}
