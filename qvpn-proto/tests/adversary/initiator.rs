//! Attacks on an honest initiator.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use qvpn_proto::kms::{KmsFailure, KmsFailureKind};
use qvpn_types::{EpochNumber, LocalEpoch};

use qvpn_proto::notice::FailureReason;
use qvpn_proto::wire::{Accept, MessageType, Propose, Reject, RejectReason, RekeyReason};
use qvpn_proto::{KmsReport, LaneReport, PeerEvent, PeerState, QkdPolicy, Role};

use crate::world::{SITES, World, config, other};

#[test]
fn an_initiator_seals_only_under_a_right_accept() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    let propose = world.take(MessageType::Propose).expect("it proposes at once");
    // A site without the responder's ML-KEM seed computes a different confirmation; everything else is right.
    let third = Arc::clone(&SITES[2]);
    let accept = world.answer(&propose, &third);
    world.send(MessageType::Accept, &accept);
    assert_eq!(world.sealing, 0, "an Accept of somebody else");
    let right = world.answer(&propose, other());
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    world.send(MessageType::Accept, &wrong);
    assert_eq!(world.sealing, 0, "a changed confirmation");
    // A changed receiver index under the same confirmation.
    let mut wrong = right.clone();
    let at = wrong.len() - 49;
    wrong[at] ^= 1;
    world.send(MessageType::Accept, &wrong);
    assert_eq!(world.sealing, 0, "a changed text");
    world.send(MessageType::Accept, &right);
    assert_eq!(world.sealing, 1);
    assert!(Accept::parse(&right).is_ok());
}

/// Returns the initiator's first proposal and the right `Accept`.
fn proposed() -> (World, Vec<u8>) {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    let propose = world.take(MessageType::Propose).expect("it proposes at once");
    let right = world.answer(&propose, other());
    (world, right)
}

fn drops(world: &World) -> (u64, u64) {
    let drops = world.peer.view(world.now).drops;
    (drops.malformed, drops.refused)
}

#[test]
fn four_wrong_accepts_end_an_attempt() {
    let (mut world, right) = proposed();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    for n in 1..=4 {
        world.send(MessageType::Accept, &wrong);
        assert_eq!(drops(&world), (0, n), "each is counted");
    }
    world.send(MessageType::Accept, &right);
    assert_eq!(world.sealing, 0, "the attempt is over");
    assert!(world.take(MessageType::Propose).is_none(), "the next one waits a little");
    world.wait(Duration::from_millis(101));
    world.answer_next();
}

#[test]
fn an_answer_to_no_attempt_is_ignored() {
    let (mut world, right) = proposed();
    let (mut accept, _, confirmation) = Accept::parse(&right).unwrap();
    accept.epoch.0 += 1;
    let of_another = [accept.to_bytes().as_slice(), &confirmation].concat();
    for _ in 0..10 {
        world.send(MessageType::Accept, &of_another);
        world.send(MessageType::Accept, &right[..right.len() - 1]);
    }
    assert_eq!(drops(&world), (10, 0));
    world.send(MessageType::Accept, &right);
    assert_eq!(world.sealing, 1);
}

#[test]
fn an_initiator_refuses_unusable_public_values() {
    type Change = fn(&mut Accept);
    let cases: [(&str, Change); 4] = [
        ("X25519 key zero", |a| a.x25519 = [0; 32]),
        ("X25519 key one", |a| a.x25519 = [[1u8].as_slice(), &[0; 31]].concat().try_into().unwrap()),
        ("an index for a lane that was not agreed", |a| a.indices.push(1 << 31 | 99)),
        ("a ciphertext of zeros", |a| a.ciphertext_static.fill(0)),
    ];
    for (what, change) in cases {
        let (mut world, right) = proposed();
        let (mut accept, _, confirmation) = Accept::parse(&right).unwrap();
        change(&mut accept);
        world.send(MessageType::Accept, &[accept.to_bytes().as_slice(), &confirmation].concat());
        assert_eq!((world.sealing, drops(&world)), (0, (0, 1)), "{what}");
        world.send(MessageType::Accept, &right);
        assert_eq!(world.sealing, 1, "{what}: the attempt goes on");
    }
}

