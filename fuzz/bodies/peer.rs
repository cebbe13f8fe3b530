//! Runs a `Peer` against a remote site that has valid keys and breaks every rule. It gets honest messages,
//! damaged ones, messages in any order, reports of KMEs and lanes, and time. It never panics, never installs
//! a sealing key twice, never seals without a QKD key if one is required, and does a bounded amount of work.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_proto::exchange::{ExchangeParameters, Proposal, Proposed, answer};
use qvpn_proto::key_schedule::{Chain, qkd_check};
use qvpn_proto::kms::{KmsFailure, KmsFailureKind};
use qvpn_proto::session::{ControlLink, LinkOutput};
use qvpn_proto::wire::{
    Confirm, Fragment, Hello, KeyAvailability, MessageType, Propose, Reject, RejectReason, StockAck,
    StockOffer, fragment,
};
use qvpn_proto::{
    Fetch, FetchedKey, KeyKind, KeyName, KmsReport, LaneOrder, LaneReport, Peer, PeerConfig, PeerEvent,
    PeerOutput, QkdPolicy, Role,
};
use qvpn_secret::SecretBuf;
use qvpn_types::{Direction, EpochNumber, KeyId, LocalEpoch, PeerNumber, SaeId, Suite, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha384};

use super::input::Input;

/// The maximum number of operations in a case; an exchange takes about ten.
const MAX_STEPS: usize = 60;

/// A control session that is always up and does not encrypt.
#[derive(Default)]
struct Open {
    met: bool,
}

impl ControlLink for Open {
    fn receive(&mut self, _from: IpAddr, datagram: &[u8]) -> LinkOutput {
        let new_session = !std::mem::replace(&mut self.met, true);
        LinkOutput {
            packets: vec![datagram.to_vec()],
            authenticated: true,
            new_session,
            ..LinkOutput::default()
        }
    }
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        Some(packet.to_vec())
    }
    fn start(&mut self) -> Option<Vec<u8>> {
        None
    }
    fn tick(&mut self) -> LinkOutput {
        LinkOutput::default()
    }
    fn session_age(&self) -> Option<Duration> {
        self.met.then_some(Duration::ZERO)
    }
    fn reset(&mut self) {}
}

/// The identities, generated once because that is slow.
pub(super) struct Sites {
    pub(super) us: Arc<SecretIdentity>,
    pub(super) them: Arc<SecretIdentity>,
}

pub(super) static SITES: LazyLock<Sites> = LazyLock::new(|| {
    let make = |seed| Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)));
    Sites { us: make(1), them: make(2) }
});

fn key_number(id: &KeyId) -> Option<u8> {
    id.as_str().strip_prefix("key-")?.parse().ok()
}

fn key_name(n: u8) -> KeyName {
    KeyName {
        id: KeyId::new(format!("key-{n}")).unwrap(),
        source_kme: "kme-a".to_owned(),
        target_kme: "kme-b".to_owned(),
    }
}

fn key(n: u8) -> SecretBuf {
    SecretBuf::take(&mut [n | 0x80; 32])
}

/// Runs an honest responder against a hostile initiator.
pub fn responder(bytes: &[u8]) {
    epochs(Role::Responder, bytes);
}

/// Runs an honest initiator against a hostile responder.
pub fn initiator(bytes: &[u8]) {
    epochs(Role::Initiator, bytes);
}

/// Runs a case and returns the number of sealing keys that a side in this role installed.
pub fn epochs(role: Role, bytes: &[u8]) -> usize {
    Case::new(role, bytes).run()
}

struct Case<'a> {
    input: Input<'a>,
    role: Role,
    policy: QkdPolicy,
    peer: Peer<Open>,
    rng: ChaCha20Rng,
    now: Time,
    /// Both `Hello`s in force, ours first, and the state of the exchange under way.
    hello: Vec<u8>,
    theirs: Vec<u8>,
    proposed: Option<(Proposed, Option<u8>)>,
    confirm: Option<Vec<u8>>,
    epoch: u64,
    number: u64,
    /// Reports that the lanes have not sent yet.
    installed: Vec<LaneReport>,
    fetches: Vec<Fetch>,
    propose: Vec<u8>,
    accept: Vec<u8>,
    /// Message IDs of the peer that may be rejected.
    ids: Vec<[u8; 8]>,
    /// Message IDs of the peer that arrived whole and await an acknowledgement.
    whole: Vec<[u8; 8]>,
    /// Chains of the last epochs.
    chains: Vec<Chain>,
    sealed: BTreeSet<[u8; 32]>,
    qkd_epoch: bool,
}

