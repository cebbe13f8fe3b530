//! A lane's UDP socket: one for IPv6 and IPv4 (in mapped form), with large buffers, and without "don't fragment", so that
//! a path with a small MTU slows the tunnel down and never stops it. `PMTUDISC_OMIT` fragments at the interface's MTU and
//! doesn't believe what unauthenticated ICMP says about the path, as WireGuard in the kernel does.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sys;

/// What is asked for; the kernel gives less where its limit is lower and we lack CAP_NET_ADMIN.
const BUFFER: i32 = 4 * 1024 * 1024;

/// Binds the socket of a lane to `port` on all addresses; IPv4 alone where the machine has no IPv6. `fwmark` marks what
/// it sends, for policy routing.
///
/// # Errors
/// What the system says: the port is in use, or a mark needs CAP_NET_ADMIN.
pub fn bind_lane_socket(port: u16, fwmark: Option<u32>) -> io::Result<UdpSocket> {
    match Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), Some(Protocol::UDP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            prepare(&socket, fwmark)?;
            match socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()) {
                Ok(()) => {
                    let v6 = |option, value| sys::set_int(socket.as_fd(), libc::IPPROTO_IPV6, option, value);
                    let _ = v6(libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_OMIT);
                    let _ = v6(libc::IPV6_RECVTCLASS, 1);
                    Ok(socket.into())
                }
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => bind_v4(port, fwmark),
                Err(error) => Err(error),
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => bind_v4(port, fwmark),
        Err(error) => Err(error),
    }
}

fn bind_v4(port: u16, fwmark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    prepare(&socket, fwmark)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}

fn prepare(socket: &Socket, fwmark: Option<u32>) -> io::Result<()> {
    if let Some(mark) = fwmark.filter(|mark| *mark != 0) {
        socket.set_mark(mark)?;
    }
    let fd = socket.as_fd();
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if sys::set_int(fd, libc::SOL_SOCKET, force, BUFFER).is_err() {
            sys::set_int(fd, libc::SOL_SOCKET, plain, BUFFER)?;
        }
    }
    // An IPv4 packet of an IPv6 socket follows the IPv4 option; a refusal leaves the system's default.
    let _ = sys::set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT);
    // The outer ECN bits come with each message; without them none is congested.
    let _ = sys::set_int(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
    // Datagrams of one flow come joined where the kernel can (since Linux 5.0).
    let _ = sys::set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    Ok(())
}

/// Lets nobody fragment what is sent from now on, or puts the socket's usual options back. IPv6 knows no router that
/// fragments, so there it is this machine that must not.
pub(crate) fn forbid_fragments(socket: &UdpSocket, forbid: bool, narrow: bool) {
    let discover = if forbid { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_OMIT };
    let _ = sys::set_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover);
    let _ = sys::set_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, forbid.into());
    match forbid {
        true => discover_v6(socket, libc::IPV6_PMTUDISC_PROBE),
        false => fragment_for_path(socket, narrow),
    }
}

/// Fragments outer IPv6 packets at what routers say that the path takes, or only at the interface's MTU.
pub(crate) fn fragment_for_path(socket: &UdpSocket, narrow: bool) {
    // `IPV6_MTU` alone does nothing below the interface's MTU (Linux 6.18).
    discover_v6(socket, if narrow { libc::IPV6_PMTUDISC_WANT } else { libc::IPV6_PMTUDISC_OMIT });
}

fn discover_v6(socket: &UdpSocket, how: libc::c_int) {
    // A socket for IPv4 alone refuses, and needs nothing.
    let _ = sys::set_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, how);
}

/// The address in the form that a socket takes: mapped where the socket is IPv6.
pub(crate) fn socket_address(socket_is_v6: bool, address: SocketAddr) -> SockAddr {
    match address {
        SocketAddr::V4(v4) if socket_is_v6 => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        other => other.into(),
    }
}

/// Sends a datagram on a dup of a lane's socket, whatever its family.
///
/// # Errors
/// What the system says.
pub fn send_to(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    let v6 = socket.local_addr()?.is_ipv6();
    match socket_address(v6, to).as_socket() {
        Some(address) => socket.send_to(datagram, address).map(drop),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}