/// The reasons for which a responder may refuse a proposal.
const REASONS: [RejectReason; 5] = [
    RejectReason::Stale,
    RejectReason::Policy,
    RejectReason::UnknownKeyId,
    RejectReason::KmsUnavailable,
    RejectReason::Chain,
];

#[test]
fn a_reject_ends_the_attempt_that_it_names_alone() {
    for reason in REASONS.into_iter().filter(|reason| *reason != RejectReason::Chain) {
        let mut world = World::new(Role::Initiator, QkdPolicy::Off);
        let (id, propose) = world.take_with_id(MessageType::Propose).unwrap();
        let right = world.answer(&propose, other());
        world.send(MessageType::Reject, &Reject { id: [7; 8], reason }.to_bytes());
        assert!(world.take(MessageType::Propose).is_none(), "{reason:?} of no message of ours");
        world.send(MessageType::Reject, &Reject { id, reason }.to_bytes());
        world.send(MessageType::Accept, &right);
        assert_eq!(world.sealing, 0, "{reason:?}: the attempt is over");
        world.wait(Duration::from_millis(101));
        world.answer_next();
        // A late refusal ends nothing.
        world.send(MessageType::Reject, &Reject { id, reason }.to_bytes());
        assert!(world.peer.view(world.now).epoch.is_some() && world.stopped == 0, "{reason:?}, late");
    }
}

#[test]
fn the_chain_is_given_up_on_a_word_about_the_attempt_alone() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    assert_eq!(world.answer_next().chain_check, None, "the first epoch has no chain");
    world.wait(Duration::from_secs(60));
    let (id, propose) = world.take_with_id(MessageType::Propose).expect("after the interval");
    let named = Propose::parse(&propose).unwrap().chain_check;
    assert!(named.is_some(), "the second names the first one's");
    world.send(MessageType::Reject, &Reject { id: [7; 8], reason: RejectReason::Chain }.to_bytes());
    assert!(world.take(MessageType::Propose).is_none());
    world.send(MessageType::Reject, &Reject { id, reason: RejectReason::Chain }.to_bytes());
    assert_eq!(world.answer_next().chain_check, None, "at once, and without");
    world.wait(Duration::from_secs(60));
    let next = world.answer_next().chain_check;
    assert!(next.is_some() && next != named, "the chain goes on from the new epoch");
}

#[test]
fn a_word_about_the_chain_of_an_attempt_that_names_none_is_ignored() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    let (id, propose) = world.take_with_id(MessageType::Propose).unwrap();
    let right = world.answer(&propose, other());
    for _ in 0..20 {
        world.send(MessageType::Reject, &Reject { id, reason: RejectReason::Chain }.to_bytes());
        assert!(world.take(MessageType::Propose).is_none(), "it makes nobody propose again");
    }
    assert_eq!(world.resets, 0);
    world.send(MessageType::Accept, &right);
    assert_eq!(world.sealing, 1, "the attempt goes on");
}

#[test]
fn an_initiator_keeps_to_its_policy() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Required);
    world.wait(Duration::from_secs(3600));
    assert!(world.take(MessageType::Propose).is_none(), "required, and no QKD key");
    let mut world = World::new(Role::Initiator, QkdPolicy::Preferred);
    world.wait(Duration::from_millis(119_999));
    assert!(world.take(MessageType::Propose).is_none(), "preferred, too early");
    world.wait(Duration::from_millis(2));
    assert_eq!(world.answer_next().qkd_key_id, None);
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    assert_eq!(world.answer_next().qkd_key_id, None);
}

