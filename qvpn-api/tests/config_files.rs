//! What is checked on the machine: the files that a config names, and the other configs in its directory.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use qvpn_api::Config;
use qvpn_identity::{Psk, SecretIdentity};
use rand_core::SeedableRng;

struct Site {
    dir: tempfile::TempDir,
    identity: SecretIdentity,
}

impl Site {
    /// Makes a directory with valid files for everything that the config names.
    fn new() -> Self {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        let site = Self { dir: tempfile::tempdir().unwrap(), identity: SecretIdentity::generate(&mut rng) };
        let other = SecretIdentity::generate(&mut rng).public().to_string();
        site.write("qvpn0.key", site.identity.to_text().expose(), 0o600);
        site.write("b.psk", Psk::generate(&mut rng).to_text().expose(), 0o600);
        site.write("ca.pem", b"ca", 0o644);
        site.write("a.pem", b"cert", 0o644);
        site.write("a.key", b"key", 0o600);
        site.write("qvpn0.toml", Self::config(&other).as_bytes(), 0o644);
        site
    }

    fn config(peer_key: &str) -> String {
        format!(
            "[interface]\nprivate_key_file = \"qvpn0.key\"\n[kms]\nsae_id = \"A\"\n[[kms.kme]]\nname \
             = \"k\"\n\
             url = \"https://k\"\nca_file = \"ca.pem\"\ncert_file = \"a.pem\"\nkey_file \
             = \"a.key\"\n[[peer]]\n\
             name = \"b\"\npublic_key = \"{peer_key}\"\nsae_id = \"B\"\nallowed_ips = []\npreshared_key_file \
             = \"b.psk\"\n"
        )
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load(&self) -> Config {
        Config::load(&self.dir.path().join("qvpn0.toml")).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Returns the errors of `check_files`, without the directory.
    fn errors(&self) -> String {
        let errors = self.load().check_files().expect_err("something is wrong here").to_string();
        errors.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn good_files_are_taken_and_read() {
    let site = Site::new();
    let config = site.load();
    config.check_files().unwrap();
    assert_eq!(config.read_private_key().ok().unwrap().public(), site.identity.public());
    assert!(config.read_psk(&config.peers[0]).ok().unwrap().is_some());
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let site = Site::new();
    for mode in [0o644, 0o604, 0o602, 0o660, 0o601] {
        site.chmod("qvpn0.key", mode);
        let errors = site.errors();
        let who = if mode & 7 == 0 { "its group" } else { "everybody" };
        let can = if mode & 0o44 == 0 { "reach" } else { "read" };
        assert_eq!(
            errors,
            format!(
                "qvpn0.toml:2:20: {who} can {can} the private key qvpn0.key (mode {mode:04o}); run `chmod \
                 0600 qvpn0.key`, or `chown root:qvpn qvpn0.key && chmod 0640 qvpn0.key`"
            )
        );
        assert!(site.load().read_private_key().is_err());
    }
    for mode in [0o600, 0o400] {
        site.chmod("qvpn0.key", mode);
        site.load().check_files().unwrap();
    }
}

#[test]
fn each_bad_file_is_named_at_its_line_all_at_once() {
    let site = Site::new();
    for name in ["a.pem", "b.psk"] {
        fs::remove_file(site.dir.path().join(name)).unwrap();
    }
    site.chmod("a.key", 0o644);
    fs::remove_file(site.dir.path().join("ca.pem")).unwrap();
    fs::create_dir(site.dir.path().join("ca.pem")).unwrap();
    site.write("qvpn0.key", b"qvpn1-not-a-secret", 0o600);
    assert_eq!(
        site.errors().lines().collect::<Vec<_>>(),
        [
            "qvpn0.toml:2:20: qvpn0.key holds no private key: expected a secret key, but this is a public \
             key; public keys go into `public_key`, secret keys into `private_key_file`",
            "qvpn0.toml:8:11: the CA certificate ca.pem is not a file; write the path of a file",
            "qvpn0.toml:9:13: can't open the client certificate a.pem: no such file or directory; put it \
             there, or write the right path",
            "qvpn0.toml:10:12: everybody can read the client certificate's key a.key (mode 0644); run \
             `chmod 0600 a.key`, or `chown root:qvpn a.key && chmod 0640 a.key`",
            "qvpn0.toml:16:22: can't open the pre-shared key b.psk: no such file or directory; make one with \
             `install -m 0640 -g qvpn /dev/null b.psk && qvpn-ctl genpsk > b.psk`, and copy it to the peer",
        ]
    );
}

#[test]
fn no_key_file_makes_the_check_wait_or_fill_memory() {
    let site = Site::new();
    let key = site.dir.path().join("qvpn0.key");
    site.write("qvpn0.key", &[b'x'; 5000], 0o600);
    assert!(site.errors().contains("qvpn0.key is too long to be a private key"), "{}", site.errors());
    site.write("qvpn0.key", b"", 0o600);
    assert!(site.errors().contains("the key is empty"), "{}", site.errors());
    site.write("qvpn0.key", b"\xff\xfe\0\0", 0o600);
    assert!(site.errors().contains("qvpn0.key holds no private key"), "{}", site.errors());
    fs::remove_file(&key).unwrap();
    assert!(site.errors().contains("&& qvpn-ctl genkey >"), "{}", site.errors());
    nix::unistd::mkfifo(&key, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(site.errors().contains("qvpn0.key is not a file"), "{}", site.errors());
}

#[test]
fn what_the_daemon_cannot_read_is_named_at_its_line() {
    let site = Site::new();
    let config = site.load();
    let named: Vec<_> =
        config.named_files().map(|f| (f.at.line, f.kind, f.path.file_name().unwrap())).collect();
    let expected = [
        (2, "private key", "qvpn0.key"),
        (16, "pre-shared key", "b.psk"),
        (8, "CA certificate", "ca.pem"),
        (9, "client certificate", "a.pem"),
        (10, "client certificate's key", "a.key"),
    ];
    assert_eq!(named, expected.map(|(line, kind, name)| (line, kind, std::ffi::OsStr::new(name))));
    config.check_readable(|_| true).unwrap();
    let shut = ["qvpn0.toml", "qvpn0.key", "a.key"];
    let errors = config.check_readable(|path| !shut.iter().any(|name| path.ends_with(name))).unwrap_err();
    let errors = errors.to_string().replace(&format!("{}/", site.dir.path().display()), "");
    let fix = |name: &str| {
        format!(
            "run `chown root:qvpn {name} && chmod 0640 {name}`; if that is so already, a directory above \
             it is closed, and `namei -l {name}` shows which"
        )
    };
    assert_eq!(
        errors.lines().collect::<Vec<_>>(),
        [
            format!(
                "qvpn0.toml: the daemon, which runs as the user qvpn, can't read the config qvpn0.toml; {}",
                fix("qvpn0.toml")
            ),
            format!(
                "qvpn0.toml:2:20: the daemon, which runs as the user qvpn, can't read the private key \
                 qvpn0.key; {}",
                fix("qvpn0.key")
            ),
            format!(
                "qvpn0.toml:10:12: the daemon, which runs as the user qvpn, can't read the client \
                 certificate's key a.key; {}",
                fix("a.key")
            ),
        ]
    );
}

#[test]
fn our_own_public_key_is_no_peer() {
    let site = Site::new();
    site.write("qvpn0.toml", Site::config(&site.identity.public().to_string()).as_bytes(), 0o644);
    let expected = "qvpn0.toml:13:14: the public_key of peer \"b\" is our own; write the line that \
     `qvpn-ctl pubkey` prints at the other site";
    assert_eq!(site.errors(), expected);
    assert!(site.load().check_own_key(site.identity.public()).is_err());
}

#[test]
fn a_config_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str| Config::load(&dir.path().join(name)).unwrap_err().to_string();
    assert!(error("none.toml").contains("can't open the config"), "{}", error("none.toml"));
    fs::create_dir(dir.path().join("directory.toml")).unwrap();
    assert!(error("directory.toml").contains("is not a file"), "{}", error("directory.toml"));
    fs::write(dir.path().join("latin.toml"), b"[interface]\nname = \"b\xfcro\"\n").unwrap();
    assert!(error("latin.toml").contains("line 2 is not UTF-8 text; save the file as UTF-8"));
}

#[test]
fn other_interfaces_share_no_port_name_or_metrics_address() {
    let parse = |name: &str, lines: &str| {
        Config::parse(Path::new(&format!("/etc/qvpn/{name}.toml")), &format!("[interface]\n{lines}\n"))
            .unwrap()
    };
    let ours = parse("qvpn0", "listen_port = 51820\nlanes = 4\nmetrics_listen = \"127.0.0.1:9790\"");
    let rows = [
        (parse("qvpn1", "listen_port = 51824"), None),
        (parse("qvpn1", "listen_port = 51816\nlanes = 4"), None),
        (
            parse("qvpn1", "listen_port = 51823\nlanes = 2"),
            Some(
                "2:15: UDP ports 51820 to 51823 overlap UDP ports 51823 to 51824 of qvpn1 \
                 (/etc/qvpn/qvpn1.toml); write `listen_port = 51825`",
            ),
        ),
        (
            parse("qvpn1", "listen_port = 51817\nlanes = 4"),
            Some(
                "2:15: UDP ports 51820 to 51823 overlap UDP ports 51817 to 51820 of qvpn1 \
                 (/etc/qvpn/qvpn1.toml); write `listen_port = 51821`",
            ),
        ),
        (
            parse("qvpn1", "name = \"qvpn0\"\nlisten_port = 1"),
            Some(
                "1:1: the interface qvpn0 is described by /etc/qvpn/qvpn1.toml too; give one of them \
                 another `name`, or remove one file",
            ),
        ),
        (
            parse("qvpn1", "listen_port = 1\nmetrics_listen = \"127.0.0.1:9790\""),
            Some(
                "4:18: metrics_listen 127.0.0.1:9790 is qvpn1's already (/etc/qvpn/qvpn1.toml); write \
                 another port",
            ),
        ),
    ];
    for (other, expected) in rows {
        let found = ours.check_other_interfaces(&[other]).err().map(|e| e.to_string());
        assert_eq!(found, expected.map(|e| format!("/etc/qvpn/qvpn0.toml:{e}")));
    }
    let full = parse("high", "listen_port = 65535");
    let error = full.check_other_interfaces(&[parse("qvpn1", "listen_port = 65535")]).unwrap_err();
    assert!(error.to_string().ends_with("write a lower `listen_port` that is free"));
}

#[test]
fn one_prefix_leads_into_one_tunnel_of_the_host() {
    let site = Site::new();
    let ours = site.load();
    let peer = |name: &str, port: u16, more: &str, prefix: &str| {
        let text = String::from_utf8(fs::read(&ours.path).unwrap()).unwrap();
        let text = text.replace("[interface]\n", &format!("[interface]\nlisten_port = {port}\n{more}\n"));
        let text = text.replace("allowed_ips = []", &format!("allowed_ips = [\"fd00::/64\", \"{prefix}\"]"));
        Config::parse(format!("/etc/qvpn/{name}.toml").as_ref(), &text).unwrap_or_else(|e| panic!("{e}"))
    };
    let first = peer("a", 1000, "", "10.20.0.0/16");
    let errors =
        first.check_other_interfaces(&[peer("b", 2000, "", "10.20.0.0/16")]).unwrap_err().to_string();
    assert!(errors.contains("10.20.0.0/16 leads into the tunnel b already (/etc/qvpn/b.toml)"), "{errors}");
    assert!(errors.contains("fd00::/64 leads into the tunnel b already"), "{errors}");
    let other = |more: &str, prefix: &str| {
        let mut other = peer("b", 2000, more, prefix);
        other.peers[0].allowed_ips.retain(|net| net.addr().is_ipv4());
        other
    };
    // Nested prefixes are accepted, and so are those of another table.
    for fine in [
        other("", "10.20.4.0/24"),
        other("table = 77", "10.20.0.0/16"),
        other("table = \"off\"", "10.20.0.0/16"),
    ] {
        first.check_other_interfaces(&[fine]).unwrap();
    }
}

#[test]
fn other_interfaces_are_the_readable_configs_of_the_directory() {
    let site = Site::new();
    site.write("qvpn1.toml", b"[interface]\n", 0o644);
    site.write("broken.toml", b"[interf", 0o644);
    site.write("notes.txt", b"[interface]\n", 0o644);
    std::os::unix::fs::symlink(site.dir.path().join("qvpn0.toml"), site.dir.path().join("alias.toml"))
        .unwrap();
    let config = site.load();
    let others = config.other_interfaces();
    assert_eq!(others.iter().map(|c| c.interface.name.as_str()).collect::<Vec<_>>(), ["qvpn1"]);
    let error = config.check_other_interfaces(&others).unwrap_err().to_string();
    assert!(error.contains("UDP port 51820 overlaps UDP port 51820 of qvpn1"), "{error}");
}

#[test]
fn the_prefixes_of_a_refused_config_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qvpn0.toml");
    let partial = |text: &str| {
        fs::write(&path, text).unwrap();
        assert!(Config::load(&path).is_err(), "{text}");
        let read = Config::load_partial(&path);
        let prefixes: Vec<_> = read.allowed_ips.iter().map(ToString::to_string).collect();
        (read.interface.map(|i| i.listen_port), prefixes.join(" "))
    };
    let peer = "[[peer]]\nallowed_ips = [\"10.20.0.1/16\", \"oops\", \"::/0\"]\nname = \"b\nkey =\n";
    assert_eq!(
        partial(&format!("[interface]\nlisten_port = 7\n{peer}")),
        (Some(7), "10.20.0.0/16 ::/0".into())
    );
    assert_eq!(partial(&format!("[interface]\nlisten_port = 0\n{peer}")), (None, "10.20.0.0/16 ::/0".into()));
    assert_eq!(partial("[interf"), (None, String::new()));
    fs::remove_file(&path).unwrap();
    assert!(Config::load_partial(&path).allowed_ips.is_empty());
}
