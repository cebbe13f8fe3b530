//! The control session on boringtun: two real sessions behind their demuxes.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use qvpn_identity::SecretIdentity;
use qvpn_proto::session::{Admission, DatagramClass, Demux, peer_of_control_index};
use qvpn_proto::session::{ControlLink, WireGuardLink};
use qvpn_proto::wire::limits::{MAX_PEERS, MAX_PROBE};
use qvpn_types::{PeerNumber, Time};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

fn identity(seed: u64) -> Arc<SecretIdentity> {
    Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)))
}

struct End {
    number: PeerNumber,
    demux: Demux,
    link: WireGuardLink,
    address: SocketAddr,
}

impl End {
    fn classify(&self, datagram: &[u8], from: SocketAddr) -> DatagramClass {
        classify(&self.demux, datagram, from)
    }

    fn admit(&self, datagram: &[u8], from: SocketAddr) -> Admission {
        self.demux.limiter().admit(datagram, from, Time::default(), || false)
    }

    /// Sends the initiations of two seconds, which puts the limiter under load.
    fn flood(&self, other: &mut End) {
        for _ in 0..120 {
            let start = other.link.start().unwrap();
            self.admit(&start, ([198, 51, 100, 1], 1).into());
        }
    }
}

fn classify(demux: &Demux, datagram: &[u8], from: SocketAddr) -> DatagramClass {
    demux.classify(datagram, from, Time::default(), &mut ChaCha20Rng::seed_from_u64(9))
}

fn demux(own: &Arc<SecretIdentity>) -> Demux {
    Demux::new(own.clone(), 1, &mut ChaCha20Rng::seed_from_u64(8))
}

fn pair() -> (End, End) {
    let (a, b) = (identity(1), identity(2));
    let end = |own: &Arc<SecretIdentity>, other: &SecretIdentity, number: PeerNumber, last: u8| {
        let demux = demux(own);
        let link = WireGuardLink::new(own.clone(), other.public(), number);
        End { number, demux, link, address: ([192, 0, 2, last], 51820).into() }
    };
    (end(&a, &b, PeerNumber(7), 1), end(&b, &a, PeerNumber(300), 2))
}

fn handshake(a: &mut End, b: &mut End, key_of_a: &[u8; 32]) {
    let start = a.link.start().unwrap();
    assert_eq!(b.classify(&start, a.address), DatagramClass::Handshake { x25519: *key_of_a });
    let out = b.link.receive(a.address.ip(), &start);
    assert!(!out.authenticated && !out.new_session, "a start alone proves nothing");
    assert_eq!(a.classify(&out.datagrams[0], b.address), DatagramClass::Peer(a.number));
    let out = a.link.receive(b.address.ip(), &out.datagrams[0]);
    assert!(out.authenticated && out.new_session);
    assert_eq!(b.classify(&out.datagrams[0], a.address), DatagramClass::Peer(b.number));
    let out = b.link.receive(a.address.ip(), &out.datagrams[0]);
    assert!(out.authenticated && out.new_session);
}

/// Returns a packet in the form that the channel makes.
fn packet() -> Vec<u8> {
    qvpn_proto::wire::fragment::packets([9; 8], qvpn_proto::wire::MessageType::Hello, &[5; 3000]).remove(0)
}

#[test]
fn a_session_carries_full_packets_both_ways_and_survives_a_restart() {
    let (mut a, mut b) = pair();
    let key_of_a = *identity(1).public().x25519();
    assert!(a.link.send(&packet()).is_none(), "nothing goes out without a session");
    handshake(&mut a, &mut b, &key_of_a);
    let datagram = a.link.send(&packet()).unwrap();
    assert_eq!(datagram.len(), 1232);
    assert_eq!(b.link.receive(a.address.ip(), &datagram).packets, [packet()]);
    assert!(!b.link.receive(a.address.ip(), &datagram).authenticated, "a repetition proves nothing");
    let datagram = b.link.send(&packet()).unwrap();
    assert_eq!(a.link.receive(b.address.ip(), &datagram).packets, [packet()]);
    a.link.reset();
    assert!(a.link.session_age().is_none());
    handshake(&mut a, &mut b, &key_of_a);
    let datagram = b.link.send(&packet()).unwrap();
    assert_eq!(a.link.receive(b.address.ip(), &datagram).packets, [packet()]);
}

