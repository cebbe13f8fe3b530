//! The screen of 80 columns and 24 lines, drawn without a terminal, held against snapshots. Run with `BLESS=1` to write
//! them anew, and read the difference.

use std::path::Path;
use std::time::{Duration, Instant};

use qvpn_api::config::{KmeApi, QkdPolicy, Suite};
use qvpn_api::status::{
    Counts, ExchangeRole, InterfaceStatus, KeySource, KmeState, KmeStatus, LaneState, LaneStatus, PeerState,
    PeerStatus,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::screen::{Sample, Screen};

fn kme(name: &str, state: Option<KmeState>) -> KmeStatus {
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

fn peer_up() -> PeerStatus {
    PeerStatus {
        name: "site-b".into(),
        public_key: "qvpn1-UqPF=".into(),
        fingerprint: "abcd-efgh-ijkm".into(),
        endpoint: Some("203.0.113.9:51820".into()),
        allowed_ips: vec!["10.20.0.0/16".into(), "fd20::/64".into()],
        state: PeerState::Up,
        reason: None,
        role: Some(ExchangeRole::Initiator),
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
        rx_bytes: Some(1_536_000),
        tx_bytes: Some(999),
        rx_packets: Some(1200),
        tx_packets: Some(10),
        drops: Counts::from([("no_epoch".into(), 3), ("replay".into(), 1), ("auth".into(), 0)]),
        mtu: Some(1380),
        lanes: vec![lane(0, Some(LaneState::Up))],
    }
}

fn lane(lane: u8, state: Option<LaneState>) -> LaneStatus {
    LaneStatus { lane, listen_port: 51820 + u16::from(lane), state, ..LaneStatus::default() }
}

fn interface(kmes: Vec<KmeStatus>, peers: Vec<PeerStatus>) -> InterfaceStatus {
    InterfaceStatus {
        name: "qvpn0".into(),
        public_key: "qvpn1-OWN=".into(),
        listen_port: 51820,
        suite: Suite::Chacha20Poly1305,
        lanes: 1,
        mtu: Some(1420),
        uptime_s: Some(3725.0),
        drops: Counts::from([("malformed".into(), 1)]),
        kmes,
        peers,
    }
}

fn degraded() -> InterfaceStatus {
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

/// Two sites: one well, with a name of wide characters, one without QKD.
fn two() -> InterfaceStatus {
    let interface = degraded();
    let well = PeerStatus { name: "site-a-東京".into(), public_key: "qvpn1-A=".into(), ..peer_up() };
    let peers = [vec![well], interface.peers.clone()].concat();
    InterfaceStatus { peers, ..interface }
}

/// The screen two seconds after `before`.
fn later(before: InterfaceStatus, after: InterfaceStatus) -> Screen {
    let start = Instant::now();
    let mut screen = Screen::new("qvpn0", false);
    screen.now(Sample { at: start, status: before });
    screen.now(Sample { at: start + Duration::from_secs(2), status: after });
    screen
}

fn drawn(screen: &Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/snapshots").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "top has changed; if that is right, run the tests with BLESS=1");
}

#[test]
fn eighty_columns_and_24_lines_have_what_matters() {
    let mut grown = two();
    grown.peers[0].rx_bytes = Some(1_536_000 + 2 * 123_456_789);
    grown.peers[0].tx_bytes = Some(999 + 2 * 1_500);
    let mut screen = later(two(), grown);
    let first = drawn(&screen);
    snapshot("top.txt", &first);
    screen.go(1);
    snapshot("top-second.txt", &drawn(&screen));
    // Neither end is passed.
    screen.go(10);
    snapshot("top-second.txt", &drawn(&screen));
    screen.go(-10);
    assert_eq!(drawn(&screen), first);
}

#[test]
fn a_daemon_that_is_gone_leaves_the_last_numbers_and_says_so() {
    let mut screen = later(two(), two());
    screen.trouble("no daemon runs for \u{1b}[31mqvpn0".into());
    let text = drawn(&screen);
    assert!(
        text.contains("no daemon runs for") && text.contains("site-b") && !text.contains('\u{1b}'),
        "{text}"
    );
    screen.now(Sample { at: Instant::now(), status: two() });
    assert!(!drawn(&screen).contains("no daemon runs for"));
}

#[test]
fn counters_that_began_anew_and_screens_of_any_size_are_drawn() {
    let mut anew = two();
    anew.peers[0].rx_bytes = Some(0);
    anew.peers[1].rx_bytes = None;
    anew.peers.push(PeerStatus { name: "site-z".into(), public_key: "qvpn1-Z=".into(), ..peer_up() });
    let screen = later(two(), anew.clone());
    assert!(drawn(&screen).contains("0 B/s"));
    let many =
        (0..200).map(|n| PeerStatus { name: format!("site-{n}"), public_key: format!("k{n}"), ..peer_up() });
    let mut crowd = later(two(), InterfaceStatus { peers: many.collect(), ..anew });
    crowd.go(150);
    assert!(drawn(&crowd).contains("site-150"));
    let empty = later(two(), interface(vec![], vec![]));
    for (width, height) in [(1, 1), (20, 5), (80, 3), (300, 100)] {
        for screen in [&screen, &crowd, &empty] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| screen.draw(frame)).unwrap();
        }
    }
}
