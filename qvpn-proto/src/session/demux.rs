//! Finds the peer of each datagram for a control session. Under load, it answers handshake messages without a
//! valid cookie with a cookie reply.

use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{HandshakeInit, Packet, Tunn};
use boringtun::x25519::{PublicKey, StaticSecret};
use qvpn_identity::SecretIdentity;
use qvpn_secret::with_scrubbed_stack;
use rand_core::CryptoRng;

use qvpn_types::{PeerNumber, Time};

use super::limiter::HandshakeLimiter;
use crate::wire::limits::MAX_PEERS;

/// The destination of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum DatagramClass {
    /// The session of the peer with this number.
    Peer(PeerNumber),
    /// A handshake initiation by the holder of this X25519 key.
    Handshake {
        /// The static key that the sender claims. The session authenticates it.
        x25519: [u8; 32],
    },
    /// A cookie reply, to send back to the source.
    Reply(Vec<u8>),
    /// Not a message of a control session, or not addressed to our key.
    Malformed,
}

/// Demultiplexes the datagrams of all control sessions of a daemon.
pub struct Demux {
    /// Our keys: a second one while the site changes its key.
    locals: Vec<Arc<SecretIdentity>>,
    limiter: Arc<HandshakeLimiter>,
}

impl Demux {
    /// Creates a demux for `peers` peers. It admits ten handshakes a second per peer without a cookie.
    #[must_use]
    pub fn new(local: Arc<SecretIdentity>, peers: usize, rng: &mut impl CryptoRng) -> Self {
        let limiter = Arc::new(HandshakeLimiter::new(local.public(), peers, rng));
        Self { locals: vec![local], limiter }
    }

    /// Returns the limiter, which lanes call before they queue a message.
    #[must_use]
    pub fn limiter(&self) -> Arc<HandshakeLimiter> {
        Arc::clone(&self.limiter)
    }

    /// Sets our keys. Handshakes with each of them are accepted.
    pub fn set_locals(&mut self, locals: Vec<Arc<SecretIdentity>>) {
        self.limiter.set_locals(locals.iter().map(|local| local.public()));
        self.locals = locals;
    }

    /// Returns our keys.
    #[must_use]
    pub fn locals(&self) -> &[Arc<SecretIdentity>] {
        &self.locals
    }

    /// Finds the peer of a datagram that the [`HandshakeLimiter`] has admitted.
    #[must_use]
    pub fn classify(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        now: Time,
        rng: &mut impl CryptoRng,
    ) -> DatagramClass {
        let Ok(packet) = Tunn::parse_incoming_packet(datagram) else { return DatagramClass::Malformed };
        if let Packet::HandshakeInit(_) | Packet::HandshakeResponse(_) = packet {
            if !self.limiter.is_addressed_to_us(datagram) {
                return DatagramClass::Malformed;
            }
            if let Some(cookie) = self.limiter.cookie_reply_if_needed(datagram, from, now, rng) {
                return DatagramClass::Reply(cookie);
            }
        }
        let index = match packet {
            Packet::HandshakeInit(init) => {
                let claimed = self.locals.iter().find_map(|local| claimed_key(&init, local));
                return claimed
                    .map_or(DatagramClass::Malformed, |x25519| DatagramClass::Handshake { x25519 });
            }
            Packet::HandshakeResponse(p) => p.receiver_idx,
            Packet::PacketCookieReply(p) => p.receiver_idx,
            Packet::PacketData(p) => p.receiver_idx,
        };
        peer_of_control_index(index).map_or(DatagramClass::Malformed, DatagramClass::Peer)
    }
}

/// Returns the static key that the sender of an initiation for `local` claims to hold.
fn claimed_key(init: &HandshakeInit<'_>, local: &SecretIdentity) -> Option<[u8; 32]> {
    let half = with_scrubbed_stack(|| {
        let secret = StaticSecret::from(*local.x25519().expose());
        parse_handshake_anon(&secret, &PublicKey::from(*local.public().x25519()), init)
    });
    half.ok().map(|half| half.peer_static_public)
}

/// Returns the upper 24 bits of a link's receiver indices: the top bit is 0, and a peer's links differ by
/// their slot.
pub(super) fn control_index(number: PeerNumber, slot: u8) -> u32 {
    u32::from(slot) << 15 | u32::from(number.0 % MAX_PEERS)
}

/// Returns the peer's number in a control session's receiver index; `None` for a data session's index, which
/// has the top bit set.
#[must_use]
pub fn peer_of_control_index(index: u32) -> Option<PeerNumber> {
    let number = u16::try_from(index >> 8 & u32::from(MAX_PEERS - 1)).ok().map(PeerNumber);
    number.filter(|_| index >> 31 == 0)
}

/// Returns the slot of the peer's link in a control session's receiver index.
pub(super) fn slot_of_control_index(index: u32) -> u8 {
    (index >> 23).to_le_bytes()[0]
}
