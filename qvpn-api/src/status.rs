//! The status of a daemon, as `qvpn-ctl show --json` prints it, with fixed names. An unknown value is
//! `None` (JSON `null`), never 0; durations are seconds as numbers, and times are `_ago_s` or `_in_s`.

mod drops;
mod gateway;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{KmeApi, QkdPolicy, Suite};
pub use drops::{InterfaceDrop, PeerDrop};
pub use gateway::GatewayStatus;
pub use qvpn_types::{LaneState, Role};

/// The `schema` of [`Status`] that this version writes and reads. It grows only if a name changes its
/// meaning or is removed.
pub const SCHEMA: u32 = 1;

/// Counters by reason, sorted by name. A reason that is absent was never counted.
pub type Counts = BTreeMap<String, u64>;

/// The answer to `show`: one daemon reports one interface, and `qvpn-ctl show` joins those of all daemons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The interfaces, in the order of their names.
    pub interfaces: Vec<InterfaceStatus>,
}

impl Status {
    /// Makes a status of these interfaces under the current [`SCHEMA`].
    #[must_use]
    pub fn new(interfaces: Vec<InterfaceStatus>) -> Self {
        Self { schema: SCHEMA, interfaces }
    }
}

/// One interface, which is one daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// The interface's name, as `ip link` shows it.
    pub name: String,
    /// Our public key as text (`qvpn1-…`).
    pub public_key: String,
    /// The UDP port of lane 0.
    pub listen_port: u16,
    /// The AEAD of the interface; a peer may have its own.
    #[serde(with = "crate::config::shared_words")]
    pub suite: Suite,
    /// How many lanes we run.
    pub lanes: u8,
    /// The MTU of the TUN device in bytes.
    pub mtu: Option<u32>,
    /// Seconds since the daemon's start.
    pub uptime_s: Option<f64>,
    /// Whether this gateway carries the traffic, or stands by for another one; unknown from daemons before
    /// 0.2.
    #[serde(default)]
    pub gateway: Option<GatewayStatus>,
    /// Dropped packets that could not be assigned to a peer, by [`InterfaceDrop`].
    pub drops: Counts,
    /// The fail-closed block; unknown from daemons before 0.2.
    #[serde(default)]
    pub guard: Option<GuardStatus>,
    /// Under `routes = "kernel"`: which routes lead to which peer.
    #[serde(default)]
    pub routing: Option<RoutingStatus>,
    /// The tunnel's device; unknown from daemons before 0.2.
    #[serde(default)]
    pub device: Option<DeviceStatus>,
    /// The config in force; unknown from daemons before 0.2.
    #[serde(default)]
    pub config: Option<ConfigStatus>,
    /// The audit log; unknown from daemons before 0.2.
    #[serde(default)]
    pub audit: Option<AuditStatus>,
    /// This site's KMEs, in the config's order.
    pub kmes: Vec<KmeStatus>,
    /// The peers, in the config's order.
    pub peers: Vec<PeerStatus>,
}

/// The fail-closed block of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The route layer: `in_force`, `missing` or `off`.
    pub routes: String,
    /// The filter layer: `in_force`, `missing` or `off`.
    pub nftables: String,
    /// Prefixes whose packets leave this host only through the tunnel.
    pub protected: Vec<String>,
    /// Those of them that are no longer in any config; `qvpn-ctl unblock` releases them.
    #[serde(default)]
    pub kept: Vec<String>,
    /// This site's own networks inside protected prefixes, as `PREFIX dev DEVICE`.
    pub local: Vec<String>,
    /// Packets that the filter dropped; unknown if there is no filter.
    pub dropped: Option<u64>,
    /// Why this machine has no filter, if it has none.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The config in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The SHA-256 of its text, in hex; with `include`, of all files joined.
    pub hash: String,
    /// Where further peers are, as in the config.
    pub include: Option<String>,
    /// The seconds left to confirm it, if it is on trial; then the former config comes back.
    pub confirm_in_s: Option<f64>,
}

/// The audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// `on`; `off` where none is set up; or `failing`, while it can't be written.
    pub state: String,
    /// The number of the line that is written next.
    pub next_line: Option<u64>,
    /// Records that were lost since the start, because the log could not be written.
    pub lost: u64,
    /// Why it fails.
    pub reason: Option<String>,
}

