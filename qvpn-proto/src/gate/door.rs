//! The door for what strangers send: mac1, and under load cookies (WireGuard paper, section 5.4.7) and token buckets. Lanes ask it
//! before they queue a message, so that the bulk of a flood costs no hash; the daemon's thread makes the cookies.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, digest::consts::U16};
use qvpn_identity::PublicIdentity;
use qvpn_secret::Secret;
use rand_core::CryptoRng;
use xchacha20poly1305::{AeadInPlace, XChaCha20Poly1305};

use super::bucket::{Bucket, BySource, Rate};
use crate::Time;

/// How long the door stays under load after there were too many.
const CALM: Duration = Duration::from_secs(1);
/// How long a cookie is good for, at most.
const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// Under load: messages with a right cookie from one source, as the kernel's WireGuard has it.
const PROVEN: Rate = Rate { a_second: 20, burst: 5 };
/// Under load: messages without, from one source, that are answered by a cookie in any case.
const UNPROVEN: Rate = Rate { a_second: 1, burst: 3 };
/// Under load: further messages without, from addresses of no peer. What finds no token costs no hash.
const STRANGERS: Rate = Rate { a_second: 1_000, burst: 20 };
/// Under load: further messages without, from addresses of peers, which anybody can forge: so many that the peer itself
/// soon is among those that get a cookie.
const PEERS: Rate = Rate { a_second: 20_000, burst: 200 };

/// What is no handshake: from one source where no peer is, such as one that moves.
const MOVED: Rate = Rate { a_second: 10, burst: 20 };
/// And from all such sources together.
const ELSEWHERE: Rate = Rate { a_second: 2_000, burst: 200 };

/// Bytes of mac1 and of mac2, at the end of a handshake message.
const MAC: usize = 16;

/// What the lane does with a datagram for a control session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Hands it on.
    Admitted,
    /// Drops it: a handshake message of a wrong length, or not made for our key.
    Malformed,
    /// Drops it: a handshake message without a proof of its address, and more than can be answered.
    Unproven,
    /// Drops it: strangers send more than can be looked at.
    TooMany,
}

/// The door of one daemon, which its lanes and its own thread share.
pub struct Door {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    /// Makes cookies, for as long as the daemon runs. Whoever learns it can do no more than have his handshakes looked at.
    secret: Secret<32>,
    /// Messages a second that are let in without a proof.
    limit: u64,
    /// For starts, and for answers to ours: a flood of starts doesn't hinder a handshake that goes out.
    ways: [Way; 2],
    /// For what is no handshake, of strangers: one for all, and one for each source.
    others: Mutex<(Bucket, BySource)>,
}

/// What is counted of one type of messages.
struct Way {
    /// Until when it is under load, in nanoseconds. Alone outside the lock: the daemon's thread reads it, and never
    /// holds what the lane waits for.
    loaded_until: AtomicU64,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    all: Bucket,
    proven: BySource,
    unproven: BySource,
    strangers: Bucket,
    peers: Bucket,
}

impl Way {
    fn new(rng: &mut impl CryptoRng) -> Self {
        let buckets = Buckets {
            all: Bucket::default(),
            proven: BySource::new(rng),
            unproven: BySource::new(rng),
            strangers: Bucket::default(),
            peers: Bucket::default(),
        };
        Self { loaded_until: AtomicU64::new(0), buckets: Mutex::new(buckets) }
    }

    /// There are too many now.
    fn load(&self, now: Time) {
        self.loaded_until.store((now + CALM).as_nanos(), Ordering::Relaxed);
    }

    fn is_loaded(&self, now: Time) -> bool {
        now.as_nanos() < self.loaded_until.load(Ordering::Relaxed)
    }
}

impl Door {
    pub(super) fn new(local: &PublicIdentity, peers: usize, rng: &mut impl CryptoRng) -> Self {
        Self {
            mac1_key: labelled(b"mac1----", local),
            cookie_key: labelled(b"cookie--", local),
            secret: Secret::filled(|bytes| rng.fill_bytes(bytes)),
            limit: 50 + 10 * u64::try_from(peers).unwrap_or(0),
            ways: [Way::new(rng), Way::new(rng)],
            others: Mutex::new((Bucket::default(), BySource::new(rng))),
        }
    }

