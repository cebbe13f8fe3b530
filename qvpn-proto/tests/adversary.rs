//! One honest end, and in the place of the other somebody who holds its static keys and keeps to no rule: what breaks a rule
//! of the exchange gets no epoch, whatever else is right about it. Each test has an honest exchange in it, so that it can't
//! pass because nothing works.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use qvpn_identity::SecretIdentity;
use qvpn_proto::control_link::{ControlLink, LinkOutput};
use qvpn_proto::exchange::{Proposal, Proposed, Terms, answer};
use qvpn_proto::messenger::{Arrived, Messenger};
use qvpn_proto::wire::{Accept, Confirm, Hello, Kind, Propose, Reject, RejectReason, StockOffer};
use qvpn_proto::{
    Event, Fetch, FetchedKey, KeyKind, KeyName, KmsReport, LaneOrder, LaneReport, Peer, PeerConfig,
    QkdPolicy, Role, Suite, Time,
};
use qvpn_secret::SecretBuf;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha384};

/// A control session that is up and hides nothing, and the number of the session in which the next datagram comes.
#[derive(Default)]
struct Open(bool, Arc<AtomicU64>);

impl ControlLink for Open {
    fn receive(&mut self, _: IpAddr, datagram: &[u8]) -> LinkOutput {
        let new_session = !std::mem::replace(&mut self.0, true);
        LinkOutput {
            packets: vec![datagram.to_vec()],
            authenticated: true,
            new_session,
            session: self.1.load(Ordering::Relaxed),
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
        self.0.then_some(Duration::ZERO)
    }
    fn reset(&mut self) {}
}

static SITES: LazyLock<[Arc<SecretIdentity>; 3]> = LazyLock::new(|| {
    [1, 2, 3].map(|seed| Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed))))
});

fn honest() -> &'static SecretIdentity {
    &SITES[0]
}

fn other() -> &'static SecretIdentity {
    &SITES[1]
}

const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 51820);

/// The honest end, and what its adversary knows.
struct World {
    peer: Peer<Open>,
    session: Arc<AtomicU64>,
    role: Role,
    policy: QkdPolicy,
    messenger: Messenger,
    rng: ChaCha20Rng,
    now: Time,
    hello: Vec<u8>,
    theirs: Vec<u8>,
    /// Messages of the honest end, but for its Hellos.
    said: Vec<(Kind, [u8; 8], Vec<u8>)>,
    hellos: usize,
    /// Sealing keys that it put in force.
    sealing: usize,
    /// Orders that end a key.
    stopped: usize,
}

impl World {
    /// The honest end in this role and with this policy, after both Hellos.
    fn new(role: Role, policy: QkdPolicy) -> Self {
        let now = Time::from_nanos(1 << 40);
        let config = PeerConfig {
            local: SITES[0].clone(),
            remote: *other().public(),
            role,
            suite: Suite::ChaCha20Poly1305,
            rekey_interval: Duration::from_secs(60),
            lanes: 1,
            policy,
            qkd_source: true,
            sae_local: "US".to_owned(),
            sae_remote: "THEM".to_owned(),
            psk: None,
            stock: 3,
            endpoint: Some(FROM),
            number: 7,
        };
        let session = Arc::new(AtomicU64::new(1));
        let mut world = Self {
            peer: Peer::new(config, Open(false, Arc::clone(&session)), [9; 16], now),
            session,
            role,
            policy,
            messenger: Messenger::default(),
            rng: ChaCha20Rng::seed_from_u64(5),
            now,
            hello: Vec::new(),
            theirs: Vec::new(),
            said: Vec::new(),
            hellos: 0,
            sealing: 0,
            stopped: 0,
        };
        world.say_hello(1, 1);
        world
    }

    fn say_hello(&mut self, instance: u8, counter: u64) {
        let hello = Hello {
            instance: [instance; 16],
            counter,
            role: if self.role == Role::Responder { Role::Initiator } else { Role::Responder },
            suite: Suite::ChaCha20Poly1305,
            lanes: 1,
            policy: self.policy,
            interval_ms: 60_000,
            sae_own: "THEM".to_owned(),
            sae_peer: "US".to_owned(),
            psk_check: None,
            encapsulation_key: Box::new(*other().encapsulation_key()),
        };
        self.hello = hello.to_bytes();
        let bytes = self.hello.clone();
        self.send(Kind::Hello, &bytes);
    }

    fn send(&mut self, kind: Kind, body: &[u8]) {
        self.messenger.send(kind, body, self.now, &mut self.rng);
        self.pump();
    }

