//! Starts the data path, and translates the protocol's orders into commands for the lanes.

use std::sync::Arc;

use qvpn_api::config::Interface;
use qvpn_dataplane::{
    Admission, Filter, InterfaceStats, Lanes, LanesConfig, OpeningKey, SealingKey, bind_lane_socket,
    boot_clock, open_tun,
};
use qvpn_proto::LaneOrder;
use qvpn_proto::session::{self, Demux, HandshakeLimiter};
use qvpn_types::PeerNumber;

use crate::error::DaemonError;
use crate::lane_marks::LaneSocketMarks;
use crate::queues::{ControlSources, Sink};
use crate::translate;

// The null cipher of the benchmarks protects nothing: a daemon with it must not compile.
const _: () = assert!(!qvpn_dataplane::HAS_NULL_CIPHER, "qvpn-daemon is never built with bench-null-cipher");

/// Gives a lane an order of the peer with this number.
pub(crate) fn apply(lanes: &Lanes, peer: PeerNumber, lane: u8, order: LaneOrder) {
    match order {
        LaneOrder::InstallOpening { local_epoch: epoch, index, suite, key, expires_at } => {
            lanes.install_opening(lane, OpeningKey { peer, epoch, index, suite, key, expires_at });
        }
        LaneOrder::InstallSealing { local_epoch: epoch, receiver_index, suite, key, expires_at, packets } => {
            let key = SealingKey { peer, epoch, receiver_index, suite, key, expires_at, packets };
            // Each lane starts an epoch with an empty packet, which shows both sites whether its path works.
            lanes.install_sealing(lane, key, true);
        }
        LaneOrder::SendEmpty => lanes.send_empty(lane, peer),
        LaneOrder::StopSealing => lanes.stop_sealing(lane, peer),
        LaneOrder::CloseOlder { local_epoch, at } => lanes.close_older(lane, peer, local_epoch, at),
        LaneOrder::Close { index } => lanes.close_opening(lane, index),
        LaneOrder::SetEndpoint { endpoint } => lanes.set_endpoint(lane, peer, endpoint),
        LaneOrder::SetKeepalive { interval } => lanes.set_keepalive(lane, peer, interval),
        LaneOrder::Reroute { via } => lanes.set_reroute(lane, peer, via),
    }
}

/// Makes the filter of a lane for datagrams that no data session opens: the limiter decides on them.
fn filter(limiter: Arc<HandshakeLimiter>, sources: ControlSources) -> Filter {
    Arc::new(move |datagram, from, now| {
        let admission = limiter.admit(datagram, from, now, || sources.contains(from));
        match admission {
            session::Admission::Admitted => Admission::Admitted,
            session::Admission::Malformed => Admission::Malformed,
            session::Admission::NoCookie => Admission::Unproven,
            session::Admission::TooMany => Admission::TooMany,
        }
    })
}

/// Creates the TUN device and the sockets, and starts the lanes. Datagrams carry `fwmark` unless it is 0.
///
/// # Errors
/// What the system refuses.
pub(crate) fn start(
    interface: &Interface,
    fwmark: u32,
    demux: &Demux,
    stats: Arc<InterfaceStats>,
    sink: Sink,
) -> Result<(Lanes, LaneSocketMarks), DaemonError> {
    // Bind the ports first: that fails more often, and leaves no device behind.
    let (mut sockets, mut marked) = (Vec::new(), Vec::new());
    for lane in 0..interface.lanes {
        // The grammar of the config keeps the port of the last lane in range.
        let port = interface.listen_port.saturating_add(lane.into());
        let socket = bind_lane_socket(port, (fwmark != 0).then_some(fwmark));
        let port_error = |source| DaemonError::Port { port, source };
        let socket = socket.map_err(port_error)?;
        marked.push(socket.try_clone().map_err(port_error)?);
        sockets.push(socket);
    }
    let config = LanesConfig {
        tuns: open_tun(&interface.name, interface.lanes)?,
        sockets,
        mtu: translate::mtu(interface.mtu),
        dscp: translate::dscp(interface.dscp),
        stats,
        filter: filter(demux.limiter(), sink.control_sources()),
        clock: boot_clock(),
    };
    Ok((Lanes::start(config, Arc::new(sink))?, LaneSocketMarks::new(marked, fwmark)))
}
