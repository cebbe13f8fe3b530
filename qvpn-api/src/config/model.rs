//! What a config says, as types. Each value is within its limits, and defaults are filled in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use qvpn_identity::PublicIdentity;
use serde::{Deserialize, Serialize};

use super::error::Position;
use super::token::TokenKey;

/// The section `[interface]`: one TUN device and its daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The device's name, 1 to 15 bytes.
    pub name: String,
    /// The file of the secret key. As with all paths, a relative one was taken from the config's folder.
    pub private_key_file: PathBuf,
    /// The UDP port of lane 0, from 1; lane *i* uses `listen_port + i`, which never overflows.
    pub listen_port: u16,
    /// The device's addresses with their prefix lengths; host bits are kept.
    pub address: Vec<IpNet>,
    /// The device's MTU.
    pub mtu: Mtu,
    /// The AEAD of peers that name none.
    pub suite: Suite,
    /// The rekey interval of peers that name none, 100 ms to 120 s.
    pub rekey_interval: Duration,
    /// How many lanes, 1 to 16.
    pub lanes: u8,
    /// Where routes for allowed IPs go.
    pub table: Table,
    /// The mark of our outer packets; 0: the daemon chooses one where a default route needs it.
    pub fwmark: u32,
    /// The DSCP of outer packets.
    pub dscp: Dscp,
    /// What allowed IPs do when the daemon is stopped.
    pub on_stop: OnStop,
    /// Where Prometheus scrapes; off when absent.
    pub metrics_listen: Option<SocketAddr>,
    /// How much the daemon logs.
    pub log_level: LogLevel,
}

/// The section `[kms]`: this site's side of the QKD network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kms {
    /// Our SAE ID.
    pub sae_id: String,
    /// Keys held ahead for each peer, 1 to 100.
    pub stock: u32,
    /// The KMEs in their order; at least one, with unique names.
    pub kmes: Vec<Kme>,
}

/// A section `[[kms.kme]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kme {
    /// Its name, unique.
    pub name: String,
    /// How it knows us; by default the SAE ID of `[kms]`.
    pub sae_id: String,
    /// What it is, and how it is reached.
    pub access: KmeAccess,
}

/// Where the private key of our client certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientKey {
    /// A PEM file.
    File(PathBuf),
    /// A PKCS#11 token, which it never leaves.
    Token(Box<TokenKey>),
}

impl From<PathBuf> for ClientKey {
    fn from(file: PathBuf) -> Self {
        Self::File(file)
    }
}

impl From<&Path> for ClientKey {
    fn from(file: &Path) -> Self {
        Self::File(file.to_owned())
    }
}

/// What a `[[kms.kme]]` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KmeAccess {
    /// `api = "etsi014"`.
    Etsi014(KmeServer),
    /// `api = "skip"`.
    Skip(KmeServer),
    /// `api = "file"`: keys of one peer in a file, which are no QKD keys.
    File(PathBuf),
}

impl Kme {
    /// The word in config and status.
    #[must_use]
    pub fn api(&self) -> KmeApi {
        match &self.access {
            KmeAccess::Etsi014(_) => KmeApi::Etsi014,
            KmeAccess::Skip(_) => KmeApi::Skip,
            KmeAccess::File(_) => KmeApi::File,
        }
    }

    /// The server, unless it is a file.
    #[must_use]
    pub fn server(&self) -> Option<&KmeServer> {
        match &self.access {
            KmeAccess::Etsi014(server) | KmeAccess::Skip(server) => Some(server),
            KmeAccess::File(_) => None,
        }
    }

    /// Where it is: a server's URL, or a file's with the scheme `file`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.access {
            KmeAccess::Etsi014(server) | KmeAccess::Skip(server) => server.url.clone(),
            KmeAccess::File(path) => format!("file:{}", path.display()),
        }
    }
}

/// A KME that is reached over HTTPS with certificates of both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmeServer {
    /// Its base URL: `https`, a host, no query, no slash at its end.
    pub url: String,
    /// The name in its certificate, where it isn't the URL's host.
    pub server_name: Option<String>,
    /// The CA that its certificate must chain to, PEM.
    pub ca_file: PathBuf,
    /// Our client certificate, PEM.
    pub cert_file: PathBuf,
    /// Its private key, from `key_file`.
    pub key: ClientKey,
}

