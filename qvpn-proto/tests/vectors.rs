//! Runs a whole exchange from fixed inputs and compares it with `docs/vectors/exchange.json`. The Python
//! program beside that file computes the same from the specification alone. `QVPN_WRITE_VECTORS=1` writes the
//! file again.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use data_encoding::HEXLOWER as HEX;
use qvpn_identity::SecretIdentity;
use qvpn_proto::exchange::{ExchangeParameters, Proposal, Proposed, answer};
use qvpn_proto::key_schedule::{Chain, EpochKeys, psk_check, qkd_check};
use qvpn_proto::wire::{Hello, Propose};
use qvpn_proto::{QkdPolicy, Role};
use qvpn_secret::{Secret, SecretBuf};
use qvpn_types::{EpochNumber, KeyId, SaeId, Suite};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng, TryCryptoRng, TryRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

/// A seeded random source that records its output.
struct Recorder {
    source: ChaCha20Rng,
    drawn: Vec<u8>,
}

impl Recorder {
    fn new(seed: u64) -> Self {
        Self { source: ChaCha20Rng::seed_from_u64(seed), drawn: Vec::new() }
    }
}

impl TryRng for Recorder {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("the exchange draws bytes")
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("the exchange draws bytes")
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.source.fill_bytes(out);
        self.drawn.extend_from_slice(out);
        Ok(())
    }
}

impl TryCryptoRng for Recorder {}

fn hello(
    identity: &SecretIdentity,
    instance: u8,
    role: Role,
    suite: Suite,
    names: [&str; 2],
    psk: Option<&Secret<32>>,
) -> Vec<u8> {
    let instance = [instance; 16];
    Hello {
        instance,
        counter: 1,
        role,
        suite,
        lanes: 2,
        policy: QkdPolicy::Required,
        interval_ms: 60_000,
        min_interval_ms: 6_000,
        sae_own: SaeId::new(names[0]).ok(),
        sae_peer: SaeId::new(names[1]).ok(),
        psk_check: psk.map(|psk| psk_check(psk, &instance)),
        encapsulation_key: Box::new(*identity.encapsulation_key()),
    }
    .to_bytes()
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    Sha384::digest(bytes).into()
}

fn keys_json(keys: &EpochKeys) -> Value {
    let all = |keys: &[Secret<32>]| keys.iter().map(|k| HEX.encode(k.expose())).collect::<Vec<_>>();
    json!({
        "confirm_responder": HEX.encode(keys.confirm_responder.expose()),
        "confirm_initiator": HEX.encode(keys.confirm_initiator.expose()),
        "to_responder": all(&keys.to_responder),
        "to_initiator": all(&keys.to_initiator),
        "chain_check": HEX.encode(&keys.chain.check),
    })
}

struct Case<'a> {
    name: &'a str,
    epoch: u64,
    suite: Suite,
    qkd: Option<(&'a str, &'a SecretBuf)>,
    psk: Option<&'a Secret<32>>,
    chain: Option<&'a Chain>,
}

