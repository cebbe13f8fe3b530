use super::*;
use std::time::Duration;

fn at(ms: u64, kind: EventKind) -> Event {
    Event { time: SystemTime::UNIX_EPOCH + Duration::from_millis(ms), interface: "qvpn0".into(), kind }
}

fn one_of_each() -> Vec<EventKind> {
    let peer = || "site-b".to_owned();
    let reason = || "the peer's KME said \"no\"\nand\u{1b}[31m more".to_owned();
    vec![
        EventKind::PeerUp { peer: peer(), endpoint: Some("203.0.113.9:51820".into()) },
        EventKind::PeerBlocked { peer: peer(), reason: reason() },
        EventKind::PeerDegraded { peer: peer(), reason: reason() },
        EventKind::PeerRecovered { peer: peer(), from: "blocked".into() },
        EventKind::PeerRoamed { peer: peer(), from: None, to: "[2001:db8::1]:51820".into() },
        EventKind::PeerBye { peer: peer() },
        EventKind::LaneSilent { peer: peer(), lane: 2, port: 51822 },
        EventKind::ChainReset { peer: peer(), reason: reason() },
        EventKind::RoutesRestored { routes: vec!["10.20.0.0/16".into(), "fd20::/64".into()] },
        EventKind::GuardChallenged { what: "rule with priority 9".into(), effect: "none".into() },
        EventKind::EpochActive {
            peer: peer(),
            epoch: u64::MAX,
            sources: vec![KeySource::X25519, KeySource::Qkd, KeySource::Mlkem],
            qkd_key_id: Some("bc490419".into()),
            kme: Some("kme-a1".into()),
        },
        EventKind::EpochFailed { peer: peer(), epoch: None, reason: reason() },
        EventKind::KmeDown { kme: "kme-a1".into(), reason: reason() },
        EventKind::KmeUp { kme: "kme-a1".into() },
        EventKind::KmeCertificateEnds {
            kme: "kme-a1".into(),
            certificate: CertificateOf::Client,
            ends_in_s: -5,
        },
        EventKind::QkdSupplyStopped { peer: peer(), reason: reason(), stock_lasts_s: Some(300) },
        EventKind::QkdSupplyResumed { peer: peer() },
        EventKind::IdentityMismatch { peer: None, endpoint: None, reason: reason() },
        EventKind::ConfigReloaded { changes: vec![] },
        EventKind::MachineCopied {},
        EventKind::LaneRecovered { peer: peer(), lane: 2 },
        EventKind::PeerMtu { peer: peer(), mtu: 1296 },
        EventKind::ConfigChanged {
            caller: Caller { by: "root".into(), uid: Some(0) },
            change: KeyChange {
                peer: Some(peer()),
                key: "qkd".into(),
                from: Some("required".into()),
                to: Some("off".into()),
            },
        },
        EventKind::PolicyDegraded {
            caller: Caller { by: "SIGHUP".into(), uid: None },
            peer: peer(),
            from: "required".into(),
            to: "off".into(),
        },
        EventKind::ControlUsed {
            caller: Caller { by: "uid 1000".into(), uid: Some(1000) },
            request: "rekey".into(),
            peer: None,
            result: reason(),
        },
        EventKind::GatewayActive { takeovers: 3 },
        EventKind::GatewayStandby {},
        EventKind::GatewayWaiting { active_in_s: 40 },
        EventKind::ConfigReverted { caller: Caller { by: "timeout".into(), uid: None } },
        EventKind::IdentityChanged {
            peer: peer(),
            own: true,
            from: "abcd-efgh".into(),
            to: "ijkm-nopq".into(),
        },
    ]
}

#[test]
fn each_kind_survives_json_under_its_fixed_name_and_is_one_line_of_text() {
    for kind in one_of_each() {
        let event = at(1_764_000_000_123, kind);
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], event.kind.name());
        assert_eq!(json["time"], "2025-11-24T16:00:00.123Z");
        assert_eq!(json["interface"], "qvpn0");
        assert_eq!(serde_json::from_value::<Event>(json.clone()).unwrap(), event);
        let text = event.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        for (name, _) in event.kind.fields() {
            assert!(json.get(name).is_some(), "{name} of {text} is not in the JSON");
        }
    }
}

#[test]
fn the_text_form_reads_as_people_expect() {
    let lines: Vec<String> = one_of_each().into_iter().map(|k| at(0, k).to_string()).collect();
    assert_eq!(
        lines[10],
        "1970-01-01T00:00:00.000Z qvpn0 epoch.active peer=site-b epoch=18446744073709551615 \
         sources=qkd+mlkem+x25519 qkd_key_id=bc490419 kme=kme-a1"
    );
    assert_eq!(
        lines[22],
        "1970-01-01T00:00:00.000Z qvpn0 config.changed by=root uid=0 peer=site-b key=qkd from=required to=off"
    );
    assert_eq!(
        lines[1],
        "1970-01-01T00:00:00.000Z qvpn0 peer.blocked peer=site-b \
         reason=\"the peer's KME said \\\"no\\\"\\nand\\u{1b}[31m more\""
    );
}

#[test]
fn a_broken_clock_does_not_panic() {
    let before = Event {
        time: SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        ..at(0, EventKind::KmeUp { kme: "k".into() })
    };
    assert!(before.to_string().starts_with("1970-01-01T00:00:00.000Z"));
    let after = Event {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(300_000_000_000),
        ..at(0, EventKind::KmeUp { kme: "k".into() })
    };
    assert!(serde_json::to_string(&after).unwrap().contains("9999-12-31"));
}