/// The state of the tunnel's device in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// `up`; `renamed`, if another device has its name; or `missing`, if it was deleted or moved to another
    /// network namespace.
    pub state: String,
    /// Its current name.
    pub name: Option<String>,
}

/// The kernel's routes through the tunnel, which choose the peer of each packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingStatus {
    /// The routing table that is followed.
    pub table: u32,
    /// The device's link-local address: the next hop for peers' routes to us.
    pub link_local: Option<String>,
    /// How many routes of that table lead through the tunnel.
    pub routes: u64,
    /// The peers, in the config's order.
    pub peers: Vec<RoutedPeerStatus>,
    /// How many routes have a next hop that belongs to no peer.
    pub unresolved_routes: u64,
    /// The first of these routes.
    pub unresolved: Vec<UnresolvedRoute>,
    /// Why the routes can't be read; the last ones that were read stay in force.
    pub error: Option<String>,
}

/// A peer that routes lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedPeerStatus {
    /// Its name.
    pub peer: String,
    /// Its next hops.
    pub next_hops: Vec<String>,
    /// How many routes lead to it.
    pub routes: u64,
    /// The prefixes of the first of these.
    pub prefixes: Vec<String>,
}

/// A route with next hops that belong to no peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnresolvedRoute {
    /// The destination.
    pub prefix: String,
    /// The next hops that belong to no peer.
    pub next_hops: Vec<String>,
}

/// One KME, as of the daemon's last operation with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KmeStatus {
    /// The KME's name in the config.
    pub name: String,
    /// Its API.
    pub api: KmeApi,
    /// Its base URL.
    pub url: String,
    /// Whether the last operation worked; unknown until the first has finished.
    pub state: Option<KmeState>,
    /// The last failure in words, with what to do. It stays after a recovery, so look at `state` as well.
    pub last_error: Option<String>,
    /// Seconds since the last operation that worked.
    pub last_success_ago_s: Option<f64>,
    /// The number of keys that the KME reports for us; some KMEs report wrong numbers.
    pub stored_key_count: Option<u64>,
    /// How long the last operation took, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Seconds until the first of the certificates in use expires; negative once it has expired.
    pub cert_expires_in_s: Option<f64>,
}

/// Whether a KME works for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KmeState {
    /// The last operation worked.
    Up,
    /// The last operation failed; `last_error` says how.
    Down,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer's name in the config.
    pub name: String,
    /// Its public key in use as text (`qvpn1-…`): that of the epoch in force.
    pub public_key: String,
    /// That public key's fingerprint, short enough to read over a phone.
    pub fingerprint: String,
    /// Its other public key in the config, which is not in use; only while it changes its key.
    #[serde(default)]
    pub other_public_key: Option<String>,
    /// Our public key in use with this peer. While we change our key, it is the former one until an epoch is
    /// made with the new one. Unknown for a disabled peer.
    #[serde(default)]
    pub own_public_key: Option<String>,
    /// The endpoint of its lane 0 that is in use, `address:port`.
    pub endpoint: Option<String>,
    /// The networks behind it, as prefixes.
    pub allowed_ips: Vec<String>,
    /// Its state.
    pub state: PeerState,
    /// Why the state isn't `up`, and what to do, in words.
    pub reason: Option<String>,
    /// Our role in the exchange.
    #[serde(default, with = "crate::config::shared_words::option")]
    pub role: Option<Role>,
    /// The policy in force: the stricter one of both sites, or ours until the peer's is known.
    #[serde(with = "crate::config::shared_words")]
    pub qkd_policy: QkdPolicy,
    /// The number of the epoch that we send in.
    pub epoch: Option<u64>,
    /// Seconds since that epoch's key was made.
    pub epoch_age_s: Option<f64>,
    /// Seconds until we stop sealing under it.
    pub epoch_expires_in_s: Option<f64>,
    /// Seconds until the next epoch is due; negative when it is overdue.
    pub next_rekey_in_s: Option<f64>,
    /// The sources of the epoch's key; empty while there is no epoch.
    pub key_sources: Vec<KeySource>,
    /// The ID of the QKD key in it (an ID is public, a key is not).
    pub qkd_key_id: Option<String>,
    /// The number of QKD keys that both sites hold ahead.
    pub qkd_stock: Option<u64>,
    /// How long the stock lasts at the agreed interval, in seconds.
    pub qkd_stock_lasts_s: Option<f64>,
    /// The number of keys from a file that both sites hold ahead; they don't count as QKD keys.
    #[serde(default)]
    pub file_stock: Option<u64>,
    /// Confirmed epochs since the daemon's start.
    pub rekeys: u64,
    /// Failed attempts by reason.
    pub rekey_failures: Counts,
    /// Seconds since the last handshake of the control session.
    pub control_handshake_ago_s: Option<f64>,
    /// Seconds since the last authenticated packet, control or data; unknown until the first, and from
    /// daemons before 0.2.
    #[serde(default)]
    pub last_received_ago_s: Option<f64>,
    /// Inner bytes received.
    pub rx_bytes: Option<u64>,
    /// Inner bytes sent.
    pub tx_bytes: Option<u64>,
    /// Inner packets received.
    pub rx_packets: Option<u64>,
    /// Inner packets sent.
    pub tx_packets: Option<u64>,
    /// Packets of this peer that were dropped, by [`PeerDrop`].
    pub drops: Counts,
    /// The MTU on this peer's routes in bytes.
    pub mtu: Option<u32>,
    /// Its lanes, by number.
    pub lanes: Vec<LaneStatus>,
}

