//! Configuration of lanes.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use qvpn_types::Time;

use crate::clock::Clock;
use crate::event::LaneSink;
use crate::stats::InterfaceStats;
use crate::tun::TunQueue;

/// A cheap check of a datagram for the control task before it is queued. Arguments: the datagram, its
/// sender, the time.
pub type Filter = Arc<dyn Fn(&[u8], SocketAddr, Time) -> Admission + Send + Sync>;

/// The decision of a [`Filter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The datagram is queued for the control task.
    Admitted,
    /// The datagram is not a valid message for this gateway: dropped and counted.
    Malformed,
    /// A handshake initiation without a valid cookie while there are too many: dropped and counted.
    Unproven,
    /// There are too many datagrams from unknown sources: dropped and counted.
    TooMany,
}

/// The DSCP field (RFC 2474) of the packets that lanes send. The two ECN bits beside it always follow the
/// inner packet (RFC 6040).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dscp {
    /// The value of the inner packet, which shows the path what kind of traffic it carries.
    Inherit,
    /// A fixed value, 0 to 63.
    Fixed(u8),
}

/// The parts and settings of lanes.
pub struct LanesConfig {
    /// A TUN queue for each lane.
    pub tuns: Vec<TunQueue>,
    /// A UDP socket for each lane.
    pub sockets: Vec<UdpSocket>,
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// The DSCP field of sent packets.
    pub dscp: Dscp,
    /// Drops that belong to no peer.
    pub stats: Arc<InterfaceStats>,
    /// Checks datagrams for the control task.
    pub filter: Filter,
    /// The clock that expires keys.
    pub clock: Clock,
}

/// The values that both threads of a lane need.
#[derive(Clone)]
pub(super) struct LaneContext {
    pub(super) lane: u8,
    pub(super) sink: Arc<dyn LaneSink>,
    pub(super) stats: Arc<InterfaceStats>,
    pub(super) clock: Clock,
    pub(super) mtu: u16,
    pub(super) dscp: Dscp,
}
