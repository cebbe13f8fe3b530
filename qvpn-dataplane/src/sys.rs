//! The system calls that std has no safe form of: the clock, eventfd, poll, TUN ioctls, socket options, and batches of
//! datagrams; and a sum in wide registers. Everything `unsafe` of this crate is here, behind functions that take slices and
//! return results.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use socket2::SockAddr;

use crate::clock::BootNanos;

/// Most datagrams of one system call.
pub(crate) const BATCH: usize = 32;

/// Once datagrams come in large pieces there is work enough in a few, and the buffer stays in the cache.
pub(crate) const FEW: usize = 4;

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

/// How far before the rest of the program, by nice value, the threads of lanes stand.
const BEFORE: c_int = 10;

/// Puts this thread, and those that it will make, before others as lanes are; whether the system allowed it.
pub(crate) fn stand_before_others() -> bool {
    // SAFETY: the call takes numbers only; 0 is this thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -BEFORE) == 0 }
}

/// Puts this thread before others, where the system allows it (CAP_SYS_NICE or RLIMIT_NICE): packets of a gateway
/// should not wait for its other work. As a batch worker it also interrupts nobody by waking up, so that it finds more to
/// do when its turn comes; without the better place it would come too late then.
pub(crate) fn prefer_this_thread() {
    // SAFETY: the calls take numbers only; 0 is this thread.
    let preferred = unsafe {
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        nice <= -BEFORE || libc::setpriority(libc::PRIO_PROCESS, 0, nice - BEFORE) == 0
    };
    if preferred {
        let none = libc::sched_param { sched_priority: 0 };
        // SAFETY: `none` is a valid `sched_param`; 0 is this thread. A refusal changes nothing.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) };
    }
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

/// Detaches a queue of a TUN device: the kernel gives it nothing to read any more, and still takes what is written by it.
pub(crate) fn detach_tun(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_DETACH_QUEUE).unwrap_or(0);
    // SAFETY: `request` is a valid `ifreq` that outlives the call.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) }).map(drop)
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

/// The sum of all 32-bit words, in the machine's byte order: all that a checksum does of which there is much.
pub(crate) fn sum_blocks(blocks: &[[u8; 32]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for, as was asked just now.
        return unsafe { sum_blocks_avx2(blocks) };
    }
    sum_blocks_anywhere(blocks)
}

/// The same instructions' sense, in registers of twice the width.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_blocks_avx2(blocks: &[[u8; 32]]) -> u64 {
    sum_blocks_anywhere(blocks)
}

#[inline(always)]
fn sum_blocks_anywhere(blocks: &[[u8; 32]]) -> u64 {
    // Lanes of 64 bits that take 32 bits at a time never overflow, and the compiler makes vectors of them.
    let mut lanes = [0u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.iter().sum()
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

/// Sends the first [`BATCH`] datagrams or fewer without waiting; how many of them the kernel took, at least one. There are
/// at most `most`.
pub(crate) fn send_batch<'a>(
    fd: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = Outgoing<'a>>,
    most: usize,
) -> io::Result<usize> {
    // The tables that the kernel reads are zeroed each time, and most calls need little of them.
    if most <= FEW { send_up_to::<FEW>(fd, datagrams) } else { send_up_to::<BATCH>(fd, datagrams) }
}

fn send_up_to<'a, const N: usize>(
    fd: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = Outgoing<'a>>,
) -> io::Result<usize> {
    // SAFETY: the messages point to buffers, addresses and control messages that outlive the call, and the kernel only
    // reads those.
    send_by::<N>(datagrams, |messages, count| unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages, count, libc::MSG_DONTWAIT)
    })
}

/// [`send_batch`] by `call`, which gets the messages and their number.
fn send_by<'a, const N: usize>(
    datagrams: impl Iterator<Item = Outgoing<'a>>,
    call: impl FnOnce(*mut libc::mmsghdr, u32) -> c_int,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid `iovec` and a valid `mmsghdr`.
    let (mut vectors, mut messages): ([libc::iovec; N], [libc::mmsghdr; N]) = unsafe { std::mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); N];
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
    let sent = checked(call(messages.as_mut_ptr(), count))?;
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
    if news.len() <= FEW {
        receive_up_to::<FEW>(fd, buffer, news)
    } else {
        receive_up_to::<BATCH>(fd, buffer, news)
    }
}

