//! Converts between the types of the config, the libraries and the status. No decisions are made here.

use std::net::SocketAddr;
use std::sync::Arc;

use qvpn_api::Config;
use qvpn_api::config::{self, Mtu};
use qvpn_api::status::KeySource;
use qvpn_dataplane::{AllowedIps, Dscp};
use qvpn_identity::{Psk, PublicIdentity, SecretIdentity};
use qvpn_net::IpNet;
use qvpn_proto::KeySources;
use qvpn_proto::wire::limits::MAX_OFFER;
use qvpn_proto::{PeerConfig, role_by_keys};
use qvpn_types::PeerNumber;

/// The MTU of the device with `mtu = "auto"`: 1,500 bytes of a WAN less IPv6, UDP, our header and the tag.
const AUTO_MTU_BYTES: u16 = 1420;

/// Returns the MTU of the TUN device, in bytes.
pub(crate) fn mtu(mtu: Mtu) -> u16 {
    match mtu {
        Mtu::Auto => AUTO_MTU_BYTES,
        Mtu::Bytes(bytes) => bytes,
    }
}

/// Returns the addresses of the TUN device.
pub(crate) fn device_addresses(interface: &config::Interface, own: &PublicIdentity) -> Vec<IpNet> {
    match qvpn_net::ipv6_is_off() {
        // Without IPv6 there is no link-local address to add.
        true => interface.address.clone(),
        false => interface.device_addresses(own),
    }
}

pub(crate) fn dscp(dscp: config::Dscp) -> Dscp {
    match dscp {
        config::Dscp::Inherit => Dscp::Inherit,
        config::Dscp::Value(value) => Dscp::Fixed(value),
    }
}

/// Returns the table of allowed IPs by peer number.
pub(crate) fn allowed_ips<'a>(peers: impl Iterator<Item = (u16, &'a [IpNet])>) -> AllowedIps {
    let entries = peers.flat_map(|(number, nets)| {
        nets.iter().map(move |net| (net.addr(), net.prefix_len(), PeerNumber(number)))
    });
    // The prefix length of an `IpNet` is always valid, so this never fails.
    AllowedIps::new(entries).unwrap_or_default()
}

/// Returns everything that the protocol must know about a peer, except its number, which is 0 here.
pub(crate) fn peer_config(
    config: &Config,
    peer: &config::Peer,
    local: &Arc<SecretIdentity>,
    psk: Option<Arc<Psk>>,
) -> PeerConfig {
    let stock = config.kms.as_ref().map_or(1, |kms| kms.stock);
    let endpoint = peer.endpoint.as_ref();
    PeerConfig {
        local: local.clone(),
        remote: peer.public_key,
        other_remote: peer.second_key,
        role: peer.role.fixed().unwrap_or_else(|| role_by_keys(local.public(), &peer.public_key)),
        role_by_keys: peer.role.fixed().is_none(),
        suite: peer.suite,
        rekey_interval: peer.rekey_interval,
        min_rekey_interval: config.min_rekey_interval(peer),
        lanes: config.interface.lanes,
        policy: peer.qkd,
        qkd_source: config.kmes_of(peer).iter().any(|kme| kme.api() != config::KmeApi::File),
        sae_local: config.kms.as_ref().map(|kms| kms.sae_id.clone()),
        sae_remote: peer.sae_id.clone(),
        psk,
        stock: usize::try_from(stock).unwrap_or(MAX_OFFER).clamp(1, MAX_OFFER),
        endpoint: endpoint.and_then(|endpoint| Some(SocketAddr::new(endpoint.ip()?, endpoint.port))),
        liveness: config.interface.liveness,
        number: PeerNumber(0),
    }
}

/// Returns the sources of a key in the form of the status.
pub(crate) fn sources(sources: KeySources) -> Vec<KeySource> {
    let all = [
        (sources.qkd, KeySource::Qkd),
        (sources.file, KeySource::File),
        (true, KeySource::Mlkem),
        (true, KeySource::X25519),
        (sources.psk, KeySource::Psk),
        (sources.chain, KeySource::Chain),
    ];
    all.iter().filter(|(used, _)| *used).map(|(_, source)| *source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_named_as_the_protocol_names_them() {
        let yes = true;
        for (qkd, file, psk, chain) in
            [(yes, false, false, yes), (false, yes, yes, false), (false, false, yes, yes)]
        {
            let made_of = KeySources { qkd, file, psk, chain };
            let names: Vec<_> = sources(made_of).into_iter().map(KeySource::as_str).collect();
            assert_eq!(names, made_of.names());
        }
    }
}
