//! The two fields of the traffic class: congestion marks of the WAN reach the hosts (ECN, RFC 6040), and the
//! DSCP is set as in the config.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use serde_json::Value;
use tests::{Capture, Gateway, GatewayOptions, KmeOptions, Lab, Node, Outer, Site, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);

fn start<'a>(lab: &'a Lab, options: &GatewayOptions) -> [Gateway<'a>; 2] {
    let gateways = lab.start_both(options);
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    for address in Site::B.host() {
        assert!(lab.lan_a.pings(address));
    }
    gateways
}

/// Returns the number of packets that arrived with "congestion experienced", in IPv4 and IPv6.
fn marked(node: &Node) -> [u64; 2] {
    let four = counter(node, "IpExt:", "InCEPkts");
    let six = node.run("cat /proc/net/snmp6");
    let six = six.lines().find_map(|line| line.strip_prefix("Ip6InCEPkts")).unwrap();
    [four, six.trim().parse().unwrap()]
}

fn counter(node: &Node, group: &str, wanted: &str) -> u64 {
    let text = node.run("cat /proc/net/netstat");
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == wanted).unwrap().1.parse().unwrap()
}

/// Whether `count` echo requests with this traffic class are all answered.
fn pings(lab: &Lab, class: u8, count: u8, address: &str) -> bool {
    let ping = format!("ping -n -i 0.02 -W 1 -c {count} -Q {class} -s 200 {address}");
    lab.lan_a.try_run(&ping).status.success()
}

/// Makes the WAN router mark the tunnel's packets to site B that match `which` (nft syntax), as a full queue
/// would.
fn congest(lab: &Lab, family: &str, which: &str) {
    lab.wan.nft(&format!(
        "table inet jam {{\nchain forward {{\ntype filter hook forward priority 0;\n}}\n}}\nflush table inet \
         jam\n\
         add rule inet jam forward oifname site-b udp dport 51820 {which} {family} ecn set ce\n"
    ));
}

fn congestion_reaches_the_hosts(outer: Outer) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let gateways = start(&lab, &GatewayOptions { outer, ..GatewayOptions::default() });
    let family = if outer == Outer::V4 { "ip" } else { "ip6" };
    let [far4, far6] = Site::B.host();
    // Like a router: only packets of senders that support ECN are marked.
    congest(&lab, family, &format!("{family} ecn ect0"));
    let before = marked(&lab.lan_b);
    for address in [far4, far6] {
        assert!(pings(&lab, 2, 10, address), "ECT(0) to {address}");
        assert!(pings(&lab, 0, 5, address), "not capable, to {address}");
    }
    let [four, six] = marked(&lab.lan_b);
    assert_eq!([four - before[0], six - before[1]], [10, 10], "marks that came out of the tunnel");
    // TCP reports the marks to the sender.
    for host in [&lab.lan_a, &lab.lan_b] {
        host.sysctl("net/ipv4/tcp_ecn", "1");
    }
    let mut server = lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
    server.line("Server listening", Duration::from_secs(10));
    let text = lab.lan_a.run(&format!("iperf3 --client {far4} --time 1 --bitrate 20M --json"));
    let report: Value = serde_json::from_str(&text).unwrap();
    let (told, bytes) = (
        counter(&lab.lan_a, "TcpExt:", "TCPDeliveredCE"),
        report["end"]["sum_received"]["bytes"].as_u64().unwrap(),
    );
    println!("{outer:?}: TCP heard of {told} marked segments, {bytes} bytes passed");
    assert!(told > 10 && bytes > 100_000, "{told} {bytes}");
    // A marked packet whose sender does not support ECN must be dropped and counted.
    let malformed = || gateways[1].show()["drops"]["malformed"].as_u64().unwrap();
    let before = malformed();
    congest(&lab, family, "");
    assert!(!pings(&lab, 0, 3, far4));
    assert!(pings(&lab, 2, 3, far4));
    wait_until("the drops are counted", Duration::from_secs(5), || (malformed() >= before + 3).then_some(()));
    lab.wan.nft("delete table inet jam\n");
    assert!(pings(&lab, 0, 3, far4));
}

#[test]
fn congestion_on_the_wan_reaches_the_hosts() {
    sandbox::run("congestion_on_the_wan_reaches_the_hosts", || {
        congestion_reaches_the_hosts(Outer::V4);
        congestion_reaches_the_hosts(Outer::V6);
    });
}

/// Returns the traffic classes of outer packets that carried echo requests with `class`.
fn outer_class(lab: &Lab, outer: Outer, class: u8) -> Vec<u8> {
    let capture = Capture::start(&lab.wan, "site-a", Site::A.wan(outer));
    assert!(pings(lab, class, 3, Site::B.host()[0]));
    let packets = capture.stop();
    let from_a = Some(Site::A.wan(outer).parse().unwrap());
    let mut classes: Vec<u8> = packets
        .data()
        .into_iter()
        .filter(|packet| packet.source == from_a && packet.payload.len() > 200)
        .map(|packet| match outer {
            Outer::V4 => packet.bytes[15],
            Outer::V6 => packet.bytes[14] << 4 | packet.bytes[15] >> 4,
        })
        .collect();
    assert!(classes.len() >= 3, "{packets:?}");
    classes.dedup();
    classes
}

#[test]
fn the_class_of_service_on_the_wan_is_as_configured() {
    sandbox::run("the_class_of_service_on_the_wan_is_as_configured", || {
        // Expedited forwarding and ECT(0); the latter is always the inner packet's.
        let cases = [("", 0xba, 0x02), ("dscp = \"inherit\"", 0xba, 0xba), ("dscp = 46", 0x02, 0xba)];
        for (outer, (line, inner, expected)) in [Outer::V4, Outer::V6, Outer::V4].into_iter().zip(cases) {
            let lab = Lab::new();
            let _kmes = lab.start_kmes(&KmeOptions::default());
            let options = GatewayOptions { outer, interface: line.to_owned(), ..GatewayOptions::default() };
            let _gateways = start(&lab, &options);
            assert_eq!(outer_class(&lab, outer, inner), [expected], "{line}, inside {inner:#x}");
        }
    });
}
