//! Under a flood of handshakes, and without.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;
use qvpn_identity::SecretIdentity;

fn limiter() -> HandshakeLimiter {
    let rng = &mut ChaCha20Rng::seed_from_u64(5);
    let identity = SecretIdentity::generate(rng);
    HandshakeLimiter::new(identity.public(), 1, rng)
}

fn start(limiter: &HandshakeLimiter, mac2: [u8; MAC_BYTES]) -> Vec<u8> {
    let mut datagram = vec![1; 148];
    datagram[1..4].fill(0);
    let mac1 = keyed(&limiter.mac1_key, &[&datagram[..116]]).0.finalize_fixed();
    datagram[116..132].copy_from_slice(&mac1);
    datagram[132..].copy_from_slice(&mac2);
    datagram
}

/// With the cookie of `from`.
fn proven(limiter: &HandshakeLimiter, from: SocketAddr, now: Time) -> Vec<u8> {
    let bare = start(limiter, [0; MAC_BYTES]);
    let mac2 = keyed(&limiter.cookie(from, now), &[&bare[..132]]).0.finalize_fixed();
    start(limiter, mac2.into())
}

fn at(ip: [u8; 4]) -> SocketAddr {
    (ip, 51820).into()
}

const NOW: Time = Time::from_nanos(1_000_000_000_000);

/// How many of 1,000 get in from the address of a stranger.
fn admitted(limiter: &HandshakeLimiter, datagram: &[u8], from: SocketAddr, now: Time) -> usize {
    (0..1000).filter(|_| limiter.admit(datagram, from, now, || false) == Admission::Admitted).count()
}

/// How many of 1,000 get in from the address of a peer.
fn of_peer(limiter: &HandshakeLimiter, datagram: &[u8], from: SocketAddr, now: Time) -> usize {
    (0..1000).filter(|_| limiter.admit(datagram, from, now, || true) == Admission::Admitted).count()
}

/// Brings it under load from 200 sources, and uses up what strangers have together.
fn flood(limiter: &HandshakeLimiter, now: Time) {
    let forged = start(limiter, [0; MAC_BYTES]);
    for n in 0..20_000u32 {
        let [.., host] = (n % 200).to_be_bytes();
        limiter.admit(&forged, at([198, 18, 0, host]), now, || false);
    }
    assert!(limiter.classes[0].under_load(now) && !limiter.classes[1].under_load(now));
}

#[test]
fn without_load_nothing_is_asked_for() {
    let (limiter, rng) = (limiter(), &mut ChaCha20Rng::seed_from_u64(6));
    let bare = start(&limiter, [0; MAC_BYTES]);
    let from = at([192, 0, 2, 1]);
    for _ in 0..60 {
        assert_eq!(limiter.admit(&bare, from, NOW, || false), Admission::Admitted);
    }
    assert_eq!(limiter.cookie_reply_if_needed(&bare, from, NOW, rng), None);
    // One more is load, for a second.
    assert_eq!(limiter.admit(&bare, from, NOW, || false), Admission::Admitted);
    assert!(limiter.cookie_reply_if_needed(&bare, from, NOW, rng).is_some());
    assert_eq!(limiter.cookie_reply_if_needed(&bare, from, NOW + UNDER_LOAD_HOLD, rng), None);
}

#[test]
fn a_flood_gets_few_answers_and_a_source_of_its_own_gets_some() {
    let limiter = limiter();
    // Whatever stands for mac2.
    for (n, mac2) in (0..).zip([[0; MAC_BYTES], [7; MAC_BYTES]]) {
        let (flooder, forged) = (at([198, 18, 0, 1]), start(&limiter, mac2));
        let now = NOW + Duration::from_secs(10 * n);
        flood(&limiter, now);
        assert_eq!(admitted(&limiter, &forged, flooder, now), 0, "its bucket and that of all are empty");
        let later = now + Duration::from_millis(999);
        let answered = admitted(&limiter, &forged, flooder, later);
        assert!((20..=23).contains(&answered), "{answered} at once");
        // Not in the flood, so in a bucket of its own but for chance.
        let fresh = (0..100u8)
            .filter(|n| limiter.admit(&forged, at([192, 0, 2, *n]), later, || false) == Admission::Admitted);
        assert!(fresh.count() > 60);
    }
}

/// Somebody forges the peer's own address: with its cookie the peer gets in all the same.
#[test]
fn a_cookie_lets_a_peer_in_amid_a_flood_from_its_own_address_but_not_too_often() {
    let limiter = limiter();
    let peer = at([192, 0, 2, 1]);
    flood(&limiter, NOW);
    let forged = start(&limiter, [7; MAC_BYTES]);
    // Its chance to get the cookie is larger than a stranger's.
    assert!((200..=203).contains(&of_peer(&limiter, &forged, peer, NOW)));
    assert_eq!(of_peer(&limiter, &forged, peer, NOW), 0);
    let genuine = proven(&limiter, peer, NOW);
    assert_eq!(of_peer(&limiter, &genuine, peer, NOW), 5);
    assert_eq!(of_peer(&limiter, &genuine, peer, NOW + Duration::from_millis(50)), 1);
    // From another address, another port or another time it is no proof.
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let port = SocketAddr::from(([192, 0, 2, 1], 51821));
    assert_eq!(limiter.cookie_reply_if_needed(&genuine, peer, NOW, rng), None);
    for (from, now) in [(at([192, 0, 2, 2]), NOW), (port, NOW), (peer, NOW + COOKIE_LIFE)] {
        flood(&limiter, now);
        assert!(limiter.cookie_reply_if_needed(&genuine, from, now, rng).is_some(), "{from} {now:?}");
    }
}

