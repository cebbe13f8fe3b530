//! Runs the commands of `docs/topologies.md` unchanged, and checks the traffic that they make possible.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::{GatewayOptions, Lab, Node, Process, Site, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);

/// Returns the commands of the page below the comment `run: NAME`.
fn commands(name: &str) -> Vec<String> {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/topologies.md")).unwrap();
    let part = page.split(&format!("<!-- run: {name} -->")).nth(1).unwrap();
    let block = part.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let lines: Vec<String> =
        block.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{name}");
    lines
}

fn run_all(node: &Node, name: &str, swapped: &[(&str, &str)]) {
    for mut line in commands(name) {
        for (from, to) in swapped {
            line = line.replace(from, "\0").replace(to, from).replace('\0', to);
        }
        node.run(&line);
    }
}

fn without_qkd(interface: &str, allowed: &[&str]) -> GatewayOptions {
    GatewayOptions {
        qkd: "off".to_owned(),
        kms: None,
        interface: interface.to_owned(),
        allowed_ips: allowed.iter().map(|net| (*net).to_owned()).collect(),
        ..GatewayOptions::default()
    }
}

fn pings(node: &Node, words: &str) -> bool {
    node.try_run(&format!("ping -n -q -c 1 -W 1 {words}")).status.success()
}

/// Starts a daemon with this text as its config.
fn start(node: &Node, text: &str) -> Process {
    let file = node.dir().join("qvpn0.toml");
    fs::write(&file, text).unwrap();
    node.spawn(binary("qvpn-daemon"), &["--config", file.to_str().unwrap()])
}

fn public_key(node: &Node) -> String {
    let (ctl, key) = (binary("qvpn-ctl"), node.dir().join("qvpn0.key"));
    let (ctl, key) = (ctl.display(), key.display());
    node.run(&format!("umask 077; [ -e {key} ] || {ctl} genkey > {key}; {ctl} pubkey < {key}"))
        .trim()
        .to_owned()
}

#[test]
fn spokes_reach_each_other_through_the_hub_without_redirects() {
    sandbox::run("spokes_reach_each_other_through_the_hub_without_redirects", || {
        let lab = Lab::new();
        let (gw_c, lan_c) = (Node::new("gw-c"), Node::new("lan-c"));
        gw_c.join("wan", &lab.wan, "site-c");
        lan_c.join("lan", &gw_c, "lan");
        lab.wan.run("ip addr add 192.0.2.2/24 dev site-c");
        gw_c.run(
            "ip addr add 192.0.2.1/24 dev wan && ip route add default via 192.0.2.2 && ip addr add \
             10.50.0.1/16 dev lan \
             && sysctl -qw net.ipv4.ip_forward=1",
        );
        lan_c.run("ip addr add 10.50.0.2/16 dev lan && ip route add default via 10.50.0.1");
        let [hub, b, c] = [&lab.gw_a, &lab.gw_b, &gw_c].map(public_key);
        let head = |node: &Node, more: &str| {
            format!("[interface]\nprivate_key_file = \"{}/qvpn0.key\"\n{more}\n", node.dir().display())
        };
        let peer = |name: &str, key: &str, allowed: &str, more: &str| {
            format!(
                "[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nqkd = \"off\"\nallowed_ips = \
                 [\"{allowed}\"]\n{more}\n"
            )
        };
        let spokes = peer("b", &b, "10.20.0.0/16", "") + &peer("c", &c, "10.50.0.0/16", "");
        let _hub = start(&lab.gw_a, &(head(&lab.gw_a, "") + &spokes));
        let to_hub = peer("hub", &hub, "10.0.0.0/8", "endpoint = \"198.51.100.1:51820\"");
        let local = |net: &str| format!("local = [{{ prefix = \"{net}\", device = \"lan\" }}]");
        let _b = start(&lab.gw_b, &(head(&lab.gw_b, &local("10.20.0.0/16")) + &to_hub));
        let _c = start(&gw_c, &(head(&gw_c, &local("10.50.0.0/16")) + &to_hub));
        wait_until("the spokes reach each other", START, || pings(&lab.lan_b, "10.50.0.2").then_some(()));
        let check = lab.gw_b.dir().join("qvpn0.toml");
        let output = lab.gw_b.command(binary("qvpn-ctl")).arg("check").arg(check).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // The lab's KME network is also inside 10.0.0.0/8.
        assert!(!said.contains("10.20.0.0/16 on lan"), "{said}");

        lab.lan_b.nft(
            "table ip seen {\nchain in {\ntype filter hook input priority 0;\nicmp type redirect \
         counter\n}\n}\n",
        );
        let redirects = || {
            let before = lab.lan_b.dropped();
            let _ = lab.lan_b.try_run("ping -n -q -c 5 -i 0.2 -W 1 10.50.0.2");
            lab.lan_b.dropped() - before
        };
        assert!(redirects() > 0, "the check can fail");
        run_all(&lab.gw_a, "hub", &[]);
        assert_eq!(redirects(), 0);
        assert!(pings(&lab.lan_b, "10.50.0.2") && pings(&lan_c, "10.10.0.2"));
    });
}

