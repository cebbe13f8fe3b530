//! A system call for which no library has a safe function. All `unsafe` code of this crate is here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// The maximum number of supplementary groups of a process in Linux (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Returns the supplementary groups that the peer process of a unix socket had when it connected.
///
/// # Errors
/// If the kernel is older than 4.13, or the socket is of another kind.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let bytes = size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(bytes).unwrap_or(0);
        // SAFETY: the pointer and the length describe `groups`, into which the kernel writes at most that
        // many bytes.
        let result = unsafe {
            let place = groups.as_mut_ptr().cast();
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                place,
                &raw mut length,
            )
        };
        let error = io::Error::last_os_error();
        let count = usize::try_from(length).unwrap_or(0) / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        // The kernel has set the length that it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Maps memory that is writable and executable, which the sandbox must refuse.
#[cfg(test)]
pub(crate) fn map_written_and_run() -> io::Result<()> {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: a fresh anonymous mapping affects no existing memory; it stays until the test's child ends.
    let place = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, all, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if place == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
