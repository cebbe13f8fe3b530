//! The line form of each message, compared with the text that other programs rely on.

use std::collections::BTreeMap;

use super::*;
use crate::config::KmeApi;
use crate::status::Role;
use crate::status::*;

fn status() -> Status {
    Status::new(vec![InterfaceStatus {
        name: "qvpn0".into(),
        public_key: "qvpn1-a".into(),
        listen_port: 51820,
        suite: Suite::ChaCha20Poly1305,
        lanes: 1,
        mtu: Some(1420),
        uptime_s: Some(1.5),
        gateway: None,
        drops: BTreeMap::from([("no_peer".into(), 1)]),
        guard: None,
        routing: None,
        device: None,
        config: None,
        audit: None,
        kmes: vec![KmeStatus {
            name: "kme-a1".into(),
            api: KmeApi::Etsi014,
            url: "https://kme-a1:8443".into(),
            state: None,
            last_error: None,
            last_success_ago_s: None,
            stored_key_count: None,
            latency_ms: None,
            cert_expires_in_s: None,
        }],
        peers: vec![PeerStatus {
            name: "site-b".into(),
            public_key: "qvpn1-b".into(),
            fingerprint: "abcd".into(),
            other_public_key: None,
            own_public_key: None,
            endpoint: None,
            allowed_ips: vec!["10.20.0.0/16".into()],
            state: PeerState::Connecting,
            reason: None,
            role: Some(Role::Initiator),
            qkd_policy: QkdPolicy::Required,
            epoch: None,
            epoch_age_s: None,
            epoch_expires_in_s: None,
            next_rekey_in_s: None,
            key_sources: vec![],
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
            lanes: vec![LaneStatus { listen_port: 51820, ..LaneStatus::default() }],
        }],
    }])
}

