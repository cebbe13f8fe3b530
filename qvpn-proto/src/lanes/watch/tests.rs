//! Lanes that lose packets in one or both directions, and lanes that only one side has.

use super::*;

/// Simulates steps of half a second, in which each lane receives a packet every second unless it is cut.
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
            changes.extend(self.watch.poll(&Observed {
                now: self.now,
                active: self.active,
                agreed: self.agreed,
                received_at: &self.heard,
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
    assert_eq!(world.run(10), [Change::Silent(1), Change::Reroute(1, Some(2))]);
    assert_eq!((world.watch.rx_silent(), world.states()), (LaneSet(2), vec![UP, SILENT, UP, UP]));
    // The lane that carries its flows falls silent, too.
    world.cut[2] = true;
    let changes = world.run(10);
    assert_eq!(changes, [Change::Silent(2), Change::Reroute(1, Some(3)), Change::Reroute(2, Some(0))]);
    world.cut[1] = false;
    let changes = world.run(10);
    assert_eq!(changes, [Change::Recovered(1), Change::Reroute(1, None), Change::Reroute(2, Some(3))]);
    world.cut[2] = false;
    assert_eq!(world.run(10), [Change::Recovered(2), Change::Reroute(2, None)]);
    assert_eq!((world.watch.rx_silent(), world.states()), (LaneSet(0), vec![UP; 4]));
}

#[test]
fn lanes_on_which_the_peer_receives_nothing_are_avoided() {
    let mut world = World::new(2, 2);
    world.run(5);
    world.there = LaneSet(1);
    assert_eq!(world.run(5), [Change::Silent(0), Change::Reroute(0, Some(1))]);
    assert_eq!(world.watch.rx_silent(), LaneSet(0), "this end hears it well");
    world.there = LaneSet(0);
    assert_eq!(world.run(5), [Change::Recovered(0), Change::Reroute(0, None)]);
    // A peer that reports all lanes as silent stops nothing.
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
    // No epoch is active for a while. When a new one starts, its lanes get time to receive something.
    world.active = false;
    assert_eq!(world.run(60), []);
    world.active = true;
    assert_eq!(world.run(60), []);
    // A lane that never received anything.
    let mut world = World::new(3, 3);
    world.cut[2] = true;
    assert_eq!(world.run(10), [Change::Silent(2), Change::Reroute(2, Some(0))]);
}

#[test]
fn lanes_that_only_this_side_has_send_by_those_of_both() {
    let mut world = World::new(4, 2);
    assert_eq!(world.run(5), [Change::Reroute(2, Some(0)), Change::Reroute(3, Some(1))]);
    assert_eq!(world.states(), [UP, UP, None, None]);
    world.cut[1] = true;
    assert_eq!(world.run(5), [Change::Silent(1), Change::Reroute(1, Some(0)), Change::Reroute(3, Some(0))]);
    world.cut[1] = false;
    world.agreed = 4;
    let changes = world.run(10);
    assert!(
        changes.contains(&Change::Recovered(1)) && changes.contains(&Change::Reroute(3, None)),
        "{changes:?}"
    );
    assert_eq!(world.states(), [UP; 4]);
    world.agreed = 1;
    world.run(5);
    assert_eq!([0, 1, 2, 3].map(|lane| world.watch.via(lane)), [None, Some(0), Some(0), Some(0)]);
}
