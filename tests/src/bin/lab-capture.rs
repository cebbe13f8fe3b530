//! Writes everything that passes an interface to a pcap file, until the marker packet. tcpdump can't do it
//! here, because it changes its user, which an unprivileged user's namespace doesn't allow (but it can read
//! the file).
//!
//! `lab-capture INTERFACE FILE MARKER_IN_HEX`; prints `listening`, and at the end `dropped N` by the kernel.

use std::fs::File;
use std::io::{self, BufWriter, IoSliceMut, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::SystemTime;

use memchr::memmem;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};

/// Room for the largest super-packet with its Ethernet header.
const MAX_FRAME_BYTES: usize = 1 << 18;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-capture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, interface, file, marker] = &args[..] else {
        return Err("usage: lab-capture INTERFACE FILE MARKER_IN_HEX".into());
    };
    let marker = marker
        .as_bytes()
        .chunks(2)
        .map(|two| u8::from_str_radix(std::str::from_utf8(two)?, 16).map_err(Into::into));
    let marker: Vec<u8> = marker.collect::<Result<_, Box<dyn std::error::Error>>>()?;
    let end = memmem::Finder::new(&marker);
    let index = nix::net::if_::if_nametoindex(interface.as_str())?;
    let mut out = BufWriter::new(File::create(file)?);
    // Classic pcap: magic (microseconds), version 2.4, no zone, longest frame, link type 1 (Ethernet).
    let longest = u32::try_from(MAX_FRAME_BYTES)?;
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, longest, 1] {
        out.write_all(&u32::to_le_bytes(word))?;
    }

    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let buffer = 256 << 20;
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    }
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    println!("listening");
    io::stdout().flush()?;

    let (mut frame, mut dropped) = (vec![0u8; MAX_FRAME_BYTES], 0);
    loop {
        let mut control = nix::cmsg_space!(u32);
        let mut parts = [IoSliceMut::new(&mut frame)];
        let got = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
        for message in got.cmsgs()? {
            if let ControlMessageOwned::RxqOvfl(count) = message {
                dropped = count;
            }
        }
        let length = got.bytes;
        // The socket receives from all interfaces of this machine.
        if got.address.is_none_or(|address| address.ifindex() != usize::try_from(index).unwrap_or(0)) {
            continue;
        }
        let frame = &frame[..length];
        if end.find(frame).is_some() {
            break;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let length = u32::try_from(length)?;
        for word in [u32::try_from(now.as_secs())?, now.subsec_micros(), length, length] {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(frame)?;
    }
    out.flush()?;
    println!("dropped {dropped}");
    Ok(())
}