impl<'a> Case<'a> {
    fn new(role: Role, bytes: &'a [u8]) -> Self {
        let mut input = Input(bytes);
        let policy = [QkdPolicy::Required, QkdPolicy::Preferred, QkdPolicy::Off][usize::from(input.u8() % 3)];
        let now = Time::from_nanos(1 << 40);
        let config = PeerConfig {
            local: SITES.us.clone(),
            remote: *SITES.them.public(),
            other_remote: None,
            role_by_keys: false,
            role,
            suite: Suite::ChaCha20Poly1305,
            rekey_interval: Duration::from_secs(1),
            min_rekey_interval: Duration::from_millis(100),
            lanes: 1 + input.u8() % 2,
            policy,
            qkd_source: true,
            sae_local: SaeId::new("US").ok(),
            sae_remote: SaeId::new("THEM").ok(),
            psk: None,
            stock: 3,
            endpoint: Some(SocketAddr::from(([192, 0, 2, 1], 51820))),
            liveness: Some(Duration::from_secs(2)),
            number: PeerNumber(7),
        };
        Self {
            input,
            role,
            policy,
            peer: Peer::new(config, Open::default(), [9; 16], now),
            rng: ChaCha20Rng::seed_from_u64(3),
            now,
            hello: Vec::new(),
            theirs: Vec::new(),
            proposed: None,
            confirm: None,
            epoch: 0,
            number: 0,
            installed: Vec::new(),
            fetches: Vec::new(),
            propose: Vec::new(),
            accept: Vec::new(),
            ids: Vec::new(),
            whole: Vec::new(),
            chains: Vec::new(),
            sealed: BTreeSet::new(),
            qkd_epoch: false,
        }
    }

    fn run(mut self) -> usize {
        for _ in 0..MAX_STEPS {
            if self.input.0.is_empty() {
                break;
            }
            self.step();
            self.drain();
            for id in std::mem::take(&mut self.whole) {
                self.send(MessageType::Ack, &id);
            }
            self.drain();
        }
        self.sealed.len()
    }

    fn step(&mut self) {
        match self.input.u8() % 14 {
            0 => self.say_hello(),
            1 => self.offer(),
            2 => self.propose(),
            3 => self.take_accept(),
            4 => {
                let confirm = self.confirm.clone().unwrap_or_else(|| {
                    Confirm { epoch: EpochNumber(self.epoch), confirmation: [self.input.u8(); 48] }.to_bytes()
                });
                self.send_damaged(MessageType::Confirm, confirm);
            }
            5 => self.answer_propose(),
            6 => {
                let accept = self.accept.clone();
                self.send_damaged(MessageType::Accept, accept);
            }
            7 => self.ack_stock(),
            8 => self.kms(),
            9 => self.lanes(),
            10 => {
                let id = self.ids.pop().unwrap_or_default();
                let reason = RejectReason::from_byte(self.input.u8() % 14).unwrap_or(RejectReason::Stale);
                self.send_damaged(MessageType::Reject, Reject { id, reason }.to_bytes());
            }
            11 => {
                let kind = MessageType::from_byte(self.input.u8() % 13).unwrap_or(MessageType::Ping);
                let length = usize::from(self.input.u8());
                let body = self.input.bytes(length);
                self.send(kind, &body);
            }
            12 => {
                let length = usize::from(self.input.u8());
                let packet = self.input.bytes(length);
                self.datagram(&packet);
            }
            _ => {
                let ticks = u32::from(self.input.u8());
                self.now = self.now + Duration::from_millis(10) * ticks * ticks;
                for _ in 0..50 {
                    if self.peer.poll_timeout().is_none_or(|at| at > self.now) {
                        break;
                    }
                    self.peer.handle_timeout(self.now, &mut self.rng);
                }
            }
        }
    }

    fn datagram(&mut self, packet: &[u8]) {
        let from = SocketAddr::from(([192, 0, 2, 1], 51820));
        self.peer.handle_datagram(packet, from, self.now, &mut self.rng);
    }

    fn send(&mut self, kind: MessageType, body: &[u8]) {
        self.number += 1;
        for packet in fragment::packets(self.number.to_be_bytes(), kind, body) {
            self.datagram(&packet);
        }
    }

    fn send_damaged(&mut self, kind: MessageType, body: Vec<u8>) {
        let body = self.input.damage(body);
        self.send(kind, &body);
    }