/// One lane of a peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// The lane's number, from 0.
    pub lane: u8,
    /// Our UDP port of this lane.
    pub listen_port: u16,
    /// The peer's endpoint of the lane, `address:port`.
    pub endpoint: Option<String>,
    /// Whether packets arrive on it; unknown until the first epoch is old enough to tell.
    #[serde(default, with = "crate::config::shared_words::option")]
    pub state: Option<LaneState>,
    /// The lane that carries this lane's flows, if it is silent or the peer has fewer lanes.
    pub via: Option<u8>,
    /// Authenticated packets received on it.
    pub rx_packets: u64,
    /// Packets passed to the kernel.
    pub tx_packets: u64,
    /// Packets of these that were sent in batches (UDP GSO).
    pub tx_gso_packets: u64,
    /// Packets that the kernel refused as one GSO batch; they were then sent one by one.
    pub tx_gso_refused_packets: u64,
}

/// The state of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// There has been no epoch since the start.
    Connecting,
    /// Traffic flows under a key that meets the policy.
    Up,
    /// Traffic flows without QKD, which `preferred` allows.
    Degraded,
    /// The keys are valid, and the peer does not answer.
    Silent,
    /// Fail closed: there is no valid key, and nothing is sent.
    Blocked,
    /// The config or an operator has disabled it; its networks are blocked.
    Disabled,
    /// This gateway is in standby: nothing is sent, and its networks are blocked.
    Standby,
}

impl PeerState {
    /// All states, in the order of the metric's labels.
    pub const ALL: [Self; 7] = [
        Self::Connecting,
        Self::Up,
        Self::Degraded,
        Self::Silent,
        Self::Blocked,
        Self::Disabled,
        Self::Standby,
    ];

    /// Whether it is not up by intent: an operator disabled it, or another gateway carries its traffic.
    #[must_use]
    pub fn is_set_aside(self) -> bool {
        matches!(self, Self::Disabled | Self::Standby)
    }

    /// The fixed name in JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Silent => "silent",
            Self::Blocked => "blocked",
            Self::Disabled => "disabled",
            Self::Standby => "standby",
        }
    }
}

/// A source of an epoch's key. The order is that of the text form: `qkd+mlkem+x25519`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// A key from a QKD network.
    Qkd,
    /// A key from a file. It is never called `qkd` and doesn't satisfy `required`.
    File,
    /// ML-KEM-1024, ephemeral and static.
    Mlkem,
    /// Ephemeral X25519.
    X25519,
    /// The manual pre-shared key.
    Psk,
    /// The chain key of the epochs before.
    Chain,
}

impl KeySource {
    /// The fixed name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qkd => "qkd",
            Self::File => "file",
            Self::Mlkem => "mlkem",
            Self::X25519 => "x25519",
            Self::Psk => "psk",
            Self::Chain => "chain",
        }
    }
}

/// The text form in a fixed order: `qkd+mlkem+x25519`; empty for no sources.
#[must_use]
pub fn sources_text(sources: &[KeySource]) -> String {
    let mut sorted = sources.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.iter().map(|s| s.as_str()).collect::<Vec<_>>().join("+")
}
