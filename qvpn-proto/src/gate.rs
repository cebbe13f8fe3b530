//! What stands before all control sessions of a daemon: it says whose a datagram is, and has strangers prove their
//! address while many of them start handshakes.

use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519::{PublicKey, StaticSecret};
use qvpn_identity::SecretIdentity;
use qvpn_secret::with_scrubbed_stack;
use rand_core::CryptoRng;

use crate::Time;

mod bucket;
mod door;

pub use door::{Admission, Door};

/// Where a datagram belongs.
#[derive(Debug, PartialEq, Eq)]
pub enum Sorted {
    /// To the session of the peer with this number.
    Peer(u16),
    /// The first message of a handshake, by the holder of this X25519 key.
    Handshake {
        /// The sender's static key, as it says; the session proves it.
        x25519: [u8; 32],
    },
    /// An answer that proves an address under load (a cookie), to be sent back.
    Reply(Vec<u8>),
    /// No message of a control session, or not made for our key.
    Malformed,
}

/// Stands before all control sessions of a daemon: one door for handshakes, and the table of who gets what.
pub struct Gate {
    local: Arc<SecretIdentity>,
    door: Arc<Door>,
}

impl Gate {
    /// A gate for a daemon with `peers` peers: so many handshakes a second are let in without a proof that each may
    /// start ten.
    #[must_use]
    pub fn new(local: Arc<SecretIdentity>, peers: usize, rng: &mut impl CryptoRng) -> Self {
        let door = Arc::new(Door::new(local.public(), peers, rng));
        Self { local, door }
    }

    /// For the lanes: it looks at each message first, before anything is queued.
    #[must_use]
    pub fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    fn public(&self) -> PublicKey {
        PublicKey::from(*self.local.public().x25519())
    }

    /// Says whose datagram it is. A handshake message was let in by the [`Door`].
    #[must_use]
    pub fn sort(&self, datagram: &[u8], from: SocketAddr, now: Time, rng: &mut impl CryptoRng) -> Sorted {
        let Ok(packet) = Tunn::parse_incoming_packet(datagram) else { return Sorted::Malformed };
        if let Packet::HandshakeInit(_) | Packet::HandshakeResponse(_) = packet {
            if !self.door.knows(datagram) {
                return Sorted::Malformed;
            }
            if let Some(cookie) = self.door.wants_proof(datagram, from, now, rng) {
                return Sorted::Reply(cookie);
            }
        }
        let index = match packet {
            Packet::HandshakeInit(init) => {
                let half = with_scrubbed_stack(|| {
                    let secret = StaticSecret::from(*self.local.x25519().expose());
                    parse_handshake_anon(&secret, &self.public(), &init)
                });
                return half
                    .map_or(Sorted::Malformed, |half| Sorted::Handshake { x25519: half.peer_static_public });
            }
            Packet::HandshakeResponse(p) => p.receiver_idx,
            Packet::PacketCookieReply(p) => p.receiver_idx,
            Packet::PacketData(p) => p.receiver_idx,
        };
        peer_of_control_index(index).map_or(Sorted::Malformed, Sorted::Peer)
    }
}

/// The peer's number in a receiver index of a control session; `None` for a data session's, which has the top bit set.
#[must_use]
pub fn peer_of_control_index(index: u32) -> Option<u16> {
    u16::try_from(index >> 8).ok().filter(|n| *n < crate::wire::limits::MAX_PEERS)
}
