//! A site played by the test: it speaks the protocol instead of a gateway, with keys and messages that the
//! test chooses. It computes an epoch's secrets with its own code, so a test knows each secret that the
//! daemon must have had, and can send authentic messages that no honest gateway sends.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use qvpn_identity::{PublicIdentity, SecretIdentity, dh, kem};
use qvpn_proto::channel::{ReceiveOutcome, ReliableChannel};
use qvpn_proto::key_schedule::qkd_check;
use qvpn_proto::kms::KeyName;
use qvpn_proto::session::{ControlLink, WireGuardLink};
use qvpn_proto::wire::{
    Accept, Confirm, Hello, KeyAvailability, MessageId, MessageType, Propose, RejectReason, StockAck,
    StockOffer,
};
use qvpn_proto::{QkdPolicy, Role};
use qvpn_secret::{Secret, SecretBuf};
use qvpn_types::{EpochNumber, KeyId, PeerNumber, SaeId, Suite, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha384};

use crate::packets::is_data;

mod secrets;

pub use secrets::Secrets;
use secrets::{ScheduleInputs, schedule};

/// How often the control session's clock ticks.
const TICK: Duration = Duration::from_millis(250);

/// A site that the test plays.
pub struct TestSite {
    socket: UdpSocket,
    target: SocketAddr,
    /// Its static keys.
    pub identity: Arc<SecretIdentity>,
    /// The gateway's public keys.
    pub remote: PublicIdentity,
    link: WireGuardLink,
    channel: ReliableChannel,
    /// The source of all its random values.
    pub rng: ChaCha20Rng,
    began: Instant,
    ticked: Instant,
    arrived: VecDeque<(MessageId, MessageType, Vec<u8>)>,
    /// The `Hello` that it sent last.
    pub hello: Vec<u8>,
    /// The gateway's latest `Hello`.
    pub theirs: Option<Vec<u8>>,
    /// The latest data packets, at most 100.
    pub data: VecDeque<Vec<u8>>,
    /// QKD keys by ID, with which it answers `StockOffer`s.
    pub qkd: BTreeMap<String, [u8; 32]>,
    revision: u64,
    next_index: u32,
}

/// The secrets of an attempt under way.
pub struct Attempt {
    x25519: Secret<32>,
    decapsulation_key: kem::DecapsulationKey,
    kem_to_responder: Secret<32>,
    qkd: Vec<u8>,
    chain: Vec<u8>,
    /// The `Propose`.
    pub message: Propose,
}

