//! `import`, `doctor`, and the changes of peers that need no real daemon.

use std::fs;

use qvpn_api::control::{ErrorCode, ErrorReply, Reply};

use super::fake::Fake;
use super::run;
use super::schemas::holds;

#[test]
fn a_wg_quick_file_goes_to_the_output_and_what_is_lost_to_the_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wg0.conf");
    fs::write(&file, "[Interface]\nPrivateKey = x\nPostUp = true\n[Peer]\nAllowedIPs = 10.0.0.0/8\n")
        .unwrap();
    let path = file.display().to_string();
    let imported = run(dir.path(), &["import", "--qkd", "off", &path]);
    assert_eq!(imported.code, 0, "{imported:?}");
    assert!(
        imported.out.starts_with("[interface]\n") && imported.out.contains("allowed_ips = [\"10.0.0.0/8\"]")
    );
    assert!(imported.err.contains(&format!("{path}:3: postup has no equivalent")), "{imported:?}");
    fs::write(&file, "hello\n").unwrap();
    let refused = run(dir.path(), &["import", &path]);
    assert_eq!((refused.code, refused.out.as_str(), refused.err.lines().count()), (3, "", 1), "{refused:?}");
    assert!(refused.err.starts_with(&format!("{path}:1: `hello` is neither")), "{refused:?}");
    assert_eq!(run(dir.path(), &["import", "/nonexistent/wg0.conf"]).code, 3);
}

#[test]
fn doctor_says_what_it_found_as_its_schema_has_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("qvpn0.toml"), "[interface]\nlanes = 0\n").unwrap();
    let json = run(dir.path(), &["doctor", "--json"]);
    assert_eq!(json.code, 1, "{json:?}");
    holds("doctor", &json.out);
    let text = run(dir.path(), &["doctor", "qvpn0"]);
    assert!(text.out.contains("qvpn0.toml:2:9: `lanes` must be from 1 to 16"), "{text:?}");
    assert!(text.out.contains(" -> qvpn-ctl check "), "{text:?}");
    assert!(text.err.contains("checks failed"), "{text:?}");
}

#[test]
fn a_change_of_a_peer_is_sent_as_the_config_would_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(
        dir.path(),
        "qvpn0",
        &[Reply::Reload { changes: vec!["peer b added".into()], kept: vec![] }],
    );
    let words = [
        "peer",
        "add",
        "qvpn0",
        "b",
        "--public-key",
        "k",
        "--allowed-ips",
        "10.0.0.0/8,fd00::/8",
        "--qkd",
        "off",
    ];
    let added = run(dir.path(), &words);
    assert_eq!((added.code, added.out.as_str()), (0, "peer b added\n"), "{added:?}");
    assert!(added.err.contains("not saved"), "{added:?}");
    let settings =
        r#"name = \"b\"\npublic_key = \"k\"\nallowed_ips = [\"10.0.0.0/8\", \"fd00::/8\"]\nqkd = \"off\"\n"#;
    let request =
        format!(r#"{{"v":1,"request":"edit_peer","change":{{"edit":"add","settings":"{settings}"}}}}"#);
    assert_eq!(fake.request(), request);
    // Without a config there is nothing to save in, and the daemon is not asked.
    let unsaved = run(dir.path(), &[&words[..], &["--save"]].concat());
    assert_eq!((unsaved.code, unsaved.out.as_str()), (1, ""));
    assert!(unsaved.err.contains("nothing was changed") && unsaved.err.lines().count() == 1, "{unsaved:?}");
    for args in [
        &["peer", "set", "qvpn0", "b"][..],
        &["peer", "add", "qvpn0"],
        &["peer", "set", "qvpn0", "b", "--qkd", "no"],
    ] {
        assert_eq!(run(dir.path(), args).code, 2, "{args:?}");
    }
}

#[test]
fn a_refused_change_has_code_3_and_saves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut error = ErrorReply::new(ErrorCode::ConfigRefused, "the change is refused");
    error.details = vec!["a; b".into()];
    let _fake = Fake::new(dir.path(), "qvpn0", &[Reply::Error(error)]);
    let run = run(dir.path(), &["peer", "add", "qvpn0", "b", "--public-key", "k"]);
    assert_eq!((run.code, run.err.as_str()), (3, "qvpn-ctl: the change is refused\na; b\n"));
}

#[test]
fn an_audit_log_is_set_up_once_and_verified_as_its_schema_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let audit = |words: &[&str]| -> super::Run {
        let mut command = super::ctl(dir.path(), &[&["audit"], words].concat());
        command.env("QVPN_LOG_DIR", dir.path()).env("QVPN_AUDIT_DIR", dir.path());
        command.output().unwrap().into()
    };
    let key = audit(&["setup", "qvpn7"]);
    assert!(key.code == 0 && key.out.starts_with("qvpn1-audit-") && key.out.lines().count() == 1, "{key:?}");
    assert!(!key.err.contains(key.out.trim()), "the key is printed once");
    assert_eq!(audit(&["setup", "qvpn7"]).code, 1);
    let file = dir.path().join("key");
    fs::write(&file, &key.out).unwrap();
    let file = file.display().to_string();
    let good = audit(&["verify", "qvpn7", "--key-file", &file, "--json"]);
    assert_eq!(good.code, 0, "{good:?}");
    holds("audit-verify", &good.out);
    let log = dir.path().join("qvpn7.audit");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"event\":\"audit.setup\""), "{text}");
    fs::write(&log, text.replace("audit.setup", "audit.sixup")).unwrap();
    let bad = audit(&["verify", "qvpn7", "--key-file", &file, "--json"]);
    assert!(bad.code == 1 && bad.err.contains("qvpn7.audit:1: changed: line number 0 "), "{bad:?}");
    holds("audit-verify", &bad.out);
    assert_eq!(audit(&["verify", "qvpn8"]).code, 1);
    fs::write(&file, "qvpn1-audit-abc").unwrap();
    assert!(audit(&["verify", "qvpn7", "--key-file", &file]).err.contains("no verification key"));
}
