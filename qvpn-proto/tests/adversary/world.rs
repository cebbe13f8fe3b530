//! The honest side, and what its adversary knows and can do.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use qvpn_identity::SecretIdentity;
use qvpn_proto::channel::{ReceiveOutcome, ReliableChannel};
use qvpn_proto::exchange::{ExchangeParameters, Proposal, Proposed, answer};
use qvpn_proto::key_schedule::Chain;
use qvpn_proto::session::{ControlLink, LinkOutput};
use qvpn_proto::wire::{Confirm, Hello, MessageType, Propose, Reject, RejectReason};
use qvpn_proto::{
    Fetch, FetchedKey, KeyKind, KeyName, KmsReport, LaneOrder, LaneReport, Peer, PeerConfig, PeerEvent,
    PeerOutput, QkdPolicy, Role,
};
use qvpn_secret::SecretBuf;
use qvpn_types::{Direction, EpochNumber, KeyId, LocalEpoch, PeerNumber, SaeId, Suite, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha384};

/// A control session without encryption. It holds the highest session number so far (0 before the first
/// datagram), the number of the session in which the next datagram arrives, and a count of its initiations.
#[derive(Default)]
pub struct Open(u64, Arc<AtomicU64>, Arc<AtomicU64>);

impl ControlLink for Open {
    fn receive(&mut self, _: IpAddr, datagram: &[u8]) -> LinkOutput {
        let session = self.1.load(Ordering::Relaxed);
        let new_session = session > self.0;
        self.0 = self.0.max(session);
        LinkOutput {
            packets: vec![datagram.to_vec()],
            authenticated: true,
            new_session,
            session,
            ..LinkOutput::default()
        }
    }
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        Some(packet.to_vec())
    }
    fn start(&mut self) -> Option<Vec<u8>> {
        self.2.fetch_add(1, Ordering::Relaxed);
        None
    }
    fn tick(&mut self) -> LinkOutput {
        LinkOutput::default()
    }
    fn session_age(&self) -> Option<Duration> {
        (self.0 > 0).then_some(Duration::ZERO)
    }
    fn reset(&mut self) {}
}

pub static SITES: LazyLock<[Arc<SecretIdentity>; 3]> = LazyLock::new(|| {
    [1, 2, 3].map(|seed| Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed))))
});

pub fn honest() -> &'static SecretIdentity {
    &SITES[0]
}

pub fn other() -> &'static SecretIdentity {
    &SITES[1]
}

const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 51820);

/// The honest side, and what its adversary knows.
pub struct World {
    pub peer: Peer<Open>,
    pub session: Arc<AtomicU64>,
    initiations: Arc<AtomicU64>,
    pub role: Role,
    pub policy: QkdPolicy,
    pub channel: ReliableChannel,
    pub rng: ChaCha20Rng,
    pub now: Time,
    pub hello: Vec<u8>,
    pub theirs: Vec<u8>,
    /// Messages of the honest side, other than `Hello`s.
    pub said: Vec<(MessageType, [u8; 8], Vec<u8>)>,
    pub hellos: usize,
    /// The message ID of its last `Hello`.
    pub hello_id: [u8; 8],
    /// The events that it emitted.
    pub notices: Vec<PeerEvent>,
    /// The number of sealing keys that it put in force.
    pub sealing: usize,
    /// The number of orders that end a key.
    pub stopped: usize,
    /// The number of empty packets that it ordered.
    pub empties: usize,
    /// Opening keys that it closed at once, and the number of orders to close all older ones.
    pub closed: Vec<u32>,
    pub older: usize,
    /// The number of events that report a lost chain.
    pub resets: usize,
    /// The local epoch that seals, and the receiver index of the last opening key.
    pub local_epoch: LocalEpoch,
    pub opening: Option<u32>,
    /// The numbers of its requests to its KME. Requests for new keys get no answer.
    pub requests: Vec<u64>,
    /// Whether its lanes install no keys for now, and their reports for later.
    pub lanes_hang: bool,
    held: Vec<LaneReport>,
    /// The newest local epoch of each lane and direction.
    newest: BTreeMap<(u8, bool), LocalEpoch>,
    /// The chain of the last honest epoch, and of the last attempt.
    chain: Option<Chain>,
    answered: Option<Chain>,
}

