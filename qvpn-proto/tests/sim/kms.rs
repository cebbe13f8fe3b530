//! The two KMEs of a tunnel: keys that both sites get under one ID, and their faults.

use std::collections::BTreeMap;
use std::time::Duration;

use qvpn_proto::kms::{KmsFailure, KmsFailureKind};
use qvpn_proto::{Fetch, FetchedKey, KeyKind, KeyName, KmsReport};
use qvpn_secret::SecretBuf;
use qvpn_types::{KeyId, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use crate::network::{chance, up_to};

/// The faults of the KMEs. Chances are per mille and per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KmsFaults {
    /// The minimum delay of an answer.
    pub delay: Duration,
    /// The maximum additional delay.
    pub jitter: Duration,
    /// The maximum delay after which the responder's KME has a key that the initiator's KME has.
    pub lag: Duration,
    /// The chance that the responder's KME never gets the key.
    pub lost: u32,
    /// The chance that the two KMEs hold different bytes under the same ID.
    pub wrong: u32,
    /// The chance that the key is too short.
    pub short: u32,
    /// The chance that a key is delivered a second time, with the same bytes and ID.
    pub again: u32,
}

pub const GOOD: KmsFaults = KmsFaults {
    delay: Duration::from_millis(20),
    jitter: Duration::ZERO,
    lag: Duration::ZERO,
    lost: 0,
    wrong: 0,
    short: 0,
    again: 0,
};

struct StoredKey {
    bytes: Vec<u8>,
    from: Time,
}

/// A key that a KME delivered: the side, and the key's bytes.
pub struct Delivered {
    pub side: usize,
    pub id: KeyId,
    pub bytes: Vec<u8>,
}

pub struct Kms {
    pub faults: KmsFaults,
    /// Whether the KME of each side can be reached.
    pub up: [bool; 2],
    /// The kind of each side's source, which gives keys under any policy.
    pub kind: [KeyKind; 2],
    /// The number of requests to each side's KME.
    pub asked: [u32; 2],
    pub corrupt_next_key: bool,
    pub corrupt_all_keys: bool,
    next: u64,
    waiting: BTreeMap<KeyId, StoredKey>,
    last: Option<(KeyId, Vec<u8>)>,
    tunnel: usize,
}

impl Kms {
    pub fn new(tunnel: usize) -> Self {
        Self {
            faults: GOOD,
            up: [true; 2],
            kind: [KeyKind::Qkd; 2],
            asked: [0; 2],
            corrupt_next_key: false,
            corrupt_all_keys: false,
            next: 0,
            waiting: BTreeMap::new(),
            last: None,
            tunnel,
        }
    }

    /// Forgets every key that the responder has not fetched yet.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    /// Returns the answers: the delay, the report, and the delivered keys.
    pub fn fetch(
        &mut self,
        side: usize,
        fetch: Fetch,
        now: Time,
        rng: &mut ChaCha20Rng,
    ) -> (Duration, KmsReport, Vec<Delivered>) {
        let in_pair = side % 2;
        self.asked[in_pair] += 1;
        let delay = self.faults.delay + up_to(self.faults.jitter, rng);
        let mut delivered = Vec::new();
        let (Fetch::New { request, .. } | Fetch::ById { request, .. }) = &fetch;
        let request = *request;
        if !self.up[in_pair] {
            let text = format!("KME of site {side} is unreachable");
            let failure = KmsFailure { kind: KmsFailureKind::Unavailable, text };
            return (delay, KmsReport::Failed { request, failure }, delivered);
        }
        let (mut found, kind) = (Vec::new(), self.kind[in_pair]);
        let mut missing = None;
        let mut give = |id: KeyId, mut bytes: Vec<u8>| {
            delivered.push(Delivered { side, id: id.clone(), bytes: bytes.clone() });
            let name = KeyName { id, source_kme: "kme-a".to_owned(), target_kme: "kme-b".to_owned() };
            found.push(FetchedKey { name, kind, secret: SecretBuf::take(&mut bytes) });
        };
        match fetch {
            Fetch::New { number, .. } => {
                for _ in 0..number {
                    let (id, bytes) = self.new_key(now, rng);
                    give(id, bytes);
                }
            }
            Fetch::ById { keys, .. } => {
                for name in &keys {
                    if self.waiting.get(&name.id).is_none_or(|key| key.from > now) {
                        continue;
                    }
                    let Some(StoredKey { mut bytes, .. }) = self.waiting.remove(&name.id) else { continue };
                    let wrong = chance(self.faults.wrong, rng);
                    if std::mem::take(&mut self.corrupt_next_key) || self.corrupt_all_keys || wrong {
                        bytes[0] ^= 1;
                    }
                    give(name.id.clone(), bytes);
                }
                if found.len() < keys.len() {
                    let text = "not found".to_owned();
                    missing = Some(KmsFailure { kind: KmsFailureKind::NotFound, text });
                }
            }
        }
        (delay, KmsReport::Keys { request, keys: found, missing }, delivered)
    }

    fn new_key(&mut self, now: Time, rng: &mut ChaCha20Rng) -> (KeyId, Vec<u8>) {
        if let Some(last) = self.last.clone().filter(|_| chance(self.faults.again, rng)) {
            return last;
        }
        self.next += 1;
        let id = KeyId::new(match self.tunnel {
            0 => format!("key-{}", self.next),
            tunnel => format!("key-{tunnel}-{}", self.next),
        })
        .unwrap();
        let mut bytes = vec![0; if chance(self.faults.short, rng) { 31 } else { 32 }];
        rng.fill_bytes(&mut bytes);
        if !chance(self.faults.lost, rng) {
            let from = now + up_to(self.faults.lag, rng);
            self.waiting.insert(id.clone(), StoredKey { bytes: bytes.clone(), from });
        }
        self.last = Some((id.clone(), bytes.clone()));
        (id, bytes)
    }
}
