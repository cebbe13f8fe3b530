//! Silent peers: how soon a side notices, what it says, and when it is well again.

use std::time::Duration;

use qvpn_proto::wire::MessageType;
use qvpn_proto::{PeerEvent, PeerState, QkdPolicy};

use crate::clock::{MS, S};
use crate::network::{CLEAN, Faults};
use crate::site::{Site, sites};
use crate::world::World;

fn both(liveness: Option<Duration>) -> [Site; 2] {
    let mut both = sites(QkdPolicy::Required, 60 * S);
    both.iter_mut().for_each(|site| site.liveness = liveness);
    both
}

fn up(seed: u64, liveness: Option<Duration>, faults: Faults) -> World {
    let mut world = World::new(seed, both(liveness), faults);
    assert!(world.run_until(60 * S, |w| w.both(PeerState::Up)), "seed {seed}");
    world.run(3 * S);
    world
}

/// The number of times that a side reported its peer as silent.
fn silences(world: &World, side: usize) -> usize {
    world.sides[side].notices.iter().filter(|(_, n)| matches!(n, PeerEvent::Silent { .. })).count()
}

fn reason(world: &World, side: usize) -> String {
    world.view(side).reason.unwrap_or_default()
}

#[test]
fn a_dead_peer_is_silent_in_seconds_and_back_soon_after() {
    for (liveness, within) in [(2 * S, 5500 * MS), (300 * MS, 1500 * MS), (10 * S, 14 * S)] {
        for (seed, idle) in [(1, true), (2, false)] {
            let mut world = up(seed, Some(liveness), CLEAN);
            if !idle {
                world.traffic(20 * MS);
                world.run(3 * S);
            }
            world.cut = vec![true; 2];
            let cut = world.now;
            assert!(world.run_until(60 * S, |w| w.both(PeerState::Silent)), "{}", world.story(0));
            let took = world.now.since(cut);
            assert!(took <= within, "liveness {liveness:?}, idle {idle}: {took:?}");
            world.run(20 * S);
            for side in [0, 1] {
                let view = world.view(side);
                assert!(
                    reason(&world, side).starts_with("nothing came from 192.0.2."),
                    "{}",
                    reason(&world, side)
                );
                assert!(view.last_received_ago.is_some_and(|ago| ago > 15 * S));
                assert_eq!(silences(&world, side), 1);
            }
            world.cut = vec![false; 2];
            assert!(world.run_until(6 * S, |w| w.both(PeerState::Up)), "{}", world.story(0));
            let recovered = |n: &PeerEvent| *n == PeerEvent::Recovered;
            assert!(world.sides.iter().all(|e| e.notices.iter().any(|(_, n)| recovered(n))));
        }
    }
}

#[test]
fn loss_in_one_direction_shows_at_both_sides() {
    for (seed, from) in [(3, 0), (4, 1)] {
        let mut world = up(seed, Some(2 * S), CLEAN);
        world.traffic(50 * MS);
        world.run(2 * S);
        world.cut[from] = true;
        assert!(world.run_until(8 * S, |w| w.both(PeerState::Silent)), "{}", world.story(from));
        world.run(2 * S);
        assert!(reason(&world, from ^ 1).starts_with("nothing came from"), "{}", reason(&world, from ^ 1));
        let ours = reason(&world, from);
        assert!(ours.contains("lost on the way") && ours.contains("has received nothing"), "{ours}");
        world.run(20 * S);
        assert_eq!((silences(&world, 0), silences(&world, 1)), (1, 1));
        world.cut[from] = false;
        assert!(world.run_until(6 * S, |w| w.both(PeerState::Up)), "{}", world.story(0));
    }
}

#[test]
fn a_wan_that_loses_a_third_does_not_flap() {
    for seed in 0..4 {
        let lossy = Faults { loss: 300, delay: 20 * MS, jitter: 20 * MS, ..CLEAN };
        let mut world = up(seed, Some(2 * S), lossy);
        if seed % 2 == 1 {
            world.traffic(500 * MS);
        }
        world.run(1800 * S);
        assert_eq!((silences(&world, 0), silences(&world, 1)), (0, 0), "seed {seed}: {}", world.story(0));
    }
}