#[test]
fn the_other_site_may_ask_for_an_epoch_once_a_second() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    let ask = |world: &mut World, wait| {
        world.wait(Duration::from_millis(wait));
        world.send(MessageType::Rekey, &RekeyReason::NoEpoch.to_bytes());
        world.said.iter().any(|(kind, ..)| *kind == MessageType::Propose)
    };
    assert!(!ask(&mut world, 0), "an attempt has just begun");
    assert!(!ask(&mut world, 999));
    assert!(ask(&mut world, 1));
    world.answer_next();
    assert!(!ask(&mut world, 999), "counted from the attempt that was asked for");
    assert!(ask(&mut world, 1));
    world.answer_next();
}

#[test]
fn keys_on_their_way_into_the_lanes_end_when_the_responder_restarts() {
    let (mut world, right) = proposed();
    world.lanes_hang = true;
    world.send(MessageType::Accept, &right);
    let index = world.opening.expect("an opening key was ordered");
    assert_eq!((world.sealing, world.closed.len()), (0, 0));
    world.session.store(2, Ordering::Relaxed);
    world.say_hello(2, 1);
    assert_eq!(world.closed, [index]);
    // This responder restarts and still has the chain, which the initiator names.
    world.lanes_hang = false;
    world.keep_chain();
    world.wait(Duration::from_secs(1));
    world.answer_next();
}

#[test]
fn older_keys_drain_once_the_peer_seals_in_the_epoch() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    let local_epoch = world.local_epoch;
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch: LocalEpoch(local_epoch.0 - 1) });
    assert_eq!(world.older, 0, "a packet of the epoch before");
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch });
    assert_eq!(world.older, 1);
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch });
    assert_eq!(world.older, 1, "once");
    world.said.clear();
    world.wait(Duration::from_secs(5));
    assert!(world.take(MessageType::Confirm).is_none(), "and nothing more is to be confirmed");
}

#[test]
fn a_confirmation_is_repeated_until_the_peer_seals() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    let confirm = world.take(MessageType::Confirm).expect("at once");
    for wait in [500, 1_000, 2_000, 4_000, 4_000] {
        world.said.clear();
        world.wait(Duration::from_millis(wait) - Duration::from_nanos(1));
        assert_eq!(world.take(MessageType::Confirm), None, "before {wait} ms");
        world.wait(Duration::from_nanos(1));
        assert_eq!(world.take(MessageType::Confirm).as_ref(), Some(&confirm), "after {wait} ms");
    }
}

#[test]
fn a_repeated_accept_is_answered_by_the_confirmation_until_the_peer_seals() {
    let (mut world, right) = proposed();
    world.send(MessageType::Accept, &right);
    let confirm = world.take(MessageType::Confirm).expect("at once");
    world.send(MessageType::Accept, &right);
    assert_eq!(world.take(MessageType::Confirm), Some(confirm));
    let local_epoch = world.local_epoch;
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch });
    world.send(MessageType::Accept, &right);
    assert_eq!((world.take(MessageType::Confirm), world.sealing), (None, 1));
}

#[test]
fn lanes_that_take_no_keys_end_an_attempt_after_five_seconds() {
    let (mut world, right) = proposed();
    world.lanes_hang = true;
    world.send(MessageType::Accept, &right);
    world.wait(Duration::from_secs(5));
    let told = |event: &PeerEvent| match event {
        PeerEvent::EpochFailed { reason, detail } => {
            *reason == FailureReason::Timeout && detail.contains("our lanes")
        }
        _ => false,
    };
    assert_eq!(world.notices.iter().filter(|n| told(n)).count(), 1, "{:?}", world.notices);
    let index = world.opening.unwrap();
    assert_eq!(world.closed, [index]);
    world.lanes_go_on();
    assert_eq!(world.sealing, 0);
}

