//! Addresses in the form that a lane's socket needs: IPv4 addresses are mapped if the socket is IPv6.

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use qvpn_types::Time;
use socket2::SockAddr;

/// The destination of datagrams.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(super) address: SockAddr,
    /// Whether packets to it are IPv4, even if the address is mapped.
    pub(super) v4: bool,
    /// The address that they are sent from; without it the system chooses.
    pub(super) source: Option<Source>,
    /// Until then, the system chooses.
    no_source_until: Time,
}

/// How long the system chooses the source address after it refused ours.
const NO_SOURCE_DURATION: Duration = Duration::from_secs(10);

impl Endpoint {
    /// `local` is the address of this machine to send from.
    pub(crate) fn new(socket_is_v6: bool, to: SocketAddr, local: Option<IpAddr>) -> Self {
        let v4 = canonical(to).is_ipv4();
        let local = local.filter(|local| local.is_ipv4() == v4);
        let source = local.and_then(|local| Source::new(socket_is_v6, local));
        Self {
            address: socket_address(socket_is_v6, to).into(),
            v4,
            source,
            no_source_until: Time::default(),
        }
    }

    /// Returns the address to send from.
    pub(crate) fn source(&self, now: Time) -> Option<&Source> {
        self.source.as_ref().filter(|_| now >= self.no_source_until)
    }

    /// Leaves the choice of the source address to the system for a while, if an error may come from that
    /// address: this machine may not have it any more. Returns whether to send again.
    pub(crate) fn on_error(&mut self, error: &io::Error, now: Time) -> bool {
        let may_be = matches!(
            error.raw_os_error(),
            Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
        );
        if !may_be || self.source(now).is_none() {
            return false;
        }
        self.no_source_until = now + NO_SOURCE_DURATION;
        true
    }
}

/// The source address of datagrams, as `IP_PKTINFO` or `IPV6_PKTINFO`. It names no device, so that routes
/// choose that.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub(super) level: c_int,
    pub(super) kind: c_int,
    data: [u8; size_of::<libc::in6_pktinfo>()],
    len: usize,
}

impl Source {
    fn new(socket_is_v6: bool, local: IpAddr) -> Option<Self> {
        let mut data = [0; size_of::<libc::in6_pktinfo>()];
        let v6 = match local {
            IpAddr::V4(v4) if !socket_is_v6 => {
                // The device's number, then `ipi_spec_dst`.
                data[4..8].copy_from_slice(&v4.octets());
                let len = size_of::<libc::in_pktinfo>();
                return Some(Self { level: libc::IPPROTO_IP, kind: libc::IP_PKTINFO, data, len });
            }
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            // A link-local address means nothing without its device.
            IpAddr::V6(v6) if v6.is_unicast_link_local() => return None,
            IpAddr::V6(v6) => v6,
        };
        data[..16].copy_from_slice(&v6.octets());
        Some(Self { level: libc::IPPROTO_IPV6, kind: libc::IPV6_PKTINFO, data, len: data.len() })
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

/// Returns the address of this machine that a datagram was sent to, from its control message.
pub(super) fn called_address(level: c_int, kind: c_int, data: &[u8]) -> Option<IpAddr> {
    match (level, kind) {
        // The device's number, `ipi_spec_dst`, `ipi_addr`.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => Some(IpAddr::from(*data.get(8..)?.first_chunk::<4>()?)),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            Some(IpAddr::from(*data.first_chunk::<16>()?).to_canonical())
        }
        _ => None,
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