fn key(name: KeyName) -> FetchedKey {
    let mut bytes = [0x5a; 32];
    bytes[0] = name.id.as_str().as_bytes()[0];
    FetchedKey { name, kind: KeyKind::Qkd, secret: SecretBuf::take(&mut bytes) }
}

/// The honest side's config.
pub fn config(role: Role, policy: QkdPolicy) -> PeerConfig {
    PeerConfig {
        local: SITES[0].clone(),
        remote: *other().public(),
        other_remote: None,
        role_by_keys: false,
        role,
        suite: Suite::ChaCha20Poly1305,
        rekey_interval: Duration::from_secs(60),
        min_rekey_interval: Duration::from_secs(6),
        lanes: 1,
        policy,
        qkd_source: true,
        sae_local: SaeId::new("US").ok(),
        sae_remote: SaeId::new("THEM").ok(),
        psk: None,
        stock: 3,
        endpoint: Some(FROM),
        liveness: None,
        number: PeerNumber(7),
    }
}

impl World {
    /// Returns an honest side with this role and policy, after both `Hello`s.
    pub fn new(role: Role, policy: QkdPolicy) -> Self {
        let now = Time::from_nanos(1 << 40);
        let config = config(role, policy);
        let session = Arc::new(AtomicU64::new(1));
        let initiations = Arc::new(AtomicU64::new(0));
        let link = Open(0, Arc::clone(&session), Arc::clone(&initiations));
        let mut world = Self {
            peer: Peer::new(config, link, [9; 16], now),
            session,
            initiations,
            role,
            policy,
            channel: ReliableChannel::default(),
            rng: ChaCha20Rng::seed_from_u64(5),
            now,
            hello: Vec::new(),
            theirs: Vec::new(),
            said: Vec::new(),
            hellos: 0,
            hello_id: [0; 8],
            notices: Vec::new(),
            sealing: 0,
            stopped: 0,
            empties: 0,
            closed: Vec::new(),
            older: 0,
            resets: 0,
            local_epoch: LocalEpoch::default(),
            opening: None,
            requests: Vec::new(),
            lanes_hang: false,
            held: Vec::new(),
            newest: BTreeMap::new(),
            chain: None,
            answered: None,
        };
        world.say_hello(1, 1);
        world
    }

    /// Returns the number of handshakes that the honest side initiated.
    pub fn initiations(&self) -> u64 {
        self.initiations.load(Ordering::Relaxed)
    }

    pub fn say_hello(&mut self, instance: u8, counter: u64) {
        let hello = Hello {
            instance: [instance; 16],
            counter,
            role: if self.role == Role::Responder { Role::Initiator } else { Role::Responder },
            suite: Suite::ChaCha20Poly1305,
            lanes: 1,
            policy: self.policy,
            interval_ms: 60_000,
            min_interval_ms: 6_000,
            sae_own: SaeId::new("THEM").ok(),
            sae_peer: SaeId::new("US").ok(),
            psk_check: None,
            encapsulation_key: Box::new(*other().encapsulation_key()),
        };
        self.hello = hello.to_bytes();
        let bytes = self.hello.clone();
        self.send(MessageType::Hello, &bytes);
    }

    pub fn send(&mut self, kind: MessageType, body: &[u8]) {
        self.channel.send(kind, body, self.now, &mut self.rng);
        self.pump();
    }