#[test]
fn a_packet_says_which_session_it_came_in_and_later_ones_have_higher_numbers() {
    let (mut a, mut b) = pair();
    let key_of_a = *identity(1).public().x25519();
    handshake(&mut a, &mut b, &key_of_a);
    let held_back = a.link.send(&packet()).unwrap();
    let second = |b: &mut End| (0..4).for_each(|_| drop(b.link.tick()));
    second(&mut b);
    // `a` restarts: a new instance begins with a handshake.
    a.link.reset();
    handshake(&mut a, &mut b, &key_of_a);
    let of_now = a.link.send(&packet()).unwrap();
    let of_now = b.link.receive(a.address.ip(), &of_now);
    let late = b.link.receive(a.address.ip(), &held_back);
    assert_eq!((of_now.packets.len(), late.packets.len()), (1, 1));
    assert!(late.session > 0 && late.session < of_now.session, "{} {}", late.session, of_now.session);
    // Session numbers continue to rise where the receiver reset its sessions, and where it initiates the
    // handshake itself.
    second(&mut b);
    b.link.reset();
    handshake(&mut b, &mut a, identity(2).public().x25519());
    let datagram = a.link.send(&packet()).unwrap();
    assert!(b.link.receive(a.address.ip(), &datagram).session > of_now.session);
}

/// Packets of an earlier session do not bring our response's session into use.
#[test]
fn a_new_session_is_in_use_once_the_peer_speaks_in_it() {
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, identity(1).public().x25519());
    let of_old = a.link.send(&packet()).unwrap();
    let start = a.link.start().unwrap();
    b.link.receive(a.address.ip(), &start);
    let out = b.link.receive(a.address.ip(), &of_old);
    assert!(out.authenticated && !out.new_session);
}

/// Nothing is sent in a session before the peer has sent something, however often an old initiation is
/// replayed.
#[test]
fn starts_alone_make_no_session() {
    let (mut a, mut b) = pair();
    for _ in 0..16 {
        let start = a.link.start().unwrap();
        assert!(!b.link.receive(a.address.ip(), &start).datagrams.is_empty());
        assert!(b.link.session_age().is_none() && b.link.send(&packet()).is_none());
    }
}

/// An attacker who replays an old initiation gets nothing, also after a reset.
#[test]
fn a_replayed_initiation_starts_nothing_also_after_a_reset() {
    let (mut a, mut b) = pair();
    let old = a.link.start().unwrap();
    b.link.receive(a.address.ip(), &old);
    handshake(&mut a, &mut b, identity(1).public().x25519());
    assert!(b.link.receive(a.address.ip(), &old).stale_start);
    b.link.reset();
    let stranger = SocketAddr::from(([198, 51, 100, 66], 666));
    assert!(matches!(b.classify(&old, stranger), DatagramClass::Handshake { .. }));
    let out = b.link.receive(stranger.ip(), &old);
    assert!(out.stale_start && out.datagrams.is_empty(), "the reset forgot no time");
    assert!(!out.authenticated && !out.new_session && b.link.send(&packet()).is_none());
    handshake(&mut a, &mut b, identity(1).public().x25519());
    let datagram = b.link.send(&packet()).unwrap();
    assert_eq!(a.link.receive(b.address.ip(), &datagram).packets, [packet()]);
}

