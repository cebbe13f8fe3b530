//! Attacks on an honest responder.

use std::sync::atomic::Ordering;
use std::time::Duration;

use qvpn_proto::key_schedule::qkd_check;
use qvpn_proto::wire::{
    Hello, KeyAvailability, MessageType, Propose, Reject, RejectReason, RekeyReason, StockAck, StockOffer,
};
use qvpn_proto::{
    FetchedKey, KeyKind, KeyName, KmsReport, LaneReport, PeerEvent, PeerState, QkdPolicy, Role,
};
use qvpn_secret::SecretBuf;
use qvpn_types::{EpochNumber, KeyId, LocalEpoch};

use crate::world::{World, honest, other};

#[test]
fn a_responder_seals_only_on_the_right_confirmation() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let proposed = world.propose(1);
    let right = world.confirmation(proposed);
    for n in 0..3u8 {
        let mut wrong = right;
        wrong[usize::from(n) * 20] ^= 1;
        world.confirm(1, wrong);
        assert_eq!(world.sealing, 0, "wrong confirmation {n}");
    }
    world.confirm(2, right);
    assert_eq!(world.sealing, 0, "the right one for another attempt");
    world.confirm(1, right);
    assert_eq!(world.sealing, 1);
}

#[test]
fn four_wrong_confirmations_end_an_attempt() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let proposed = world.propose(1);
    let right = world.confirmation(proposed);
    for _ in 0..4 {
        world.confirm(1, [7; 48]);
    }
    world.confirm(1, right);
    assert_eq!(world.sealing, 0, "the attempt is over");
    assert_eq!(world.peer.view(world.now).drops.refused, 4, "each is counted");
    world.send(MessageType::Confirm, &[7; 3]);
    assert_eq!(world.peer.view(world.now).drops.malformed, 1, "and so is what is none");
    world.exchange(2);
}

#[test]
fn attempts_have_rising_numbers() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.exchange(5);
    for epoch in [5, 4, 1, 0] {
        let _ = world.propose(epoch);
        assert_eq!(world.rejected(), Some(RejectReason::Stale), "number {epoch} after 5");
        assert!(world.take(MessageType::Accept).is_none());
    }
    world.exchange(6);
}

#[test]
fn a_proposal_holds_under_the_hellos_in_force_alone() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let old = world.hello.clone();
    world.say_hello(1, 2);
    let proposed = world.proposal(1, &old, None, None);
    let hellos = world.hellos;
    world.send(MessageType::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Stale), "our earlier Hello");
    assert_eq!(world.hellos, hellos, "we know its Hello");
    let ours = world.hello.clone();
    let theirs = std::mem::replace(&mut world.theirs, old);
    let proposed = world.proposal(1, &ours, None, None);
    world.theirs = theirs;
    world.send(MessageType::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Stale), "another Hello of theirs");
    assert_eq!(world.hellos, hellos + 1, "a peer whose Hello is unknown gets one");
    assert!(world.take(MessageType::Accept).is_none());
    world.exchange(1);
}

#[test]
fn a_hello_of_an_earlier_instance_changes_nothing() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let first = world.hello.clone();
    world.exchange(1);
    world.session.store(2, Ordering::Relaxed);
    world.say_hello(2, 1);
    world.exchange(1);
    let (second, hellos) = (world.hello.clone(), world.hellos);
    world.session.store(1, Ordering::Relaxed);
    world.send(MessageType::Hello, &first);
    world.session.store(2, Ordering::Relaxed);
    assert_eq!(world.hellos, hellos, "it is not answered");
    let proposed = world.proposal(9, &first, None, None);
    world.send(MessageType::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Stale));
    assert_eq!(world.hello, second);
    world.exchange(2);
}

#[test]
fn proposals_that_replace_each_other_leave_few_opening_keys() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let mut open = Vec::new();
    for epoch in 1..=20 {
        let _ = world.propose(epoch);
        assert!(world.take(MessageType::Accept).is_some(), "{epoch}");
        open.extend(world.opening);
        open.retain(|index| !world.closed.contains(index));
        assert!(open.len() <= 4, "{epoch}: {} pending keys", open.len());
    }
    assert_eq!((open.len(), world.closed.len()), (4, 16));
    let proposed = world.propose(21);
    let right = world.confirmation(proposed);
    world.confirm(21, right);
    assert_eq!((world.sealing, world.older), (1, 1), "the last one can be confirmed");
}