#[test]
fn vxlan_joins_two_lans_with_the_mtu_of_the_page() {
    sandbox::run("vxlan_joins_two_lans_with_the_mtu_of_the_page", || {
        let lab = Lab::new();
        for (site, allowed) in [(Site::A, "10.77.0.2/32"), (Site::B, "10.77.0.1/32")] {
            let _ = lab.configure(site, &without_qkd("mtu = 1420", &[allowed]));
        }
        let [a, _b] = Site::BOTH.map(|site| lab.start_daemon(site));
        a.wait_state("up", START);
        run_all(&lab.gw_a, "layer2", &[]);
        run_all(&lab.gw_b, "layer2", &[("10.77.0.1", "10.77.0.2")]);
        for (host, address) in [(&lab.lan_a, "192.168.5.1/24"), (&lab.lan_b, "192.168.5.2/24")] {
            host.run(&format!("ip link set lan mtu 1370 && ip addr add {address} dev lan"));
        }
        // 28 bytes are the headers of IP and ICMP.
        wait_until("a full packet", START, || pings(&lab.lan_a, "-M do -s 1342 192.168.5.2").then_some(()));
        lab.wan.nft(
            "table inet witness {\nchain seen {\ntype filter hook prerouting priority -400;\nudp \
         dport 4789 counter\n}\n}\n",
        );
        assert!(pings(&lab.lan_a, "192.168.5.2"));
        assert_eq!(lab.wan.dropped(), 0, "frames leave in the tunnel only");
    });
}

#[test]
fn a_lan_behind_the_tunnel_address_needs_no_route_back() {
    sandbox::run("a_lan_behind_the_tunnel_address_needs_no_route_back", || {
        let lab = Lab::new();
        let _ = lab.configure(Site::A, &without_qkd("", &["10.20.0.0/16"]));
        let _ = lab.configure(Site::B, &without_qkd("", &["10.77.0.1/32"]));
        let [a, _b] = Site::BOTH.map(|site| lab.start_daemon(site));
        a.wait_state("up", START);
        assert!(!pings(&lab.lan_a, "10.20.0.2"), "its address is none of site B's allowed IPs");
        run_all(&lab.gw_a, "nat", &[]);
        wait_until("traffic", START, || pings(&lab.lan_a, "10.20.0.2").then_some(()));
    });
}

#[test]
fn two_lans_with_the_same_addresses_reach_each_other() {
    sandbox::run("two_lans_with_the_same_addresses_reach_each_other", || {
        let lab = Lab::new();
        for (site, allowed) in [(Site::A, "10.102.0.0/24"), (Site::B, "10.101.0.0/24")] {
            let _ = lab.configure(site, &without_qkd("", &[allowed]));
            lab.gw(site).run("ip addr add 192.168.1.1/24 dev lan");
            lab.lan(site).run("ip addr add 192.168.1.2/24 dev lan");
        }
        let [a, _b] = Site::BOTH.map(|site| lab.start_daemon(site));
        a.wait_state("up", START);
        run_all(&lab.gw_a, "netmap", &[]);
        run_all(&lab.gw_b, "netmap", &[("10.101.0.0", "10.102.0.0")]);
        wait_until("traffic", START, || pings(&lab.lan_a, "-I 192.168.1.2 10.102.0.2").then_some(()));
        assert!(pings(&lab.lan_b, "-I 192.168.1.2 10.101.0.2"), "and in the other direction");
    });
}
