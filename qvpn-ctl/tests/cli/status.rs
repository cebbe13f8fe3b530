//! States of a tunnel for the tests of `show` and `top`. The unit tests of `top` include this file, too.

use std::path::Path;

use qvpn_api::config::{KmeApi, QkdPolicy, Suite};
use qvpn_api::status::{
    Counts, InterfaceStatus, KeySource, KmeState, KmeStatus, LaneState, LaneStatus, PeerState, PeerStatus,
    Role,
};

/// A working KME in this state.
pub(crate) fn kme(name: &str, state: Option<KmeState>) -> KmeStatus {
    KmeStatus {
        name: name.into(),
        api: KmeApi::Etsi014,
        url: format!("https://{name}.site-a.example:8443"),
        state,
        last_error: None,
        last_success_ago_s: Some(12.0),
        stored_key_count: Some(4096),
        latency_ms: Some(7.4),
        cert_expires_in_s: Some(90.0 * 86_400.0),
    }
}

/// A peer that is up.
pub(crate) fn peer_up() -> PeerStatus {
    PeerStatus {
        name: "site-b".into(),
        public_key: "qvpn1-UqPF=".into(),
        fingerprint: "abcd-efgh-ijkm".into(),
        other_public_key: None,
        own_public_key: None,
        endpoint: Some("203.0.113.9:51820".into()),
        allowed_ips: vec!["10.20.0.0/16".into(), "fd20::/64".into()],
        state: PeerState::Up,
        reason: None,
        role: Some(Role::Initiator),
        qkd_policy: QkdPolicy::Required,
        epoch: Some(42),
        epoch_age_s: Some(23.4),
        epoch_expires_in_s: Some(156.6),
        next_rekey_in_s: Some(36.6),
        key_sources: vec![KeySource::Qkd, KeySource::Mlkem, KeySource::X25519],
        qkd_key_id: Some("bc490419-7d60-487f-adc1-4ddcc177c139".into()),
        qkd_stock: Some(5),
        qkd_stock_lasts_s: Some(300.0),
        file_stock: None,
        rekeys: 42,
        rekey_failures: Counts::from([("unanswered".into(), 2), ("stale".into(), 0)]),
        control_handshake_ago_s: Some(61.0),
        last_received_ago_s: None,
        rx_bytes: Some(1_536_000),
        tx_bytes: Some(999),
        rx_packets: Some(1200),
        tx_packets: Some(10),
        drops: Counts::from([("no_epoch".into(), 3), ("replay".into(), 1), ("auth".into(), 0)]),
        mtu: Some(1380),
        lanes: vec![lane(0, Some(LaneState::Up))],
    }
}

/// A lane in this state.
pub(crate) fn lane(lane: u8, state: Option<LaneState>) -> LaneStatus {
    LaneStatus { lane, listen_port: 51820 + u16::from(lane), state, ..LaneStatus::default() }
}

/// An interface with these KMEs and peers.
pub(crate) fn interface(kmes: Vec<KmeStatus>, peers: Vec<PeerStatus>) -> InterfaceStatus {
    InterfaceStatus {
        name: "qvpn0".into(),
        public_key: "qvpn1-OWN=".into(),
        listen_port: 51820,
        suite: Suite::ChaCha20Poly1305,
        lanes: 1,
        mtu: Some(1420),
        uptime_s: Some(3725.0),
        gateway: None,
        drops: Counts::from([("malformed".into(), 1)]),
        guard: None,
        routing: None,
        device: None,
        config: None,
        audit: None,
        kmes,
        peers,
    }
}

/// One peer without QKD, of three lanes.
pub(crate) fn degraded() -> InterfaceStatus {
    let peer = PeerStatus {
        state: PeerState::Degraded,
        reason: Some("no QKD key for two intervals: kme-a1 refuses the connection".into()),
        qkd_policy: QkdPolicy::Preferred,
        key_sources: vec![KeySource::Chain, KeySource::Mlkem, KeySource::X25519],
        qkd_key_id: None,
        qkd_stock: Some(0),
        qkd_stock_lasts_s: Some(0.0),
        file_stock: None,
        next_rekey_in_s: Some(0.0),
        lanes: vec![
            lane(0, Some(LaneState::Up)),
            LaneStatus { endpoint: Some("203.0.113.9:51821".into()), ..lane(1, Some(LaneState::Silent)) },
            lane(2, None),
        ],
        ..peer_up()
    };
    let down = KmeStatus {
        last_error: Some("connection refused by 192.0.2.8:8443; is the KME running?".into()),
        cert_expires_in_s: Some(3.0 * 86_400.0),
        ..kme("kme-a1", Some(KmeState::Down))
    };
    InterfaceStatus { lanes: 3, ..interface(vec![down], vec![peer]) }
}

/// Compares `text` with the snapshot `name`, or writes it.
pub(crate) fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/snapshots").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "the text has changed; if that is right, run the tests with BLESS=1");
}
