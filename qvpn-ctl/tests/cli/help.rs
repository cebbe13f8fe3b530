//! Man pages and completions, which come from the same source as `--help`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use qvpn_api::config::{QkdPolicy, REFERENCE, Role, Suite};
use qvpn_api::control::{PeerSummary, Reply};

use super::fake::Fake;
use super::{ctl, run};

fn peers() -> Reply {
    let peer = |name: &str| PeerSummary {
        name: name.into(),
        public_key: "k".into(),
        fingerprint: "f".into(),
        other_public_key: None,
        endpoint: None,
        allowed_ips: vec![],
        qkd: QkdPolicy::Off,
        role: Role::Auto,
        suite: Suite::ChaCha20Poly1305,
    };
    Reply::Peers(vec![peer("site-b"), peer("site-c"), peer("depot")])
}

#[test]
fn shells_complete_interfaces_and_peers() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[peers()]);
    fs::write(dir.path().join("office.toml"), "").unwrap();
    // The query that each shell's script sends, in its own variables.
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
    let test = "PATH=$(dirname \"$1\"):$PATH; . \"$2\"; function=$(complete -p qvpn-ctl | sed 's/.*-F \\([^ \
        ]*\\).*/\\1/'); COMP_WORDS=(qvpn-ctl show qvpn0 site); COMP_CWORD=3; COMP_TYPE=9; $function qvpn-ctl \
        site qvpn0; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", test, "bash", env!("CARGO_BIN_EXE_qvpn-ctl")])
        .arg(&file)
        .env("QVPN_SOCKET_DIR", dir.path())
        .env("QVPN_CONFIG_DIR", dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "site-b site-c", "{output:?}");
}

/// A shell that finds our program before all others, with the scripts in `scripts`, where packages install
/// them.
fn shell(dir: &Path, name: &str, args: &[&str]) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_qvpn-ctl")).parent().unwrap().display().to_string();
    let mut command = Command::new(name);
    command.args(args).current_dir(dir).env("HOME", dir).env("TERM", "dumb");
    command.env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap()));
    command.env("QVPN_SOCKET_DIR", dir).env("QVPN_CONFIG_DIR", dir).stdin(Stdio::null());
    let output = command.output();
    let output = output.unwrap_or_else(|e| panic!("{name}: {e}; scripts/deps.sh system installs it"));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn fish_takes_the_script_from_where_the_package_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[peers()]);
    fs::write(dir.path().join("qvpn-ctl.fish"), run(dir.path(), &["completions", "fish"]).out).unwrap();
    let test = "set fish_complete_path $PWD; \
        for words in 'show q' 'show qvpn0 site' 'peer remove qvpn0 d'; complete -C \"qvpn-ctl $words\"; end";
    assert_eq!(shell(dir.path(), "fish", &["--no-config", "-c", test]), "qvpn0\nsite-b\nsite-c\ndepot\n");
}

#[test]
fn zsh_takes_the_script_from_where_the_package_has_it_and_by_source() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::new(dir.path(), "qvpn0", &[peers()]);
    let directory = dir.path().join("site-functions");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("_qvpn-ctl"), run(dir.path(), &["completions", "zsh"]).out).unwrap();
    // A shell on its own terminal, in which the tab key is pressed: the output is what a person would see.
    let test = r"
        zmodload zsh/zpty
        zpty typist zsh -f -i
        zpty -w typist 'source rc; echo rea''dy'
        zpty -r -m typist seen '*ready*'
        zpty -w -n typist $'qvpn-ctl show qvpn0 d\t'
        zpty -r -m typist seen '*show qvpn0 depot*'
        zpty -w -n typist $'\C-uqvpn-ctl rekey qvpn0 site-\t\t'
        zpty -r -m typist seen '*site-b*site-c*' && echo both
        zpty -d typist";
    let init = "autoload -U compinit; compinit -u -D";
    for way in [
        format!("fpath=($PWD/site-functions $fpath); {init}"),
        format!("{init}; source site-functions/_qvpn-ctl"),
    ] {
        fs::write(dir.path().join("rc"), &way).unwrap();
        assert_eq!(shell(dir.path(), "timeout", &["20", "zsh", "-f", "-c", test]), "both\n", "{way}");
    }
}

#[test]
fn each_command_and_each_key_has_its_page() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    assert_eq!(run(dir.path(), &["man", pages.to_str().unwrap()]).code, 0);
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap().replace("\\-", "-");
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