    fn say_hello(&mut self) {
        let [instance, lanes, policy, size] = [(); 4].map(|()| self.input.u8());
        let hello = Hello {
            instance: [instance % 4; 16],
            counter: self.number,
            role: if self.role == Role::Responder { Role::Initiator } else { Role::Responder },
            suite: Suite::ChaCha20Poly1305,
            lanes: 1 + lanes % 16,
            policy: if policy < 200 { self.policy } else { QkdPolicy::Preferred },
            interval_ms: 100 + 500 * u32::from(size),
            min_interval_ms: 100,
            sae_own: SaeId::new("THEM").ok(),
            sae_peer: SaeId::new("US").ok(),
            psk_check: None,
            encapsulation_key: Box::new(*SITES.them.encapsulation_key()),
        };
        self.hello = self.input.damage(hello.to_bytes());
        self.send(MessageType::Hello, &self.hello.clone());
    }

    fn offer(&mut self) {
        let [first, count] = [(); 2].map(|()| self.input.u8() % 8);
        let keys = (first..first + count).map(key_name).collect();
        let offer = StockOffer { number: self.number, keys };
        self.send_damaged(MessageType::StockOffer, offer.to_bytes());
    }

    fn ack_stock(&mut self) {
        let how = self.input.u8();
        let keys = (0..8u8).map(|n| {
            let check = qkd_check(&key(if how & 1 << n == 0 { n } else { n + 1 }), &key_name(n).id);
            (key_name(n).id, if how == 255 { KeyAvailability::Gone } else { KeyAvailability::Yes(check) })
        });
        let ack =
            StockAck { number: u64::from(self.input.u8() % 8), revision: self.number, keys: keys.collect() };
        self.send_damaged(MessageType::StockAck, ack.to_bytes());
    }

    fn lanes_agreed(&self) -> u8 {
        let lanes = |hello: &[u8]| Hello::parse(hello).map(|hello| hello.lanes).ok();
        lanes(&self.hello).into_iter().chain(lanes(&self.theirs)).min().unwrap_or(1)
    }

    fn propose(&mut self) {
        let how = self.input.u8();
        let n = (how & 1 == 0).then_some(how >> 1 & 7);
        let hash = |hello: &[u8]| Sha384::digest(hello).into();
        self.epoch += u64::from(how >> 4 & 3);
        let proposal = Proposal {
            hello_hashes: (hash(&self.hello), hash(&self.theirs)),
            epoch: EpochNumber(self.epoch),
            responder_key: SITES.us.encapsulation_key(),
            indices: (0..u32::from(self.lanes_agreed())).map(|lane| 1 << 31 | lane).collect(),
            qkd_key_id: n.map(|n| key_name(n).id),
            chain_check: match how >> 6 {
                3 => Some([how; 16]),
                2 => self.chains.last().map(|chain| chain.check),
                _ => None,
            },
        };
        if let Ok(proposed) = Proposed::new(proposal, &mut self.rng) {
            let bytes = proposed.bytes().to_vec();
            self.proposed = Some((proposed, n));
            self.send_damaged(MessageType::Propose, bytes);
        }
    }

    /// Processes the received `Accept` as an honest initiator does.
    fn take_accept(&mut self) {
        let Some((proposed, n)) = self.proposed.take() else { return };
        let chain = proposed.message().chain_check;
        let chain = self.chains.iter().find(|known| Some(known.check) == chain);
        let (epoch, qkd) = (proposed.message().epoch, n.map(key));
        let (hello, theirs) = (self.hello.clone(), self.theirs.clone());
        let terms = self.terms(SITES.them.public(), SITES.us.public(), &hello, &theirs);
        if let Ok(agreed) = proposed.verify(&self.accept, &terms, &SITES.them, qkd.as_ref(), None, chain) {
            let confirmation = *agreed.keys.confirm_initiator.expose();
            self.confirm = Some(Confirm { epoch, confirmation }.to_bytes());
            self.chains.push(agreed.keys.chain);
        }
    }

    /// Answers the received `Propose` as an honest responder does.
    fn answer_propose(&mut self) {
        let Ok(propose) = Propose::parse(&self.propose) else { return };
        let lanes = self.lanes_agreed();
        let indices = (0..u32::from(lanes)).map(|lane| 1 << 31 | lane).collect();
        let number = propose.qkd_key_id.as_ref().and_then(key_number);
        let qkd = number.map(key);
        let (hello, theirs) = (self.hello.clone(), self.theirs.clone());
        let terms = self.terms(SITES.us.public(), SITES.them.public(), &theirs, &hello);
        let initiator = SITES.us.encapsulation_key();
        let chain = self.chains.iter().find(|known| Some(known.check) == propose.chain_check);
        let secrets = (qkd.as_ref(), None, chain);
        let rng = &mut ChaCha20Rng::seed_from_u64(self.number);
        let answered = answer(&propose, &self.propose, initiator, &terms, &SITES.them, indices, secrets, rng);
        if let Ok(answered) = answered {
            self.accept = answered.accept;
            self.chains.push(answered.keys.chain);
        }
    }

