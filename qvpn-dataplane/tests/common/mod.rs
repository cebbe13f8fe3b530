//! Sites for tests of lanes. Each site's TUN has a network namespace of its own, and the UDP sockets of both
//! sites share the test's loopback, where a test can also send and receive as an attacker. Each test runs
//! again as a child inside fresh user and network namespaces, so it needs no root and leaves nothing behind.
#![allow(clippy::unwrap_used)] // only tests call this, and a failure here fails them

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use qvpn_dataplane::{
    Admission, AllowedIps, Dscp, InterfaceStats, LaneEvent, LaneSink, Lanes, LanesConfig, OpeningKey,
    PeerStats, SealingKey, bind_lane_socket, open_tun,
};
use qvpn_secret::Secret;
use qvpn_types::{Direction, LocalEpoch, PeerNumber, Suite, Time};

/// The time limit of each step of a test.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(20);
pub const MTU: u16 = 1420;
/// The start of the tests' clock, in nanoseconds.
pub const START: u64 = 1_000_000_000;
pub const NO_EXPIRY: u64 = u64::MAX / 2;
/// The number that each site gives the other one.
pub const PEER: PeerNumber = PeerNumber(7);

/// Runs `body` in a child inside its own namespaces. `name` is the name of the calling test.
pub fn in_namespaces(name: &str, body: impl FnOnce()) {
    if std::env::var_os("QVPN_DATAPLANE_INSIDE").is_some() {
        ip("link set lo up");
        return body();
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("QVPN_DATAPLANE_INSIDE", "1")
        .status()
        .expect("`unshare` of util-linux");
    assert!(status.success(), "{name} failed inside its namespaces");
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("`ip` of iproute2");
    assert!(status.success(), "ip {arguments}");
}

struct Sink(SyncSender<LaneEvent>);

impl LaneSink for Sink {
    fn event(&self, event: LaneEvent) -> Result<(), LaneEvent> {
        self.0.try_send(event).map_err(|refused| match refused {
            TrySendError::Full(event) | TrySendError::Disconnected(event) => event,
        })
    }
}

/// Runs `f` in a new network namespace, on a thread that ends with it. Only this call and the descriptors
/// that it opens are in that namespace.
fn apart<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ip("link set lo up");
            f()
        });
        thread.join().unwrap()
    })
}

/// One site: lanes with a TUN in a namespace of its own, and UDP sockets on the test's loopback.
pub struct Site {
    pub lanes: Lanes,
    events: Receiver<LaneEvent>,
    /// Events that arrived while the test waited for another one, for later waits.
    early: RefCell<VecDeque<LaneEvent>>,
    pub stats: Arc<PeerStats>,
    pub interface: Arc<InterfaceStats>,
    pub clock: Arc<AtomicU64>,
    ports: Vec<u16>,
    /// Sockets of a host behind the TUN, by family, bound to the site's inner address.
    pub host4: UdpSocket,
    pub host6: UdpSocket,
}

