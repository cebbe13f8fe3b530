//! The commands that send one request to a daemon, and all ways in which there is no answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use qvpn_api::config::{KeyChange, QkdPolicy, Role, Suite};
use qvpn_api::control::{ErrorCode, ErrorReply, PeerSummary, Reply};
use qvpn_api::events::{Event, EventKind};
use qvpn_api::status::KeySource;

use super::fake::Fake;
use super::schemas::holds;
use super::{Run, ctl, run};

fn done(out: &str) -> Run {
    Run { code: 0, out: out.to_owned(), err: String::new() }
}

/// Makes a directory with a fake daemon for qvpn0.
fn with(replies: &[Reply], test: impl FnOnce(&Path, &Fake)) {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), "qvpn0", replies);
    test(dir.path(), &fake);
}

#[test]
fn rekey_says_with_whom() {
    with(&[Reply::Rekey { peers: vec!["site-b".into(), "site-c".into()] }], |dir, fake| {
        assert_eq!(run(dir, &["rekey", "qvpn0"]), done("rekey began: site-b\nrekey began: site-c\n"));
        assert_eq!(fake.request(), r#"{"v":1,"request":"rekey"}"#);
        run(dir, &["rekey", "qvpn0", "site-b"]);
        assert_eq!(fake.request(), r#"{"v":1,"request":"rekey","peer":"site-b"}"#);
    });
    with(&[Reply::Rekey { peers: vec![] }], |dir, _| {
        assert_eq!(run(dir, &["rekey", "qvpn0"]), done("there is no peer to rekey with\n"));
    });
}

#[test]
fn reload_says_what_changed() {
    with(&[Reply::Reload { changes: vec!["peer site-c added".into()], kept: vec![] }], |dir, fake| {
        assert_eq!(run(dir, &["reload", "qvpn0"]), done("peer site-c added\n"));
        assert_eq!(fake.request(), r#"{"v":1,"request":"reload"}"#);
    });
    with(&[Reply::Reload { changes: vec![], kept: vec![] }], |dir, _| {
        assert_eq!(run(dir, &["reload", "qvpn0"]), done("nothing changed\n"));
    });
}

#[test]
fn a_dry_run_asks_for_the_plan_and_not_for_a_reload() {
    let change = KeyChange {
        peer: Some("site-b".into()),
        key: "qkd".into(),
        from: Some("required".into()),
        to: Some("preferred".into()),
    };
    with(&[Reply::Plan { changes: vec![change] }], |dir, fake| {
        let expected = "peer site-b: qkd: required -> preferred\n    traffic with this peer goes on without \
                        QKD when keys are missing\nnothing was changed; `qvpn-ctl reload` does it\n";
        assert_eq!(run(dir, &["reload", "--dry-run", "qvpn0"]), done(expected));
        assert_eq!(fake.request(), r#"{"v":1,"request":"plan_reload"}"#);
    });
}

#[test]
fn a_refused_config_has_each_error_on_its_line_and_code_3() {
    let mut error = ErrorReply::new(ErrorCode::ConfigRefused, "the config was refused, nothing changed");
    error.details = vec!["/etc/qvpn/qvpn0.toml:2:1: a; b".into(), "/etc/qvpn/qvpn0.toml:3:1: c; d".into()];
    with(&[Reply::Error(error)], |dir, _| {
        let expected = "qvpn-ctl: the config was refused, nothing changed\n/etc/qvpn/qvpn0.toml:2:1: a; \
         b\n/etc/qvpn/qvpn0.toml:3:1: c; d\n";
        assert_eq!(
            run(dir, &["reload", "qvpn0"]),
            Run { code: 3, out: String::new(), err: expected.to_owned() }
        );
    });
}

#[test]
fn other_refusals_have_code_1() {
    // A daemon that doesn't know a request is an older one.
    with(&[Reply::Error(ErrorReply::new(ErrorCode::Malformed, "unknown variant"))], |dir, _| {
        let run = run(dir, &["rekey", "qvpn0"]);
        assert_eq!((run.code, run.err.lines().count()), (1, 1));
        assert!(
            run.err.contains("it is older than this qvpn-ctl: `systemctl restart qvpn@qvpn0`"),
            "{run:?}"
        );
    });
    for code in [ErrorCode::NoSuchPeer, ErrorCode::NotPermitted, ErrorCode::Busy, ErrorCode::Failed] {
        with(&[Reply::Error(ErrorReply::new(code, "no peer \u{1b}[2J\"x\""))], |dir, _| {
            let run = run(dir, &["rekey", "qvpn0", "x"]);
            assert_eq!((run.code, run.err.as_str()), (1, "qvpn-ctl: no peer \\u{1b}[2J\"x\"\n"));
        });
    }
}

#[test]
fn peers_are_listed_in_columns_and_as_json() {
    let peer = |name: &str, endpoint: Option<&str>, allowed: &[&str]| PeerSummary {
        name: name.into(),
        public_key: "qvpn1-x".into(),
        fingerprint: "abcd-efgh".into(),
        other_public_key: None,
        endpoint: endpoint.map(str::to_owned),
        allowed_ips: allowed.iter().map(|a| (*a).to_owned()).collect(),
        qkd: QkdPolicy::Required,
        role: Role::Auto,
        suite: Suite::ChaCha20Poly1305,
    };
    let peers = vec![
        peer("site-b", Some("203.0.113.9:51820"), &["10.20.0.0/16", "fd20::/64"]),
        peer("büro", None, &[]),
    ];
    with(&[Reply::Peers(peers)], |dir, fake| {
        let expected = "\
NAME    FINGERPRINT  ENDPOINT           QKD       ROLE  ALLOWED IPS
site-b  abcd-efgh    203.0.113.9:51820  required  auto  10.20.0.0/16, fd20::/64
büro    abcd-efgh    (learned)          required  auto  (none)
";
        assert_eq!(run(dir, &["peer", "list", "qvpn0"]), done(expected));
        assert_eq!(fake.request(), r#"{"v":1,"request":"peers"}"#);
        let json = run(dir, &["peer", "list", "qvpn0", "--json"]);
        holds("peer-list", &json.out);
        let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!((&value["schema"], &value["interface"]), (&1.into(), &"qvpn0".into()));
        assert_eq!(value["peers"][1]["name"], "büro");
        assert!(value["peers"][1]["endpoint"].is_null());
    });
}

#[test]
fn events_are_lines_or_json_lines() {
    let event = |kind| Reply::Event(Event { time: SystemTime::UNIX_EPOCH, interface: "qvpn0".into(), kind });
    let replies = [
        event(EventKind::EpochActive {
            peer: "site-b".into(),
            epoch: 7,
            sources: vec![KeySource::Qkd, KeySource::Mlkem, KeySource::X25519],
            qkd_key_id: Some("id-1".into()),
            kme: Some("kme-a1".into()),
        }),
        event(EventKind::KmeDown { kme: "kme-a1".into(), reason: "refused".into() }),
        Reply::EventsEnd { missed: 2 },
    ];
    with(&replies, |dir, fake| {
        let plain = run(dir, &["events", "qvpn0"]);
        assert_eq!(plain.code, 0);
        assert_eq!(
            plain.out,
            "1970-01-01T00:00:00.000Z qvpn0 epoch.active peer=site-b epoch=7 sources=qkd+mlkem+x25519 \
             qkd_key_id=id-1 kme=kme-a1\n\
             1970-01-01T00:00:00.000Z qvpn0 kme.down kme=kme-a1 reason=refused\n"
        );
        assert_eq!(plain.err, "2 older events no longer kept; see the journal\n");
        assert_eq!(fake.request(), r#"{"v":1,"request":"events","follow":false}"#);
        let json = run(dir, &["events", "qvpn0", "--json"]);
        let lines: Vec<serde_json::Value> =
            json.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        json.out.lines().for_each(|line| holds("event", line));
        assert_eq!(lines[0]["event"], "epoch.active");
        assert_eq!(lines[0]["sources"], serde_json::json!(["qkd", "mlkem", "x25519"]));
        assert_eq!(lines.len(), 2);
    });
    // Following ends only when the daemon ends, and then says so.
    with(&replies[..1], |dir, fake| {
        let run = run(dir, &["events", "qvpn0", "--follow"]);
        assert_eq!((run.code, run.out.lines().count()), (4, 1));
        assert!(run.err.contains("the daemon of qvpn0 closed the connection"), "{run:?}");
        assert_eq!(fake.request(), r#"{"v":1,"request":"events","follow":true}"#);
    });
}

#[test]
fn metrics_are_printed_as_they_are_or_as_json() {
    let text = "# HELP x An x.\n# TYPE x counter\nx{peer=\"b\\\"ü\"} 18446744073709551615\ny 0.5\n";
    with(&[Reply::Metrics { text: text.into() }], |dir, fake| {
        assert_eq!(run(dir, &["metrics", "qvpn0"]), done(text));
        assert_eq!(fake.request(), r#"{"v":1,"request":"metrics"}"#);
        let json = run(dir, &["metrics", "qvpn0", "--json"]).out;
        holds("metrics", &json);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let sample =
            serde_json::json!({"name": "x", "labels": {"peer": "b\"ü"}, "value": "18446744073709551615"});
        assert_eq!(value["samples"][0], sample);
    });
    with(&[Reply::Metrics { text: "<html>".into() }], |dir, _| {
        let run = run(dir, &["metrics", "qvpn0", "--json"]);
        assert_eq!((run.code, run.out.as_str()), (4, ""), "{run:?}");
    });
}

#[test]
fn every_command_says_that_no_daemon_runs_with_code_4() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qvpn0.sock");
    let commands: [&[&str]; 8] = [
        &["show", "qvpn0"],
        &["show", "qvpn0", "--json"],
        &["rekey", "qvpn0"],
        &["reload", "qvpn0"],
        &["peer", "list", "qvpn0"],
        &["metrics", "qvpn0"],
        &["events", "qvpn0"],
        &["events", "qvpn0", "--follow"],
    ];
    for args in commands {
        let expected = format!(
            "qvpn-ctl: no daemon runs for qvpn0: {} is not there; start it with `systemctl start \
             qvpn@qvpn0`\n",
            socket.display()
        );
        assert_eq!(run(dir.path(), args), Run { code: 4, out: String::new(), err: expected });
    }
    let _other = Fake::new(dir.path(), "qvpn7", &[]);
    assert!(run(dir.path(), &["show", "qvpn0"]).err.ends_with("(running: qvpn7)\n"));
    // A daemon that was killed leaves its socket.
    drop(UnixListener::bind(&socket).unwrap());
    for args in commands {
        let run = run(dir.path(), args);
        assert_eq!((run.code, run.out.as_str()), (4, ""));
        assert!(run.err.contains("the daemon of qvpn0 is gone") && run.err.lines().count() == 1, "{run:?}");
    }
}

#[test]
fn an_answer_that_is_no_json_is_named() {
    let rows: [(&[u8], i32, &str); 8] = [
        (b"", 4, "closed the connection without a whole answer"),
        (br#"{"v":1,"reply":"rek"#, 4, "closed the connection without a whole answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 4, "is not a qvpn daemon of this version"),
        (b"\xff\xfe\x00\n", 4, "is not a qvpn daemon of this version"),
        (b"{\"v\":1,\"reply\":\"dance\"}\n", 4, "is not a qvpn daemon of this version"),
        (b"{\"v\":1,\"reply\":\"reload\",\"body\":{\"changes\":[]}}\n", 4, "doesn't belong to the request"),
        (
            b"{\"v\":2,\"reply\":\"rekey\",\"body\":{}}\n",
            1,
            "install the same version of qvpn-daemon and qvpn-ctl",
        ),
        (b"{\"v\":0}\n", 1, "install the same version"),
    ];
    for (answer, code, words) in rows {
        let dir = tempfile::tempdir().unwrap();
        let _fake = Fake::raw(dir.path(), "qvpn0", answer);
        let run = run(dir.path(), &["rekey", "qvpn0"]);
        assert_eq!((run.code, run.out.as_str()), (code, ""), "{run:?}");
        assert!(run.err.contains(words) && run.err.lines().count() == 1, "{words}: {run:?}");
    }
}

#[test]
fn an_endless_answer_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::raw(dir.path(), "qvpn0", &vec![b'x'; 33 * 1024 * 1024]);
    let run = run(dir.path(), &["rekey", "qvpn0"]);
    assert_eq!(run.code, 4);
    assert!(run.err.contains("longer than 33554432 bytes"), "{run:?}");
}

#[test]
fn a_socket_that_may_not_be_used_says_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o755);
    let _fake = Fake::new(dir.path(), "qvpn0", &[]);
    mode(&dir.path().join("qvpn0.sock"), 0o000);
    let output = if nix::unistd::Uid::effective().is_root() {
        // Root may use every socket, so the program runs as nobody, from a directory that only nobody can
        // reach. `cp` copies it, since another test's child could inherit a file that this process had open
        // for writing.
        let program = dir.path().join("qvpn-ctl");
        assert!(
            Command::new("cp").arg(env!("CARGO_BIN_EXE_qvpn-ctl")).arg(&program).status().unwrap().success()
        );
        let mut command = Command::new(program);
        command.env_clear().env("QVPN_SOCKET_DIR", dir.path()).args(["show", "qvpn0"]);
        command.uid(65534).output().unwrap()
    } else {
        ctl(dir.path(), &["show", "qvpn0"]).output().unwrap()
    };
    let run = Run::from(output);
    assert_eq!(run.code, 4);
    assert!(run.err.contains("run as root, or let root name you in a section [access]"), "{run:?}");
}

#[test]
fn top_is_for_terminals() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), &["top", "qvpn0"]);
    let expected = "qvpn-ctl: top needs a terminal; in a pipe use `qvpn-ctl show --json`\n";
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (1, "", expected));
}

#[test]
fn events_are_filtered_by_peer_kind_level_and_time() {
    let event = |seconds: u64, kind| {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        Reply::Event(Event { time, interface: "qvpn0".into(), kind })
    };
    let replies = [
        event(1, EventKind::PeerUp { peer: "site-1".into(), endpoint: None }),
        event(2, EventKind::PeerBlocked { peer: "site-10".into(), reason: "r".into() }),
        event(3, EventKind::KmeDown { kme: "kme-a1".into(), reason: "refused".into() }),
        event(4, EventKind::KmeUp { kme: "kme-a1".into() }),
        Reply::EventsEnd { missed: 0 },
    ];
    with(&replies, |dir, _| {
        let rows: [(&[&str], &[&str]); 8] = [
            (&[], &["peer.up", "peer.blocked", "kme.down", "kme.up"]),
            (&["--peer", "site-1"], &["peer.up"]),
            (&["--kind", "kme"], &["kme.down", "kme.up"]),
            (&["--kind", "kme.up,peer.up"], &["peer.up", "kme.up"]),
            (&["--kind", "km"], &[]),
            (&["--level", "warn"], &["peer.blocked", "kme.down"]),
            (&["--since", "1970-01-01T00:00:03Z"], &["kme.down", "kme.up"]),
            (&["--since", "10m"], &[]),
        ];
        for (args, kinds) in rows {
            // The only interface need not be named.
            let run = run(dir, &[&["events", "--json"], args].concat());
            assert_eq!((run.code, run.err.as_str()), (0, ""), "{args:?}");
            let lines: Vec<serde_json::Value> =
                run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let found: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
            assert_eq!(found, kinds, "{args:?}");
        }
        assert_eq!(run(dir, &["events", "--since", "yesterday"]).code, 2);
        assert_eq!(run(dir, &["events", "--level", "loud"]).code, 2);
    });
}

#[test]
fn the_only_interface_need_not_be_named() {
    with(&[Reply::Rekey { peers: vec!["site-b".into()] }], |dir, fake| {
        for (args, request) in [
            (&["rekey"][..], r#"{"v":1,"request":"rekey"}"#),
            (&["rekey", "qvpn0"], r#"{"v":1,"request":"rekey"}"#),
            (&["rekey", "site-b"], r#"{"v":1,"request":"rekey","peer":"site-b"}"#),
            (&["rekey", "qvpn0", "site-b"], r#"{"v":1,"request":"rekey","peer":"site-b"}"#),
        ] {
            assert_eq!(run(dir, args).code, 0, "{args:?}");
            assert_eq!(fake.request(), request, "{args:?}");
        }
        // With a second one, the interface must be named.
        fs::write(dir.join("qvpn1.toml"), "").unwrap();
        for args in [&["rekey"][..], &["reload"], &["events"], &["metrics"], &["top"]] {
            let run = run(dir, args);
            assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?}");
            assert!(run.err.contains("qvpn0, qvpn1; name one of them"), "{run:?}");
        }
        let run = run(dir, &["rekey", "../x"]);
        assert_eq!((run.code, run.err.lines().count()), (2, 1), "{run:?}");
    });
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(run(empty.path(), &["rekey"]).code, 4);
}

#[test]
fn versions_of_all_programs_are_printed() {
    let reply = Reply::Version { daemon: "0.0.9".into(), interface: "qvpn0".into(), pid: 42 };
    with(&[reply], |dir, _| {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(run(dir, &["version"]), done(&format!("qvpn-ctl {version}\nqvpn0: qvpn-daemon 0.0.9\n")));
        let verbose = run(dir, &["version", "--verbose"]).out;
        assert!(
            verbose.contains("control API 1, status schema 1") && verbose.contains("process 42"),
            "{verbose}"
        );
    });
}
