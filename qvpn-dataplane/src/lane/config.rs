//! What lanes are made of.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use qvpn_types::Time;

use crate::clock::Clock;
use crate::event::LaneSink;
use crate::stats::InterfaceStats;
use crate::tun::TunQueue;

/// A cheap check of a datagram for the control task, with its sender and the time, before it is queued.
pub type Filter = Arc<dyn Fn(&[u8], SocketAddr, Time) -> Admission + Send + Sync>;

/// What a [`Filter`] decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is queued for the control task.
    Admitted,
    /// It is not for us: dropped and counted.
    Malformed,
    /// A handshake initiation without a proof of its address, and there are too many of them: dropped and counted.
    Unproven,
    /// There are too many datagrams from unknown sources: dropped and counted.
    TooMany,
}

/// The DSCP field (RFC 2474) of the packets that lanes send. The two ECN bits beside it always follow the inner packet
/// (RFC 6040).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dscp {
    /// That of the inner packet, which shows the path what kind of traffic it carries.
    Inherit,
    /// Always this, 0 to 63.
    Fixed(u8),
}

/// What lanes are made of.
pub struct LanesConfig {
    /// A TUN queue for each lane.
    pub tuns: Vec<TunQueue>,
    /// A UDP socket for each lane.
    pub sockets: Vec<UdpSocket>,
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// The DSCP field of what is sent.
    pub dscp: Dscp,
    /// Drops that belong to no peer.
    pub stats: Arc<InterfaceStats>,
    /// Checks what is for the control task.
    pub filter: Filter,
    /// The clock that ages keys.
    pub clock: Clock,
}

/// What both threads of a lane have.
#[derive(Clone)]
pub(super) struct LaneContext {
    pub(super) lane: u8,
    pub(super) sink: Arc<dyn LaneSink>,
    pub(super) stats: Arc<InterfaceStats>,
    pub(super) clock: Clock,
    pub(super) mtu: u16,
    pub(super) dscp: Dscp,
}
