//! The limiter under a flood of handshakes, and without load.

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
    let mac1 = keyed(&limiter.locals.read().unwrap()[0].mac1, &[&datagram[..116]]).0.finalize_fixed();
    datagram[116..132].copy_from_slice(&mac1);
    datagram[132..].copy_from_slice(&mac2);
    datagram
}

/// An initiation with the cookie of `from`.
fn proven(limiter: &HandshakeLimiter, from: SocketAddr, now: Time) -> Vec<u8> {
    let bare = start(limiter, [0; MAC_BYTES]);
    let mac2 = keyed(&limiter.cookie(from, now), &[&bare[..132]]).0.finalize_fixed();
    start(limiter, mac2.into())
}

fn at(ip: [u8; 4]) -> SocketAddr {
    (ip, 51820).into()
}

const NOW: Time = Time::from_nanos(1_000_000_000_000);

/// Returns how many of 1,000 messages from an unknown source are admitted.
fn admitted(limiter: &HandshakeLimiter, datagram: &[u8], from: SocketAddr, now: Time) -> usize {
    (0..1000).filter(|_| limiter.admit(datagram, from, now, || false) == Admission::Admitted).count()
}

/// Returns how many of 1,000 messages from a peer's address are admitted.
fn of_peer(limiter: &HandshakeLimiter, datagram: &[u8], from: SocketAddr, now: Time) -> usize {
    (0..1000).filter(|_| limiter.admit(datagram, from, now, || true) == Admission::Admitted).count()
}

/// Puts the limiter under load from 200 sources, and uses up the shared bucket of unknown sources.
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
    // One more message puts it under load for a second.
    assert_eq!(limiter.admit(&bare, from, NOW, || false), Admission::Admitted);
    assert!(limiter.cookie_reply_if_needed(&bare, from, NOW, rng).is_some());
    assert_eq!(limiter.cookie_reply_if_needed(&bare, from, NOW + UNDER_LOAD_HOLD, rng), None);
}

#[test]
fn a_flood_gets_few_answers_and_a_source_of_its_own_gets_some() {
    let limiter = limiter();
    // The value of mac2 makes no difference.
    for (n, mac2) in (0..).zip([[0; MAC_BYTES], [7; MAC_BYTES]]) {
        let (flooder, forged) = (at([198, 18, 0, 1]), start(&limiter, mac2));
        let now = NOW + Duration::from_secs(10 * n);
        flood(&limiter, now);
        assert_eq!(admitted(&limiter, &forged, flooder, now), 0, "its bucket and that of all are empty");
        let later = now + Duration::from_millis(999);
        let answered = admitted(&limiter, &forged, flooder, later);
        assert!((20..=23).contains(&answered), "{answered} at once");
        // These sources are not in the flood, so each has its own bucket, unless two share one by chance.
        let fresh = (0..100u8)
            .filter(|n| limiter.admit(&forged, at([192, 0, 2, *n]), later, || false) == Admission::Admitted);
        assert!(fresh.count() > 60);
    }
}

/// An attacker forges the peer's own address: the peer is still admitted with its cookie.
#[test]
fn a_cookie_lets_a_peer_in_amid_a_flood_from_its_own_address_but_not_too_often() {
    let limiter = limiter();
    let peer = at([192, 0, 2, 1]);
    flood(&limiter, NOW);
    let forged = start(&limiter, [7; MAC_BYTES]);
    // The peer is more likely to get the cookie than an unknown source.
    assert!((200..=203).contains(&of_peer(&limiter, &forged, peer, NOW)));
    assert_eq!(of_peer(&limiter, &forged, peer, NOW), 0);
    let genuine = proven(&limiter, peer, NOW);
    assert_eq!(of_peer(&limiter, &genuine, peer, NOW), 5);
    assert_eq!(of_peer(&limiter, &genuine, peer, NOW + Duration::from_millis(50)), 1);
    // The cookie is not valid from another address or port, or at another time.
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let port = SocketAddr::from(([192, 0, 2, 1], 51821));
    assert_eq!(limiter.cookie_reply_if_needed(&genuine, peer, NOW, rng), None);
    for (from, now) in [(at([192, 0, 2, 2]), NOW), (port, NOW), (peer, NOW + COOKIE_LIFE)] {
        flood(&limiter, now);
        assert!(limiter.cookie_reply_if_needed(&genuine, from, now, rng).is_some(), "{from} {now:?}");
    }
}

/// This also holds while the load ends and unknown sources have used up their bucket.
#[test]
fn strangers_leave_a_peer_its_answers() {
    let limiter = limiter();
    let peer = at([192, 0, 2, 1]);
    let bare = start(&limiter, [0; MAC_BYTES]);
    flood(&limiter, NOW);
    assert!(of_peer(&limiter, &bare, peer, NOW) >= 200);
    // Some messages a second are admitted again, and the bucket of unknown sources is empty.
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

/// A message is dropped without a hash only if the bucket of all messages and that of unknown sources are
/// both empty.
#[test]
fn an_unknown_source_is_admitted_from_either_bucket() {
    let rng = &mut ChaCha20Rng::seed_from_u64(5);
    let limiter = HandshakeLimiter::new(SecretIdentity::generate(rng).public(), 1_000, rng);
    let from = at([203, 0, 113, 9]);
    // The bucket of all messages is empty, and so is this source's own; that of unknown sources has refilled.
    let bare = start(&limiter, [0; MAC_BYTES]);
    for _ in 0..20_000 {
        limiter.admit(&bare, from, NOW, || false);
    }
    let soon = NOW + Duration::from_millis(50);
    limiter.classes[0].buckets.lock().unwrap().all = Bucket::full_at(soon + Duration::from_secs(10));
    assert_eq!(limiter.admit(&bare, from, soon, || false), Admission::Admitted);
    // The reverse: the bucket of all messages has tokens, and that of unknown sources is empty. A cookie is
    // then verified.
    limiter.classes[0].buckets.lock().unwrap().all = Bucket::default();
    limiter.classes[0].buckets.lock().unwrap().unknown_sources =
        Bucket::full_at(soon + Duration::from_secs(10));
    assert_eq!(limiter.admit(&bare, from, soon, || false), Admission::NoCookie);
    assert_eq!(limiter.admit(&proven(&limiter, from, soon), from, soon, || false), Admission::Admitted);
    // Both buckets are empty.
    limiter.classes[0].buckets.lock().unwrap().all = Bucket::full_at(soon + Duration::from_secs(10));
    assert_eq!(limiter.admit(&proven(&limiter, from, soon), from, soon, || false), Admission::NoCookie);
}

/// A gateway under a flood of initiations initiates a handshake itself, and admits the response.
#[test]
fn a_flood_of_starts_leaves_answers_alone() {
    let (limiter, rng) = (limiter(), &mut ChaCha20Rng::seed_from_u64(6));
    flood(&limiter, NOW);
    let mut answer = vec![2; 92];
    answer[1..4].fill(0);
    let mac1 = keyed(&limiter.locals.read().unwrap()[0].mac1, &[&answer[..60]]).0.finalize_fixed();
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
