//! Detects that this machine was copied: resumed from a snapshot, or cloned with its memory. A copy has the
//! keys and counters of the original, so both would use the same nonces. The hypervisor then changes the VM
//! generation ID, and the kernel reseeds its random numbers and sends a uevent with `NEW_VMGENID=1`.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt,
};
use tokio::net::UnixDatagram;

/// The multicast group of the uevents that the kernel itself sends.
const KERNEL_GROUP: u32 = 1;
/// A field of the uevent for a new generation ID. A zero byte ends each field.
const NEW_GENERATION: &[u8] = b"NEW_VMGENID=1";
/// Larger than the longest uevent of the kernel.
const MAX_UEVENT_BYTES: usize = 8192;
/// Room for bursts of other uevents, so that ours is not lost.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

/// A subscription to the kernel's uevents. Only a privileged process can send there, so the sender is not
/// checked.
pub(crate) struct Snapshots {
    /// A netlink socket: tokio has no type for it, but its datagram type can receive from it.
    socket: Option<UnixDatagram>,
}

impl Snapshots {
    /// Subscribes. If the system refuses, the log says that copies will not be detected.
    pub(crate) fn watch() -> Self {
        let socket = open()
            .inspect_err(|error| {
                tracing::warn!(
                    "can't receive the kernel's uevents ({error}), so the daemon won't notice that this \
                     machine was resumed from a snapshot; restart the daemon in it"
                );
            })
            .ok();
        Self { socket }
    }

    /// Waits until the machine turns out to be a copy. Lost uevents are treated as a copy: a needless restart
    /// of all sessions is harmless, a repeated nonce is not.
    pub(crate) async fn copied(&mut self) {
        loop {
            let Some(socket) = &self.socket else {
                return std::future::pending().await;
            };
            let mut buffer = [0; MAX_UEVENT_BYTES];
            match socket.recv(&mut buffer).await {
                Ok(length) if is_new_generation(&buffer[..length]) => return,
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return,
                Err(error) => {
                    tracing::warn!(
                        "receiving the kernel's uevents: {error}; the daemon no longer notices copies of \
                         this machine"
                    );
                    self.socket = None;
                }
            }
        }
    }
}

fn open() -> io::Result<UnixDatagram> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    }
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    UnixDatagram::from_std(socket.into())
}

fn is_new_generation(uevent: &[u8]) -> bool {
    uevent.split(|byte| *byte == 0).any(|text| text == NEW_GENERATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_generation_is_one() {
        let uevent = |more: &str| {
            format!(
                "change@/devices/platform/QEMUVGID:00\0ACTION=change\0SUBSYSTEM=platform\0{more}SEQNUM=7\0"
            )
        };
        assert!(is_new_generation(uevent("NEW_VMGENID=1\0").as_bytes()));
        for other in [uevent(""), uevent("NEW_VMGENID=10\0"), uevent("X=NEW_VMGENID=1\0"), String::new()] {
            assert!(!is_new_generation(other.as_bytes()), "{other:?}");
        }
    }
}
