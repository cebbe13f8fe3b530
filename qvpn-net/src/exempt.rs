//! What neither layer blocks: link-local addresses, multicast and broadcast. Neighbour discovery, DHCP and
//! routing protocols need them, and routers do not forward link-local packets.

use ipnet::IpNet;

const EXEMPT: [&str; 5] = ["224.0.0.0/4", "255.255.255.255/32", "169.254.0.0/16", "fe80::/10", "ff00::/8"];

/// The prefixes that are never blocked.
pub(crate) fn exempt() -> impl Iterator<Item = IpNet> {
    EXEMPT.iter().filter_map(|text| text.parse().ok())
}