#[test]
fn messages_beyond_a_peers_budget_cost_nothing_and_an_honest_one_comes_again() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    for epoch in 1..=3_000 {
        let _ = world.propose(epoch);
    }
    let answered = world.said.iter().filter(|(kind, ..)| *kind == MessageType::Accept).count();
    assert_eq!(answered, 32, "of 3,000 at once");
    let limited = world.peer.view(world.now).drops.limited;
    assert!(limited > 2_900, "{limited} were dropped and counted");
    world.said.clear();
    // The last one was not acknowledged, so the channel repeats it.
    for _ in 0..10 {
        world.wait(Duration::from_secs(1));
        world.pump();
    }
    assert!(world.take(MessageType::Accept).is_some());
}

#[test]
fn no_peer_makes_this_side_faster_than_it_allows() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let interval = |world: &World| world.peer.view(world.now).rekey_interval;
    assert_eq!(interval(&world), Duration::from_secs(60));
    let mut hello = Hello::parse(&world.hello).unwrap();
    for (counter, millis, least, agreed) in [
        (2, 100, 100, 6_000),
        (3, 30_000, 100, 30_000),
        (4, 100, 20_000, 20_000),
        (5, 120_000, 90_000, 90_000),
    ] {
        (hello.counter, hello.interval_ms, hello.min_interval_ms) = (counter, millis, least);
        world.send(MessageType::Hello, &hello.to_bytes());
        assert_eq!(interval(&world), Duration::from_millis(agreed), "{millis} ms, at least {least} ms");
    }
}

fn offer(world: &mut World, number: u64, ids: &[&str]) {
    let name = |id: &&str| KeyName {
        id: KeyId::new(*id).unwrap(),
        source_kme: "a".to_owned(),
        target_kme: "b".to_owned(),
    };
    let offer = StockOffer { number, keys: ids.iter().map(name).collect() };
    world.send(MessageType::StockOffer, &offer.to_bytes());
}

#[test]
fn keys_end_with_qkd_and_at_their_age_under_each_policy() {
    let stock = |world: &World| world.peer.view(world.now).qkd_stock;
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    offer(&mut world, 1, &["one", "two"]);
    assert_eq!(stock(&world), Some(2));
    world.reload(QkdPolicy::Off);
    world.reload(QkdPolicy::Preferred);
    assert_eq!(stock(&world), Some(0), "erased with the reload to off");

    // The peer ends QKD, or is never heard of again: nothing asks for the keys any more.
    for policy in [Some(QkdPolicy::Off), Some(QkdPolicy::Required), None] {
        let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
        offer(&mut world, 1, &["one", "two"]);
        if let Some(policy) = policy {
            world.policy = policy;
            world.say_hello(1, 2);
        }
        world.wait(Duration::from_secs(3_599));
        assert_eq!(stock(&world), Some(2), "{policy:?}");
        world.wait(Duration::from_secs(1));
        assert_eq!(stock(&world), Some(0), "{policy:?}: after an hour");
    }
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    offer(&mut world, 1, &["one", "two"]);
    let body = Reject { id: world.hello_id, reason: RejectReason::Suite }.to_bytes();
    world.send(MessageType::Reject, &body);
    world.wait(Duration::from_secs(3_600));
    assert_eq!(stock(&world), Some(0), "while the peer refuses us");
}

#[test]
fn no_number_of_an_offer_or_of_its_answer_outlasts_its_session() {
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    let stock = |world: &World| world.peer.view(world.now).qkd_stock;
    offer(&mut world, u64::MAX, &["forged"]);
    offer(&mut world, 7, &["one", "two"]);
    assert_eq!(stock(&world), Some(1), "in this session the forged one counts");
    world.session.store(2, Ordering::Relaxed);
    offer(&mut world, 8, &["one", "two"]);
    assert_eq!(stock(&world), Some(2));
    world.session.store(1, Ordering::Relaxed);
    offer(&mut world, 9, &["late"]);
    assert_eq!(stock(&world), Some(2), "one of an older session is late");

    let mut world = World::new(Role::Initiator, QkdPolicy::Required);
    let id = KeyId::new("one").unwrap();
    let name = KeyName { id: id.clone(), source_kme: "a".to_owned(), target_kme: "b".to_owned() };
    let secret = || SecretBuf::take(&mut [5; 32]);
    let keys = vec![FetchedKey { name, kind: KeyKind::Qkd, secret: secret() }];
    let report = KmsReport::Keys { request: world.requests[0], keys, missing: None };
    world.peer.handle_kms(report, world.now, &mut world.rng);
    world.pump();
    let number = StockOffer::parse(&world.take(MessageType::StockOffer).unwrap()).unwrap().number;
    let answer = |world: &mut World, revision, held| {
        let ack = StockAck { number, revision, keys: vec![(id.clone(), held)] };
        world.send(MessageType::StockAck, &ack.to_bytes());
        world.peer.view(world.now).qkd_stock
    };
    let held = KeyAvailability::Yes(qkd_check(&secret(), &id));
    assert_eq!(answer(&mut world, u64::MAX, KeyAvailability::Pending), Some(0));
    assert_eq!(answer(&mut world, 1, held), Some(0));
    world.session.store(2, Ordering::Relaxed);
    assert_eq!(answer(&mut world, 1, held), Some(1));
}

