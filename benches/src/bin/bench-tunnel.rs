//! Runs only the data path: lanes between two namespaces with keys that both sides compute, so the
//! measurement includes no KME and no exchange. New epochs begin at a given rate, by the clock that both
//! sides share. The keys are public: for benchmarks only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use qvpn_dataplane::{
    Admission, AllowedIps, Dscp, LaneEvent, LaneSink, Lanes, LanesConfig, OpeningKey, PeerStats, SealingKey,
    bind_lane_socket, boot_clock, open_tun,
};
use qvpn_secret::Secret;
use qvpn_types::{LocalEpoch, MAX_PACKETS, PeerNumber, Suite, Time};

// The same allocator as in the daemon.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

const PEER: PeerNumber = PeerNumber(1);

/// How long an older epoch opens packets after a newer one began, and the maximum age of a key: the minimum
/// values of the protocol.
const DRAIN: Duration = Duration::from_secs(2);
const MAX_AGE: Duration = Duration::from_secs(10);

/// One side of a tunnel with computed keys; stops when its standard input ends.
#[derive(Parser)]
struct Options {
    /// The TUN device to make
    #[arg(long)]
    tun: String,
    /// UDP port of lane 0 at both sides
    #[arg(long, default_value_t = 51820)]
    port: u16,
    /// The peer's address
    #[arg(long)]
    peer: IpAddr,
    /// Which side this is
    #[arg(long)]
    side: Side,
    #[arg(long, default_value = "chacha")]
    suite: Cipher,
    /// New epochs a second; 0 for one that lasts
    #[arg(long, default_value_t = 0)]
    rekeys: u32,
    #[arg(long, default_value_t = 1)]
    lanes: u8,
    #[arg(long, default_value_t = 1420)]
    mtu: u16,
}

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum Side {
    A,
    B,
}

#[derive(Clone, Copy, ValueEnum)]
enum Cipher {
    Chacha,
    Aes,
    #[cfg(feature = "null-cipher")]
    Null,
}

impl Cipher {
    fn suite(self) -> Suite {
        match self {
            Self::Chacha => Suite::ChaCha20Poly1305,
            Self::Aes => Suite::Aes256Gcm,
            #[cfg(feature = "null-cipher")]
            Self::Null => {
                qvpn_dataplane::use_null_cipher();
                Suite::ChaCha20Poly1305
            }
        }
    }
}

struct Sink(SyncSender<LaneEvent>);

impl LaneSink for Sink {
    fn event(&self, event: LaneEvent) -> Result<(), LaneEvent> {
        // Only a failure matters here. If the queue is full, an earlier one is already in it.
        if matches!(event, LaneEvent::Failed { .. }) {
            let _ = self.0.try_send(event);
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let tuns = open_tun(&options.tun, options.lanes)?;
    let ports: Vec<u16> = (0..u16::from(options.lanes)).map(|lane| options.port + lane).collect();
    let sockets = ports.iter().map(|port| bind_lane_socket(*port, None)).collect::<Result<_, _>>()?;
    let (sender, events) = sync_channel(16);
    let config = LanesConfig {
        tuns,
        sockets,
        mtu: options.mtu,
        stats: Arc::default(),
        filter: Arc::new(|_, _, _| Admission::Malformed),
        dscp: Dscp::Fixed(0),
        clock: boot_clock(),
    };
    let lanes = Lanes::start(config, Arc::new(Sink(sender)))?;
    let all = [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, PEER), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0, PEER)];
    let table = Arc::new(AllowedIps::new(all)?);
    for (lane, port) in (0..).zip(ports) {
        let endpoint = Some(SocketAddr::new(options.peer, port));
        let stats = Arc::new(PeerStats::default());
        lanes.add_peer(lane, PEER, endpoint, None, stats);
        lanes.set_allowed_ips(lane, table.clone());
    }
    let end = std::thread::spawn(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let clock = boot_clock();
    let nanos = || clock().as_nanos();
    let keys = Keys { lanes: &lanes, count: options.lanes, suite: options.suite.suite(), side: options.side };
    let interval = 1_000_000_000u64.checked_div(options.rekeys.into());
    // Without rekeys there is only epoch 1, whose keys don't expire.
    let epoch_at = |now: Time| interval.map_or(1, |interval| now.as_nanos() / interval);
    let expires = |now: Time| if interval.is_some() { now + MAX_AGE } else { Time::from_nanos(u64::MAX) };
    let now = clock();
    let mut epoch = epoch_at(now);
    keys.open(epoch, expires(now));
    keys.seal(epoch, expires(now));
    if interval.is_some() {
        keys.open(epoch + 1, expires(now));
    }
    println!("ready");
    while !end.is_finished() {
        let next = interval.map_or(u64::MAX, |interval| (epoch + 1) * interval);
        let wait = Duration::from_nanos(next.saturating_sub(nanos()).min(200_000_000));
        match events.recv_timeout(wait) {
            Ok(LaneEvent::Failed { lane, error }) => bail!("lane {lane}: {error}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the lanes are gone"),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
        let now = clock();
        if interval.is_some() && epoch_at(now) > epoch {
            epoch = epoch_at(now);
            // The peer may be slightly ahead, so the next opening key is installed one interval before it is
            // due.
            keys.open(epoch + 1, expires(now));
            keys.seal(epoch, expires(now));
            keys.close_older(epoch, now + DRAIN);
        }
    }
    Ok(())
}

struct Keys<'a> {
    lanes: &'a Lanes,
    count: u8,
    suite: Suite,
    side: Side,
}

impl Keys<'_> {
    fn open(&self, epoch: u64, expires_at: Time) {
        for lane in 0..self.count {
            let (key, index) = (key(epoch, lane, self.side == Side::B), index(epoch, lane));
            let epoch = LocalEpoch(epoch);
            let key = OpeningKey { peer: PEER, epoch, index, suite: self.suite, key, expires_at };
            self.lanes.install_opening(lane, key);
        }
    }

    fn seal(&self, epoch: u64, expires_at: Time) {
        for lane in 0..self.count {
            let key = SealingKey {
                peer: PEER,
                epoch: LocalEpoch(epoch),
                receiver_index: index(epoch, lane),
                suite: self.suite,
                key: key(epoch, lane, self.side == Side::A),
                expires_at,
                packets: MAX_PACKETS,
            };
            self.lanes.install_sealing(lane, key, false);
        }
    }

    fn close_older(&self, epoch: u64, at: Time) {
        for lane in 0..self.count {
            self.lanes.close_older(lane, PEER, LocalEpoch(epoch), at);
        }
    }
}

/// Returns the key of an epoch, a lane and a direction.
fn key(epoch: u64, lane: u8, from_a: bool) -> Secret<32> {
    Secret::filled(|bytes| {
        bytes[..8].copy_from_slice(&epoch.to_le_bytes());
        bytes[8] = lane;
        bytes[9] = from_a.into();
    })
}

/// Returns a receiver index: top bit set, then the lane, then the epoch's lower 24 bits.
fn index(epoch: u64, lane: u8) -> u32 {
    1 << 31 | u32::from(lane & 0x7f) << 24 | u32::try_from(epoch & 0xff_ffff).unwrap_or(0)
}
