//! Admission of handshakes and of datagrams from unknown sources: mac1, and under load cookies (WireGuard
//! paper, section 5.4.7) and token buckets. Lanes call it before they queue a message, so most messages of a
//! flood cost no hash. The daemon's thread makes the cookies.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, digest::consts::U16};
use qvpn_identity::PublicIdentity;
use qvpn_secret::Secret;
use rand_core::CryptoRng;
use xchacha20poly1305::{AeadInPlace, XChaCha20Poly1305};

use super::token_bucket::{Bucket, BySource, Rate};
use qvpn_types::Time;

/// How long the limiter stays under load after too many messages.
const UNDER_LOAD_HOLD: Duration = Duration::from_secs(1);
/// The maximum validity of a cookie.
const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// Under load: the rate of messages with a valid cookie from one source, as in the kernel's WireGuard.
const VALID_COOKIE_RATE: Rate = Rate { a_second: 20, burst: 5 };
/// Under load: the rate of messages without a valid cookie from one source that always get a cookie reply.
const COOKIE_REPLY_RATE: Rate = Rate { a_second: 1, burst: 3 };
/// Under load: the rate of further messages without a valid cookie from unknown sources. A message without a
/// token costs no hash.
const UNKNOWN_SOURCE_RATE: Rate = Rate { a_second: 1_000, burst: 20 };
/// Under load: the rate of further messages without a valid cookie from peers' addresses, which anybody can
/// forge. It is high enough that the peer itself soon gets a cookie.
const PEER_SOURCE_RATE: Rate = Rate { a_second: 20_000, burst: 200 };

/// The rate of other datagrams from one unknown source, such as a peer that roamed.
const ROAMED_SOURCE_RATE: Rate = Rate { a_second: 10, burst: 20 };
/// The rate of other datagrams from all unknown sources together.
const ROAMED_TOTAL_RATE: Rate = Rate { a_second: 2_000, burst: 200 };

/// Length in bytes of mac1 and of mac2, at the end of a handshake message.
const MAC_BYTES: usize = 16;

/// The decision on a datagram for a control session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The lane queues it.
    Admitted,
    /// The lane drops it: a handshake message of a wrong length, or not addressed to our key.
    Malformed,
    /// The lane drops it: a handshake message without a valid cookie while there are too many to answer.
    NoCookie,
    /// The lane drops it: unknown sources send too many datagrams.
    TooMany,
}

/// The limiter of one daemon, which its lanes and its own thread share.
pub struct HandshakeLimiter {
    /// One for each of our keys: two while the site changes its key.
    locals: RwLock<Vec<LocalMacs>>,
    /// The key of all cookies while the daemon runs. An attacker who learns it can only get handshakes
    /// admitted.
    secret: Secret<32>,
    /// The number of messages a second that are admitted without a cookie.
    limit: u64,
    /// One class for initiations, one for responses to ours: a flood of initiations doesn't delay our own
    /// handshakes.
    classes: [MessageClass; 2],
    /// The buckets for other datagrams of unknown sources: one for all, and one for each source.
    roamed: Mutex<(Bucket, BySource)>,
}

/// The keys of the MACs in messages for one of our public keys.
#[derive(Clone, Copy)]
struct LocalMacs {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl LocalMacs {
    fn new(local: &PublicIdentity) -> Self {
        Self { mac1: labelled(b"mac1----", local), cookie: labelled(b"cookie--", local) }
    }
}

/// The state of one type of handshake messages.
struct MessageClass {
    /// When the load ends, in nanoseconds. It is outside the lock because the daemon's thread reads it, and
    /// that thread must not hold a lock that a lane waits for.
    under_load_until: AtomicU64,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    all: Bucket,
    valid_cookie: BySource,
    cookie_replies: BySource,
    unknown_sources: Bucket,
    peer_sources: Bucket,
}

impl MessageClass {
    fn new(rng: &mut impl CryptoRng) -> Self {
        let buckets = Buckets {
            all: Bucket::default(),
            valid_cookie: BySource::new(rng),
            cookie_replies: BySource::new(rng),
            unknown_sources: Bucket::default(),
            peer_sources: Bucket::default(),
        };
        Self { under_load_until: AtomicU64::new(0), buckets: Mutex::new(buckets) }
    }

