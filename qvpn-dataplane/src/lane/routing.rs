//! How a lane chooses the peer of a packet that it sends, and which sources it accepts from a peer.

use std::net::IpAddr;
use std::sync::Arc;

use qvpn_types::PeerNumber;

use super::inner::flow_hash;
use crate::allowed_ips::AllowedIps;
use crate::kernel_routes::{KernelRoutes, Selection};

#[derive(Clone)]
pub(super) enum Routing {
    /// By allowed IPs, in both directions.
    AllowedIps(Arc<AllowedIps>),
    /// By the kernel's routes, within allowed IPs.
    Kernel(Arc<KernelRoutes>),
}

impl Default for Routing {
    fn default() -> Self {
        Self::AllowedIps(Arc::default())
    }
}

impl Routing {
    /// Chooses what to do with `packet`, which goes to `destination`.
    pub(super) fn select(&self, destination: IpAddr, packet: &[u8]) -> Selection {
        match self {
            Self::AllowedIps(table) => table.lookup(destination).map_or(Selection::NoPeer, Selection::Peer),
            Self::Kernel(routes) => routes.select(destination, || flow_hash(packet)),
        }
    }

    /// Whether `peer` may send packets from `source`.
    pub(super) fn allows(&self, peer: PeerNumber, source: IpAddr) -> bool {
        match self {
            Self::AllowedIps(table) => table.lookup(source) == Some(peer),
            Self::Kernel(routes) => routes.peers().allows(peer, source),
        }
    }

    /// Whether lanes answer with ICMP errors. With [`AllowedIps`], the kernel does: it knows each route and
    /// its MTU.
    pub(super) fn answers_errors(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }
}
