//! A next hop of a route in the kernel.

use std::net::IpAddr;

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelNextHop {
    /// Its address, which may be of the other family; if absent, the packet's destination is the next hop.
    pub gateway: Option<IpAddr>,
    /// The share of flows, from 1.
    pub weight: u16,
}

/// Parses an address of 4 or 16 bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}
