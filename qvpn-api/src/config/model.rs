//! A config as types. Each value is within its limits, and defaults are filled in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use qvpn_identity::PublicIdentity;
use qvpn_types::{QkdPolicy, SaeId, Suite};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::access::Access;
use super::positions::ValuePositions;
use crate::lookup::{self, LookupError};

mod kms;

pub use kms::{ClientKey, Kme, KmeAccess, KmeServer, Kms, StreamOptions};

/// The shortest rekey interval.
pub(super) const MIN_REKEY_INTERVAL: Duration = Duration::from_millis(100);

/// A config whose values have all been checked.
///
/// ```
/// use qvpn_api::Config;
/// let text = "[interface]\nlisten_prt = 51820\n";
/// let error = Config::parse("/etc/qvpn/qvpn0.toml".as_ref(), text).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "/etc/qvpn/qvpn0.toml:2:1: [interface] has no key `listen_prt`; did you mean `listen_port`?"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from.
    pub path: PathBuf,
    /// The section `[interface]`.
    pub interface: Interface,
    /// The section `[kms]`, which has at least one KME.
    pub kms: Option<Kms>,
    /// The sections `[[peer]]` in the order of the file; names and public keys are unique.
    pub peers: Vec<Peer>,
    /// The section `[access]`.
    pub access: Option<Access>,
    /// `epochs` of the section `[audit]`.
    pub audit_epochs: AuditEpochs,
    /// The file's text.
    pub text: Arc<str>,
    /// The positions of values, for checks that come after parsing.
    pub(super) positions: ValuePositions,
}

impl Config {
    /// Returns the SHA-256 of the text, in hex: of a config without `include`, what `sha256sum` prints for
    /// its file.
    #[must_use]
    pub fn hash(&self) -> String {
        Sha256::digest(self.text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the peer with this name or public key.
    #[must_use]
    pub fn peer(&self, name_or_key: &str) -> Option<&Peer> {
        let key = name_or_key.parse().ok();
        self.peers.iter().find(|p| p.name == name_or_key || key.is_some_and(|key| p.has_key(&key)))
    }

    /// Returns the shortest interval that we accept for a peer: the config's, or a tenth of the peer's rekey
    /// interval and at least 100 ms.
    #[must_use]
    pub fn min_rekey_interval(&self, peer: &Peer) -> Duration {
        let tenth = (peer.rekey_interval / 10).max(MIN_REKEY_INTERVAL);
        self.interface.min_rekey_interval.unwrap_or(tenth)
    }

    /// Returns the peer that `text` names: by name, public key or fingerprint, or the beginning of one.
    ///
    /// # Errors
    /// If no peer or several peers match.
    pub fn find_peer(&self, text: &str) -> Result<&Peer, LookupError> {
        match self.peer(text) {
            Some(peer) => Ok(peer),
            None => lookup::find(self.peers.iter(), text, |p| {
                (p.name.clone(), p.public_key.to_string(), p.public_key.fingerprint())
            }),
        }
    }

    /// Returns the KMEs that `peer` may use, in its order of preference; none if its `qkd` is `off`.
    #[must_use]
    pub fn kmes_of(&self, peer: &Peer) -> Vec<&Kme> {
        let kmes = self.kms.as_ref().map_or(&[][..], |kms| &kms.kmes);
        peer.kmes.iter().filter_map(|name| kmes.iter().find(|k| k.name == *name)).collect()
    }
}

/// The section `[interface]`: one TUN device and its daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The device's name, 1 to 15 bytes.
    pub name: String,
    /// The file of the secret key. Here and in all paths, a relative path was resolved from the config's
    /// directory.
    pub private_key_file: PathBuf,
    /// The UDP port of lane 0, from 1; lane *i* uses `listen_port + i`, which never overflows.
    pub listen_port: u16,
    /// The device's addresses with their prefix lengths; host bits are kept.
    pub address: Vec<IpNet>,
    /// The device's MTU.
    pub mtu: Mtu,
    /// The AEAD of peers that don't set their own.
    pub suite: Suite,
    /// The rekey interval of peers that don't set their own, 100 ms to 120 s.
    pub rekey_interval: Duration,
    /// The shortest interval that peers can ask for, 100 ms to 120 s; `None`: see
    /// [`Config::min_rekey_interval`].
    pub min_rekey_interval: Option<Duration>,
    /// The time without a packet after which a peer is pinged, 100 ms to 60 s; `None` is off.
    pub liveness: Option<Duration>,
    /// The number of lanes, 1 to 16.
    pub lanes: u8,
    /// Where routes for allowed IPs go.
    pub table: Table,
    /// The mark of our outer packets; 0: the daemon chooses one where a default route needs it.
    pub fwmark: u32,
    /// The DSCP of outer packets.
    pub dscp: Dscp,
    /// What allowed IPs do when the daemon is stopped.
    pub on_stop: OnStop,
    /// Further prefixes whose packets may leave this host only through the tunnel, without host bits.
    pub protect: Vec<IpNet>,
    /// This site's own networks inside protected prefixes.
    pub local: Vec<Local>,
    /// What decides which peer a packet goes to.
    pub routes: Routes,
    /// The kernel's routing table that is followed under [`Routes::Kernel`].
    pub routes_table: u32,
    /// Whether the config says `local = "connected"`; the list then has the accepted networks.
    pub local_connected: bool,
    /// The address of the metrics listener; off if absent.
    pub metrics_listen: Option<SocketAddr>,
    /// How much the daemon logs.
    pub log_level: LogLevel,
    /// Further files with peers, `DIR/*.toml`.
    pub include: Option<String>,
}

impl Interface {
    /// The routing table for [`Routes::Kernel`] if the config sets none.
    pub const MAIN_TABLE: u32 = 254;

