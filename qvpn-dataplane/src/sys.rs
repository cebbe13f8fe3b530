//! The system calls that std has no safe form of: the clock, eventfd, poll, TUN ioctls, socket options, and batches of
//! datagrams. Everything `unsafe` of this crate is here, behind functions that take slices and return results.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use socket2::SockAddr;

use crate::clock::BootNanos;

/// Most datagrams of one system call.
pub(crate) const BATCH: usize = 32;

/// `CLOCK_BOOTTIME` now, in nanoseconds.
pub(crate) fn boot_nanos() -> BootNanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An event counter that wakes a thread that polls it.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers, and the descriptor that it returns is ours alone.
    unsafe {
        let fd = checked(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Adds one to an event counter.
pub(crate) fn signal(event: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the buffer has the eight bytes that an eventfd takes. A full counter is as awake as it can be.
    unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Empties an event counter.
pub(crate) fn clear(event: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: the buffer has the eight bytes that an eventfd gives.
    unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// The longest wait while a deadline stands. The system's timer stops when the machine sleeps and the clock of keys does
/// not, so a machine that wakes up looks at its keys within this time.
const LONGEST_WAIT: u64 = 1_000_000_000;

/// Waits until one of the descriptors can be read, or for `wait` nanoseconds but at most a second; says which can.
pub(crate) fn poll_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    wait: Option<u64>,
) -> io::Result<[bool; N]> {
    let mut polls = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let time = wait.map(|nanos| nanos.min(LONGEST_WAIT)).map(|nanos| libc::timespec {
        tv_sec: libc::time_t::try_from(nanos / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(nanos % 1_000_000_000).unwrap_or(0),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: `polls` holds `count` entries, and `time` is null or points to a value that outlives the call.
    let result = unsafe { libc::ppoll(polls.as_mut_ptr(), count, time, std::ptr::null()) };
    match checked(result) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(error) => Err(error),
        Ok(_) => Ok(polls.map(|p| p.revents != 0)),
    }
}

/// Waits until the descriptor can be written, for at most `millis`; whether it can.
pub(crate) fn poll_writable(fd: BorrowedFd<'_>, millis: c_int) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, millis) > 0 }
}

/// Makes an open `/dev/net/tun` a queue of the TUN device `name`, with a virtio header before each packet.
pub(crate) fn attach_tun(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: `request` is a valid `ifreq` that outlives the call.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map(drop)
}

/// Tells a TUN device which offloads (`TUN_F_*`) we do for the kernel; it refuses those that it doesn't know.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument of this request is a number, not a pointer.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
        .map(drop)
}

/// Sets a socket option whose value is an `int`.
pub(crate) fn set_int(fd: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(0);
    // SAFETY: the pointer and the size describe one `int`.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size) })
        .map(drop)
}

/// What one call sends in one go: a datagram, or several of equal size that the kernel cuts apart (the last one may be
/// shorter).
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) bytes: &'a [u8],
    /// Bytes of each datagram, where `bytes` holds more than one (`UDP_SEGMENT`).
    pub(crate) segment: Option<u16>,
    /// The traffic class of the outer header, with its ECN bits.
    pub(crate) tos: u8,
    pub(crate) to: &'a Endpoint,
}

/// An address in the form that the socket takes.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SockAddr,
    /// Whether packets to it are IPv4, also where the address is mapped.
    v4: bool,
}

impl Endpoint {
    pub(crate) fn new(socket_is_v6: bool, to: SocketAddr) -> Self {
        Self { address: crate::udp::socket_address(socket_is_v6, to), v4: canonical(to).is_ipv4() }
    }
}

/// Room for the control messages of one datagram; none of ours needs more.
const CONTROL: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Bytes of a `cmsghdr` on 64-bit Linux: length, level, type.
const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();

impl Control {
    /// Writes a control message at `at`; where the next one begins.
    fn put(&mut self, at: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        let len = CMSG_HEADER + data.len();
        let place = &mut self.0[at..];
        place[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        place[8..12].copy_from_slice(&level.to_ne_bytes());
        place[12..16].copy_from_slice(&kind.to_ne_bytes());
        place[CMSG_HEADER..len].copy_from_slice(data);
        at + len.next_multiple_of(8)
    }

    /// Calls `each` with level, type and data of every control message in the first `len` bytes.
    fn each(&self, len: usize, mut each: impl FnMut(c_int, c_int, &[u8])) {
        let mut rest = &self.0[..len.min(CONTROL)];
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, k0, k1, k2, k3] = *header;
            let len = usize::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
            let Some(data) = rest.get(CMSG_HEADER..len) else { return };
            each(c_int::from_ne_bytes([v0, v1, v2, v3]), c_int::from_ne_bytes([k0, k1, k2, k3]), data);
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

const _: () = assert!(CMSG_HEADER == 16, "control messages are laid out by hand for 64-bit Linux");

/// Sends the first [`BATCH`] datagrams or fewer without waiting; how many of them the kernel took, at least one.
pub(crate) fn send_batch<'a>(
    fd: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = Outgoing<'a>>,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid `iovec` and a valid `mmsghdr`.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); BATCH];
    let mut count = 0;
    for (((out, vector), message), control) in
        datagrams.zip(&mut vectors).zip(&mut messages).zip(&mut controls)
    {
        *vector = libc::iovec { iov_base: out.bytes.as_ptr().cast_mut().cast(), iov_len: out.bytes.len() };
        let header = &mut message.msg_hdr;
        header.msg_name = out.to.address.as_ptr().cast_mut().cast();
        header.msg_namelen = out.to.address.len();
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        let mut used = 0;
        if let Some(segment) = out.segment {
            used = control.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if out.tos != 0 {
            let (level, kind) = if out.to.v4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            used = control.put(used, level, kind, &c_int::from(out.tos).to_ne_bytes());
        }
        if used > 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = used;
        }
        count += 1;
    }
    // SAFETY: the first `count` messages point to buffers, addresses and control messages that outlive the call, and the
    // kernel only reads those.
    let sent =
        checked(unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Bytes of the place of one message in the buffer that [`receive_batch`] fills.
pub(crate) const SLOT: usize = 65_536;

/// What came in one place of the buffer: a datagram, or several of equal size that the kernel joined (the last one may be
/// shorter).
#[derive(Clone, Copy)]
pub(crate) struct Incoming {
    /// The sender; IPv4 is never in mapped form.
    pub(crate) from: SocketAddr,
    /// Bytes in all.
    pub(crate) len: usize,
    /// Bytes of each datagram.
    pub(crate) segment: usize,
    /// The traffic class of the outer header, with its ECN bits.
    pub(crate) tos: u8,
}

/// Receives what is there, without waiting: message *i* into place *i* of `buffer` ([`SLOT`] bytes each), what it is into
/// `news[i]`. A message that is none of ours (cut off, or without an address) is `None`.
pub(crate) fn receive_batch(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    news: &mut [Option<Incoming>],
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are valid values of these three types.
    let (mut vectors, mut messages, mut names): (
        [libc::iovec; BATCH],
        [libc::mmsghdr; BATCH],
        [libc::sockaddr_storage; BATCH],
    ) = unsafe { std::mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); BATCH];
    let mut count = 0;
    let places = buffer.chunks_exact_mut(SLOT).take(news.len());
    for ((((place, vector), message), name), control) in
        places.zip(&mut vectors).zip(&mut messages).zip(&mut names).zip(&mut controls)
    {
        *vector = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
        let header = &mut message.msg_hdr;
        header.msg_name = std::ptr::from_mut(name).cast();
        header.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL;
        count += 1;
    }
    // SAFETY: the first `count` messages point to buffers, names and room for control messages of the sizes given, which
    // outlive the call.
    let got = checked(unsafe {
        libc::recvmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, std::ptr::null_mut())
    })?;
    let got = usize::try_from(got).unwrap_or(0);
    for (((message, name), control), news) in
        messages.iter().zip(&names).zip(&controls).zip(news.iter_mut()).take(got)
    {
        let len = usize::try_from(message.msg_len).unwrap_or(0).min(SLOT);
        // SAFETY: the kernel wrote an address of this length into `name`, which is large enough for any.
        let address = unsafe {
            let mut storage = socket2::SockAddrStorage::zeroed();
            *storage.view_as::<libc::sockaddr_storage>() = *name;
            SockAddr::new(storage, message.msg_hdr.msg_namelen)
        };
        let (mut segment, mut tos) = (len, 0);
        control.each(message.msg_hdr.msg_controllen, |level, kind, data| match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = data.first_chunk().map_or(0, |size| c_int::from_ne_bytes(*size));
                segment = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(len);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => tos = data.first().copied().unwrap_or(0),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = data.first_chunk().map_or(0, |class| c_int::from_ne_bytes(*class));
                tos = u8::try_from(class & 0xff).unwrap_or(0);
            }
            _ => {}
        });
        // A datagram that did not fit is no message of ours.
        let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        *news = address.as_socket().filter(|_| whole).map(|from| Incoming {
            from: canonical(from),
            len,
            segment,
            tos,
        });
    }
    Ok(got)
}

/// IPv4 in mapped form becomes IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_for_a_far_deadline_looks_at_the_clock_in_between() {
        let (done, came_back) = channel();
        std::thread::spawn(move || {
            let quiet = eventfd().unwrap();
            let ready = poll_readable([quiet.as_fd()], Some(3_600_000_000_000)).unwrap();
            done.send(ready).unwrap();
        });
        assert_eq!(came_back.recv_timeout(Duration::from_secs(20)), Ok([false]));
    }
}