/// A section `[[peer]]`: another site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, unique.
    pub name: String,
    /// Its public key, unique.
    pub public_key: PublicIdentity,
    /// Where its lane 0 is; learned from its packets when absent.
    pub endpoint: Option<Endpoint>,
    /// The networks behind it, with no host bits; a prefix belongs to one peer.
    pub allowed_ips: Vec<IpNet>,
    /// Its SAE ID; present unless `qkd` is off.
    pub sae_id: Option<String>,
    /// Names of the KMEs that serve the pair, in the order of preference; empty where `qkd` is off.
    pub kmes: Vec<String>,
    /// Whether its epochs need a QKD key.
    pub qkd: QkdPolicy,
    /// Who proposes.
    pub role: Role,
    /// The file of the manual pre-shared key.
    pub preshared_key_file: Option<PathBuf>,
    /// How often something is sent at least, 1 s to 65535 s; off when absent.
    pub persistent_keepalive: Option<Duration>,
    /// Its AEAD: its own or the interface's.
    pub suite: Suite,
    /// Its rekey interval: its own or the interface's.
    pub rekey_interval: Duration,
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
    /// The address, if it is not a host name.
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
    /// Found for each peer.
    Auto,
    /// Bytes, 576 to 65455, and at least 1280 where there is IPv6.
    Bytes(u16),
}

/// Where routes for allowed IPs go, as with `wg-quick`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The main table, and a table of our own for default routes.
    Auto,
    /// No routes.
    Off,
    /// This table, neither 0 nor 255.
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

/// Makes an enum of config words, with the same words in JSON.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The words of the config, in the order in which help names them.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word of the config.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The value of a word of the config.
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
    /// The AEAD of data packets.
    Suite {
        /// ChaCha20-Poly1305 (RFC 8439), the default.
        Chacha20Poly1305 = "chacha20poly1305",
        /// AES-256-GCM (NIST SP 800-38D), for CNSA 2.0 sites and machines with VAES.
        Aes256Gcm = "aes256gcm",
    }
}
words! {
    /// Whether an epoch needs a QKD key.
    QkdPolicy {
        /// No QKD key, no new epoch, and traffic stops.
        Required = "required",
        /// Traffic goes on without, and is shown as degraded.
        Preferred = "preferred",
        /// ML-KEM and X25519 only.
        Off = "off",
    }
}
words! {
    /// Who proposes epochs.
    Role {
        /// The peer with the smaller X25519 key.
        Auto = "auto",
        /// We, the master SAE.
        Initiator = "initiator",
        /// The peer; we are the slave SAE.
        Responder = "responder",
    }
}
words! {
    /// How much the daemon logs.
    LogLevel {
        /// What doesn't work.
        Error = "error",
        /// What should be looked at, too.
        Warn = "warn",
        /// What happens, too; the default.
        Info = "info",
        /// For finding faults.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}
words! {
    /// What allowed IPs do when the daemon is stopped.
    OnStop {
        /// They are unreachable: nothing leaves in clear.
        Block = "block",
        /// Their routes go, as with `wg-quick down`.
        Open = "open",
    }
}
words! {
    /// How keys are fetched from a KME.
    KmeApi {
        /// ETSI GS QKD 014.
        Etsi014 = "etsi014",
        /// Cisco SKIP (draft-cisco-skip-02) over mutual TLS.
        Skip = "skip",
        /// A file of keys, which are no QKD keys.
        File = "file",
    }
}

/// Where values stand that are looked at again after parsing.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    pub(super) name: Position,
    pub(super) private_key_file: Position,
    pub(super) listen_port: Position,
    pub(super) metrics_listen: Position,
    pub(super) kmes: Vec<KmeMarks>,
    pub(super) peers: Vec<PeerMarks>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct KmeMarks {
    pub(super) url: Position,
    pub(super) ca_file: Position,
    pub(super) cert_file: Position,
    pub(super) key_file: Position,
    pub(super) keys_file: Position,
}

#[derive(Debug, Clone, Default)]
pub(super) struct PeerMarks {
    pub(super) public_key: Position,
    pub(super) endpoint: Position,
    pub(super) preshared_key_file: Position,
}
