//! Man pages and completions, which come from the same source as `--help`.

use std::fs;
use std::process::Command;

use qvpn_api::config::{QkdPolicy, REFERENCE, Role, Suite};
use qvpn_api::control::{PeerSummary, Reply};

use super::fake::Fake;
use super::{ctl, run};

fn peers() -> Reply {
    let peer = |name: &str| PeerSummary {
        name: name.into(),
        public_key: "k".into(),
        fingerprint: "f".into(),
        endpoint: None,
        allowed_ips: vec![],
        qkd: QkdPolicy::Off,
        role: Role::Auto,
        suite: Suite::Chacha20Poly1305,
    };
    Reply::Peers(vec![peer("site-b"), peer("site-c"), peer("depot")])
}

#[test]
fn shells_complete_interfaces_and_peers() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[peers()]);
    fs::write(dir.path().join("office.toml"), "").unwrap();
    // What each shell's script asks, by its own variables.
    let ask = |shell: &str, words: &[&str]| {
        let mut command = ctl(dir.path(), &[]);
        command
            .env("COMPLETE", shell)
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
            .env("_CLAP_IFS", "\n");
        command.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("_CLAP_COMPLETE_SPACE", "true");
        let output = command.args(["--", "qvpn-ctl"]).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let words = text.lines().map(|line| line.split(['\t', ':']).next().unwrap().trim().to_owned());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>()
    };
    for shell in ["bash", "zsh", "fish"] {
        assert_eq!(ask(shell, &["show", "q"]), ["qvpn0"], "{shell}");
        assert_eq!(ask(shell, &["rekey", "o"]), ["office"], "{shell}");
        assert_eq!(ask(shell, &["rekey", "qvpn0", "site"]), ["site-b", "site-c"], "{shell}");
        assert_eq!(ask(shell, &["peer", "remove", "qvpn0", "d"]), ["depot"], "{shell}");
        assert_eq!(ask(shell, &["unb"]), ["unblock"], "{shell}");
    }
}

#[test]
fn bash_takes_the_script() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[peers()]);
    let script = run(dir.path(), &["completions", "bash"]);
    assert_eq!((script.code, script.err.as_str()), (0, ""));
    let file = dir.path().join("script");
    fs::write(&file, script.out).unwrap();
    let test = "PATH=$(dirname \"$1\"):$PATH; . \"$2\"; function=$(complete -p qvpn-ctl | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
        COMP_WORDS=(qvpn-ctl show qvpn0 site); COMP_CWORD=3; COMP_TYPE=9; $function qvpn-ctl site qvpn0; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", test, "bash", env!("CARGO_BIN_EXE_qvpn-ctl")])
        .arg(&file)
        .env("QVPN_SOCKET_DIR", dir.path())
        .env("QVPN_CONFIG_DIR", dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "site-b site-c", "{output:?}");
    for shell in ["zsh", "fish"] {
        assert!(run(dir.path(), &["completions", shell]).out.contains("COMPLETE"), "{shell}");
    }
}

#[test]
fn each_command_and_each_key_has_its_page() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    assert_eq!(run(dir.path(), &["man", pages.to_str().unwrap()]).code, 0);
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap().replace("\\-", "-");
    assert!(page("qvpn-daemon.8").contains("--config"));
    assert!(page("qvpn-ctl.1").contains("Exit codes"));
    for (name, option) in [
        ("qvpn-ctl-show.1", "--brief"),
        ("qvpn-ctl-peer-add.1", "--allowed-ips"),
        ("qvpn-ctl-kms-check.1", "--no-take"),
    ] {
        assert!(page(name).contains(option), "{name}");
    }
    let config = page("qvpn.toml.5");
    for section in REFERENCE {
        for key in section.keys {
            assert!(
                config.contains(key.name) && config.contains(section.title),
                "{} {}",
                section.title,
                key.name
            );
        }
    }
}
