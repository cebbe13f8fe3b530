//! `routes = "kernel"`: at a hub of three sites with one interface, the kernel's routes choose the site of
//! each packet, within allowed IPs that overlap.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tests::{Capture, Gateway, HubLab, HubOptions, HubSite, Stream, sandbox, wait_until};

/// Time for the first epochs, in a debug build on a busy machine.
const START: Duration = Duration::from_secs(30);
/// The time limit for following a change of routes; far more than is measured.
const FOLLOWED: Duration = Duration::from_secs(10);

/// Adds the routes that an admin would make: to each site by its own tunnel address, and at the sites all by
/// the hub.
fn static_routes(lab: &HubLab) {
    for site in &lab.sites {
        let ([v4, v6], number) = (site.tunnel(), site.number);
        lab.hub.run(&format!(
            "ip route add 10.20.{number}.0/24 via {v4} && ip -6 route add fd20:{number}::/64 via {v6}"
        ));
        site.gw.run("ip route add 10.0.0.0/8 via 10.77.0.1 && ip -6 route add fd00::/8 via fd77::1");
    }
}

fn wait_up(gateway: &Gateway<'_>) {
    wait_until("all peers are up", START, || {
        let show = gateway.try_show()?;
        show["peers"].as_array()?.iter().all(|peer| peer["state"] == "up").then_some(())
    });
}

fn wait_pings(from: &tests::Node, to: &str) {
    wait_until(&format!("{} reaches {to}", from.name()), FOLLOWED, || from.pings(to).then_some(()));
}

/// Gives the first two sites 10.21.0.0/24, each with a host of its own in it.
fn shared_prefix(site: &HubSite) -> String {
    let host = format!("10.21.0.{}", site.number);
    site.lan.run(&format!("ip addr add {host}/32 dev lo"));
    site.gw.run(&format!("ip route add 10.21.0.0/24 via {}", site.host()[0]));
    host
}

fn sent_to(gateway: &Gateway<'_>) -> Vec<u64> {
    let show = gateway.show();
    show["peers"].as_array().unwrap().iter().map(|peer| peer["tx_packets"].as_u64().unwrap()).collect()
}

fn routing(gateway: &Gateway<'_>) -> Value {
    gateway.show()["routing"].clone()
}

