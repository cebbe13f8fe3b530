//! `show`: compares its text with snapshots and its JSON with the status, and checks that colour appears only
//! on a terminal. Run with `BLESS=1` to write the snapshots again, and review the difference.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use nix::pty::Winsize;
use qvpn_api::config::QkdPolicy;
use qvpn_api::control::{ErrorCode, ErrorReply, Reply};
use qvpn_api::status::{
    DeviceStatus, GuardStatus, InterfaceStatus, KmeState, KmeStatus, PeerState, PeerStatus, Status,
};

use super::fake::Fake;
use super::schemas::holds;
use super::status::{degraded, interface, kme, peer_up, snapshot};
use super::{Run, ctl, run};

/// A peer of which only the config is known.
fn peer_unknown() -> PeerStatus {
    PeerStatus {
        endpoint: None,
        state: PeerState::Connecting,
        role: None,
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
        rekey_failures: BTreeMap::new(),
        control_handshake_ago_s: None,
        last_received_ago_s: None,
        rx_bytes: None,
        tx_bytes: None,
        rx_packets: None,
        tx_packets: None,
        drops: BTreeMap::new(),
        mtu: None,
        lanes: vec![],
        ..peer_up()
    }
}

fn up() -> InterfaceStatus {
    let key = "qvpn1-UqPFxf26QCxGqk1wiKfZx0Kxb+3jT49b63iPWVAbF2tw2xyJrx7OgoU1cpBp\
        GXHe9rN17iNWKKSWARmubkuEbr6oe40Wmjg9EhJguZfDLJo=";
    let up = interface(vec![kme("kme-a1", Some(KmeState::Up)), kme("kme-a2", None)], vec![peer_up()]);
    InterfaceStatus { public_key: key.into(), ..up }
}

fn blocked() -> InterfaceStatus {
    let blocked = PeerStatus {
        state: PeerState::Blocked,
        reason: Some("the last key has expired, and \u{1b}[31mno QKD key came".into()),
        epoch_expires_in_s: Some(-4.0),
        qkd_stock: Some(0),
        ..peer_up()
    };
    let blocked = PeerStatus { key_sources: vec![], epoch: None, ..blocked };
    let connecting = PeerStatus { name: "site-c".into(), ..peer_unknown() };
    let off = PeerStatus {
        name: "site-d".into(),
        qkd_policy: QkdPolicy::Off,
        endpoint: Some("198.51.100.4:51820".into()),
        ..peer_unknown()
    };
    let ended = KmeStatus {
        last_error: Some("the KME's certificate has ended".into()),
        cert_expires_in_s: Some(-86_400.0),
        last_success_ago_s: None,
        stored_key_count: None,
        latency_ms: None,
        ..kme("kme-a1", Some(KmeState::Down))
    };
    interface(vec![ended], vec![blocked, connecting, off])
}

/// Returns the text of `show` for `interface`.
fn shown(interface: InterfaceStatus) -> String {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![interface]))]);
    let run = run(dir.path(), &["show", "qvpn0"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    assert_eq!(fake.request(), r#"{"v":1,"request":"show"}"#);
    run.out
}

#[test]
fn up_degraded_and_blocked_read_as_in_the_snapshots() {
    snapshot("up.txt", &shown(up()));
    snapshot("degraded.txt", &shown(degraded()));
    let text = shown(blocked());
    assert!(!text.contains('\u{1b}'), "what others said must not reach the terminal raw");
    snapshot("blocked.txt", &text);
}

#[test]
fn json_is_the_status_with_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![blocked()]))]);
    let run = run(dir.path(), &["show", "--json"]);
    assert_eq!(run.code, 0);
    holds("show", &run.out);
    let status: Status = serde_json::from_str(&run.out).unwrap();
    assert_eq!(status, Status::new(vec![blocked()]));
    let value: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert!(value["interfaces"][0]["peers"][1]["epoch"].is_null());
    assert!(value["interfaces"][0]["peers"][1].as_object().unwrap().contains_key("qkd_stock"));
}

#[test]
fn all_interfaces_are_joined_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["show"]).code, 4);
    assert_eq!(run(&dir.path().join("none"), &["show"]).code, 4);
    let second = InterfaceStatus { name: "qvpn1".into(), ..interface(vec![], vec![]) };
    let _b = Fake::new(dir.path(), "qvpn1", &[Reply::Show(Status::new(vec![second]))]);
    let _a = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![up()]))]);
    std::fs::write(dir.path().join("notes.txt"), "").unwrap();
    let both = run(dir.path(), &["show"]);
    assert_eq!((both.code, both.err.as_str()), (0, ""));
    assert!(both.out.find("interface: qvpn0").unwrap() < both.out.find("\ninterface: qvpn1").unwrap());

    drop(std::os::unix::net::UnixListener::bind(dir.path().join("qvpn2.sock")).unwrap());
    let some = run(dir.path(), &["show"]);
    assert_eq!((some.code, &some.out), (4, &both.out));
    assert!(some.err.contains("the daemon of qvpn2 is gone") && some.err.lines().count() == 1, "{some:?}");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("qvpn3.sock")).unwrap());
    let fewer = run(dir.path(), &["show"]);
    assert_eq!((fewer.code, &fewer.out, fewer.err.lines().count()), (4, &both.out, 3));
}