    /// Puts this class under load, since too many messages arrived.
    fn set_under_load(&self, now: Time) {
        self.under_load_until.store((now + UNDER_LOAD_HOLD).as_nanos(), Ordering::Relaxed);
    }

    fn under_load(&self, now: Time) -> bool {
        now.as_nanos() < self.under_load_until.load(Ordering::Relaxed)
    }
}

impl HandshakeLimiter {
    pub(super) fn new(local: &PublicIdentity, peers: usize, rng: &mut impl CryptoRng) -> Self {
        Self {
            locals: RwLock::new(vec![LocalMacs::new(local)]),
            secret: Secret::filled(|bytes| rng.fill_bytes(bytes)),
            limit: 50 + 10 * u64::try_from(peers).unwrap_or(0),
            classes: [MessageClass::new(rng), MessageClass::new(rng)],
            roamed: Mutex::new((Bucket::default(), BySource::new(rng))),
        }
    }

    pub(super) fn set_locals<'a>(&self, locals: impl Iterator<Item = &'a PublicIdentity>) {
        // The update is atomic, so a poisoned lock is still consistent.
        *self.locals.write().unwrap_or_else(PoisonError::into_inner) = locals.map(LocalMacs::new).collect();
    }

    /// Decides whether a datagram is admitted. `is_peer` says whether its source address belongs to a peer.
    /// Call it once for each datagram.
    pub fn admit(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        now: Time,
        is_peer: impl FnOnce() -> bool,
    ) -> Admission {
        if !matches!(datagram, [1 | 2, ..]) {
            return if is_peer() || self.admit_roamed(from, now) {
                Admission::Admitted
            } else {
                Admission::TooMany
            };
        }
        let Some(message) = Message::of(datagram) else { return Admission::Malformed };
        self.admit_handshake(&message, from, now, is_peer)
    }