#[test]
fn a_request_to_the_kme_without_an_answer_ends() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Required);
    assert_eq!(world.requests.len(), 1);
    world.wait(Duration::from_millis(59_999));
    assert_eq!(world.requests.len(), 1);
    world.wait(Duration::from_millis(252));
    assert_eq!(world.requests.len(), 2, "the next one");
    assert!(world.peer.view(world.now).reason.unwrap().contains("within 60 s"));
    // A late answer to the first brings no key; the one to the second does.
    let answer = |request| {
        let name = KeyName {
            id: KeyId::new("late").unwrap(),
            source_kme: "a".to_owned(),
            target_kme: "b".to_owned(),
        };
        let secret = SecretBuf::take(&mut [request; 32]);
        let keys = vec![FetchedKey { name, kind: KeyKind::Qkd, secret }];
        KmsReport::Keys { request: request.into(), keys, missing: None }
    };
    let [first, second] = [world.requests[0], world.requests[1]].map(|n| u8::try_from(n).unwrap());
    for (request, offered) in [(first, 0), (second, 1)] {
        world.said.clear();
        world.peer.handle_kms(answer(request), world.now, &mut world.rng);
        world.pump();
        let offer = world.take(MessageType::StockOffer).map(|body| StockOffer::parse(&body).unwrap());
        assert_eq!(offer.map_or(0, |offer| offer.keys.len()), offered, "request {request}");
    }
}

/// Runs an honest exchange with a side of this role.
fn honest_exchange(world: &mut World, epoch: u64) {
    match world.role {
        Role::Responder => world.exchange(epoch),
        Role::Initiator => drop(world.answer_next()),
    }
}

#[test]
fn no_counter_of_a_hello_outlasts_its_session() {
    for role in [Role::Initiator, Role::Responder] {
        let mut world = World::new(role, QkdPolicy::Off);
        honest_exchange(&mut world, 1);
        world.wait(Duration::from_secs(30));
        let hello = world.hello.clone();
        world.say_hello(1, u64::MAX);
        // The peer still has its own `Hello`, and refuses what names the other one. It repeats its own in the
        // next session, and renews it after that.
        world.hello = hello.clone();
        if let Some((id, _)) = world.take_with_id(MessageType::Propose) {
            world.send(MessageType::Reject, &Reject { id, reason: RejectReason::Stale }.to_bytes());
        }
        world.send(MessageType::Hello, &hello);
        world.said.clear();
        world.session.store(2, Ordering::Relaxed);
        world.send(MessageType::Hello, &hello);
        world.wait(Duration::from_millis(101));
        honest_exchange(&mut world, 2);
        world.said.clear();
        world.say_hello(1, 2);
        honest_exchange(&mut world, 3);
    }
}

#[test]
fn proposals_under_a_hello_that_is_not_in_force_make_a_new_session() {
    // The peer has another `Hello` of ours.
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let refused = |world: &mut World, epoch| {
        world.theirs[20] ^= 1;
        let _ = world.propose(epoch);
        assert_eq!(world.rejected(), Some(RejectReason::Stale));
    };
    for epoch in 1..=3 {
        assert_eq!(world.initiations(), 0, "{epoch}");
        refused(&mut world, epoch);
    }
    assert_eq!(world.initiations(), 1, "the next session carries both Hellos again");
    for epoch in 4..=9 {
        refused(&mut world, epoch);
    }
    assert_eq!(world.initiations(), 1, "once in ten seconds");
    // The peer does not take ours, which it calls stale each time.
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    for attempt in 1..=3 {
        assert_eq!(world.initiations(), 0, "{attempt}");
        let (id, _) = world.take_with_id(MessageType::Propose).unwrap();
        world.send(MessageType::Reject, &Reject { id, reason: RejectReason::Stale }.to_bytes());
        world.wait(Duration::from_secs(1));
    }
    assert_eq!(world.initiations(), 1);
}