fn receive_up_to<const N: usize>(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    news: &mut [Option<Incoming>],
) -> io::Result<usize> {
    // SAFETY: the messages point to buffers, names and room for control messages of the sizes given, which outlive the
    // call.
    receive_by::<N>(buffer, news, |messages, count| unsafe {
        libc::recvmmsg(fd.as_raw_fd(), messages, count, libc::MSG_DONTWAIT, std::ptr::null_mut())
    })
}

/// [`receive_batch`] by `call`, which gets the messages and their number.
fn receive_by<const N: usize>(
    buffer: &mut [u8],
    news: &mut [Option<Incoming>],
    call: impl FnOnce(*mut libc::mmsghdr, u32) -> c_int,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are valid values of these three types.
    let (mut vectors, mut messages, mut names): (
        [libc::iovec; N],
        [libc::mmsghdr; N],
        [libc::sockaddr_storage; N],
    ) = unsafe { std::mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); N];
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
    let got = checked(call(messages.as_mut_ptr(), count))?;
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

    /// What a kernel might write for one message.
    struct Given<'a> {
        bytes: &'a [u8],
        from: Option<SocketAddr>,
        flags: c_int,
        /// Control messages: level, type, data; or what claims to be one.
        control: &'a [(c_int, c_int, &'a [u8])],
        raw_control: &'a [u8],
    }

    impl<'a> Given<'a> {
        fn plain(bytes: &'a [u8]) -> Self {
            let from = Some("[::ffff:192.0.2.7]:4500".parse().unwrap());
            Self { bytes, from, flags: 0, control: &[], raw_control: &[] }
        }
    }

    /// Plays the kernel's part through the very pointers that it would get, so that Miri sees whether they are good.
    fn play(given: &[Given<'_>], messages: *mut libc::mmsghdr, count: u32) -> c_int {
        assert!(given.len() <= count as usize);
        for (n, given) in given.iter().enumerate() {
            // SAFETY: as the kernel trusts `recvmmsg`: each pointer leads to the room that its length says.
            unsafe {
                let message = &mut *messages.add(n);
                let header = &mut message.msg_hdr;
                assert_eq!(header.msg_iovlen, 1);
                let place = &*header.msg_iov;
                assert!(place.iov_len >= given.bytes.len());
                std::ptr::copy_nonoverlapping(given.bytes.as_ptr(), place.iov_base.cast(), given.bytes.len());
                message.msg_len = u32::try_from(given.bytes.len()).unwrap();
                header.msg_flags = given.flags;
                header.msg_namelen = 0;
                if let Some(from) = given.from {
                    let from = SockAddr::from(from);
                    std::ptr::copy_nonoverlapping(
                        from.as_ptr().cast::<u8>(),
                        header.msg_name.cast(),
                        from.len() as usize,
                    );
                    header.msg_namelen = from.len();
                }
                let mut control = Control([0; CONTROL]);
                let used = given
                    .control
                    .iter()
                    .fold(0, |at, (level, kind, data)| control.put(at, *level, *kind, data));
                control.0[used..used + given.raw_control.len()].copy_from_slice(given.raw_control);
                let used = used + given.raw_control.len();
                assert!(used <= header.msg_controllen);
                std::ptr::copy_nonoverlapping(control.0.as_ptr(), header.msg_control.cast(), used);
                header.msg_controllen = used;
            }
        }
        c_int::try_from(given.len()).unwrap()
    }

    #[test]
    fn what_the_kernel_writes_is_read_and_nonsense_is_none_of_ours() {
        let gro = |size: c_int| size.to_ne_bytes();
        let (joined, zero, negative) = (gro(3), gro(0), gro(-5));
        let huge = usize::MAX.to_ne_bytes();
        let given = [
            Given::plain(b"one"),
            Given {
                from: Some("[2001:db8::1]:9".parse().unwrap()),
                control: &[
                    (libc::SOL_UDP, libc::UDP_GRO, &joined),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[3, 0, 0, 0]),
                ],
                ..Given::plain(b"three.two")
            },
            Given { control: &[(libc::IPPROTO_IP, libc::IP_TOS, &[0xb9])], ..Given::plain(b"") },
            Given { flags: libc::MSG_TRUNC, ..Given::plain(b"cut off") },
            // What was cut off here are only control messages.
            Given { flags: libc::MSG_CTRUNC, ..Given::plain(b"whole") },
            Given { from: None, ..Given::plain(b"from nowhere") },
            // Sizes that no kernel gives, and control messages that claim more than there is or less than their header.
            Given { control: &[(libc::SOL_UDP, libc::UDP_GRO, &zero)], ..Given::plain(b"zero") },
            Given { control: &[(libc::SOL_UDP, libc::UDP_GRO, &negative)], ..Given::plain(b"less") },
            Given { control: &[(libc::SOL_UDP, libc::UDP_GRO, &[1])], ..Given::plain(b"short") },
            Given { raw_control: &[huge, [0; 8]].concat(), ..Given::plain(b"huge") },
            Given { raw_control: &[0; 32], ..Given::plain(b"none") },
            Given { raw_control: &[17, 0, 0], ..Given::plain(b"stub") },
        ];
        let mut buffer = vec![0; SLOT * given.len()];
        let mut news = [None; BATCH];
        let got = receive_by::<BATCH>(&mut buffer, &mut news[..given.len()], |messages, count| {
            play(&given, messages, count)
        });
        assert_eq!(got.unwrap(), given.len());
        let seen: Vec<_> = news
            .iter()
            .take(given.len())
            .map(|n| n.map(|n| (n.from.to_string(), n.len, n.segment, n.tos)))
            .collect();
        let v4 = |len, segment, tos| Some(("192.0.2.7:4500".to_owned(), len, segment, tos));
        assert_eq!(
            seen,
            [
                v4(3, 3, 0),
                Some(("[2001:db8::1]:9".to_owned(), 9, 3, 3)),
                v4(0, 0, 0xb9),
                None,
                v4(5, 5, 0),
                None,
                v4(4, 4, 0),
                v4(4, 4, 0),
                v4(5, 5, 0),
                v4(4, 4, 0),
                v4(4, 4, 0),
                v4(4, 4, 0),
            ]
        );
        assert_eq!(buffer[SLOT..SLOT + 9], *b"three.two");
    }

    #[test]
    fn what_is_sent_stands_where_the_kernel_looks() {
        let to = ["192.0.2.1:1", "[2001:db8::1]:2"].map(|to| Endpoint::new(true, to.parse().unwrap()));
        let out = [
            Outgoing { bytes: b"plain", segment: None, tos: 0, to: &to[0] },
            Outgoing { bytes: b"joined", segment: Some(3), tos: 0xb9, to: &to[0] },
            Outgoing { bytes: b"six", segment: None, tos: 1, to: &to[1] },
        ];
        let mut seen = Vec::new();
        let sent = send_by::<BATCH>(out.into_iter(), |messages, count| {
            for n in 0..count as usize {
                // SAFETY: as the kernel trusts `sendmmsg`.
                unsafe {
                    let header = &(*messages.add(n)).msg_hdr;
                    let bytes = std::slice::from_raw_parts(
                        (*header.msg_iov).iov_base.cast::<u8>(),
                        (*header.msg_iov).iov_len,
                    );
                    let mut control = Control([0; CONTROL]);
                    if header.msg_controllen > 0 {
                        let from = std::slice::from_raw_parts(
                            header.msg_control.cast::<u8>(),
                            header.msg_controllen,
                        );
                        control.0[..from.len()].copy_from_slice(from);
                    }
                    let mut told = Vec::new();
                    control.each(header.msg_controllen, |level, kind, data| {
                        told.push((level, kind, data.to_vec()))
                    });
                    let name =
                        std::slice::from_raw_parts(header.msg_name.cast::<u8>(), header.msg_namelen as usize);
                    seen.push((bytes.to_vec(), name[2..4].to_vec(), told));
                }
            }
            2
        });
        assert_eq!(sent.unwrap(), 2);
        let tos = |value: c_int| value.to_ne_bytes().to_vec();
        assert_eq!(
            seen,
            [
                (b"plain".to_vec(), vec![0, 1], vec![]),
                (
                    b"joined".to_vec(),
                    vec![0, 1],
                    vec![
                        (libc::SOL_UDP, libc::UDP_SEGMENT, vec![3, 0]),
                        (libc::IPPROTO_IP, libc::IP_TOS, tos(0xb9)),
                    ]
                ),
                (b"six".to_vec(), vec![0, 2], vec![(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos(1))]),
            ]
        );
    }

    #[test]
    fn an_event_counter_is_signalled_and_cleared() {
        let event = eventfd().unwrap();
        signal(event.as_fd());
        clear(event.as_fd());
        // Empty again, and still without waiting.
        clear(event.as_fd());
    }

    #[cfg_attr(miri, ignore = "Miri has no ppoll")]
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
