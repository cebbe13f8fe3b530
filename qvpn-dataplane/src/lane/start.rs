//! Starts the threads of all lanes and passes commands to the one that owns the table.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::detour::{self, Detours, Door};
use super::{LaneError, receive, send};
use crate::clock::{BootNanos, Clock};
use crate::command::{LaneCommand, LaneEvent, LaneSink};
use crate::stats::InterfaceStats;
use crate::sys;
use crate::tun::TunQueue;

/// A cheap look at a datagram for the control task, with where it came from and when, before it is queued.
pub type Filter = Arc<dyn Fn(&[u8], SocketAddr, BootNanos) -> Admission + Send + Sync>;

/// What a [`Filter`] says of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is queued for the control task.
    Admitted,
    /// It is not for us: dropped and counted.
    Malformed,
    /// It begins a handshake without a proof of its address, and there are too many such: dropped and counted.
    Unproven,
    /// There are too many of strangers: dropped and counted.
    TooMany,
}

/// The DSCP field (RFC 2474) of the packets that lanes send. The two ECN bits beside it always follow the inner packet
/// (RFC 6040).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dscp {
    /// As the inner packet has it, which tells the path what kind of traffic it carries.
    Inherit,
    /// Always this, 0 to 63.
    Fixed(u8),
}

/// What lanes are made of.
pub struct LanesConfig {
    /// A TUN queue for each lane.
    pub tuns: Vec<TunQueue>,
    /// A UDP socket for each lane.
    pub sockets: Vec<UdpSocket>,
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// The DSCP field of what is sent.
    pub dscp: Dscp,
    /// Drops that belong to no peer.
    pub stats: Arc<InterfaceStats>,
    /// Looks at what is for the control task.
    pub filter: Filter,
    /// The clock that ages keys.
    pub clock: Clock,
}

/// Commands on their way to a thread, and what wakes it.
#[derive(Clone)]
pub(super) struct Mailbox {
    sender: Sender<LaneCommand>,
    wake: Arc<OwnedFd>,
}

impl Mailbox {
    fn new() -> std::io::Result<(Self, Inbox)> {
        let (sender, receiver) = channel();
        let wake = Arc::new(sys::eventfd()?);
        Ok((Self { sender, wake: wake.clone() }, Inbox { receiver, wake }))
    }

    pub(super) fn put(&self, command: LaneCommand) {
        // A thread that has ended has erased its keys; there is nothing left to command.
        if self.sender.send(command).is_ok() {
            sys::signal(self.wake.as_fd());
        }
    }
}

/// The other end of a [`Mailbox`].
pub(super) struct Inbox {
    pub(super) receiver: Receiver<LaneCommand>,
    pub(super) wake: Arc<OwnedFd>,
}

struct Boxes {
    send: Mailbox,
    receive: Mailbox,
}

/// The running lanes of an interface.
pub struct Lanes {
    boxes: Vec<Boxes>,
    control: UdpSocket,
    /// Handles of all lanes' sockets, for their options.
    sockets: Vec<UdpSocket>,
    narrow: Mutex<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Lanes {
    /// Starts two threads for each lane.
    ///
    /// # Errors
    /// [`LaneError`] if the numbers do not fit or the system refuses threads or descriptors.
    pub fn start(config: LanesConfig, sink: Arc<dyn LaneSink>) -> Result<Self, LaneError> {
        let count = config.tuns.len();
        let control = match config.sockets.first() {
            Some(first) if count == config.sockets.len() && count <= 256 => first
                .try_clone()
                .map_err(|source| LaneError::Start { lane: 0, what: "share the UDP socket", source })?,
            _ => return Err(LaneError::Count(count)),
        };
        let (mut boxes, mut threads, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut doors, mut ends) = (Vec::new(), Vec::new());
        for lane in (0u8..=255).take(count) {
            let failed = |source| LaneError::Start { lane, what: "make an eventfd", source };
            let (send, inbox) = Mailbox::new().map_err(failed)?;
            let (door, handed) = detour::door(send.wake.clone());
            doors.push(door);
            ends.push((send, inbox, handed));
        }
        let doors: Arc<[Door]> = doors.into();
        for (((lane, tun), socket), (send, send_inbox, handed)) in
            (0u8..=255).zip(config.tuns).zip(config.sockets).zip(ends)
        {
            let failed = |what| move |source| LaneError::Start { lane, what, source };
            let (receive, receive_inbox) = Mailbox::new().map_err(failed("make an eventfd"))?;
            sockets.push(socket.try_clone().map_err(failed("share the UDP socket"))?);
            let v6 = socket.local_addr().map_err(failed("ask the UDP socket"))?.is_ipv6();
            let shared = Shared {
                lane,
                sink: sink.clone(),
                stats: config.stats.clone(),
                clock: config.clock.clone(),
                mtu: config.mtu,
                dscp: config.dscp,
            };
            let sending = send::Sending::new(
                shared.clone(),
                tun.try_clone().map_err(failed("share the TUN queue"))?,
                socket.try_clone().map_err(failed("share the UDP socket"))?,
                v6,
                send_inbox,
                Detours::new(doors.clone(), handed),
            );
            let receiving = receive::Receiving::new(
                shared.clone(),
                tun,
                socket,
                config.filter.clone(),
                receive_inbox,
                send.clone(),
            );
            let name = |what: &str| format!("lane{lane}-{what}");
            threads.push(
                spawn(name("send"), shared.clone(), move || sending.run())
                    .map_err(failed("start a thread"))?,
            );
            threads.push(
                spawn(name("recv"), shared, move || receiving.run()).map_err(failed("start a thread"))?,
            );
            boxes.push(Boxes { send, receive });
        }
        Ok(Self { boxes, control, sockets, narrow: Mutex::default(), threads: Mutex::new(threads) })
    }

    /// How many lanes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.boxes.len()
    }