    /// Decides on a datagram that is not a handshake initiation or response: a cookie reply, or a packet of a
    /// session.
    fn admit_roamed(&self, from: SocketAddr, now: Time) -> bool {
        let mut others = self.roamed.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, sources) = &mut *others;
        sources.of(from).take(now, ROAMED_SOURCE_RATE) || all.take(now, ROAMED_TOTAL_RATE)
    }

    fn admit_handshake(
        &self,
        message: &Message<'_>,
        from: SocketAddr,
        now: Time,
        is_peer: impl FnOnce() -> bool,
    ) -> Admission {
        let class = self.class(message);
        // Each update is atomic, so a poisoned lock is still consistent.
        let mut buckets = class.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { all, valid_cookie, cookie_replies, unknown_sources, peer_sources } = &mut *buckets;
        let limit = Rate { a_second: self.limit, burst: self.limit };
        let own = cookie_replies.of(from);
        let (mut rest, mut rest_rate) = (unknown_sources, UNKNOWN_SOURCE_RATE);
        if class.under_load(now) && !own.has(now, COOKIE_REPLY_RATE) {
            if is_peer() {
                (rest, rest_rate) = (peer_sources, PEER_SOURCE_RATE);
            } else if !rest.has(now, UNKNOWN_SOURCE_RATE) && !all.has(now, limit) {
                // Most messages of a flood end here.
                class.set_under_load(now);
                return Admission::NoCookie;
            }
        }
        if !self.mac1_valid(message) {
            return Admission::Malformed;
        }
        if !all.take(now, limit) {
            class.set_under_load(now);
        }
        let admitted = if !class.under_load(now) {
            true
        } else if self.cookie_valid(message, from, now) {
            valid_cookie.of(from).take(now, VALID_COOKIE_RATE)
        } else {
            own.take(now, COOKIE_REPLY_RATE) || rest.take(now, rest_rate)
        };
        if admitted { Admission::Admitted } else { Admission::NoCookie }
    }

    /// Whether this is a handshake message whose mac1 is made for our key.
    pub(super) fn is_addressed_to_us(&self, datagram: &[u8]) -> bool {
        Message::of(datagram).is_some_and(|message| self.mac1_valid(&message))
    }

    /// Returns the cookie reply to a message without a valid cookie under load.
    pub(super) fn cookie_reply_if_needed(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        now: Time,
        rng: &mut impl CryptoRng,
    ) -> Option<Vec<u8>> {
        let message = Message::of(datagram)?;
        let wanted = self.class(&message).under_load(now) && !self.cookie_valid(&message, from, now);
        wanted.then(|| self.cookie_reply(&message, from, now, rng)).flatten()
    }

    fn class(&self, message: &Message<'_>) -> &MessageClass {
        let [initiations, responses] = &self.classes;
        if message.is_initiation { initiations } else { responses }
    }

    fn mac1_valid(&self, message: &Message<'_>) -> bool {
        self.addressee(message).is_some()
    }

    /// Finds the key of ours that mac1 is made for.
    fn addressee(&self, message: &Message<'_>) -> Option<LocalMacs> {
        let locals = self.locals.read().unwrap_or_else(PoisonError::into_inner);
        locals.iter().find(|local| keyed(&local.mac1, &[message.body]).is(message.mac1)).copied()
    }

    /// Whether mac2 is made with the cookie of this source.
    fn cookie_valid(&self, message: &Message<'_>, from: SocketAddr, now: Time) -> bool {
        // Most messages of a flood have no mac2. This check saves the hashes.
        !message.has_no_cookie()
            && keyed(&self.cookie(from, now), &[message.body, message.mac1]).is(message.mac2)
    }

    /// Returns `MAC(secret, number of the 120 s period ‖ address ‖ port)`.
    fn cookie(&self, from: SocketAddr, now: Time) -> [u8; MAC_BYTES] {
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

    /// Returns a cookie reply: type 3, the sender's index, a nonce, and the cookie, encrypted with mac1 as
    /// associated data.
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
        let cipher = XChaCha20Poly1305::new(&self.addressee(message)?.cookie.into());
        let tag = cipher.encrypt_in_place_detached(&nonce.into(), message.mac1, &mut cookie).ok()?;
        Some([&[3, 0, 0, 0], message.body.get(4..8)?, &nonce, &cookie, &tag[..]].concat())
    }
}

/// A MAC that is not finished yet.
struct Keyed(Blake2sMac<U16>);

impl Keyed {
    /// Compares with `mac` in constant time.
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

/// Returns `HASH(label ‖ public key)`, WireGuard paper section 5.4.4.
fn labelled(label: &[u8; 8], public: &PublicIdentity) -> [u8; 32] {
    let mut hash = Blake2s256::default();
    hash.update(label);
    hash.update(public.x25519());
    hash.finalize_fixed().into()
}

/// The fields of a handshake message.
struct Message<'a> {
    is_initiation: bool,
    /// Everything before mac1.
    body: &'a [u8],
    mac1: &'a [u8],
    mac2: &'a [u8],
}

impl<'a> Message<'a> {
    /// Returns `None` if the length is wrong for the type.
    fn of(datagram: &'a [u8]) -> Option<Self> {
        let (is_initiation, length) = match datagram.first_chunk() {
            Some([1, 0, 0, 0]) => (true, 148),
            Some([2, 0, 0, 0]) => (false, 92),
            _ => return None,
        };
        let whole = (datagram.len() == length).then_some(datagram)?;
        let (body, macs) = whole.split_at_checked(length - 2 * MAC_BYTES)?;
        let (mac1, mac2) = macs.split_at_checked(MAC_BYTES)?;
        Some(Self { is_initiation, body, mac1, mac2 })
    }

    fn has_no_cookie(&self) -> bool {
        self.mac2 == [0; MAC_BYTES]
    }
}

#[cfg(test)]
mod tests;
