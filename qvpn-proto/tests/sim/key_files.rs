//! Keys from a file. They are used where QKD is preferred, are never shown as QKD, and are never enough where
//! it is required, independent of the source, the peer and reloads.

use qvpn_proto::{KeyKind, PeerEvent, PeerState, QkdPolicy};
use qvpn_types::KeyId;

use crate::clock::{MS, S};
use crate::network::CLEAN;
use crate::site::sites;
use crate::world::World;

/// Returns a world in which the key sources are of these kinds.
fn world(policies: [QkdPolicy; 2], kinds: [KeyKind; 2]) -> World {
    let mut sites = sites(QkdPolicy::Required, 2 * S);
    sites.iter_mut().zip(policies).for_each(|(site, policy)| site.policy = policy);
    let mut world = World::new(77, sites, CLEAN);
    world.kms[0].kind = kinds;
    world.traffic(50 * MS);
    world
}

fn epochs(world: &World, i: usize) -> Vec<(Vec<&'static str>, Option<KeyId>)> {
    let told = world.sides[i].notices.iter().filter_map(|(_, notice)| match notice {
        PeerEvent::EpochActive { sources, qkd_key_id, .. } => Some((sources.names(), qkd_key_id.clone())),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_file_is_never_enough_where_either_side_requires_qkd() {
    use KeyKind::{File, Qkd};
    use QkdPolicy::{Preferred, Required};
    for policies in [[Required, Required], [Required, Preferred], [Preferred, Required]] {
        for kinds in [[File, File], [File, Qkd], [Qkd, File]] {
            let mut world = world(policies, kinds);
            world.run(120 * S);
            for i in [0, 1] {
                assert_eq!(epochs(&world, i), [], "{policies:?} {kinds:?}");
                let view = world.view(i);
                let Some(reason) = view.reason.filter(|_| view.state == PeerState::Blocked) else {
                    assert!((i, view.state) == (1, PeerState::Connecting), "{policies:?} {kinds:?}");
                    continue;
                };
                // The responder's source doesn't know the key any more when it is requested again after a
                // refusal.
                if kinds[i] == File && i == 0 {
                    assert!(reason.contains("from a file only, which is no QKD"), "{reason}");
                    assert_eq!((view.qkd_stock, view.file_stock), (Some(0), Some(0)), "{kinds:?}");
                }
            }
            assert_eq!(world.data_sent, 0);
        }
    }
}

#[test]
fn a_side_without_a_qkd_source_says_at_once_that_required_cannot_be_met() {
    for (i, mine) in [
        (0, "qkd = \"required\""),
        (1, "qkd = \"required\""),
        (0, "the other site's"),
        (1, "the other site's"),
    ] {
        let mut policies = [QkdPolicy::Required; 2];
        if mine.starts_with("the") {
            policies[i] = QkdPolicy::Preferred;
        }
        let mut sites = sites(QkdPolicy::Required, 2 * S);
        sites.iter_mut().zip(policies).for_each(|(site, policy)| site.policy = policy);
        sites[i].qkd_source = false;
        let mut world = World::new(78, sites, CLEAN);
        // The file keys of this side never reach the peer.
        world.kms[0].up[i] = false;
        world.run(S);
        let view = world.view(i);
        let reason = view.reason.unwrap();
        assert!(reason.starts_with(mine) && reason.contains("add a [[kms.kme]]"), "{reason}");
        assert_eq!(view.state, PeerState::Blocked);
        world.run(300 * S);
        assert_eq!(epochs(&world, 0).len() + epochs(&world, 1).len(), 0);
    }
}

#[test]
fn where_qkd_is_preferred_a_file_is_used_at_once_called_by_its_name_and_shown_as_degraded() {
    let mut world = world([QkdPolicy::Preferred; 2], [KeyKind::File; 2]);
    assert!(world.run_until(2 * S, |w| w.both(PeerState::Degraded)), "{}", world.story(0));
    world.run(20 * S);
    for i in [0, 1] {
        let all = epochs(&world, i);
        assert!(all.len() >= 9);
        assert_eq!(all[0], (vec!["file", "mlkem", "x25519"], None));
        assert!(all.iter().all(|(names, id)| names[0] == "file" && id.is_none()), "{all:?}");
        let view = world.view(i);
        assert_eq!((view.qkd_key_id, view.qkd_stock, view.qkd_key_age), (None, Some(0), None));
        assert!(view.file_stock.unwrap() >= 4);
        assert!(view.reason.unwrap().contains("a file, which is no QKD"));
    }
    let supply = |(_, notice): &(_, PeerEvent)| matches!(notice, PeerEvent::SupplyStopped { .. });
    assert!(world.sides[0].notices.iter().any(supply), "it is no QKD supply");
    // QKD keys arrive and are used first.
    world.kms[0].kind = [KeyKind::Qkd; 2];
    assert!(world.run_until(10 * S, |w| w.both(PeerState::Up)), "{}", world.story(0));
    assert_eq!(epochs(&world, 1).last().unwrap().0, ["qkd", "mlkem", "x25519", "chain"]);
}

#[test]
fn each_side_trusts_its_own_source_alone() {
    let mut world = world([QkdPolicy::Preferred; 2], [KeyKind::Qkd, KeyKind::File]);
    world.run(10 * S);
    assert_eq!([0, 1].map(|i| world.state(i)), [PeerState::Up, PeerState::Degraded]);
    assert_eq!([0, 1].map(|i| epochs(&world, i)[0].0[0]), ["qkd", "file"]);
}

#[test]
fn a_reload_to_required_ends_an_epoch_of_a_file_at_once_and_erases_the_files_keys() {
    for i in [0, 1] {
        let mut world = world([QkdPolicy::Preferred; 2], [KeyKind::File; 2]);
        assert!(world.run_until(10 * S, |w| w.both(PeerState::Degraded)));
        // Waits until no order is under way to a lane.
        world.run(510 * MS);
        world.sites[i].policy = QkdPolicy::Required;
        world.reconfigure(i);
        assert!(world.run_until(MS, |w| !w.seals(i)), "{}", world.story(i));
        let before = [0, 1].map(|i| epochs(&world, i).len());
        world.run(60 * S);
        assert!(world.both(PeerState::Blocked), "{}", world.story(0));
        assert_eq!([0, 1].map(|i| epochs(&world, i).len()), before);
        assert_eq!(world.view(i).file_stock, Some(0));
        world.kms[0].kind = [KeyKind::Qkd; 2];
        assert!(world.run_until(30 * S, |w| w.both(PeerState::Up)), "{}", world.story(0));
    }
}
