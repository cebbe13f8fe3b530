//! From the words of the config to those of the libraries. Nothing is decided here.

use std::net::SocketAddr;
use std::sync::Arc;

use qvpn_api::Config;
use qvpn_api::config::{self, Mtu};
use qvpn_dataplane::{AllowedIps, Dscp, PeerId};
use qvpn_identity::{Psk, SecretIdentity};
use qvpn_net::IpNet;
use qvpn_proto::wire::limits::MAX_OFFER;
use qvpn_proto::{PeerConfig, QkdPolicy, Role};
use qvpn_types::{PeerNumber, Suite};

/// What `mtu = "auto"` is until a path is measured, in bytes: a WAN of 1,500 less IPv6, UDP, header and tag.
const AUTO_MTU: u16 = 1420;

/// The MTU of the TUN device, in bytes.
pub(crate) fn mtu(mtu: Mtu) -> u16 {
    match mtu {
        Mtu::Auto => AUTO_MTU,
        Mtu::Bytes(bytes) => bytes,
    }
}

/// The DSCP field of what the lanes send.
pub(crate) fn dscp(dscp: config::Dscp) -> Dscp {
    match dscp {
        config::Dscp::Inherit => Dscp::Inherit,
        config::Dscp::Value(value) => Dscp::Fixed(value),
    }
}

/// The table of inner addresses.
pub(crate) fn allowed_ips<'a>(peers: impl Iterator<Item = (u16, &'a [IpNet])>) -> AllowedIps {
    let entries = peers.flat_map(|(number, nets)| {
        nets.iter().map(move |net| (net.addr(), net.prefix_len(), PeerId(number.into())))
    });
    // An `IpNet` has no prefix that is too long for its family.
    AllowedIps::new(entries).unwrap_or_default()
}

/// All that the protocol must know of a peer. `endpoint` is where the config says that it is, as an address.
pub(crate) fn peer_config(
    config: &Config,
    peer: &config::Peer,
    local: &Arc<SecretIdentity>,
    psk: Option<Arc<Psk>>,
    number: u16,
    endpoint: Option<SocketAddr>,
) -> PeerConfig {
    let stock = config.kms.as_ref().map_or(1, |kms| kms.stock);
    PeerConfig {
        local: local.clone(),
        remote: peer.public_key,
        role: match peer.role {
            config::Role::Auto => Role::from_keys(local.public(), &peer.public_key),
            config::Role::Initiator => Role::Initiator,
            config::Role::Responder => Role::Responder,
        },
        suite: match peer.suite {
            config::Suite::Chacha20Poly1305 => Suite::ChaCha20Poly1305,
            config::Suite::Aes256Gcm => Suite::Aes256Gcm,
        },
        rekey_interval: peer.rekey_interval,
        lanes: config.interface.lanes,
        policy: match peer.qkd {
            config::QkdPolicy::Off => QkdPolicy::Off,
            config::QkdPolicy::Preferred => QkdPolicy::Preferred,
            config::QkdPolicy::Required => QkdPolicy::Required,
        },
        qkd_source: config.kmes_of(peer).iter().any(|kme| kme.api() != config::KmeApi::File),
        sae_local: config.kms.as_ref().map(|kms| kms.sae_id.clone()).unwrap_or_default(),
        sae_remote: peer.sae_id.clone().unwrap_or_default(),
        psk,
        stock: usize::try_from(stock).unwrap_or(MAX_OFFER).clamp(1, MAX_OFFER),
        endpoint,
        number: PeerNumber(number),
    }
}

/// The AEAD, in the data path's words.
pub(crate) fn lane_suite(suite: Suite) -> qvpn_dataplane::Suite {
    match suite {
        Suite::ChaCha20Poly1305 => qvpn_dataplane::Suite::ChaCha20Poly1305,
        Suite::Aes256Gcm => qvpn_dataplane::Suite::Aes256Gcm,
    }
}

/// The policy, in the status' words.
pub(crate) fn policy_status(policy: QkdPolicy) -> config::QkdPolicy {
    match policy {
        QkdPolicy::Off => config::QkdPolicy::Off,
        QkdPolicy::Preferred => config::QkdPolicy::Preferred,
        QkdPolicy::Required => config::QkdPolicy::Required,
    }
}
