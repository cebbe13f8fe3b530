//! Changes while the tunnel runs: peers are added, changed and removed, configs are reloaded and refused, and
//! everything else is left alone. With `--save` the file changes in the same way, or not at all.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Outer, Site, Stream, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);

/// `qvpn-ctl peer WORDS` at gateway A; its exit code, output and errors.
fn peer(lab: &Lab, gateway: &Gateway<'_>, words: &[&str]) -> (i32, String, String) {
    peer_in(lab.gw_a.dir(), gateway, words)
}

fn peer_in(dir: &Path, gateway: &Gateway<'_>, words: &[&str]) -> (i32, String, String) {
    let dir = dir.display().to_string();
    let output = gateway.ctl(&[&["--config-dir", &dir, "peer"], words].concat());
    said(&output)
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Returns a public key that no machine has; it differs for each `n`.
fn stranger(n: u64) -> String {
    let mut bytes = [7u8; 80];
    bytes[..8].copy_from_slice(&(n + 1).to_le_bytes());
    bytes[40..48].copy_from_slice(&n.to_le_bytes());
    format!("qvpn1-{}", data_encoding::BASE64.encode(&bytes))
}

fn names(gateway: &Gateway<'_>) -> Vec<String> {
    gateway.show()["peers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn peers_come_change_and_go_and_a_stream_loses_nothing_alone() {
    sandbox::run("peers_come_change_and_go_and_a_stream_loses_nothing_alone", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&GatewayOptions::default());
        gateways.iter().for_each(|gateway| drop(gateway.wait_state("up", START)));
        let a = &gateways[0];
        let before = a.peer();
        let file = lab.gw_a.dir().join("qvpn0.toml");
        let text = fs::read_to_string(&file).unwrap();
        let stream = Stream { count: 16_000, rate: 2000, ..Stream::default() }.start(&lab);

        let key = stranger(1);
        let add = [
            "add",
            "qvpn0",
            "site-c",
            "--public-key",
            &key,
            "--qkd",
            "off",
            "--endpoint",
            "203.0.113.250:1",
            "--allowed-ips",
        ];
        let (code, out, _) = peer(&lab, a, &[&add[..], &["10.99.0.0/16"]].concat());
        assert_eq!((code, out.as_str()), (0, "peer site-c added\n"));
        assert_eq!(names(a), ["site-b", "site-c"]);
        let route = || lab.gw_a.run("ip route show table 29046");
        assert!(route().contains("10.99.0.0/16 dev qvpn0"), "{}", route());
        // A refused change has no effect: a name, a prefix or a key of another peer, an endpoint inside the
        // tunnel.
        let fresh = stranger(2);
        let refused: [(&[&str], i32, &str); 6] = [
            (
                &["add", "qvpn0", "site-c", "--public-key", &fresh, "--qkd", "off", "--allowed-ips", ""],
                3,
                "a peer \"site-c\" already",
            ),
            (
                &[
                    "add",
                    "qvpn0",
                    "site-d",
                    "--public-key",
                    &fresh,
                    "--qkd",
                    "off",
                    "--allowed-ips",
                    "10.20.0.0/16",
                ],
                3,
                "10.20.0.0/16",
            ),
            (&["set", "qvpn0", "site-c", "--endpoint", "10.99.0.1:1"], 3, "through the tunnel"),
            (&["set", "qvpn0", "site-c", "--rekey-interval", "9h"], 3, "9h"),
            (&["set", "qvpn0", "site", "--role", "auto"], 1, "`site` matches site-b, site-c"),
            (&["remove", "qvpn0", "site-x"], 1, "no peer has the name"),
        ];
        for (words, expected, why) in refused {
            let (code, out, err) = peer(&lab, a, words);
            assert_eq!((code, out.as_str()), (expected, ""), "{words:?}: {err}");
            assert!(err.contains(why), "{words:?}: {err}");
            assert_eq!(names(a), ["site-b", "site-c"]);
            assert!(route().contains("10.99.0.0/16 dev qvpn0"), "{}", route());
        }
        // The peer is changed by an abbreviated name, then the peer that carries the stream, and then back.
        for words in [
            &["set", "qvpn0", "site-c", "--allowed-ips", "10.98.0.0/16,10.97.0.0/16"][..],
            &["set", "qvpn0", "site-b", "--persistent-keepalive", "20s"],
            &["set", "qvpn0", "site-b", "--rekey-interval", "2s"],
            &["set", "qvpn0", "site-b", "--unset", "rekey_interval,persistent_keepalive"],
        ] {
            let (code, out, err) = peer(&lab, a, words);
            assert_eq!(code, 0, "{words:?}: {err}");
            assert!(out.ends_with(" changed\n"), "{words:?}: {out}");
        }
        assert!(
            route().contains("10.98.0.0/16 dev qvpn0") && !route().contains("10.99.0.0/16 dev"),
            "{}",
            route()
        );
        assert!(route().contains("unreachable 10.99.0.0/16"), "what a peer had stays blocked: {}", route());
        assert_eq!(peer(&lab, a, &["remove", "qvpn0", "site-c"]).1, "peer site-c removed\n");
        assert!(!route().contains("10.98.0.0/16 dev"), "{}", route());
        assert!(route().contains("unreachable 10.98.0.0/16"), "{}", route());
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "nothing was to be saved");
        let reload = |expected: (i32, &str)| {
            let (code, out, err) = said(&a.ctl(&["reload", "qvpn0"]));
            assert_eq!((code, out.as_str()), expected, "{err}");
        };
        reload((0, "nothing changed\n"));
        fs::write(&file, text.replace("[[peer]]", "[[peer]]\npersistent_keepalive = \"30s\"")).unwrap();
        let mut events = a.events();
        // The events of the past come first; this one is the last of them.
        events.line("\"changes\":[]", START);
        a.process.signal(Signal::SIGHUP);
        events.line("\"peer site-b changed\"", START);
        fs::write(&file, text.replace("[[peer]]", "[[peer]]\ncolour = 1")).unwrap();
        reload((3, ""));
        fs::write(&file, &text).unwrap();
        reload((0, "peer site-b changed\n"));

        for report in stream.finish() {
            assert_eq!(
                (report.received.lost, report.refused, report.received.duplicated),
                (0, 0, 0),
                "{report:?}"
            );
        }
        let after = a.peer();
        assert!(after["rekeys"].as_u64() > before["rekeys"].as_u64(), "the same peer went on: {after:#}");
        assert_eq!(after["rekey_failures"], before["rekey_failures"]);
    });
}