impl TestSite {
    /// Makes a site with this identity that sends from `socket` to the gateway `remote` at `target`. `seed`
    /// starts its random source.
    #[must_use]
    pub fn new(
        socket: UdpSocket,
        target: SocketAddr,
        identity: SecretIdentity,
        remote: PublicIdentity,
        seed: u64,
    ) -> Self {
        let identity = Arc::new(identity);
        let link = WireGuardLink::new(identity.clone(), &remote, PeerNumber(1));
        let rng = ChaCha20Rng::seed_from_u64(seed);
        let now = Instant::now();
        Self {
            socket,
            target,
            identity,
            remote,
            link,
            channel: ReliableChannel::default(),
            rng,
            began: now,
            ticked: now,
            arrived: VecDeque::new(),
            hello: Vec::new(),
            theirs: None,
            data: VecDeque::new(),
            qkd: BTreeMap::new(),
            revision: 0,
            next_index: 1 << 31 | 1 << 16,
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.began.elapsed().as_nanos()).unwrap() + 1)
    }

    /// Makes a `Hello` with this role and policy; all other fields are those of a gateway with one lane and
    /// no PSK.
    #[must_use]
    pub fn make_hello(&mut self, role: Role, policy: QkdPolicy, sae: [&str; 2]) -> Hello {
        let mut instance = [0; 16];
        self.rng.fill_bytes(&mut instance);
        Hello {
            instance,
            counter: 1,
            role,
            suite: Suite::ChaCha20Poly1305,
            lanes: 1,
            policy,
            interval_ms: 120_000,
            min_interval_ms: 100,
            sae_own: SaeId::new(sae[0]).ok(),
            sae_peer: SaeId::new(sae[1]).ok(),
            psk_check: None,
            encapsulation_key: Box::new(*self.identity.encapsulation_key()),
        }
    }

    /// Sends a handshake and this `Hello`, and waits for the gateway's.
    ///
    /// # Panics
    /// When `limit` has passed.
    #[track_caller]
    pub fn connect(&mut self, hello: &Hello, limit: Duration) {
        let end = Instant::now() + limit;
        while self.link.session_age().is_none() {
            assert!(Instant::now() < end, "the gateway answers no handshake");
            let start = self.link.start().unwrap();
            self.raw(&start);
            let retry = Instant::now() + Duration::from_secs(1);
            while self.link.session_age().is_none() && Instant::now() < retry {
                self.step(retry);
            }
        }
        self.say_hello(hello);
        while self.theirs.is_none() {
            assert!(Instant::now() < end, "the gateway says no Hello");
            self.step(end);
        }
    }

    /// Sends this `Hello`.
    pub fn say_hello(&mut self, hello: &Hello) {
        self.hello = hello.to_bytes();
        self.send(MessageType::Hello, &self.hello.clone());
    }

    /// Sends a datagram unchanged.
    pub fn raw(&self, datagram: &[u8]) {
        // A full queue is like a lost datagram.
        let _ = self.socket.send_to(datagram, self.target);
    }

    /// Seals a packet of the control session; `None` without one.
    pub fn seal_control(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.link.send(packet)
    }

    /// Sends a message in the control session, and retransmits it until it is acknowledged.
    pub fn send(&mut self, kind: MessageType, body: &[u8]) -> MessageId {
        let now = self.now();
        let id = self.channel.send(kind, body, now, &mut self.rng);
        self.flush();
        id
    }

    /// Stops retransmitting messages of this kind.
    pub fn cancel(&mut self, kind: MessageType) {
        self.channel.cancel(kind);
    }

    fn flush(&mut self) {
        if self.link.session_age().is_some() {
            let now = self.now();
            self.channel.flush(now);
            while let Some(packet) = self.channel.next_packet() {
                if let Some(datagram) = self.link.send(&packet) {
                    self.raw(&datagram);
                }
            }
        }
    }

    /// Handles one datagram, if one comes before `end`, and runs due timers.
    pub fn step(&mut self, end: Instant) {
        let wait = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(20));
        self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
        let mut buffer = [0; 65_536];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, _)) => self.take(&buffer[..length]),
            // "Refused" reports an ICMP error about an earlier datagram.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => panic!("{error}"),
        }
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            let out = self.link.tick();
            out.datagrams.iter().for_each(|datagram| self.raw(datagram));
        }
        self.flush();
    }

    fn take(&mut self, datagram: &[u8]) {
        if is_data(datagram) {
            if self.data.len() == 100 {
                self.data.pop_front();
            }
            self.data.push_back(datagram.to_vec());
            return;
        }
        let out = self.link.receive(self.target.ip(), datagram);
        out.datagrams.iter().for_each(|datagram| self.raw(datagram));
        let now = self.now();
        if out.new_session {
            self.channel.session_started(now);
        }
        for packet in out.packets {
            if let ReceiveOutcome::Message { id, kind, body } =
                self.channel.receive(&packet, now, &mut self.rng)
            {
                self.message(id, kind, body);
            }
        }
    }

    fn message(&mut self, id: MessageId, kind: MessageType, body: Vec<u8>) {
        match kind {
            MessageType::Hello => self.theirs = Some(body),
            // Each `Ping` is answered with its own body.
            MessageType::Ping => self.channel.send_once(MessageType::Pong, &body, &mut self.rng),
            MessageType::StockOffer => {
                let offer = StockOffer::parse(&body).unwrap();
                self.revision += 1;
                let held = |key: &KeyName| match self.qkd.get(key.id.as_str()) {
                    Some(bytes) => {
                        KeyAvailability::Yes(qkd_check(&SecretBuf::take(&mut bytes.clone()), &key.id))
                    }
                    None => KeyAvailability::Unavailable,
                };
                let keys = offer.keys.iter().map(|key| (key.id.clone(), held(key))).collect();
                let ack = StockAck { number: offer.number, revision: self.revision, keys };
                self.send(MessageType::StockAck, &ack.to_bytes());
            }
            MessageType::Pong | MessageType::Rekey => {}
            _ => self.arrived.push_back((id, kind, body)),
        }
    }

    /// Returns the next message of this kind; other messages before it are dropped.
    ///
    /// # Panics
    /// When `limit` has passed.
    #[track_caller]
    pub fn expect(&mut self, kind: MessageType, limit: Duration) -> Vec<u8> {
        let end = Instant::now() + limit;
        loop {
            while let Some((_, came, body)) = self.arrived.pop_front() {
                if came == kind {
                    return body;
                }
            }
            assert!(Instant::now() < end, "no {kind:?} from the gateway within {limit:?}");
            self.step(end);
        }
    }

    /// Returns the reason of the next `Reject`, if one arrives within `limit`.
    #[must_use]
    pub fn rejected(&mut self, limit: Duration) -> Option<RejectReason> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            while let Some((_, kind, body)) = self.arrived.pop_front() {
                if kind == MessageType::Reject {
                    return qvpn_proto::wire::Reject::parse(&body).ok().map(|reject| reject.reason);
                }
            }
            self.step(end);
        }
        None
    }

    /// Keeps the session alive for `span`.
    pub fn rest(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.step(end);
        }
    }

    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    /// Makes a `Propose` as an initiator with one lane, without sending it.
    ///
    /// # Panics
    /// If the gateway's `Hello` has not arrived yet.
    #[must_use]
    pub fn propose(&mut self, epoch: u64, qkd: Option<&str>, chain: Option<&Secrets>) -> Attempt {
        let theirs = self.theirs.as_ref().unwrap();
        let static_key = Hello::parse(theirs).unwrap().encapsulation_key;
        let hellos = [&self.hello, theirs].map(|hello| Sha384::digest(hello).into());
        let x25519 = Secret::filled(|out| self.rng.fill_bytes(out));
        let (decapsulation_key, encapsulation_key) =
            kem::DecapsulationKey::from_seed(&Secret::filled(|out| self.rng.fill_bytes(out)));
        let (ciphertext, kem_to_responder) = kem::encapsulate(&static_key, &mut self.rng).unwrap();
        let message = Propose {
            hello_initiator: hellos[0],
            hello_responder: hellos[1],
            epoch: EpochNumber(epoch),
            x25519: dh::public_of(&x25519),
            encapsulation_key,
            ciphertext,
            indices: vec![self.index()],
            qkd_key_id: qkd.map(|id| KeyId::new(id).unwrap()),
            chain_check: chain.map(|secrets| secrets.chain_check),
        };
        let qkd = qkd.map(|id| self.qkd[id].to_vec()).unwrap_or_default();
        let chain = chain.map(|secrets| secrets.chain.to_vec()).unwrap_or_default();
        Attempt { x25519, decapsulation_key, kem_to_responder, qkd, chain, message }
    }

    /// Returns the secrets that follow from the gateway's `Accept`.
    ///
    /// # Panics
    /// If its confirmation is wrong.
    #[must_use]
    #[track_caller]
    pub fn verify(&self, attempt: &Attempt, accept: &[u8]) -> Secrets {
        let (parsed, body, confirmation) = Accept::parse(accept).unwrap();
        let secrets = schedule(&ScheduleInputs {
            transcript: [
                &self.identity.public().to_bytes(),
                &self.remote.to_bytes(),
                &self.hello,
                self.theirs.as_ref().unwrap(),
                &attempt.message.to_bytes(),
                body,
            ],
            secrets: [
                attempt.decapsulation_key.decapsulate(&parsed.ciphertext_ephemeral).expose(),
                attempt.kem_to_responder.expose(),
                self.identity.decapsulation_key().decapsulate(&parsed.ciphertext_static).expose(),
                dh::agree(&attempt.x25519, &parsed.x25519).unwrap().expose(),
                &attempt.qkd,
                &[],
                &attempt.chain,
            ],
        });
        assert_eq!(secrets.confirm_responder, confirmation, "the gateway's confirmation");
        secrets
    }

    /// Sends `Confirm` for the epoch of an attempt.
    pub fn confirm(&mut self, attempt: &Attempt, secrets: &Secrets) {
        let confirm = Confirm { epoch: attempt.message.epoch, confirmation: secrets.confirm_initiator };
        self.send(MessageType::Confirm, &confirm.to_bytes());
    }

    /// Answers the gateway's `Propose` as a responder. Returns the `Accept`, without sending it, and its
    /// secrets.
    ///
    /// # Panics
    /// If it can't be parsed, or names a chain other than `chain` or a QKD key that isn't in
    /// [`qkd`](Self::qkd).
    #[must_use]
    #[track_caller]
    pub fn answer(&mut self, propose: &[u8], chain: Option<&Secrets>) -> (Vec<u8>, Secrets) {
        let parsed = Propose::parse(propose).unwrap();
        assert_eq!(parsed.chain_check, chain.map(|secrets| secrets.chain_check), "the chain that it names");
        let x25519 = Secret::filled(|out| self.rng.fill_bytes(out));
        let (ciphertext_ephemeral, kem_ephemeral) =
            kem::encapsulate(&parsed.encapsulation_key, &mut self.rng).unwrap();
        let theirs = self.theirs.clone().unwrap();
        let static_key = Hello::parse(&theirs).unwrap().encapsulation_key;
        let (ciphertext_static, kem_to_initiator) = kem::encapsulate(&static_key, &mut self.rng).unwrap();
        let accept = Accept {
            epoch: parsed.epoch,
            x25519: dh::public_of(&x25519),
            ciphertext_ephemeral,
            ciphertext_static,
            indices: vec![self.index()],
        };
        let mut accept = accept.to_bytes();
        let secrets = schedule(&ScheduleInputs {
            transcript: [
                &self.remote.to_bytes(),
                &self.identity.public().to_bytes(),
                &theirs,
                &self.hello,
                propose,
                &accept,
            ],
            secrets: [
                kem_ephemeral.expose(),
                self.identity.decapsulation_key().decapsulate(&parsed.ciphertext).expose(),
                kem_to_initiator.expose(),
                dh::agree(&x25519, &parsed.x25519).unwrap().expose(),
                parsed.qkd_key_id.as_ref().map(|id| &self.qkd[id.as_str()][..]).unwrap_or_default(),
                &[],
                chain.map(|secrets| &secrets.chain[..]).unwrap_or_default(),
            ],
        });
        accept.extend(secrets.confirm_responder);
        (accept, secrets)
    }

    /// Sends an empty data packet to the gateway's receiver index.
    pub fn send_data(&self, key: &[u8; 32], index: u32, counter: u64) {
        let mut packet = vec![4, 0, 0, 0];
        packet.extend(index.to_le_bytes());
        packet.extend(counter.to_le_bytes());
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut []).unwrap();
        packet.extend(tag.as_ref());
        self.raw(&packet);
    }

    /// Waits for a data packet that this key opens.
    ///
    /// # Panics
    /// When `limit` has passed.
    #[track_caller]
    pub fn expect_data(&mut self, key: &[u8; 32], limit: Duration) {
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
        let end = Instant::now() + limit;
        loop {
            while let Some(mut packet) = self.data.pop_front() {
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&packet[8..16]);
                let nonce = Nonce::assume_unique_for_key(nonce);
                if key.open_in_place(nonce, Aad::empty(), &mut packet[16..]).is_ok() {
                    return;
                }
            }
            assert!(Instant::now() < end, "no data packet in this epoch within {limit:?}");
            self.step(end);
        }
    }
}
