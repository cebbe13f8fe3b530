//! The path from a LAN host's point of view: ICMP errors through the tunnel, fragments, and a path MTU that
//! changes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Outer, Site, Stream, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
/// An unused address in the far site's network.
const FAR_AND_QUIET: &str = "10.20.0.99";

/// Starts both sites, which also allow each other's tunnel address, since the far gateway replies from it.
fn start<'a>(lab: &'a Lab, options: &GatewayOptions) -> [Gateway<'a>; 2] {
    let [a, b] = Site::BOTH.map(|site| {
        let other = site.other();
        let mut allowed_ips: Vec<String> = other.networks().map(str::to_owned).to_vec();
        let host = if other == Site::A { 1 } else { 2 };
        allowed_ips.extend([format!("10.77.0.{host}/32"), format!("fd77::{host}/128")]);
        let _ = lab.configure(site, &GatewayOptions { allowed_ips, ..options.clone() });
        lab.start_daemon(site)
    });
    for gateway in [&a, &b] {
        gateway.wait_state("up", START);
    }
    for site in Site::BOTH {
        for address in site.other().host() {
            assert!(lab.lan(site).pings(address));
        }
    }
    [a, b]
}

/// Returns the output of `ping` with these arguments, including standard error, where it reports the host's
/// own refusals.
fn ping(lab: &Lab, words: &str) -> String {
    let output = lab.lan_a.try_run(&format!("ping -n -c 1 -W 2 {words}"));
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.to_lowercase().contains(&word.to_lowercase()), "no `{word}` in: {text}");
    }
}

#[test]
fn icmp_errors_come_through_the_tunnel() {
    sandbox::run("icmp_errors_come_through_the_tunnel", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, &GatewayOptions::default());
        let [far4, far6] = Site::B.host();
        // Each hop answers, as for traceroute; the far gateway from its tunnel address.
        says(&ping(&lab, &format!("-t 1 {far4}")), &["10.10.0.1", "Time to live exceeded"]);
        says(&ping(&lab, &format!("-t 2 {far4}")), &["10.77.0.2", "Time to live exceeded"]);
        says(&ping(&lab, &format!("-t 1 {far6}")), &["fd10::1", "Time exceeded"]);
        says(&ping(&lab, &format!("-t 2 {far6}")), &["fd77::2", "Time exceeded"]);
        // The near gateway reports the tunnel's own MTU.
        says(&ping(&lab, &format!("-M do -s 1450 {far4}")), &["10.10.0.1", "mtu = 1420"]);
        says(&ping(&lab, &format!("-M do -s 1450 {far6}")), &["fd10::1", "mtu=1420"]);
        // The far gateway reports a narrow link behind it. Only the first packet of a connection is refused.
        lab.gw_b.run("ip link set lan mtu 1300");
        says(&ping(&lab, &format!("-M do -s 1350 {far4}")), &["10.77.0.2", "mtu = 1300"]);
        says(&ping(&lab, &format!("-M do -s 1350 {far6}")), &["fd77::2", "mtu=1300"]);
        for bind in ["-4", "-6"] {
            let far = if bind == "-4" { far4 } else { far6 };
            lab.lan_a.run("ip route flush cache; ip -6 route flush cache");
            let mut server = lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
            server.line("Server listening", Duration::from_secs(10));
            let text = lab.lan_a.run(&format!("iperf3 {bind} --client {far} --time 1 --json"));
            let report: Value = serde_json::from_str(&text).unwrap();
            let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
            assert!(bytes > 1_000_000, "TCP finds its size: {bytes}");
        }
        // The far gateway reports a host that does not exist.
        says(&ping(&lab, &format!("-W 5 {FAR_AND_QUIET}")), &["10.77.0.2", "Unreachable"]);
        for gateway in &gateways {
            let peer = gateway.peer();
            assert_eq!(peer["drops"]["not_allowed_ip"], 0, "{peer:#}");
        }
    });
}

