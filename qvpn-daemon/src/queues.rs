//! The way from the lanes to the owner of the peers: two bounded queues, so that what anybody can send never crowds out
//! what belongs to a peer. Sessions have one, with the lanes' own answers; strangers have the other, which is short.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use qvpn_dataplane::{LaneEvent, LaneSink};
use tokio::sync::mpsc;

/// Events that may wait in the queue of the sessions.
const SESSIONS: usize = 1024;
/// Handshake starts from a peer's address, which can be forged, may take the queue of the sessions up to this.
const STARTS: usize = SESSIONS / 2;
/// Datagrams of strangers that may wait: some 300 kB.
const STRANGERS: usize = 256;
/// The type of a message that starts a handshake.
const START: u8 = 1;

/// Where control sessions are: from there come their messages.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<RwLock<HashMap<SocketAddr, u16>>>);

impl Known {
    /// The session of the peer with this number is at `endpoint` now.
    pub(crate) fn moved(&self, number: u16, endpoint: Option<SocketAddr>) {
        // Whoever panicked has changed whole entries only.
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, owner| *owner != number);
        known.extend(endpoint.map(|endpoint| (endpoint, number)));
    }

    /// Whether a session is there.
    pub(crate) fn contains(&self, from: SocketAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&from)
    }
}

/// Where lanes put their events.
pub(crate) struct Sink {
    sessions: mpsc::Sender<LaneEvent>,
    strangers: mpsc::Sender<LaneEvent>,
    known: Known,
}

impl Sink {
    /// Where sessions are.
    pub(crate) fn known(&self) -> Known {
        self.known.clone()
    }
}

impl LaneSink for Sink {
    fn event(&self, event: LaneEvent) -> bool {
        let queue = match &event {
            LaneEvent::Control { from, datagram, .. } => {
                let start = datagram.first() == Some(&START);
                let room = !start || self.sessions.capacity() > SESSIONS - STARTS;
                if room && self.known.contains(*from) { &self.sessions } else { &self.strangers }
            }
            _ => &self.sessions,
        };
        queue.try_send(event).is_ok()
    }
}

/// The owner's end.
pub(crate) struct Queues {
    /// From the lanes themselves and from where sessions are.
    pub(crate) sessions: mpsc::Receiver<LaneEvent>,
    /// From anywhere else.
    pub(crate) strangers: mpsc::Receiver<LaneEvent>,
    /// To be told where sessions are.
    pub(crate) known: Known,
}

/// Both queues.
pub(crate) fn channel() -> (Sink, Queues) {
    let (to_sessions, sessions) = mpsc::channel(SESSIONS);
    let (to_strangers, strangers) = mpsc::channel(STRANGERS);
    let known = Known::default();
    let sink = Sink { sessions: to_sessions, strangers: to_strangers, known: known.clone() };
    (sink, Queues { sessions, strangers, known })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(from: &str, kind: u8) -> LaneEvent {
        LaneEvent::Control { lane: 0, from: from.parse().unwrap(), datagram: vec![kind, 0, 0, 0] }
    }

    #[test]
    fn a_flood_of_strangers_leaves_room_for_sessions() {
        let (sink, mut queues) = channel();
        queues.known.moved(1, Some("192.0.2.1:1".parse().unwrap()));
        let taken = |from: &str, kind| (0..5000).take_while(|_| sink.event(control(from, kind))).count();
        // Forged starts and forged packets of sessions, from anywhere.
        assert_eq!(taken("203.0.113.9:1", START), STRANGERS);
        assert_eq!(taken("203.0.113.9:1", 4), 0);
        // Starts with a peer's forged address take their share, and the rest stays for messages.
        assert_eq!(taken("192.0.2.1:1", START), STARTS);
        assert_eq!(taken("192.0.2.1:1", 4), SESSIONS - STARTS);
        assert!(queues.sessions.try_recv().is_ok() && queues.strangers.try_recv().is_ok());
    }

    #[test]
    fn a_session_that_moved_or_went_is_known_no_more() {
        let (sink, mut queues) = channel();
        let [a, b] = ["192.0.2.1:1", "[2001:db8::1]:1"];
        for (endpoint, known) in [(Some(a), [true, false]), (Some(b), [false, true]), (None, [false; 2])] {
            queues.known.moved(7, endpoint.map(|text| text.parse().unwrap()));
            for (from, known) in [a, b].into_iter().zip(known) {
                assert!(sink.event(control(from, 4)));
                assert_eq!(queues.sessions.try_recv().is_ok(), known, "{from}");
            }
        }
    }
}
