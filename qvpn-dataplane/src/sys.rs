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

/// Makes an open `/dev/net/tun` a queue of the TUN device `name`.
pub(crate) fn attach_tun(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: `request` is a valid `ifreq` that outlives the call.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map(drop)
}

/// Sets a socket option whose value is an `int`.
pub(crate) fn set_int(fd: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(0);
    // SAFETY: the pointer and the size describe one `int`.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size) })
        .map(drop)
}

/// Sends datagrams without waiting; how many the kernel took, at least one.
pub(crate) fn send_batch(fd: BorrowedFd<'_>, datagrams: &[(&[u8], &SockAddr)]) -> io::Result<usize> {
    let count = datagrams.len().min(BATCH);
    // SAFETY: all-zero bytes are a valid `iovec` and a valid `mmsghdr`.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    for ((vector, message), (bytes, address)) in vectors.iter_mut().zip(&mut messages).zip(datagrams) {
        *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = address.len();
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    let length = libc::c_uint::try_from(count).unwrap_or(0);
    // SAFETY: the first `count` messages point to buffers and addresses that outlive the call, and the kernel only reads
    // those.
    let sent = checked(unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), length, libc::MSG_DONTWAIT)
    })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Receives what is there, without waiting, into `buffers`; `each` gets every datagram's bytes and where it came from.
pub(crate) fn receive_batch(
    fd: BorrowedFd<'_>,
    buffers: &mut [Vec<u8>],
    mut each: impl FnMut(&mut [u8], SocketAddr),
) -> io::Result<usize> {
    let count = buffers.len().min(BATCH);
    // SAFETY: all-zero bytes are valid values of these three types.
    let (mut vectors, mut messages, mut names): (
        [libc::iovec; BATCH],
        [libc::mmsghdr; BATCH],
        [libc::sockaddr_storage; BATCH],
    ) = unsafe { std::mem::zeroed() };
    for (((vector, message), name), buffer) in
        vectors.iter_mut().zip(&mut messages).zip(&mut names).zip(buffers.iter_mut())
    {
        *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
        message.msg_hdr.msg_namelen =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    let length = libc::c_uint::try_from(count).unwrap_or(0);
    // SAFETY: the first `count` messages point to buffers and names of the sizes given, which outlive the call.
    let got = checked(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            length,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })?;
    let got = usize::try_from(got).unwrap_or(0);
    for ((message, name), buffer) in messages.iter().zip(&names).zip(buffers.iter_mut()).take(got) {
        let size = usize::try_from(message.msg_len).unwrap_or(0).min(buffer.len());
        // SAFETY: the kernel wrote an address of this length into `name`, which is large enough for any.
        let address = unsafe {
            let mut storage = socket2::SockAddrStorage::zeroed();
            *storage.view_as::<libc::sockaddr_storage>() = *name;
            SockAddr::new(storage, message.msg_hdr.msg_namelen)
        };
        // A datagram that did not fit is no message of ours.
        let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        if let (Some(from), true) = (address.as_socket(), whole) {
            each(&mut buffer[..size], canonical(from));
        }
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