/// Runs one exchange between two sides. Returns all its values and the chain.
fn run(case: &Case<'_>, ends: &[SecretIdentity; 2]) -> (Value, Chain) {
    let [a, b] = ends;
    let hello_a = hello(a, 0xa1, Role::Initiator, case.suite, ["SITE-A", "SITE-B"], case.psk);
    let hello_b = hello(b, 0xb2, Role::Responder, case.suite, ["SITE-B", "SITE-A"], case.psk);
    let terms = ExchangeParameters {
        initiator: a.public(),
        responder: b.public(),
        hello_initiator: &hello_a,
        hello_responder: &hello_b,
        suite: case.suite,
        lanes: 2,
    };
    let (mut rng_a, mut rng_b) = (Recorder::new(100 + case.epoch), Recorder::new(200 + case.epoch));
    let proposal = Proposal {
        hello_hashes: (sha384(&hello_a), sha384(&hello_b)),
        epoch: EpochNumber(case.epoch),
        responder_key: b.encapsulation_key(),
        indices: vec![0x8000_0001, 0x8000_0002],
        qkd_key_id: case.qkd.map(|(id, _)| KeyId::new(id).unwrap()),
        chain_check: case.chain.map(|c| c.check),
    };
    let proposed = Proposed::new(proposal, &mut rng_a).unwrap();
    let propose = proposed.bytes().to_vec();
    let qkd = case.qkd.map(|(_, key)| key);
    let answered = answer(
        &Propose::parse(&propose).unwrap(),
        &propose,
        a.encapsulation_key(),
        &terms,
        b,
        vec![0x8001_0001, 0x8001_0002u32],
        (qkd, case.psk, case.chain),
        &mut rng_b,
    )
    .unwrap();
    let agreed = proposed
        .verify(&answered.accept, &terms, a, qkd, case.psk, case.chain)
        .map_err(|(_, error)| error)
        .unwrap();
    assert_eq!(keys_json(&agreed.keys), keys_json(&answered.keys), "the two sides differ");
    let value = json!({
        "name": case.name,
        "suite": case.suite as u8,
        "lanes": 2,
        "epoch": case.epoch,
        "hello_initiator": HEX.encode(&hello_a),
        "hello_responder": HEX.encode(&hello_b),
        "initiator_random": HEX.encode(&rng_a.drawn),
        "responder_random": HEX.encode(&rng_b.drawn),
        "initiator_indices": [0x8000_0001u32, 0x8000_0002u32],
        "responder_indices": [0x8001_0001u32, 0x8001_0002u32],
        "qkd_key_id": case.qkd.map(|(id, _)| id),
        "qkd_key": case.qkd.map(|(_, key)| HEX.encode(key.expose())),
        "qkd_check": case.qkd.map(|(id, key)| HEX.encode(&qkd_check(key, &KeyId::new(id).unwrap()))),
        "psk": case.psk.map(|psk| HEX.encode(psk.expose())),
        "uses_chain": case.chain.is_some(),
        "propose": HEX.encode(&propose),
        "accept": HEX.encode(&answered.accept),
        "keys": keys_json(&agreed.keys),
    });
    (value, agreed.keys.chain)
}

#[test]
fn the_exchange_agrees_with_its_vector() {
    let ends = [1u64, 2].map(|seed| SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)));
    let qkd = SecretBuf::take(&mut [0x51; 32]);
    let psk = Secret::take(&mut [0x52; 32]);
    let id = "8a9b6d1e-0000-4000-8000-00000000002a";
    let plain = Case {
        name: "ML-KEM and X25519 only",
        epoch: 1,
        suite: Suite::ChaCha20Poly1305,
        qkd: None,
        psk: None,
        chain: None,
    };
    let (first, chain) = run(&plain, &ends);
    let full = Case {
        name: "QKD key, pre-shared key and the chain of the case before",
        epoch: 2,
        suite: Suite::Aes256Gcm,
        qkd: Some((id, &qkd)),
        psk: Some(&psk),
        chain: Some(&chain),
    };
    let (second, _) = run(&full, &ends);
    let identity = |i: &SecretIdentity| {
        json!({
            "x25519": HEX.encode(i.x25519().expose()),
            "mlkem_seed": HEX.encode(i.mlkem_seed().expose()),
            "public": i.public().to_string(),
        })
    };
    let vector = json!({
        "about": "qvpn protocol version 2, section Key schedule of docs/protocol.md; all keys here are \
                  examples",
        "initiator": identity(&ends[0]),
        "responder": identity(&ends[1]),
        "exchanges": [first, second],
    });
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vectors/exchange.json");
    if std::env::var_os("QVPN_WRITE_VECTORS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&vector).unwrap() + "\n").unwrap();
    }
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(vector, kept, "the exchange changed: that is another protocol version");
}