#[test]
fn a_hello_alone_ends_no_epoch() {
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    world.wait(Duration::from_secs(120));
    world.exchange(1);
    world.policy = QkdPolicy::Required;
    world.say_hello(1, 2);
    assert_eq!((world.stopped, world.closed.len()), (0, 0));
    assert_eq!(world.peer.view(world.now).epoch, Some(EpochNumber(1)));
    let _ = world.propose(2);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "and from now on none without QKD is made");
}

#[test]
fn a_refusal_that_is_not_repeated_ends_with_its_session() {
    for role in [Role::Initiator, Role::Responder] {
        let refuse = |world: &mut World| {
            let body = Reject { id: world.hello_id, reason: RejectReason::Suite }.to_bytes();
            world.send(MessageType::Reject, &body);
        };
        let state = |world: &World| world.peer.view(world.now).state;
        let mut world = World::new(role, QkdPolicy::Off);
        refuse(&mut world);
        assert_eq!(state(&world), PeerState::Blocked);
        world.wait(Duration::from_secs(10));
        assert_eq!(state(&world), PeerState::Blocked, "in one session it holds");
        for repeated in [true, false] {
            world.session.fetch_add(1, Ordering::Relaxed);
            let hello = world.hello.clone();
            world.said.clear();
            world.send(MessageType::Hello, &hello);
            if repeated {
                refuse(&mut world);
            }
            world.wait(Duration::from_secs(1));
            let expected = if repeated { PeerState::Blocked } else { PeerState::Connecting };
            assert_eq!(state(&world), expected, "{role:?}, repeated: {repeated}");
        }
        honest_exchange(&mut world, 1);
    }
}

#[test]
fn a_responder_keeps_to_its_policy() {
    let mut world = World::new(Role::Responder, QkdPolicy::Required);
    let _ = world.propose(1);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "required, and no QKD key");
    // Under `preferred`, an epoch does without a QKD key only after two intervals without one.
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    let _ = world.propose(1);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "preferred, too early");
    world.wait(Duration::from_nanos(119_999_999_999));
    let _ = world.propose(2);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "preferred, a moment too early");
    world.wait(Duration::from_nanos(1));
    world.exchange(3);
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let hello = world.hello.clone();
    let proposed = world.proposal(1, &hello, Some("key"), None);
    world.send(MessageType::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "off, and a QKD key");
    let proposed = world.proposal(2, &hello, None, Some([7; 16]));
    world.send(MessageType::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Chain), "a chain that nobody has");
    world.exchange(3);
    assert_eq!(world.peer.view(world.now).drops.refused, 2, "each is counted");
}

#[test]
fn a_key_is_spoilt_by_two_attempts_that_wrong_confirmations_ended() {
    let mut world = World::new(Role::Responder, QkdPolicy::Required);
    let name = |id: &str| KeyName {
        id: KeyId::new(id).unwrap(),
        source_kme: "a".to_owned(),
        target_kme: "b".to_owned(),
    };
    let offer = StockOffer { number: 1, keys: vec![name("one"), name("two")] };
    world.send(MessageType::StockOffer, &offer.to_bytes());
    let hello = world.hello.clone();
    for epoch in 1..=2 {
        let proposed = world.proposal(epoch, &hello, Some("one"), None);
        world.send(MessageType::Propose, proposed.bytes());
        assert!(world.take(MessageType::Accept).is_some(), "attempt {epoch}: {:?}", world.rejected());
        for _ in 0..4 {
            world.confirm(epoch, [7; 48]);
        }
    }
    let proposed = world.proposal(3, &hello, Some("one"), None);
    world.send(MessageType::Propose, proposed.bytes());
    assert!(world.rejected().is_some(), "nobody gets a third try at a key");
    assert!(world.take(MessageType::Accept).is_none());
    let proposed = world.proposal(4, &hello, Some("two"), None);
    world.send(MessageType::Propose, proposed.bytes());
    assert!(world.take(MessageType::Accept).is_some(), "and the others are as good as before");
}

