//! The TUN device, with one queue for each lane. Reads and writes do not block; the lane's thread polls the
//! queue. Each read and write begins with a virtio header, so that one system call moves up to 64 KiB of
//! packets of one flow.

pub(crate) mod coalesce;
mod ioctl;
pub(crate) mod split;
pub(crate) mod vnet;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use ioctl::{attach_queue, detach_queue, set_offload};

/// One queue of a TUN device. The device exists as long as one of its queues.
///
/// The kernel selects a queue for each flow by a hash, unless another queue wrote packets of that flow: then
/// the flow moves to that queue. Two sites would move each other's flows from lane to lane in this way, and
/// each move may reorder packets. So this program never writes to a queue that it reads. It writes to a
/// second, detached queue, which the kernel does not use for this decision, and each flow stays in the queue
/// of its hash.
pub struct TunQueue {
    file: File,
    /// The detached queue, for writes.
    write: File,
    /// Whether the kernel accepts and segments joined UDP datagrams (USO, since Linux 6.2).
    uso: bool,
}

/// The sets of offloads that this program does for the kernel, the largest first, and whether each has USO.
/// The first set that the kernel accepts is used.
const OFFLOADS: [(u32, bool); 3] =
    [(CSUM | TSO4 | TSO6 | TSO_ECN | USO4 | USO6, true), (CSUM | TSO4 | TSO6 | TSO_ECN, false), (0, false)];
const CSUM: u32 = libc::TUN_F_CSUM;
const TSO4: u32 = libc::TUN_F_TSO4;
const TSO6: u32 = libc::TUN_F_TSO6;
const TSO_ECN: u32 = libc::TUN_F_TSO_ECN;
const USO4: u32 = libc::TUN_F_USO4;
const USO6: u32 = libc::TUN_F_USO6;

/// Why a TUN device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun: {0}; {advice}", advice = open_advice(.0))]
    Open(io::Error),
    /// The device cannot be made, or a queue cannot be attached to it.
    #[error(
        "cannot make the TUN device {name}: {source}; the daemon needs CAP_NET_ADMIN, and no other program \
         may hold a device of this name"
    )]
    Attach {
        /// The device's name.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
}

fn open_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "let the daemon's user read and write it, as udev does: `chmod 0666 /dev/net/tun`"
        }
        _ => "load the module (`modprobe tun`), or give the container that device",
    }
}

/// Makes the TUN device `name` and opens a queue of it for each lane.
///
/// # Errors
/// [`TunError`], with what the system refused and what to do.
pub fn open_tun(name: &str, lanes: u8) -> Result<Vec<TunQueue>, TunError> {
    (0..lanes).map(|_| TunQueue::open(name)).collect()
}

impl TunQueue {
    fn open(name: &str) -> Result<Self, TunError> {
        let refused = |source| TunError::Attach { name: name.to_owned(), source };
        let attach = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open("/dev/net/tun")
                .map_err(TunError::Open)?;
            attach_queue(file.as_fd(), name).map_err(refused)?;
            Ok(file)
        };
        // Both queues then have the lane's number in the kernel: detaching the first one moves the second
        // one to its index.
        let (write, file) = (attach()?, attach()?);
        detach_queue(write.as_fd()).map_err(refused)?;
        let uso = OFFLOADS
            .into_iter()
            .find(|(offloads, _)| set_offload(file.as_fd(), *offloads).is_ok())
            .is_some_and(|(_, uso)| uso);
        Ok(Self { file, write, uso })
    }

    /// Whether the kernel segments joined UDP datagrams.
    pub(crate) fn cuts_udp(&self) -> bool {
        self.uso
    }

    /// Reads a virtio header and the packet after it. The error is `WouldBlock` if there is nothing to read.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes a virtio header and the parts of a packet.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.write).write_vectored(parts).map(drop)
    }

    /// Returns another handle of the same queue, for the lane's other thread.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, write: self.write.try_clone()?, uso: self.uso })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
