//! Starts the data path, and turns the protocol's orders into commands for the lanes.

use std::sync::Arc;

use qvpn_api::config::Interface;
use qvpn_dataplane::{
    Admission, Filter, InterfaceStats, LaneCommand, Lanes, LanesConfig, OpeningKey, PeerId, SealingKey,
    bind_lane_socket, boot_clock, open_tun,
};
use qvpn_proto::session::{self, Demux, HandshakeLimiter};
use qvpn_proto::{Direction, LaneOrder};
use qvpn_types::{LocalEpoch, PeerNumber, Time};

use crate::error::DaemonError;
use crate::lane_marks::LaneSocketMarks;
use crate::queues::{ControlSources, Sink};
use crate::translate::{self, lane_suite};

// The null cipher of the benchmarks protects nothing: a daemon that has it must not exist.
const _: () = assert!(!qvpn_dataplane::HAS_NULL_CIPHER, "qvpn-daemon is never built with bench-null-cipher");

/// What a lane's answer to an install order carries: the peer's number, the direction and the epoch.
pub(crate) fn acknowledgement(peer: PeerNumber, epoch: LocalEpoch, direction: Direction) -> u64 {
    let sealing = u64::from(direction == Direction::Sealing);
    u64::from(peer.0) << 48 | sealing << 47 | epoch.0 & EPOCH_BITS
}

/// The parts of an [`acknowledgement`].
pub(crate) fn acknowledged(token: u64) -> (PeerNumber, LocalEpoch, Direction) {
    let peer = PeerNumber(u16::try_from(token >> 48).unwrap_or(u16::MAX));
    let direction = if token >> 47 & 1 == 1 { Direction::Sealing } else { Direction::Opening };
    (peer, LocalEpoch(token & EPOCH_BITS), direction)
}

/// An epoch each 100 ms fills these bits after 446,000 years.
const EPOCH_BITS: u64 = (1 << 47) - 1;

/// The command for an order of the peer with this number.
pub(crate) fn command(number: PeerNumber, order: LaneOrder) -> LaneCommand {
    let peer = PeerId(number.0.into());
    match order {
        LaneOrder::InstallOpening { local_epoch, index, suite, key, expires_at } => {
            let (suite, expires_at) = (lane_suite(suite), expires_at.as_nanos());
            let key = OpeningKey { peer, epoch: local_epoch.0, index, suite, key, expires_at };
            let token = acknowledgement(number, local_epoch, Direction::Opening);
            LaneCommand::InstallOpening { token, key }
        }
        LaneOrder::InstallSealing { local_epoch, receiver_index, suite, key, expires_at, packets } => {
            let (suite, expires_at) = (lane_suite(suite), expires_at.as_nanos());
            let key =
                SealingKey { peer, epoch: local_epoch.0, receiver_index, suite, key, expires_at, packets };
            // Each lane starts an epoch with an empty packet, which shows both sites whether its path works.
            let token = acknowledgement(number, local_epoch, Direction::Sealing);
            LaneCommand::InstallSealing { token, key, announce: true }
        }
        LaneOrder::SendEmpty => LaneCommand::SendEmpty { peer },
        LaneOrder::StopSealing => LaneCommand::StopSealing { peer },
        LaneOrder::CloseOlder { local_epoch, at } => {
            LaneCommand::CloseOlder { peer, than_epoch: local_epoch.0, at: at.as_nanos() }
        }
        LaneOrder::Close { index } => LaneCommand::CloseOpening { index },
    }
}

/// The filter of a lane for datagrams that no data session opens: the limiter admits them.
fn filter(limiter: Arc<HandshakeLimiter>, sources: ControlSources) -> Filter {
    Arc::new(move |datagram, from, now| {
        let admission = limiter.admit(datagram, from, Time::from_nanos(now), || sources.contains(from));
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
    // The ports first: they fail more often, and leave no device behind.
    let (mut sockets, mut marked) = (Vec::new(), Vec::new());
    for lane in 0..interface.lanes {
        // The config's grammar keeps the port of the last lane in range.
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

#[cfg(test)]
mod tests {
    use qvpn_secret::Secret;
    use qvpn_types::Suite;

    use super::*;

    #[test]
    fn acknowledgements_of_two_peers_stay_apart() {
        let ask = |number| {
            let order = LaneOrder::InstallOpening {
                local_epoch: LocalEpoch(5),
                index: 1,
                suite: Suite::Aes256Gcm,
                key: Secret::zeroed(),
                expires_at: Time::from_nanos(9),
            };
            match command(PeerNumber(number), order) {
                LaneCommand::InstallOpening { token, key } => {
                    assert_eq!((key.peer, key.epoch, key.expires_at), (PeerId(number.into()), 5, 9));
                    token
                }
                _ => panic!(),
            }
        };
        for number in [1, 2, 0x7fff] {
            let named = (PeerNumber(number), LocalEpoch(5), Direction::Opening);
            assert_eq!(acknowledged(ask(number)), named);
        }
        let sealing = acknowledgement(PeerNumber(2), LocalEpoch(EPOCH_BITS), Direction::Sealing);
        assert_eq!(acknowledged(sealing), (PeerNumber(2), LocalEpoch(EPOCH_BITS), Direction::Sealing));
    }
}
