//! The parts of the daemon that all peers share.

use std::net::SocketAddr;
use std::sync::Arc;

use getrandom::SysRng;
use qvpn_dataplane::{InterfaceStats, Lanes};
use qvpn_proto::wire::limits::MAX_LINK_PACKET;
use rand_core::UnwrapErr;
use tokio::sync::mpsc;

use crate::events::Events;
use crate::histogram::Histogram;
use crate::queues::ControlSources;
use crate::task_result::TaskResult;

/// The largest control datagram that is not a path probe: a packet and the 32 bytes that the session adds.
const MAX_CONTROL_DATAGRAM: usize = MAX_LINK_PACKET + 32;

pub(crate) struct DaemonContext {
    pub(crate) lanes: Lanes,
    pub(crate) stats: Arc<InterfaceStats>,
    pub(crate) events: Arc<Events>,
    pub(crate) control_sources: ControlSources,
    pub(crate) results: mpsc::Sender<TaskResult>,
    pub(crate) rng: UnwrapErr<SysRng>,
    /// The durations of rekeys.
    pub(crate) rekeys: Histogram,
    /// The MTU of a path changed, and the routes don't have it yet.
    pub(crate) mtu_changed: bool,
}

impl DaemonContext {
    /// Sends a control datagram once; the protocol retransmits what is lost.
    pub(crate) fn transmit(&self, datagram: &[u8], to: SocketAddr) {
        let sent = match datagram.len() > MAX_CONTROL_DATAGRAM {
            true => self.lanes.send_probe(datagram, to),
            false => self.lanes.send_control(datagram, to),
        };
        if let Err(error) = sent {
            tracing::debug!("control datagram to {to}: {error}");
        }
    }
}