#[test]
fn no_message_ends_an_epoch() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.exchange(1);
    let accept = world.propose(2);
    let _ = world.take(MessageType::Accept);
    for kind in (0..=255).filter_map(MessageType::from_byte).filter(|kind| *kind != MessageType::Hello) {
        for body in [&[][..], &[0], &[0; 48], &[0xff; 60], accept.bytes()] {
            world.send(kind, body);
        }
    }
    for reason in (0..=255).filter_map(RejectReason::from_byte) {
        world.send(MessageType::Reject, &Reject { id: [0; 8], reason }.to_bytes());
    }
    assert_eq!(world.peer.view(world.now).epoch, Some(EpochNumber(1)));
    assert_eq!(world.stopped, 0, "no lane got an order to stop or to close");
    world.exchange(3);
}

#[test]
fn a_responder_refuses_unusable_public_values() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    type Change = fn(&mut Propose);
    let cases: [(&str, Change); 6] = [
        ("X25519 key zero", |p| p.x25519 = [0; 32]),
        ("X25519 key one", |p| p.x25519 = [[1u8].as_slice(), &[0; 31]].concat().try_into().unwrap()),
        ("ML-KEM key not reduced", |p| p.encapsulation_key.fill(0xff)),
        ("the responder's static ML-KEM key", |p| *p.encapsulation_key = *honest().encapsulation_key()),
        ("the initiator's static ML-KEM key", |p| *p.encapsulation_key = *other().encapsulation_key()),
        ("an index for a lane that was not agreed", |p| p.indices.push(1 << 31 | 99)),
    ];
    for (epoch, (what, change)) in (1..).zip(cases) {
        let hello = world.hello.clone();
        let proposed = world.proposal(epoch, &hello, None, None);
        let mut message = Propose::parse(proposed.bytes()).unwrap();
        change(&mut message);
        world.send(MessageType::Propose, &message.to_bytes());
        assert_eq!(world.rejected(), Some(RejectReason::Malformed), "{what}");
        assert!(world.take(MessageType::Accept).is_none(), "{what}");
    }
    world.exchange(9);
}

#[test]
fn the_loss_of_a_chain_is_reported_once() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let state = |world: &World| world.peer.view(world.now).state;
    world.exchange(1);
    world.exchange_with_chain(2);
    assert_eq!(world.resets, 0, "the first has none to lose, the second names it");
    assert_eq!(state(&world), PeerState::Up);
    world.exchange(3);
    assert_eq!((world.resets, state(&world)), (1, PeerState::Degraded), "neither end restarted");
    world.exchange_with_chain(4);
    assert_eq!((world.resets, state(&world)), (1, PeerState::Up));
}

#[test]
fn a_confirmation_is_answered_and_older_keys_drain() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let proposed = world.propose(1);
    let right = world.confirmation(proposed);
    assert_eq!((world.empties, world.older), (0, 0));
    world.confirm(1, right);
    assert_eq!((world.empties, world.older), (1, 1));
    // The initiator repeats the `Confirm`, since our reply was lost.
    world.confirm(1, right);
    assert_eq!((world.empties, world.older), (2, 1));
    world.confirm(2, right);
    assert_eq!((world.empties, world.older), (2, 1), "of no attempt");
    assert_eq!(world.sealing, 1);
}

#[test]
fn a_confirmation_that_comes_too_late_brings_a_chain_and_no_epoch() {
    let late = |wait: Duration| {
        let mut world = World::new(Role::Responder, QkdPolicy::Off);
        let proposed = world.propose(1);
        let right = world.confirmation(proposed);
        world.wait(wait);
        world.confirm(1, right);
        world.keep_chain();
        world
    };
    assert_eq!(late(Duration::from_nanos(179_999_999_999)).sealing, 1);
    let mut world = late(Duration::from_secs(180));
    assert_eq!(world.sealing, 0, "three intervals after the Propose");
    world.exchange_with_chain(2);
    assert_eq!(world.resets, 0, "both sides hold its chain");
}

#[test]
fn keys_of_an_attempt_end_when_the_initiator_restarts() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let proposed = world.propose(1);
    let right = world.confirmation(proposed);
    let index = world.opening.expect("an opening key was installed");
    world.session.store(2, Ordering::Relaxed);
    world.say_hello(2, 1);
    assert_eq!(world.closed, [index]);
    world.confirm(1, right);
    assert_eq!(world.sealing, 0);
    world.exchange(1);
    assert_ne!(world.opening, Some(index), "no receiver index comes twice");
}

