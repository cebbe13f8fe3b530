//! Builds the status that `qvpn-ctl show` prints, from the state of the protocol, the lanes and the KMEs.

use std::time::Duration;

use kms_client::{Kme, KmeState};
use qvpn_api::Config;
use qvpn_api::config;
use qvpn_api::status::{
    Counts, DeviceStatus, GuardStatus, InterfaceDrop, InterfaceStatus, KmeStatus, LaneStatus, PeerDrop,
    PeerState, PeerStatus, Status,
};
use qvpn_dataplane::PeerStats;
use qvpn_identity::PublicIdentity;
use qvpn_net::{DeviceState, IpNet, TunnelStatus};
use qvpn_proto::PeerState as ProtocolState;
use qvpn_types::Time;

use crate::kms_task::in_words;
use crate::peer_runtime::PeerRuntime;
use crate::peers::Peers;

use crate::translate;

/// Returns the status of the whole daemon.
pub(crate) fn status(config: &Config, public_key: &PublicIdentity, peers: &Peers, now: Time) -> Status {
    let interface = &config.interface;
    let mtu = u32::from(translate::mtu(interface.mtu));
    let demux = peers.demux_drops();
    let mut drops: Counts =
        peers.interface_stats().drops().into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    add(&mut drops, InterfaceDrop::NoPeer.as_str(), demux.no_peer);
    add(&mut drops, InterfaceDrop::Malformed.as_str(), demux.malformed);
    add(&mut drops, InterfaceDrop::UnknownIndex.as_str(), demux.unknown_index);
    add(&mut drops, InterfaceDrop::Cookie.as_str(), demux.cookie);
    Status::new(vec![InterfaceStatus {
        name: interface.name.clone(),
        public_key: public_key.to_string(),
        listen_port: interface.listen_port,
        suite: interface.suite,
        lanes: interface.lanes,
        mtu: Some(mtu),
        uptime_s: Some(now.since(peers.started()).as_secs_f64()),
        gateway: None,
        drops,
        guard: None,
        routing: None,
        device: None,
        config: None,
        audit: None,
        kmes: peers.kmes().iter().map(|(config, kme)| kme_status(config, kme)).collect(),
        peers: peer_list(config, peers, mtu, now),
    }])
}

/// Returns all peers in the config's order.
fn peer_list(config: &Config, peers: &Peers, mtu: u32, now: Time) -> Vec<PeerStatus> {
    let port = config.interface.listen_port;
    let mut running: Vec<PeerStatus> =
        peers.in_order().map(|peer| peer_status(peer, port, mtu, now)).collect();
    let name = &config.interface.name;
    let aside = |peer: &config::Peer| match peer.disabled {
        true => Some(set_aside(
            peer,
            PeerState::Disabled,
            format!("disabled; `qvpn-ctl peer enable` with its name, {}, ends that", peer.name),
        )),
        false if peers.in_standby() => Some(set_aside(
            peer,
            PeerState::Standby,
            format!("this gateway is in standby; `qvpn-ctl activate {name}` ends that"),
        )),
        false => None,
    };
    running.extend(config.peers.iter().filter_map(aside));
    let place = |status: &PeerStatus| config.peers.iter().position(|peer| peer.name == status.name);
    running.sort_by_key(place);
    running
}

fn set_aside(peer: &config::Peer, state: PeerState, reason: String) -> PeerStatus {
    PeerStatus {
        name: peer.name.clone(),
        public_key: peer.public_key.to_string(),
        fingerprint: peer.public_key.fingerprint(),
        other_public_key: peer.second_key.as_ref().map(ToString::to_string),
        own_public_key: None,
        endpoint: peer.endpoint.as_ref().map(ToString::to_string),
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        state,
        reason: Some(reason),
        role: None,
        qkd_policy: peer.qkd,
        epoch: None,
        epoch_age_s: None,
        epoch_expires_in_s: None,
        next_rekey_in_s: None,
        key_sources: Vec::new(),
        qkd_key_id: None,
        qkd_stock: None,
        qkd_stock_lasts_s: None,
        file_stock: None,
        rekeys: 0,
        rekey_failures: Counts::new(),
        control_handshake_ago_s: None,
        last_received_ago_s: None,
        rx_bytes: None,
        tx_bytes: None,
        rx_packets: None,
        tx_packets: None,
        drops: Counts::new(),
        mtu: None,
        lanes: Vec::new(),
    }
}

/// Returns the block in the form of the status.
///
/// `kept` are the prefixes that the config no longer has.
pub(crate) fn guard_status(status: TunnelStatus, kept: &[IpNet]) -> GuardStatus {
    GuardStatus {
        kept: kept.iter().map(ToString::to_string).collect(),
        routes: status.routes.as_str().to_owned(),
        nftables: status.filter.as_str().to_owned(),
        protected: status.protected.iter().map(ToString::to_string).collect(),
        local: status.local.iter().map(|(prefix, device)| format!("{prefix} dev {device}")).collect(),
        dropped: status.dropped,
        reason: status.without_filter,
    }
}

/// Adds the state of the device to the status: without the device nothing is sent, even under valid keys.
pub(crate) fn note_device(status: &mut InterfaceStatus, device: &DeviceState) {
    let name = &status.name;
    let (state, now, reason) = match device {
        DeviceState::Up => ("up", Some(name.clone()), None),
        DeviceState::Renamed(now) => ("renamed", Some(now.clone()), None),
        DeviceState::Missing => {
            let reason = format!(
                "the device {name} was deleted or moved to another network namespace; restart the daemon: \
                 `systemctl restart qvpn@{name}`"
            );
            ("missing", None, Some(reason))
        }
    };
    status.device = Some(DeviceStatus { state: state.to_owned(), name: now });
    let running = status.peers.iter_mut().filter(|peer| !peer.state.is_set_aside());
    for peer in running.filter(|_| reason.is_some()) {
        peer.state = PeerState::Blocked;
        peer.reason.clone_from(&reason);
    }
}