    /// Returns the device's addresses. Under [`Routes::Kernel`] there is always a link-local one: the
    /// config's, or one that is derived from `own`, our public key.
    #[must_use]
    pub fn device_addresses(&self, own: &PublicIdentity) -> Vec<IpNet> {
        let mut all = self.address.clone();
        if self.routes == Routes::Kernel && !all.iter().any(|net| is_link_local(&net.addr())) {
            all.extend(IpNet::new(own.link_local().into(), 64));
        }
        all
    }
}

/// An entry of `local`: a network of this site that stays reachable without the tunnel, through one device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    /// The network, with no host bits.
    pub prefix: IpNet,
    /// The device that leads to it, 1 to 15 bytes.
    pub device: String,
}

impl Peer {
    /// Returns its next hops under [`Routes::Kernel`], which are allowed sources too: `tunnel_address`, and,
    /// unless that has a link-local address, those that are derived from its public keys.
    #[must_use]
    pub fn next_hops(&self) -> Vec<IpAddr> {
        let mut all = self.tunnel_address.clone();
        if !all.iter().any(is_link_local) {
            all.extend(self.public_keys().map(|key| IpAddr::from(key.link_local())));
        }
        all
    }
}

/// Whether an address is an IPv6 link-local one (fe80::/10).
pub(crate) fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A section `[[peer]]`: another site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, unique.
    pub name: String,
    /// Its public key, unique.
    pub public_key: PublicIdentity,
    /// Its other public key, unique too, while it changes its key.
    pub second_key: Option<PublicIdentity>,
    /// The endpoint of its lane 0; learned from its packets if absent.
    pub endpoint: Option<Endpoint>,
    /// The networks behind it, without host bits; a prefix belongs to one peer, except under
    /// [`Routes::Kernel`].
    pub allowed_ips: Vec<IpNet>,
    /// The next hops by which the kernel's routes lead to it, unique: its own addresses in the tunnel.
    pub tunnel_address: Vec<IpAddr>,
    /// Its SAE ID; present unless `qkd` is off.
    pub sae_id: Option<SaeId>,
    /// Names of the KMEs that serve the pair, in the order of preference; empty where `qkd` is off.
    pub kmes: Vec<String>,
    /// Whether its epochs need a QKD key.
    pub qkd: QkdPolicy,
    /// Which site proposes epochs.
    pub role: Role,
    /// The file of the manual pre-shared key.
    pub preshared_key_file: Option<PathBuf>,
    /// The longest time without sending anything, 1 s to 65535 s; off if absent.
    pub persistent_keepalive: Option<Duration>,
    /// Its AEAD: its own or the interface's.
    pub suite: Suite,
    /// Its rekey interval: its own or the interface's.
    pub rekey_interval: Duration,
    /// Whether it is disabled: nothing is sent to it or accepted from it, and its prefixes stay blocked.
    pub disabled: bool,
}

