//! Decides which of several lanes carry packets, and which lanes carry the flows of the others. It does no
//! I/O: its inputs are what the lanes received and what the peer reported.
//!
//! With several lanes, each sends something at least twice a second, so a lane that received nothing for a
//! while is silent. A side can't detect by itself that its own packets are lost, so the peer reports on which
//! lanes it receives nothing. Both sides avoid a lane that is silent in either direction. The lane continues
//! to send its empty packets, which show when it recovers.

use std::time::Duration;

use qvpn_types::{LaneState, Time};

use crate::wire::LaneSet;

/// A lane that received nothing for this long is silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);
/// A lane is silent only while another one received something this recently: otherwise the whole path or the
/// peer is down.
const RECENT_RX: Duration = Duration::from_millis(1500);
/// A silent lane recovers once it has received packets for this long, with no gap of more than [`MAX_GAP`].
const RECOVERY_TIME: Duration = Duration::from_secs(2);
const MAX_GAP: Duration = Duration::from_millis(1500);

#[derive(Debug, Default, Clone, Copy)]
struct Watched {
    /// Whether it receives nothing.
    rx_silent: bool,
    /// The time since which it receives packets again.
    recovering_since: Option<Time>,
    state: Option<LaneState>,
    via: Option<u8>,
}

/// All lanes that this side has with one peer.
#[derive(Debug)]
pub struct LaneWatch {
    lanes: Vec<Watched>,
    /// The time since which there is an epoch with this number of lanes.
    since: Option<(Time, u8)>,
}

/// The inputs of a decision.
pub struct Observed<'a> {
    pub now: Time,
    pub active: bool,
    /// The number of lanes that both sides have.
    pub agreed: u8,
    /// When an authentic packet last arrived on each of our lanes; zero is never.
    pub received_at: &'a [Time],
    /// The lanes on which the peer receives nothing.
    pub peer_rx_silent: LaneSet,
}

/// A change to apply and to report.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The lane no longer carries packets.
    Silent(u8),
    /// The lane carries packets again.
    Recovered(u8),
    /// Another lane carries this lane's flows; with `None`, the lane itself does.
    Reroute(u8, Option<u8>),
}

impl LaneWatch {
    pub fn new(lanes: u8) -> Self {
        Self { lanes: vec![Watched::default(); lanes.into()], since: None }
    }

    /// Whether a lane carries packets; `None` if that isn't known, or if the peer doesn't have that lane.
    pub fn state(&self, lane: u8) -> Option<LaneState> {
        self.lanes.get(usize::from(lane))?.state
    }

    /// Returns the lane that carries this one's flows, if that is another one.
    pub fn via(&self, lane: u8) -> Option<u8> {
        self.lanes.get(usize::from(lane))?.via
    }

    /// Returns the lanes on which this side receives nothing.
    pub fn rx_silent(&self) -> LaneSet {
        let mut set = LaneSet::default();
        let silent = (0u8..).zip(&self.lanes).filter(|(_, lane)| lane.rx_silent);
        silent.for_each(|(number, _)| set.add(number));
        set
    }

    /// Processes an observation and returns the changes.
    pub fn poll(&mut self, observed: &Observed<'_>) -> Vec<Change> {
        let mut changes = Vec::new();
        let own = u8::try_from(self.lanes.len()).unwrap_or(u8::MAX);
        let agreed = observed.agreed.clamp(1, own.max(1));
        if !observed.active {
            // Without a key nothing can be received, so lanes can't be judged.
            self.since = None;
        } else if self.since.is_none_or(|(_, lanes)| lanes != agreed) {
            self.since = Some((observed.now, agreed));
        }
        // A single lane sends no keepalives by itself: the packets at the start of each epoch show whether it
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
                // Nothing arrived yet, and it is not late.
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

    /// Spreads the flows of lanes that can't carry packets evenly over those that can.
    fn reroute(&mut self, agreed: u8, changes: &mut Vec<Change>) {
        let good: Vec<u8> = (0u8..agreed).filter(|n| self.state(*n) != Some(LaneState::Silent)).collect();
        for (number, lane) in (0u8..).zip(&mut self.lanes) {
            let via = match (number < agreed && good.contains(&number), good.len()) {
                (true, _) => None,
                // All lanes are silent, so none is better than another.
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
