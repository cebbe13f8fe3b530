//! Several lanes between two sides: each has its own keys, and one epoch ends in all of them.

use qvpn_proto::wire::LaneSet;
use qvpn_proto::{LaneState, PeerEvent, PeerState, QkdPolicy};
use qvpn_types::EpochNumber;

use crate::clock::{MS, S};
use crate::network::CLEAN;
use crate::site::sites;
use crate::world::World;

#[test]
fn several_lanes_have_keys_of_their_own() {
    let mut both = sites(QkdPolicy::Required, S);
    (both[0].lanes, both[1].lanes) = (4, 2);
    let mut world = World::new(13, both, CLEAN);
    world.traffic(50 * MS);
    assert!(world.run_until(5 * S, |w| w.both(PeerState::Up)));
    world.run(3 * S);
    assert_eq!(world.view(0).lanes, 2);
}

#[test]
fn the_packet_limit_of_one_lane_ends_the_epoch_in_all() {
    for side in [0, 1] {
        let mut both = sites(QkdPolicy::Required, 10 * S);
        both.iter_mut().for_each(|site| (site.lanes, site.stock) = (2, 1));
        let mut world = World::new(15, both, CLEAN);
        world.packet_limit = Some(50);
        assert!(world.run_until(5 * S, |w| w.both(PeerState::Up)));
        world.kms[0].up = [false; 2];
        // The last key is used for an epoch.
        let last = |w: &World| w.view(0).qkd_stock == Some(0) && w.view(1).qkd_stock == Some(0);
        assert!(world.run_until(25 * S, last), "{}", world.story(0));
        world.run(S);
        assert!(world.both(PeerState::Up), "{}", world.story(0));
        let sent = (0..100).filter(|_| world.send_in(side, 1, b"in lane 1")).count();
        assert!((1..50).contains(&sent), "{sent} packets");
        world.run(S);
        assert_eq!(world.state(side), PeerState::Blocked, "{}", world.story(side));
        assert!(!world.seals(side) && !world.send_in(side, 0, b"in lane 0"), "no lane seals any more");
        assert_eq!(world.state(side ^ 1), PeerState::Up, "the other direction is not touched");
        world.kms[0].up = [true; 2];
        assert!(world.run_until(12 * S, |w| w.both(PeerState::Up)), "{}", world.story(side));
        world.run(MS);
        assert!(world.send_in(side, 0, b"in lane 0") && world.send_in(side, 1, b"in lane 1"));
    }
}

#[test]
fn a_lane_that_is_cut_gives_its_flows_to_another_until_it_recovers() {
    let mut both = sites(QkdPolicy::Required, 10 * S);
    both.iter_mut().for_each(|site| site.lanes = 3);
    let mut world = World::new(17, both, CLEAN);
    let lane = |w: &World, side: usize| w.view(side).lane_views[1];
    let up =
        |w: &World, side: usize| lane(w, side).state == Some(LaneState::Up) && lane(w, side).via.is_none();
    assert!(world.run_until(10 * S, |w| up(w, 0) && up(w, 1)), "{}", world.story(0));
    world.cut_lanes[0] = LaneSet(0b10);
    // The side that receives nothing detects it and reports it to the peer.
    let silent =
        |w: &World, side| lane(w, side).state == Some(LaneState::Silent) && lane(w, side).via == Some(2);
    assert!(world.run_until(5 * S, |w| silent(w, 0) && silent(w, 1)), "{}", world.story(0));
    assert!(world.both(PeerState::Up));
    world.traffic(50 * MS);
    world.run(S);
    let (sent, opened) = (world.data_sent, world.data_opened);
    world.run(10 * S);
    assert!(world.data_opened - opened + 10 > world.data_sent - sent, "flows pass by another lane");
    world.cut_lanes[0] = LaneSet(0);
    assert!(world.run_until(10 * S, |w| up(w, 0) && up(w, 1)), "{}", world.story(0));
    for side in [0, 1] {
        let count = |event: &dyn Fn(&PeerEvent) -> bool| {
            world.sides[side].notices.iter().filter(|(_, notice)| event(notice)).count()
        };
        assert_eq!(count(&|e| matches!(e, PeerEvent::LaneSilent { lane: 1, port: 51821 })), 1);
        assert_eq!(count(&|e| *e == PeerEvent::LaneRecovered { lane: 1 }), 1);
    }
}

#[test]
fn no_lane_goes_back_when_the_peer_restarts_and_counts_its_epochs_from_one_again() {
    let mut both = sites(QkdPolicy::Required, S);
    both.iter_mut().for_each(|site| site.lanes = 2);
    let mut world = World::new(19, both, CLEAN);
    // The initiator chooses the epoch numbers.
    let (initiator, responder) = (0, 1);
    assert!(world.run_until(20 * S, |w| w.view(responder).epoch >= Some(EpochNumber(5))));
    let before = [0, 1].map(|lane| world.newest_sealing(responder, lane));
    world.restart(initiator);
    let again = |w: &World| w.view(responder).epoch.is_some_and(|epoch| epoch < EpochNumber(5));
    assert!(world.run_until(20 * S, again), "the number on the wire falls: {}", world.story(responder));
    world.run(MS);
    let after = [0, 1].map(|lane| world.newest_sealing(responder, lane));
    assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?}, then {after:?}");
    // Lanes accept a key only if its epoch is later than all before: they would have refused a lower one.
    world.run(5 * S);
    assert!(world.both(PeerState::Up), "{}", world.story(responder));
}