#[test]
fn the_kernels_routes_choose_the_peer_at_a_hub() {
    sandbox::run("the_kernels_routes_choose_the_peer_at_a_hub", || {
        let lab = HubLab::new(3);
        lab.configure(&HubOptions::default());
        // At a site that has the shared prefix, it is local.
        for site in &lab.sites[..2] {
            let file = site.gw.dir().join("qvpn0.toml");
            let text = std::fs::read_to_string(&file).unwrap();
            let own = "local = [{ prefix = \"10.21.0.0/24\", device = \"lan\" }, ";
            std::fs::write(&file, text.replace("local = [", own)).unwrap();
        }
        let hosts: Vec<String> = lab.sites[..2].iter().map(shared_prefix).collect();
        let hub = lab.start(&lab.hub);
        let _sites: Vec<_> = lab.sites.iter().map(|site| lab.start(&site.gw)).collect();
        static_routes(&lab);
        wait_up(&hub);
        let capture = Capture::start(&lab.wan, "hub", "198.51.100.1");

        // Ping every site in both families, and one site from another by the hub.
        for site in &lab.sites {
            for host in site.host() {
                wait_pings(&lab.hub_lan, &host);
            }
        }
        wait_pings(&lab.sites[0].lan, &lab.sites[2].host()[0]);
        wait_pings(&lab.sites[1].lan, &lab.sites[0].host()[1]);

        // A route moves from one peer to another.
        for (n, host) in hosts.iter().enumerate() {
            lab.hub.run(&format!("ip route replace 10.21.0.0/24 via {}", lab.sites[n].tunnel()[0]));
            wait_pings(&lab.hub_lan, host);
            assert!(!lab.hub_lan.pings(&hosts[1 - n]), "the other site has {}", hosts[1 - n]);
        }

        // Flows spread over two peers; all packets of a flow go the same way.
        let [first, second] = [lab.sites[0].tunnel(), lab.sites[1].tunnel()].map(|[v4, _]| v4);
        lab.hub.run(&format!("ip route replace 10.21.0.0/24 nexthop via {first} nexthop via {second}"));
        wait_until("the mirror has both", FOLLOWED, || {
            let peers = routing(&hub)["peers"].clone();
            let has = |n: usize| peers[n]["prefixes"].as_array().unwrap().contains(&"10.21.0.0/24".into());
            (has(0) && has(1)).then_some(())
        });
        let before = sent_to(&hub);
        let script = "for p in $(seq 1 200); do echo x > /dev/udp/10.21.0.9/$((40000 + p)); done";
        lab.hub_lan.run(&format!("bash -c '{script}'"));
        let shares = wait_until("200 flows have left", FOLLOWED, || {
            let shares: Vec<u64> = sent_to(&hub).iter().zip(&before).map(|(now, then)| now - then).collect();
            (shares[0] + shares[1] >= 200).then_some(shares)
        });
        println!("200 flows over two peers: {shares:?}");
        assert!(shares[0] >= 50 && shares[1] >= 50, "{shares:?}");

        // A next hop that belongs to no peer is reported, and packets are answered.
        lab.hub.run("ip route replace 10.21.0.0/24 via 10.77.0.99 onlink dev qvpn0");
        let reported = wait_until("the route without a peer is reported", FOLLOWED, || {
            let routing = routing(&hub);
            (routing["unresolved_routes"] == 1).then_some(routing)
        });
        assert_eq!(reported["unresolved"][0]["next_hops"][0], "10.77.0.99");
        let ping = |to: &str, more: &str| {
            let output = lab.hub_lan.try_run(&format!("ping -n -c 2 -W 1 {more} {to}"));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(ping(&hosts[0], "").contains("Destination Net Unreachable"), "{}", ping(&hosts[0], ""));
        let dir = lab.hub.dir().display().to_string();
        let doctor = hub.ctl(&["--config-dir", &dir, "doctor", "qvpn0"]);
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(doctor.contains("10.21.0.0/24 via 10.77.0.99"), "{doctor}");
        let show = String::from_utf8(hub.ctl(&["show", "qvpn0"]).stdout).unwrap();
        assert!(show.contains("without peer: 10.21.0.0/24 via 10.77.0.99"), "{show}");
        assert!(show.contains("routes: 10.20.1.0/24, fd20:1::/64"), "{show}");

        // Without a route, packets are answered too, in both families, and nothing leaves by the default
        // route.
        lab.hub.run("ip route del 10.21.0.0/24; ip -6 route del fd20:3::/64");
        wait_until("no IPv4 route", FOLLOWED, || {
            ping(&hosts[0], "").contains("Destination Net Unreachable").then_some(())
        });
        wait_until("no IPv6 route", FOLLOWED, || ping("fd20:3::2", "").contains("No route").then_some(()));

        // A route that rejects packets applies although a shorter one leads to a peer.
        lab.hub.run("ip route add 10.21.0.0/16 via 10.77.0.2; ip route add blackhole 10.21.0.0/24");
        wait_until("the shorter route is followed", FOLLOWED, || {
            (routing(&hub)["peers"][0]["prefixes"].as_array()?.iter().any(|p| p == "10.21.0.0/16"))
                .then_some(())
        });
        assert!(ping(&hosts[0], "").contains("Destination Net Unreachable"), "{}", ping(&hosts[0], ""));
        lab.hub.run("ip route del blackhole 10.21.0.0/24");
        wait_until("the shorter route applies", FOLLOWED, || {
            ping(&hosts[0], "").contains("1 received").then_some(())
        });
        lab.hub.run("ip route del 10.21.0.0/16");

        let octets = |text: &str| match text.parse().unwrap() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let clear = |to: &str| {
            let from = if to.contains(':') { "fd10::2" } else { "10.10.0.2" };
            [octets(from), octets(to)].concat()
        };
        let mut patterns: Vec<Vec<u8>> = hosts.iter().map(|host| clear(host)).collect();
        patterns.extend(lab.sites.iter().flat_map(HubSite::host).map(|host| clear(&host)));
        let seen = capture.stop();
        let leaked = seen.with_any(&patterns);
        assert!(leaked.is_empty(), "{} packets in clear, the first: {:?}", leaked.len(), leaked[0]);
        assert!(seen.data().len() > 20, "the capture saw the tunnel");
    });
}

#[test]
fn what_a_peer_may_not_get_or_the_path_cannot_take_is_answered() {
    sandbox::run("what_a_peer_may_not_get_or_the_path_cannot_take_is_answered", || {
        let lab = HubLab::new(2);
        lab.configure(&HubOptions {
            allowed: "[\"10.20.0.0/16\", \"fd20::/16\"]".to_owned(),
            ..HubOptions::default()
        });
        // Only the second site may receive this prefix.
        let file = lab.hub.dir().join("qvpn0.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let at = text.rfind("allowed_ips = [").unwrap() + "allowed_ips = [".len();
        std::fs::write(&file, format!("{}\"10.21.0.0/16\", {}", &text[..at], &text[at..])).unwrap();
        let hub = lab.start(&lab.hub);
        let _sites: Vec<_> = lab.sites.iter().map(|site| lab.start(&site.gw)).collect();
        static_routes(&lab);
        wait_up(&hub);
        wait_pings(&lab.hub_lan, &lab.sites[0].host()[0]);

        lab.hub.run(&format!("ip route add 10.21.0.0/16 via {}", lab.sites[0].tunnel()[0]));
        wait_until("a prefix that the peer may not get", FOLLOWED, || {
            let output = lab.hub_lan.try_run("ping -n -c 1 -W 1 10.21.0.1");
            String::from_utf8_lossy(&output.stdout).contains("Packet filtered").then_some(())
        });
        assert!(hub.show()["peers"][0]["drops"]["not_allowed_ip"].as_u64().unwrap() > 0);

        // The path to the second site is narrower, which the gateway measures.
        lab.wan.run(
            "ip route replace 198.51.102.0/24 dev gw-2 proto kernel scope link src 198.51.102.2 mtu 1400",
        );
        let mtu = wait_until("the narrow path is measured", Duration::from_secs(60), || {
            let mtu = hub.show()["peers"][1]["mtu"].as_u64().unwrap();
            (mtu < 1420).then_some(mtu)
        });
        let [v4, v6] = lab.sites[1].host();
        for (host, header) in [(&v4, 28), (&v6, 48)] {
            let size = mtu - header + 1;
            let output = lab.hub_lan.try_run(&format!("ping -n -M do -c 2 -W 1 -s {size} {host}"));
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let told = text.contains(&format!("mtu = {mtu}")) || text.contains(&format!("mtu={mtu}"));
            assert!(told || text.contains("Packet too big"), "{text}");
            lab.hub_lan.run(&format!("ping -n -M do -c 1 -W 5 -s {} {host}", size - 1));
        }
        // From now on the kernel knows the path MTU, and TCP and other protocols respect it.
        assert!(lab.hub_lan.run(&format!("ip route get {v4}")).contains(&format!("mtu {mtu}")));
        assert!(hub.show()["peers"][1]["drops"]["too_big"].as_u64().unwrap() > 0);
        assert!(hub.show()["peers"][0]["drops"]["too_big"].as_u64().unwrap() == 0);
    });
}

#[test]
fn fifty_thousand_routes_that_flap_harm_nothing() {
    sandbox::run("fifty_thousand_routes_that_flap_harm_nothing", || {
        let lab = HubLab::new(3);
        let (hub, _sites) = lab.start_all(&HubOptions::default());
        static_routes(&lab);
        wait_up(&hub);
        for site in &lab.sites {
            wait_pings(&lab.hub_lan, &site.host()[0]);
        }
        let hosts = [(&lab.hub_lan, "10.10.0.2"), (&lab.sites[0].lan, "10.20.1.2")];
        let stream = Stream { rate: 500, ..Stream::default() }.start_between(hosts, [8_000; 2]);
        let routes = |gateway: &str, action: &str| {
            let mut text = String::new();
            for n in 0..50_000u32 {
                let [a, b, c, d] = (0x0a16_0000 + n).to_be_bytes();
                writeln!(text, "route {action} {a}.{b}.{c}.{d}/32 via {gateway} dev qvpn0 onlink").unwrap();
            }
            let mut child =
                lab.hub.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success());
        };
        routes("10.77.0.3", "add");
        for gateway in ["10.77.0.4", "10.77.0.99", "10.77.0.3"] {
            routes(gateway, "replace");
            // A control request is answered in the meantime.
            let _ = hub.show();
        }
        wait_until("all routes are followed", START, || {
            let routing = routing(&hub);
            (routing["routes"].as_u64()? > 50_000
                && routing["peers"][1]["routes"].as_u64()? >= 50_000
                && routing["unresolved_routes"] == 0)
                .then_some(())
        });
        routes("10.77.0.3", "del");
        let [hub_lan, site] = stream.finish();
        println!("while 250,000 changes were made: {hub_lan:?} {site:?}");
        assert_eq!((hub_lan.refused, site.refused), (0, 0));
        assert!(hub_lan.received.lost + site.received.lost <= 80, "1 in 200 at most: {hub_lan:?} {site:?}");
        wait_until("all routes are gone", START, || {
            (routing(&hub)["peers"][1]["routes"].as_u64()? < 10).then_some(())
        });
    });
}

/// A program that prints what it receives on a multicast group of the tunnel's link, and the sender.
const LISTEN: &str = r#"
import socket, struct, sys
group = sys.argv[1]
six = ":" in group
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
i = socket.if_nametoindex("qvpn0")
s.bind(("", 9000))
if six:
    member = socket.inet_pton(socket.AF_INET6, group) + struct.pack("I", i)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
else:
    member = struct.pack("4s4si", socket.inet_aton(group), bytes(4), i)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
print("ready", flush=True)
data, source = s.recvfrom(100)
print("got", data.decode(), source[0].split("%")[0], flush=True)
"#;

const SEND: &str = r#"
import socket, struct, sys
group = sys.argv[1]
i = socket.if_nametoindex("qvpn0")
if ":" in group:
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"hello", (group, 9000, 0, i))
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), i))
    s.sendto(b"hello", (group, 9000))
