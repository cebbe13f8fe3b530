//! A lane's UDP socket: one for IPv6 and IPv4 (in mapped form), with large buffers, and without "don't fragment", so that
//! a path with a small MTU slows the tunnel down but never stops it. `PMTUDISC_OMIT` fragments at the interface's MTU and
//! ignores what unauthenticated ICMP says about the path, as WireGuard in the kernel does.

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

/// The socket buffers that we ask for; without CAP_NET_ADMIN the kernel grants at most its own limit.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

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
    // An IPv4 packet of an IPv6 socket follows the IPv4 option; a refusal leaves the system's default.
    let _ = set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::OMIT);
    // The outer ECN bits come with each message; without this option no message shows congestion.
    let _ = set_ip_recvtos(socket, true);
    // The kernel joins datagrams of one flow where it can (since Linux 5.0).
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    Ok(())
}

/// Forbids fragmentation of everything sent from now on, or restores the socket's usual options. IPv6 routers never
/// fragment, so there this machine must not.
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

/// Fragments outer IPv6 packets at the path MTU that routers report (`narrow`), or only at the interface's MTU.
pub(crate) fn fragment_for_path(socket: &UdpSocket, narrow: bool) {
    // `IPV6_MTU` alone does nothing below the interface's MTU (Linux 6.18).
    discover_v6(socket, if narrow { Ipv6PathMtuDiscovery::WANT } else { Ipv6PathMtuDiscovery::OMIT });
}

fn discover_v6(socket: &UdpSocket, how: Ipv6PathMtuDiscovery) {
    // An IPv4 socket refuses this option and does not need it.
    let _ = set_ipv6_mtu_discover(socket, how);
}

/// Sends a datagram on a dup of a lane's socket, of either family.
///
/// # Errors
/// What the system says.
pub fn send_to(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    let v6 = socket.local_addr()?.is_ipv6();
    socket.send_to(datagram, address::socket_address(v6, to)).map(drop)
}
