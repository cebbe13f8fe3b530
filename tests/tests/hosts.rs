//! Changes of a gateway's host: routes and addresses change while the daemon runs, the host has many tunnels,
//! and a tunnel runs inside another.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use tests::{
    Capture, Gateway, GatewayOptions, INTERFACE, KmeOptions, Lab, Outer, PORT, Site, Stream, binary, sandbox,
    wait_until,
};

const START: Duration = Duration::from_secs(20);

fn start(lab: &Lab) -> [Gateway<'_>; 2] {
    let gateways = lab.start_both(&GatewayOptions::default());
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    for site in Site::BOTH {
        for address in site.other().host() {
            assert!(lab.lan(site).pings(address));
        }
    }
    gateways
}

fn wait_traffic(lab: &Lab, what: &str) {
    let start = Instant::now();
    for from in Site::BOTH {
        for address in from.other().host() {
            wait_until(&format!("{what}: {address} again"), Duration::from_secs(20), || {
                lab.lan(from).pings(address).then_some(())
            });
        }
    }
    println!("{what}: traffic passes after {:?}", start.elapsed());
}

#[test]
fn changes_of_the_hosts_network_are_survived() {
    sandbox::run("changes_of_the_hosts_network_are_survived", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab);
        let mut events = gateways[0].events();
        let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        let gw = &lab.gw_a;
        let routes = |family: &str| gw.run(&format!("ip {family} route show table all proto 113"));
        let ours = [routes("-4"), routes("-6")];

        // The routes are flushed: the daemon restores them, and the block holds in between.
        let stream = Stream { count: 3_000, rate: 1_000, ..Stream::default() }.start(&lab);
        gw.run(
            "ip route del 10.20.0.0/16 dev qvpn0 table 29046; ip -6 route del fd20::/64 dev qvpn0 table \
                29046",
        );
        events.line("routes.restored", Duration::from_secs(5));
        wait_traffic(&lab, "routes deleted");
        let [a, b] = stream.finish();
        println!("routes deleted: {a:?} {b:?}");
        assert!(b.received.lost < 500, "{b:?}");

        // The tunnel's addresses are flushed, and it is set down and up, as network managers do.
        gw.run(&format!("ip addr flush dev {INTERFACE}"));
        wait_until("the address is back", Duration::from_secs(5), || {
            gw.run(&format!("ip addr show dev {INTERFACE}")).contains("10.77.0.1/30").then_some(())
        });
        wait_traffic(&lab, "addresses flushed");
        gw.run(&format!("ip link set {INTERFACE} down"));
        wait_until("the tunnel is up again", Duration::from_secs(5), || {
            gw.run(&format!("ip link show dev {INTERFACE}")).contains(",UP").then_some(())
        });
        wait_traffic(&lab, "tunnel taken down");
        assert_eq!([routes("-4"), routes("-6")], ours, "all is as before");

        // The WAN link goes down and up, which removes the default routes.
        gw.run("ip link set wan down");
        std::thread::sleep(Duration::from_secs(1));
        gw.run(
            "ip link set wan up; ip addr replace 2001:db8:a::1/64 dev wan; \
             ip route replace default via 198.51.100.2; ip -6 route replace default via 2001:db8:a::2",
        );
        wait_traffic(&lab, "WAN down and up");

        // The default route moves to another interface and back.
        gw.join("wan2", &lab.wan, "site-a2");
        gw.run("ip addr add 192.0.2.1/24 dev wan2");
        lab.wan.run("ip addr add 192.0.2.2/24 dev site-a2");
        gw.run("ip route replace default via 192.0.2.2");
        gateways[1].wait_peer("the other path", Duration::from_secs(10), |peer| {
            peer["endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with("192.0.2.1:"))
        });
        wait_traffic(&lab, "default route by another interface");
        gw.run("ip route replace default via 198.51.100.2");
        gateways[1].wait_peer("the first path", Duration::from_secs(10), |peer| {
            peer["endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with("198.51.100.1:"))
        });
        gw.run("ip link del wan2");
        wait_traffic(&lab, "the other interface is gone");

        // The LAN gets another address; the tunnel does not depend on it.
        gw.run("ip addr add 10.10.0.7/16 dev lan && ip addr del 10.10.0.7/16 dev lan");
        let seen = capture.stop();
        let clear = seen.with_any(&lab.inner_patterns());
        assert!(clear.is_empty(), "{} packets in clear, the first: {:?}", clear.len(), clear[0]);
        for report in (Stream { count: 2_000, rate: 1_000, ..Stream::default() }).run(&lab) {
            assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
        }
    });
}