/// While the load goes, too, when strangers have used up what is theirs.
#[test]
fn strangers_leave_a_peer_its_answers() {
    let limiter = limiter();
    let peer = at([192, 0, 2, 1]);
    let bare = start(&limiter, [0; MAC_BYTES]);
    flood(&limiter, NOW);
    assert!(of_peer(&limiter, &bare, peer, NOW) >= 200);
    // Some of all messages a second may come again, and the strangers' share is gone.
    let later = NOW + Duration::from_millis(100);
    for n in 0..26u32 {
        limiter.classes[0].buckets.lock().unwrap().unknown_sources.take(later, UNKNOWN_SOURCE_RATE);
        assert!(
            n < 20
                || !limiter.classes[0]
                    .buckets
                    .lock()
                    .unwrap()
                    .unknown_sources
                    .has(later, UNKNOWN_SOURCE_RATE)
        );
    }
    assert_eq!(limiter.admit(&bare, peer, later, || true), Admission::Admitted);
}

/// What is dropped without a hash has neither a share of all messages nor one of the strangers' left to it.
#[test]
fn a_stranger_gets_in_by_either_share() {
    let rng = &mut ChaCha20Rng::seed_from_u64(5);
    let limiter = HandshakeLimiter::new(SecretIdentity::generate(rng).public(), 1_000, rng);
    let from = at([203, 0, 113, 9]);
    // That of all messages is empty, its own bucket too, and that of the strangers has refilled.
    let bare = start(&limiter, [0; MAC_BYTES]);
    for _ in 0..20_000 {
        limiter.admit(&bare, from, NOW, || false);
    }
    let soon = NOW + Duration::from_millis(50);
    limiter.classes[0].buckets.lock().unwrap().all = Bucket::full_at(soon + Duration::from_secs(10));
    assert_eq!(limiter.admit(&bare, from, soon, || false), Admission::Admitted);
    // The other class about: what it proves is looked at.
    limiter.classes[0].buckets.lock().unwrap().all = Bucket::default();
    limiter.classes[0].buckets.lock().unwrap().unknown_sources =
        Bucket::full_at(soon + Duration::from_secs(10));
    assert_eq!(limiter.admit(&bare, from, soon, || false), Admission::NoCookie);
    assert_eq!(limiter.admit(&proven(&limiter, from, soon), from, soon, || false), Admission::Admitted);
    // And neither.
    limiter.classes[0].buckets.lock().unwrap().all = Bucket::full_at(soon + Duration::from_secs(10));
    assert_eq!(limiter.admit(&proven(&limiter, from, soon), from, soon, || false), Admission::NoCookie);
}

/// A gateway under a flood of starts starts a handshake itself, and hears the answer.
#[test]
fn a_flood_of_starts_leaves_answers_alone() {
    let (limiter, rng) = (limiter(), &mut ChaCha20Rng::seed_from_u64(6));
    flood(&limiter, NOW);
    let mut answer = vec![2; 92];
    answer[1..4].fill(0);
    let mac1 = keyed(&limiter.mac1_key, &[&answer[..60]]).0.finalize_fixed();
    answer[60..76].copy_from_slice(&mac1);
    let from = at([198, 18, 0, 1]);
    assert_eq!(limiter.admit(&answer, from, NOW, || false), Admission::Admitted);
    assert_eq!(limiter.cookie_reply_if_needed(&answer, from, NOW, rng), None);
}

#[test]
fn packets_of_strangers_are_few_and_those_of_peers_are_not_counted() {
    let limiter = limiter();
    let packet = [4; 64];
    let stranger = at([203, 0, 113, 9]);
    for from in [stranger, at([203, 0, 113, 10])] {
        let count = admitted(&limiter, &packet, from, NOW);
        assert!(count == 20 || from == stranger && count == 220, "{count} of {from}");
    }
    assert_eq!(limiter.admit(&packet, stranger, NOW, || false), Admission::TooMany);
    assert_eq!(of_peer(&limiter, &packet, stranger, NOW), 1000);
    assert_eq!(admitted(&limiter, &packet, stranger, NOW + Duration::from_secs(1)), 210);
}

#[test]
fn what_is_no_handshake_of_ours_is_malformed() {
    let limiter = limiter();
    let good = start(&limiter, [0; MAC_BYTES]);
    let mut forged = good.clone();
    forged[116] ^= 1;
    let mut other_type = good.clone();
    other_type[0] = 2;
    let mut reserved = good.clone();
    reserved[2] = 1;
    for wrong in [&good[..147], &[1, 0, 0, 0], &[2], &forged, &other_type, &reserved] {
        assert_eq!(
            limiter.admit(wrong, at([192, 0, 2, 1]), NOW, || false),
            Admission::Malformed,
            "{wrong:?}"
        );
    }
    assert_eq!(limiter.admit(&good, at([192, 0, 2, 1]), NOW, || false), Admission::Admitted);
}
