//! Many sites in one process: each has its own keys, UDP socket, control session, epochs and data keys, all
//! by the protocol's own [`Peer`]. They meet a real hub, so a load test needs no thousand daemons.
//!
//! The sites are responders and get their QKD keys by computing them from the seed of `kme-sim`'s link, so
//! that the load of the KMEs is the hub's alone.

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_proto::session::WireGuardLink;
use qvpn_proto::{
    Fetch, FetchedKey, KeyKind, KmsReport, LaneOrder, LaneReport, Peer, PeerConfig, PeerEvent, PeerOutput,
    QkdPolicy, Role,
};
use qvpn_secret::{Secret, SecretBuf};
use qvpn_types::{Direction, LocalEpoch, PeerNumber, SaeId, Suite, Time};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::kmes::test_key;
use crate::packets::is_data;

/// How long the loop waits at most, so that it sees the end.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// Datagrams of one site that are handled before the others get their turn.
const MAX_READS: usize = 16;
/// Packets of a flood between two looks at the sockets.
const FLOOD_BATCH: usize = 256;

/// What the sites have in common.
#[derive(Clone)]
pub struct SwarmOptions {
    /// The hub.
    pub hub: PublicIdentity,
    pub target: SocketAddr,
    /// The hub's SAE ID; site *n* is `SITE-n`.
    pub hub_sae: String,
    pub rekey_interval: Duration,
    /// The seed of the link of `kme-sim`.
    pub link_seed: Vec<u8>,
}

/// What the thread of the sites reports.
pub struct SwarmReport {
    began: Instant,
    /// When each site's last epoch came into force, in nanoseconds since `began`; 0 is never.
    active_at: Vec<AtomicU64>,
    epochs: AtomicU64,
    failed: AtomicU64,
    flooding: AtomicBool,
    flooded: AtomicU64,
    end: AtomicBool,
}

impl SwarmReport {
    /// How many epochs came into force at the sites.
    #[must_use]
    pub fn epochs(&self) -> u64 {
        self.epochs.load(Ordering::Relaxed)
    }

    /// How many attempts failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How many sites got an epoch since then.
    #[must_use]
    pub fn active_since(&self, since: Instant) -> usize {
        let since = nanos(since.saturating_duration_since(self.began));
        self.active_at.iter().filter(|at| at.load(Ordering::Relaxed) > since).count()
    }

    /// Lets the sites send packets of 64 bytes in turn, as fast as they can, or ends that. Returns how many
    /// were sent so far.
    pub fn flood(&self, on: bool) -> u64 {
        self.flooding.store(on, Ordering::Relaxed);
        self.flooded.load(Ordering::Relaxed)
    }
}

/// The running sites.
pub struct Swarm {
    pub report: Arc<SwarmReport>,
    thread: Option<JoinHandle<()>>,
}

impl Swarm {
    /// Starts a site for each identity, on these sockets, which are bound in the sites' namespace.
    ///
    /// # Panics
    /// If the system refuses something.
    #[must_use]
    pub fn start(identities: Vec<SecretIdentity>, sockets: Vec<UdpSocket>, options: SwarmOptions) -> Self {
        let report = Arc::new(SwarmReport {
            began: Instant::now(),
            active_at: identities.iter().map(|_| AtomicU64::new(0)).collect(),
            epochs: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            flooding: AtomicBool::new(false),
            flooded: AtomicU64::new(0),
            end: AtomicBool::new(false),
        });
        let shared = report.clone();
        let thread = std::thread::spawn(move || Loop::new(identities, sockets, &options, shared).run());
        Self { report, thread: Some(thread) }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.report.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let failed = thread.join().is_err();
            assert!(!failed || std::thread::panicking(), "the thread of the sites failed; see above");
        }
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap()
}

/// The keys of the link, by ID.
struct LinkKeys {
    seed: Vec<u8>,
    known: HashMap<String, [u8; 32]>,
    next: u64,
}

impl LinkKeys {
    fn get(&mut self, id: &str) -> Option<[u8; 32]> {
        let end = self.next + 10_000;
        while !self.known.contains_key(id) && self.next < end {
            let (key, id) = test_key(&self.seed, self.next);
            self.known.insert(id, key);
            self.next += 1;
        }
        self.known.remove(id)
    }
}

struct Loop {
    sites: Vec<Site>,
    timers: BTreeSet<(Time, usize)>,
    epoll: Epoll,
    keys: LinkKeys,
    rng: ChaCha20Rng,
    report: Arc<SwarmReport>,
}

