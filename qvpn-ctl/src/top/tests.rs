//! The screen of 80 columns and 24 lines, drawn without a terminal and compared with snapshots. Run with
//! `BLESS=1` to write them again, and review the difference.

use std::time::{Duration, Instant};

use qvpn_api::status::{InterfaceStatus, PeerStatus};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use self::status::{degraded, interface, peer_up, snapshot};
use super::screen::{Sample, Screen};

/// States to show, shared with the tests of `show`.
#[path = "../../tests/cli/status.rs"]
mod status;

/// Two sites: one that works, with a name of wide characters, and one without QKD.
fn two() -> InterfaceStatus {
    let interface = degraded();
    let well = PeerStatus { name: "site-a-東京".into(), public_key: "qvpn1-A=".into(), ..peer_up() };
    let peers = [vec![well], interface.peers.clone()].concat();
    InterfaceStatus { peers, ..interface }
}

/// Returns the screen two seconds after `before`.
fn later(before: InterfaceStatus, after: InterfaceStatus) -> Screen {
    let start = Instant::now();
    let mut screen = Screen::new("qvpn0", false);
    screen.update(Sample { at: start, status: before });
    screen.update(Sample { at: start + Duration::from_secs(2), status: after });
    screen
}

fn drawn(screen: &Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn eighty_columns_and_24_lines_have_what_matters() {
    let mut grown = two();
    grown.peers[0].rx_bytes = Some(1_536_000 + 2 * 123_456_789);
    grown.peers[0].tx_bytes = Some(999 + 2 * 1_500);
    let mut screen = later(two(), grown);
    let first = drawn(&screen);
    snapshot("top.txt", &first);
    screen.move_selection(1);
    snapshot("top-second.txt", &drawn(&screen));
    // The selection stops at both ends of the list.
    screen.move_selection(10);
    snapshot("top-second.txt", &drawn(&screen));
    screen.move_selection(-10);
    assert_eq!(drawn(&screen), first);
}

#[test]
fn a_daemon_that_is_gone_leaves_the_last_numbers_and_says_so() {
    let mut screen = later(two(), two());
    screen.show_error("no daemon runs for \u{1b}[31mqvpn0".into());
    let text = drawn(&screen);
    assert!(
        text.contains("no daemon runs for") && text.contains("site-b") && !text.contains('\u{1b}'),
        "{text}"
    );
    screen.update(Sample { at: Instant::now(), status: two() });
    assert!(!drawn(&screen).contains("no daemon runs for"));
}

#[test]
fn counters_that_began_restarted_and_screens_of_any_size_are_drawn() {
    let mut restarted = two();
    restarted.peers[0].rx_bytes = Some(0);
    restarted.peers[1].rx_bytes = None;
    restarted.peers.push(PeerStatus { name: "site-z".into(), public_key: "qvpn1-Z=".into(), ..peer_up() });
    let screen = later(two(), restarted.clone());
    assert!(drawn(&screen).contains("0 B/s"));
    let many =
        (0..200).map(|n| PeerStatus { name: format!("site-{n}"), public_key: format!("k{n}"), ..peer_up() });
    let mut crowd = later(two(), InterfaceStatus { peers: many.collect(), ..restarted });
    crowd.move_selection(150);
    assert!(drawn(&crowd).contains("site-150"));
    let empty = later(two(), interface(vec![], vec![]));
    for (width, height) in [(1, 1), (20, 5), (80, 3), (300, 100)] {
        for screen in [&screen, &crowd, &empty] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| screen.draw(frame)).unwrap();
        }
    }
}