#[test]
fn a_reload_ends_what_is_not_answered_and_nothing_else() {
    let (mut world, right) = proposed();
    world.reload(QkdPolicy::Off);
    world.send(MessageType::Accept, &right);
    assert_eq!(world.sealing, 0, "an Accept of what was proposed before");
    assert_eq!(world.answer_next().epoch, EpochNumber(2), "proposed at once");
    // The lanes are installing the keys of an answered proposal.
    let (mut world, right) = proposed();
    world.lanes_hang = true;
    world.send(MessageType::Accept, &right);
    world.reload(QkdPolicy::Off);
    world.lanes_go_on();
    assert_eq!((world.sealing, world.peer.view(world.now).epoch), (1, Some(EpochNumber(1))));
}

/// Returns the honest initiator's first proposal without QKD, under `preferred`, and the right `Accept`.
fn proposed_without_qkd() -> (World, Vec<u8>) {
    let mut world = World::new(Role::Initiator, QkdPolicy::Preferred);
    world.wait(Duration::from_secs(120));
    let propose = world.take(MessageType::Propose).expect("after two intervals");
    let right = world.answer(&propose, other());
    (world, right)
}

#[test]
fn an_epoch_without_qkd_that_is_being_made_under_a_stricter_policy_never_seals() {
    let (mut world, right) = proposed_without_qkd();
    world.lanes_hang = true;
    world.send(MessageType::Accept, &right);
    world.reload(QkdPolicy::Required);
    // This holds even if the operator reverts the change before the lanes have answered.
    world.reload(QkdPolicy::Preferred);
    world.lanes_go_on();
    assert_eq!((world.sealing, world.take(MessageType::Confirm)), (0, None));
    // Without a change, the epoch comes into force.
    let (mut world, right) = proposed_without_qkd();
    world.lanes_hang = true;
    world.send(MessageType::Accept, &right);
    world.reload(QkdPolicy::Preferred);
    world.lanes_go_on();
    assert_eq!(world.sealing, 1);
}

#[test]
fn an_epoch_that_breaks_a_stricter_policy_is_confirmed_no_more() {
    for (policy, repeats) in [(QkdPolicy::Required, false), (QkdPolicy::Preferred, true)] {
        let (mut world, right) = proposed_without_qkd();
        world.send(MessageType::Accept, &right);
        assert_eq!(world.sealing, 1);
        world.reload(policy);
        world.said.clear();
        world.wait(Duration::from_secs(10));
        assert_eq!(world.take(MessageType::Confirm).is_some(), repeats, "{policy:?}");
    }
    // The same if the peer became stricter.
    let (mut world, right) = proposed_without_qkd();
    world.send(MessageType::Accept, &right);
    world.policy = QkdPolicy::Required;
    world.say_hello(1, 2);
    assert_eq!((world.stopped, world.closed.len()), (0, 0), "a Hello alone ends no epoch");
    world.said.clear();
    world.wait(Duration::from_secs(10));
    assert_eq!(world.take(MessageType::Confirm), None);
}

#[test]
fn a_proposal_under_an_old_hello_is_answered_by_a_new_hello() {
    for reason in REASONS {
        let mut world = World::new(Role::Initiator, QkdPolicy::Off);
        let (id, _) = world.take_with_id(MessageType::Propose).unwrap();
        let hellos = world.hellos;
        world.send(MessageType::Reject, &Reject { id, reason }.to_bytes());
        assert_eq!(world.hellos - hellos, usize::from(reason == RejectReason::Stale), "{reason:?}");
    }
}

#[test]
fn a_question_for_an_epoch_and_an_answer_about_the_stock_that_are_none_are_counted() {
    for kind in [MessageType::Rekey, MessageType::StockAck] {
        let mut world = World::new(Role::Initiator, QkdPolicy::Preferred);
        for count in 1..=3 {
            world.send(kind, &[0xff]);
            assert_eq!(drops(&world), (count, 0), "{kind:?}");
        }
    }
}