#[test]
fn requests_have_their_fixed_lines() {
    let rows = [
        (Request::Show, r#"{"v":1,"request":"show"}"#),
        (Request::Peers, r#"{"v":1,"request":"peers"}"#),
        (Request::Rekey { peer: None }, r#"{"v":1,"request":"rekey"}"#),
        (Request::Rekey { peer: Some("b".into()) }, r#"{"v":1,"request":"rekey","peer":"b"}"#),
        (Request::Reload, r#"{"v":1,"request":"reload"}"#),
        (Request::PlanReload, r#"{"v":1,"request":"plan_reload"}"#),
        (Request::Config, r#"{"v":1,"request":"config"}"#),
        (Request::TryConfig { within_s: 120 }, r#"{"v":1,"request":"try_config","within_s":120}"#),
        (Request::Confirm, r#"{"v":1,"request":"confirm"}"#),
        (Request::Standby, r#"{"v":1,"request":"standby"}"#),
        (Request::Activate, r#"{"v":1,"request":"activate"}"#),
        (Request::GoBack, r#"{"v":1,"request":"go_back"}"#),
        (
            Request::Unblock { prefixes: vec!["10.20.0.0/16".into()] },
            r#"{"v":1,"request":"unblock","prefixes":["10.20.0.0/16"]}"#,
        ),
        (Request::Events { follow: true }, r#"{"v":1,"request":"events","follow":true}"#),
        (Request::Version, r#"{"v":1,"request":"version"}"#),
    ];
    for (request, line) in rows {
        assert_eq!(request.to_line().unwrap(), format!("{line}\n"));
        assert!(line.contains(&format!("\"{}\"", request.name())), "{line}");
        assert_eq!(Request::from_line(line.as_bytes()).unwrap(), request);
    }
    assert_eq!(
        Request::from_line(br#"{"request":"events","v":1}"#).unwrap(),
        Request::Events { follow: false }
    );
}

#[test]
fn replies_survive_their_line() {
    let event = Event {
        time: std::time::SystemTime::UNIX_EPOCH,
        interface: "qvpn0".into(),
        kind: crate::events::EventKind::KmeUp { kme: "kme-a1".into() },
    };
    let mut error = ErrorReply::new(ErrorCode::ConfigRefused, "2 errors");
    error.details = vec!["a:1:1: x; y".into(), "a:2:1: x; y".into()];
    assert_eq!(error.exit_code(), 3);
    let replies = [
        Reply::Show(status()),
        Reply::Peers(vec![]),
        Reply::Rekey { peers: vec!["site-b".into()] },
        Reply::Config { path: "/etc/qvpn/qvpn0.toml".into(), text: "a\n".into(), confirm_in_s: Some(9) },
        Reply::Confirmed,
        Reply::Gateway(GatewayStatus { state: "waiting".into(), takeovers: 4, active_in_s: Some(9.5) }),
        Reply::Reload { changes: vec![], kept: vec![] },
        Reply::Unblocked { prefixes: vec!["10.20.0.0/16".into()] },
        Reply::Event(event),
        Reply::EventsEnd { missed: 3 },
        Reply::Version { daemon: "0.2.0".into(), interface: "qvpn0".into(), pid: 1 },
        Reply::Error(error),
    ];
    for reply in replies {
        let line = reply.to_line().unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert_eq!(Reply::from_line(line.as_bytes()).unwrap(), reply);
    }
}

#[test]
fn the_status_has_exactly_the_fixed_names_and_null_for_unknown() {
    let json = serde_json::to_value(status()).unwrap();
    let names = |value: &serde_json::Value| {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let expect = |text: &str| {
        let mut names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        names.sort();
        names
    };
    let interface = &json["interfaces"][0];
    assert_eq!(json["schema"], 1);
    assert_eq!(
        names(interface),
        expect(
            "name public_key listen_port suite lanes mtu uptime_s gateway drops guard device \
             config audit routing kmes peers"
        )
    );
    let kme = &interface["kmes"][0];
    assert_eq!(
        names(kme),
        expect(
            "name api url state last_error last_success_ago_s stored_key_count latency_ms cert_expires_in_s"
        )
    );
    let peer = &interface["peers"][0];
    assert_eq!(
        names(peer),
        expect(
            "name public_key fingerprint other_public_key own_public_key \
             endpoint allowed_ips state reason role qkd_policy epoch epoch_age_s \
             epoch_expires_in_s next_rekey_in_s key_sources qkd_key_id qkd_stock qkd_stock_lasts_s \
             file_stock rekeys rekey_failures control_handshake_ago_s last_received_ago_s rx_bytes \
             tx_bytes rx_packets \
             tx_packets drops mtu lanes"
        )
    );
    assert!(peer["epoch"].is_null() && kme["state"].is_null());
    assert_eq!(interface["suite"], "chacha20poly1305");
    assert_eq!(kme["api"], "etsi014");
    assert_eq!(peer["qkd_policy"], "required");
}

#[test]
fn a_payload_that_is_no_message_is_reported_as_such() {
    let malformed: [&[u8]; 7] = [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        br#"{"v":1}"#,
        br#"{"v":1,"request":"dance"}"#,
        br#"{"v":1,"request":"rekey","peer":7}"#,
    ];
    for line in malformed {
        let error = Request::from_line(line).unwrap_err();
        assert!(matches!(error, CodecError::Malformed(_)), "{error}");
        assert_eq!(ErrorReply::from(error).code, ErrorCode::Malformed);
    }
    let newer = Request::from_line(br#"{"v":2,"request":"dance","with":"wolves"}"#).unwrap_err();
    assert!(newer.to_string().contains("version 2"), "{newer}");
    assert_eq!(ErrorReply::from(newer).code, ErrorCode::Version);
    let unknown_code = br#"{"v":1,"reply":"error","body":{"code":"brand_new","message":"m"}}"#;
    let Reply::Error(error) = Reply::from_line(unknown_code).unwrap() else { panic!("not an error") };
    assert_eq!((error.code, error.exit_code()), (ErrorCode::Other, 1));
}