#[test]
fn datagrams_in_many_fragments_pass() {
    sandbox::run("datagrams_in_many_fragments_pass", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, &GatewayOptions::default());
        for ipv6 in [false, true] {
            // From the first packets an IPv6 host learns the size.
            let _ = Stream { count: 20, rate: 20, size: 8_000, ipv6, ..Stream::default() }.run(&lab);
            // In IPv4 the gateway fragments the host's fragments of 1,500 bytes again.
            let reports =
                Stream { count: 1_000, rate: 500, size: 8_000, ipv6, ..Stream::default() }.run(&lab);
            for report in reports {
                let received = &report.received;
                assert_eq!((report.sent, received.distinct, received.lost), (1_000, 1_000, 0), "{report:?}");
            }
        }
        for gateway in &gateways {
            assert_eq!(gateway.peer()["state"], "up");
        }
    });
}

/// Runs TCP flows while the WAN's MTU shrinks and grows again. If `mtu` is a number, the outer packets are
/// fragmented (they carry no "don't fragment") and reassembled at the far gateway.
fn path_shrinks(options: &GatewayOptions, seconds_each: u64) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let gateways = start(&lab, options);
    let steps = [1500u32, 1300, 1280, 1500];
    let time = (seconds_each * u64::try_from(steps.len()).unwrap()).to_string();
    let mut server = lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
    server.line("Server listening", Duration::from_secs(10));
    let args =
        ["--client", Site::B.host()[0], "--time", &time, "--bitrate", "40M", "--interval", "0.5", "--json"];
    let mut client = lab.lan_a.spawn("iperf3", &args);
    for mtu in steps {
        lab.set_path_mtu(mtu);
        std::thread::sleep(Duration::from_secs(seconds_each));
        println!("WAN {mtu}: {}", gateways[0].peer()["mtu"]);
    }
    client.wait(Duration::from_secs(30));
    let report: Value = serde_json::from_str(&client.log()).unwrap();
    let bytes: Vec<u64> =
        report["intervals"].as_array().unwrap().iter().map(|i| i["sum"]["bytes"].as_u64().unwrap()).collect();
    println!("bytes each half second: {bytes:?}");
    // In a black hole the silence would last; a change of the path may cost a retransmission.
    let longest = bytes.split(|b| *b > 0).map(<[u64]>::len).max().unwrap();
    assert!(longest <= 4, "TCP stood still for {longest} half seconds: {bytes:?}");
    assert!(bytes.last() > Some(&0), "{bytes:?}");
    for gateway in &gateways {
        assert_eq!(gateway.peer()["state"], "up");
    }
}

