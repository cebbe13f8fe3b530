//! Several lanes of one pair: keys of their own, and one epoch that ends in all of them.

use qvpn_proto::{PeerState, QkdPolicy};

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
    for end in [0, 1] {
        let mut both = sites(QkdPolicy::Required, 10 * S);
        both.iter_mut().for_each(|site| (site.lanes, site.stock) = (2, 1));
        let mut world = World::new(15, both, CLEAN);
        world.packet_limit = Some(50);
        assert!(world.run_until(5 * S, |w| w.both(PeerState::Up)));
        world.kms[0].up = [false; 2];
        // The last key goes into an epoch.
        let last = |w: &World| w.view(0).qkd_stock == Some(0) && w.view(1).qkd_stock == Some(0);
        assert!(world.run_until(25 * S, last), "{}", world.story(0));
        world.run(S);
        assert!(world.both(PeerState::Up), "{}", world.story(0));
        let sent = (0..100).filter(|_| world.send_in(end, 1, b"in lane 1")).count();
        assert!((1..50).contains(&sent), "{sent} packets");
        world.run(S);
        assert_eq!(world.state(end), PeerState::Blocked, "{}", world.story(end));
        assert!(!world.seals(end) && !world.send_in(end, 0, b"in lane 0"), "no lane seals any more");
        assert_eq!(world.state(end ^ 1), PeerState::Up, "the other direction is not touched");
        world.kms[0].up = [true; 2];
        assert!(world.run_until(12 * S, |w| w.both(PeerState::Up)), "{}", world.story(end));
        world.run(MS);
        assert!(world.send_in(end, 0, b"in lane 0") && world.send_in(end, 1, b"in lane 1"));
    }
}
