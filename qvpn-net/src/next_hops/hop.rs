//! One next hop.

use std::net::IpAddr;

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelNextHop {
    /// Its address, also of the other family; the packet's destination if absent.
    pub gateway: Option<IpAddr>,
    /// The share of flows, from 1.
    pub weight: u16,
}

/// An address by its number of bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}