/// boringtun keeps eight sessions, and an initiation makes one that nobody uses yet.
#[test]
fn recorded_starts_do_not_deafen_a_live_session() {
    let (mut a, mut b) = pair();
    let old: Vec<_> = (0..20).map(|_| a.link.start().unwrap()).collect();
    handshake(&mut a, &mut b, identity(1).public().x25519());
    let of_session = |a: &mut End, b: &mut End| {
        let datagram = a.link.send(&packet()).unwrap();
        let out = b.link.receive(a.address.ip(), &datagram);
        assert_eq!(out.packets, [packet()], "the live session goes on");
        let datagram = b.link.send(&packet()).unwrap();
        assert_eq!(a.link.receive(b.address.ip(), &datagram).packets, [packet()]);
        out.session
    };
    let number = of_session(&mut a, &mut b);
    for start in old {
        let out = b.link.receive(a.address.ip(), &start);
        assert!(out.stale_start && out.datagrams.is_empty());
    }
    // Initiations that never arrived are still fresh.
    let fresh: Vec<_> = (0..20).map(|_| a.link.start().unwrap()).collect();
    let answers = fresh.iter().filter(|start| !b.link.receive(a.address.ip(), start).datagrams.is_empty());
    assert_eq!(answers.count(), 7, "as many as there is room for");
    assert_eq!(of_session(&mut a, &mut b), number);
    // In that case only our own handshake helps.
    let start = a.link.start().unwrap();
    assert!(b.link.receive(a.address.ip(), &start).displacing_start);
    (0..4).for_each(|_| drop(b.link.tick()));
    handshake(&mut b, &mut a, identity(2).public().x25519());
    assert!(of_session(&mut a, &mut b) > number);
    handshake(&mut a, &mut b, identity(1).public().x25519());
}

/// The response to a fresh initiation is used although a recorded one came after it.
#[test]
fn a_session_comes_into_use_after_later_starts() {
    let (mut a, mut b) = pair();
    let start = a.link.start().unwrap();
    let answer = b.link.receive(a.address.ip(), &start).datagrams.remove(0);
    let confirmation = a.link.receive(b.address.ip(), &answer).datagrams.remove(0);
    let later = a.link.start().unwrap();
    assert_eq!(b.link.receive(a.address.ip(), &later).datagrams.len(), 1);
    let out = b.link.receive(a.address.ip(), &confirmation);
    assert!(out.authenticated && out.new_session && b.link.session_age().is_some());
}

#[test]
fn datagrams_for_nobody_are_dropped_and_counted() {
    let (mut a, b) = pair();
    let start = a.link.start().unwrap();
    let stranger = demux(&identity(3));
    assert_eq!(b.admit(&start, a.address), Admission::Admitted);
    let admission = stranger.limiter().admit(&start, a.address, Time::default(), || false);
    assert_eq!(admission, Admission::Malformed, "made for another key");
    assert_eq!(classify(&stranger, &start, a.address), DatagramClass::Malformed);
    for junk in [&[][..], &[1], &[4, 0, 0, 0], &[0xff; 148], &[1; 148], &[4; 31]] {
        assert_eq!(b.classify(junk, a.address), DatagramClass::Malformed);
    }
    let mut forged = start.clone();
    forged[140] ^= 1; // mac2, which is unused without load
    assert!(matches!(b.classify(&forged, a.address), DatagramClass::Handshake { .. }));
    forged[120] ^= 1; // mac1
    assert_eq!(b.classify(&forged, a.address), DatagramClass::Malformed);
    assert_eq!(b.admit(&forged, a.address), Admission::Malformed);
}

#[test]
fn a_flood_of_starts_is_answered_by_cookies() {
    let (mut a, mut b) = pair();
    let start = a.link.start().unwrap();
    assert!(matches!(b.classify(&start, a.address), DatagramClass::Handshake { .. }));
    b.flood(&mut a);
    assert!(matches!(b.classify(&start, a.address), DatagramClass::Reply(_)));
    // A flood of responses also puts the limiter under load; they are counted separately.
    let answer = b.link.receive(a.address.ip(), &start).datagrams.remove(0);
    a.flood(&mut b);
    assert_eq!(a.classify(&answer, b.address), DatagramClass::Peer(a.number));
    for _ in 0..120 {
        a.admit(&answer, b.address);
    }
    let DatagramClass::Reply(cookie) = a.classify(&answer, b.address) else { panic!("no cookie under load") };
    assert!(cookie.len() < answer.len());
}

