//! The TUN device: one queue a lane. A queue is read and written a packet at a time without waiting; its thread polls it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::sys;

/// One queue of a TUN device, which exists as long as one of its queues does.
pub struct TunQueue(File);

/// Why a TUN device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` cannot be opened.
    #[error(
        "cannot open /dev/net/tun: {0}; load the module (`modprobe tun`), or give the container that device"
    )]
    Open(io::Error),
    /// The device cannot be made or joined.
    #[error(
        "cannot make the TUN device {name}: {source}; the daemon needs CAP_NET_ADMIN, and no other program may hold a device of this name"
    )]
    Attach {
        /// The device.
        name: String,
        /// The system's word.
        source: io::Error,
    },
}

/// Makes the TUN device `name` and opens a queue of it for each lane.
///
/// # Errors
/// [`TunError`] says what was refused and what to do.
pub fn open_tun(name: &str, lanes: u8) -> Result<Vec<TunQueue>, TunError> {
    (0..lanes).map(|_| TunQueue::open(name)).collect()
}

impl TunQueue {
    fn open(name: &str) -> Result<Self, TunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(TunError::Open)?;
        sys::attach_tun(file.as_fd(), name)
            .map_err(|source| TunError::Attach { name: name.to_owned(), source })?;
        Ok(Self(file))
    }

    /// Reads one packet; `WouldBlock` if there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes one packet.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write(packet).map(drop)
    }

    /// Another handle of the same queue, for the lane's other thread.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
