//! Sends datagrams of an unauthenticated sender through the lane's filter and the demux into a real control
//! session. The sender knows our public key, so its mac1 may be valid. It has recorded the datagrams of both
//! sides and replays them, damaged or not. None of them is ever treated as the peer's, and no reply is longer
//! than the request.

use std::net::SocketAddr;
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, digest::consts::U16};
use qvpn_identity::PublicIdentity;
use qvpn_proto::session::{Admission, DatagramClass, Demux};
use qvpn_proto::session::{ControlLink, LinkOutput, WireGuardLink};
use qvpn_proto::wire::{MessageType, fragment};
use qvpn_types::{PeerNumber, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::input::Input;
use super::peer::SITES;

/// The maximum number of operations in a case.
const MAX_STEPS: usize = 40;
/// The peers' numbers in each other's tables.
const US: PeerNumber = PeerNumber(300);
const THEM: PeerNumber = PeerNumber(7);

/// Mixes an unauthenticated sender's datagrams with honest ones.
pub fn datagram(bytes: &[u8]) {
    packets_opened(bytes);
}

struct End {
    demux: Demux,
    link: WireGuardLink,
    /// The number that this side gave the peer.
    number: PeerNumber,
    address: SocketAddr,
    now: Time,
    rng: ChaCha20Rng,
}

impl End {
    /// Handles a datagram as the daemon does: the lane's filter refuses some, and the demux finds the peer of
    /// the others.
    fn take(&mut self, datagram: &[u8], from: SocketAddr, other: &PublicIdentity) -> LinkOutput {
        if self.demux.limiter().admit(datagram, from, self.now, || true) != Admission::Admitted {
            return LinkOutput::default();
        }
        match self.demux.classify(datagram, from, self.now, &mut self.rng) {
            DatagramClass::Peer(number) if number == self.number => self.link.receive(from.ip(), datagram),
            DatagramClass::Handshake { x25519 } if x25519 == *other.x25519() => {
                self.link.receive(from.ip(), datagram)
            }
            DatagramClass::Reply(cookie) => LinkOutput { datagrams: vec![cookie], ..LinkOutput::default() },
            DatagramClass::Peer(_) | DatagramClass::Handshake { .. } | DatagramClass::Malformed => {
                LinkOutput::default()
            }
        }
    }
}

struct Case {
    us: End,
    them: End,
    /// Datagrams that passed over the wire, newest first.
    heard: Vec<Vec<u8>>,
    opened: usize,
}

/// Runs a case and returns the number of honest packets that opened.
pub fn packets_opened(bytes: &[u8]) -> usize {
    let end = |own: &std::sync::Arc<_>, other, number: PeerNumber, last| {
        let mut rng = ChaCha20Rng::seed_from_u64(number.0.into());
        let demux = Demux::new(std::sync::Arc::clone(own), 1, &mut rng);
        let link = WireGuardLink::new(std::sync::Arc::clone(own), other, number);
        let address = ([192, 0, 2, last], 51820).into();
        End { demux, link, number, address, now: Time::default(), rng }
    };
    let us = end(&SITES.us, SITES.them.public(), US, 1);
    let them = end(&SITES.them, SITES.us.public(), THEM, 2);
    let mut case = Case { us, them, heard: Vec::new(), opened: 0 };
    let mut input = Input(bytes);
    for _ in 0..MAX_STEPS {
        if input.0.is_empty() {
            break;
        }
        case.step(&mut input);
    }
    case.opened
}

impl Case {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 9 {
            0 => {
                let start = self.them.link.start();
                self.pass(start, true);
            }
            1 => {
                let start = self.us.link.start();
                self.pass(start, false);
            }
            2 => {
                let to_us = input.u8() & 1 == 0;
                let message = vec![5; usize::from(input.u8())];
                let packet = fragment::packets([9; 8], MessageType::Hello, &message).remove(0);
                let sender = if to_us { &mut self.them } else { &mut self.us };
                let datagram = sender.link.send(&packet);
                self.pass(datagram, to_us);
            }
            3 | 4 => {
                let Some(at) = usize::from(input.u8()).checked_rem(self.heard.len()) else { return };
                let repeated = self.heard[at].clone();
                let damaged = input.damage(repeated);
                self.strange(with_mac1(damaged, input.u8()));
            }
            5 => {
                let length = usize::from(input.u8());
                let datagram = input.bytes(length);
                self.strange(datagram);
            }
            6 => {
                let kind = 1 + input.u8() % 2;
                let mut datagram = vec![0; if kind == 1 { 148 } else { 92 }];
                datagram[0] = kind;
                let length = usize::from(input.u8());
                let body = input.bytes(length);
                datagram.iter_mut().skip(4).zip(body).for_each(|(to, from)| *to = from);
                // A burst makes the demux require cookies.
                let times = if input.u8() % 16 == 1 { 130 } else { 1 };
                (0..times).for_each(|_| self.strange(with_mac1(datagram.clone(), 0)));
            }
            7 => self.us.now = self.us.now + Duration::from_millis(u64::from(input.u8()) * 500),
            _ => self.us.link.reset(),
        }
    }

    /// Carries a datagram from one side to the other, then the replies, until neither side sends any more.
    fn pass(&mut self, datagram: Option<Vec<u8>>, to_us: bool) {
        let mut waiting: Vec<(Vec<u8>, bool)> =
            datagram.into_iter().map(|datagram| (datagram, to_us)).collect();
        let mut passed = 0;
        while let Some((datagram, to_us)) = waiting.pop() {
            passed += 1;
            assert!(passed < 10, "two ends that meet fall silent");
            let (from, to, other) = if to_us {
                (self.them.address, &mut self.us, SITES.them.public())
            } else {
                (self.us.address, &mut self.them, SITES.us.public())
            };
            let out = to.take(&datagram, from, other);
            self.opened += out.packets.len();
            // A datagram that got a cookie reply was not processed, so it may still be accepted later.
            if out.datagrams.iter().all(|answer| answer.first() != Some(&3)) {
                self.heard.truncate(30);
                self.heard.insert(0, datagram);
            }
            waiting.extend(out.datagrams.into_iter().map(|datagram| (datagram, !to_us)));
        }
    }

    fn strange(&mut self, datagram: Vec<u8>) {
        let out = self.us.take(&datagram, self.them.address, SITES.them.public());
        assert!(
            !out.authenticated && !out.new_session && out.packets.is_empty(),
            "taken for the peer's: {out:?}"
        );
        let answer: usize = out.datagrams.iter().map(Vec::len).sum();
        assert!(answer <= datagram.len(), "{answer} bytes for {}", datagram.len());
    }
}

/// Sets mac1 as computed with our public key, unless `how` says to keep the old one.
fn with_mac1(mut datagram: Vec<u8>, how: u8) -> Vec<u8> {
    if how & 1 == 0 && datagram.len() >= 32 {
        let mut key = Blake2s256::default();
        Update::update(&mut key, b"mac1----");
        Update::update(&mut key, SITES.us.public().x25519());
        let end = datagram.len() - 32;
        if let Ok(mut mac) = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key.finalize_fixed()) {
            Update::update(&mut mac, &datagram[..end]);
            datagram[end..end + 16].copy_from_slice(&mac.finalize_fixed());
        }
    }
    datagram
}