    /// Gives a lane a command; one for a lane that does not exist is dropped, with its key.
    pub fn send(&self, lane: u8, command: LaneCommand) {
        let Some(boxes) = self.boxes.get(usize::from(lane)) else { return };
        match command {
            LaneCommand::AddPeer { peer, endpoint, keepalive, stats } => {
                let copy = LaneCommand::AddPeer { peer, endpoint, keepalive, stats: stats.clone() };
                boxes.receive.put(copy);
                boxes.send.put(LaneCommand::AddPeer { peer, endpoint, keepalive, stats });
            }
            LaneCommand::RemovePeer { peer } => {
                boxes.receive.put(LaneCommand::RemovePeer { peer });
                boxes.send.put(LaneCommand::RemovePeer { peer });
            }
            LaneCommand::SetAllowedIps(table) => {
                boxes.receive.put(LaneCommand::SetAllowedIps(table.clone()));
                boxes.send.put(LaneCommand::SetAllowedIps(table));
            }
            LaneCommand::SetEndpoint { peer, addr } => {
                // The sender first: whatever the receiver learns after this command then reaches the sender after it, too.
                boxes.send.put(LaneCommand::SetEndpoint { peer, addr });
                boxes.receive.put(LaneCommand::SetEndpoint { peer, addr });
            }
            LaneCommand::Shutdown => {
                boxes.receive.put(LaneCommand::Shutdown);
                boxes.send.put(LaneCommand::Shutdown);
            }
            command @ (LaneCommand::InstallOpening { .. }
            | LaneCommand::CloseOpening { .. }
            | LaneCommand::CloseOlder { .. }) => boxes.receive.put(command),
            command @ (LaneCommand::SetMtu(_)
            | LaneCommand::SetPeerMtu { .. }
            | LaneCommand::SetKeepalive { .. }
            | LaneCommand::InstallSealing { .. }
            | LaneCommand::SendEmpty { .. }
            | LaneCommand::SetDetour { .. }
            | LaneCommand::StopSealing { .. }) => boxes.send.put(command),
        }
    }

    /// Sends a control datagram from lane 0's socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn send_control(&self, datagram: &[u8], to: SocketAddr) -> std::io::Result<()> {
        crate::udp::send_to(&self.control, datagram, to)
    }

    /// Sends a control datagram from lane 0's socket that nothing on the way may fragment: it arrives whole or not at all.
    /// What the lane sends in the microseconds of this call may not be fragmented either.
    ///
    /// # Errors
    /// What the system says, as that the datagram doesn't fit the interface's own MTU.
    pub fn send_probe(&self, datagram: &[u8], to: SocketAddr) -> std::io::Result<()> {
        let narrow = *self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        crate::udp::forbid_fragments(&self.control, true, narrow);
        let sent = crate::udp::send_to(&self.control, datagram, to);
        crate::udp::forbid_fragments(&self.control, false, narrow);
        sent
    }

    /// Whether outer IPv6 packets are fragmented here at what routers say that the path takes: they fragment nothing
    /// themselves, and inner IPv6 packets may have 1,280 bytes on any path.
    pub fn set_narrow(&self, narrow: bool) {
        let mut before = self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != narrow {
            *before = narrow;
            self.sockets.iter().for_each(|socket| crate::udp::fragment_for_path(socket, narrow));
        }
    }

    /// Ends all threads and erases their keys.
    pub fn shutdown(&self) {
        for lane in 0..self.boxes.len() {
            self.send(u8::try_from(lane).unwrap_or(u8::MAX), LaneCommand::Shutdown);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has told so by an event.
            let _ = thread.join();
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// What both threads of a lane have.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) lane: u8,
    pub(super) sink: Arc<dyn LaneSink>,
    pub(super) stats: Arc<InterfaceStats>,
    pub(super) clock: Clock,
    pub(super) mtu: u16,
    pub(super) dscp: Dscp,
}

/// Puts this thread, and all that it will make, where lanes put themselves: ten nice values before others. For a program that
/// gives up the right to do so before it starts its lanes. Whether the system allowed it.
pub fn stand_before_others() -> bool {
    sys::stand_before_others()
}

fn spawn(
    name: String,
    shared: Shared,
    body: impl FnOnce() -> Result<(), LaneError> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        sys::prefer_this_thread();
        let end =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(Err(LaneError::Panicked));
        if let Err(error) = end {
            shared.sink.event(LaneEvent::Failed { lane: shared.lane, error });
        }
    })
}
