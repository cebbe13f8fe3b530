//! Follows the kernel's routes through the tunnel's device, and those that reject packets, for
//! `routes = "kernel"`, on a thread of its own.
//!
//! A notification says only that something changed, and all these routes are then read again.
//! This covers every kind of change, including groups of next hops, routes that disappear with a device
//! without a message, and lost notifications. It costs at most a fifth of one core, even if a routing daemon
//! changes 50,000 routes a second; a single change is followed at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::error::NetError;
use crate::netlink::Received;
use crate::next_hops::{NextHopObjects, NextHopRoute, REJECTING, needs_objects, parse, preferred};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// The routes changed during the dump.
const NLM_F_DUMP_INTR: u16 = 0x10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;

/// Multicast groups of rtnetlink: links, addresses and routes of both families, and next hop objects.
const GROUPS: [u32; 6] = [1, 5, 7, 9, 11, 32];

/// Bytes of one receive of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Bytes of notifications that can wait. Notifications beyond that are lost, and then everything is read
/// again.
const NOTIFY_BYTES: usize = 256 * 1024;
/// A dump that a change interrupted is repeated at once, at most this often.
const MAX_INTERRUPTED: usize = 3;
/// The pause after a read, as a multiple of the read's duration.
const REST: u32 = 4;
const MAX_REST: Duration = Duration::from_secs(2);
/// The pause after a read that the kernel refused.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What the mirror reports.
#[derive(Debug)]
pub enum MirrorReport {
    /// All routes through the device and all that reject packets, one a prefix, in the order of prefixes.
    Routes(Vec<NextHopRoute>),
    /// The kernel refused; the last routes that were read stay in force.
    Failed(NetError),
}

/// Follows routes until it is dropped.
pub struct RouteMirror {
    /// Ends the thread when it is closed.
    _stop: UnixStream,
}

impl RouteMirror {
    /// Follows the routes of `table` through the device with this index, in the network namespace of the
    /// calling thread. `report` is called on the mirror's thread: first with the current routes, then after
    /// each change.
    ///
    /// # Errors
    /// No netlink socket, or no thread.
    pub fn start(
        table: u32,
        device: u32,
        report: impl FnMut(MirrorReport) + Send + 'static,
    ) -> Result<Self, NetError> {
        let (stop, stopped) = UnixStream::pair().map_err(NetError::Connect)?;
        let reader = Reader::open(table, device).map_err(NetError::Connect)?;
        let notify = open_notify().map_err(NetError::Connect)?;
        let thread = std::thread::Builder::new().name("routes".to_owned());
        let run = move || run(reader, &notify, &stopped, report);
        thread.spawn(run).map_err(NetError::Connect)?;
        Ok(Self { _stop: stop })
    }
}

fn run(mut reader: Reader, notify: &OwnedFd, stopped: &UnixStream, mut report: impl FnMut(MirrorReport)) {
    let mut known: Option<Vec<NextHopRoute>> = None;
    let mut failure: Option<String> = None;
    loop {
        clear(notify);
        let start = Instant::now();
        let (rest, complete) = match reader.routes() {
            Ok((routes, complete)) => {
                failure = None;
                if known.as_ref() != Some(&routes) {
                    report(MirrorReport::Routes(routes.clone()));
                    known = Some(routes);
                }
                ((start.elapsed() * REST).min(MAX_REST), complete)
            }
            Err(error) => {
                let error = NetError::refused("reading the routes through the tunnel", error);
                // The next routes are reported even if they are the same.
                known = None;
                if failure.replace(error.to_string()) != Some(error.to_string()) {
                    report(MirrorReport::Failed(error));
                }
                (RETRY_INTERVAL, false)
            }
        };
        if ended_within(stopped, rest) {
            return;
        }
        if complete && !changed(notify, stopped) {
            return;
        }
    }
}

/// Waits for `rest`. Returns whether the mirror was dropped.
fn ended_within(stopped: &UnixStream, rest: Duration) -> bool {
    let end = Instant::now() + rest;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that it never spins.
        let milliseconds = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
        let mut waited = [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::from(milliseconds)) {
            Ok(0) | Err(Errno::EINTR) if Instant::now() < end => {}
            Ok(0) => return false,
            _ => return true,
        }
    }
}