    /// Whether a datagram is let in; `is_peer` tells whether a peer is at its source address. To be asked once for each.
    pub fn admit(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        now: Time,
        is_peer: impl FnOnce() -> bool,
    ) -> Admission {
        if !matches!(datagram, [1 | 2, ..]) {
            return if is_peer() || self.admit_stranger(from, now) {
                Admission::Admitted
            } else {
                Admission::TooMany
            };
        }
        let Some(message) = Message::of(datagram) else { return Admission::Malformed };
        self.admit_handshake(&message, from, now, is_peer)
    }

    /// A cookie, or a packet that says to be of a session.
    fn admit_stranger(&self, from: SocketAddr, now: Time) -> bool {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, sources) = &mut *others;
        sources.of(from).take(now, MOVED) || all.take(now, ELSEWHERE)
    }

    fn admit_handshake(
        &self,
        message: &Message<'_>,
        from: SocketAddr,
        now: Time,
        is_peer: impl FnOnce() -> bool,
    ) -> Admission {
        let way = self.way(message);
        // Whoever panicked has changed whole buckets only.
        let mut buckets = way.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { all, proven, unproven, strangers, peers } = &mut *buckets;
        let limit = Rate { a_second: self.limit, burst: self.limit };
        let own = unproven.of(from);
        let (mut rest, mut rest_rate) = (strangers, STRANGERS);
        if way.is_loaded(now) && !own.has(now, UNPROVEN) {
            if is_peer() {
                (rest, rest_rate) = (peers, PEERS);
            } else if !rest.has(now, STRANGERS) && !all.has(now, limit) {
                // The bulk of a flood.
                way.load(now);
                return Admission::Unproven;
            }
        }
        if !self.is_for_us(message) {
            return Admission::Malformed;
        }
        if !all.take(now, limit) {
            way.load(now);
        }
        let admitted = if !way.is_loaded(now) {
            true
        } else if self.is_proven(message, from, now) {
            proven.of(from).take(now, PROVEN)
        } else {
            own.take(now, UNPROVEN) || rest.take(now, rest_rate)
        };
        if admitted { Admission::Admitted } else { Admission::Unproven }
    }

    /// Whether it is a handshake message whose mac1 is made for our key.
    pub(super) fn knows(&self, datagram: &[u8]) -> bool {
        Message::of(datagram).is_some_and(|message| self.is_for_us(&message))
    }

    /// The cookie reply to a message that lacks a proof under load.
    pub(super) fn wants_proof(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        now: Time,
        rng: &mut impl CryptoRng,
    ) -> Option<Vec<u8>> {
        let message = Message::of(datagram)?;
        let wanted = self.way(&message).is_loaded(now) && !self.is_proven(&message, from, now);
        wanted.then(|| self.cookie_reply(&message, from, now, rng)).flatten()
    }

    fn way(&self, message: &Message<'_>) -> &Way {
        let [starts, answers] = &self.ways;
        if message.is_start { starts } else { answers }
    }

    fn is_for_us(&self, message: &Message<'_>) -> bool {
        keyed(&self.mac1_key, &[message.body]).is(message.mac1)
    }

    /// Whether mac2 is made with the cookie of this address.
    fn is_proven(&self, message: &Message<'_>, from: SocketAddr, now: Time) -> bool {
        // Most messages of a flood have none; this saves the hashes.
        !message.has_no_proof()
            && keyed(&self.cookie(from, now), &[message.body, message.mac1]).is(message.mac2)
    }

    /// `MAC(a secret that changes every two minutes, address and port)`.
    fn cookie(&self, from: SocketAddr, now: Time) -> [u8; MAC] {
        let age = now.as_nanos() / u64::try_from(COOKIE_LIFE.as_nanos()).unwrap_or(u64::MAX);
        let ip = match from.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        keyed(self.secret.expose(), &[&age.to_le_bytes(), &ip.octets(), &from.port().to_le_bytes()])
            .0
            .finalize_fixed()
            .into()
    }

    /// Type 3, the sender's index, a nonce, and the cookie sealed to whoever sent that mac1.
    fn cookie_reply(
        &self,
        message: &Message<'_>,
        from: SocketAddr,
        now: Time,
        rng: &mut impl CryptoRng,
    ) -> Option<Vec<u8>> {
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let mut cookie = self.cookie(from, now);
        let cipher = XChaCha20Poly1305::new(&self.cookie_key.into());
        let tag = cipher.encrypt_in_place_detached(&nonce.into(), message.mac1, &mut cookie).ok()?;
        Some([&[3, 0, 0, 0], message.body.get(4..8)?, &nonce, &cookie, &tag[..]].concat())
    }
}