    /// Carries all there and back, and plays the lanes.
    fn pump(&mut self) {
        loop {
            self.messenger.flush(self.now);
            let mut busy = false;
            while let Some(packet) = self.messenger.next_packet() {
                self.peer.handle_datagram(&packet, FROM, self.now, &mut self.rng);
                busy = true;
            }
            while let Some(transmit) = self.peer.poll_transmit() {
                busy = true;
                if let Arrived::Message { id, kind, body } =
                    self.messenger.receive(&transmit.datagram, self.now, &mut self.rng)
                {
                    if kind == Kind::Hello {
                        self.theirs = body;
                        self.hellos += 1;
                    } else {
                        self.said.push((kind, id, body));
                    }
                }
            }
            let (mut installed, mut fetches) = (Vec::new(), Vec::new());
            while let Some(event) = self.peer.poll_event() {
                match event {
                    Event::Lane(lane, LaneOrder::InstallOpening { token, .. }) => {
                        installed.push((lane, token))
                    }
                    Event::Lane(lane, LaneOrder::InstallSealing { token, .. }) => {
                        self.sealing += 1;
                        installed.push((lane, token));
                    }
                    Event::Lane(_, LaneOrder::StopSealing) => self.stopped += 1,
                    Event::Fetch(Fetch::ById { request, keys, .. }) => fetches.push((request, keys)),
                    _ => {}
                }
            }
            for (request, keys) in fetches {
                busy = true;
                let fetched = |name: KeyName| {
                    let mut bytes = [0x5a; 32];
                    bytes[0] = name.id.as_bytes()[0];
                    FetchedKey { name, kind: KeyKind::Qkd, secret: SecretBuf::take(&mut bytes) }
                };
                let keys = keys.into_iter().map(fetched).collect();
                let report = KmsReport::Keys { request, keys, missing: None };
                self.peer.handle_kms(report, self.now, &mut self.rng);
            }
            for (lane, token) in installed {
                busy = true;
                self.peer.handle_lane(LaneReport::Installed { lane, token }, self.now, &mut self.rng);
            }
            if !busy {
                return;
            }
        }
    }

    /// Lets this much time pass at the honest end.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.peer.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.peer.handle_timeout(self.now, &mut self.rng);
            self.pump();
        }
        self.now = end;
    }

    /// The last message of this kind, taken.
    fn take(&mut self, kind: Kind) -> Option<Vec<u8>> {
        let at = self.said.iter().rposition(|(said, ..)| *said == kind)?;
        Some(self.said.remove(at).2)
    }

    fn rejected(&mut self) -> Option<RejectReason> {
        self.take(Kind::Reject).map(|body| Reject::parse(&body).unwrap().reason)
    }

    fn terms<'a>(&self, hello: &'a [u8], theirs: &'a [u8]) -> Terms<'a> {
        let (suite, lanes) = (Suite::ChaCha20Poly1305, 1);
        let (us, them) = (honest().public(), other().public());
        match self.role {
            Role::Responder => Terms {
                initiator: them,
                responder: us,
                hello_initiator: hello,
                hello_responder: theirs,
                suite,
                lanes,
            },
            Role::Initiator => Terms {
                initiator: us,
                responder: them,
                hello_initiator: theirs,
                hello_responder: hello,
                suite,
                lanes,
            },
        }
    }

    /// A proposal to the honest responder under these Hellos.
    fn proposal(&mut self, epoch: u64, hello: &[u8], key: Option<&str>, chain: Option<[u8; 16]>) -> Proposed {
        let hash = |hello: &[u8]| Sha384::digest(hello).into();
        let proposal = Proposal {
            hello_hashes: (hash(hello), hash(&self.theirs)),
            epoch,
            responder_key: honest().encapsulation_key(),
            indices: vec![1 << 31 | u32::try_from(epoch).unwrap()],
            qkd_key_id: key.map(str::to_owned),
            chain_check: chain,
        };
        Proposed::new(proposal, &mut self.rng).unwrap()
    }

    fn propose(&mut self, epoch: u64) -> Proposed {
        let hello = self.hello.clone();
        let proposed = self.proposal(epoch, &hello, None, None);
        self.send(Kind::Propose, proposed.bytes());
        proposed
    }

    /// The right confirmation of an answered proposal.
    fn confirmation(&mut self, proposed: Proposed) -> [u8; 48] {
        let accept = self.take(Kind::Accept).expect("an Accept");
        let (hello, theirs) = (self.hello.clone(), self.theirs.clone());
        let terms = self.terms(&hello, &theirs);
        let agreed = proposed.verify(&accept, &terms, other(), None, None, None).ok().expect("it verifies");
        *agreed.keys.confirm_initiator.expose()
    }

    fn confirm(&mut self, epoch: u64, confirmation: [u8; 48]) {
        self.send(Kind::Confirm, &Confirm { epoch, confirmation }.to_bytes());
    }

    /// An honest exchange as the initiator.
    fn exchange(&mut self, epoch: u64) {
        let proposed = self.propose(epoch);
        let confirmation = self.confirmation(proposed);
        let before = self.sealing;
        self.confirm(epoch, confirmation);
        assert_eq!(self.sealing, before + 1, "an honest exchange works");
    }

    /// An answer to the honest initiator's proposal, from whoever holds `identity`.
    fn answer(&mut self, propose: &[u8], identity: &SecretIdentity) -> Vec<u8> {
        let parsed = Propose::parse(propose).unwrap();
        let (hello, theirs) = (self.hello.clone(), self.theirs.clone());
        let terms = self.terms(&hello, &theirs);
        let secrets = (None, None, None);
        let initiator = honest().encapsulation_key();
        answer(&parsed, propose, initiator, &terms, identity, vec![1 << 31 | 5], secrets, &mut self.rng)
            .unwrap()
            .accept
    }
}

