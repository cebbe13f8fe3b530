//! The queues from the lanes to the task that owns the peers. They are bounded, and there are two, so that
//! datagrams from unknown sources never displace those of peers. The queue of the peers serves them in turn,
//! and no peer can fill more than its share of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use qvpn_dataplane::{LaneEvent, LaneSink};
use qvpn_proto::session::peer_of_control_index;
use qvpn_types::PeerNumber;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Events of control sessions, and of the lanes themselves.
const MAX_QUEUED_EVENTS: usize = 8192;
/// Datagrams from the address of one peer, about 300 kB.
const MAX_QUEUED_OF_PEER: usize = 256;
/// The part of [`MAX_QUEUED_OF_PEER`] that handshake initiations may take: the peer's address can be forged.
const MAX_QUEUED_INITIATIONS: usize = MAX_QUEUED_OF_PEER / 2;
/// Datagrams from unknown sources, about 300 kB.
const MAX_QUEUED_UNKNOWN: usize = 256;
/// WireGuard's message types.
const HANDSHAKE_INITIATION: u8 = 1;
const HANDSHAKE_RESPONSE: u8 = 2;

/// A peer at an address, and how many datagrams from there wait in its queue.
#[derive(Clone)]
struct Owner {
    number: u16,
    queued: Arc<AtomicUsize>,
}

/// The addresses from which control sessions send. Several peers may have one: a peer that forges another's
/// address must not replace it.
#[derive(Clone, Default)]
pub(crate) struct ControlSources(Arc<RwLock<HashMap<SocketAddr, Vec<Owner>>>>);

impl ControlSources {
    /// Records that the control session of the peer with this number is at `endpoint` now.
    pub(crate) fn moved(&self, number: u16, endpoint: Option<SocketAddr>) {
        // Each update leaves a usable map, so a poisoned lock still holds one.
        let mut sources = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut former = None;
        sources.retain(|_, owners| {
            let known = owners.iter().position(|owner| owner.number == number);
            former = known.map(|at| owners.swap_remove(at)).or(former.take());
            !owners.is_empty()
        });
        let Some(endpoint) = endpoint else { return };
        let owner = former.unwrap_or_else(|| Owner { number, queued: Arc::default() });
        sources.entry(endpoint).or_default().push(owner);
    }

    pub(crate) fn contains(&self, from: SocketAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&from)
    }

    /// Returns the peer whose queue a datagram belongs to: one at this address that the datagram's session
    /// names.
    fn owner(&self, from: SocketAddr, datagram: &[u8]) -> Option<Owner> {
        let sources = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let owners = sources.get(&from)?;
        let number = match *datagram.first()? {
            HANDSHAKE_INITIATION => return owners.first().cloned(),
            HANDSHAKE_RESPONSE => receiver(datagram, 8)?,
            _ => receiver(datagram, 4)?,
        };
        owners.iter().find(|owner| owner.number == number.0).cloned()
    }
}

/// Returns the peer in the receiver index at this offset.
fn receiver(datagram: &[u8], at: usize) -> Option<PeerNumber> {
    let index = datagram.get(at..)?.first_chunk()?;
    peer_of_control_index(u32::from_le_bytes(*index))
}

/// An event for the queue of one peer.
struct Queued {
    peer: u16,
    /// The count to lower once the event is handled.
    counted: Option<Arc<AtomicUsize>>,
    event: LaneEvent,
}

/// The lanes' side of the queues.
pub(crate) struct Sink {
    sessions: mpsc::Sender<Queued>,
    unknown: mpsc::Sender<LaneEvent>,
    control_sources: ControlSources,
}

impl Sink {
    pub(crate) fn control_sources(&self) -> ControlSources {
        self.control_sources.clone()
    }

    /// Queues a datagram from a peer's address, if the peer has room.
    fn of_peer(&self, owner: Owner, event: LaneEvent, initiation: bool) -> Result<(), LaneEvent> {
        let most = if initiation { MAX_QUEUED_INITIATIONS } else { MAX_QUEUED_OF_PEER };
        // Each lane may exceed the limit by one, which still bounds the queue.
        if owner.queued.load(Ordering::Relaxed) >= most {
            return Err(event);
        }
        owner.queued.fetch_add(1, Ordering::Relaxed);
        let queued = Queued { peer: owner.number, counted: Some(owner.queued.clone()), event };
        self.sessions.try_send(queued).map_err(|refused| {
            owner.queued.fetch_sub(1, Ordering::Relaxed);
            refused.into_inner().event
        })
    }
}

