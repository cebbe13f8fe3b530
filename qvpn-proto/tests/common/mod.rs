//! Two peers on a virtual clock: a network with seeded faults, lanes that hold keys and check them, and a KMS that both
//! ends ask. A failure prints the seed.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qvpn_identity::{Psk, SecretIdentity};
use qvpn_proto::control_link::{ControlLink, LinkOutput};
use qvpn_proto::event::{FailureReason, KmsTrouble, TroubleKind};
use qvpn_proto::wire::fragment::packets;
use qvpn_proto::wire::{Fragment, Kind, MessageId, Reject};
use qvpn_proto::{
    Event, Fetch, FetchedKey, KeyName, KmsReport, LaneOrder, LaneReport, Notice, Peer, PeerConfig, QkdPolicy,
    Role, State, Suite, Time,
};
use qvpn_secret::SecretBuf;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub const MS: Duration = Duration::from_millis(1);
pub const S: Duration = Duration::from_secs(1);

/// A session without cryptography: a random number names it.
#[derive(Default)]
pub struct FakeLink {
    next: u64,
    known: Vec<u64>,
    current: Option<u64>,
    started: Vec<u64>,
    /// The session in use, for tests that speak in it; 0 is none.
    shared: Arc<AtomicU64>,
}

impl FakeLink {
    pub fn new(seed: u64, shared: Arc<AtomicU64>) -> Self {
        Self { next: seed << 32, shared, ..Self::default() }
    }

    fn use_session(&mut self, session: Option<u64>) {
        self.current = session;
        self.shared.store(session.unwrap_or(0), Ordering::Relaxed);
    }
}

fn frame(kind: u8, session: u64, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&session.to_be_bytes());
    out.extend_from_slice(packet);
    out
}

impl ControlLink for FakeLink {
    fn receive(&mut self, _from: IpAddr, datagram: &[u8]) -> LinkOutput {
        let mut out = LinkOutput::default();
        let Some(session) = datagram.get(1..9).map(|b| u64::from_be_bytes(b.try_into().unwrap())) else {
            return out;
        };
        match datagram[0] {
            1 => {
                out.authenticated = true;
                if !self.known.contains(&session) {
                    self.known.push(session);
                }
                out.datagrams.push(frame(2, session, &[]));
            }
            2 if self.started.contains(&session) => {
                self.started.retain(|s| *s != session);
                self.known.push(session);
                self.use_session(Some(session));
                out.authenticated = true;
                out.new_session = true;
                out.datagrams.push(frame(4, session, &[]));
            }
            4 if self.known.contains(&session) => {
                out.authenticated = true;
                if self.current != Some(session) && self.known.last() == Some(&session) {
                    self.use_session(Some(session));
                    out.new_session = true;
                }
                if datagram.len() > 9 {
                    out.packets.push(datagram[9..].to_vec());
                }
            }
            _ => {}
        }
        out
    }
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        Some(frame(4, self.current?, packet))
    }
    fn start(&mut self) -> Option<Vec<u8>> {
        self.next += 1;
        self.started.push(self.next);
        Some(frame(1, self.next, &[]))
    }
    fn tick(&mut self) -> LinkOutput {
        LinkOutput::default()
    }
    fn session_age(&self) -> Option<Duration> {
        self.current.map(|_| Duration::ZERO)
    }
    fn reset(&mut self) {
        self.known.clear();
        self.use_session(None);
        self.started.clear();
    }
}

/// What the network does to a datagram.
#[derive(Clone, Copy)]
pub struct Faults {
    /// Per mille.
    pub loss: u32,
    /// Per mille.
    pub duplicate: u32,
    /// At least.
    pub delay: Duration,
    /// At most so much more, so datagrams overtake each other.
    pub jitter: Duration,
}

pub const CLEAN: Faults =
    Faults { loss: 0, duplicate: 0, delay: Duration::from_millis(5), jitter: Duration::ZERO };
pub const ROUGH: Faults = Faults {
    loss: 200,
    duplicate: 100,
    delay: Duration::from_millis(50),
    jitter: Duration::from_millis(150),
};

enum Happening {
    Control { to: usize, datagram: Vec<u8> },
    Lane { to: usize, life: u32, report: LaneReport },
    Kms { to: usize, life: u32, report: KmsReport },
    Data { to: usize, life: u32, from_life: u32, lane: u8, index: u32, key: [u8; 32], sent: Time },
    SendData { from: usize },
}

