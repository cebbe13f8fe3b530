//! What the daemon derives from a config, as values that can be compared: a reload applies those that differ.

use std::net::SocketAddr;
use std::path::PathBuf;

use qvpn_api::Config;
use qvpn_api::config::{self, Access, AuditEpochs, KmeApi, LogLevel, Mtu, OnStop, Routes};
use qvpn_identity::PublicIdentity;
use qvpn_net::{IpNet, PlanError, RoutePlan};
use qvpn_proto::PeerConfig;
use qvpn_types::PeerNumber;

use crate::config_files::ConfigKeys;
use crate::routes::DeviceSettings;
use crate::translate;

/// All settings of a config, grouped by the part of the daemon that applies them.
#[derive(PartialEq)]
pub(crate) struct Settings {
    pub(crate) fixed: FixedSettings,
    pub(crate) private_key_file: PathBuf,
    pub(crate) public_key: PublicIdentity,
    pub(crate) device: DeviceSettings,
    pub(crate) routes: RoutePlan,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) log_level: LogLevel,
    pub(crate) include: Option<String>,
    pub(crate) on_stop: OnStop,
    pub(crate) access: Option<Access>,
    pub(crate) audit_epochs: AuditEpochs,
    pub(crate) kmes: Vec<config::Kme>,
    pub(crate) measure_paths: bool,
    /// The peers that are not disabled, in the config's order.
    pub(crate) peers: Vec<PeerSettings>,
    /// Allowed IPs of disabled peers: no other peer may use them.
    pub(crate) idle: Vec<IpNet>,
}

/// The settings that only a restart changes.
#[derive(PartialEq)]
pub(crate) struct FixedSettings {
    pub(crate) interface: String,
    pub(crate) listen_port: u16,
    pub(crate) lanes: u8,
    pub(crate) dscp: config::Dscp,
    /// The table of `routes = "kernel"`.
    pub(crate) routes_table: Option<u32>,
}

/// The settings of one peer.
#[derive(Clone, PartialEq)]
pub(crate) struct PeerSettings {
    pub(crate) config: config::Peer,
    /// The KMEs that serve the peer, with the API of each.
    kmes: Vec<(String, KmeApi)>,
    /// These have the number 0: the daemon numbers peers itself.
    protocol: PeerConfig,
}

impl Settings {
    /// # Errors
    /// If the kernel can't route what the config asks for.
    pub(crate) fn derive(config: &Config, keys: &ConfigKeys) -> Result<Self, PlanError> {
        let i = &config.interface;
        let peers = config.peers.iter().zip(&keys.psks);
        Ok(Self {
            fixed: FixedSettings {
                interface: i.name.clone(),
                listen_port: i.listen_port,
                lanes: i.lanes,
                dscp: i.dscp,
                routes_table: (i.routes == Routes::Kernel).then_some(i.routes_table),
            },
            private_key_file: i.private_key_file.clone(),
            public_key: *keys.local.public(),
            device: DeviceSettings {
                addresses: translate::device_addresses(i, keys.local.public()),
                mtu: translate::mtu(i.mtu),
            },
            routes: RoutePlan::of(config)?,
            metrics_listen: i.metrics_listen,
            log_level: i.log_level,
            include: i.include.clone(),
            on_stop: i.on_stop,
            access: config.access.clone(),
            audit_epochs: config.audit_epochs,
            kmes: config.kms.as_ref().map_or_else(Vec::new, |kms| kms.kmes.clone()),
            measure_paths: i.mtu == Mtu::Auto,
            idle: config.peers.iter().filter(|p| p.disabled).flat_map(|p| p.allowed_ips.clone()).collect(),
            peers: peers
                .filter(|(peer, _)| !peer.disabled)
                .map(|(peer, psk)| PeerSettings {
                    config: peer.clone(),
                    kmes: config.kmes_of(peer).iter().map(|kme| (kme.name.clone(), kme.api())).collect(),
                    protocol: translate::peer_config(config, peer, &keys.local, psk.clone()),
                })
                .collect(),
        })
    }
}

impl PeerSettings {
    /// Returns the protocol's settings for the peer with this number.
    pub(crate) fn protocol(&self, number: u16) -> PeerConfig {
        PeerConfig { number: PeerNumber(number), ..self.protocol.clone() }
    }

    /// Its public keys: two while its site changes its key.
    pub(crate) fn public_keys(&self) -> impl Iterator<Item = &PublicIdentity> {
        self.config.public_keys()
    }

    /// Returns the configured endpoint, if it is an address.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.protocol.endpoint
    }

    pub(crate) fn kme_names(&self) -> impl Iterator<Item = &str> {
        self.kmes.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn uses_kme(&self, name: &str) -> bool {
        self.kme_names().any(|kme| kme == name)
    }

    /// Whether the protocol's settings and the key sources are the same.
    pub(crate) fn same_exchange(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.kmes == other.kmes
    }

    pub(crate) fn same_psk(&self, other: &Self) -> bool {
        self.protocol.same_psk(&other.protocol)
    }
}
