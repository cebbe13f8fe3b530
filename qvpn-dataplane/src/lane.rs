//! Lanes. Each lane has one TUN queue, one UDP socket, and a sending and a receiving thread with keys and
//! counters of their own. Each thread owns its tables, so packets need no lock unless they are rerouted.

mod config;
mod ecn;
mod event_queue;
mod forward;
mod icmp;
mod index_table;
mod inner;
mod mailbox;
mod peer_table;
mod rate_limit;
mod receive;
mod routing;
mod send;
mod send_batch;
mod send_peer;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use qvpn_types::{LocalEpoch, PeerNumber, Time};

use crate::allowed_ips::AllowedIps;
use crate::error::LaneError;
use crate::event::{LaneEvent, LaneSink};
use crate::kernel_routes::KernelRoutes;
use crate::key::{OpeningKey, SealingKey};
use crate::sched;
use crate::stats::PeerStats;
use crate::tun::TunQueue;
use crate::udp;
use config::LaneContext;
pub use config::{Admission, Dscp, Filter, LanesConfig};
use forward::{ForwardQueue, ForwardSender, forward_queue};
use mailbox::{Inbox, Mailbox, ReceiveCommand, SendCommand, mailbox};
use receive::Receiver;
use routing::Routing;
use send::Sender;

/// Items for the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod internals {
    pub(crate) use super::ecn::decapsulate;
    pub(crate) use super::index_table::IndexTable;
    pub(crate) use super::inner::source_and_length;
}

/// The mailboxes of a lane's two threads.
struct LaneMailboxes {
    send: Mailbox<SendCommand>,
    receive: Mailbox<ReceiveCommand>,
}

/// The running lanes of an interface. Each thread applies its commands in the order of the calls. A call for
/// a lane that does not exist does nothing and erases the key in the command.
pub struct Lanes {
    mailboxes: Vec<LaneMailboxes>,
    control: UdpSocket,
    /// Handles of all lanes' sockets, for their options.
    sockets: Vec<UdpSocket>,
    narrow: Mutex<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The parts of one lane before its threads start.
struct LaneParts {
    lane: u8,
    tun: TunQueue,
    socket: UdpSocket,
    send: Mailbox<SendCommand>,
    send_inbox: Inbox<SendCommand>,
    forwarded: ForwardQueue,
}

impl Lanes {
    /// Starts two threads for each lane.
    ///
    /// # Errors
    /// [`LaneError`] if the numbers of TUN queues and sockets differ or are not 1 to 256, or if the system
    /// refuses threads or descriptors.
    pub fn start(config: LanesConfig, sink: Arc<dyn LaneSink>) -> Result<Self, LaneError> {
        let LanesConfig { tuns, sockets, mtu, dscp, stats, filter, clock } = config;
        let count = tuns.len();
        let control = match sockets.first() {
            Some(first) if count == sockets.len() && count <= 256 => first
                .try_clone()
                .map_err(|source| LaneError::Start { lane: 0, what: "share the UDP socket", source })?,
            _ => return Err(LaneError::Count(count)),
        };
        let (mut senders, mut parts) = (Vec::new(), Vec::new());
        for ((lane, tun), socket) in (0u8..=255).zip(tuns).zip(sockets) {
            let (send, send_inbox) =
                mailbox().map_err(|source| LaneError::Start { lane, what: "make an eventfd", source })?;
            let (sender, forwarded) = forward_queue(send.waker());
            senders.push(sender);
            parts.push(LaneParts { lane, tun, socket, send, send_inbox, forwarded });
        }
        let mut lanes = Self {
            mailboxes: Vec::new(),
            control,
            sockets: Vec::new(),
            narrow: Mutex::default(),
            threads: Mutex::default(),
        };
        let senders: Arc<[ForwardSender]> = senders.into();
        for parts in parts {
            let (sink, stats, clock) = (sink.clone(), stats.clone(), clock.clone());
            let context = LaneContext { lane: parts.lane, sink, stats, clock, mtu, dscp };
            lanes.start_lane(parts, &context, filter.clone(), senders.clone())?;
        }
        Ok(lanes)
    }