#[test]
fn a_daemons_error_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let busy = ErrorReply::new(ErrorCode::Busy, "too many connections at once; try again");
    let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Error(busy)]);
    let expected = "qvpn-ctl: too many connections at once; try again\n";
    assert_eq!(run(dir.path(), &["show"]), Run { code: 1, out: String::new(), err: expected.into() });
}

/// Returns the output of `args` on a terminal that does not report its size.
fn on_terminal(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    on_terminal_of(dir, args, env, 0)
}

/// Returns the output of `args` on a terminal of `columns` columns.
pub(crate) fn on_terminal_of(dir: &Path, args: &[&str], env: &[(&str, &str)], columns: u16) -> String {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None).unwrap();
    let mut command = ctl(dir, args);
    command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(pty.slave).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // The command holds our copy of the slave, and dropping it makes the end of the output visible.
    drop(command);
    let text = read_to_end(pty.master);
    assert!(child.wait_with_output().unwrap().status.success());
    text
}

/// On Linux, reading a terminal fails with EIO once its last writer is gone.
fn read_to_end(master: OwnedFd) -> String {
    let mut master = std::fs::File::from(master);
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![blocked()]))]);
    let coloured = on_terminal(dir.path(), &["show"], &[("TERM", "xterm")]);
    assert!(
        coloured.contains("peer: \u{1b}[1msite-b\u{1b}[0m (\u{1b}[1m\u{1b}[31mblocked\u{1b}[0m)"),
        "{coloured}"
    );
    // The words and their order are the same for any width; only blanks differ.
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for env in [&[("NO_COLOR", "1"), ("TERM", "xterm")][..], &[("TERM", "dumb")]] {
        let plain = on_terminal(dir.path(), &["show"], env);
        assert!(!plain.contains('\u{1b}'), "{plain}");
        assert_eq!(words(&plain), words(&shown(blocked())));
    }
    assert!(on_terminal(dir.path(), &["show"], &[("NO_COLOR", "")]).contains('\u{1b}'));
}

#[test]
fn a_terminal_gets_aligned_lines_of_its_own_width() {
    let dir = tempfile::tempdir().unwrap();
    let wide = PeerStatus { name: "東京-site".into(), ..peer_up() };
    let peers = vec![wide, peer_up()];
    let status = |peers| Reply::Show(Status::new(vec![InterfaceStatus { peers, ..blocked() }]));
    let _fake = Fake::new(dir.path(), "qvpn0", &[status(peers)]);
    for columns in [20, 80, 200] {
        let text = on_terminal_of(dir.path(), &["show"], &[("NO_COLOR", "1")], columns).replace("\r\n", "\n");
        snapshot(&format!("terminal-{columns}.txt"), &text);
        // Only what can't be broken, such as a URL, exceeds the width; a terminal wraps it itself.
        let limit = usize::from(columns);
        for line in text.lines().filter(|line| unicode_width::UnicodeWidthStr::width(*line) > limit) {
            let longest = line.split(' ').map(str::len).max().unwrap();
            assert!(longest + 24 > limit, "{columns}: {line}");
        }
    }
    let brief = on_terminal_of(dir.path(), &["show", "--brief"], &[("NO_COLOR", "1")], 80);
    assert_eq!(brief.lines().count(), 4, "{brief}");
}

#[test]
fn a_prefix_of_a_name_selects_one_peer() {
    let dir = tempfile::tempdir().unwrap();
    let other = PeerStatus { name: "depot".into(), public_key: "qvpn1-Zz=".into(), ..peer_up() };
    let interface = InterfaceStatus { peers: vec![peer_up(), other], ..up() };
    let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![interface]))]);
    for text in ["depot", "d", "qvpn1-Z", "Zz"] {
        let run = run(dir.path(), &["show", "qvpn0", text]);
        assert!(run.out.contains("\npeer: depot") && !run.out.contains("site-b"), "{text}: {run:?}");
    }
    let run = run(dir.path(), &["show", "qvpn0", "abcd"]);
    let expected = "qvpn-ctl: `abcd` matches site-b, depot; write more of the name or public key\n";
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (1, "", expected));
}

