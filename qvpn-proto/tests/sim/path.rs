//! How the two sides report silent lanes, measure the path's MTU, and reach each other again after both
//! moved.

use std::time::Duration;

use qvpn_proto::path_mtu::MAX_PATH_MTU;
use qvpn_proto::wire::LaneSet;
use qvpn_proto::{PeerEvent, PeerState, QkdPolicy};

use crate::clock::{MS, S};
use crate::network::{CLEAN, Faults, ROUGH};
use crate::site::sites;
use crate::world::World;

/// Returns two sites with four lanes; the first one measures the path's MTU.
fn world(seed: u64, path: usize, faults: Faults) -> World {
    let mut sites = sites(QkdPolicy::Required, 10 * S);
    sites.iter_mut().for_each(|site| site.lanes = 4);
    sites[0].measures = true;
    let mut world = World::new(seed, sites, faults);
    world.path = path;
    assert!(world.run_until(60 * S, |w| w.both(PeerState::Up)), "seed {seed}");
    world
}

/// Makes the network lose packets to a side on these lanes.
fn set_rx_silent(world: &mut World, side: usize, lanes: LaneSet) {
    world.cut_lanes[side ^ 1] = lanes;
}

#[test]
fn each_side_learns_on_which_lanes_the_peer_receives_nothing() {
    for seed in 0..5 {
        let mut world = world(seed, 9000, ROUGH);
        let there = |world: &World, side: usize| world.view(side).peer_rx_silent;
        for (side, lanes) in
            [(0, LaneSet(0b1010)), (1, LaneSet(0b0001)), (0, LaneSet(0b1000)), (0, LaneSet(0))]
        {
            set_rx_silent(&mut world, side, lanes);
            assert!(world.run_until(20 * S, |w| there(w, 1 - side) == lanes), "seed {seed}: {lanes:?}");
        }
        // A side that restarts gets the report again, and the reports of its earlier instance are forgotten.
        set_rx_silent(&mut world, 0, LaneSet(0b0100));
        world.run(20 * S);
        world.restart(1);
        assert!(world.run_until(60 * S, |w| there(w, 1) == LaneSet(0b0100)), "seed {seed}");
        assert!(world.run_until(60 * S, |w| there(w, 0) == LaneSet(0)), "seed {seed}");
    }
}

/// Returns the MTUs that a side's events report.
fn reported_mtus(world: &World, side: usize) -> Vec<u16> {
    let mtu = |notice: &PeerEvent| if let PeerEvent::PathMtu { mtu } = notice { Some(*mtu) } else { None };
    world.sides[side].notices.iter().filter_map(|(_, notice)| mtu(notice)).collect()
}

fn measured(seed: u64, faults: Faults, path: usize, within: Duration, expected: u16) {
    let mut world = world(seed, path, faults);
    world.traffic(50 * MS);
    world.run(within / 2);
    let last = |world: &World| reported_mtus(world, 0).last().copied().unwrap_or(MAX_PATH_MTU);
    if !world.run_until(within / 2, |w| last(w) == expected) {
        let mtus = reported_mtus(&world, 0);
        world.fail(&format!("{mtus:?} of a path of {path}"));
    }
    assert!(reported_mtus(&world, 1).is_empty(), "the peer wasn't asked to measure");
    assert!(world.both(PeerState::Up), "{}", world.story(0));
}

#[test]
fn the_path_is_measured_through_the_control_session() {
    measured(1, CLEAN, 9000, 6 * S, 1420);
    measured(2, CLEAN, 1300, 6 * S, 1296);
    measured(3, CLEAN, 1200, 6 * S, 1200);
    for seed in 4..8 {
        measured(seed, ROUGH, 1300, 60 * S, 1296);
    }
}

#[test]
fn the_mtu_follows_the_path_and_survives_a_restart_of_the_peer() {
    let mut world = world(9, 9000, CLEAN);
    world.traffic(50 * MS);
    world.run(10 * S);
    assert!(reported_mtus(&world, 0).is_empty());
    for (path, expected) in [(1300, 1296), (1216, 1216), (9000, 1420)] {
        world.path = path;
        world.run(40 * S);
        assert_eq!(reported_mtus(&world, 0).last(), Some(&expected), "{:?}", reported_mtus(&world, 0));
        world.restart(1);
        assert!(world.run_until(60 * S, |w| w.both(PeerState::Up)));
    }
    world.step(0, |peer, now, _| peer.measure_path(false, now));
    let before = reported_mtus(&world, 0);
    world.path = 1250;
    world.run(60 * S);
    assert_eq!(reported_mtus(&world, 0), before, "nobody measures any more");
}

/// The NATs of both sites move at once, so that each side knows only an endpoint of the peer that is gone.
/// Datagrams to forwarded ports still arrive.
#[test]
fn both_sides_find_each_other_again_at_the_configured_endpoints() {
    for interval in [S, 60 * S] {
        let mut sites = sites(QkdPolicy::Required, interval);
        sites.iter_mut().for_each(|site| site.lanes = 2);
        let mut world = World::new(10, sites, CLEAN);
        for gateway in [0, 1] {
            world.gateways[gateway].forwards = true;
            world.rebind(gateway);
        }
        world.traffic(50 * MS);
        assert!(world.run_until(10 * S, |w| w.both(PeerState::Up)));
        world.run(3 * S);
        world.rebind(0);
        world.rebind(1);
        // Silence is detected after 5 s. The previous endpoint gets the first handshake, the configured one
        // the next, a second later.
        world.run(8 * S);
        let (sent, opened) = (world.data_sent, world.data_opened);
        world.run(4 * S);
        let (sent, opened) = (world.data_sent - sent, world.data_opened - opened);
        assert!(
            sent > 300 && opened + 8 >= sent,
            "{opened} of {sent}: {}\n--\n{}",
            world.story(0),
            world.story(1)
        );
        assert!(world.both(PeerState::Up));
    }
}
