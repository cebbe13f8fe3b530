//! The key commands, compared with those of `wg`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use super::{Run, ctl, run, run_with_input};

const MISSING_DIRECTORY: &str = "/nonexistent";

fn dir() -> &'static Path {
    Path::new(MISSING_DIRECTORY)
}

#[test]
fn a_key_becomes_its_public_key_and_fingerprint() {
    let secret = run(dir(), &["genkey"]);
    assert_eq!((secret.code, secret.err.as_str()), (0, ""));
    assert!(secret.out.starts_with("qvpn1-secret-") && secret.out.ends_with('\n'));
    assert_eq!(secret.out.lines().count(), 1);
    let public = run_with_input(dir(), &["pubkey"], secret.out.as_bytes());
    assert_eq!((public.code, public.err.as_str()), (0, ""));
    assert!(public.out.starts_with("qvpn1-") && !public.out.starts_with("qvpn1-secret-"));
    let of_public = run_with_input(dir(), &["fingerprint"], public.out.as_bytes());
    let of_secret = run_with_input(dir(), &["fingerprint"], secret.out.as_bytes());
    assert_eq!(of_public, of_secret);
    assert_eq!(of_public.code, 0);
    let key: qvpn_identity::PublicIdentity = public.out.trim().parse().unwrap();
    assert_eq!(of_public.out, format!("{}\n", key.fingerprint()));
    // Each key is different, and neither a missing line feed nor additional white space matters.
    assert_ne!(run(dir(), &["genkey"]).out, secret.out);
    let loose = format!("  {}  \n\n", secret.out.trim());
    assert_eq!(run_with_input(dir(), &["pubkey"], loose.as_bytes()), public);
}

#[test]
fn a_pre_shared_key_is_as_wg_has_it() {
    let (one, two) = (run(dir(), &["genpsk"]), run(dir(), &["genpsk"]));
    assert_eq!((one.code, one.out.len()), (0, 45));
    assert_ne!(one.out, two.out);
    assert!(qvpn_identity::Psk::from_text(&one.out).is_ok());
}

#[test]
fn what_is_no_key_is_refused_in_one_line() {
    let public = {
        let secret = run(dir(), &["genkey"]).out;
        run_with_input(dir(), &["pubkey"], secret.as_bytes()).out
    };
    let long = vec![b'x'; 10_000];
    let rows: [(&str, &[u8], &str); 9] = [
        ("pubkey", b"", "the key is empty"),
        ("pubkey", b"\n", "the key is empty"),
        ("pubkey", public.as_bytes(), "expected a secret key, but this is a public key"),
        ("pubkey", b"eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=", "WireGuard key"),
        ("pubkey", b"qvpn1-secret-AAAA", "copy the whole line"),
        ("pubkey", b"\xff\xfe", "expected a secret key"),
        ("pubkey", &long, "the input is too long to be a key"),
        ("fingerprint", b"hello", "expected a public key"),
        ("fingerprint", b"qvpn1-secret-AAAA", "a secret key has"),
    ];
    for (command, input, words) in rows {
        let run = run_with_input(dir(), &[command], input);
        assert_eq!((run.code, run.out.as_str()), (1, ""), "{run:?}");
        assert!(run.err.contains(words) && run.err.lines().count() == 1, "{words}: {run:?}");
    }
}

#[test]
fn a_secret_in_a_file_for_everybody_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    for (mode, warned) in [(0o644, true), (0o602, true), (0o600, false), (0o640, false)] {
        let file = fs::File::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for command in ["genkey", "genpsk"] {
            let out = ctl(dir.path(), &[command])
                .stdout(file.try_clone().unwrap())
                .stderr(Stdio::piped())
                .output()
                .unwrap();
            let run = Run::from(out);
            assert_eq!(run.code, 0);
            let expected = format!(
                "qvpn-ctl: warning: the secret is written to a file that everybody can access (mode \
                 {mode:04o}); better: install -m 0640 -g qvpn /dev/null "
            );
            assert_eq!(run.err.starts_with(&expected), warned, "{mode:o}: {run:?}");
        }
    }
    assert!(fs::read_to_string(&path).unwrap().starts_with("qvpn1-secret-"));
}