    fn terms<'t>(
        &self,
        initiator: &'t PublicIdentity,
        responder: &'t PublicIdentity,
        hello_initiator: &'t [u8],
        hello_responder: &'t [u8],
    ) -> ExchangeParameters<'t> {
        let (suite, lanes) = (Suite::ChaCha20Poly1305, self.lanes_agreed());
        ExchangeParameters { initiator, responder, hello_initiator, hello_responder, suite, lanes }
    }

    fn kms(&mut self) {
        let how = self.input.u8();
        let Some(fetch) = self.fetches.pop() else { return };
        let trouble = |kind| KmsFailure { kind, text: "no".to_owned() };
        let report = match fetch {
            Fetch::New { request, .. } | Fetch::ById { request, .. } if how & 3 == 3 => KmsReport::Failed {
                request: request + u64::from(how >> 7),
                failure: trouble(KmsFailureKind::Unavailable),
            },
            Fetch::New { request, .. } => {
                let key = |n: u8| FetchedKey { name: key_name(n), kind: KeyKind::Qkd, secret: key(n) };
                let keys = (how >> 2 & 7..(how >> 2 & 7) + 3).map(key).collect();
                KmsReport::Keys { request, keys, missing: None }
            }
            Fetch::ById { request, keys, .. } => {
                let keys = keys.into_iter().map(|name| {
                    let n = key_number(&name.id).unwrap_or(0);
                    FetchedKey { name, kind: KeyKind::Qkd, secret: key(if how & 4 == 0 { n } else { n + 1 }) }
                });
                let missing = (how & 8 != 0).then(|| trouble(KmsFailureKind::NotFound));
                KmsReport::Keys { request, keys: keys.take(usize::from(how >> 4)).collect(), missing }
            }
        };
        self.peer.handle_kms(report, self.now, &mut self.rng);
    }

    fn lanes(&mut self) {
        let how = self.input.u8();
        let report = match how & 3 {
            0 | 1 => {
                for report in std::mem::take(&mut self.installed) {
                    self.peer.handle_lane(report, self.now, &mut self.rng);
                }
                return;
            }
            2 => {
                LaneReport::FirstOpened { lane: how >> 7, local_epoch: LocalEpoch(u64::from(how >> 2 & 15)) }
            }
            _ => {
                LaneReport::SealingEnded { lane: how >> 7, local_epoch: LocalEpoch(u64::from(how >> 2 & 15)) }
            }
        };
        self.peer.handle_lane(report, self.now, &mut self.rng);
    }

    /// Polls the peer's output and checks that each item is allowed.
    fn drain(&mut self) {
        let mut sent = 0;
        while let Some(transmit) = self.peer.poll_transmit() {
            sent += 1;
            assert!(sent < 500 && transmit.datagram.len() <= 1280, "what it sends is bounded");
            let Ok(fragment) = Fragment::parse(&transmit.datagram) else { continue };
            self.ids.truncate(20);
            self.ids.push(fragment.id);
            if fragment.index + 1 == fragment.count && fragment.kind != MessageType::Ack {
                self.whole.push(fragment.id);
            }
            let whole = match fragment.kind {
                MessageType::Hello => &mut self.theirs,
                MessageType::Propose => &mut self.propose,
                MessageType::Accept => &mut self.accept,
                _ => continue,
            };
            if fragment.index == 0 {
                whole.clear();
            }
            whole.extend(fragment.payload);
        }
        let mut orders = Vec::new();
        let mut events = 0;
        while let Some(event) = self.peer.poll_event() {
            events += 1;
            assert!(events < 500, "what it wants is bounded");
            match event {
                PeerOutput::Lane(lane, order) => orders.push((lane, order)),
                PeerOutput::Fetch(fetch) => self.fetches.push(fetch),
                PeerOutput::Event(PeerEvent::EpochActive { sources, .. }) => self.qkd_epoch = sources.qkd,
                PeerOutput::Event(_) => {}
            }
        }
        self.fetches.truncate(10);
        for (lane, order) in orders {
            match order {
                LaneOrder::InstallOpening { local_epoch, .. } => {
                    let direction = Direction::Opening;
                    self.installed.push(LaneReport::Installed { lane, local_epoch, direction });
                }
                LaneOrder::InstallSealing { local_epoch, key, .. } => {
                    assert!(self.sealed.insert(*key.expose()), "a sealing key comes once");
                    assert!(self.qkd_epoch || self.policy != QkdPolicy::Required, "sealed without QKD");
                    let direction = Direction::Sealing;
                    self.installed.push(LaneReport::Installed { lane, local_epoch, direction });
                }
                _ => {}
            }
        }
    }
}