#[test]
fn a_responder_asks_for_an_epoch_while_it_has_none() {
    let asked = |world: &mut World, of: RekeyReason| {
        let before = world.said.len();
        world.said.retain(|(kind, _, body)| *kind != MessageType::Rekey || body[..] != of.to_bytes());
        before - world.said.len()
    };
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.wait(Duration::from_millis(1999));
    assert_eq!(asked(&mut world, RekeyReason::NoEpoch), 0);
    world.wait(Duration::from_millis(1));
    assert_eq!(asked(&mut world, RekeyReason::NoEpoch), 1, "after two seconds");
    world.exchange(1);
    world.wait(Duration::from_secs(179));
    assert_eq!(asked(&mut world, RekeyReason::NoEpoch), 0, "nothing is lacking");
    world.wait(Duration::from_secs(4));
    assert_eq!(asked(&mut world, RekeyReason::NoEpoch), 1, "it ended");
    world.exchange(2);
    // A lane ends its key early.
    world.report(LaneReport::SealingEnded { lane: 0, local_epoch: LocalEpoch(world.local_epoch.0 - 1) });
    assert_eq!(asked(&mut world, RekeyReason::KeyEnded), 0, "an older one");
    world.report(LaneReport::SealingEnded { lane: 0, local_epoch: world.local_epoch });
    assert_eq!(asked(&mut world, RekeyReason::KeyEnded), 1);
    world.report(LaneReport::SealingEnded { lane: 0, local_epoch: world.local_epoch });
    assert_eq!(asked(&mut world, RekeyReason::KeyEnded), 0, "once");
}

#[test]
fn the_first_packet_of_an_epoch_confirms_it() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.exchange(1);
    let _ = world.propose(2);
    assert!(world.take(MessageType::Accept).is_some());
    let local_epoch = world.local_epoch.next();
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch: LocalEpoch(local_epoch.0 - 1) });
    assert_eq!(world.sealing, 1, "a packet of the epoch before");
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch });
    assert_eq!((world.sealing, world.local_epoch), (2, local_epoch));
}

#[test]
fn a_refusal_of_our_hello_is_reported_once_and_holds_until_the_peer_changes_its_hello() {
    let reasons = [
        (RejectReason::Version, "install the same release"),
        (RejectReason::Policy, "qkd"),
        (RejectReason::Suite, "suite"),
        (RejectReason::Identity, "pubkey"),
        (RejectReason::Role, "role"),
        (RejectReason::SaeId, "sae_id"),
        (RejectReason::Psk, "preshared_key_file"),
        (RejectReason::Malformed, "malformed"),
    ];
    for role in [Role::Initiator, Role::Responder] {
        for (reason, word) in reasons {
            let mut world = World::new(role, QkdPolicy::Off);
            world.notices.clear();
            let of_ours = Reject { id: world.hello_id, reason }.to_bytes();
            world.send(MessageType::Reject, &of_ours);
            world.send(MessageType::Reject, &of_ours);
            let count =
                |wanted: &dyn Fn(&PeerEvent) -> bool| world.notices.iter().filter(|n| wanted(n)).count();
            let refused = |n: &PeerEvent| {
                matches!(n, PeerEvent::Refused { by_us: false, reason: told, detail }
                    if *told == reason && detail.contains(word))
            };
            assert_eq!(count(&refused), 1, "{reason:?}: {:?}", world.notices);
            let identity = count(&|n| matches!(n, PeerEvent::IdentityMismatch { .. }));
            assert_eq!(identity, usize::from(reason == RejectReason::Identity), "{reason:?}");
            let view = world.peer.view(world.now);
            assert_eq!(view.state, PeerState::Blocked);
            assert!(view.reason.unwrap().contains(word));
            // No epoch is proposed, and none is accepted.
            world.said.clear();
            world.wait(Duration::from_secs(60));
            assert!(world.take(MessageType::Propose).is_none(), "{reason:?}");
            if role == Role::Responder {
                let _ = world.propose(1);
                assert_eq!(world.rejected(), Some(RejectReason::Policy), "{reason:?}");
            }
            world.say_hello(1, 2);
            match role {
                Role::Responder => world.exchange(2),
                Role::Initiator => drop(world.answer_next()),
            }
        }
    }
}