/// Waits for a notification. Returns false when the mirror was dropped.
fn changed(notify: &OwnedFd, stopped: &UnixStream) -> bool {
    loop {
        let mut waited =
            [PollFd::new(notify.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::NONE) {
            Ok(_) => return !waited[1].any().unwrap_or(true),
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Discards the notifications so far: the read that follows covers them.
fn clear(notify: &OwnedFd) {
    let mut buffer = [0; 64];
    // ENOBUFS means that notifications were lost, and is no reason to stop.
    while !matches!(recv(notify.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT), Err(Errno::EAGAIN)) {}
}

fn open_notify() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let _ = setsockopt(&socket, sockopt::RcvBuf, &NOTIFY_BYTES);
    let groups = GROUPS.iter().fold(0, |all, group| all | 1 << (group - 1));
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Reads all routes of a table that lead through a device or reject packets.
struct Reader {
    socket: Socket,
    table: u32,
    device: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Reader {
    fn open(table: u32, device: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // The kernel then filters dumps by table and device (since Linux 4.20).
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, table, device, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Returns the routes, one for each prefix, and whether nothing changed during the read.
    fn routes(&mut self) -> io::Result<(Vec<NextHopRoute>, bool)> {
        let mut last = Vec::new();
        for _ in 0..MAX_INTERRUPTED {
            let (messages, complete) = self.read()?;
            last = messages;
            if complete {
                return Ok((last, true));
            }
        }
        Ok((last, false))
    }

    fn read(&mut self) -> io::Result<(Vec<NextHopRoute>, bool)> {
        let (table, device) = (self.table, self.device);
        let mut objects = NextHopObjects::default();
        let mut complete = true;
        loop {
            let mut found = Vec::new();
            let mut unresolved = false;
            for request in route_requests(table, device) {
                let dump = self.dump(RTM_GETROUTE, &request, |message| {
                    if message.kind == RTM_NEWROUTE {
                        unresolved |= objects.is_empty() && needs_objects(message.payload);
                        found.extend(parse(message.payload, table, device, &objects));
                    }
                });
                complete &= match dump {
                    // The table has never had a route, or the kernel has no IPv6.
                    Err(error)
                        if matches!(error.raw_os_error(), Some(ENOENT | EOPNOTSUPP | EAFNOSUPPORT)) =>
                    {
                        true
                    }
                    dump => dump?,
                };
            }
            if !unresolved {
                return Ok((preferred(found), complete));
            }
            complete &= self.dump(RTM_GETNEXTHOP, &[0; NHMSG_BYTES], |message| {
                if message.kind == RTM_NEWNEXTHOP {
                    objects.add(message.payload);
                }
            })?;
            if objects.is_empty() {
                return Ok((preferred(found), false));
            }
        }
    }

    /// Sends a request and passes each answer to the callback. Returns whether the answers are consistent.
    fn dump(&mut self, kind: u16, payload: &[u8], mut each: impl FnMut(&Received<'_>)) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(16 + payload.len()).unwrap_or(u32::MAX);
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(payload);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut complete = true;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            for message in Received::all(self.buffer.get(..length).unwrap_or_default()) {
                if message.sequence != self.sequence {
                    continue;
                }
                complete &= message.flags & NLM_F_DUMP_INTR == 0;
                if message.is_done() {
                    return match message.dump_error() {
                        None | Some(0) => Ok(complete),
                        Some(code) => Err(io::Error::from_raw_os_error(code)),
                    };
                }
                match message.error() {
                    Some(0) => return Ok(complete),
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                    None => each(&message),
                }
            }
        }
    }
}

const ENOENT: i32 = 2;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;
/// Bytes of `struct nhmsg`.
const NHMSG_BYTES: usize = 8;

/// Returns the payloads of the `RTM_GETROUTE`s for the routes of one table: in each family those through one
/// device, and those of each rejecting type, which have no device or `lo`.
fn route_requests(table: u32, device: u32) -> impl Iterator<Item = Vec<u8>> {
    let rejecting = REJECTING.map(|kind| (kind, None));
    let filters = [(0, Some(device))].into_iter().chain(rejecting);
    let each = filters.flat_map(|filter| [AF_INET, AF_INET6].map(|family| (family, filter)));
    each.map(move |(family, (kind, device))| {
        let mut request = vec![family, 0, 0, 0, 0, 0, 0, kind, 0, 0, 0, 0];
        let attributes = [(RTA_TABLE, Some(table)), (RTA_OIF, device)];
        for (attribute, value) in attributes.into_iter().filter_map(|(a, value)| Some((a, value?))) {
            request.extend(8u16.to_ne_bytes());
            request.extend(attribute.to_ne_bytes());
            request.extend(value.to_ne_bytes());
        }
        request
    })
}