    /// Delivers all messages in both directions, and simulates the lanes.
    pub fn pump(&mut self) {
        loop {
            self.channel.flush(self.now);
            let mut busy = false;
            while let Some(packet) = self.channel.next_packet() {
                self.peer.handle_datagram(&packet, FROM, self.now, &mut self.rng);
                busy = true;
            }
            while let Some(transmit) = self.peer.poll_transmit() {
                busy = true;
                if let ReceiveOutcome::Message { id, kind, body } =
                    self.channel.receive(&transmit.datagram, self.now, &mut self.rng)
                {
                    if kind == MessageType::Hello {
                        self.theirs = body;
                        self.hello_id = id;
                        self.hellos += 1;
                    } else {
                        self.said.push((kind, id, body));
                    }
                }
            }
            let (mut installed, mut fetches) = (Vec::new(), Vec::new());
            while let Some(event) = self.peer.poll_event() {
                match event {
                    PeerOutput::Lane(lane, LaneOrder::InstallOpening { local_epoch, index, .. }) => {
                        self.never_back(lane, Direction::Opening, local_epoch);
                        self.opening = Some(index);
                        let direction = Direction::Opening;
                        installed.push(LaneReport::Installed { lane, local_epoch, direction });
                    }
                    PeerOutput::Lane(lane, LaneOrder::InstallSealing { local_epoch, .. }) => {
                        self.never_back(lane, Direction::Sealing, local_epoch);
                        self.sealing += 1;
                        self.local_epoch = local_epoch;
                        let direction = Direction::Sealing;
                        installed.push(LaneReport::Installed { lane, local_epoch, direction });
                    }
                    PeerOutput::Lane(_, LaneOrder::StopSealing) => self.stopped += 1,
                    PeerOutput::Lane(_, LaneOrder::SendEmpty) => self.empties += 1,
                    PeerOutput::Lane(_, LaneOrder::Close { index }) => self.closed.push(index),
                    PeerOutput::Lane(_, LaneOrder::CloseOlder { .. }) => self.older += 1,
                    PeerOutput::Event(notice) => {
                        self.resets += usize::from(notice == PeerEvent::ChainReset);
                        self.notices.push(notice);
                    }
                    PeerOutput::Fetch(Fetch::New { request, .. }) => self.requests.push(request),
                    PeerOutput::Fetch(Fetch::ById { request, keys, .. }) => {
                        self.requests.push(request);
                        fetches.push((request, keys));
                    }
                    _ => {}
                }
            }
            for (request, keys) in fetches {
                busy = true;
                let keys = keys.into_iter().map(key).collect();
                let report = KmsReport::Keys { request, keys, missing: None };
                self.peer.handle_kms(report, self.now, &mut self.rng);
            }
            self.held.extend(installed);
            if !self.lanes_hang {
                for report in std::mem::take(&mut self.held) {
                    busy = true;
                    self.peer.handle_lane(report, self.now, &mut self.rng);
                }
            }
            if !busy {
                return;
            }
        }
    }

    /// Keeps the chain of the last attempt as the one that both sides hold.
    pub fn keep_chain(&mut self) {
        self.chain = self.answered.take();
    }

    /// Reports this event of a lane.
    pub fn report(&mut self, report: LaneReport) {
        self.peer.handle_lane(report, self.now, &mut self.rng);
        self.pump();
    }

    /// Checks that each order to this lane and direction has a later epoch than the one before.
    fn never_back(&mut self, lane: u8, direction: Direction, epoch: LocalEpoch) {
        let before = self.newest.insert((lane, direction == Direction::Opening), epoch);
        assert!(before.is_none_or(|before| epoch > before), "{epoch} after {before:?}");
    }

    /// Delivers a packet of the control session unchanged.
    pub fn packet(&mut self, packet: &[u8]) {
        self.peer.handle_datagram(packet, FROM, self.now, &mut self.rng);
        self.pump();
    }

    /// Changes the policy by a reload.
    pub fn reload(&mut self, policy: QkdPolicy) {
        self.peer.reconfigure(config(self.role, policy), self.now, &mut self.rng);
        self.pump();
    }

    /// Lets the lanes install keys again, including those that were ordered in the meantime.
    pub fn lanes_go_on(&mut self) {
        self.lanes_hang = false;
        self.pump();
    }