#[test]
fn a_responder_seals_only_on_the_right_confirmation() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let proposed = world.propose(1);
    let right = world.confirmation(proposed);
    for n in 0..3u8 {
        let mut wrong = right;
        wrong[usize::from(n) * 20] ^= 1;
        world.confirm(1, wrong);
        assert_eq!(world.sealing, 0, "wrong confirmation {n}");
    }
    world.confirm(2, right);
    assert_eq!(world.sealing, 0, "the right one for another attempt");
    world.confirm(1, right);
    assert_eq!(world.sealing, 1);
}

#[test]
fn four_wrong_confirmations_end_an_attempt() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let proposed = world.propose(1);
    let right = world.confirmation(proposed);
    for _ in 0..4 {
        world.confirm(1, [7; 48]);
    }
    world.confirm(1, right);
    assert_eq!(world.sealing, 0, "the attempt is over");
    assert_eq!(world.peer.view(world.now).drops.refused, 4, "each is counted");
    world.exchange(2);
}

#[test]
fn an_initiator_seals_only_under_a_right_accept() {
    let mut world = World::new(Role::Initiator, QkdPolicy::Off);
    let propose = world.take(Kind::Propose).expect("it proposes at once");
    // Whoever lacks the responder's ML-KEM seed computes another confirmation; all else is right.
    let third = Arc::clone(&SITES[2]);
    let accept = world.answer(&propose, &third);
    world.send(Kind::Accept, &accept);
    assert_eq!(world.sealing, 0, "an Accept of somebody else");
    let right = world.answer(&propose, other());
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    world.send(Kind::Accept, &wrong);
    assert_eq!(world.sealing, 0, "a changed confirmation");
    // Another index under the same confirmation.
    let mut wrong = right.clone();
    let at = wrong.len() - 49;
    wrong[at] ^= 1;
    world.send(Kind::Accept, &wrong);
    assert_eq!(world.sealing, 0, "a changed text");
    world.send(Kind::Accept, &right);
    assert_eq!(world.sealing, 1);
    assert!(Accept::parse(&right).is_ok());
}

#[test]
fn attempts_have_rising_numbers() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.exchange(5);
    for epoch in [5, 4, 1, 0] {
        let _ = world.propose(epoch);
        assert_eq!(world.rejected(), Some(RejectReason::Stale), "number {epoch} after 5");
        assert!(world.take(Kind::Accept).is_none());
    }
    world.exchange(6);
}

#[test]
fn a_proposal_holds_under_the_hellos_in_force_alone() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let old = world.hello.clone();
    world.say_hello(1, 2);
    let proposed = world.proposal(1, &old, None, None);
    world.send(Kind::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Stale), "our earlier Hello");
    let ours = world.hello.clone();
    let theirs = std::mem::replace(&mut world.theirs, old);
    let proposed = world.proposal(1, &ours, None, None);
    world.theirs = theirs;
    world.send(Kind::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Stale), "another Hello of theirs");
    assert!(world.take(Kind::Accept).is_none());
    world.exchange(1);
}

#[test]
fn a_hello_of_an_earlier_life_changes_nothing() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let first = world.hello.clone();
    world.exchange(1);
    world.session.store(2, Ordering::Relaxed);
    world.say_hello(2, 1);
    world.exchange(1);
    let (second, hellos) = (world.hello.clone(), world.hellos);
    world.session.store(1, Ordering::Relaxed);
    world.send(Kind::Hello, &first);
    world.session.store(2, Ordering::Relaxed);
    assert_eq!(world.hellos, hellos, "it is not answered");
    let proposed = world.proposal(9, &first, None, None);
    world.send(Kind::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Stale));
    assert_eq!(world.hello, second);
    world.exchange(2);
}

