//! Which lanes of a peer carry packets, and by which the flows of the others go. Pure: it is told what the lanes heard and
//! what the other end said, and decides.
//!
//! With several lanes each sends something at least twice a second, so a lane on which nothing came for a while is silent. An
//! end can't know by itself that what it sends is lost, so the other end says on which lanes it hears nothing. A lane that is
//! silent in either direction is avoided in both, and goes on sending its empty packets, by which its return is noticed.

use std::time::Duration;

use qvpn_api::status::LaneState;
use qvpn_proto::wire::LaneSet;
use qvpn_types::Time;

/// A lane on which nothing came for so long is silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// How often a lane sends at least, where there are several.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
/// A lane is silent only while another one was heard so lately: else the whole path is gone, or the other end.
const LATELY: Duration = Duration::from_millis(1500);
/// A silent lane is back when it was heard for so long, with no gap of more than [`GAP`].
const STEADY: Duration = Duration::from_secs(2);
const GAP: Duration = Duration::from_millis(1500);

/// One lane.
#[derive(Debug, Default, Clone, Copy)]
struct Watched {
    /// Nothing is heard on it.
    unheard: bool,
    /// Since when it is heard again.
    again: Option<Time>,
    state: Option<LaneState>,
    via: Option<u8>,
}

/// All lanes that this end has with one peer.
#[derive(Debug)]
pub(crate) struct LaneWatch {
    lanes: Vec<Watched>,
    /// Since when there is an epoch with this number of lanes.
    since: Option<(Time, u8)>,
}

/// What the watch goes by.
pub(crate) struct Seen<'a> {
    pub(crate) now: Time,
    /// Whether an epoch is active.
    pub(crate) active: bool,
    /// How many lanes both ends have.
    pub(crate) agreed: u8,
    /// When something authentic last came by each of our lanes; zero is never.
    pub(crate) heard: &'a [Time],
    /// The lanes on which the other end hears nothing.
    pub(crate) peer_rx_silent: LaneSet,
}

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing passes by this lane any more.
    Silent(u8),
    /// It does again.
    Back(u8),
    /// The lane's flows go by another one, or by itself.
    Detour(u8, Option<u8>),
}

impl LaneWatch {
    pub(crate) fn new(lanes: u8) -> Self {
        Self { lanes: vec![Watched::default(); lanes.into()], since: None }
    }

    /// Whether anything passes by a lane; `None` where that isn't known, or the other end hasn't that lane.
    pub(crate) fn state(&self, lane: u8) -> Option<LaneState> {
        self.lanes.get(usize::from(lane))?.state
    }

    /// The lane by which this one's flows go, if not by itself.
    pub(crate) fn via(&self, lane: u8) -> Option<u8> {
        self.lanes.get(usize::from(lane))?.via
    }

    /// The lanes on which this end hears nothing.
    pub(crate) fn unheard(&self) -> LaneSet {
        let mut set = LaneSet::default();
        (0u8..).zip(&self.lanes).filter(|(_, lane)| lane.unheard).for_each(|(number, _)| set.add(number));
        set
    }

    /// Looks at what happened since the last time.
    pub(crate) fn look(&mut self, seen: &Seen<'_>) -> Vec<Change> {
        let mut changes = Vec::new();
        let own = u8::try_from(self.lanes.len()).unwrap_or(u8::MAX);
        let agreed = seen.agreed.clamp(1, own);
        if !seen.active {
            // Without a key nothing can be heard, which says nothing of the lanes.
            self.since = None;
        } else if self.since.is_none_or(|(_, lanes)| lanes != agreed) {
            self.since = Some((seen.now, agreed));
        }
        // A single lane sends no heartbeats: the epochs' own packets tell, see `Slot`.
        if let Some((since, _)) = self.since.filter(|_| agreed > 1) {
            let newest = seen.heard.iter().take(agreed.into()).max().copied().unwrap_or_default();
            let others_heard = newest != Time::default() && seen.now.since(newest) <= LATELY;
            for ((number, lane), heard) in (0u8..).zip(&mut self.lanes).zip(seen.heard).take(agreed.into()) {
                lane.hear(*heard, since, others_heard, seen.now);
                let silent = lane.unheard || seen.peer_rx_silent.has(number);
                let state = match (silent, *heard > since) {
                    (true, _) => Some(LaneState::Silent),
                    (false, true) => Some(LaneState::Up),
                    // Nothing came yet, and it is not late.
                    (false, false) => lane.state.filter(|state| *state == LaneState::Up),
                };
                match (lane.state, state) {
                    (Some(LaneState::Silent), Some(LaneState::Up)) => changes.push(Change::Back(number)),
                    (before, Some(LaneState::Silent)) if before != Some(LaneState::Silent) => {
                        changes.push(Change::Silent(number));
                    }
                    _ => {}
                }
                lane.state = state;
            }
        }
        for lane in self.lanes.iter_mut().skip(agreed.into()) {
            *lane = Watched { via: lane.via, ..Watched::default() };
        }
        self.lead(agreed, &mut changes);
        changes
    }

    /// Leads the flows of lanes that can't carry them by those that can, evenly.
    fn lead(&mut self, agreed: u8, changes: &mut Vec<Change>) {
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
                changes.push(Change::Detour(number, via));
            }
        }
    }
}

