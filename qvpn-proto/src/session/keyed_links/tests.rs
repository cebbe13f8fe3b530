use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::*;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn identity(seed: u64) -> Arc<SecretIdentity> {
    Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)))
}

/// A peer with the keys of these seeds.
fn links(own: u64, remotes: &[u64], number: u16) -> KeyedLinks {
    let key = |seed: &u64| *identity(*seed).public();
    KeyedLinks::new(identity(own), key(&remotes[0]), remotes.get(1).map(key), PeerNumber(number))
}

fn set_keys(links: &mut KeyedLinks, own: u64, remotes: &[u64]) {
    let remotes: Vec<_> = remotes.iter().map(|seed| *identity(*seed).public()).collect();
    links.set_keys(&identity(own), &remotes);
}

/// The seeds of the keys in use.
fn in_use(links: &KeyedLinks) -> (u64, u64) {
    let keys = links.keys().unwrap();
    let seed = |key: &PublicIdentity| (1..9).find(|seed| identity(*seed).public() == key).unwrap();
    (seed(keys.local.public()), seed(&keys.remote))
}

/// Carries datagrams between both sites until there are none. Returns what each received.
fn carry(ends: [&mut KeyedLinks; 2], sent: [Vec<Vec<u8>>; 2]) -> [Vec<LinkOutput>; 2] {
    let mut outputs = [Vec::new(), Vec::new()];
    let mut under_way: Vec<(usize, Vec<u8>)> = Vec::new();
    for (to, datagrams) in [1, 0].into_iter().zip(sent) {
        under_way.extend(datagrams.into_iter().map(|datagram| (to, datagram)));
    }
    while !under_way.is_empty() {
        let (to, datagram) = under_way.remove(0);
        let mut output = ends[to].receive(FROM, &datagram);
        under_way.extend(std::mem::take(&mut output.datagrams).into_iter().map(|sent| (1 - to, sent)));
        outputs[to].push(output);
    }
    outputs
}

/// Both sites, with a session.
fn up(a: &[u64], b: &[u64]) -> [KeyedLinks; 2] {
    let [mut first, mut second] = [links(a[0], b, 1), links(b[0], a, 2)];
    let start = first.start().into_iter().collect();
    carry([&mut first, &mut second], [start, Vec::new()]);
    assert!(first.session_age().is_some() && second.session_age().is_some());
    [first, second]
}

/// Whether a message arrives in both directions.
fn works(a: &mut KeyedLinks, b: &mut KeyedLinks) -> bool {
    let mut message = vec![0x60; 1];
    message.extend([0, 0, 0, 0, 14, 253, 1]);
    message.resize(40 + 14, 0);
    let arrives = |from: &mut KeyedLinks, to: &mut KeyedLinks| {
        let Some(datagram) = from.send(&message) else { return false };
        !to.receive(FROM, &datagram).packets.is_empty()
    };
    arrives(a, b) && arrives(b, a)
}

#[test]
fn a_new_key_of_ours_comes_into_use_when_the_peer_answers_it_and_the_former_is_erased() {
    let [mut a, mut b] = up(&[1], &[2]);
    set_keys(&mut b, 2, &[1, 3]);
    set_keys(&mut a, 3, &[2]);
    assert!(a.holds_former_key() && in_use(&a) == (1, 2) && works(&mut a, &mut b));
    let calls = a.start_others();
    assert_eq!(calls.len(), 1);
    let [at_a, at_b] = carry([&mut a, &mut b], [calls, Vec::new()]);
    assert!(at_a[0].switched && at_a[0].new_session && at_a[0].answered);
    assert!(!at_b[0].switched && at_b[1].switched && at_b[1].new_session, "the initiation proves nothing");
    assert!(at_b[1].session > 1, "sessions of all links are numbered together");
    assert_eq!((in_use(&a), in_use(&b)), ((3, 2), (2, 3)));
    assert!(!a.holds_former_key() && works(&mut a, &mut b));
    set_keys(&mut b, 2, &[3]);
    assert!(works(&mut a, &mut b), "the other one may go now");
}

#[test]
fn the_peer_calls_with_all_keys_and_finds_the_one_that_is_held() {
    let [mut a, mut b] = [links(3, &[2], 1), links(2, &[1, 3], 2)];
    let calls: Vec<_> = b.start().into_iter().chain(b.start_others()).collect();
    assert_eq!(calls.len(), 2);
    carry([&mut a, &mut b], [Vec::new(), calls]);
    assert_eq!(in_use(&b), (2, 3));
    assert!(works(&mut a, &mut b));
}

#[test]
fn a_peer_that_does_not_know_our_new_key_keeps_the_session_until_the_former_one_is_dropped() {
    let [mut a, mut b] = up(&[1], &[2]);
    set_keys(&mut a, 3, &[2]);
    let calls = a.start_others();
    let [_, at_b] = carry([&mut a, &mut b], [calls, Vec::new()]);
    assert!(at_b.iter().all(|output| output.dropped));
    assert!(works(&mut a, &mut b));
    a.drop_former_key();
    assert!(!a.holds_former_key() && in_use(&a) == (3, 2) && a.session_age().is_none());
    set_keys(&mut b, 2, &[1, 3]);
    let start = a.start().into_iter().collect();
    carry([&mut a, &mut b], [start, Vec::new()]);
    assert!(works(&mut a, &mut b));
}