/// Under load, a cookie admits its holder from the address that it was sent to, and from no other.
#[test]
fn a_cookie_is_good_for_one_address() {
    let (mut a, b) = pair();
    b.flood(&mut a);
    let start = a.link.start().unwrap();
    let DatagramClass::Reply(cookie) = b.classify(&start, a.address) else { panic!("no cookie under load") };
    a.link.receive(b.address.ip(), &cookie);
    let start = a.link.start().unwrap();
    let elsewhere = SocketAddr::from(([192, 0, 2, 77], 51820));
    assert!(
        matches!(b.classify(&start, elsewhere), DatagramClass::Reply(_)),
        "it was sent to another address"
    );
    let key = *identity(1).public().x25519();
    assert_eq!(b.admit(&start, a.address), Admission::Admitted);
    assert_eq!(b.classify(&start, a.address), DatagramClass::Handshake { x25519: key });
}

#[test]
fn an_index_of_a_control_session_names_a_peer_below_the_limit() {
    let last = u32::from(MAX_PEERS) - 1;
    assert_eq!(peer_of_control_index(last << 8 | 0xff), Some(PeerNumber(MAX_PEERS - 1)));
    for index in [1 << 31, 1 << 31 | last << 8, u32::MAX] {
        assert_eq!(peer_of_control_index(index), None, "{index:#x}");
    }
}

/// Returns a packet of `length` bytes, as large as a path probe.
fn packet_of(length: usize) -> Vec<u8> {
    let mut packet = packet();
    packet.resize(length, 7);
    packet[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
    packet
}

#[test]
fn a_session_carries_the_largest_probe_and_nothing_larger() {
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, identity(1).public().x25519());
    let datagram = a.link.send(&packet_of(MAX_PROBE)).unwrap();
    assert_eq!(b.link.receive(a.address.ip(), &datagram).packets, [packet_of(MAX_PROBE)]);
    assert!(a.link.send(&packet_of(MAX_PROBE + 1)).is_none());
    // Datagrams larger than the buffer that are addressed to the session.
    let mut long = a.link.send(&packet()).unwrap();
    for length in [2048, 2049, 4096, 65_000] {
        long.resize(length, 7);
        let out = b.link.receive(a.address.ip(), &long);
        assert!(out.dropped && !out.authenticated && out.packets.is_empty(), "{length} bytes");
    }
    let datagram = a.link.send(&packet()).unwrap();
    assert_eq!(b.link.receive(a.address.ip(), &datagram).packets, [packet()], "and it goes on");
}

/// A call to two endpoints makes two sessions, which the other side may use in another order.
#[test]
fn sessions_of_parallel_handshakes_have_one_number_at_both_sides() {
    let (mut a, mut b) = pair();
    let starts = [a.link.start().unwrap(), a.link.start().unwrap()];
    let answers = starts.map(|start| b.link.receive(a.address.ip(), &start).datagrams.remove(0));
    let mut confirmations = Vec::new();
    for answer in answers.iter().rev() {
        confirmations.push(a.link.receive(b.address.ip(), answer).datagrams.remove(0));
    }
    let mut number = |b: &mut End| {
        let datagram = a.link.send(&packet()).unwrap();
        let at_b = b.link.receive(a.address.ip(), &datagram).session;
        let datagram = b.link.send(&packet()).unwrap();
        (at_b, a.link.receive(b.address.ip(), &datagram).session)
    };
    for confirmation in confirmations {
        assert!(b.link.receive(a.address.ip(), &confirmation).authenticated);
        assert_eq!(number(&mut b), (1, 1));
    }
}