struct Sealing {
    generation: u64,
    index: u32,
    key: [u8; 32],
    expires_at: Time,
    /// The other end's life when the key came: a later one cannot hold it.
    other_life: u32,
}

pub struct End {
    pub peer: Peer<FakeLink>,
    pub life: u32,
    sealing: BTreeMap<u8, Sealing>,
    highest_sealed: u64,
    opening: BTreeMap<u32, (u64, [u8; 32], Time)>,
    opened: BTreeSet<u64>,
    /// Every index and key that this life could open.
    ever: BTreeSet<(u32, [u8; 32])>,
    pub notices: Vec<(Time, Notice)>,
}

/// A config that a test may change before the world starts.
#[derive(Clone)]
pub struct Site {
    pub identity: Arc<SecretIdentity>,
    pub role: Role,
    pub suite: Suite,
    pub interval: Duration,
    pub lanes: u8,
    pub policy: QkdPolicy,
    pub sae: String,
    pub sae_other: String,
    pub psk: Option<Arc<Psk>>,
    pub stock: usize,
    pub knows_endpoint: bool,
}

pub fn identity(seed: u64) -> Arc<SecretIdentity> {
    Arc::new(SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed)))
}

pub fn sites(policy: QkdPolicy, interval: Duration) -> [Site; 2] {
    let (a, b) = (identity(1), identity(2));
    let site = |identity: Arc<SecretIdentity>, role, sae: &str, other: &str| Site {
        identity,
        role,
        suite: Suite::ChaCha20Poly1305,
        interval,
        lanes: 1,
        policy,
        sae: sae.to_owned(),
        sae_other: other.to_owned(),
        psk: None,
        stock: 5,
        knows_endpoint: true,
    };
    [site(a, Role::Initiator, "SITE-A", "SITE-B"), site(b, Role::Responder, "SITE-B", "SITE-A")]
}

pub struct World {
    pub now: Time,
    pub rng: ChaCha20Rng,
    pub seed: u64,
    pub ends: [End; 2],
    sessions: [Arc<AtomicU64>; 2],
    pub sites: [Site; 2],
    pub faults: Faults,
    pub kms_up: [bool; 2],
    pub kms_delay: Duration,
    /// Requests to each end's KME.
    pub kms_asked: [u32; 2],
    /// Keys that were handed out: by ID.
    pub kms: BTreeMap<String, Vec<u8>>,
    kms_next: u64,
    pub corrupt_next_key: bool,
    pub corrupt_all_keys: bool,
    queue: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    pub data_sent: u64,
    pub data_opened: u64,
    pub data_blocked: u64,
    pub last_restart: Time,
    /// A policy became stricter on the way: packets under a weak epoch are refused, and rightly.
    pub tightened: bool,
    data_every: Option<Duration>,
    keys_seen: BTreeSet<[u8; 32]>,
    opening_seen: BTreeSet<[u8; 32]>,
    /// The refusals that each end sent, repetitions too.
    pub rejects: [Vec<Reject>; 2],
}

fn address(end: usize) -> SocketAddr {
    ([192, 0, 2, u8::try_from(end + 1).unwrap()], 51820).into()
}

