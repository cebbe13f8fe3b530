//! The queues from the lanes to the task that owns the peers. They are bounded, and there are two, so that
//! datagrams which anybody can send never crowd out those of peers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use qvpn_dataplane::{LaneEvent, LaneSink};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Of control sessions, and of the lanes themselves.
const MAX_QUEUED_EVENTS: usize = 1024;
/// The part of [`MAX_QUEUED_EVENTS`] that handshake initiations from the address of a peer may take: that
/// address can be forged.
const MAX_QUEUED_INITIATIONS: usize = MAX_QUEUED_EVENTS / 2;
/// Datagrams from unknown sources, about 300 kB.
const MAX_QUEUED_UNKNOWN: usize = 256;
/// WireGuard's message type 1.
const HANDSHAKE_INITIATION: u8 = 1;

/// The addresses from which control sessions send.
#[derive(Clone, Default)]
pub(crate) struct ControlSources(Arc<RwLock<HashMap<SocketAddr, u16>>>);

impl ControlSources {
    /// The control session of the peer with this number is at `endpoint` now.
    pub(crate) fn moved(&self, number: u16, endpoint: Option<SocketAddr>) {
        // Each update leaves a usable map, so a poisoned lock still holds one.
        let mut sources = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|_, owner| *owner != number);
        sources.extend(endpoint.map(|endpoint| (endpoint, number)));
    }

    pub(crate) fn contains(&self, from: SocketAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&from)
    }
}

/// The lanes' side of the queues.
pub(crate) struct Sink {
    sessions: mpsc::Sender<LaneEvent>,
    unknown: mpsc::Sender<LaneEvent>,
    control_sources: ControlSources,
}

impl Sink {
    pub(crate) fn control_sources(&self) -> ControlSources {
        self.control_sources.clone()
    }
}

impl LaneSink for Sink {
    fn event(&self, event: LaneEvent) -> Result<(), LaneEvent> {
        let queue = match &event {
            LaneEvent::Control { from, datagram, .. } => {
                let initiation = datagram.first() == Some(&HANDSHAKE_INITIATION);
                let room =
                    !initiation || self.sessions.capacity() > MAX_QUEUED_EVENTS - MAX_QUEUED_INITIATIONS;
                if room && self.control_sources.contains(*from) { &self.sessions } else { &self.unknown }
            }
            _ => &self.sessions,
        };
        queue.try_send(event).map_err(TrySendError::into_inner)
    }
}

/// The other side, of the task that owns the peers.
pub(crate) struct Queues {
    /// From the lanes themselves, and from the addresses of control sessions.
    pub(crate) sessions: mpsc::Receiver<LaneEvent>,
    /// From all other addresses.
    pub(crate) unknown: mpsc::Receiver<LaneEvent>,
    pub(crate) control_sources: ControlSources,
}

pub(crate) fn channel() -> (Sink, Queues) {
    let (to_sessions, sessions) = mpsc::channel(MAX_QUEUED_EVENTS);
    let (to_unknown, unknown) = mpsc::channel(MAX_QUEUED_UNKNOWN);
    let control_sources = ControlSources::default();
    let sink = Sink { sessions: to_sessions, unknown: to_unknown, control_sources: control_sources.clone() };
    (sink, Queues { sessions, unknown, control_sources })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(from: &str, kind: u8) -> LaneEvent {
        LaneEvent::Control { lane: 0, from: from.parse().unwrap(), datagram: vec![kind, 0, 0, 0] }
    }

    #[test]
    fn a_flood_from_unknown_sources_leaves_room_for_sessions() {
        let (sink, mut queues) = channel();
        queues.control_sources.moved(1, Some("192.0.2.1:1".parse().unwrap()));
        let taken =
            |from: &str, kind| (0..5000).take_while(|_| sink.event(control(from, kind)).is_ok()).count();
        // Forged initiations and forged packets of sessions, from anywhere.
        assert_eq!(taken("203.0.113.9:1", HANDSHAKE_INITIATION), MAX_QUEUED_UNKNOWN);
        assert_eq!(taken("203.0.113.9:1", 4), 0);
        // Initiations from the forged address of a peer take their share; the rest is left for messages.
        assert_eq!(taken("192.0.2.1:1", HANDSHAKE_INITIATION), MAX_QUEUED_INITIATIONS);
        assert_eq!(taken("192.0.2.1:1", 4), MAX_QUEUED_EVENTS - MAX_QUEUED_INITIATIONS);
        assert!(queues.sessions.try_recv().is_ok() && queues.unknown.try_recv().is_ok());
    }

    #[test]
    fn a_session_that_moved_or_went_is_known_no_more() {
        let (sink, mut queues) = channel();
        let [a, b] = ["192.0.2.1:1", "[2001:db8::1]:1"];
        for (endpoint, known) in [(Some(a), [true, false]), (Some(b), [false, true]), (None, [false; 2])] {
            queues.control_sources.moved(7, endpoint.map(|text| text.parse().unwrap()));
            for (from, known) in [a, b].into_iter().zip(known) {
                assert!(sink.event(control(from, 4)).is_ok());
                assert_eq!(queues.sessions.try_recv().is_ok(), known, "{from}");
            }
        }
    }
}
