//! FRR (Debian's) over `routes = "kernel"`: BGP with global and with link-local next hops, OSPFv2 at a hub of
//! three sites, OSPFv3, BFD, a site with two gateways, and VXLAN. Nothing leaves in clear when FRR withdraws
//! a route or a daemon is killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use tests::{
    Capture, Frr, Gateway, GatewayOptions, HubLab, HubOptions, Lab, Node, Packets, Site, Stream, sandbox,
    wait_until,
};

/// Time for the first epochs and sessions, in a debug build on a busy machine.
const START: Duration = Duration::from_secs(40);

/// Three missed packets at 100 ms.
const FAST_BFD: &str =
    "bfd\n profile fast\n  transmit-interval 100\n  receive-interval 100\n  detect-multiplier 3\n";

/// Parts of a BGP speaker's config, with quick timers.
struct Bgp {
    text: String,
    v4: String,
    v6: String,
}

impl Bgp {
    fn new(number: u32, router: &str) -> Self {
        let text = format!(
            "router bgp {number}\n bgp router-id {router}\n no bgp ebgp-requires-policy\n \
             no bgp network import-check\n timers bgp 1 3\n"
        );
        Self { text, v4: String::new(), v6: String::new() }
    }

    /// Adds a neighbor by its address in the tunnel, or by the device if it is the only neighbor there. With
    /// an IPv6 session, IPv4 prefixes get IPv6 next hops (RFC 8950).
    fn neighbor(mut self, address: &str, number: u32) -> Self {
        let how = if address == "qvpn0" { "interface " } else { "" };
        writeln!(self.text, " neighbor {address} {how}remote-as {number}").unwrap();
        if address.contains(':') {
            writeln!(self.text, " neighbor {address} capability extended-nexthop").unwrap();
        }
        writeln!(self.text, " neighbor {address} timers connect 1").unwrap();
        writeln!(self.text, " neighbor {address} advertisement-interval 0").unwrap();
        writeln!(self.text, " neighbor {address} bfd profile fast").unwrap();
        for family in [&mut self.v4, &mut self.v6] {
            writeln!(family, "  neighbor {address} activate").unwrap();
        }
        self
    }

    /// Prefers the paths of the neighbor with this address.
    fn prefer(mut self, address: &str) -> Self {
        for family in [&mut self.v4, &mut self.v6] {
            writeln!(family, "  neighbor {address} weight 200").unwrap();
        }
        self
    }

    fn network(mut self, prefix: &str) -> Self {
        let family = if prefix.contains(':') { &mut self.v6 } else { &mut self.v4 };
        writeln!(family, "  network {prefix}").unwrap();
        self
    }

    fn config(&self) -> String {
        format!(
            "{} address-family ipv4 unicast\n{} exit-address-family\n \
             address-family ipv6 unicast\n{} exit-address-family\n",
            self.text, self.v4, self.v6
        )
    }
}

fn bgp_and_bfd<'a>(node: &'a Node, bgp: &Bgp) -> Frr<'a> {
    Frr::start(node, &[("bfdd", FAST_BFD), ("bgpd", &bgp.config())])
}

fn wait_up(gateway: &Gateway<'_>) {
    wait_until("all peers are up", START, || {
        let show = gateway.try_show()?;
        show["peers"].as_array()?.iter().all(|peer| peer["state"] == "up").then_some(())
    });
}

fn link_local(gateway: &Gateway<'_>) -> String {
    gateway.show()["routing"]["link_local"].as_str().unwrap().to_owned()
}

#[track_caller]
fn wait_pings(from: &Node, to: &str) {
    wait_until(&format!("{} reaches {to}", from.name()), START, || from.pings(to).then_some(()));
}

/// Checks that no inner packet from `from` to one of the others is in clear.
fn assert_nothing_clear(seen: &Packets, from: &str, to: &[&str]) {
    let octets = |text: &str| match text.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let patterns: Vec<Vec<u8>> = to.iter().map(|to| [octets(from), octets(to)].concat()).collect();
    let clear = seen.with_any(&patterns);
    assert!(clear.is_empty(), "{} packets in clear, the first: {:?}", clear.len(), clear[0]);
}

