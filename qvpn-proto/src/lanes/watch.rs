//! Which of several lanes carry packets, and by which lanes the flows of the others go. Pure: it gets what
//! the lanes received and what the peer reported, and decides.
//!
//! With several lanes each sends something at least twice a second, so a lane that received nothing for a
//! while is silent. A side can't know by itself that what it sends is lost, so the peer reports on which
//! lanes it receives nothing. A lane that is silent in either direction is avoided in both, and goes on
//! sending its empty packets, which show when it recovers.

use std::time::Duration;

use qvpn_types::Time;

use crate::view::LaneState;
use crate::wire::LaneSet;

/// A lane that received nothing for this long is silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);
/// A lane is silent only while another one received something this recently: else the whole path is down, or
/// the peer.
const RECENT_RX: Duration = Duration::from_millis(1500);
/// A silent lane recovers when it received packets for this long, with no gap of more than [`MAX_GAP`].
const RECOVERY_TIME: Duration = Duration::from_secs(2);
const MAX_GAP: Duration = Duration::from_millis(1500);

/// One lane.
#[derive(Debug, Default, Clone, Copy)]
struct Watched {
    /// It receives nothing.
    rx_silent: bool,
    /// Since when it receives packets again.
    recovering_since: Option<Time>,
    state: Option<LaneState>,
    via: Option<u8>,
}

/// All lanes that this side has with one peer.
#[derive(Debug)]
pub struct LaneWatch {
    lanes: Vec<Watched>,
    /// Since when there is an epoch with this number of lanes.
    since: Option<(Time, u8)>,
}

/// What the watch goes by.
pub struct Observed<'a> {
    pub now: Time,
    /// Whether an epoch is active.
    pub active: bool,
    /// How many lanes both sides have.
    pub agreed: u8,
    /// When an authentic packet last came by each of our lanes; zero is never.
    pub received_at: &'a [Time],
    /// The lanes on which the peer receives nothing.
    pub peer_rx_silent: LaneSet,
}

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// No packets pass by this lane any more.
    Silent(u8),
    /// They pass again.
    Recovered(u8),
    /// The lane's flows go by another one, or by itself.
    Reroute(u8, Option<u8>),
}

impl LaneWatch {
    pub fn new(lanes: u8) -> Self {
        Self { lanes: vec![Watched::default(); lanes.into()], since: None }
    }

    /// Whether packets pass by a lane; `None` where that isn't known, or the peer hasn't that lane.
    pub fn state(&self, lane: u8) -> Option<LaneState> {
        self.lanes.get(usize::from(lane))?.state
    }

    /// The lane by which this one's flows go, if not by itself.
    pub fn via(&self, lane: u8) -> Option<u8> {
        self.lanes.get(usize::from(lane))?.via
    }

    /// The lanes on which this side receives nothing.
    pub fn rx_silent(&self) -> LaneSet {
        let mut set = LaneSet::default();
        let silent = (0u8..).zip(&self.lanes).filter(|(_, lane)| lane.rx_silent);
        silent.for_each(|(number, _)| set.add(number));
        set
    }

    /// Takes what was observed since the last time.
    pub fn poll(&mut self, observed: &Observed<'_>) -> Vec<Change> {
        let mut changes = Vec::new();
        let own = u8::try_from(self.lanes.len()).unwrap_or(u8::MAX);
        let agreed = observed.agreed.clamp(1, own.max(1));
        if !observed.active {
            // Without a key nothing can be received, so the lanes can't be judged.
            self.since = None;
        } else if self.since.is_none_or(|(_, lanes)| lanes != agreed) {
            self.since = Some((observed.now, agreed));
        }
        // A single lane sends no keepalives by itself: the packets that begin each epoch show whether it
        // works.
        if let Some((since, _)) = self.since.filter(|_| agreed > 1) {
            self.poll_states(observed, agreed, since, &mut changes);
        }
        for lane in self.lanes.iter_mut().skip(agreed.into()) {
            *lane = Watched { via: lane.via, ..Watched::default() };
        }
        self.reroute(agreed, &mut changes);
        changes
    }

    fn poll_states(&mut self, observed: &Observed<'_>, agreed: u8, since: Time, changes: &mut Vec<Change>) {
        let received_at = observed.received_at;
        let newest = received_at.iter().take(agreed.into()).max().copied().unwrap_or_default();
        let others_receive = newest != Time::default() && observed.now.since(newest) <= RECENT_RX;
        for ((number, lane), at) in (0u8..).zip(&mut self.lanes).zip(received_at).take(agreed.into()) {
            lane.observe(*at, since, others_receive, observed.now);
            let silent = lane.rx_silent || observed.peer_rx_silent.has(number);
            let state = match (silent, *at > since) {
                (true, _) => Some(LaneState::Silent),
                (false, true) => Some(LaneState::Up),
                // Nothing came yet, and it is not late.
                (false, false) => lane.state.filter(|state| *state == LaneState::Up),
            };
            match (lane.state, state) {
                (Some(LaneState::Silent), Some(LaneState::Up)) => changes.push(Change::Recovered(number)),
                (before, Some(LaneState::Silent)) if before != Some(LaneState::Silent) => {
                    changes.push(Change::Silent(number));
                }
                _ => {}
            }
            lane.state = state;
        }
    }

    /// Spreads the flows of lanes that can't carry them evenly over those that can.
    fn reroute(&mut self, agreed: u8, changes: &mut Vec<Change>) {
        let good: Vec<u8> = (0u8..agreed).filter(|n| self.state(*n) != Some(LaneState::Silent)).collect();
        for (number, lane) in (0u8..).zip(&mut self.lanes) {
            let via = match (number < agreed && good.contains(&number), good.len()) {
                (true, _) => None,
                // All are silent: then none is better than another.
                (false, 0) if number < agreed => None,
                (false, 0) => Some(number % agreed),
                (false, n) => Some(good[usize::from(number) % n]),
            };
            if lane.via != via {
                lane.via = via;
                changes.push(Change::Reroute(number, via));
            }
        }
    }
}

impl Watched {
    fn observe(&mut self, received_at: Time, since: Time, others_receive: bool, now: Time) {
        let quiet = now.since(received_at.max(since));
        if !self.rx_silent {
            self.rx_silent = others_receive && quiet > SILENT_AFTER;
            self.recovering_since = None;
            return;
        }
        if received_at <= since || quiet > MAX_GAP {
            self.recovering_since = None;
            return;
        }
        let recovering = *self.recovering_since.get_or_insert(now);
        if now.since(recovering) >= RECOVERY_TIME {
            self.rx_silent = false;
            self.recovering_since = None;
        }
    }
}

#[cfg(test)]
mod tests;