"#;

#[test]
fn multicast_of_the_link_reaches_all_peers_and_link_local_addresses_are_fixed() {
    let name = "multicast_of_the_link_reaches_all_peers_and_link_local_addresses_are_fixed";
    sandbox::run(name, || {
        let lab = HubLab::new(2);
        lab.configure(&HubOptions::default());
        // The second site has a link-local address of its own choice.
        for (file, from, to) in [
            (lab.sites[1].gw.dir().join("qvpn0.toml"), "\"fd77::3/64\"", "\"fd77::3/64\", \"fe80::3/64\""),
            (lab.hub.dir().join("qvpn0.toml"), "\"fd77::3\"", "\"fd77::3\", \"fe80::3\""),
        ] {
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
        }
        let hub = lab.start(&lab.hub);
        let mut sites: Vec<_> = lab.sites.iter().map(|site| lab.start(&site.gw)).collect();
        wait_up(&hub);
        let link_local = |gateway: &Gateway<'_>| routing(gateway)["link_local"].as_str().unwrap().to_owned();
        let (own, first) = (link_local(&hub), link_local(&sites[0]));
        assert_eq!(link_local(&sites[1]), "fe80::3");
        for other in [first.as_str(), "fe80::3"] {
            wait_pings(&lab.hub, &format!("{other}%qvpn0"));
        }
        for (node, address) in
            [(&lab.hub, own.as_str()), (&lab.sites[0].gw, &first), (&lab.sites[1].gw, "fe80::3")]
        {
            let text = node.run("ip -6 addr show dev qvpn0 scope link");
            assert!(text.matches("inet6").count() == 1 && text.contains(address), "{address}: {text}");
        }
        // It is the same after a restart.
        sites[0].process.kill();
        sites[0] = lab.start(&lab.sites[0].gw);
        assert_eq!(link_local(&sites[0]), first);
        wait_pings(&lab.hub, &format!("{first}%qvpn0"));

        for (group, source) in [("ff02::1234", own.as_str()), ("224.0.0.200", "10.77.0.1")] {
            let listen = |site: &HubSite| {
                let mut listener = site.gw.spawn("python3", &["-c", LISTEN, group]);
                listener.line("ready", START);
                listener
            };
            let mut listeners: Vec<_> = lab.sites.iter().map(listen).collect();
            lab.hub.run(&format!("python3 -c '{SEND}' {group}"));
            for listener in &mut listeners {
                assert_eq!(listener.line("got", FOLLOWED), format!("got hello {source}"), "{group}");
            }
        }
    });
}