#[test]
fn a_saved_change_keeps_the_files_comments_and_a_full_disk_changes_nothing() {
    sandbox::run("a_saved_change_keeps_the_files_comments_and_a_full_disk_changes_nothing", || {
        let lab = Lab::new();
        let options = GatewayOptions { qkd: "off".to_owned(), kms: None, ..GatewayOptions::default() };
        let file = lab.configure(Site::A, &options);
        let text = format!(
            "# Berlin\n{}\n# the end\n",
            fs::read_to_string(&file).unwrap().replace("[[peer]]", "# Bonn\n[[peer]] # ours")
        );
        fs::write(&file, &text).unwrap();
        let a = lab.start_daemon(Site::A);
        let key = stranger(1);
        let add = [
            "add",
            "qvpn0",
            "büro",
            "--public-key",
            &key,
            "--qkd",
            "off",
            "--allowed-ips",
            "10.99.0.0/16",
            "--save",
        ];
        let (code, out, err) = peer(&lab, &a, &add);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert_eq!(out, format!("peer büro added\nsaved in {}\n", file.display()));
        let section = format!(
            "\n[[peer]]\nname = \"büro\"\npublic_key = \"{key}\"\nallowed_ips = [\"10.99.0.0/16\"]\nqkd \
             = \"off\"\n"
        );
        let saved = fs::read_to_string(&file).unwrap();
        assert_eq!(saved, text.replace("\n# the end\n", &format!("{section}\n# the end\n")));
        assert_eq!(said(&a.ctl(&["reload", "qvpn0"])).1, "nothing changed\n");

        // A full file system: the new file can't be written, so nothing changes.
        let small = lab.gw_a.dir().join("small");
        fs::create_dir(&small).unwrap();
        let path = small.display();
        lab.gw_a.run(&format!(
            "mount -t tmpfs -o size=16k tmpfs {path} && cp {} {path}/ && {{ cat /dev/zero > {path}/fill \
             2>/dev/null || true; }}",
            file.display()
        ));
        let there = || lab.gw_a.run(&format!("ls -A {path} && cat {path}/qvpn0.toml"));
        let before = there();
        let change = ["set", "qvpn0", "büro", "--endpoint", "203.0.113.250:1", "--save"];
        let (code, out, err) = peer_in(&small, &a, &change);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(
            err.contains("No space left on device")
                && err.contains("nothing was changed")
                && err.lines().count() == 1,
            "{err}"
        );
        assert_eq!(there(), before);
        assert!(said(&a.ctl(&["peer", "list", "qvpn0"])).1.contains("(learned)"));
        // If the daemon refuses the change, or the check of the file does, the file stays unchanged.
        let clash = ["set", "qvpn0", "büro", "--allowed-ips", "10.20.0.0/16", "--save"];
        assert_eq!(peer(&lab, &a, &clash).0, 3);
        let (code, out, _) = peer(&lab, &a, &["remove", "qvpn0", "bü", "--save", "--unblock"]);
        assert_eq!((code, out.lines().next()), (0, Some("peer büro removed")));
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        let left: Vec<_> = fs::read_dir(lab.gw_a.dir())
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .filter(|n| n.to_string_lossy().starts_with(".qvpn"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn five_thousand_peers_are_run_listed_and_changed() {
    sandbox::run("five_thousand_peers_are_run_listed_and_changed", || {
        let lab = Lab::new();
        let options = GatewayOptions { qkd: "off".to_owned(), kms: None, ..GatewayOptions::default() };
        let file = lab.configure(Site::A, &options);
        let mut text = fs::read_to_string(&file).unwrap();
        for n in 0..5000u64 {
            let net = format!("100.{}.{}.0/24", 64 + n / 256, n % 256);
            write!(
                text,
                "[[peer]]\nname = \"branch-{n}\"\npublic_key = \"{}\"\nallowed_ips = \
                          [\"{net}\"]\nqkd = \"off\"\n",
                stranger(n)
            )
            .unwrap();
        }
        fs::write(&file, text).unwrap();
        let timed = |what: &str, work: &dyn Fn() -> Output| {
            let start = Instant::now();
            let (code, out, err) = said(&work());
            println!("{what}: {:?}, {} bytes", start.elapsed(), out.len());
            assert_eq!(code, 0, "{what}: {err}");
            out
        };
        let start = Instant::now();
        let a = lab.start_daemon(Site::A);
        println!("start: {:?}", start.elapsed());
        timed("check", &|| a.ctl(&["check", &file.display().to_string()]));
        assert!(timed("show --brief", &|| a.ctl(&["show", "--brief"])).contains("5001 sites"));
        assert_eq!(timed("reload", &|| a.ctl(&["reload", "qvpn0"])), "nothing changed\n");
        assert!(timed("metrics", &|| a.ctl(&["metrics", "qvpn0"])).contains("branch-4999"));
        let dir = lab.gw_a.dir().display().to_string();
        let key = stranger(9999);
        let words = [
            "--config-dir",
            &dir,
            "peer",
            "add",
            "qvpn0",
            "one-more",
            "--public-key",
            &key,
            "--qkd",
            "off",
            "--allowed-ips",
            "10.99.0.0/16",
            "--save",
        ];
        assert!(timed("peer add --save", &|| a.ctl(&words)).starts_with("peer one-more added\n"));
        let remove = ["--config-dir", &dir, "peer", "remove", "qvpn0", "branch-77", "--save"];
        // `branch-77` is a whole name, although others begin with it.
        assert!(timed("peer remove --save", &|| a.ctl(&remove)).starts_with("peer branch-77 removed\n"));
        let list = timed("peer list", &|| a.ctl(&["peer", "list", "qvpn0", "--json"]));
        assert!(list.contains("one-more") && !list.contains("\"branch-77\""));
    });
}

#[test]
fn the_first_default_route_comes_by_a_reload() {
    sandbox::run("the_first_default_route_comes_by_a_reload", || {
        let lab = Lab::new();
        let interface = "local = [{ prefix = \"10.10.0.0/16\", device = \"lan\" }]".to_owned();
        let options =
            GatewayOptions { qkd: "off".to_owned(), kms: None, interface, ..GatewayOptions::default() };
        let _ = lab.configure(Site::A, &options);
        let _ = lab.configure(Site::B, &GatewayOptions { interface: String::new(), ..options });
        let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
        gateways.iter().for_each(|gateway| drop(gateway.wait_state("up", START)));
        let (code, _, err) =
            peer(&lab, &gateways[0], &["set", "qvpn0", "site-b", "--allowed-ips", "0.0.0.0/0,fd20::/64"]);
        assert_eq!(code, 0, "{err}");
        let default_route = || lab.gw_a.run("ip route show table 29046 default");
        assert!(default_route().contains("default dev qvpn0"));
        // For longer than a key is valid, the tunnel's datagrams use the WAN and everything else the tunnel.
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        let epoch = gateways[0].peer()["epoch"].as_u64().unwrap();
        gateways[0]
            .wait_peer("epochs under the new routes", START, |p| p["epoch"].as_u64() > Some(epoch + 3));
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        let (code, _, err) =
            peer(&lab, &gateways[0], &["set", "qvpn0", "site-b", "--allowed-ips", "10.20.0.0/16"]);
        assert_eq!(code, 0, "{err}");
        assert!(!default_route().contains("qvpn0"), "{}", default_route());
        assert!(default_route().contains("unreachable"), "what a peer had stays blocked");
        assert!(lab.lan_a.pings(Site::B.host()[0]));
    });
}

#[test]
fn a_name_that_moves_is_looked_up_again() {
    sandbox::run("a_name_that_moves_is_looked_up_again", || {
        let lab = Lab::new();
        let hosts = lab.gw_a.dir().join("hosts");
        let at = |ip: &str| fs::write(&hosts, format!("127.0.0.1 localhost\n{ip} gw-b.example\n")).unwrap();
        at(Site::B.wan(Outer::V4));
        lab.gw_a.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
        let options = |site: Site| GatewayOptions {
            qkd: "off".to_owned(),
            kms: None,
            endpoint: false,
            peer: if site == Site::A {
                "endpoint = \"gw-b.example:51820\"\n".to_owned()
            } else {
                String::new()
            },
            ..GatewayOptions::default()
        };
        for site in Site::BOTH {
            let _ = lab.configure(site, &options(site));
        }
        let a = lab.start_daemon(Site::A);
        let mut b = lab.start_daemon(Site::B);
        a.wait_state("up", START);
        b.process.kill();
        let net = Site::B.wan(Outer::V4).rsplit_once('.').unwrap().0;
        lab.gw_b.run(&format!(
            "ip addr flush dev wan scope global && ip addr add {net}.77/24 dev wan && ip route replace \
             default via {}",
            Site::B.router(Outer::V4)
        ));
        at(&format!("{net}.77"));
        let _b = lab.start_daemon(Site::B);
        let there = format!("{net}.77:51820");
        a.wait_peer("up at the new address", Duration::from_secs(60), |p| {
            p["endpoint"] == there.as_str() && p["state"] == "up"
        });
        wait_until("traffic", START, || lab.lan_a.pings(Site::B.host()[0]).then_some(()));
    });
}