impl Site {
    /// Makes site 1 or 2, with the inner addresses 10.9.0.N and fd09::N. The addresses of the other site
    /// belong to `PEER`.
    pub fn new(number: u8, lane_count: u8) -> Self {
        let other = 3 - number;
        let (tuns, host4, host6) = apart(|| {
            let tuns = open_tun("q", lane_count).unwrap();
            ip(&format!("addr add 10.9.0.{number}/24 dev q"));
            ip(&format!("addr add fd09::{number}/64 dev q nodad"));
            ip(&format!("link set q up mtu {MTU}"));
            // The kernel adds the local route of the address asynchronously.
            until("the IPv6 address is in use", || {
                let mut show = Command::new("ip");
                let output =
                    show.args(["-6", "route", "show", "table", "local", "dev", "q"]).output().unwrap();
                assert!(output.status.success(), "{output:?}");
                String::from_utf8_lossy(&output.stdout).contains(&format!("local fd09::{number} "))
            });
            let bind = |address: String| UdpSocket::bind(address).unwrap();
            (tuns, bind(format!("10.9.0.{number}:5000")), bind(format!("[fd09::{number}]:5000")))
        });
        for host in [&host4, &host6] {
            host.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        }
        host4.connect(format!("10.9.0.{other}:5000")).unwrap();
        host6.connect(format!("[fd09::{other}]:5000")).unwrap();
        let sockets: Vec<_> = (0..lane_count).map(|_| bind_lane_socket(0, None).unwrap()).collect();
        let ports = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        let (sender, events) = sync_channel(256);
        let interface = Arc::new(InterfaceStats::default());
        let clock = Arc::new(AtomicU64::new(START));
        let reads = clock.clone();
        let config = LanesConfig {
            tuns,
            sockets,
            mtu: MTU,
            dscp: Dscp::Fixed(0),
            stats: interface.clone(),
            filter: Arc::new(|datagram, _, _| match datagram.last() {
                Some(0xaa) => Admission::Admitted,
                Some(0xcc) => Admission::Unproven,
                Some(0xdd) => Admission::TooMany,
                _ if datagram.first() == Some(&4) => Admission::Admitted,
                _ => Admission::Malformed,
            }),
            clock: Arc::new(move || Time::from_nanos(reads.load(Ordering::SeqCst))),
        };
        let lanes = Lanes::start(config, Arc::new(Sink(sender))).unwrap();
        let stats = Arc::new(PeerStats::default());
        let site =
            Self { lanes, events, early: RefCell::default(), stats, interface, clock, ports, host4, host6 };
        site.allow(&[(other, PEER)]);
        site
    }

    /// Sets which peer has the inner addresses of each site.
    pub fn allow(&self, owners: &[(u8, PeerNumber)]) {
        let table = AllowedIps::new(owners.iter().flat_map(|(n, peer)| {
            [
                (format!("10.9.0.{n}").parse().unwrap(), 32, *peer),
                (format!("fd09::{n}").parse().unwrap(), 128, *peer),
            ]
        }));
        self.each_lane(|lane| self.lanes.set_allowed_ips(lane, Arc::new(AllowedIps::default())));
        let table = Arc::new(table.unwrap());
        self.each_lane(|lane| self.lanes.set_allowed_ips(lane, table.clone()));
    }

    pub fn each_lane(&self, command: impl Fn(u8)) {
        (0..u8::try_from(self.lanes.count()).unwrap()).for_each(command);
    }

    pub fn add_peer(&self, lane: u8, endpoint: Option<SocketAddr>) {
        let stats = self.stats.clone();
        self.lanes.add_peer(lane, PEER, endpoint, None, stats);
    }

    /// Installs an opening key and waits for the acknowledgement. Returns whether the key is in force.
    pub fn open(&self, lane: u8, epoch: u64, suite: Suite, expires_at: u64) -> bool {
        let key = OpeningKey {
            peer: PEER,
            epoch: LocalEpoch(epoch),
            index: index(lane, epoch),
            suite,
            key: key(epoch),
            expires_at: Time::from_nanos(expires_at),
        };
        self.lanes.install_opening(lane, key);
        self.installed(lane, epoch, Direction::Opening)
    }

    /// Installs a sealing key and waits for the acknowledgement. Returns whether the key is in force.
    pub fn seal(&self, lane: u8, epoch: u64, suite: Suite, expires_at: u64, packets: u64) -> bool {
        self.seal_for(lane, index(lane, epoch), epoch, suite, expires_at, packets)
    }

    /// Like [`seal`](Self::seal), for packets that another lane of the peer opens.
    pub fn seal_for(
        &self,
        lane: u8,
        receiver_index: u32,
        epoch: u64,
        suite: Suite,
        expires_at: u64,
        packets: u64,
    ) -> bool {
        let key = SealingKey {
            peer: PEER,
            epoch: LocalEpoch(epoch),
            receiver_index,
            suite,
            key: key(epoch),
            expires_at: Time::from_nanos(expires_at),
            packets,
        };
        self.lanes.install_sealing(lane, key, false);
        self.installed(lane, epoch, Direction::Sealing)
    }