fn add(drops: &mut Counts, name: &str, n: u64) {
    *drops.entry(name.to_owned()).or_default() += n;
}

fn kme_status(config: &config::Kme, kme: &Kme) -> KmeStatus {
    let health = kme.health();
    let ends = [health.cert_expires_in_s, health.kme_cert_expires_in_s];
    KmeStatus {
        name: config.name.clone(),
        api: config.api(),
        url: config.url(),
        state: match health.state {
            KmeState::Unknown => None,
            KmeState::Up => Some(qvpn_api::status::KmeState::Up),
            KmeState::Down => Some(qvpn_api::status::KmeState::Down),
        },
        last_error: health.last_error.as_ref().map(in_words),
        last_success_ago_s: seconds(health.last_success_ago),
        stored_key_count: health.stored_key_count,
        latency_ms: health.latency.map(|d| d.as_secs_f64() * 1000.0),
        cert_expires_in_s: ends
            .into_iter()
            .flatten()
            .min()
            .map(|s| Duration::from_secs(s.unsigned_abs()).as_secs_f64() * if s < 0 { -1.0 } else { 1.0 }),
    }
}

fn peer_status(peer: &PeerRuntime, listen_port: u16, mtu: u32, now: Time) -> PeerStatus {
    let view = peer.view(now);
    let config = &peer.settings().config;
    let total = |of: fn(&PeerStats) -> u64| Some(peer.lanes().iter().map(|lane| of(lane)).sum());
    let mut drops = Counts::new();
    for (name, n) in peer.lanes().iter().flat_map(|lane| lane.drops()) {
        add(&mut drops, name, n);
    }
    add(&mut drops, PeerDrop::Control.as_str(), view.drops.control);
    add(&mut drops, PeerDrop::Limited.as_str(), view.drops.limited);
    add(&mut drops, PeerDrop::Malformed.as_str(), view.drops.malformed);
    add(&mut drops, PeerDrop::Refused.as_str(), view.drops.refused);
    PeerStatus {
        name: config.name.clone(),
        public_key: view.parties.remote.to_string(),
        fingerprint: view.parties.remote.fingerprint(),
        other_public_key: config
            .public_keys()
            .find(|key| **key != view.parties.remote)
            .map(ToString::to_string),
        own_public_key: Some(view.parties.local.to_string()),
        endpoint: view.endpoint.map(|e| e.to_string()),
        allowed_ips: config.allowed_ips.iter().map(ToString::to_string).collect(),
        state: match view.state {
            ProtocolState::Connecting => PeerState::Connecting,
            ProtocolState::Up => PeerState::Up,
            ProtocolState::Degraded => PeerState::Degraded,
            ProtocolState::Silent => PeerState::Silent,
            ProtocolState::Blocked => PeerState::Blocked,
        },
        reason: view.reason,
        role: Some(view.role),
        qkd_policy: view.policy,
        epoch: view.epoch.map(|epoch| epoch.0),
        epoch_age_s: seconds(view.epoch_age),
        epoch_expires_in_s: seconds(view.epoch_expires_in),
        next_rekey_in_s: view.next_rekey_in_ms.map(signed_seconds),
        key_sources: view.sources.map(translate::sources).unwrap_or_default(),
        qkd_key_id: view.qkd_key_id.map(String::from),
        qkd_stock: view.qkd_stock.and_then(|n| u64::try_from(n).ok()),
        qkd_stock_lasts_s: seconds(view.qkd_stock_lasts),
        file_stock: view.file_stock.and_then(|n| u64::try_from(n).ok()),
        rekeys: view.rekeys,
        rekey_failures: view
            .rekey_failures
            .iter()
            .map(|(reason, n)| (reason.name().to_owned(), *n))
            .collect(),
        control_handshake_ago_s: seconds(view.control_handshake_ago),
        last_received_ago_s: seconds(peer.last_received_ago(view.last_received_ago, now)),
        rx_bytes: total(|s| s.rx.bytes.get()),
        tx_bytes: total(|s| s.tx.bytes.get()),
        rx_packets: total(|s| s.rx.packets.get()),
        tx_packets: total(|s| s.tx.packets.get()),
        drops,
        mtu: Some(peer.mtu().map_or(mtu, u32::from).min(mtu)),
        lanes: (0u8..)
            .zip(peer.lanes())
            .zip(&view.lane_views)
            .map(|((number, stats), lane)| LaneStatus {
                lane: number,
                listen_port: listen_port.saturating_add(number.into()),
                endpoint: lane.endpoint.map(|e| e.to_string()),
                state: lane.state,
                via: lane.via,
                rx_packets: stats.rx.packets.get(),
                tx_packets: stats.tx.packets.get(),
                tx_gso_packets: stats.tx.joined.get(),
                tx_gso_refused_packets: stats.tx.refused.get(),
            })
            .collect(),
    }
}

fn seconds(span: Option<Duration>) -> Option<f64> {
    span.map(|d| d.as_secs_f64())
}

fn signed_seconds(milliseconds: i64) -> f64 {
    let span = Duration::from_millis(milliseconds.unsigned_abs()).as_secs_f64();
    if milliseconds < 0 { -span } else { span }
}