/// A UDP destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An address (IPv6 without brackets) or a host name.
    pub host: String,
    /// The UDP port of lane 0, from 1.
    pub port: u16,
}

impl Endpoint {
    /// Returns the address; `None` for a host name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// `host:port`, with brackets around IPv6.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The MTU of the TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// Measured for each peer.
    Auto,
    /// Bytes, 576 to 65455, and at least 1280 where there is IPv6.
    Bytes(u16),
}

/// The routing table for allowed IPs, as with `wg-quick`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The main table, and a table of our own for default routes.
    Auto,
    /// No routes.
    Off,
    /// This table; not 0 or 255.
    Id(u32),
}

/// The DSCP of outer packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dscp {
    /// The inner packet's.
    Inherit,
    /// This one, 0 to 63.
    Value(u8),
}

/// Defines an enum of config words, with the same words in JSON.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The words of the config, in the order of the help.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// Returns the word of the config.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// Returns the value of a word of the config.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Which site proposes epochs.
    Role {
        /// The site with the smaller X25519 key proposes.
        Auto = "auto",
        /// We propose; we are the master SAE.
        Initiator = "initiator",
        /// The peer proposes; we are the slave SAE.
        Responder = "responder",
    }
}

impl Role {
    /// Returns the role that the config names; `None` for `auto`.
    #[must_use]
    pub fn fixed(self) -> Option<qvpn_types::Role> {
        match self {
            Self::Auto => None,
            Self::Initiator => Some(qvpn_types::Role::Initiator),
            Self::Responder => Some(qvpn_types::Role::Responder),
        }
    }
}

words! {
    /// How much the daemon logs.
    LogLevel {
        /// Failures only.
        Error = "error",
        /// Failures and warnings.
        Warn = "warn",
        /// Also normal events; the default.
        Info = "info",
        /// Details for troubleshooting.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}
words! {
    /// Which epochs the audit log records.
    AuditEpochs {
        /// Each.
        All = "all",
        /// Those whose key is made of other sources than the one before; the default.
        Changes = "changes",
        /// None.
        Off = "off",
    }
}
words! {
    /// What allowed IPs do when the daemon is stopped.
    OnStop {
        /// They stay unreachable: nothing leaves in clear.
        Block = "block",
        /// Their routes are removed, as with `wg-quick down`.
        Open = "open",
    }
}
words! {
    /// What decides which peer a packet goes to.
    Routes {
        /// The longest prefix in the allowed IPs of all peers.
        Config = "config",
        /// The kernel's routes, by their next hops; allowed IPs bound what each peer may get and send.
        Kernel = "kernel",
    }
}
words! {
    /// How keys are fetched from a KME.
    KmeApi {
        /// ETSI GS QKD 014.
        Etsi014 = "etsi014",
        /// ETSI GS QKD 004: key streams over mutual TLS.
        Etsi004 = "etsi004",
        /// Cisco SKIP (draft-cisco-skip-02) over mutual TLS.
        Skip = "skip",
        /// A file of keys; they don't count as QKD keys.
        File = "file",
    }
}
words! {
    /// The byte format of an ETSI GS QKD 004 server: the document defines none.
    Dialect {
        /// Found by trying.
        Auto = "auto",
        /// That of ETSI's C reference.
        C = "c",
        /// That of QUBIP's Python server.
        Python = "python",
    }
}