    fn installed(&self, lane: u8, epoch: u64, direction: Direction) -> bool {
        let wanted = (lane, PEER, LocalEpoch(epoch), direction);
        let is_wanted = |e: &LaneEvent| {
            matches!(e, LaneEvent::Installed { lane, peer, epoch, direction, .. }
                if (*lane, *peer, *epoch, *direction) == wanted)
        };
        match self.wait(is_wanted) {
            LaneEvent::Installed { in_force, .. } => in_force,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until both threads of each lane have applied all earlier commands: each one acknowledges a key
    /// of an epoch that it refuses, which changes nothing else.
    pub fn settle(&self) {
        for lane in (0u8..).take(self.lanes.count()) {
            assert!(!self.open(lane, 0, Suite::Aes256Gcm, NO_EXPIRY));
            assert!(!self.seal(lane, 0, Suite::Aes256Gcm, NO_EXPIRY, 1));
        }
    }

    /// Waits for an event; other events before it are kept for later waits.
    pub fn wait(&self, wanted: impl Fn(&LaneEvent) -> bool) -> LaneEvent {
        let mut early = self.early.borrow_mut();
        if let Some(at) = early.iter().position(&wanted) {
            return early.remove(at).unwrap();
        }
        loop {
            let event = self.events.recv_timeout(EVENT_TIMEOUT).expect("an event");
            if wanted(&event) {
                return event;
            }
            early.push_back(event);
        }
    }

    pub fn advance_to(&self, now: u64) {
        self.clock.store(now, Ordering::SeqCst);
    }

    /// Returns the address of a lane's socket, by IPv4 or IPv6.
    pub fn address(&self, lane: usize, v6: bool) -> SocketAddr {
        let port = self.ports[lane];
        if v6 { (Ipv6Addr::LOCALHOST, port).into() } else { ([127, 0, 0, 1], port).into() }
    }
}

/// Prints counters and drops if the test failed.
impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (rx, tx) = (self.stats.rx.packets.get(), self.stats.tx.packets.get());
            eprintln!("received {rx}, sent {tx}, {:?}, {:?}", self.stats.drops(), self.interface.drops());
        }
    }
}

/// Returns the key of an epoch, the same for both directions: a test needs no key schedule.
fn key(epoch: u64) -> Secret<32> {
    Secret::filled(|bytes| bytes.fill(u8::try_from(epoch % 251).unwrap() + 1))
}

pub fn index(lane: u8, epoch: u64) -> u32 {
    1 << 31 | u32::from(lane) << 16 | u32::try_from(epoch).unwrap()
}

/// Makes two sites whose lanes have each other's addresses and share epoch 1.
pub fn connected(lane_count: u8, suite: Suite, v6: bool) -> (Site, Site) {
    let (a, b) = (Site::new(1, lane_count), Site::new(2, lane_count));
    for lane in 0..lane_count {
        a.add_peer(lane, Some(b.address(lane.into(), v6)));
        b.add_peer(lane, Some(a.address(lane.into(), v6)));
        for site in [&a, &b] {
            assert!(site.open(lane, 1, suite, NO_EXPIRY));
        }
        for site in [&a, &b] {
            assert!(site.seal(lane, 1, suite, NO_EXPIRY, u64::MAX));
        }
    }
    (a, b)
}

/// Waits until `reached` returns true, by polling: counters have no notification.
pub fn until(what: &str, reached: impl Fn() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < EVENT_TIMEOUT, "still waiting: {what}");
        std::thread::yield_now();
    }
}

/// Makes a socket of an attacker, to which a test can also direct the packets of a site.
pub fn wire() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    socket
}

/// Sends datagrams of `size` bytes each (the last one may be shorter) as one message, which loopback
/// delivers as one message.
pub fn send_joined(wire: &UdpSocket, datagrams: &[u8], size: usize, to: SocketAddr) {
    let size = u16::try_from(size).unwrap();
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let parts = [IoSlice::new(datagrams)];
    let to = SockaddrIn::from(to);
    sendmsg(wire.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to)).unwrap();
}

/// Receives the next datagram of a socket.
pub fn catch(wire: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 65_535];
    let (len, _) = wire.recv_from(&mut buffer).expect("a datagram");
    buffer[..len].to_vec()
}

/// Receives the next payload at a host and checks that it is `expected`.
pub fn expect(host: &UdpSocket, expected: &[u8]) {
    let mut buffer = [0; 65_535];
    let len = host.recv(&mut buffer).expect("a packet");
    assert_eq!(&buffer[..len], expected, "{} bytes came where {} were awaited", len, expected.len());
}