#[test]
fn show_tells_how_old_an_epoch_is_and_what_comes_next() {
    let seconds = |n| Some(Duration::from_secs(n));
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    let view = |world: &World| world.peer.view(world.now);
    assert_eq!((view(&world).state, view(&world).epoch), (PeerState::Connecting, None));
    world.answer_next();
    world.wait(Duration::from_secs(10));
    let now = view(&world);
    assert_eq!(
        (now.state, now.reason, now.role, now.policy),
        (PeerState::Up, None, world.role, world.policy)
    );
    assert_eq!(
        (now.epoch, now.epoch_age, now.epoch_expires_in),
        (Some(EpochNumber(1)), seconds(10), seconds(170))
    );
    assert_eq!((now.next_rekey_in_ms, now.rekey_interval), (Some(50_000), Duration::from_secs(60)));
    assert_eq!((now.rekeys, now.lanes, now.control_handshake_ago), (1, 1, seconds(10)));
    assert!(now.endpoint.is_some() && now.sources.is_some_and(|s| !s.qkd && !s.file && !s.psk && !s.chain));
    assert_eq!((now.qkd_key_id, now.qkd_key_age, now.qkd_stock, now.file_stock), (None, None, None, None));
    assert!(now.rekey_failures.is_empty() && now.qkd_stock_lasts.is_none());
    // The next proposals get no answer until the key expires.
    world.notices.clear();
    world.wait(Duration::from_secs(169));
    assert_eq!((view(&world).state, view(&world).epoch_expires_in), (PeerState::Up, seconds(1)));
    world.wait(Duration::from_secs(1));
    let now = view(&world);
    assert_eq!((now.state, now.epoch, now.epoch_age, now.sources), (PeerState::Blocked, None, None, None));
    assert!(now.rekey_failures.iter().any(|(_, n)| *n > 1), "{:?}", now.rekey_failures);
    let blocked = |n: &&PeerEvent| matches!(n, PeerEvent::Blocked { reason } if reason.contains("waiting"));
    assert_eq!(world.notices.iter().filter(blocked).count(), 1, "{:?}", world.notices);
    world.wait(Duration::from_secs(20));
    world.notices.clear();
    world.answer_next();
    assert_eq!(world.notices.iter().filter(|n| **n == PeerEvent::Up).count(), 1, "{:?}", world.notices);
}

#[test]
fn an_epoch_is_due_at_once_at_the_request_of_the_operator_or_a_lane() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    assert!(world.take(MessageType::Propose).is_none());
    world.peer.rekey(world.now, &mut world.rng);
    world.pump();
    world.answer_next();
    let local_epoch = world.local_epoch;
    world.report(LaneReport::SealingEnded { lane: 0, local_epoch: LocalEpoch(local_epoch.0 - 1) });
    assert!(world.take(MessageType::Propose).is_none(), "an older key");
    world.report(LaneReport::SealingEnded { lane: 0, local_epoch });
    assert_eq!(world.peer.view(world.now).epoch, None);
    world.answer_next();
}

#[test]
fn an_attempt_is_repeated_each_second_ends_after_five_and_the_next_waits_longer() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    let pauses = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000];
    for (number, pause) in (1..).zip(pauses) {
        let first = world.take(MessageType::Propose).expect("an attempt");
        assert_eq!(Propose::parse(&first).unwrap().epoch, EpochNumber(number));
        for second in 1..5 {
            world.wait(Duration::from_millis(999));
            assert!(world.take(MessageType::Propose).is_none(), "before second {second}");
            world.wait(Duration::from_millis(1));
            assert_eq!(world.take(MessageType::Propose).as_ref(), Some(&first), "second {second}");
        }
        world.wait(Duration::from_millis(999));
        let ended =
            |n: &PeerEvent| matches!(n, PeerEvent::EpochFailed { reason: FailureReason::Timeout, .. });
        assert!(!world.notices.iter().any(ended));
        world.wait(Duration::from_millis(1));
        assert!(world.notices.drain(..).any(|n| ended(&n)), "attempt {number} is over");
        world.wait(Duration::from_millis(pause) - Duration::from_nanos(1));
        assert!(world.take(MessageType::Propose).is_none(), "{pause} ms after attempt {number}");
        world.wait(Duration::from_nanos(1));
    }
    world.answer_next();
}