impl Loop {
    fn new(
        identities: Vec<SecretIdentity>,
        sockets: Vec<UdpSocket>,
        options: &SwarmOptions,
        report: Arc<SwarmReport>,
    ) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(7);
        let now = time(&report);
        let mut sites = Vec::new();
        for (n, (identity, socket)) in identities.into_iter().zip(sockets).enumerate() {
            socket.set_nonblocking(true).unwrap();
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(n).unwrap());
            epoll.add(&socket, event).unwrap();
            sites.push(Site::new(n, identity, socket, options, &mut rng, now));
        }
        let keys = LinkKeys { seed: options.link_seed.clone(), known: HashMap::new(), next: 0 };
        let mut all = Self { sites, timers: BTreeSet::new(), epoll, keys, rng, report };
        for n in 0..all.sites.len() {
            all.work(n, |site, now, rng| site.peer.handle_timeout(now, rng));
        }
        all
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 256];
        let mut flooder = 0;
        while !self.report.end.load(Ordering::Relaxed) {
            let now = time(&self.report);
            let due = self.timers.first().map_or(MAX_WAIT, |(at, _)| at.since(now).min(MAX_WAIT));
            let flooding = self.report.flooding.load(Ordering::Relaxed);
            let wait = if flooding { 0 } else { u16::try_from(due.as_millis()).unwrap() };
            let count = self.epoll.wait(&mut events, EpollTimeout::from(wait)).unwrap();
            for event in &events[..count] {
                self.read(usize::try_from(event.data()).unwrap());
            }
            let now = time(&self.report);
            while let Some((at, n)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
                self.timers.remove(&(at, n));
                self.work(n, |site, now, rng| site.peer.handle_timeout(now, rng));
            }
            if flooding {
                let sent = (0..FLOOD_BATCH).filter(|_| {
                    flooder = (flooder + 1) % self.sites.len();
                    self.sites[flooder].send_small()
                });
                self.report.flooded.fetch_add(u64::try_from(sent.count()).unwrap(), Ordering::Relaxed);
            }
        }
    }

    fn read(&mut self, n: usize) {
        let mut buffer = [0; 65_536];
        for _ in 0..MAX_READS {
            // An error is an empty queue, or an ICMP error about an earlier datagram.
            let Ok((length, from)) = self.sites[n].socket.recv_from(&mut buffer) else { return };
            let datagram = &mut buffer[..length];
            self.work(n, |site, now, rng| match is_data(datagram) {
                true => site.open(datagram, now, rng),
                false => site.peer.handle_datagram(datagram, from, now, rng),
            });
        }
    }

    /// Lets `step` call into a site, does what the site then wants, and sets its timer.
    fn work(&mut self, n: usize, step: impl FnOnce(&mut Site, Time, &mut ChaCha20Rng)) {
        let now = time(&self.report);
        let site = &mut self.sites[n];
        step(site, now, &mut self.rng);
        while let Some(output) = site.peer.poll_event() {
            match output {
                PeerOutput::Lane(_, order) => site.apply(order, now, &mut self.rng),
                PeerOutput::Fetch(fetch) => {
                    let answer = fetched(fetch, &mut self.keys);
                    site.peer.handle_kms(answer, now, &mut self.rng);
                }
                PeerOutput::Event(PeerEvent::EpochActive { .. }) => {
                    self.report.epochs.fetch_add(1, Ordering::Relaxed);
                    self.report.active_at[n].store(now.as_nanos(), Ordering::Relaxed);
                }
                PeerOutput::Event(PeerEvent::EpochFailed { .. }) => {
                    self.report.failed.fetch_add(1, Ordering::Relaxed);
                }
                PeerOutput::Event(_) => {}
            }
        }
        while let Some(transmit) = site.peer.poll_transmit() {
            // A full queue is like a lost datagram.
            let _ = site.socket.send_to(&transmit.datagram, transmit.to);
        }
        if let Some(former) = std::mem::replace(&mut site.timer, site.peer.poll_timeout()) {
            self.timers.remove(&(former, n));
        }
        self.timers.extend(site.timer.map(|at| (at, n)));
    }
}

fn time(report: &SwarmReport) -> Time {
    Time::from_nanos(nanos(report.began.elapsed()) + 1)
}

/// The slave SAE's answer, without a KME.
fn fetched(fetch: Fetch, keys: &mut LinkKeys) -> KmsReport {
    let (request, names) = match fetch {
        Fetch::ById { request, keys, .. } => (request, keys),
        Fetch::New { .. } => panic!("the sites are responders"),
    };
    let found = names.into_iter().filter_map(|name| {
        let mut key = keys.get(name.id.as_str())?;
        Some(FetchedKey { name, kind: KeyKind::Qkd, secret: SecretBuf::take(&mut key) })
    });
    KmsReport::Keys { request, keys: found.collect(), missing: None }
}

struct Opening {
    index: u32,
    local_epoch: LocalEpoch,
    key: LessSafeKey,
    opened: bool,
}

struct Sealing {
    index: u32,
    key: LessSafeKey,
    counter: u64,
}

struct Site {
    socket: UdpSocket,
    target: SocketAddr,
    peer: Peer<WireGuardLink>,
    opening: Vec<Opening>,
    sealing: Option<Sealing>,
    small: Vec<u8>,
    timer: Option<Time>,
}

/// The network behind site `n`.
#[must_use]
pub fn swarm_network(n: usize) -> String {
    format!("10.{}.{}.0/24", 100 + n / 250, n % 250)
}