#[test]
fn bgp_by_global_and_by_link_local_next_hops() {
    sandbox::run("bgp_by_global_and_by_link_local_next_hops", || {
        let lab = HubLab::new(2);
        let (hub, sites) = lab.start_all(&HubOptions::default());
        wait_up(&hub);
        let hub_bgp = Bgp::new(65000, "10.77.0.1").network("10.10.0.0/24").network("fd10::/64");
        let hub_bgp = hub_bgp.neighbor("10.77.0.2", 65001).neighbor("fd77::3", 65002);
        let site = |number: u8| {
            Bgp::new(65000 + u32::from(number), &format!("10.77.0.{}", number + 1))
                .network(&format!("10.20.{number}.0/24"))
                .network(&format!("fd20:{number}::/64"))
        };
        let hub_frr = bgp_and_bfd(&lab.hub, &hub_bgp);
        let mut first = bgp_and_bfd(&lab.sites[0].gw, &site(1).neighbor("10.77.0.1", 65000));
        let _second = bgp_and_bfd(&lab.sites[1].gw, &site(2).neighbor("fd77::1", 65000));

        let [second4, second6] = lab.sites[1].host();
        for host in [&lab.sites[0].host()[0], &second4, &second6] {
            wait_pings(&lab.hub_lan, host);
        }
        wait_pings(&lab.sites[0].lan, &second4);
        let routes = lab.hub.run("ip route show proto bgp; ip -6 route show proto bgp");
        let by = |prefix: &str, hop: &str| {
            routes.lines().any(|line| line.starts_with(prefix) && line.contains(hop))
        };
        let link_local = link_local(&sites[1]);
        assert!(by("10.20.1.0/24", "via 10.77.0.2"), "{routes}");
        assert!(by("10.20.2.0/24", "via inet6") && by("fd20:2::/64", &link_local), "{link_local}: {routes}");
        wait_until("BFD is up with both", START, || {
            let peers = hub_frr.show("show bfd peers");
            let up = peers.as_array()?.iter().filter(|peer| peer["status"] == "up").count();
            (up == 2).then_some(())
        });

        // The site withdraws its prefix: there is no route, and nothing leaves in clear by the default route.
        let capture = Capture::start(&lab.wan, "hub", "198.51.100.1");
        first.kill("bgpd");
        let host = &lab.sites[0].host()[0];
        wait_until("the route is withdrawn", START, || {
            let output = lab.hub_lan.try_run(&format!("ping -n -c 1 -W 1 {host}"));
            String::from_utf8_lossy(&output.stdout).contains("Destination Net Unreachable").then_some(())
        });
        wait_pings(&lab.hub_lan, &lab.sites[1].host()[0]);
        assert_nothing_clear(&capture.stop(), "10.10.0.2", &[host, &lab.sites[1].host()[0]]);
    });
}

