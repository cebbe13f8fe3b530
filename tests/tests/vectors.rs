//! `docs/vectors/pieces.json`, which a Python program computed from `docs/protocol.md` alone, compared with
//! the gateways' code: identities, fragments, and data packets, with the sessions that seal and open them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use data_encoding::HEXLOWER;
use qvpn_dataplane::fuzzing;
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_proto::wire::{Fragment, MessageType, fragment};
use qvpn_secret::Secret;
use qvpn_types::Suite;
use serde_json::Value;

fn pieces(part: &str) -> Vec<Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vectors/pieces.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let part = all[part].as_array().unwrap().clone();
    assert!(part.len() >= 3);
    part
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

#[test]
fn identities_agree() {
    for piece in pieces("identities") {
        let secret = SecretIdentity::from_text(piece["secret"].as_str().unwrap()).unwrap();
        assert_eq!(secret.public().to_string(), piece["public"]);
        assert_eq!(secret.public().fingerprint(), piece["fingerprint"]);
        let read: PublicIdentity = piece["public"].as_str().unwrap().parse().unwrap();
        assert_eq!(read, *secret.public());
    }
}

#[test]
fn fragments_agree() {
    for piece in pieces("fragments") {
        let kind = MessageType::from_byte(u8::try_from(piece["type"].as_u64().unwrap()).unwrap()).unwrap();
        let id = hex(&piece["id"]).try_into().unwrap();
        let packets = fragment::packets(id, kind, &hex(&piece["message"]));
        let want: Vec<Vec<u8>> = piece["packets"].as_array().unwrap().iter().map(hex).collect();
        assert_eq!(packets, want);
        let whole: Vec<u8> =
            want.iter().flat_map(|packet| Fragment::parse(packet).unwrap().payload.to_vec()).collect();
        assert_eq!(whole, hex(&piece["message"]));
    }
}

#[test]
fn data_packets_agree() {
    let mut sealed = 0;
    for piece in pieces("data") {
        let suite = match piece["suite"].as_str().unwrap() {
            "chacha20poly1305" => Suite::ChaCha20Poly1305,
            _ => Suite::Aes256Gcm,
        };
        let key = || Secret::take(&mut hex(&piece["key"]).try_into().unwrap());
        let index = u32::try_from(piece["receiver_index"].as_u64().unwrap()).unwrap();
        let counter = piece["counter"].as_u64().unwrap();
        let (inner, datagram) = (hex(&piece["inner"]), hex(&piece["datagram"]));
        let opened = fuzzing::open(suite, key(), index, &datagram).unwrap();
        assert_eq!(opened[..inner.len()], inner);
        assert!(opened.len() < inner.len() + 16 && opened[inner.len()..].iter().all(|byte| *byte == 0));
        let mut forged = datagram.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(fuzzing::open(suite, key(), index, &forged), None);
        // A session counts from 0, so packets with late counters can only be opened.
        if counter < 10 {
            assert_eq!(fuzzing::seal(suite, key(), index, counter, &inner).unwrap(), datagram);
            sealed += 1;
        }
    }
    assert_eq!(sealed, 8);
}
