//! Notices that this machine was copied: resumed from a snapshot, or cloned with its memory. The copy has the keys and
//! counters of the original, so that both would use the same nonces. The hypervisor changes the VM generation ID then,
//! and the kernel reseeds its random numbers and says so by a uevent with `NEW_VMGENID=1`.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt,
};
use tokio::net::UnixDatagram;

/// The multicast group of the kernel's own uevents.
const KERNEL: u32 = 1;
/// What the uevent of a new generation ID carries, among other texts that end by a zero byte.
const MARK: &[u8] = b"NEW_VMGENID=1";
/// The longest uevent that the kernel makes, and some more.
const LONGEST: usize = 8192;
/// Room for bursts of other uevents, so that ours is not lost among them.
const BUFFER: usize = 1 << 20;

/// Listens to the kernel's uevents. Only a privileged process can send there, so senders aren't told apart.
pub(crate) struct Snapshots {
    /// A netlink socket: tokio has no type for those, and one for datagrams receives from any kind.
    socket: Option<UnixDatagram>,
}

impl Snapshots {
    /// Begins to listen. Where the system refuses, copies go unnoticed, and the log says so.
    pub(crate) fn watch() -> Self {
        let socket = open()
            .inspect_err(|error| {
                tracing::warn!(
                    "the kernel's uevents can't be heard ({error}), so a snapshot of this machine that is resumed goes unnoticed; restart the daemon in it"
                );
            })
            .ok();
        Self { socket }
    }

    /// Waits until the machine turns out to be a copy. Uevents that were lost in a burst count as one of that kind, since
    /// a needless new start costs a moment and a repeated nonce costs the key.
    pub(crate) async fn copied(&mut self) {
        loop {
            let Some(socket) = &self.socket else {
                return std::future::pending().await;
            };
            let mut buffer = [0; LONGEST];
            match socket.recv(&mut buffer).await {
                Ok(length) if is_new_generation(&buffer[..length]) => return,
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return,
                Err(error) => {
                    tracing::warn!("listening to the kernel's uevents: {error}; it ends here");
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
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    UnixDatagram::from_std(socket.into())
}

fn is_new_generation(uevent: &[u8]) -> bool {
    uevent.split(|byte| *byte == 0).any(|text| text == MARK)
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