/// Makes the second gateway serve the prefix 10.21.0.0/24, which is behind the host of the first. The host is
/// a router of the site, with a link to each gateway.
fn join_second_gateway(lab: &HubLab) {
    let [first, second] = [&lab.sites[0], &lab.sites[1]];
    first.lan.join("lan2", &second.gw, "lan2");
    first.lan.run("ip addr add 10.21.9.2/30 dev lan2 && ip addr add 10.21.0.1/32 dev lo");
    second.gw.run("ip addr add 10.21.9.1/30 dev lan2");
    first.gw.run("ip route add 10.21.0.0/24 via 10.20.1.2");
    second.gw.run("ip route add 10.21.0.0/24 via 10.21.9.2");
    let link = "{ prefix = \"10.21.9.0/30\", device = \"lan2\" }, ";
    for (site, device, link) in [(first, "lan", ""), (second, "lan2", link)] {
        let file = site.gw.dir().join("qvpn0.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let own = format!("local = [{link}{{ prefix = \"10.21.0.0/24\", device = \"{device}\" }}, ");
        std::fs::write(&file, text.replace("local = [", &own)).unwrap();
    }
}

#[test]
fn a_site_with_two_gateways_is_reached_by_the_other_within_a_second() {
    sandbox::run("a_site_with_two_gateways_is_reached_by_the_other_within_a_second", || {
        let lab = HubLab::new(2);
        lab.configure(&HubOptions::default());
        join_second_gateway(&lab);
        let hub = lab.start(&lab.hub);
        let mut sites: Vec<Gateway<'_>> = lab.sites.iter().map(|site| lab.start(&site.gw)).collect();
        wait_up(&hub);
        let hub_bgp = Bgp::new(65000, "10.77.0.1").network("10.10.0.0/24");
        let hub_bgp = hub_bgp.neighbor("10.77.0.2", 65001).neighbor("10.77.0.3", 65001).prefer("10.77.0.2");
        let site = |number: u8, host: &str| {
            let site = Bgp::new(65001, &format!("10.77.0.{}", number + 1)).network("10.21.0.0/24");
            site.neighbor("10.77.0.1", 65000).neighbor(host, 65010)
        };
        // The site's router learns from both gateways which of them reaches the hub.
        let router = Bgp::new(65010, "10.20.1.2").neighbor("10.20.1.1", 65001).neighbor("10.21.9.1", 65001);
        let hub_frr = bgp_and_bfd(&lab.hub, &hub_bgp);
        let _frr = [
            bgp_and_bfd(&lab.sites[0].gw, &site(1, "10.20.1.2")),
            bgp_and_bfd(&lab.sites[1].gw, &site(2, "10.21.9.2")),
            bgp_and_bfd(&lab.sites[0].lan, &router.prefer("10.20.1.1")),
        ];
        let next_hop = || {
            let route = lab.hub.run("ip route show 10.21.0.0/24 proto bgp");
            ["10.77.0.2", "10.77.0.3"].into_iter().filter(|hop| route.contains(hop)).collect::<Vec<_>>()
        };
        let way_back = || {
            let route = lab.sites[0].lan.run("ip route show 10.10.0.0/24 proto bgp");
            ["10.20.1.1", "10.21.9.1"].into_iter().filter(|hop| route.contains(hop)).collect::<Vec<_>>()
        };
        wait_until("both gateways announce the prefix", START, || {
            let paths = hub_frr.show("show bgp ipv4 unicast 10.21.0.0/24");
            let both = paths["paths"].as_array().is_some_and(|paths| paths.len() == 2);
            let peers = hub_frr.show("show bfd peers");
            let up = peers.as_array()?.iter().filter(|peer| peer["status"] == "up").count();
            (both && up == 2 && next_hop() == ["10.77.0.2"] && way_back() == ["10.20.1.1"]).then_some(())
        });
        wait_until("the host is reached", START, || {
            lab.hub_lan.try_run("ping -n -c 1 -W 1 10.21.0.1").status.success().then_some(())
        });

        let capture = Capture::start(&lab.wan, "hub", "198.51.100.1");
        let hosts = [(&lab.hub_lan, "10.10.0.2"), (&lab.sites[0].lan, "10.21.0.1")];
        let rate = 500;
        let arrived = |site: &Gateway<'_>| site.peer()["rx_packets"].as_u64().unwrap();
        let before = arrived(&sites[0]);
        let stream = Stream { rate, ..Stream::default() }.start_between(hosts, [rate * 20; 2]);
        wait_until("the stream passes the first gateway", START, || {
            (arrived(&sites[0]) > before + rate / 2).then_some(())
        });
        sites[0].process.kill();
        wait_until("the second gateway is the next hop", START, || {
            (next_hop() == ["10.77.0.3"] && way_back() == ["10.21.9.1"]).then_some(())
        });
        // The gateway returns, and with it the preferred path.
        sites[0] = lab.start(&lab.sites[0].gw);
        wait_until("the first gateway is the next hop again", START, || {
            (next_hop() == ["10.77.0.2"] && way_back() == ["10.20.1.1"]).then_some(())
        });
        for (at, host) in ["the hub", "the site"].into_iter().zip(stream.finish()) {
            println!("one gateway killed and back, at {at}: {:?}", host.received);
            let stopped = Duration::from_secs_f64(host.received.longest_gap_ms / 1000.0);
            assert!(stopped < Duration::from_secs(1), "traffic to {at} stopped for {stopped:?}");
            assert!(host.received.lost > 0, "the stream to {at} passed the gateway that was killed");
            assert!(host.received.distinct > rate * 18, "{host:?}");
        }
        assert_nothing_clear(&capture.stop(), "10.10.0.2", &["10.21.0.1"]);
    });
}

/// Returns a config of `ospfd` for the tunnel's device and, passive, the LAN.
fn ospf(router: &str) -> String {
    format!(
        "interface qvpn0\n ip ospf area 0\n ip ospf network point-to-multipoint\n ip ospf hello-interval 1\n \
         ip ospf dead-interval 4\ninterface lan\n ip ospf area 0\n ip ospf passive\nrouter ospf\n \
         ospf router-id {router}\n timers throttle spf 0 50 200\n"
    )
}

#[test]
fn ospf_over_one_device_at_a_hub_of_three_sites() {
    sandbox::run("ospf_over_one_device_at_a_hub_of_three_sites", || {
        let lab = HubLab::new(3);
        let (hub, _sites) = lab.start_all(&HubOptions::default());
        wait_up(&hub);
        let hub_frr = Frr::start(&lab.hub, &[("ospfd", &ospf("10.77.0.1"))]);
        let _frr: Vec<Frr<'_>> = lab
            .sites
            .iter()
            .map(|site| Frr::start(&site.gw, &[("ospfd", &ospf(&site.tunnel()[0]))]))
            .collect();
        wait_until("three neighbors are full", START, || {
            let text = hub_frr.vtysh(&["show ip ospf neighbor"]);
            (text.matches("Full/").count() == 3).then_some(())
        });
        for site in &lab.sites {
            wait_pings(&lab.hub_lan, &site.host()[0]);
        }
        wait_pings(&lab.sites[0].lan, &lab.sites[2].host()[0]);
        let routing = hub.show()["routing"].clone();
        assert_eq!(routing["unresolved_routes"], 0, "{routing:#}");
    });
}

/// Two sites, each with one peer.
fn start_pair(lab: &Lab) -> [Gateway<'_>; 2] {
    for site in Site::BOTH {
        let options = GatewayOptions {
            kms: None,
            qkd: "off".to_owned(),
            interface: "routes = \"kernel\"".to_owned(),
            peer: format!("tunnel_address = [\"10.77.0.{}\"]", site.other() as u8 + 1),
            ..GatewayOptions::default()
        };
        let _ = lab.configure(site, &options);
    }
    let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    gateways.iter().for_each(wait_up);
    gateways
}

#[test]
fn bgp_between_link_local_addresses_over_a_device_with_one_peer() {
    sandbox::run("bgp_between_link_local_addresses_over_a_device_with_one_peer", || {
        let lab = Lab::new();
        let gateways = start_pair(&lab);
        let _frr = Site::BOTH.map(|site| {
            let number = site as u32;
            let bgp = Bgp::new(65000 + number, &format!("10.77.0.{}", number + 1));
            let [v4, v6] = site.networks();
            bgp_and_bfd(lab.gw(site), &bgp.network(v4).network(v6).neighbor("qvpn0", 65001 - number))
        });
        for host in Site::B.host() {
            wait_pings(&lab.lan_a, host);
        }
        let routes = lab.gw_a.run("ip route show proto bgp; ip -6 route show proto bgp");
        let hop = link_local(&gateways[1]);
        assert!(routes.contains(&format!("via {hop}")), "{hop}\n{routes}");
    });
}

#[test]
fn ospfv3_over_a_device_with_one_peer() {
    sandbox::run("ospfv3_over_a_device_with_one_peer", || {
        let lab = Lab::new();
        let gateways = start_pair(&lab);
        let ospf6 = |router: &str| {
            format!(
                "interface qvpn0\n ipv6 ospf6 area 0\n ipv6 ospf6 network point-to-point\n \
                 ipv6 ospf6 hello-interval 1\n ipv6 ospf6 dead-interval 4\n\
                 interface lan\n ipv6 ospf6 area 0\n ipv6 ospf6 passive\n\
                 router ospf6\n ospf6 router-id {router}\n"
            )
        };
        let frr = Site::BOTH.map(|site| {
            let router = format!("10.77.0.{}", site as u8 + 1);
            Frr::start(lab.gw(site), &[("ospf6d", &ospf6(&router))])
        });
        wait_until("the neighbor is full", START, || {
            frr[0].vtysh(&["show ipv6 ospf6 neighbor"]).contains("Full").then_some(())
        });
        wait_pings(&lab.lan_a, Site::B.host()[1]);
        let routes = lab.gw_a.run("ip -6 route show proto ospf");
        let hop = link_local(&gateways[1]);
        assert!(routes.contains("fd20::/64") && routes.contains(&hop), "{hop}\n{routes}");
    });
}

#[test]
fn under_table_off_nothing_is_in_clear_when_frr_withdraws_or_the_daemon_is_killed() {
    let name = "under_table_off_nothing_is_in_clear_when_frr_withdraws_or_the_daemon_is_killed";
    sandbox::run(name, || {
        let lab = HubLab::new(1);
        let (mut hub, _sites) = lab.start_all(&HubOptions {
            hub: "routes = \"kernel\"\ntable = \"off\"\nprotect = [\"10.20.0.0/16\", \"fd20::/16\", \
                  \"10.77.0.0/24\"]"
                .to_owned(),
            ..HubOptions::default()
        });
        wait_up(&hub);
        let site = &lab.sites[0];
        let hub_bgp = Bgp::new(65000, "10.77.0.1").network("10.10.0.0/24").neighbor("10.77.0.2", 65001);
        let site_bgp = Bgp::new(65001, "10.77.0.2").network("10.20.1.0/24").neighbor("10.77.0.1", 65000);
        let _hub_frr = bgp_and_bfd(&lab.hub, &hub_bgp);
        let mut site_frr = bgp_and_bfd(&site.gw, &site_bgp);
        let host = &site.host()[0];
        wait_pings(&lab.hub_lan, host);
        let capture = Capture::start(&lab.wan, "hub", "198.51.100.1");
        let hosts = [(&lab.hub_lan, "10.10.0.2"), (&site.lan, host.as_str())];
        let stream = Stream { rate: 500, ..Stream::default() }.start_between(hosts, [5_000, 0]);
        site_frr.kill("bgpd");
        let withdrawn = || lab.hub.run("ip route show proto bgp").is_empty().then_some(());
        wait_until("FRR withdraws the route", START, withdrawn);
        assert!(!lab.hub_lan.pings(host));
        let site_frr = bgp_and_bfd_again(&site.gw, &site_bgp, site_frr);
        wait_pings(&lab.hub_lan, host);
        hub.process.kill();
        wait_until("the route goes with the device", START, withdrawn);
        assert!(!lab.hub_lan.pings(host));
        let _ = stream.finish();
        let seen = capture.stop();
        assert!(seen.data().len() > 100, "the capture saw the tunnel");
        assert_nothing_clear(&seen, "10.10.0.2", &[host]);
        drop(site_frr);
    });
}

/// Starts the daemons again after the former ones have ended.
fn bgp_and_bfd_again<'a>(node: &'a Node, bgp: &Bgp, former: Frr<'a>) -> Frr<'a> {
    drop(former);
    bgp_and_bfd(node, bgp)
}

/// Returns the code block that follows this comment in the page.
fn block(page: &str, comment: &str) -> String {
    let rest = page.split(&format!("<!-- {comment} -->")).nth(1).unwrap_or_else(|| panic!("{comment}"));
    let block = rest.split("```").nth(1).unwrap();
    block.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn the_configs_and_commands_of_the_page_work() {
    sandbox::run("the_configs_and_commands_of_the_page_work", || {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let page = std::fs::read_to_string(root.join("docs/dynamic-routing.md")).unwrap();
        let lab = HubLab::new(1);
        let site = &lab.sites[0];
        let start = |name: &str, own: &Node, other: &Node| {
            let config = block(&page, &format!("file: {name} qvpn0.toml"));
            assert!(config.contains("\"qvpn1-…\""), "the page leaves the other site's key out");
            // The daemon's own key, in the file of its default name.
            let _ = lab.identity(own);
            let config = config.replace("qvpn1-…", &lab.identity(other).public);
            std::fs::write(own.dir().join("qvpn0.toml"), config).unwrap();
        };
        start("hub", &lab.hub, &site.gw);
        start("site", &site.gw, &lab.hub);
        let (hub, _site) = (lab.start(&lab.hub), lab.start(&site.gw));
        wait_up(&hub);
        let frr: Vec<Frr<'_>> = [("hub", &lab.hub), ("site", &site.gw)]
            .into_iter()
            .map(|(name, node)| {
                let frr = Frr::start(node, &[("bfdd", ""), ("bgpd", "")]);
                frr.apply(&block(&page, &format!("file: {name} frr.conf")));
                frr
            })
            .collect();
        wait_pings(&lab.hub_lan, &site.host()[0]);
        wait_until("BFD is up", START, || (frr[0].show("show bfd peers")[0]["status"] == "up").then_some(()));
        let commands = block(&page, "run: hub");
        let commands: Vec<&str> = commands.lines().filter_map(|line| line.strip_prefix("# ")).collect();
        assert_eq!(commands.len(), 3, "{commands:?}");
        let path = tests::binary("qvpn-ctl").parent().unwrap().display().to_string();
        let dir = lab.hub.dir().display().to_string();
        let mut printed = String::new();
        for command in commands {
            let command = command.replace("qvpn-ctl", &format!("qvpn-ctl --config-dir {dir}"));
            // `doctor` also reports faults of the lab itself.
            let output = lab.hub.try_run(&format!("PATH={path}:$PATH; {command}"));
            printed += &String::from_utf8_lossy(&output.stdout);
        }
        for wanted in ["10.20.1.0/24 nhid", "routes: 10.20.1.0/24", "each leads to a peer"] {
            assert!(printed.contains(wanted), "{wanted}:\n{printed}");
        }
    });
}

#[test]
fn vxlan_over_the_tunnel_has_the_mtu_of_its_device() {
    sandbox::run("vxlan_over_the_tunnel_has_the_mtu_of_its_device", || {
        let lab = HubLab::new(1);
        let (hub, _sites) = lab.start_all(&HubOptions::default());
        wait_up(&hub);
        let ends = [(&lab.hub, 1, 2), (&lab.sites[0].gw, 2, 1)];
        for (node, own, other) in ends {
            node.run(&format!(
                "ip link add vx0 type vxlan id 7 local 10.77.0.{own} remote 10.77.0.{other} \
                 dstport 4789 dev qvpn0 && \
                 ip addr add 192.168.99.{own}/24 dev vx0 && ip link set vx0 up"
            ));
        }
        wait_pings(&lab.hub, "192.168.99.2");
        // 1,420 bytes of the tunnel less IPv4, UDP, VXLAN and Ethernet.
        let mtu = 1420 - 50;
        assert!(lab.hub.run("ip link show vx0").contains(&format!("mtu {mtu}")));
        lab.hub.run(&format!("ping -n -M do -c 2 -i 0.2 -W 5 -s {} 192.168.99.2", mtu - 28));
        assert!(
            !lab.hub
                .try_run(&format!("ping -n -M do -c 1 -W 1 -s {} 192.168.99.2", mtu - 27))
                .status
                .success()
        );
    });
}
