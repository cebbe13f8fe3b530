//! System calls for which std has no safe function: batches of datagrams, timer slack, priority, and buffer
//! size.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The largest number of datagrams in one system call.
pub const BATCH: usize = 64;

fn checked(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends up to [`BATCH`] datagrams on a connected socket. Returns the number that the kernel accepted.
///
/// # Errors
/// The kernel's error for the first datagram.
pub fn send_batch(socket: BorrowedFd<'_>, datagrams: &[&[u8]]) -> io::Result<usize> {
    // SAFETY: all-zero bytes are valid values of both types.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    let count = datagrams.len().min(BATCH);
    for ((vector, message), bytes) in vectors.iter_mut().zip(&mut messages).zip(datagrams) {
        *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    let count = libc::c_uint::try_from(count).unwrap_or(0);
    // SAFETY: the first `count` messages point to buffers that outlive the call, and the kernel only reads
    // them.
    checked(unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) })
}

/// Receives up to [`BATCH`] datagrams without blocking. Returns their number and drops their bytes.
///
/// # Errors
/// The kernel's error.
pub fn discard_batch(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut scratch = [[0u8; 16]; BATCH];
    // SAFETY: all-zero bytes are valid values of both types.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    for ((vector, message), bytes) in vectors.iter_mut().zip(&mut messages).zip(&mut scratch) {
        *vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    let count = libc::c_uint::try_from(BATCH).unwrap_or(0);
    // SAFETY: each message points to a buffer of the given size, which outlives the call; longer datagrams
    // are truncated.
    checked(unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })
}

/// Sets the timer slack of this thread to the minimum. By default the kernel may wake it 50 µs late.
pub fn sleep_precisely() {
    // SAFETY: all arguments of the call are numbers; a refusal leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Gives this thread the lowest real-time priority, which is above all ordinary ones. Returns whether the
/// system allows it.
#[must_use]
pub fn run_before_others() -> bool {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: `lowest` is a valid `sched_param`; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) == 0 }
}

/// Sets the size of a socket's receive buffer, even beyond the system's limit. This needs CAP_NET_ADMIN in
/// the initial user namespace.
///
/// # Errors
/// The kernel's error.
pub fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: the pointer and the size describe one `int`.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size,
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_batch_goes_and_comes() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        assert_eq!(send_batch(a.as_fd(), &[b"one", b"and a much longer one", b""]).unwrap(), 3);
        assert_eq!(discard_batch(b.as_fd()).unwrap(), 3);
        assert_eq!(discard_batch(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