#[test]
fn a_secret_on_a_screen_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = ctl(dir.path(), &["genkey"]);
    let child = command.stdout(pty.slave).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    assert!(read_to_end(pty.master).starts_with("qvpn1-secret-"));
    let output = child.wait_with_output().unwrap();
    let warning = "qvpn-ctl: warning: the secret is printed on your screen; better: install -m 0640 -g \
     qvpn /dev/null /etc/qvpn/qvpn0.key && qvpn-ctl genkey > /etc/qvpn/qvpn0.key\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), warning);
}

/// 300 peers, of which two are blocked and one has no key yet.
fn hub() -> InterfaceStatus {
    let peer = |n: usize, state: PeerState| PeerStatus { name: format!("site-{n}"), state, ..peer_up() };
    let state = |n: usize| match n {
        7 => PeerState::Connecting,
        9 | 250 => PeerState::Blocked,
        _ => PeerState::Up,
    };
    let down =
        KmeStatus { last_error: Some("connection refused".into()), ..kme("kme-a2", Some(KmeState::Down)) };
    interface(vec![kme("kme-a1", Some(KmeState::Up)), down], (0..300).map(|n| peer(n, state(n))).collect())
}

#[test]
fn many_peers_are_one_screen_with_those_that_need_attention_first() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![hub()]))]);
    let show = |args: &[&str]| {
        let run = run(dir.path(), &[&["show"], args].concat());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
        run.out
    };
    let screen = show(&[]);
    assert!(
        screen.starts_with("qvpn0: 297 of 300 sites up, 2 blocked, 1 connecting, 1 of 2 KMEs up\n"),
        "{screen}"
    );
    assert!(screen.lines().count() <= 30 && screen.contains("and 285 more"), "{screen}");
    assert!(screen.contains("kme: kme-a2 (down)") && !screen.contains("kme: kme-a1"), "{screen}");
    let names: Vec<&str> =
        screen.lines().skip(2).take(4).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["site-9", "site-250", "site-7", "site-0"]);
    let down = show(&["--down"]);
    assert!(down.contains("peer: site-9 (blocked)") && !down.contains("site-0"), "{down}");
    assert_eq!(show(&["qvpn0", "--brief"]).lines().count(), 302);
    assert!(show(&["--all"]).contains("peer: site-299 (up)"));
    let one = show(&["--peer", "site-250"]);
    assert!(one.contains("peer: site-250 (blocked)") && !one.contains("site-9"), "{one}");
    let json: Status = serde_json::from_str(&show(&["--json", "--down"])).unwrap();
    let names: Vec<&str> = json.interfaces[0].peers.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["site-7", "site-9", "site-250"], "JSON keeps the config's order");
    let none = run(dir.path(), &["show", "--peer", "nowhere"]);
    assert_eq!((none.code, none.out.as_str(), none.err.lines().count()), (1, "", 1), "{none:?}");
    assert_eq!(run(dir.path(), &["show", "qvpn0", "site-9", "--peer", "site-9"]).code, 2);
}

#[test]
fn the_block_and_the_device_are_shown() {
    let text = |guard: GuardStatus, device: Option<DeviceStatus>| {
        let dir = tempfile::tempdir().unwrap();
        let shown = InterfaceStatus { guard: Some(guard), device, ..up() };
        let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Show(Status::new(vec![shown]))]);
        run(dir.path(), &["show", "qvpn0"]).out
    };
    let good = GuardStatus {
        routes: "in_force".into(),
        nftables: "in_force".into(),
        protected: vec!["10.20.0.0/16".into(), "10.30.0.0/16".into()],
        kept: vec![],
        local: vec![],
        dropped: Some(0),
        reason: None,
    };
    let line = |text: &str, label: &str| {
        text.lines().find(|line| line.trim_start().starts_with(label)).unwrap_or_default().trim().to_owned()
    };
    let shown = text(good.clone(), Some(DeviceStatus { state: "up".into(), name: Some("qvpn0".into()) }));
    assert_eq!(line(&shown, "block"), "block: 2 prefixes: routes in force, filter in force");
    assert_eq!(line(&shown, "device"), "");
    let kept = GuardStatus { kept: vec!["10.30.0.0/16".into()], ..good.clone() };
    assert!(line(&text(kept, None), "block").contains("in no config any more: 10.30.0.0/16"));
    let routes =
        GuardStatus { nftables: "missing".into(), reason: Some("no nf_tables".into()), ..good.clone() };
    assert!(line(&text(routes, None), "block").ends_with("filter missing: no nf_tables"));
    let nothing =
        GuardStatus { routes: "off".into(), nftables: "off".into(), protected: vec![], ..good.clone() };
    assert!(line(&text(nothing, None), "block").contains("nothing is blocked"));
    let gone = text(good, Some(DeviceStatus { state: "missing".into(), name: None }));
    assert!(line(&gone, "device").contains("systemctl restart qvpn@qvpn0"), "{gone}");
}
