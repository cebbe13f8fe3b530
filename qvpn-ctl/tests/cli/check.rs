//! `check`: the config's errors, as text and as JSON.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::schemas::holds;
use super::{Run, run, run_with_input};

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // If the test runs as root on a machine that has daemons, the file belongs to them.
    if let Ok(Some(user)) = nix::unistd::User::from_name("qvpn") {
        let _ = std::os::unix::fs::chown(&path, Some(user.uid.as_raw()), None);
    }
    path.display().to_string()
}

fn public_key(dir: &Path) -> String {
    let secret = run(dir, &["genkey"]).out;
    run_with_input(dir, &["pubkey"], secret.as_bytes()).out.trim().to_owned()
}

#[test]
fn a_good_config_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "qvpn0.key", &run(dir, &["genkey"]).out);
    let peer = public_key(dir);
    let file = write(
        dir,
        "qvpn0.toml",
        &format!(
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"{peer}\"\nallowed_ips = []\nqkd = \"off\"\n"
        ),
    );
    assert_eq!(
        run(dir, &["check", &file]),
        Run { code: 0, out: format!("{file}: fine: interface qvpn0, 1 peer, 0 KMEs\n"), err: String::new() }
    );
    let json: serde_json::Value = serde_json::from_str(&run(dir, &["check", &file, "--json"]).out).unwrap();
    holds("check", &json.to_string());
    let expected = serde_json::json!({
        "schema": 1, "file": file, "ok": true, "errors": [], "left_out": 0, "warnings": []
    });
    assert_eq!(json, expected);
}

#[test]
fn each_error_is_a_line_and_the_code_is_3() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = write(dir, "qvpn0.toml", "[interface]\nlisten_prt = 1\nlanes = 0\n");
    let expected = format!(
        "{file}:2:1: [interface] has no key `listen_prt`; did you mean `listen_port`?\n\
         {file}:3:9: `lanes` must be from 1 to 16, but this is 0; write for example `lanes = 1`\n"
    );
    assert_eq!(run(dir, &["check", &file]), Run { code: 3, out: String::new(), err: expected.clone() });
    let json = run(dir, &["check", &file, "--json"]);
    assert_eq!((json.code, json.err), (3, expected));
    holds("check", &json.out);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["ok"], false);
    assert_eq!(value["errors"][0]["line"], 2);
    assert_eq!(value["errors"][1]["column"], 9);
    assert_eq!(value["errors"][1]["fix"], "write for example `lanes = 1`");
}

#[test]
fn files_and_other_interfaces_are_checked_unless_the_config_is_for_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = write(dir, "qvpn0.toml", "[interface]\n");
    write(dir, "qvpn1.toml", "[interface]\n");
    let found = run(dir, &["check", &file]);
    assert_eq!((found.code, found.err.lines().count()), (3, 2), "{found:?}");
    assert!(
        found.err.contains("qvpn0.key: no such file or directory; make one with `install -m 0640 -g qvpn "),
        "{found:?}"
    );
    assert!(found.err.contains("UDP port 51820 overlaps UDP port 51820 of qvpn1"), "{found:?}");
    assert_eq!(run(dir, &["check", "--no-files", &file]).code, 0);
}

#[test]
fn a_peer_with_our_own_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let secret = run(dir, &["genkey"]).out;
    write(dir, "qvpn0.key", &secret);
    let own = run_with_input(dir, &["pubkey"], secret.as_bytes()).out;
    let text = format!(
        "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"{}\"\nallowed_ips = []\nqkd = \"off\"\n",
        own.trim()
    );
    let file = write(dir, "qvpn0.toml", &text);
    let run = run(dir, &["check", &file]);
    assert_eq!(run.code, 3);
    assert!(
        run.err.starts_with(&format!("{file}:4:14: the public_key of peer \"b\" is our own; ")),
        "{run:?}"
    );
}

#[test]
fn a_config_that_is_not_there_is_refused() {
    let run = run(Path::new("/nonexistent"), &["check", "/nonexistent/qvpn0.toml"]);
    assert_eq!(run.code, 3);
    assert_eq!(
        run.err,
        "/nonexistent/qvpn0.toml: can't open the config /nonexistent/qvpn0.toml: no such file or \
         directory; put it there, or write the right path\n"
    );
}
