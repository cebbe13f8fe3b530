//! The data path as the owner of the peers sees it: orders of the protocol become commands of the lanes.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use qvpn_api::config::Interface;
use qvpn_dataplane::{
    Admission, Filter, InterfaceStats, LaneCommand, Lanes, LanesConfig, OpeningKey, PeerId, SealingKey,
    bind_lane_socket, boot_clock, open_tun,
};
use qvpn_proto::gate::{self, Door, Gate};
use qvpn_proto::{LaneOrder, Time};

use crate::error::DaemonError;
use crate::queues::{Known, Sink};
use crate::translate::{self, lane_suite};

// The null cipher of the benchmarks protects nothing: a daemon that has it must not exist.
const _: () = assert!(!qvpn_dataplane::HAS_NULL_CIPHER, "qvpn-daemon is never built with bench-null-cipher");

/// Whose order a lane's answer belongs to. Peers count their tokens each for itself, and lanes must tell them apart.
#[derive(Default)]
pub(crate) struct Tokens {
    last: u64,
    open: BTreeMap<u64, (u16, u64)>,
}

impl Tokens {
    fn open(&mut self, peer: u16, token: u64) -> u64 {
        self.last += 1;
        self.open.insert(self.last, (peer, token));
        self.last
    }

    /// The peer's number and its own token, once.
    pub(crate) fn answered(&mut self, token: u64) -> Option<(u16, u64)> {
        self.open.remove(&token)
    }

    /// Forgets a peer that is removed.
    pub(crate) fn forget(&mut self, peer: u16) {
        self.open.retain(|_, (number, _)| *number != peer);
    }
}

/// The command for an order of the peer with this number.
pub(crate) fn command(tokens: &mut Tokens, number: u16, order: LaneOrder) -> LaneCommand {
    let peer = PeerId(number.into());
    match order {
        LaneOrder::InstallOpening { token, generation, index, suite, key, expires_at } => {
            let (suite, expires_at) = (lane_suite(suite), expires_at.as_nanos());
            let key = OpeningKey { peer, epoch: generation, index, suite, key, expires_at };
            LaneCommand::InstallOpening { token: tokens.open(number, token), key }
        }
        LaneOrder::InstallSealing { token, generation, receiver_index, suite, key, expires_at, packets } => {
            let (suite, expires_at) = (lane_suite(suite), expires_at.as_nanos());
            let key = SealingKey { peer, epoch: generation, receiver_index, suite, key, expires_at, packets };
            // Each lane begins an epoch with an empty packet, so that both ends see whether its path is there.
            LaneCommand::InstallSealing { token: tokens.open(number, token), key, announce: true }
        }
        LaneOrder::SendEmpty => LaneCommand::SendEmpty { peer },
        LaneOrder::StopSealing => LaneCommand::StopSealing { peer },
        LaneOrder::CloseOlder { generation, at } => {
            LaneCommand::CloseOlder { peer, than_epoch: generation, at: at.as_nanos() }
        }
        LaneOrder::Close { index } => LaneCommand::CloseOpening { index },
    }
}

/// The lanes' sockets once more, to change the firewall mark of what they send while they run.
pub(crate) struct Marks {
    sockets: Vec<UdpSocket>,
    mark: u32,
}

impl Marks {
    /// The mark that all of them have; 0 is none.
    pub(crate) fn mark(&self) -> u32 {
        self.mark
    }

    /// Gives all of them another mark, or, on an error, leaves all as they are.
    ///
    /// # Errors
    /// It needs CAP_NET_ADMIN.
    pub(crate) fn set(&mut self, mark: u32) -> io::Result<()> {
        for socket in &self.sockets {
            if let Err(error) = setsockopt(socket, sockopt::Mark, &mark) {
                // What has the former mark takes it again without a change.
                let _ =
                    self.sockets.iter().try_for_each(|socket| setsockopt(socket, sockopt::Mark, &self.mark));
                return Err(error.into());
            }
        }
        self.mark = mark;
        Ok(())
    }
}

/// Has the lane ask the door.
fn filter(door: Arc<Door>, known: Known) -> Filter {
    Arc::new(move |datagram, from, now| {
        let admission = door.admit(datagram, from, Time::from_nanos(now), || known.contains(from));
        match admission {
            gate::Admission::Admitted => Admission::Admitted,
            gate::Admission::Malformed => Admission::Malformed,
            gate::Admission::Unproven => Admission::Unproven,
            gate::Admission::TooMany => Admission::TooMany,
        }
    })
}

/// Makes the TUN device and the sockets, and starts the lanes. Datagrams carry `fwmark` unless it is 0.
///
/// # Errors
/// What the system refuses.
pub(crate) fn start(
    interface: &Interface,
    fwmark: u32,
    gate: &Gate,
    stats: Arc<InterfaceStats>,
    sink: Sink,
) -> Result<(Lanes, Marks), DaemonError> {
    // The ports first: they are the likelier failure, and leave no device behind.
    let (mut sockets, mut marked) = (Vec::new(), Vec::new());
    for lane in 0..interface.lanes {
        // The config's grammar keeps the last lane's port in range.
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
        filter: filter(gate.door(), sink.known()),
        clock: boot_clock(),
    };
    Ok((Lanes::start(config, Arc::new(sink))?, Marks { sockets: marked, mark: fwmark }))
}

#[cfg(test)]
mod tests {
    use qvpn_proto::Suite;
    use qvpn_secret::Secret;

    use super::*;

    fn opening(token: u64, generation: u64, index: u32) -> LaneOrder {
        LaneOrder::InstallOpening {
            token,
            generation,
            index,
            suite: Suite::Aes256Gcm,
            key: Secret::zeroed(),
            expires_at: Time::from_nanos(9),
        }
    }

    #[test]
    fn tokens_of_two_peers_stay_apart() {
        let mut tokens = Tokens::default();
        let mut ask = |number| match command(&mut tokens, number, opening(5, 1, 1)) {
            LaneCommand::InstallOpening { token, key } => {
                assert_eq!((key.peer, key.epoch, key.expires_at), (PeerId(number.into()), 1, 9));
                token
            }
            _ => panic!(),
        };
        let (a, b) = (ask(1), ask(2));
        assert_eq!(tokens.answered(b), Some((2, 5)));
        assert_eq!(tokens.answered(b), None);
        tokens.forget(1);
        assert_eq!(tokens.answered(a), None);
    }
}