impl World {
    pub fn new(seed: u64, sites: [Site; 2], faults: Faults) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let now = Time::from_nanos(1_000_000_000_000);
        let sessions: [Arc<AtomicU64>; 2] = Default::default();
        let ends = [0, 1].map(|i| End {
            peer: make(&sites, i, now, 1, &sessions[i], &mut rng),
            life: 1,
            sealing: BTreeMap::new(),
            highest_sealed: 0,
            opening: BTreeMap::new(),
            opened: BTreeSet::new(),
            ever: BTreeSet::new(),
            notices: Vec::new(),
        });
        Self {
            now,
            rng,
            seed,
            ends,
            sessions,
            sites,
            faults,
            kms_up: [true; 2],
            kms_delay: 20 * MS,
            kms_asked: [0; 2],
            kms: BTreeMap::new(),
            kms_next: 0,
            corrupt_next_key: false,
            corrupt_all_keys: false,
            queue: BTreeMap::new(),
            sequence: 0,
            data_sent: 0,
            data_opened: 0,
            data_blocked: 0,
            last_restart: now,
            tightened: false,
            data_every: None,
            keys_seen: BTreeSet::new(),
            opening_seen: BTreeSet::new(),
            rejects: Default::default(),
        }
    }

    fn at(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), happening);
    }

    /// Each end sends a packet in its sealing epoch so often.
    pub fn traffic(&mut self, every: Duration) {
        self.data_every = Some(every);
        for from in [0, 1] {
            self.at(every, Happening::SendData { from });
        }
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.next_u32() % 1000 < per_mille
    }

    fn network_delay(&mut self) -> Duration {
        let jitter = u64::try_from(self.faults.jitter.as_nanos()).unwrap();
        self.faults.delay + Duration::from_nanos(if jitter == 0 { 0 } else { self.rng.next_u64() % jitter })
    }

    /// Runs for `span`, or until `until` holds.
    pub fn run_until(&mut self, span: Duration, mut until: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + span;
        for i in [0, 1] {
            self.drain(i);
        }
        loop {
            if until(self) {
                return true;
            }
            let timers = self.ends.iter().filter_map(|e| e.peer.poll_timeout()).min();
            let queued = self.queue.keys().next().map(|(at, _)| *at);
            let next = timers.into_iter().chain(queued).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return until(self);
            }
            self.now = self.now.max(next);
            if queued.is_some_and(|at| at <= self.now) {
                let (_, happening) = self.queue.pop_first().unwrap();
                self.happen(happening);
            }
            for i in [0, 1] {
                if self.ends[i].peer.poll_timeout().is_some_and(|at| at <= self.now) {
                    let now = self.now;
                    self.ends[i].peer.handle_timeout(now, &mut self.rng);
                    self.drain(i);
                    let again = self.ends[i].peer.poll_timeout();
                    assert!(
                        again.is_none_or(|at| at > now),
                        "seed {}: a timer is due again at once",
                        self.seed
                    );
                }
            }
        }
    }

    pub fn run(&mut self, span: Duration) {
        self.run_until(span, |_| false);
    }

    /// Kills an end and starts it anew: everything in memory is gone.
    pub fn restart(&mut self, i: usize) {
        let life = self.ends[i].life + 1;
        self.last_restart = self.now;
        self.ends[i] = End {
            peer: make(&self.sites, i, self.now, life, &self.sessions[i], &mut self.rng),
            life,
            sealing: BTreeMap::new(),
            highest_sealed: 0,
            opening: BTreeMap::new(),
            opened: BTreeSet::new(),
            ever: BTreeSet::new(),
            notices: Vec::new(),
        };
        self.drain(i);
    }

    pub fn reconfigure(&mut self, i: usize) {
        let config = config(&self.sites, i);
        let now = self.now;
        self.ends[i].peer.reconfigure(config, now, &mut self.rng);
        self.drain(i);
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.now;
        match happening {
            Happening::Control { to, datagram } => {
                self.ends[to].peer.handle_datagram(&datagram, address(1 - to), now, &mut self.rng);
                self.drain(to);
            }
            Happening::Lane { to, life, report } if self.ends[to].life == life => {
                self.ends[to].peer.handle_lane(report, now, &mut self.rng);
                self.drain(to);
            }
            Happening::Kms { to, life, report } if self.ends[to].life == life => {
                self.ends[to].peer.handle_kms(report, now, &mut self.rng);
                self.drain(to);
            }
            Happening::Data { to, life, from_life, lane, index, key, sent } => {
                // A packet to a life that is over, or from one, tells nothing.
                if self.ends[to].life != life || self.ends[1 - to].life != from_life {
                    return;
                }
                assert!(self.opening_seen.contains(&key), "seed {}: the ends' keys differ", self.seed);
                let end = &mut self.ends[to];
                if !end.ever.contains(&(index, key)) {
                    return; // made with the life before, learned of after it ended
                }
                match end
                    .opening
                    .get(&index)
                    .filter(|(_, opening, expires)| *opening == key && *expires > now)
                {
                    Some((generation, ..)) => {
                        self.data_opened += 1;
                        let generation = *generation;
                        if end.opened.insert(generation) {
                            let report = LaneReport::FirstOpened { lane, generation };
                            self.at(Duration::ZERO, Happening::Lane { to, life, report });
                        }
                    }
                    None if self.tightened => {}
                    None => panic!(
                        "seed {}: a packet sealed at {:?} and delivered at {now:?} does not open at end {to}",
                        self.seed, sent
                    ),
                }
            }
            Happening::SendData { from } => {
                self.send_data(from);
                if let Some(every) = self.data_every {
                    self.at(every, Happening::SendData { from });
                }
            }
            Happening::Lane { .. } | Happening::Kms { .. } => {}
        }
    }

    fn send_data(&mut self, from: usize) {
        let lanes: Vec<u8> = self.ends[from].sealing.keys().copied().collect();
        if lanes.is_empty() {
            self.data_blocked += 1;
        }
        for lane in lanes {
            let sealing = &self.ends[from].sealing[&lane];
            if sealing.expires_at <= self.now {
                self.data_blocked += 1;
                continue;
            }
            let (index, key, life) = (sealing.index, sealing.key, sealing.other_life);
            self.data_sent += 1;
            let from_life = self.ends[from].life;
            if self.chance(self.faults.loss) {
                continue;
            }
            let delay = self.network_delay();
            let sent = self.now;
            self.at(delay, Happening::Data { to: 1 - from, life, from_life, lane, index, key, sent });
        }
    }

    /// Carries out what an end wants.
    fn drain(&mut self, i: usize) {
        while let Some(transmit) = self.ends[i].peer.poll_transmit() {
            assert!(transmit.datagram.len() <= 1232);
            if let Some(Ok(fragment)) = transmit.datagram.get(9..).map(Fragment::parse)
                && fragment.kind == Kind::Reject
            {
                self.rejects[i].push(Reject::parse(fragment.payload).unwrap());
            }
            let copies = 1 + u32::from(self.chance(self.faults.duplicate));
            for _ in 0..copies {
                if !self.chance(self.faults.loss) {
                    let delay = self.network_delay();
                    self.at(delay, Happening::Control { to: 1 - i, datagram: transmit.datagram.clone() });
                }
            }
        }
        let life = self.ends[i].life;
        while let Some(event) = self.ends[i].peer.poll_event() {
            match event {
                Event::Lane(lane, order) => self.lane(i, life, lane, order),
                Event::Fetch(fetch) => self.fetch(i, life, fetch),
                Event::Notice(notice) => {
                    let now = self.now;
                    self.ends[i].notices.push((now, notice));
                }
            }
        }
    }

    fn lane(&mut self, i: usize, life: u32, lane: u8, order: LaneOrder) {
        let now = self.now;
        match order {
            LaneOrder::InstallOpening { token, generation, index, key, expires_at, .. } => {
                self.opening_seen.insert(*key.expose());
                self.ends[i].ever.insert((index, *key.expose()));
                let old = self.ends[i].opening.insert(index, (generation, *key.expose(), expires_at));
                assert!(old.is_none(), "an index was used twice");
                self.at(
                    MS / 10,
                    Happening::Lane { to: i, life, report: LaneReport::Installed { lane, token } },
                );
            }
            LaneOrder::InstallSealing { token, generation, receiver_index, key, expires_at, .. } => {
                assert!(expires_at > now && generation >= self.ends[i].highest_sealed);
                assert!(self.keys_seen.insert(*key.expose()), "seed {}: a sealing key came twice", self.seed);
                self.ends[i].highest_sealed = generation;
                let other_life = self.ends[1 - i].life;
                let sealing =
                    Sealing { generation, index: receiver_index, key: *key.expose(), expires_at, other_life };
                self.ends[i].sealing.insert(lane, sealing);
                self.at(
                    MS / 10,
                    Happening::Lane { to: i, life, report: LaneReport::Installed { lane, token } },
                );
                self.send_data(i);
            }
            LaneOrder::SendEmpty => self.send_data(i),
            LaneOrder::StopSealing => {
                self.ends[i].sealing.remove(&lane);
            }
            LaneOrder::CloseOlder { generation, at } => {
                for (_, (g, _, expires)) in self.ends[i].opening.iter_mut() {
                    if *g < generation {
                        *expires = (*expires).min(at);
                    }
                }
            }
            LaneOrder::Close { index } => {
                self.ends[i].opening.remove(&index);
            }
        }
        self.ends[i].opening.retain(|_, (_, _, expires)| *expires > now);
    }

    fn fetch(&mut self, i: usize, life: u32, fetch: Fetch) {
        self.kms_asked[i] += 1;
        let down =
            KmsTrouble { kind: TroubleKind::Unavailable, text: format!("KME of site {i} is unreachable") };
        let report = match fetch {
            Fetch::New { request, .. } | Fetch::ById { request, .. } if !self.kms_up[i] => {
                KmsReport::Failed { request, trouble: down }
            }
            Fetch::New { request, number } => {
                let keys = (0..number).map(|_| self.new_key()).collect();
                KmsReport::Keys { request, keys, missing: None }
            }
            Fetch::ById { request, keys } => {
                let mut found = Vec::new();
                let asked = keys.len();
                for name in keys {
                    if let Some(mut bytes) = self.kms.remove(&name.id) {
                        if std::mem::take(&mut self.corrupt_next_key) || self.corrupt_all_keys {
                            bytes[0] ^= 1;
                        }
                        found.push(FetchedKey { name, secret: SecretBuf::take(&mut bytes) });
                    }
                }
                let missing = (found.len() < asked)
                    .then(|| KmsTrouble { kind: TroubleKind::NotFound, text: "not found".to_owned() });
                KmsReport::Keys { request, keys: found, missing }
            }
        };
        let delay = self.kms_delay;
        self.at(delay, Happening::Kms { to: i, life, report });
    }

    fn new_key(&mut self) -> FetchedKey {
        self.kms_next += 1;
        let mut bytes = vec![0; 32];
        self.rng.fill_bytes(&mut bytes);
        let id = format!("key-{}", self.kms_next);
        self.kms.insert(id.clone(), bytes.clone());
        let name = KeyName { id, source_kme: "kme-a".to_owned(), target_kme: "kme-b".to_owned() };
        FetchedKey { name, secret: SecretBuf::take(&mut bytes) }
    }

    /// Delivers a message to end `to` as if the other end had sent it in their session.
    pub fn deliver(&mut self, to: usize, kind: Kind, body: &[u8]) -> MessageId {
        let session = self.sessions[1 - to].load(Ordering::Relaxed);
        assert_ne!(session, 0, "a session is up");
        let mut id = [0; 8];
        self.rng.fill_bytes(&mut id);
        for packet in packets(id, kind, body) {
            let datagram = frame(4, session, &packet);
            let now = self.now;
            self.ends[to].peer.handle_datagram(&datagram, address(1 - to), now, &mut self.rng);
            self.drain(to);
        }
        id
    }

    /// Whether an end answered a `Propose` that is not confirmed yet.
    pub fn pending(&self, i: usize) -> bool {
        let end = &self.ends[i];
        end.opening.values().any(|(generation, ..)| *generation > end.highest_sealed)
    }

    /// Whether an end seals now.
    pub fn seals(&self, i: usize) -> bool {
        self.ends[i].sealing.values().any(|s| s.expires_at > self.now)
    }

    pub fn state(&self, i: usize) -> State {
        self.ends[i].peer.view(self.now).state
    }

    pub fn both(&self, state: State) -> bool {
        self.state(0) == state && self.state(1) == state
    }

    pub fn rekeys(&self) -> u64 {
        self.ends.iter().map(|e| e.peer.view(self.now).rekeys).min().unwrap()
    }

    pub fn failures(&self, i: usize, reason: FailureReason) -> u64 {
        let view = self.ends[i].peer.view(self.now);
        view.rekey_failures.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n)
    }

    /// All that an end told, for a failing test's message.
    pub fn story(&self, i: usize) -> String {
        let lines: Vec<String> = self.ends[i].notices.iter().map(|(at, n)| format!("{at:?} {n:?}")).collect();
        lines.join("\n")
    }
}

fn make(
    sites: &[Site; 2],
    i: usize,
    now: Time,
    life: u32,
    session: &Arc<AtomicU64>,
    rng: &mut ChaCha20Rng,
) -> Peer<FakeLink> {
    let mut instance = [0; 16];
    rng.fill_bytes(&mut instance);
    let seed = u64::from(life) << 8 | u64::try_from(i).unwrap();
    Peer::new(config(sites, i), FakeLink::new(seed, session.clone()), instance, now)
}

pub fn config(sites: &[Site; 2], i: usize) -> PeerConfig {
    let site = sites[i].clone();
    PeerConfig {
        local: site.identity,
        remote: *sites[1 - i].identity.public(),
        role: site.role,
        suite: site.suite,
        rekey_interval: site.interval,
        lanes: site.lanes,
        policy: site.policy,
        sae_local: site.sae,
        sae_remote: site.sae_other,
        psk: site.psk,
        stock: site.stock,
        endpoint: site.knows_endpoint.then(|| address(1 - i)),
        number: 1,
    }
}
