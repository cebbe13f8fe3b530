//! Addresses in the form that a lane's socket needs: IPv4 addresses are mapped if the socket is IPv6.

use std::net::{SocketAddr, SocketAddrV6};

use socket2::SockAddr;

/// The destination of datagrams.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(super) address: SockAddr,
    /// Whether packets to it are IPv4, even if the address is mapped.
    pub(super) v4: bool,
}

impl Endpoint {
    pub(crate) fn new(socket_is_v6: bool, to: SocketAddr) -> Self {
        Self { address: socket_address(socket_is_v6, to).into(), v4: canonical(to).is_ipv4() }
    }
}

/// Returns the address in the form that the socket needs.
pub(super) fn socket_address(socket_is_v6: bool, address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if socket_is_v6 => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        other => other,
    }
}

/// Converts a mapped IPv4 address back to IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