/// Gives LAN hosts one more address for each tunnel; each tunnel leads to one of them.
fn numbered(number: u8, site: Site) -> GatewayOptions {
    let other = if site == Site::A { 20 } else { 10 };
    GatewayOptions {
        number,
        allowed_ips: vec![format!("10.{other}.{number}.0/24")],
        rekey_interval: "2s".to_owned(),
        ..GatewayOptions::default()
    }
}

#[test]
fn ten_tunnels_on_one_host() {
    sandbox::run("ten_tunnels_on_one_host", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let mut gateways = Vec::new();
        for number in 0..10 {
            for site in Site::BOTH {
                let own = if site == Site::A { 10 } else { 20 };
                if number > 0 {
                    lab.lan(site).run(&format!("ip addr add 10.{own}.{number}.2/32 dev lan"));
                }
                let _ = lab.configure(site, &numbered(number, site));
            }
        }
        for number in 0..10 {
            for site in Site::BOTH {
                let interface = format!("qvpn{number}");
                gateways.push(lab.start_daemon_as(site, &interface, &binary("qvpn-daemon"), &[]));
            }
        }
        for gateway in &gateways {
            gateway.wait_state("up", Duration::from_secs(60));
        }
        for number in 0..10 {
            let before = gateways[2 * number].peer()["rx_packets"].as_u64().unwrap();
            lab.lan_a.run(&format!("ping -n -c 3 -i 0.1 -W 2 -I 10.10.{number}.2 10.20.{number}.2"));
            let after = gateways[2 * number].peer()["rx_packets"].as_u64().unwrap();
            assert!(after >= before + 3, "by its own tunnel, number {number}");
        }
        // One tunnel ends, and the others continue.
        gateways[0].process.kill();
        assert!(!lab.lan_a.pings("10.20.0.2"));
        lab.lan_a.run("ping -n -c 3 -i 0.1 -W 2 -I 10.10.9.2 10.20.9.2");
        let all = gateways[1].ctl(&["show", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
        assert_eq!(status["interfaces"].as_array().unwrap().len(), 10, "`show` without a name has them all");
    });
}

#[test]
fn a_tunnel_within_a_tunnel() {
    sandbox::run("a_tunnel_within_a_tunnel", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let mut gateways = Vec::new();
        for site in Site::BOTH {
            let (own, other) = if site == Site::A { (10, 20) } else { (20, 10) };
            let host = if site == Site::A { 2 } else { 1 };
            lab.lan(site).run(&format!("ip addr add 10.{own}.1.2/32 dev lan"));
            // The outer tunnel carries the LANs and the inner tunnel's endpoint.
            let mut allowed_ips = site.other().networks().map(str::to_owned).to_vec();
            allowed_ips.push(format!("10.77.0.{host}/32"));
            let _ = lab.configure(site, &GatewayOptions { allowed_ips, ..GatewayOptions::default() });
            // The inner tunnel has a part of the LANs, and its endpoint is inside the outer one.
            let inner = GatewayOptions {
                number: 1,
                allowed_ips: vec![format!("10.{other}.1.0/24")],
                endpoint: false,
                peer: format!("endpoint = \"10.77.0.{host}:{}\"", PORT + 1),
                interface: "mtu = 1340".to_owned(),
                ..GatewayOptions::default()
            };
            let _ = lab.configure(site, &inner);
            for interface in ["qvpn0", "qvpn1"] {
                gateways.push(lab.start_daemon_as(site, interface, &binary("qvpn-daemon"), &[]));
            }
        }
        for gateway in &gateways {
            gateway.wait_state("up", Duration::from_secs(40));
        }
        let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        let outer = gateways[0].peer()["tx_packets"].as_u64().unwrap();
        let inner = gateways[1].peer()["tx_packets"].as_u64().unwrap();
        let mut server = lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
        server.line("Server listening", Duration::from_secs(10));
        let text = lab.lan_a.run("iperf3 --client 10.20.1.2 --bind 10.10.1.2 --bitrate 30M --time 3 --json");
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(bytes > 1_000_000, "{bytes} bytes by TCP");
        let more = |gateway: &Gateway<'_>, before| gateway.peer()["tx_packets"].as_u64().unwrap() - before;
        assert!(more(&gateways[1], inner) > 500 && more(&gateways[0], outer) > 500, "sealed twice");
        let seen = capture.stop();
        assert!(seen.with_udp_port(PORT).len() > 500, "the outer one is seen");
        assert!(seen.with_udp_port(PORT + 1).is_empty(), "the inner one isn't");
        for gateway in &gateways {
            let before = gateway.peer()["rekeys"].as_u64().unwrap();
            gateway.wait_peer("rekeys", START, |peer| peer["rekeys"].as_u64() > Some(before + 1));
        }
    });
}
