//! Runs each command that contacts a daemon against sockets without a daemon, of another program, or without
//! access: it must print one line that says what to do, exit with the code that scripts rely on, print
//! nothing on standard output, and leave the config as it was. Commands that print also run on a terminal of
//! 20 columns, and with `NO_COLOR`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use qvpn_api::config::{QkdPolicy, Role, Suite};
use qvpn_api::control::{PeerSummary, Reply};
use qvpn_api::status::{InterfaceStatus, PeerStatus, Status};

use super::fake::Fake;
use super::show::on_terminal_of;
use super::status::{degraded, peer_up};
use super::{Run, ctl, run, run_with_input};

/// All commands that contact the daemon of qvpn0 and can run in a pipe.
const COMMANDS: [&[&str]; 20] = [
    &["show"],
    &["show", "qvpn0"],
    &["show", "qvpn0", "site-b"],
    &["show", "--brief"],
    &["show", "--json"],
    &["rekey", "qvpn0"],
    &["rekey", "qvpn0", "site-b"],
    &["reload", "qvpn0"],
    &["peer", "list", "qvpn0"],
    &["peer", "list", "qvpn0", "--json"],
    &[
        "peer",
        "add",
        "qvpn0",
        "büro",
        "--public-key",
        NEW_KEY,
        "--qkd",
        "off",
        "--allowed-ips",
        "10.30.0.0/16",
    ],
    &["peer", "add", "qvpn0", "büro", "--public-key", NEW_KEY, "--qkd", "off", "--allowed-ips", "", "--save"],
    &["peer", "set", "qvpn0", "site-b", "--qkd", "off"],
    &["peer", "set", "qvpn0", "site-b", "--qkd", "off", "--save"],
    &["peer", "remove", "qvpn0", "site-b", "--save"],
    &["metrics", "qvpn0"],
    &["metrics", "qvpn0", "--json"],
    &["events", "qvpn0"],
    &["events", "qvpn0", "--json"],
    &["events", "qvpn0", "--follow"],
];
/// A placeholder for a public key that the test generates.
const NEW_KEY: &str = "NEW";

fn public_key(dir: &Path) -> String {
    let secret = run(dir, &["genkey"]).out;
    run_with_input(dir, &["pubkey"], secret.as_bytes()).out.trim().to_owned()
}

/// Runs them all in `dir`, where something answers or nothing does.
fn all_say(dir: &Path, what: &str, code: i32, words: &str) {
    let config = dir.join("qvpn0.toml");
    // `--save` writes only a config that would be valid.
    let own = dir.join("qvpn0.key");
    fs::write(&own, run(dir, &["genkey"]).out).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    let key = public_key(dir);
    let text = format!(
        "# ours\n[interface]\n\n[[peer]] # Bonn\nname = \"site-b\"\npublic_key = \"{key}\"\nqkd = \
         \"off\"\nallowed_ips = []\n"
    );
    fs::write(&config, &text).unwrap();
    let new = public_key(dir);
    let files = || {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    for args in COMMANDS {
        let args: Vec<&str> = args.iter().map(|word| if *word == NEW_KEY { &*new } else { *word }).collect();
        let run = run(dir, &args);
        assert_eq!(
            (run.code, run.out.as_str(), run.err.lines().count()),
            (code, "", 1),
            "{what}: {args:?}: {run:?}"
        );
        assert!(run.err.starts_with("qvpn-ctl: ") && run.err.contains(words), "{what}: {args:?}: {run:?}");
        assert_eq!(fs::read_to_string(&config).unwrap(), text, "{what}: {args:?}");
    }
    assert_eq!(files(), before, "{what}");
}

#[test]
fn each_command_prints_one_line_for_any_reply() {
    let none = tempfile::tempdir().unwrap();
    all_say(none.path(), "no daemon", 4, "systemctl start qvpn@qvpn0");
    let left = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(left.path().join("qvpn0.sock")).unwrap());
    all_say(left.path(), "a socket that was left", 4, "the daemon of qvpn0 is gone");
    let rows: [(&str, &[u8], i32, &str); 7] = [
        ("silence", b"", 4, "closed the connection without a whole answer"),
        ("half an answer", br#"{"v":1,"reply":"sh"#, 4, "closed the connection without a whole answer"),
        ("a web server", b"HTTP/1.1 400 Bad Request\r\n\r\n", 4, "is not a qvpn daemon of this version"),
        ("rubbish", b"\xff\xfe\x00\x1b[31m\n", 4, "is not a qvpn daemon of this version"),
        ("an answer that nobody asked for", b"{\"v\":1,\"reply\":\"dance\"}\n", 4, "is not a qvpn daemon"),
        ("a newer daemon", b"{\"v\":2,\"reply\":\"peers\",\"body\":[]}\n", 1, "install the same version"),
        (
            "an older daemon",
            b"{\"v\":1,\"reply\":\"error\",\"body\":{\"code\":\"malformed\",\"message\":\"unknown \
             variant\"}}\n",
            1,
            "it is older than this qvpn-ctl: `systemctl restart qvpn@qvpn0`",
        ),
    ];
    for (what, answer, code, words) in rows {
        let dir = tempfile::tempdir().unwrap();
        let _fake = Fake::raw(dir.path(), "qvpn0", answer);
        all_say(dir.path(), what, code, words);
    }
}

/// Runs as the user nobody if this is root, who may use every socket.
#[test]
fn each_command_says_who_may_use_the_socket() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o755);
    let _fake = Fake::new(dir.path(), "qvpn0", &[]);
    mode(&dir.path().join("qvpn0.sock"), 0o000);
    let program = dir.path().join("qvpn-ctl");
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_qvpn-ctl")).arg(&program).status();
    assert!(copied.unwrap().success());
    for args in COMMANDS {
        let mut command = std::process::Command::new(&program);
        command.args(args).env_clear().env("QVPN_SOCKET_DIR", dir.path()).env("QVPN_CONFIG_DIR", dir.path());
        if nix::unistd::Uid::effective().is_root() {
            command.uid(65534);
        }
        let run = Run::from(command.output().unwrap());
        assert_eq!((run.code, run.out.as_str(), run.err.lines().count()), (4, "", 1), "{args:?}: {run:?}");
        assert!(run.err.contains("run as root, or let root name you in a section [access]"), "{run:?}");
    }
}