    /// Lets time pass at the honest side.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.peer.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.peer.handle_timeout(self.now, &mut self.rng);
            self.pump();
        }
        self.now = end;
    }

    /// Removes and returns the last message of this type.
    pub fn take(&mut self, kind: MessageType) -> Option<Vec<u8>> {
        self.take_with_id(kind).map(|(_, body)| body)
    }

    /// Removes and returns the last message of this type and its ID.
    pub fn take_with_id(&mut self, kind: MessageType) -> Option<([u8; 8], Vec<u8>)> {
        let at = self.said.iter().rposition(|(said, ..)| *said == kind)?;
        let (_, id, body) = self.said.remove(at);
        Some((id, body))
    }

    pub fn rejected(&mut self) -> Option<RejectReason> {
        self.take(MessageType::Reject).map(|body| Reject::parse(&body).unwrap().reason)
    }

    pub fn terms<'a>(&self, hello: &'a [u8], theirs: &'a [u8]) -> ExchangeParameters<'a> {
        let (suite, lanes) = (Suite::ChaCha20Poly1305, 1);
        let (us, them) = (honest().public(), other().public());
        match self.role {
            Role::Responder => ExchangeParameters {
                initiator: them,
                responder: us,
                hello_initiator: hello,
                hello_responder: theirs,
                suite,
                lanes,
            },
            Role::Initiator => ExchangeParameters {
                initiator: us,
                responder: them,
                hello_initiator: theirs,
                hello_responder: hello,
                suite,
                lanes,
            },
        }
    }

    /// Returns a proposal to the honest responder under these `Hello`s.
    pub fn proposal(
        &mut self,
        epoch: u64,
        hello: &[u8],
        key: Option<&str>,
        chain: Option<[u8; 16]>,
    ) -> Proposed {
        let hash = |hello: &[u8]| Sha384::digest(hello).into();
        let proposal = Proposal {
            hello_hashes: (hash(hello), hash(&self.theirs)),
            epoch: EpochNumber(epoch),
            responder_key: honest().encapsulation_key(),
            indices: vec![1 << 31 | u32::try_from(epoch).unwrap()],
            qkd_key_id: key.map(|id| KeyId::new(id).unwrap()),
            chain_check: chain,
        };
        Proposed::new(proposal, &mut self.rng).unwrap()
    }

    pub fn propose(&mut self, epoch: u64) -> Proposed {
        let hello = self.hello.clone();
        let proposed = self.proposal(epoch, &hello, None, None);
        self.send(MessageType::Propose, proposed.bytes());
        proposed
    }

    /// Returns the right confirmation of an answered proposal.
    pub fn confirmation(&mut self, proposed: Proposed) -> [u8; 48] {
        let accept = self.take(MessageType::Accept).expect("an Accept");
        let (hello, theirs) = (self.hello.clone(), self.theirs.clone());
        let terms = self.terms(&hello, &theirs);
        let named = proposed.message().chain_check;
        let chain = self.chain.as_ref().filter(|chain| Some(chain.check) == named);
        let agreed = proposed.verify(&accept, &terms, other(), None, None, chain).ok().expect("it verifies");
        self.answered = Some(agreed.keys.chain);
        *agreed.keys.confirm_initiator.expose()
    }

    pub fn confirm(&mut self, epoch: u64, confirmation: [u8; 48]) {
        self.send(MessageType::Confirm, &Confirm { epoch: EpochNumber(epoch), confirmation }.to_bytes());
    }

    /// Runs an honest exchange as the initiator.
    pub fn exchange(&mut self, epoch: u64) {
        self.exchange_with(epoch, false);
    }

    /// Runs an honest exchange that names the chain of the one before.
    pub fn exchange_with_chain(&mut self, epoch: u64) {
        self.exchange_with(epoch, true);
    }

    fn exchange_with(&mut self, epoch: u64, chain: bool) {
        let hello = self.hello.clone();
        let chain = self.chain.as_ref().filter(|_| chain).map(|chain| chain.check);
        let proposed = self.proposal(epoch, &hello, None, chain);
        self.send(MessageType::Propose, proposed.bytes());
        let confirmation = self.confirmation(proposed);
        let before = self.sealing;
        self.confirm(epoch, confirmation);
        assert_eq!(self.sealing, before + 1, "an honest exchange works");
        self.chain = self.answered.take();
    }

    /// Returns an `Accept` without a QKD key for the honest initiator's proposal, made with `identity`.
    pub fn answer(&mut self, propose: &[u8], identity: &SecretIdentity) -> Vec<u8> {
        let parsed = Propose::parse(propose).unwrap();
        let (hello, theirs) = (self.hello.clone(), self.theirs.clone());
        let terms = self.terms(&hello, &theirs);
        let chain = self.chain.as_ref().filter(|chain| Some(chain.check) == parsed.chain_check);
        let secrets = (None, None, chain);
        let initiator = honest().encapsulation_key();
        let rng = &mut self.rng;
        let answered =
            answer(&parsed, propose, initiator, &terms, identity, vec![1 << 31 | 5], secrets, rng).unwrap();
        self.answered = Some(answered.keys.chain);
        answered.accept
    }

    /// Runs an honest exchange as the responder, and returns what was proposed.
    pub fn answer_next(&mut self) -> Propose {
        let propose = self.take(MessageType::Propose).expect("a Propose");
        let accept = self.answer(&propose, other());
        let before = self.sealing;
        self.send(MessageType::Accept, &accept);
        assert_eq!(self.sealing, before + 1, "an honest exchange works");
        self.chain = self.answered.take();
        Propose::parse(&propose).unwrap()
    }
}