    fn start_lane(
        &mut self,
        parts: LaneParts,
        context: &LaneContext,
        filter: Filter,
        senders: Arc<[ForwardSender]>,
    ) -> Result<(), LaneError> {
        let LaneParts { lane, tun, socket, send, send_inbox, forwarded } = parts;
        let failed = |what| move |source| LaneError::Start { lane, what, source };
        let (receive, receive_inbox) = mailbox().map_err(failed("make an eventfd"))?;
        self.sockets.push(socket.try_clone().map_err(failed("share the UDP socket"))?);
        let v6 = socket.local_addr().map_err(failed("ask the UDP socket"))?.is_ipv6();
        let sender = Sender::new(
            context.clone(),
            tun.try_clone().map_err(failed("share the TUN queue"))?,
            (socket.try_clone().map_err(failed("share the UDP socket"))?, v6),
            send_inbox,
            forwarded.with_senders(senders),
        );
        let receiver = Receiver::new(context.clone(), tun, socket, filter, receive_inbox, send.clone());
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        threads.push(
            spawn(format!("lane{lane}-send"), context.clone(), move || sender.run())
                .map_err(failed("start a thread"))?,
        );
        threads.push(
            spawn(format!("lane{lane}-recv"), context.clone(), move || receiver.run())
                .map_err(failed("start a thread"))?,
        );
        self.mailboxes.push(LaneMailboxes { send, receive });
        Ok(())
    }

    /// The number of lanes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.mailboxes.len()
    }

    /// Adds a peer. An existing peer of this number is removed first, with its keys. The lane sends to
    /// `endpoint` until an authenticated packet comes from another address, and sends an empty packet when
    /// it has sent nothing for `keepalive`.
    pub fn add_peer(
        &self,
        lane: u8,
        peer: PeerNumber,
        endpoint: Option<SocketAddr>,
        keepalive: Option<Duration>,
        stats: Arc<PeerStats>,
    ) {
        self.to_receiver(lane, ReceiveCommand::AddPeer { peer, endpoint, stats: stats.clone() });
        self.to_sender(lane, SendCommand::AddPeer { peer, endpoint, keepalive, stats });
    }

    /// Removes a peer, erases its keys, and forgets its highest epoch.
    pub fn remove_peer(&self, lane: u8, peer: PeerNumber) {
        self.to_receiver(lane, ReceiveCommand::RemovePeer { peer });
        self.to_sender(lane, SendCommand::RemovePeer { peer });
    }

    /// Replaces the whole table of allowed IPs at once. The lane chooses peers by them from now on.
    pub fn set_allowed_ips(&self, lane: u8, table: Arc<AllowedIps>) {
        self.set_routing(lane, Routing::AllowedIps(table));
    }

    /// Replaces the whole table of routes at once. From now on the lane chooses peers by them, answers
    /// packets that have no route or are too big with an ICMP error, and sends link multicast to all peers.
    pub fn set_kernel_routes(&self, lane: u8, routes: Arc<KernelRoutes>) {
        self.set_routing(lane, Routing::Kernel(routes));
    }

    fn set_routing(&self, lane: u8, routing: Routing) {
        self.to_receiver(lane, ReceiveCommand::SetRouting(routing.clone()));
        self.to_sender(lane, SendCommand::SetRouting(routing));
    }

    /// Sets the largest inner packet, in bytes. Padding does not exceed it.
    pub fn set_mtu(&self, lane: u8, mtu: u16) {
        self.to_sender(lane, SendCommand::SetMtu(mtu));
    }

    /// Sets the largest inner packet for the path to one peer, in bytes. Padding of packets to this peer
    /// does not exceed it.
    pub fn set_peer_mtu(&self, lane: u8, peer: PeerNumber, mtu: u16) {
        self.to_sender(lane, SendCommand::SetPeerMtu { peer, mtu });
    }

    /// Sends this lane's packets to `endpoint` from now on, until the peer roams.
    pub fn set_endpoint(&self, lane: u8, peer: PeerNumber, endpoint: SocketAddr) {
        // The sender first: an endpoint that the receiver learns after this command then also reaches the
        // sender after it.
        self.to_sender(lane, SendCommand::SetEndpoint { peer, endpoint });
        self.to_receiver(lane, ReceiveCommand::SetEndpoint { peer, endpoint });
    }

    /// Sets the persistent keepalive, or disables it.
    pub fn set_keepalive(&self, lane: u8, peer: PeerNumber, keepalive: Option<Duration>) {
        self.to_sender(lane, SendCommand::SetKeepalive { peer, keepalive });
    }