impl Watched {
    fn hear(&mut self, heard: Time, since: Time, others_heard: bool, now: Time) {
        let quiet = now.since(heard.max(since));
        if !self.unheard {
            self.unheard = others_heard && quiet > SILENCE;
            self.again = None;
            return;
        }
        if heard <= since || quiet > GAP {
            self.again = None;
            return;
        }
        let again = *self.again.get_or_insert(now);
        if now.since(again) >= STEADY {
            self.unheard = false;
            self.again = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A world in steps of half a second, in which each lane is heard each second unless it is cut.
    struct World {
        watch: LaneWatch,
        heard: Vec<Time>,
        cut: Vec<bool>,
        agreed: u8,
        active: bool,
        there: LaneSet,
        now: Time,
    }

    const STEP: Duration = Duration::from_millis(500);

    impl World {
        fn new(own: u8, agreed: u8) -> Self {
            Self {
                watch: LaneWatch::new(own),
                heard: vec![Time::default(); own.into()],
                cut: vec![false; own.into()],
                agreed,
                active: true,
                there: LaneSet::default(),
                now: Time::from_nanos(100_000_000_000),
            }
        }

        fn run(&mut self, seconds: u32) -> Vec<Change> {
            let mut changes = Vec::new();
            for step in 0..seconds * 2 {
                self.now = self.now + STEP;
                for (heard, cut) in self.heard.iter_mut().zip(&self.cut).take(self.agreed.into()) {
                    if !cut && self.active && step % 2 == 0 {
                        *heard = self.now;
                    }
                }
                changes.extend(self.watch.look(&Seen {
                    now: self.now,
                    active: self.active,
                    agreed: self.agreed,
                    heard: &self.heard,
                    peer_rx_silent: self.there,
                }));
            }
            changes
        }

        fn states(&self) -> Vec<Option<LaneState>> {
            (0..u8::try_from(self.heard.len()).unwrap()).map(|lane| self.watch.state(lane)).collect()
        }
    }

    const UP: Option<LaneState> = Some(LaneState::Up);
    const SILENT: Option<LaneState> = Some(LaneState::Silent);

    #[test]
    fn a_lane_that_falls_silent_gives_its_flows_away_until_it_is_back() {
        let mut world = World::new(4, 4);
        assert_eq!(world.run(10), []);
        assert_eq!(world.states(), [UP; 4]);
        world.cut[1] = true;
        assert_eq!(world.run(10), [Change::Silent(1), Change::Detour(1, Some(2))]);
        assert_eq!((world.watch.unheard(), world.states()), (LaneSet(2), vec![UP, SILENT, UP, UP]));
        // The lane that helped falls silent, too.
        world.cut[2] = true;
        let changes = world.run(10);
        assert_eq!(changes, [Change::Silent(2), Change::Detour(1, Some(3)), Change::Detour(2, Some(0))]);
        world.cut[1] = false;
        let changes = world.run(10);
        assert_eq!(changes, [Change::Back(1), Change::Detour(1, None), Change::Detour(2, Some(3))]);
        world.cut[2] = false;
        assert_eq!(world.run(10), [Change::Back(2), Change::Detour(2, None)]);
        assert_eq!((world.watch.unheard(), world.states()), (LaneSet(0), vec![UP; 4]));
    }

    #[test]
    fn what_the_other_end_does_not_hear_is_avoided() {
        let mut world = World::new(2, 2);
        world.run(5);
        world.there = LaneSet(1);
        assert_eq!(world.run(5), [Change::Silent(0), Change::Detour(0, Some(1))]);
        assert_eq!(world.watch.unheard(), LaneSet(0), "this end hears it well");
        world.there = LaneSet(0);
        assert_eq!(world.run(5), [Change::Back(0), Change::Detour(0, None)]);
        // Whoever says that all are silent stops nothing.
        world.there = LaneSet(3);
        assert_eq!(world.run(5), [Change::Silent(0), Change::Silent(1)]);
        assert_eq!([0, 1].map(|lane| world.watch.via(lane)), [None; 2]);
    }

    #[test]
    fn one_packet_brings_no_lane_back_and_silence_everywhere_silences_none() {
        let mut world = World::new(2, 2);
        world.run(5);
        world.cut[1] = true;
        world.run(5);
        world.heard[1] = world.now;
        assert_eq!(world.run(10), []);
        let mut world = World::new(2, 2);
        world.run(5);
        world.cut = vec![true; 2];
        assert_eq!(world.run(60), [], "the WAN is down");
        world.cut = vec![false; 2];
        assert_eq!(world.run(5), []);
        // No epoch for a while, and a new one then: its lanes have time to be heard.
        world.active = false;
        assert_eq!(world.run(60), []);
        world.active = true;
        assert_eq!(world.run(60), []);
        // A lane that was never heard at all.
        let mut world = World::new(3, 3);
        world.cut[2] = true;
        assert_eq!(world.run(10), [Change::Silent(2), Change::Detour(2, Some(0))]);
    }

    #[test]
    fn lanes_that_only_this_end_has_go_by_those_of_both() {
        let mut world = World::new(4, 2);
        assert_eq!(world.run(5), [Change::Detour(2, Some(0)), Change::Detour(3, Some(1))]);
        assert_eq!(world.states(), [UP, UP, None, None]);
        world.cut[1] = true;
        assert_eq!(world.run(5), [Change::Silent(1), Change::Detour(1, Some(0)), Change::Detour(3, Some(0))]);
        world.cut[1] = false;
        world.agreed = 4;
        let changes = world.run(10);
        assert!(
            changes.contains(&Change::Back(1)) && changes.contains(&Change::Detour(3, None)),
            "{changes:?}"
        );
        assert_eq!(world.states(), [UP; 4]);
        world.agreed = 1;
        world.run(5);
        assert_eq!([0, 1, 2, 3].map(|lane| world.watch.via(lane)), [None, Some(0), Some(0), Some(0)]);
    }
}