#[test]
fn a_responder_keeps_to_its_policy() {
    let mut world = World::new(Role::Responder, QkdPolicy::Required);
    let _ = world.propose(1);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "required, and no QKD key");
    // Two intervals must pass without a key before `preferred` does without.
    let mut world = World::new(Role::Responder, QkdPolicy::Preferred);
    let _ = world.propose(1);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "preferred, too early");
    world.wait(Duration::from_secs(119));
    let _ = world.propose(2);
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "preferred, a second too early");
    world.wait(Duration::from_secs(2));
    world.exchange(3);
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    let hello = world.hello.clone();
    let proposed = world.proposal(1, &hello, Some("key"), None);
    world.send(Kind::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Policy), "off, and a QKD key");
    let proposed = world.proposal(2, &hello, None, Some([7; 16]));
    world.send(Kind::Propose, proposed.bytes());
    assert_eq!(world.rejected(), Some(RejectReason::Chain), "a chain that nobody has");
    world.exchange(3);
    assert_eq!(world.peer.view(world.now).drops.refused, 2, "each is counted");
}

#[test]
fn a_key_is_spoilt_by_two_attempts_that_wrong_confirmations_ended() {
    let mut world = World::new(Role::Responder, QkdPolicy::Required);
    let name =
        |id: &str| KeyName { id: id.to_owned(), source_kme: "a".to_owned(), target_kme: "b".to_owned() };
    let offer = StockOffer { number: 1, keys: vec![name("one"), name("two")] };
    world.send(Kind::StockOffer, &offer.to_bytes());
    let hello = world.hello.clone();
    for epoch in 1..=2 {
        let proposed = world.proposal(epoch, &hello, Some("one"), None);
        world.send(Kind::Propose, proposed.bytes());
        assert!(world.take(Kind::Accept).is_some(), "attempt {epoch}: {:?}", world.rejected());
        for _ in 0..4 {
            world.confirm(epoch, [7; 48]);
        }
    }
    let proposed = world.proposal(3, &hello, Some("one"), None);
    world.send(Kind::Propose, proposed.bytes());
    assert!(world.rejected().is_some(), "nobody gets a third try at a key");
    assert!(world.take(Kind::Accept).is_none());
    let proposed = world.proposal(4, &hello, Some("two"), None);
    world.send(Kind::Propose, proposed.bytes());
    assert!(world.take(Kind::Accept).is_some(), "and the others are as good as before");
}

#[test]
fn nothing_that_is_said_ends_an_epoch() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    world.exchange(1);
    let accept = world.propose(2);
    let _ = world.take(Kind::Accept);
    for kind in (0..=255).filter_map(Kind::from_byte).filter(|kind| *kind != Kind::Hello) {
        for body in [&[][..], &[0], &[0; 48], &[0xff; 60], accept.bytes()] {
            world.send(kind, body);
        }
    }
    for reason in (0..=255).filter_map(RejectReason::from_byte) {
        world.send(Kind::Reject, &Reject { id: [0; 8], reason }.to_bytes());
    }
    assert_eq!(world.peer.view(world.now).epoch, Some(1));
    assert_eq!(world.stopped, 0, "no lane was told to stop or to close");
    world.exchange(3);
}

#[test]
fn a_responder_refuses_unusable_public_values() {
    let mut world = World::new(Role::Responder, QkdPolicy::Off);
    type Change = fn(&mut Propose);
    let cases: [(&str, Change); 6] = [
        ("X25519 key zero", |p| p.x25519 = [0; 32]),
        ("X25519 key one", |p| p.x25519 = [[1u8].as_slice(), &[0; 31]].concat().try_into().unwrap()),
        ("ML-KEM key not reduced", |p| p.encapsulation_key.fill(0xff)),
        ("the responder's static ML-KEM key", |p| *p.encapsulation_key = *honest().encapsulation_key()),
        ("the initiator's static ML-KEM key", |p| *p.encapsulation_key = *other().encapsulation_key()),
        ("an index for a lane that was not agreed", |p| p.indices.push(1 << 31 | 99)),
    ];
    for (epoch, (what, change)) in (1..).zip(cases) {
        let hello = world.hello.clone();
        let proposed = world.proposal(epoch, &hello, None, None);
        let mut message = Propose::parse(proposed.bytes()).unwrap();
        change(&mut message);
        world.send(Kind::Propose, &message.to_bytes());
        assert_eq!(world.rejected(), Some(RejectReason::Malformed), "{what}");
        assert!(world.take(Kind::Accept).is_none(), "{what}");
    }
    world.exchange(9);
}
