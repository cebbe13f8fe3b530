//! A lane's UDP socket. It carries IPv6 and IPv4 (as mapped addresses), has large buffers, and does not set
//! "don't fragment", so that a path with a small MTU slows the tunnel down but does not stop it.
//! `PMTUDISC_OMIT` fragments at the interface's MTU and ignores path MTUs from unauthenticated ICMP
//! messages, as WireGuard in the kernel does.

mod address;
pub(crate) mod batch;
mod cmsg;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ip_recvtos, set_ipv6_mtu_discover,
    set_ipv6_recvtclass, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
    set_socket_send_buffer_size, set_socket_send_buffer_size_force,
};
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use address::Endpoint;

/// The size of socket buffers to request. Without CAP_NET_ADMIN the kernel grants at most its own limit.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Binds the socket of a lane to `port` on all addresses, or on all IPv4 addresses if the machine has no
/// IPv6. Its packets get the mark `fwmark`, for policy routing.
///
/// # Errors
/// The error of the system: the port is in use, or a mark needs CAP_NET_ADMIN.
pub fn bind_lane_socket(port: u16, fwmark: Option<u32>) -> io::Result<UdpSocket> {
    match Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), Some(Protocol::UDP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            prepare(&socket, fwmark)?;
            match socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()) {
                Ok(()) => {
                    let _ = set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::OMIT);
                    let _ = set_ipv6_recvtclass(&socket, true);
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
    set_socket_recv_buffer_size_force(socket, BUFFER_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(socket, BUFFER_BYTES))?;
    set_socket_send_buffer_size_force(socket, BUFFER_BYTES)
        .or_else(|_| set_socket_send_buffer_size(socket, BUFFER_BYTES))?;
    // IPv4 packets of an IPv6 socket follow the IPv4 option. A refusal leaves the system's default.
    let _ = set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::OMIT);
    // This option adds the outer ECN bits to each message; without it no message shows congestion.
    let _ = set_ip_recvtos(socket, true);
    // The kernel joins datagrams of one flow where it can (since Linux 5.0).
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    Ok(())
}

/// Forbids fragmentation of everything sent from now on, or restores the socket's usual options. IPv6
/// routers never fragment, so for IPv6 it is enough that this machine doesn't.
pub(crate) fn forbid_fragments(socket: &UdpSocket, forbid: bool, narrow: bool) {
    let discover = if forbid { Ipv4PathMtuDiscovery::PROBE } else { Ipv4PathMtuDiscovery::OMIT };
    let _ = set_ip_mtu_discover(socket, discover);
    let _ = setsockopt(socket, sockopt::Ipv6DontFrag, &forbid);
    if forbid {
        discover_v6(socket, Ipv6PathMtuDiscovery::PROBE);
    } else {
        fragment_for_path(socket, narrow);
    }
}

/// Fragments outer IPv6 packets at the path MTU that routers report (`narrow`), or only at the interface's
/// MTU.
pub(crate) fn fragment_for_path(socket: &UdpSocket, narrow: bool) {
    // `IPV6_MTU` alone does nothing below the interface's MTU (Linux 6.18).
    discover_v6(socket, if narrow { Ipv6PathMtuDiscovery::WANT } else { Ipv6PathMtuDiscovery::OMIT });
}

fn discover_v6(socket: &UdpSocket, how: Ipv6PathMtuDiscovery) {
    // An IPv4 socket refuses this option and does not need it.
    let _ = set_ipv6_mtu_discover(socket, how);
}

/// Sends a datagram on a duplicate of a lane's socket, to an address of either family.
///
/// # Errors
/// The error of the system.
pub fn send_to(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    let v6 = socket.local_addr()?.is_ipv6();
    socket.send_to(datagram, address::socket_address(v6, to)).map(drop)
}