/// Checks with `mtu = "auto"` that the path is measured: routes follow it down and up, and nothing is
/// fragmented except inner IPv6 packets if the path's MTU is below their minimum.
fn path_is_followed(outer: Outer) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let gateways = start(&lab, &GatewayOptions { outer, ..GatewayOptions::default() });
    // Outer headers and the tunnel's own take 60 or 80 bytes; sizes go by 16, from 1200 to 1420.
    let fits = |wan: u64| ((wan - if outer == Outer::V4 { 60 } else { 80 }) / 16 * 16).clamp(1200, 1420);
    let mut servers = Vec::new();
    let mut clients = Vec::new();
    for (port, address) in [("5201", Site::B.host()[0]), ("5202", Site::B.host()[1])] {
        let mut server =
            lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush", "--port", port]);
        server.line("Server listening", Duration::from_secs(10));
        servers.push(server);
        let args = [
            "--client",
            address,
            "--port",
            port,
            "--time",
            "600",
            "--bitrate",
            "10M",
            "--interval",
            "0.5",
            "--forceflush",
        ];
        clients.push(lab.lan_a.spawn("iperf3", &args));
    }
    let counters = |way: &str| {
        let text = lab.lan_b.run("ip -s -j link show dev lan");
        let links: Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"][way]["bytes"].as_u64().unwrap()
    };
    for wan in [1500u32, 1300, 1280, 1500] {
        let mtu = if wan == 1500 { 1420 } else { fits(wan.into()) };
        let start = Instant::now();
        lab.set_path_mtu(wan);
        for (site, gateway) in Site::BOTH.into_iter().zip(&gateways) {
            gateway.wait_peer(&format!("{mtu} at a WAN of {wan}"), Duration::from_secs(40), |peer| {
                peer["mtu"] == mtu
            });
            let route = |words: &str, net: &str| {
                lab.gw(site).run(&format!("ip {words} route show table 29046 {net} dev qvpn0"))
            };
            let says = |text: &str, mtu: u64| {
                if mtu == 1420 { !text.contains("mtu") } else { text.contains(&format!("mtu {mtu} ")) }
            };
            wait_until("the routes follow", Duration::from_secs(5), || {
                let [net4, net6] = site.other().networks();
                let right = says(&route("-4", net4), mtu)
                    && says(&route("-6", net6), if mtu == 1420 { mtu } else { mtu.max(1280) });
                right.then_some(())
            });
        }
        println!("{outer:?}: a WAN of {wan} was known after {:?}", start.elapsed());
        // Both flows continue, and neither is silent any more.
        let before = counters("rx");
        wait_until("TCP goes on", Duration::from_secs(20), || {
            (counters("rx") > before + 3_000_000).then_some(())
        });
        // A host's packets of the largest size pass unfragmented. A host remembers a small size for ten
        // minutes.
        if mtu == 1420 {
            lab.lan_a.run("ip route flush cache; ip -6 route flush cache");
        }
        let [far4, far6] = Site::B.host();
        let (four, six) = (mtu - 28, mtu.max(1280) - 48);
        wait_until("the largest packets pass", Duration::from_secs(10), || {
            let passes = |words: String| lab.lan_a.try_run(&words).status.success();
            (passes(format!("ping -n -c 1 -W 1 -M do -s {four} {far4}"))
                && passes(format!("ping -n -c 1 -W 1 -M do -s {six} {far6}")))
            .then_some(())
        });
        // The near gateway reports the largest size. The test uses a host without flows: once a host knows a
        // size, it refuses larger packets itself, and flows may learn it at any time.
        if mtu < 1420 {
            lab.lan_a.run("ip route flush cache");
            let says_what = ping(&lab, &format!("-M do -s 1400 {FAR_AND_QUIET}"));
            says(&says_what, &["From 10.10.0.1", &format!("mtu = {mtu}")]);
        }
    }
    for (client, family) in clients.iter_mut().zip(["IPv4", "IPv6"]) {
        let log = client.log();
        // One line for each half second, after its transfer.
        let silent = log
            .lines()
            .filter(|line| line.contains("sec"))
            .map(|line| line.contains(" 0.00 Bytes "))
            .collect::<Vec<_>>();
        let longest = silent.split(|silent| !silent).map(<[bool]>::len).max().unwrap_or(0);
        println!(
            "{outer:?}: TCP over {family} stood still for {longest} half seconds at most, of {}",
            silent.len()
        );
        assert!(silent.len() > 10, "{log}");
        assert!(longest <= 20, "TCP over {family} stood still for {longest} half seconds:\n{log}");
    }
    for gateway in &gateways {
        assert_eq!(gateway.peer()["state"], "up");
    }
}

#[test]
fn the_mtu_follows_the_path_down_and_up() {
    sandbox::run("the_mtu_follows_the_path_down_and_up", || path_is_followed(Outer::V4));
}

#[test]
fn the_mtu_follows_a_path_of_ipv6_down_and_up() {
    sandbox::run("the_mtu_follows_a_path_of_ipv6_down_and_up", || path_is_followed(Outer::V6));
}

#[test]
fn a_path_that_shrinks_is_no_black_hole() {
    sandbox::run("a_path_that_shrinks_is_no_black_hole", || {
        path_shrinks(&GatewayOptions { interface: "mtu = 1420".to_owned(), ..GatewayOptions::default() }, 3);
    });
}