/// A MAC that is not finished yet.
struct Keyed(Blake2sMac<U16>);

impl Keyed {
    /// In constant time.
    fn is(self, mac: &[u8]) -> bool {
        self.0.verify_slice(mac).is_ok()
    }
}

/// BLAKE2s with 16 bytes of output and a key of 16 or 32 bytes.
fn keyed(key: &[u8], parts: &[&[u8]]) -> Keyed {
    #[expect(clippy::expect_used, reason = "both lengths of keys are within BLAKE2s' 32 bytes")]
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("a key of at most 32 bytes");
    parts.iter().for_each(|part| Update::update(&mut mac, part));
    Keyed(mac)
}

/// `HASH(label ‖ public key)`, WireGuard paper section 5.4.4.
fn labelled(label: &[u8; 8], public: &PublicIdentity) -> [u8; 32] {
    let mut hash = Blake2s256::default();
    hash.update(label);
    hash.update(public.x25519());
    hash.finalize_fixed().into()
}

/// A handshake message in its parts.
struct Message<'a> {
    is_start: bool,
    /// All before mac1.
    body: &'a [u8],
    mac1: &'a [u8],
    mac2: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None` if it has not the length of its type.
    fn of(datagram: &'a [u8]) -> Option<Self> {
        let (is_start, length) = match datagram.first_chunk() {
            Some([1, 0, 0, 0]) => (true, 148),
            Some([2, 0, 0, 0]) => (false, 92),
            _ => return None,
        };
        let whole = (datagram.len() == length).then_some(datagram)?;
        let (body, macs) = whole.split_at_checked(length - 2 * MAC)?;
        let (mac1, mac2) = macs.split_at_checked(MAC)?;
        Some(Self { is_start, body, mac1, mac2 })
    }

    fn has_no_proof(&self) -> bool {
        self.mac2 == [0; MAC]
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use qvpn_identity::SecretIdentity;

    fn door() -> Door {
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        let identity = SecretIdentity::generate(rng);
        Door::new(identity.public(), 1, rng)
    }

    fn start(door: &Door, mac2: [u8; MAC]) -> Vec<u8> {
        let mut datagram = vec![1; 148];
        datagram[1..4].fill(0);
        let mac1 = keyed(&door.mac1_key, &[&datagram[..116]]).0.finalize_fixed();
        datagram[116..132].copy_from_slice(&mac1);
        datagram[132..].copy_from_slice(&mac2);
        datagram
    }

    /// With the cookie of `from`.
    fn proven(door: &Door, from: SocketAddr, now: Time) -> Vec<u8> {
        let bare = start(door, [0; MAC]);
        let mac2 = keyed(&door.cookie(from, now), &[&bare[..132]]).0.finalize_fixed();
        start(door, mac2.into())
    }

    fn at(ip: [u8; 4]) -> SocketAddr {
        (ip, 51820).into()
    }

    const NOW: Time = Time::from_nanos(1_000_000_000_000);

    /// How many of 1,000 get in from the address of a stranger.
    fn admitted(door: &Door, datagram: &[u8], from: SocketAddr, now: Time) -> usize {
        (0..1000).filter(|_| door.admit(datagram, from, now, || false) == Admission::Admitted).count()
    }

    /// How many of 1,000 get in from the address of a peer.
    fn of_peer(door: &Door, datagram: &[u8], from: SocketAddr, now: Time) -> usize {
        (0..1000).filter(|_| door.admit(datagram, from, now, || true) == Admission::Admitted).count()
    }

    /// Brings it under load from 200 sources, and uses up what strangers have together.
    fn flood(door: &Door, now: Time) {
        let forged = start(door, [0; MAC]);
        for n in 0..20_000u32 {
            let [.., host] = (n % 200).to_be_bytes();
            door.admit(&forged, at([198, 18, 0, host]), now, || false);
        }
        assert!(door.ways[0].is_loaded(now) && !door.ways[1].is_loaded(now));
    }

    #[test]
    fn without_load_nothing_is_asked_for() {
        let (door, rng) = (door(), &mut ChaCha20Rng::seed_from_u64(6));
        let bare = start(&door, [0; MAC]);
        let from = at([192, 0, 2, 1]);
        for _ in 0..60 {
            assert_eq!(door.admit(&bare, from, NOW, || false), Admission::Admitted);
        }
        assert_eq!(door.wants_proof(&bare, from, NOW, rng), None);
        // One more is load, for a second.
        assert_eq!(door.admit(&bare, from, NOW, || false), Admission::Admitted);
        assert!(door.wants_proof(&bare, from, NOW, rng).is_some());
        assert_eq!(door.wants_proof(&bare, from, NOW + CALM, rng), None);
    }

    #[test]
    fn a_flood_gets_few_answers_and_a_source_of_its_own_gets_some() {
        let door = door();
        // Whatever stands for mac2.
        for (n, mac2) in (0..).zip([[0; MAC], [7; MAC]]) {
            let (flooder, forged) = (at([198, 18, 0, 1]), start(&door, mac2));
            let now = NOW + Duration::from_secs(10 * n);
            flood(&door, now);
            assert_eq!(admitted(&door, &forged, flooder, now), 0, "its bucket and that of all are empty");
            let later = now + Duration::from_millis(999);
            let answered = admitted(&door, &forged, flooder, later);
            assert!((20..=23).contains(&answered), "{answered} at once");
            // Not in the flood, so in a bucket of its own but for chance.
            let fresh = (0..100u8)
                .filter(|n| door.admit(&forged, at([192, 0, 2, *n]), later, || false) == Admission::Admitted);
            assert!(fresh.count() > 60);
        }
    }

    /// Somebody forges the peer's own address: with its cookie the peer gets in all the same.
    #[test]
    fn a_cookie_lets_a_peer_in_amid_a_flood_from_its_own_address_but_not_too_often() {
        let door = door();
        let peer = at([192, 0, 2, 1]);
        flood(&door, NOW);
        let forged = start(&door, [7; MAC]);
        // Its chance to get the cookie is larger than a stranger's.
        assert!((200..=203).contains(&of_peer(&door, &forged, peer, NOW)));
        assert_eq!(of_peer(&door, &forged, peer, NOW), 0);
        let genuine = proven(&door, peer, NOW);
        assert_eq!(of_peer(&door, &genuine, peer, NOW), 5);
        assert_eq!(of_peer(&door, &genuine, peer, NOW + Duration::from_millis(50)), 1);
        // From another address, another port or another time it is no proof.
        let rng = &mut ChaCha20Rng::seed_from_u64(6);
        let port = SocketAddr::from(([192, 0, 2, 1], 51821));
        assert_eq!(door.wants_proof(&genuine, peer, NOW, rng), None);
        for (from, now) in [(at([192, 0, 2, 2]), NOW), (port, NOW), (peer, NOW + COOKIE_LIFE)] {
            flood(&door, now);
            assert!(door.wants_proof(&genuine, from, now, rng).is_some(), "{from} {now:?}");
        }
    }

    /// While the load goes, too, when strangers have used up what is theirs.
    #[test]
    fn strangers_leave_a_peer_its_answers() {
        let door = door();
        let peer = at([192, 0, 2, 1]);
        let bare = start(&door, [0; MAC]);
        flood(&door, NOW);
        assert!(of_peer(&door, &bare, peer, NOW) >= 200);
        // Some of all messages a second may come again, and the strangers' share is gone.
        let later = NOW + Duration::from_millis(100);
        for n in 0..26u32 {
            door.ways[0].buckets.lock().unwrap().strangers.take(later, STRANGERS);
            assert!(n < 20 || !door.ways[0].buckets.lock().unwrap().strangers.has(later, STRANGERS));
        }
        assert_eq!(door.admit(&bare, peer, later, || true), Admission::Admitted);
    }

    /// What is dropped without a hash has neither a share of all messages nor one of the strangers' left to it.
    #[test]
    fn a_stranger_gets_in_by_either_share() {
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        let door = Door::new(SecretIdentity::generate(rng).public(), 1_000, rng);
        let from = at([203, 0, 113, 9]);
        // That of all messages is empty, its own bucket too, and that of the strangers has refilled.
        let bare = start(&door, [0; MAC]);
        for _ in 0..20_000 {
            door.admit(&bare, from, NOW, || false);
        }
        let soon = NOW + Duration::from_millis(50);
        door.ways[0].buckets.lock().unwrap().all = Bucket::full_at(soon + Duration::from_secs(10));
        assert_eq!(door.admit(&bare, from, soon, || false), Admission::Admitted);
        // The other way about: what it proves is looked at.
        door.ways[0].buckets.lock().unwrap().all = Bucket::default();
        door.ways[0].buckets.lock().unwrap().strangers = Bucket::full_at(soon + Duration::from_secs(10));
        assert_eq!(door.admit(&bare, from, soon, || false), Admission::Unproven);
        assert_eq!(door.admit(&proven(&door, from, soon), from, soon, || false), Admission::Admitted);
        // And neither.
        door.ways[0].buckets.lock().unwrap().all = Bucket::full_at(soon + Duration::from_secs(10));
        assert_eq!(door.admit(&proven(&door, from, soon), from, soon, || false), Admission::Unproven);
    }

    /// A gateway under a flood of starts starts a handshake itself, and hears the answer.
    #[test]
    fn a_flood_of_starts_leaves_answers_alone() {
        let (door, rng) = (door(), &mut ChaCha20Rng::seed_from_u64(6));
        flood(&door, NOW);
        let mut answer = vec![2; 92];
        answer[1..4].fill(0);
        let mac1 = keyed(&door.mac1_key, &[&answer[..60]]).0.finalize_fixed();
        answer[60..76].copy_from_slice(&mac1);
        let from = at([198, 18, 0, 1]);
        assert_eq!(door.admit(&answer, from, NOW, || false), Admission::Admitted);
        assert_eq!(door.wants_proof(&answer, from, NOW, rng), None);
    }

    #[test]
    fn packets_of_strangers_are_few_and_those_of_peers_are_not_counted() {
        let door = door();
        let packet = [4; 64];
        let stranger = at([203, 0, 113, 9]);
        for from in [stranger, at([203, 0, 113, 10])] {
            let count = admitted(&door, &packet, from, NOW);
            assert!(count == 20 || from == stranger && count == 220, "{count} of {from}");
        }
        assert_eq!(door.admit(&packet, stranger, NOW, || false), Admission::TooMany);
        assert_eq!(of_peer(&door, &packet, stranger, NOW), 1000);
        assert_eq!(admitted(&door, &packet, stranger, NOW + Duration::from_secs(1)), 210);
    }

    #[test]
    fn what_is_no_handshake_of_ours_is_malformed() {
        let door = door();
        let good = start(&door, [0; MAC]);
        let mut forged = good.clone();
        forged[116] ^= 1;
        let mut other_type = good.clone();
        other_type[0] = 2;
        let mut reserved = good.clone();
        reserved[2] = 1;
        for wrong in [&good[..147], &[1, 0, 0, 0], &[2], &forged, &other_type, &reserved] {
            assert_eq!(
                door.admit(wrong, at([192, 0, 2, 1]), NOW, || false),
                Admission::Malformed,
                "{wrong:?}"
            );
        }
        assert_eq!(door.admit(&good, at([192, 0, 2, 1]), NOW, || false), Admission::Admitted);
    }
}