    /// Adds a key that opens packets. [`LaneEvent::Installed`] acknowledges it.
    pub fn install_opening(&self, lane: u8, key: OpeningKey) {
        self.to_receiver(lane, ReceiveCommand::Install(key));
    }

    /// Seals with this key from now on and erases the previous one. With `announce`, the lane sends one
    /// empty packet in the new epoch at once. [`LaneEvent::Installed`] acknowledges it.
    pub fn install_sealing(&self, lane: u8, key: SealingKey, announce: bool) {
        self.to_sender(lane, SendCommand::Install { key, announce });
    }

    /// Forwards the packets that this lane reads for the peer to lane `via`, which sends them. `None` ends
    /// the reroute. This lane still sends the empty packets.
    pub fn set_reroute(&self, lane: u8, peer: PeerNumber, via: Option<u8>) {
        self.to_sender(lane, SendCommand::SetReroute { peer, via });
    }

    /// Sends one empty packet now if there is a key and an endpoint.
    pub fn send_empty(&self, lane: u8, peer: PeerNumber) {
        self.to_sender(lane, SendCommand::SendEmpty { peer });
    }

    /// Erases the sealing key: packets to the peer are dropped from now on. The lane still refuses all
    /// earlier epochs.
    pub fn stop_sealing(&self, lane: u8, peer: PeerNumber) {
        self.to_sender(lane, SendCommand::StopSealing { peer });
    }

    /// Erases the opening key with this receiver index, which we gave the peer.
    pub fn close_opening(&self, lane: u8, index: u32) {
        self.to_receiver(lane, ReceiveCommand::Close { index });
    }

    /// Opening keys of epochs below `epoch` expire at `at` or earlier; an `at` in the past erases them at
    /// once.
    pub fn close_older(&self, lane: u8, peer: PeerNumber, epoch: LocalEpoch, at: Time) {
        self.to_receiver(lane, ReceiveCommand::CloseOlder { peer, epoch, at });
    }

    fn to_sender(&self, lane: u8, command: SendCommand) {
        if let Some(mailboxes) = self.mailboxes.get(usize::from(lane)) {
            mailboxes.send.put(command);
        }
    }

    fn to_receiver(&self, lane: u8, command: ReceiveCommand) {
        if let Some(mailboxes) = self.mailboxes.get(usize::from(lane)) {
            mailboxes.receive.put(command);
        }
    }

    /// Sends a control datagram from lane 0's socket.
    ///
    /// # Errors
    /// The error of the system.
    pub fn send_control(&self, datagram: &[u8], to: SocketAddr) -> std::io::Result<()> {
        udp::send_to(&self.control, datagram, to)
    }

    /// Sends a control datagram from lane 0's socket that must not be fragmented: it arrives whole or not at
    /// all. Packets that the lane sends during this call, which takes microseconds, are not fragmented
    /// either.
    ///
    /// # Errors
    /// The error of the system, for example if the datagram exceeds the MTU of the interface.
    pub fn send_probe(&self, datagram: &[u8], to: SocketAddr) -> std::io::Result<()> {
        let narrow = *self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        udp::forbid_fragments(&self.control, true, narrow);
        let sent = udp::send_to(&self.control, datagram, to);
        udp::forbid_fragments(&self.control, false, narrow);
        sent
    }

    /// Sets whether this machine fragments outer IPv6 packets at the path MTU that routers report. Routers
    /// do not fragment IPv6 packets, and inner IPv6 packets may have 1,280 bytes on any path.
    pub fn set_narrow(&self, narrow: bool) {
        let mut before = self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != narrow {
            *before = narrow;
            self.sockets.iter().for_each(|socket| udp::fragment_for_path(socket, narrow));
        }
    }

    /// Stops all threads and erases their keys.
    pub fn shutdown(&self) {
        for mailboxes in &self.mailboxes {
            mailboxes.receive.put(ReceiveCommand::Shutdown);
            mailboxes.send.put(SendCommand::Shutdown);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has already reported that with an event.
            let _ = thread.join();
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn spawn(
    name: String,
    context: LaneContext,
    body: impl FnOnce() -> Result<(), LaneError> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        sched::prefer_this_thread();
        let end =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(Err(LaneError::Panicked));
        if let Err(error) = end {
            // If the sink is full, the event is lost: this thread cannot wait any more.
            let _ = context.sink.event(LaneEvent::Failed { lane: context.lane, error });
        }
    })
}
