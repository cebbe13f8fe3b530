//! Sends the uevent of a changed VM generation ID to all listeners in this network namespace: the kernel
//! forwards it from a privileged process of the namespace.

use std::error::Error;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendmsg, socket,
};

/// Netlink's request header: length, a type outside netlink's control messages, `NLM_F_REQUEST`, sequence,
/// port.
fn message(body: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = u32::try_from(16 + body.len())?.to_ne_bytes().to_vec();
    bytes.extend(16u16.to_ne_bytes());
    bytes.extend(1u16.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    Ok(bytes)
}

fn run() -> Result<(), Box<dyn Error>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    let body =
        b"change@/devices/platform/QEMUVGID:00\0ACTION=change\0DEVPATH=/devices/platform/QEMUVGID:00\0\
                 SUBSYSTEM=platform\0NEW_VMGENID=1\0";
    let bytes = message(body)?;
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        &[],
        MsgFlags::empty(),
        Some(&NetlinkAddr::new(0, 0)),
    )?;
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-uevent: {error}");
            ExitCode::FAILURE
        }
    }
}
