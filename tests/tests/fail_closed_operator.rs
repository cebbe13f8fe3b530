//! The block from an operator's point of view: `table = "off"`, a changed device, peers that are disabled,
//! renamed and removed, prefixes that are released, and configs that can't work on this machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::{Gateway, GatewayOptions, Lab, Site, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);

fn without_qkd(interface: &str) -> GatewayOptions {
    let interface = interface.to_owned();
    GatewayOptions { qkd: "off".to_owned(), kms: None, interface, ..GatewayOptions::default() }
}

/// Configures both sites, A with these lines of `[interface]`.
fn configure(lab: &Lab, interface: &str) {
    let _ = lab.configure(Site::A, &without_qkd(interface));
    let _ = lab.configure(Site::B, &without_qkd(""));
}

/// Runs `qvpn-ctl` at gateway A, with or without a daemon. The output is exit code, stdout and stderr.
fn ctl(lab: &Lab, words: &[&str]) -> (i32, String, String) {
    let dir = lab.gw_a.dir().display().to_string();
    let mut command = lab.gw_a.command(binary("qvpn-ctl"));
    let Output { status, stdout, stderr } =
        command.args(["--config-dir", &dir]).args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Counts, on the WAN's router, packets in clear from gateway A to site B's networks.
fn count_clear(lab: &Lab) {
    lab.wan.nft(
        "table inet witness {\nchain seen {\ntype filter hook prerouting priority -400;\n\
         iifname site-a ip daddr 10.20.0.0/16 counter\niifname site-a ip6 daddr fd20::/64 counter\n}\n}\n",
    );
}

/// Returns the number of packets in clear while the LAN host sends a few to each of these addresses of site
/// B.
fn clear_to(lab: &Lab, addresses: &[&str]) -> u64 {
    let before = lab.wan.dropped();
    for address in addresses {
        let _ = lab.lan_a.try_run(&format!("ping -n -q -c 3 -i 0.01 -W 0.05 {address}"));
    }
    lab.wan.dropped() - before
}

const BOTH: [&str; 2] = ["10.20.0.2", "fd20::2"];

fn wait_for_traffic(lab: &Lab) {
    for address in BOTH {
        wait_until("traffic", START, || lab.lan_a.pings(address).then_some(()));
    }
}

fn file(lab: &Lab) -> std::path::PathBuf {
    lab.gw_a.dir().join("qvpn0.toml")
}

#[test]
fn table_off_blocks_what_protect_names_and_says_where_that_is_nothing() {
    sandbox::run("table_off_blocks_what_protect_names_and_says_where_that_is_nothing", || {
        let lab = Lab::new();
        count_clear(&lab);
        configure(&lab, "table = \"off\"");
        let mut b = lab.start_daemon(Site::B);
        let mut a = lab.start_daemon(Site::A);
        let nothing = "nothing is blocked";
        assert!(a.process.log().contains(nothing), "{}", a.process.log());
        let path = file(&lab).display().to_string();
        for words in [&["check", path.as_str()][..], &["show", "qvpn0"], &["doctor", "qvpn0"]] {
            let (_, out, err) = ctl(&lab, words);
            assert!(format!("{out}{err}").contains(nothing), "{words:?}: {out}{err}");
        }
        let route = "ip route add 10.20.0.0/16 dev qvpn0 metric 20 proto zebra; \
                     ip -6 route add fd20::/64 dev qvpn0 metric 20 proto zebra";
        lab.gw_a.run(route);
        wait_for_traffic(&lab);
        a.process.kill();
        assert!(clear_to(&lab, &BOTH) > 0, "nothing is blocked, as it says");

        configure(&lab, "table = \"off\"\nprotect = [\"10.20.0.0/16\", \"fd20::/64\"]");
        let mut a = lab.start_daemon(Site::A);
        let (_, out, err) = ctl(&lab, &["check", &path]);
        assert!(!format!("{out}{err}").contains(nothing), "{out}{err}");
        let guard = &a.show()["guard"];
        assert_eq!((&guard["routes"], &guard["nftables"]), (&"in_force".into(), &"in_force".into()));
        let last = lab.gw_a.run("ip route show; ip -6 route show");
        for prefix in ["10.20.0.0/16", "fd20::/64"] {
            assert!(
                last.lines().any(|line| line.starts_with(&format!("unreachable {prefix}"))
                    && line.contains("metric 4294967295")),
                "{last}"
            );
        }
        // A routing daemon's route wins, and is withdrawn when the device goes.
        lab.gw_a.run(route);
        wait_for_traffic(&lab);
        a.process.kill();
        assert_eq!(clear_to(&lab, &BOTH), 0, "the last resort holds");
        lab.gw_a
            .run("ip route add 10.20.0.0/16 via 198.51.100.2; ip -6 route add fd20::/64 via 2001:db8:a::2");
        assert_eq!(clear_to(&lab, &BOTH), 0, "and where another route wins, the filter");
        b.process.kill();
    });
}

fn device(gateway: &Gateway<'_>) -> (String, String) {
    let device = gateway.show()["device"].clone();
    let text = |key: &str| device[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("name"))
}

fn wait_device(gateway: &Gateway<'_>, state: &str) {
    wait_until(state, START, || (device(gateway).0 == state).then_some(()));
}

fn doctor_of_device(lab: &Lab) -> serde_json::Value {
    let (_, out, _) = ctl(lab, &["doctor", "qvpn0", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    report["findings"].as_array().unwrap().iter().find(|f| f["check"] == "device").unwrap().clone()
}

#[test]
fn a_device_that_is_changed_is_restored_and_what_is_lost_is_said() {
    sandbox::run("a_device_that_is_changed_is_restored_and_what_is_lost_is_said", || {
        let lab = Lab::new();
        count_clear(&lab);
        configure(&lab, "");
        let _guard = lab.start_guard();
        let _b = lab.start_daemon(Site::B);
        let mut a = lab.start_daemon(Site::A);
        a.wait_state("up", START);
        wait_for_traffic(&lab);
        let mut events = a.events();
        assert_eq!(doctor_of_device(&lab)["result"], "ok");

        lab.gw_a.run("ip link set qvpn0 name other");
        events.line("the name of qvpn0 (was other)", START);
        events.line("is now called other", START);
        lab.gw_a.run("ip link set qvpn0 down");
        events.line("qvpn0 up", START);
        lab.gw_a.run("ip addr del 10.77.0.1/30 dev qvpn0");
        events.line("address 10.77.0.1/30 on qvpn0", START);
        wait_for_traffic(&lab);
        assert_eq!(device(&a), ("up".to_owned(), "qvpn0".to_owned()));

        // Another device takes the name, so the daemon can't restore it.
        lab.gw_a.run("ip link add taker type veth peer name taken");
        a.process.signal(Signal::SIGSTOP);
        lab.gw_a.run("ip link set qvpn0 name other; ip link set taker name qvpn0");
        a.process.signal(Signal::SIGCONT);
        wait_device(&a, "renamed");
        assert_eq!(device(&a).1, "other");
        assert!(lab.lan_a.pings(BOTH[0]), "the tunnel goes on under the other name");
        let finding = doctor_of_device(&lab);
        assert_eq!(finding["result"], "warning", "{finding}");
        lab.gw_a.run(finding["fix"].as_str().unwrap());
        wait_device(&a, "up");
        assert_eq!(device(&a).1, "qvpn0");

        lab.gw_a.run("mkdir -p /run/netns && ip netns add away && ip link set qvpn0 netns away");
        events.line("was deleted, or moved to another network namespace", START);
        wait_device(&a, "missing");
        let peer = a.peer();
        assert_eq!(peer["state"], "blocked", "{peer}");
        assert!(peer["reason"].as_str().unwrap().contains("systemctl restart qvpn@qvpn0"), "{peer}");
        assert_eq!(doctor_of_device(&lab)["result"], "bad");
        assert_eq!(clear_to(&lab, &BOTH), 0);
        lab.gw_a.run("ip -n away link set qvpn0 netns $$");
        wait_device(&a, "up");
        a.wait_state("up", START);
        wait_for_traffic(&lab);

        lab.gw_a.run("ip link del qvpn0");
        wait_until("the daemon ends", START, || (!a.process.is_running()).then_some(()));
        assert!(a.process.log().contains("the tunnel device is gone"), "{}", a.process.log());
        assert_eq!(clear_to(&lab, &BOTH), 0);
        let a = lab.start_daemon(Site::A);
        a.wait_state("up", START);
        wait_for_traffic(&lab);
    });
}

#[test]
fn a_peer_is_disabled_and_renamed_and_its_prefixes_are_released_on_request_only() {
    sandbox::run("a_peer_is_disabled_and_renamed_and_its_prefixes_are_released_on_request_only", || {
        let lab = Lab::new();
        count_clear(&lab);
        configure(&lab, "");
        let mut guard = lab.start_guard();
        let _b = lab.start_daemon(Site::B);
        let mut a = lab.start_daemon(Site::A);
        a.wait_state("up", START);
        wait_for_traffic(&lab);
        let done = |words: &[&str]| {
            let (code, out, err) = ctl(&lab, words);
            assert_eq!(code, 0, "{words:?}: {out}{err}");
            format!("{out}{err}")
        };
        let refused = |words: &[&str], why: &str| {
            let (code, out, err) = ctl(&lab, words);
            assert!(code != 0 && err.contains(why), "{words:?}: {code} {out}{err}");
        };

        assert!(done(&["peer", "disable", "qvpn0", "site-b"]).contains("peer site-b disabled"));
        assert_eq!(a.peer()["state"], "disabled");
        let routes = || lab.gw_a.run("ip route show table 29046");
        assert!(
            !routes().contains("dev qvpn0") && routes().contains("unreachable 10.20.0.0/16"),
            "{}",
            routes()
        );
        assert_eq!(clear_to(&lab, &BOTH), 0);
        refused(&["rekey", "qvpn0", "site-b"], "is disabled");
        assert!(done(&["peer", "enable", "qvpn0", "site-b"]).contains("peer site-b enabled"));
        a.wait_state("up", START);
        wait_for_traffic(&lab);

        let rekeys = |a: &Gateway<'_>| a.peer()["rekeys"].as_u64().unwrap();
        wait_until("some epochs", START, || (rekeys(&a) > 1).then_some(()));
        done(&["peer", "rename", "qvpn0", "site-b", "bonn"]);
        assert_eq!((a.peer()["name"].as_str(), a.peer()["state"].as_str()), (Some("bonn"), Some("up")));
        assert!(rekeys(&a) > 1, "its epochs go on");
        done(&["reload", "qvpn0"]);
        assert_eq!(a.peer()["name"], "site-b");

        let said = done(&["peer", "remove", "qvpn0", "site-b"]);
        assert!(said.contains("`qvpn-ctl unblock qvpn0 10.20.0.0/16` releases it"), "{said}");
        assert_eq!(a.show()["guard"]["kept"], serde_json::json!(["10.20.0.0/16", "fd20::/64"]));
        assert_eq!(clear_to(&lab, &BOTH), 0);
        refused(&["unblock", "qvpn0", "10.30.0.0/16"], "these are: 10.20.0.0/16, fd20::/64");
        refused(&["unblock", "qvpn0"], "stop it first");
        done(&["unblock", "qvpn0", "10.20.0.0/16"]);
        assert!(clear_to(&lab, &[BOTH[0]]) > 0, "released");
        assert_eq!(clear_to(&lab, &[BOTH[1]]), 0, "and this one is not");
        done(&["reload", "qvpn0"]);
        refused(&["unblock", "qvpn0", "10.20.0.0/16"], "is in the config");
        a.wait_state("up", START);

        // With --save, what stays blocked is written to `protect`.
        let before = fs::read_to_string(file(&lab)).unwrap();
        done(&["peer", "remove", "qvpn0", "site-b", "--save"]);
        let text = fs::read_to_string(file(&lab)).unwrap();
        assert!(text.contains("protect = [\"10.20.0.0/16\", \"fd20::/64\"]"), "{text}");
        done(&["reload", "qvpn0"]);
        assert_eq!(a.show()["guard"]["kept"], serde_json::json!([]));
        assert_eq!(clear_to(&lab, &BOTH), 0);
        fs::write(file(&lab), &before).unwrap();
        done(&["reload", "qvpn0"]);
        let said = done(&["peer", "remove", "qvpn0", "site-b", "--save", "--unblock"]);
        assert!(said.contains("10.20.0.0/16 is no longer blocked"), "{said}");
        assert!(!fs::read_to_string(file(&lab)).unwrap().contains("protect"));
        assert!(clear_to(&lab, &[BOTH[0]]) > 0);

        // Without a daemon, the guard is asked.
        fs::write(file(&lab), &text).unwrap();
        done(&["reload", "qvpn0"]);
        a.process.kill();
        refused(&["unblock", "qvpn0", "10.20.0.0/16"], "take it out of");
        fs::write(file(&lab), text.replace("protect = ", "# protect = ")).unwrap();
        assert_eq!(clear_to(&lab, &BOTH), 0);
        done(&["unblock", "qvpn0", "10.20.0.0/16"]);
        assert!(clear_to(&lab, &[BOTH[0]]) > 0);
        assert_eq!(clear_to(&lab, &[BOTH[1]]), 0);
        // If neither runs, the kernel's block is removed directly.
        guard.kill();
        assert_eq!(clear_to(&lab, &[BOTH[1]]), 0);
        done(&["unblock", "qvpn0", "fd20::/64"]);
        assert!(clear_to(&lab, &BOTH) > 0);
    });
}

#[test]
fn what_cannot_work_on_this_machine_is_refused_or_said() {
    sandbox::run("what_cannot_work_on_this_machine_is_refused_or_said", || {
        let lab = Lab::new();
        let path = file(&lab).display().to_string();
        let check = |interface: &str, options: &GatewayOptions| {
            let options = GatewayOptions { interface: interface.to_owned(), ..options.clone() };
            let _ = lab.configure(Site::A, &options);
            let (code, out, err) = ctl(&lab, &["check", &path]);
            (code, format!("{out}{err}"))
        };
        // The LAN lies inside a protected prefix; the WAN, where the default route leads, needs no line.
        let wide = GatewayOptions { allowed_ips: vec!["0.0.0.0/0".to_owned()], ..without_qkd("") };
        let (code, said) = check("", &wide);
        assert_eq!(code, 3, "{said}");
        let line = "local = [{ prefix = \"10.10.0.0/16\", device = \"lan\" }, { prefix = \"10.30.0.0/24\", \
         device = \"kme\" }]";
        let sorted = "local = [{ prefix = \"10.10.0.0/16\", device = \"lan\" }";
        assert!(said.contains(sorted) && !said.contains("198.51.100.0/24"), "{said}");
        let (code, said) = check(line, &wide);
        assert!(code == 0 && !said.contains("warning"), "{said}");
        let (code, said) = check("local = []", &wide);
        assert!(
            code == 0 && said.contains("10.10.0.0/16 on lan lies inside the protected 0.0.0.0/0"),
            "{said}"
        );

        // Names that resolve into the tunnel, the host's own address, and the DNS server.
        let hosts = "10.20.0.7 gw.site-b.example\n10.20.0.8 kme.site-a.example\n";
        fs::write(lab.gw_a.dir().join("hosts"), hosts).unwrap();
        fs::write(lab.gw_a.dir().join("resolv.conf"), "nameserver 10.20.0.53\n").unwrap();
        let dir = lab.gw_a.dir().display().to_string();
        lab.gw_a.run(&format!(
            "mount --bind {dir}/hosts /etc/hosts && mount --bind {dir}/resolv.conf /etc/resolv.conf && \
             ip addr add 10.20.9.9/32 dev lan"
        ));
        let named = GatewayOptions {
            endpoint: false,
            peer: "endpoint = \"gw.site-b.example:51820\"".to_owned(),
            ..without_qkd("")
        };
        let (code, said) = check("", &named);
        assert!(code == 3 && said.contains("the endpoint gw.site-b.example is 10.20.0.7"), "{said}");
        let (code, said) = check("", &without_qkd(""));
        assert!(code == 0 && said.contains("the DNS server 10.20.0.53"), "{said}");
        assert!(
            said.contains("this host's own address 10.20.9.9 on lan lies in the protected 10.20.0.0/16"),
            "{said}"
        );
    });
}

#[test]
fn connected_networks_are_remembered_and_grow_on_request_only() {
    sandbox::run("connected_networks_are_remembered_and_grow_on_request_only", || {
        let lab = Lab::new();
        lab.gw_a.run("mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/qvpn");
        // A network that was chosen by DHCP.
        lab.gw_a.run(
            "ip link add dhcp type veth peer name dhcp-end; ip link set dhcp up; ip link set dhcp-end up; \
             ip addr add 10.61.0.1/24 dev dhcp; ip route add 10.62.0.0/24 via 10.61.0.9 dev dhcp proto dhcp",
        );
        lab.kme.run("ip addr add 10.60.0.2/24 dev site-a");
        let allowed = ["0.0.0.0/0", "::/0"].map(str::to_owned).to_vec();
        let options = GatewayOptions { allowed_ips: allowed, ..without_qkd("local = \"connected\"") };
        let _ = lab.configure(Site::A, &options);
        let mut guard = lab.start_guard();
        let mut a = lab.start_daemon(Site::A);
        let local = |a: &Gateway<'_>| a.show()["guard"]["local"].to_string();
        let first = r#"["10.10.0.0/16 dev lan","10.30.0.0/24 dev kme","fd10::/64 dev lan"]"#;
        assert_eq!(local(&a), first);
        assert!(lab.gw_a.pings("10.10.0.2") && lab.gw_a.pings("fd10::2"));

        lab.gw_a.run("ip addr add 10.60.0.1/24 dev kme");
        assert!(!lab.gw_a.pings("10.60.0.2"), "a network that comes later is blocked");
        let (code, _, err) = ctl(&lab, &["local", "accept", "qvpn0", "10.99.0.0/16"]);
        assert!(code == 1 && err.contains("not connected to 10.99.0.0/16"), "{err}");
        let (code, out, err) = ctl(&lab, &["local", "accept", "qvpn0", "10.60.0.0/24"]);
        assert_eq!(code, 0, "{out}{err}");
        wait_until("the network is let out", START, || lab.gw_a.pings("10.60.0.2").then_some(()));

        // Without the guard, and after a restart of everything.
        guard.kill();
        a.process.line("the guard has ended", START);
        assert!(lab.gw_a.pings("10.60.0.2") && lab.gw_a.pings("10.10.0.2"));
        a.process.kill();
        let _guard = lab.start_guard();
        let a = lab.start_daemon(Site::A);
        assert!(
            local(&a).contains("10.60.0.0/24 dev kme") && !local(&a).contains("10.61.0.0/24"),
            "{}",
            local(&a)
        );
        assert!(lab.gw_a.pings("10.60.0.2") && lab.gw_a.pings("10.10.0.2"));
    });
}

#[test]
fn a_flushed_ruleset_and_a_useless_local_open_nothing() {
    sandbox::run("a_flushed_ruleset_and_a_useless_local_open_nothing", || {
        let lab = Lab::new();
        count_clear(&lab);
        // A network outside of all protected prefixes, and devices that don't exist or are down.
        let local = "local = [{ prefix = \"192.0.2.0/24\", device = \"lan\" }, \
                     { prefix = \"10.20.7.0/24\", device = \"gone\" }, { prefix = \"10.20.8.0/24\", device \
                     = \"idle\" }]";
        configure(&lab, local);
        lab.gw_a.run("ip link add idle type veth peer name idle-peer; ip addr add 10.20.8.1/24 dev idle");
        let _guard = lab.start_guard();
        let _b = lab.start_daemon(Site::B);
        let a = lab.start_daemon(Site::A);
        a.wait_state("up", START);
        wait_for_traffic(&lab);
        assert_eq!(clear_to(&lab, &["10.20.7.1", "10.20.8.2", "10.20.0.2"]), 0);
        lab.gw_a.run("ip link set idle name renamed; ip link set renamed up");
        assert_eq!(clear_to(&lab, &["10.20.8.2"]), 0);

        let flush = lab.gw_a.spawn("sh", &["-c", "while nft flush ruleset; do sleep 0.1; done"]);
        let before = lab.wan.dropped();
        lab.gw_a.run("ip route add 10.20.0.2 via 198.51.100.2");
        let lost = lab.lan_a.try_run("ping -n -q -c 100 -i 0.02 -W 1 10.20.0.2");
        assert!(String::from_utf8_lossy(&lost.stdout).contains(" 0% packet loss"), "{lost:?}");
        assert_eq!(lab.wan.dropped() - before, 0);
        drop(flush);
        assert_eq!(a.show()["guard"]["nftables"], "in_force");
    });
}

#[test]
fn an_endpoint_in_a_protected_prefix_passes_a_strict_reverse_path_filter() {
    sandbox::run("an_endpoint_in_a_protected_prefix_passes_a_strict_reverse_path_filter", || {
        let lab = Lab::new();
        for key in ["all", "wan"] {
            lab.gw_a.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "1");
        }
        configure(&lab, "protect = [\"203.0.113.0/24\"]");
        let _b = lab.start_daemon(Site::B);
        let a = lab.start_daemon(Site::A);
        a.wait_state("up", START);
        wait_for_traffic(&lab);
        let src_valid_mark = "net/ipv4/conf/all/src_valid_mark";
        lab.gw_a.sysctl(src_valid_mark, "0");
        lab.gw_a.run("ip route flush cache");
        assert!(!lab.lan_a.pings(BOTH[0]), "the check can fail");
        let (_, out, _) = ctl(&lab, &["doctor", "qvpn0", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let finding = findings.iter().find(|f| f["check"] == "src_valid_mark").unwrap();
        assert_eq!(finding["result"], "bad", "{finding}");
        lab.gw_a.run(finding["fix"].as_str().unwrap());
        wait_for_traffic(&lab);
    });
}

#[test]
fn a_second_tunnel_with_a_prefix_of_a_running_one_does_not_start_and_names_both_files() {
    sandbox::run(
        "a_second_tunnel_with_a_prefix_of_a_running_one_does_not_start_and_names_both_files",
        || {
            let lab = Lab::new();
            configure(&lab, "");
            let guard = lab.start_guard();
            let _b = lab.start_daemon(Site::B);
            let a = lab.start_daemon(Site::A);
            a.wait_state("up", START);
            let prefixes = ["10.20.0.0/16", "10.99.0.0/16"].map(str::to_owned).to_vec();
            let second = GatewayOptions { number: 1, allowed_ips: prefixes, ..without_qkd("") };
            let second = lab.configure(Site::A, &second);
            // The guard blocks the prefix for neither tunnel.
            guard.signal(Signal::SIGHUP);
            wait_until("the second config is read", START, || {
                lab.gw_a.run("ip route show table 29046").contains("unreachable 10.99.0.0/16").then_some(())
            });
            wait_for_traffic(&lab);
            let start = || {
                let mut command = lab.gw_a.command("timeout");
                command.arg("20").arg(binary("qvpn-daemon")).arg("--config").arg(&second);
                let output = command.output().unwrap();
                (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
            };
            let (code, said) = start();
            assert_eq!(code, Some(3), "{said}");
            let (first, second_name) = (file(&lab).display().to_string(), second.display().to_string());
            assert!(said.contains(&first) && said.contains(&second_name), "{said}");
            assert!(said.contains("10.20.0.0/16 leads into the tunnel qvpn0 already"), "{said}");
            assert_eq!(a.peer()["state"], "up");
            wait_for_traffic(&lab);
            drop(guard);
        },
    );
}