#[test]
fn show_tells_what_an_epoch_is_made_of() {
    let seconds = |n| Some(Duration::from_secs(n));
    let mut world = World::new(Role::Responder, QkdPolicy::Required);
    let name = |id: &str| KeyName {
        id: KeyId::new(id).unwrap(),
        source_kme: "a".to_owned(),
        target_kme: "b".to_owned(),
    };
    let offer = StockOffer { number: 1, keys: vec![name("one"), name("two"), name("red")] };
    world.send(MessageType::StockOffer, &offer.to_bytes());
    let view = world.peer.view(world.now);
    assert_eq!((view.qkd_stock, view.file_stock, view.qkd_key_age), (Some(3), Some(0), None));
    assert_eq!(view.next_rekey_in_ms, None);
    let hello = world.hello.clone();
    let proposed = world.proposal(4, &hello, Some("two"), None);
    world.send(MessageType::Propose, proposed.bytes());
    // Its first data packet confirms the epoch.
    world.report(LaneReport::FirstOpened { lane: 0, local_epoch: LocalEpoch(1) });
    world.wait(Duration::from_secs(10));
    let view = world.peer.view(world.now);
    assert_eq!((view.state, view.reason, view.epoch), (PeerState::Up, None, Some(EpochNumber(4))));
    let sources = view.sources.unwrap();
    assert_eq!((sources.qkd, sources.file, sources.psk, sources.chain), (true, false, false, false));
    assert_eq!((view.qkd_key_id.as_ref().map(KeyId::as_str), view.qkd_key_age), (Some("two"), seconds(10)));
    assert_eq!((view.qkd_stock, view.next_rekey_in_ms), (Some(2), Some(50_000)), "a key is used once");
    let proposed = world.proposal(5, &hello, Some("two"), None);
    world.send(MessageType::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::UnknownKeyId));
}

#[test]
fn an_offer_that_is_none_is_counted() {
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    for count in 1..=3 {
        world.send(MessageType::StockOffer, &[0xff]);
        assert_eq!(world.peer.view(world.now).drops.malformed, count);
    }
}

#[test]
fn show_says_that_the_other_site_offers_or_proposes_nothing() {
    let reason = |world: &World| world.peer.view(world.now).reason.unwrap_or_default();
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    let offer = StockOffer { number: 1, keys: Vec::new() };
    world.send(MessageType::StockOffer, &offer.to_bytes());
    assert!(reason(&world).contains("the other site offers no QKD key"), "{}", reason(&world));
    // With QKD off, no key is missing.
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.send(MessageType::StockOffer, &offer.to_bytes());
    assert!(reason(&world).contains("waiting for the first epoch"), "{}", reason(&world));
    let proposed = world.propose(1);
    let confirmation = world.confirmation(proposed);
    world.confirm(1, confirmation);
    assert_eq!((world.sealing, reason(&world).as_str()), (1, ""));
    world.wait(Duration::from_secs(200));
    assert!(reason(&world).contains("the other site proposes no epoch"), "{}", reason(&world));
}

#[test]
fn a_reload_may_exchange_the_roles() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    world.answer_next();
    world.role = Role::Responder;
    world.reload(QkdPolicy::Off);
    world.say_hello(1, 2);
    world.exchange(9);
    assert_eq!(world.peer.view(world.now).epoch, Some(EpochNumber(9)));
}

#[test]
fn a_stop_says_goodbye_and_seals_no_more() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.exchange(1);
    world.peer.shut_down(world.now, &mut world.rng);
    world.pump();
    assert!(world.take(MessageType::Bye).is_some());
    assert_eq!((world.stopped, world.peer.view(world.now).epoch), (1, None));
}

#[test]
fn a_packet_of_the_session_that_is_no_message_is_counted() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    for count in 1..=3 {
        world.packet(&[0x60; 64]);
        assert_eq!(world.peer.view(world.now).drops.malformed, 3 * count - 2);
        // `Lanes` and `Reject` messages with an empty body are malformed too.
        world.send(MessageType::Lanes, &[]);
        assert_eq!(world.peer.view(world.now).drops.malformed, 3 * count - 1);
        world.send(MessageType::Reject, &[]);
        assert_eq!(world.peer.view(world.now).drops.malformed, 3 * count);
    }
}