/// Returns the number of the peer that a lane's own event is about.
fn subject(event: &LaneEvent) -> u16 {
    match event {
        LaneEvent::Installed { peer, .. }
        | LaneEvent::FirstOpened { peer, .. }
        | LaneEvent::Roamed { peer, .. }
        | LaneEvent::SealingEnded { peer, .. } => peer.0,
        // No peer has this number; the event concerns the lane.
        LaneEvent::Control { .. } | LaneEvent::Failed { .. } => u16::MAX,
    }
}

impl LaneSink for Sink {
    fn event(&self, event: LaneEvent) -> Result<(), LaneEvent> {
        let LaneEvent::Control { from, datagram, .. } = &event else {
            let queued = Queued { peer: subject(&event), counted: None, event };
            return self.sessions.try_send(queued).map_err(|refused| refused.into_inner().event);
        };
        let initiation = datagram.first() == Some(&HANDSHAKE_INITIATION);
        match self.control_sources.owner(*from, datagram) {
            Some(owner) => self.of_peer(owner, event, initiation),
            None => self.unknown.try_send(event).map_err(TrySendError::into_inner),
        }
    }
}

/// The events of peers; the peers take turns.
pub(crate) struct SessionQueue {
    arriving: mpsc::Receiver<Queued>,
    waiting: BTreeMap<u16, VecDeque<Queued>>,
    /// The peers that have events, in the order of their turns.
    turns: VecDeque<u16>,
}

impl SessionQueue {
    fn add(&mut self, queued: Queued) {
        let peer = queued.peer;
        let waiting = self.waiting.entry(peer).or_default();
        if waiting.is_empty() {
            self.turns.push_back(peer);
        }
        waiting.push_back(queued);
    }

    /// Returns the next event, if there is one.
    pub(crate) fn try_recv(&mut self) -> Option<LaneEvent> {
        while let Ok(queued) = self.arriving.try_recv() {
            self.add(queued);
        }
        let peer = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&peer)?;
        let queued = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&peer);
        } else {
            self.turns.push_back(peer);
        }
        if let Some(counted) = queued.counted {
            counted.fetch_sub(1, Ordering::Relaxed);
        }
        Some(queued.event)
    }

    /// Waits for the next event; `None` once the lanes have ended. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<LaneEvent> {
        if let Some(event) = self.try_recv() {
            return Some(event);
        }
        let queued = self.arriving.recv().await?;
        self.add(queued);
        self.try_recv()
    }
}

/// The receiving side, for the task that owns the peers.
pub(crate) struct Queues {
    /// Events of the lanes themselves, and datagrams from the addresses of control sessions.
    pub(crate) sessions: SessionQueue,
    /// Datagrams from all other addresses.
    pub(crate) unknown: mpsc::Receiver<LaneEvent>,
    pub(crate) control_sources: ControlSources,
}

pub(crate) fn channel() -> (Sink, Queues) {
    let (to_sessions, arriving) = mpsc::channel(MAX_QUEUED_EVENTS);
    let (to_unknown, unknown) = mpsc::channel(MAX_QUEUED_UNKNOWN);
    let control_sources = ControlSources::default();
    let sink = Sink { sessions: to_sessions, unknown: to_unknown, control_sources: control_sources.clone() };
    let sessions = SessionQueue { arriving, waiting: BTreeMap::new(), turns: VecDeque::new() };
    (sink, Queues { sessions, unknown, control_sources })
}

#[cfg(test)]
mod tests {
    use qvpn_types::LocalEpoch;

    use super::*;

    /// Makes a message of the control session with this peer.
    fn control(from: &str, kind: u8, peer: u16) -> LaneEvent {
        let mut datagram = vec![kind, 0, 0, 0];
        datagram.extend((u32::from(peer) << 8).to_le_bytes());
        LaneEvent::Control { lane: 0, from: from.parse().unwrap(), datagram }
    }

    fn sender(event: &LaneEvent) -> SocketAddr {
        let LaneEvent::Control { from, .. } = event else { panic!("{event:?}") };
        *from
    }

    #[test]
    fn a_flood_from_unknown_sources_leaves_room_for_sessions() {
        let (sink, mut queues) = channel();
        queues.control_sources.moved(1, Some("192.0.2.1:1".parse().unwrap()));
        let taken =
            |from: &str, kind| (0..5000).take_while(|_| sink.event(control(from, kind, 1)).is_ok()).count();
        // Forged initiations and forged packets of sessions, from anywhere.
        assert_eq!(taken("203.0.113.9:1", HANDSHAKE_INITIATION), MAX_QUEUED_UNKNOWN);
        assert_eq!(taken("203.0.113.9:1", 4), 0);
        // Initiations from the forged address of a peer fill their share; the rest is left for messages.
        assert_eq!(taken("192.0.2.1:1", HANDSHAKE_INITIATION), MAX_QUEUED_INITIATIONS);
        assert_eq!(taken("192.0.2.1:1", 4), MAX_QUEUED_OF_PEER - MAX_QUEUED_INITIATIONS);
        assert!(queues.sessions.try_recv().is_some() && queues.unknown.try_recv().is_ok());
        assert_eq!(taken("192.0.2.1:1", 4), 1, "the place of the one that was handled");
    }