impl Site {
    fn new(
        n: usize,
        identity: SecretIdentity,
        socket: UdpSocket,
        options: &SwarmOptions,
        rng: &mut ChaCha20Rng,
        now: Time,
    ) -> Self {
        let local = Arc::new(identity);
        let link = WireGuardLink::new(local.clone(), &options.hub, PeerNumber(1));
        let config = PeerConfig {
            local,
            remote: options.hub,
            other_remote: None,
            role: Role::Responder,
            role_by_keys: false,
            suite: Suite::ChaCha20Poly1305,
            rekey_interval: options.rekey_interval,
            min_rekey_interval: Duration::from_millis(100),
            lanes: 1,
            policy: QkdPolicy::Required,
            qkd_source: true,
            sae_local: SaeId::new(format!("SITE-{n}")).ok(),
            sae_remote: SaeId::new(&options.hub_sae).ok(),
            psk: None,
            stock: 5,
            endpoint: Some(options.target),
            liveness: Some(Duration::from_secs(2)),
            number: PeerNumber(1),
        };
        let mut instance = [0; 16];
        rng.fill_bytes(&mut instance);
        let peer = Peer::new(config, link, instance, now);
        let small = small_packet(n);
        let target = options.target;
        Self { socket, target, peer, opening: Vec::new(), sealing: None, small, timer: None }
    }

    fn apply(&mut self, order: LaneOrder, now: Time, rng: &mut ChaCha20Rng) {
        match order {
            LaneOrder::InstallOpening { local_epoch, index, key, .. } => {
                self.opening.push(Opening { index, local_epoch, key: aead(&key), opened: false });
                self.installed(local_epoch, Direction::Opening, now, rng);
            }
            LaneOrder::InstallSealing { local_epoch, receiver_index, key, .. } => {
                self.sealing = Some(Sealing { index: receiver_index, key: aead(&key), counter: 0 });
                self.installed(local_epoch, Direction::Sealing, now, rng);
            }
            LaneOrder::SendEmpty => {
                self.send(&[]);
            }
            LaneOrder::StopSealing => self.sealing = None,
            LaneOrder::CloseOlder { local_epoch, .. } => {
                // One epoch more: the drain.
                let last = LocalEpoch(local_epoch.0.saturating_sub(1));
                self.opening.retain(|key| key.local_epoch >= last);
            }
            LaneOrder::Close { index } => self.opening.retain(|key| key.index != index),
            LaneOrder::SetEndpoint { .. } | LaneOrder::SetKeepalive { .. } | LaneOrder::Reroute { .. } => {}
        }
    }

    fn installed(&mut self, local_epoch: LocalEpoch, direction: Direction, now: Time, rng: &mut ChaCha20Rng) {
        self.peer.handle_lane(LaneReport::Installed { lane: 0, local_epoch, direction }, now, rng);
    }

    /// Opens a data packet, and reports the first of each epoch.
    fn open(&mut self, packet: &mut [u8], now: Time, rng: &mut ChaCha20Rng) {
        let Some(index) = packet.get(4..8).and_then(|bytes| bytes.first_chunk()) else { return };
        let index = u32::from_le_bytes(*index);
        let Some(key) = self.opening.iter_mut().find(|key| key.index == index) else { return };
        let Some((head, body)) = packet.split_at_mut_checked(16) else { return };
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&head[8..16]);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let first = key.key.open_in_place(nonce, Aad::empty(), body).is_ok()
            && !std::mem::replace(&mut key.opened, true);
        if first {
            let local_epoch = key.local_epoch;
            self.peer.handle_lane(LaneReport::FirstOpened { lane: 0, local_epoch }, now, rng);
        }
    }

    /// Seals and sends an inner packet; returns whether the kernel took it.
    fn send(&mut self, inner: &[u8]) -> bool {
        let Some(sealing) = &mut self.sealing else { return false };
        let mut packet = vec![4, 0, 0, 0];
        packet.extend(sealing.index.to_le_bytes());
        packet.extend(sealing.counter.to_le_bytes());
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&sealing.counter.to_le_bytes());
        sealing.counter += 1;
        packet.extend(inner);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = sealing.key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet[16..]).unwrap();
        packet.extend(tag.as_ref());
        self.socket.send_to(&packet, self.target).is_ok()
    }

    fn send_small(&mut self) -> bool {
        let inner = std::mem::take(&mut self.small);
        let sent = self.send(&inner);
        self.small = inner;
        sent
    }
}

fn aead(key: &Secret<32>) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.expose()).unwrap())
}

/// An IPv4 packet of 64 bytes from the network behind site `n` to the hub's tunnel address.
fn small_packet(n: usize) -> Vec<u8> {
    let mut packet = vec![0; 64];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 64]);
    // TTL 64, protocol 253 (for experiments), which no program waits for.
    packet[8..10].copy_from_slice(&[64, 253]);
    let part = |n: usize| u8::try_from(n).unwrap();
    packet[12..16].copy_from_slice(&[10, part(100 + n / 250), part(n % 250), 1]);
    packet[16..20].copy_from_slice(&[10, 77, 0, 1]);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}