#[test]
fn after_goodbye_a_peer_is_not_up_until_it_answers_again() {
    for liveness in [Some(2 * S), None] {
        let mut world = up(5, liveness, CLEAN);
        world.say_bye(1);
        world.cut = vec![true; 2];
        world.run(100 * MS);
        world.cut = vec![false; 2];
        world.say_bye(1);
        world.cut[1] = true;
        world.run(100 * MS);
        assert_eq!(world.state(0), PeerState::Silent, "{}", world.story(0));
        assert!(reason(&world, 0).contains("said goodbye"), "{}", reason(&world, 0));
        world.run(30 * S);
        assert_eq!(world.state(0), PeerState::Silent);
        world.restart(1);
        world.cut[1] = false;
        assert!(world.run_until(6 * S, |w| w.both(PeerState::Up)), "{}", world.story(0));
    }
}

#[test]
fn answers_that_come_after_ten_seconds_are_none() {
    let mut world = up(6, Some(2 * S), CLEAN);
    world.faults.delay = 5 * S;
    world.run(300 * S);
    for side in [0, 1] {
        assert_eq!(silences(&world, side), 1, "{}", world.story(side));
        assert_ne!(world.state(side), PeerState::Up);
    }
    world.faults.delay = 5 * MS;
    assert!(world.run_until(30 * S, |w| w.both(PeerState::Up)), "{}", world.story(0));
}

#[test]
fn one_sides_setting_is_enough_and_off_pings_nobody() {
    let mut both = both(Some(2 * S));
    both[1].liveness = None;
    let mut world = World::new(7, both, CLEAN);
    assert!(world.run_until(5 * S, |w| w.both(PeerState::Up)));
    world.run(20 * S);
    assert_eq!(world.state(0), PeerState::Up, "its pings are answered");
    let sent = |world: &World, side: usize| world.sent[side].get(&MessageType::Ping).copied().unwrap_or(0);
    assert!(sent(&world, 0) >= 9 && sent(&world, 1) == 0);
    world.cut = vec![true; 2];
    world.run(10 * S);
    assert_eq!((world.state(0), world.state(1)), (PeerState::Silent, PeerState::Up));
}

#[test]
fn an_idle_tunnel_costs_a_ping_and_a_pong_each_two_seconds() {
    let mut world = up(8, Some(2 * S), CLEAN);
    world.sent.iter_mut().for_each(std::collections::BTreeMap::clear);
    world.run(100 * S);
    let count = |kind| world.sent.iter().filter_map(|sent| sent.get(&kind)).sum::<u64>();
    let (pings, pongs) = (count(MessageType::Ping), count(MessageType::Pong));
    assert!(pings <= 100 && pings == pongs, "{pings} pings, {pongs} pongs of both sides in 100 s");
}

#[test]
fn what_was_known_of_a_peer_does_not_disappear() {
    let mut world = World::new(9, sites(QkdPolicy::Required, 10 * S), CLEAN);
    assert!(world.run_until(5 * S, |w| w.both(PeerState::Up)));
    world.run(8 * S);
    assert!(world.view(0).next_rekey_in_ms.is_some_and(|ms| ms > 0));
    world.cut = vec![true; 2];
    world.run(12 * S);
    for side in [0, 1] {
        let next = world.view(side).next_rekey_in_ms.unwrap();
        assert!((-11_000..-7_000).contains(&next), "overdue for {next} ms");
    }
    world.run(400 * S);
    for side in [0, 1] {
        let view = world.view(side);
        assert_eq!(view.state, PeerState::Blocked);
        assert!(view.control_handshake_ago.is_some_and(|ago| ago > 400 * S));
        assert!(view.last_received_ago.is_some_and(|ago| ago > 400 * S));
    }
}