#[test]
fn recorded_and_late_messages_of_the_former_key_start_nothing() {
    let [mut a, mut b] = up(&[1], &[2]);
    set_keys(&mut b, 2, &[1, 3]);
    let recorded: Vec<_> = (0..3).filter_map(|_| a.start()).collect();
    let late_packet = a.send(&[0x60; 60]).unwrap();
    // The peer's own call to the former key, whose response is late.
    let call = b.start().unwrap();
    let late_response = a.receive(FROM, &call).datagrams.remove(0);
    b.receive(FROM, &recorded[2]);
    set_keys(&mut a, 3, &[2]);
    let calls = a.start_others();
    carry([&mut a, &mut b], [calls, Vec::new()]);
    assert_eq!(in_use(&b), (2, 3));
    for datagram in recorded.iter().chain([&late_packet, &late_response]) {
        let output = b.receive(FROM, datagram);
        assert!(output.dropped && !output.switched && output.datagrams.is_empty(), "{output:?}");
        assert!(!output.stale_start, "and nothing is called back");
    }
    assert!(in_use(&b) == (2, 3) && works(&mut a, &mut b));
}

#[test]
fn a_new_initiation_of_the_former_key_brings_it_back_only_with_a_packet() {
    let [mut a, mut b] = up(&[1], &[2]);
    set_keys(&mut b, 2, &[1, 3]);
    let delayed = a.start().unwrap();
    set_keys(&mut a, 3, &[2]);
    let calls = a.start_others();
    carry([&mut a, &mut b], [calls, Vec::new()]);
    let response = b.receive(FROM, &delayed);
    assert!(!response.dropped && in_use(&b) == (2, 3));
    assert!(a.receive(FROM, &response.datagrams[0]).dropped, "its key is erased");
    assert!(works(&mut a, &mut b));
    // Going back to the former key is another change.
    set_keys(&mut a, 1, &[2]);
    let calls = a.start_others();
    carry([&mut a, &mut b], [calls, Vec::new()]);
    assert_eq!((in_use(&a), in_use(&b)), ((1, 2), (2, 1)));
    assert!(works(&mut a, &mut b));
}

#[test]
fn a_change_that_is_taken_back_in_time_changes_nothing() {
    let [mut a, mut b] = up(&[1], &[2]);
    set_keys(&mut a, 3, &[2]);
    set_keys(&mut a, 1, &[2]);
    assert!(!a.holds_former_key() && a.others.is_empty() && works(&mut a, &mut b));
    // A third key before the second was answered.
    set_keys(&mut a, 3, &[2]);
    set_keys(&mut a, 4, &[2]);
    assert_eq!((in_use(&a), a.others.len()), ((1, 2), 1));
    set_keys(&mut b, 2, &[1, 4]);
    let calls = a.start_others();
    carry([&mut a, &mut b], [calls, Vec::new()]);
    assert!(in_use(&a) == (4, 2) && works(&mut a, &mut b));
}

#[test]
fn both_sites_change_their_keys_at_once() {
    for order in 0..3 {
        let [mut a, mut b] = up(&[1], &[2]);
        set_keys(&mut a, 1, &[2, 4]);
        set_keys(&mut b, 2, &[1, 3]);
        set_keys(&mut a, 3, &[2, 4]);
        set_keys(&mut b, 4, &[1, 3]);
        let (mut from_a, mut from_b) = (a.start_others(), b.start_others());
        assert_eq!((from_a.len(), from_b.len()), (2, 2));
        if order > 0 {
            from_a.rotate_left(1);
        }
        if order > 1 {
            from_b.rotate_left(1);
        }
        carry([&mut a, &mut b], [from_a, from_b]);
        // The calls go on until an epoch is made.
        let again = [a.start_others(), b.start_others()];
        carry([&mut a, &mut b], again);
        assert_eq!((in_use(&a), in_use(&b)), ((3, 4), (4, 3)), "order {order}");
        assert!(works(&mut a, &mut b), "order {order}");
    }
}

#[test]
fn indices_of_a_peers_links_differ_and_name_the_peer() {
    let mut a = links(1, &[2, 3], 300);
    let mut slots = Vec::new();
    for datagram in a.start().into_iter().chain(a.start_others()) {
        let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
        assert_eq!(super::super::peer_of_control_index(index), Some(PeerNumber(300)));
        slots.push(slot_of_control_index(index));
    }
    assert_eq!(slots, [0, 1]);
    // Slots are used again as late as possible.
    for round in 0..300 {
        set_keys(&mut a, 1, &[2, 4 + round % 2]);
        let start = a.start_others().remove(0);
        let index = u32::from_le_bytes(start[4..8].try_into().unwrap());
        assert!(index >> 31 == 0 && slot_of_control_index(index) != 0, "{round}");
    }
}
