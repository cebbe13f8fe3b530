//! Parses messages of the control session, and the packets that carry them. The tests of `qvpn-proto` run
//! these bodies too.

use qvpn_proto::channel::ReliableChannel;
use qvpn_proto::kms::KeyName;
use qvpn_proto::wire::{
    Accept, Confirm, Fragment, Hello, KeyAvailability, LaneSet, MessageType, Ping, Propose, Reject,
    RejectReason, StockAck, StockOffer, fragment,
};
use qvpn_proto::{QkdPolicy, Role};
use qvpn_types::{EpochNumber, KeyId, SaeId, Suite, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Parses a message: the first byte is its type, the rest its body. A parsed message is written back byte for
/// byte.
pub fn message(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let again = match MessageType::from_byte(*kind) {
        Some(MessageType::Hello) => Hello::parse(body).ok().map(|m| m.to_bytes()),
        Some(MessageType::StockOffer) => StockOffer::parse(body).ok().map(|m| m.to_bytes()),
        Some(MessageType::StockAck) => StockAck::parse(body).ok().map(|m| m.to_bytes()),
        Some(MessageType::Propose) => Propose::parse(body).ok().map(|m| m.to_bytes()),
        Some(MessageType::Accept) => Accept::parse(body).ok().map(|(m, transcript, confirmation)| {
            assert_eq!(m.to_bytes(), transcript);
            [transcript, &confirmation].concat()
        }),
        Some(MessageType::Confirm) => Confirm::parse(body).ok().map(|m| m.to_bytes()),
        Some(MessageType::Ping | MessageType::Pong) => Ping::parse(body).ok().map(|m| m.to_bytes().to_vec()),
        Some(MessageType::Lanes) => LaneSet::parse(body).ok().map(|m| m.to_bytes().to_vec()),
        Some(MessageType::Reject) => Reject::parse(body).ok().map(|m| m.to_bytes()),
        _ => None,
    };
    if let Some(again) = again {
        assert_eq!(again, body);
    }
}

/// Parses a packet of the control session.
pub fn fragment(bytes: &[u8]) {
    if let Ok(parsed) = Fragment::parse(bytes) {
        assert_eq!(Fragment::parse(&parsed.to_packet()), Ok(parsed));
    }
}

/// Feeds packets with two-byte lengths, one after another, into one channel. Memory stays bounded for any
/// input.
pub fn reassembly(mut bytes: &[u8]) {
    let (mut channel, mut rng) = (ReliableChannel::default(), ChaCha20Rng::seed_from_u64(0));
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (packet, rest) = rest.split_at(length);
        channel.receive(packet, Time::default(), &mut rng);
        while channel.next_packet().is_some() {}
        bytes = rest;
    }
}

fn key_id(text: &str) -> KeyId {
    KeyId::new(text).expect("it is neither empty nor long")
}

/// Returns a type byte and a valid message of that type.
#[allow(dead_code)]
pub fn valid(kind: u8, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut boxed = || {
        let mut bytes = Box::new([0u8; 1568]);
        rng.fill_bytes(&mut bytes[..]);
        bytes
    };
    let (one, two) = (boxed(), boxed());
    let small = u8::try_from(seed % 16).unwrap_or(0);
    let name = "k".repeat(usize::from(small) + 1);
    let key = |id: &str| KeyName { id: key_id(id), source_kme: name.clone(), target_kme: String::new() };
    let body = match MessageType::from_byte(kind) {
        Some(MessageType::Hello) => Hello {
            instance: [small; 16],
            counter: seed,
            role: Role::Responder,
            suite: Suite::Aes256Gcm,
            lanes: small + 1,
            policy: QkdPolicy::Preferred,
            interval_ms: 1000,
            min_interval_ms: 100,
            sae_own: SaeId::new(name.clone()).ok(),
            sae_peer: None,
            psk_check: seed.is_multiple_of(2).then_some([3; 16]),
            encapsulation_key: one,
        }
        .to_bytes(),
        Some(MessageType::StockOffer) => {
            StockOffer { number: seed, keys: vec![key("a"), key("b")] }.to_bytes()
        }
        Some(MessageType::StockAck) => {
            let keys =
                vec![(key_id("a"), KeyAvailability::Yes([7; 16])), (key_id("b"), KeyAvailability::Pending)];
            StockAck { number: seed, revision: 1, keys }.to_bytes()
        }
        Some(MessageType::Propose) => Propose {
            hello_initiator: [1; 48],
            hello_responder: [2; 48],
            epoch: EpochNumber(seed),
            x25519: [3; 32],
            encapsulation_key: one,
            ciphertext: two,
            indices: (0..=u32::from(small)).map(|i| 1 << 31 | i).collect(),
            qkd_key_id: KeyId::new(name).ok(),
            chain_check: seed.is_multiple_of(2).then_some([4; 16]),
        }
        .to_bytes(),
        Some(MessageType::Accept) => {
            let indices = (0..=u32::from(small)).map(|i| 1 << 31 | i).collect();
            let accept = Accept {
                epoch: EpochNumber(seed),
                x25519: [3; 32],
                ciphertext_ephemeral: one,
                ciphertext_static: two,
                indices,
            };
            [accept.to_bytes(), vec![9; 48]].concat()
        }
        Some(MessageType::Confirm) => Confirm { epoch: EpochNumber(seed), confirmation: [5; 48] }.to_bytes(),
        Some(MessageType::Reject) => Reject { id: [6; 8], reason: RejectReason::Chain }.to_bytes(),
        _ => vec![small],
    };
    let packets = fragment::packets([1; 8], MessageType::Hello, &body);
    packets.iter().for_each(|p| fragment(p));
    [vec![kind], body].concat()
}