#[test]
fn printed_values_never_overflow_their_columns() {
    let dir = tempfile::tempdir().unwrap();
    let full = || std::process::Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    for (args, reply) in answered() {
        let _fake = Fake::new(dir.path(), "qvpn0", &[reply]);
        let output =
            ctl(dir.path(), args).stdout(full()).stderr(std::process::Stdio::piped()).output().unwrap();
        let run = Run::from(output);
        assert_eq!((run.code, run.err.lines().count()), (1, 1), "{args:?}: {run:?}");
        assert!(run.err.contains("can't write the output: No space left on device"), "{args:?}: {run:?}");
        fs::remove_file(dir.path().join("qvpn0.sock")).unwrap();
    }
}

/// Commands that print, each with the daemon's replies.
fn answered() -> Vec<(&'static [&'static str], Reply)> {
    let wide = PeerStatus { name: "東京-büro".into(), ..peer_up() };
    let interface = InterfaceStatus { peers: [vec![wide], degraded().peers].concat(), ..degraded() };
    let peer = PeerSummary {
        name: "東京-büro".into(),
        public_key: "k".into(),
        fingerprint: "kaar-594d-2efa".into(),
        other_public_key: None,
        endpoint: None,
        allowed_ips: vec!["10.20.0.0/16".into(), "fd20::/64".into()],
        qkd: QkdPolicy::Required,
        role: Role::Auto,
        suite: Suite::ChaCha20Poly1305,
    };
    let status = || Reply::Show(Status::new(vec![interface.clone()]));
    let peers = || Reply::Peers(vec![peer.clone()]);
    vec![
        (&["show"], status()),
        (&["show", "--brief"], status()),
        (&["show", "--json"], status()),
        (&["show", "qvpn0", "東"], status()),
        (&["peer", "list", "qvpn0"], peers()),
        (&["peer", "list", "qvpn0", "--json"], peers()),
        (&["metrics", "qvpn0"], Reply::Metrics { text: "x 1\n".into() }),
        (&["rekey", "qvpn0"], Reply::Rekey { peers: vec!["東京-büro".into()] }),
        (
            &["reload", "qvpn0"],
            Reply::Reload { changes: vec!["peer 東京-büro changed".into()], kept: vec![] },
        ),
    ]
}

#[test]
fn twenty_columns_and_no_color_suit_each_command_that_reads() {
    let dir = tempfile::tempdir().unwrap();
    for (args, reply) in answered() {
        let _fake = Fake::new(dir.path(), "qvpn0", &[reply]);
        let in_pipe = run(dir.path(), args);
        assert_eq!(in_pipe.code, 0, "{in_pipe:?}");
        assert!(!in_pipe.out.contains('\u{1b}'), "{in_pipe:?}");
        let narrow = on_terminal_of(dir.path(), args, &[("NO_COLOR", "1"), ("TERM", "xterm")], 20);
        assert!(!narrow.contains('\u{1b}'), "{args:?}: {narrow}");
        // Narrow or in a pipe, the words are the same; only the headings of a table, which are in capitals,
        // may be left out.
        let words = |text: &str| {
            text.split_whitespace().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let (narrow, in_pipe) = (words(&narrow), words(&in_pipe.out));
        let lost: Vec<_> = in_pipe
            .difference(&narrow)
            .filter(|word| word.chars().any(|c| c.is_lowercase() || c.is_numeric()))
            .collect();
        assert!(lost.is_empty(), "{args:?}: {lost:?} of {in_pipe:?}, not in {narrow:?}");
        fs::remove_file(dir.path().join("qvpn0.sock")).unwrap();
    }
}