    #[test]
    fn peers_are_served_in_turn_and_lanes_are_never_refused() {
        let (sink, mut queues) = channel();
        let [loud, quiet] = ["192.0.2.1:1", "192.0.2.2:1"];
        queues.control_sources.moved(1, Some(loud.parse().unwrap()));
        queues.control_sources.moved(2, Some(quiet.parse().unwrap()));
        let flood = |from, peer| (0..1000).filter(|_| sink.event(control(from, 4, peer)).is_ok()).count();
        assert_eq!(flood(loud, 1), MAX_QUEUED_OF_PEER);
        for _ in 0..3 {
            assert!(sink.event(control(quiet, 4, 2)).is_ok());
        }
        for epoch in 1..=2 {
            let opened = LaneEvent::FirstOpened { lane: 0, peer: PeerNumber(1), epoch: LocalEpoch(epoch) };
            assert!(sink.event(opened).is_ok(), "what lanes must say has room");
        }
        let order: Vec<_> = (0..8).map(|_| sender(&queues.sessions.try_recv().unwrap())).collect();
        let expected = [loud, quiet, loud, quiet, loud, quiet, loud, loud].map(|at| at.parse().unwrap());
        assert_eq!(order, expected);
        let rest = std::iter::from_fn(|| queues.sessions.try_recv()).count();
        assert_eq!(rest, MAX_QUEUED_OF_PEER - 5 + 2);
        assert_eq!(flood(loud, 1), MAX_QUEUED_OF_PEER, "all of its room is free again");
    }

    #[tokio::test]
    async fn each_event_reaches_the_reader_once() {
        let (sink, mut queues) = channel();
        queues.control_sources.moved(1, Some("192.0.2.1:1".parse().unwrap()));
        for _ in 0..3 {
            assert!(sink.event(control("192.0.2.1:1", 4, 1)).is_ok());
        }
        for _ in 0..3 {
            assert!(queues.sessions.recv().await.is_some());
        }
        drop(sink);
        assert!(queues.sessions.recv().await.is_none());
    }

    #[test]
    fn a_session_that_moved_or_went_is_known_no_more() {
        let (sink, mut queues) = channel();
        let [a, b] = ["192.0.2.1:1", "[2001:db8::1]:1"];
        for (endpoint, known) in [(Some(a), [true, false]), (Some(b), [false, true]), (None, [false; 2])] {
            queues.control_sources.moved(7, endpoint.map(|text| text.parse().unwrap()));
            for (from, known) in [a, b].into_iter().zip(known) {
                assert!(sink.event(control(from, 4, 7)).is_ok());
                assert_eq!(queues.sessions.try_recv().is_some(), known, "{from}");
            }
        }
    }

    #[test]
    fn a_peer_that_forges_anothers_address_takes_nothing_from_it() {
        let (sink, mut queues) = channel();
        let [honest, elsewhere] = ["192.0.2.1:1", "192.0.2.9:1"].map(|text| text.parse().ok());
        let queued = |sink: &Sink, queues: &mut Queues, peer| {
            assert!(sink.event(control("192.0.2.1:1", 4, peer)).is_ok());
            queues.sessions.try_recv().is_some()
        };
        queues.control_sources.moved(1, honest);
        for round in 0..3 {
            queues.control_sources.moved(2, honest);
            assert!(queued(&sink, &mut queues, 1), "{round}: beside the other one");
            // The other peer fills its own queue from the same address.
            let flood = (0..1000).filter(|_| sink.event(control("192.0.2.1:1", 4, 2)).is_ok()).count();
            assert_eq!(flood, MAX_QUEUED_OF_PEER);
            assert!(sink.event(control("192.0.2.1:1", 4, 1)).is_ok());
            while queues.sessions.try_recv().is_some() {}
            queues.control_sources.moved(2, elsewhere);
            assert!(queued(&sink, &mut queues, 1), "{round}: after the other one moved away");
            assert!(!queued(&sink, &mut queues, 2), "{round}: and that one's are unknown there");
        }
    }
}