#[test]
fn a_stricter_policy_ends_an_epoch_without_qkd_and_says_once_what_is_missing() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Preferred);
    world.wait(Duration::from_secs(120));
    world.answer_next();
    assert_eq!(world.peer.view(world.now).state, PeerState::Degraded);
    let index = world.opening.unwrap();
    world.notices.clear();
    let stricter = config(Role::Initiator, QkdPolicy::Required);
    world.peer.reconfigure(stricter, world.now, &mut world.rng);
    world.pump();
    assert_eq!((world.stopped, world.closed.as_slice()), (1, &[index][..]), "in both directions, at once");
    world.wait(Duration::from_secs(600));
    assert!(world.take(MessageType::Propose).is_none());
    let view = world.peer.view(world.now);
    assert!(view.state == PeerState::Blocked && view.reason.unwrap().contains("required"));
    let missing =
        |n: &&PeerEvent| matches!(n, PeerEvent::EpochFailed { reason: FailureReason::NoQkdKey, .. });
    assert_eq!(world.notices.iter().filter(missing).count(), 1, "{:?}", world.notices);
}

#[test]
fn keys_are_asked_for_under_another_number_each_time_and_never_with_qkd_off() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    world.wait(Duration::from_secs(300));
    assert_eq!(world.requests, []);
    let mut world = World::new(Role::Initiator, QkdPolicy::Preferred);
    assert_eq!(world.requests.len(), 1);
    let request = world.requests[0];
    let failure = KmsFailure { kind: KmsFailureKind::Unavailable, text: "busy".to_owned() };
    world.peer.handle_kms(KmsReport::Failed { request, failure }, world.now, &mut world.rng);
    world.pump();
    assert_eq!(world.requests.len(), 1, "the next one waits");
    world.peer.on_kms_recovered(world.now, &mut world.rng);
    world.pump();
    assert_eq!(world.requests.len(), 2, "a KME answers again, so at once");
    let request = world.requests[1];
    let failure = KmsFailure { kind: KmsFailureKind::Unavailable, text: "busy".to_owned() };
    world.peer.handle_kms(KmsReport::Failed { request, failure }, world.now, &mut world.rng);
    world.wait(Duration::from_secs(60));
    assert!(world.requests.len() > 2 && world.requests.is_sorted_by(|a, b| a < b), "{:?}", world.requests);
}

#[test]
fn a_path_that_comes_back_makes_an_attempt_due_where_no_key_seals() {
    let ping = |world: &mut World| {
        let session = world.session.load(Ordering::Relaxed);
        world.session.store(session + 1, Ordering::Relaxed);
        world.send(MessageType::Ping, &[0; 13]);
        world.take(MessageType::Propose).is_some()
    };
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    assert!(!ping(&mut world), "a key seals, so the next attempt has its time");
    world.wait(Duration::from_secs(180));
    assert_eq!(world.peer.view(world.now).epoch, None, "the key is too old");
    // Attempts failed in the meantime, so the next one starts ten seconds after the last.
    while !world.notices.drain(..).any(|n| matches!(n, PeerEvent::EpochFailed { .. })) {
        world.wait(Duration::from_millis(100));
    }
    world.said.clear();
    world.wait(Duration::from_secs(1));
    assert!(world.take(MessageType::Propose).is_none());
    assert!(ping(&mut world), "at once");
}

#[test]
fn show_says_why_traffic_flows_without_qkd() {
    let (mut world, right) = proposed_without_qkd();
    world.send(MessageType::Accept, &right);
    let view = world.peer.view(world.now);
    assert_eq!(view.state, PeerState::Degraded);
    assert!(view.reason.clone().unwrap().starts_with("traffic flows without QKD"), "{:?}", view.reason);
}
