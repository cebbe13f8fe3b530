//! `block` and `unblock`: refusals on every machine, and real routes in a separate network namespace if the
//! machine allows one.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Run, ctl, run, run_with_input};

fn config(dir: &Path, name: &str, allowed: &str, more: &str) -> String {
    let secret = run(dir, &["genkey"]).out;
    let key = run_with_input(dir, &["pubkey"], secret.as_bytes()).out;
    let file = dir.join(name);
    let text = format!(
        "[interface]\n{more}\n[[peer]]\nname = \"b\"\npublic_key = \"{}\"\nallowed_ips = [{allowed}]\nqkd \
         = \"off\"\n",
        key.trim()
    );
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn a_refused_config_blocks_nothing_and_ends_with_3() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("qvpn0.toml");
    fs::write(&file, "[interface]\nlanes = 0\n").unwrap();
    for args in [&["block", file.to_str().unwrap()][..], &["unblock", "qvpn0"], &["unblock", "qvpn1"]] {
        let run = run(dir.path(), args);
        assert_eq!((run.code, run.out.as_str()), (3, ""), "{run:?}");
    }
}

#[test]
fn a_config_that_wants_no_block_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "qvpn0.toml", "\"10.20.0.0/16\"", "table = \"off\"");
    let run = run(dir.path(), &["block", &file]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(
        run.out,
        "qvpn0: nothing is blocked, because its config says table = \"off\" and has no `protect`\n"
    );
}

/// Runs the program in a new network namespace with `unshare`; returns `None` if the machine forbids that.
fn in_namespace(dir: &Path, script: &str) -> Option<Run> {
    let unshare = ["--user", "--map-root-user", "--net", "--", "sh", "-euc"];
    let allowed = Command::new("unshare").args(unshare).arg("ip link set lo up").output();
    if !allowed.is_ok_and(|o| o.status.success()) {
        return None;
    }
    let program = ctl(dir, &[]);
    let mut command = Command::new("unshare");
    command.args(unshare).arg(script);
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap());
    }
    command.env("CTL", program.get_program());
    Some(command.output().unwrap().into())
}

#[test]
fn blocks_are_put_in_place_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "qvpn0.toml", "\"10.20.0.0/16\", \"fd20::/64\"", "");
    config(dir.path(), "qvpn1.toml", "\"0.0.0.0/0\"", "listen_port = 51830");
    config(dir.path(), "qvpn2.toml", "\"10.30.0.0/16\"", "on_stop = \"open\"\nlisten_port = 51840");
    let broken = "[interface]\nlanes = 0\n[[peer]]\nallowed_ips = [\"10.40.0.1/16\"]\n";
    fs::write(dir.path().join("broken.toml"), broken).unwrap();
    let script = "
        ip link set lo up
        look() { ip route show table all type unreachable; ip -6 route show table all type unreachable; }
        code=0; $CTL block --all || code=$?
        echo code $code; look
        echo again; $CTL block $QVPN_CONFIG_DIR/qvpn0.toml
        echo one; $CTL unblock qvpn0 >/dev/null; look
        echo all; $CTL unblock >/dev/null; look; ip rule; $CTL unblock
    ";
    let Some(run) = in_namespace(dir.path(), script) else {
        eprintln!("this machine allows no network namespace, so the routes were not tried");
        return;
    };
    assert_eq!(run.code, 0, "{run:?}");
    // The broken config is reported, and blocked as far as it can be read; the others are blocked too.
    assert!(run.err.contains("broken.toml:2:9: `lanes` must be"), "{run:?}");
    let part =
        |from: &str, to: &str| run.out.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let first = part("code 3\n", "again\n");
    for prefix in [
        "unreachable 10.20.0.0/16 ",
        "unreachable 10.40.0.0/16 ",
        "unreachable default table ",
        "unreachable fd20::/64 ",
    ] {
        assert!(first.contains(prefix), "{prefix}: {run:?}");
    }
    assert!(!first.contains("10.30.0.0/16"), "{run:?}");
    assert!(run.out.contains("qvpn2: not blocked, because its config says on_stop = \"open\""), "{run:?}");
    assert_eq!(part("again\n", "one\n"), "qvpn0: blocked already\n");
    let one = part("one\n", "all\n");
    assert!(one.contains("unreachable default table ") && !one.contains("10.20.0.0/16"), "{run:?}");
    let all = run.out.split_once("all\n").unwrap().1;
    assert!(!all.contains("unreachable") && !all.contains("325"), "{run:?}");
    assert!(all.ends_with("all interfaces: nothing was blocked\n"), "{run:?}");
}
