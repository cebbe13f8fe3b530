//! Lanes with the real daemons: a flow keeps its order over several lanes and with offloads, and a batch that
//! the kernel refuses as a whole is sent one datagram at a time.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Outer, Site, Stream, sandbox};

const START: Duration = Duration::from_secs(20);

fn with_lanes(lanes: u8) -> GatewayOptions {
    GatewayOptions { interface: format!("lanes = {lanes}"), ..GatewayOptions::default() }
}

fn lanes(gateway: &Gateway<'_>) -> Vec<Value> {
    gateway.peer()["lanes"].as_array().unwrap().clone()
}

/// Returns a counter of each lane.
fn each(gateway: &Gateway<'_>, counter: &str) -> Vec<u64> {
    lanes(gateway).iter().map(|lane| lane[counter].as_u64().unwrap()).collect()
}

fn start<'a>(lab: &'a Lab, options: &GatewayOptions) -> [Gateway<'a>; 2] {
    let gateways = lab.start_both(options);
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

/// Sends numbered flows side by side, both ways, during one rekey each second.
#[track_caller]
fn in_order(lab: &Lab, flows: impl Iterator<Item = Stream>) {
    let running: Vec<_> = flows.map(|flow| (flow, flow.start(lab))).collect();
    for (flow, running) in running {
        for report in running.finish() {
            let received = &report.received;
            assert_eq!(
                (received.reordered, received.duplicated, received.lost, received.strange),
                (0, 0, 0, 0),
                "{flow:?}: {report:?}"
            );
        }
    }
}

/// Returns the number of TCP segments that arrived out of order, by the counter of site B's host.
fn out_of_order(lab: &Lab) -> u64 {
    let text = lab.lan_b.run("cat /proc/net/netstat");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "TCPOFOQueue").unwrap().1.parse().unwrap()
}

#[test]
fn a_flow_keeps_its_order_over_lanes_and_offloads() {
    sandbox::run("a_flow_keeps_its_order_over_lanes_and_offloads", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, &with_lanes(4));
        let flow = |n: u16| Stream {
            count: 3_000,
            rate: 1_000,
            size: 300 + usize::from(n) * 100,
            port: 7000 + n,
            ipv6: n % 2 == 1,
            // Half of the hosts' programs leave segmentation to the kernel, so the TUN delivers
            // super-packets.
            together: if n < 4 { 1 } else { 16 },
        };
        in_order(&lab, (0..8).map(flow));
        for gateway in &gateways {
            let [sent, gso] = ["tx_packets", "tx_gso_packets"].map(|counter| each(gateway, counter));
            println!("sent {sent:?}, of these several in one piece {gso:?}");
            assert!(
                sent.iter().filter(|n| **n > 1_000).count() >= 2,
                "several lanes carry the flows: {sent:?}"
            );
            assert!(gso.iter().sum::<u64>() > 1_000, "offloads were in use: {gso:?}");
        }
        // TCP makes the largest super-packets. It is paced, so that no queue overflows.
        let mut server = lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
        server.line("Server listening", Duration::from_secs(10));
        let before = out_of_order(&lab);
        let far = Site::B.host()[0];
        let text = lab.lan_a.run(&format!(
            "iperf3 --client {far} --time 2 --parallel 3 --length 32K --set-mss 1300 --bitrate 10M --json"
        ));
        let report: Value = serde_json::from_str(&text).unwrap();
        let resent = report["end"]["sum_sent"]["retransmits"].as_u64().unwrap();
        let late = out_of_order(&lab) - before;
        println!("TCP: {late} segments out of order, {resent} sent again");
        // A retransmitted segment may be out of order.
        assert!(late == 0 || resent > 0, "{late} segments out of order though none was lost");
    });
}

/// Sends bursts that the lanes hand to the kernel as batches, without loss. Returns the packets in accepted
/// and in refused batches, over all lanes of site A.
#[track_caller]
fn bursts(lab: &Lab, gateways: &[Gateway<'_>; 2]) -> (u64, u64) {
    let count = |counter| each(&gateways[0], counter).iter().sum::<u64>();
    let before = (count("tx_gso_packets"), count("tx_gso_refused_packets"));
    let flow = Stream { count: 2_000, rate: 2_000, size: 1_300, together: 16, ..Stream::default() };
    in_order(lab, std::iter::once(flow));
    (count("tx_gso_packets") - before.0, count("tx_gso_refused_packets") - before.1)
}

fn falls_back(outer: Outer) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let gateways = start(&lab, &GatewayOptions { outer, ..GatewayOptions::default() });
    let (gso, refused) = bursts(&lab, &gateways);
    println!("{outer:?}: {gso} in one piece, {refused} refused");
    assert!(gso > 1_000 && refused == 0, "{gso} {refused}");
    // A device that can't segment: the kernel does it before the device, and the lane sees no difference.
    for gateway in [&lab.gw_a, &lab.gw_b] {
        gateway.run("ethtool -K wan tx-udp-segmentation off");
    }
    let (gso, refused) = bursts(&lab, &gateways);
    println!("{outer:?}: no segmentation: {gso} in one piece, {refused} refused");
    assert!(gso > 1_000 && refused == 0, "{gso} {refused}");
    // A device that can't compute checksums: before Linux 6.11 the kernel refuses (EIO), since then it
    // computes them.
    for gateway in [&lab.gw_a, &lab.gw_b] {
        gateway.run("ethtool -K wan tx off");
    }
    let (gso, refused) = bursts(&lab, &gateways);
    println!("{outer:?}: no checksums: {gso} in one piece, {refused} refused");
    assert!(if refused == 0 { gso > 1_000 } else { gso < 100 }, "one path or the other: {gso} {refused}");
    // A device whose MTU is too small for our packets, so that each is fragmented: batches are always refused
    // (EMSGSIZE, EINVAL before Linux 6.9).
    for gateway in [&lab.gw_a, &lab.gw_b] {
        gateway.run("ethtool -K wan tx on && ip link set wan mtu 1300");
    }
    lab.wan.run("ip link set site-a mtu 1300 && ip link set site-b mtu 1300");
    let (gso, refused) = bursts(&lab, &gateways);
    println!("{outer:?}: small frames: {gso} in one piece, {refused} refused");
    assert!(gso < 100 && refused > 0, "{gso} {refused}");
    for gateway in &gateways {
        let peer = gateway.peer();
        assert_eq!(peer["drops"]["queue_full"], 0, "{peer:#}");
    }
}

#[test]
fn a_refused_batch_is_sent_one_by_one_without_loss() {
    sandbox::run("a_refused_batch_is_sent_one_by_one_without_loss", || {
        falls_back(Outer::V4);
        falls_back(Outer::V6);
    });
}

/// Sends eight flows in both directions, in order and without loss. Returns the packets that each of site A's
/// lanes sent and received.
#[track_caller]
fn flows(lab: &Lab, gateway: &Gateway<'_>) -> Vec<u64> {
    let before = each(gateway, "tx_packets");
    let flow =
        |n: u16| Stream { count: 1_000, rate: 1_000, port: 7100 + n, ipv6: n % 2 == 1, ..Stream::default() };
    in_order(lab, (0..8).map(flow));
    each(gateway, "tx_packets").iter().zip(before).map(|(now, before)| now - before).collect()
}

/// The maximum number of packets, besides those of flows, that a lane may send during the test.
const FEW: u64 = 100;

#[test]
fn flows_of_a_silent_lane_are_rerouted_and_return() {
    sandbox::run("flows_of_a_silent_lane_are_rerouted_and_return", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, &with_lanes(4));
        for gateway in &gateways {
            gateway.wait_peer("all lanes up", START, |peer| {
                peer["lanes"].as_array().unwrap().iter().all(|lane| lane["state"] == "up")
            });
        }
        let used = flows(&lab, &gateways[0]);
        println!("all lanes: {used:?}");
        // Choose a lane that carries flows, but not lane 0, whose socket also carries the messages.
        let (victim, _) = used.iter().enumerate().skip(1).max_by_key(|(_, n)| **n).unwrap();
        assert!(used[victim] > FEW, "a flow of eight uses another lane than the first: {used:?}");
        let mut events = gateways.each_ref().map(Gateway::events);
        // A firewall that blocks only one direction: site A can't know by itself that nothing arrives.
        let port = 51820 + victim;
        lab.wan.block("forward", &format!("ip daddr 203.0.113.1 udp dport {port}"));
        for (gateway, events) in gateways.iter().zip(&mut events) {
            let line = events.line("lane.silent", Duration::from_secs(10));
            println!("{line}");
            let peer = gateway.wait_peer("the rerouting", Duration::from_secs(5), |peer| {
                !peer["lanes"][victim]["via"].is_null()
            });
            assert_eq!(peer["lanes"][victim]["state"], "silent", "{peer:#}");
            assert_eq!(peer["state"], "up", "the tunnel goes on");
        }
        let human = String::from_utf8(gateways[0].ctl(&["show", "qvpn0"]).stdout).unwrap();
        assert!(
            human.contains("silent: a firewall probably blocks UDP port")
                && human.contains("carries its flows"),
            "{human}"
        );
        let around = flows(&lab, &gateways[0]);
        println!("without lane {victim}: {around:?}");
        assert!(around[victim] < FEW, "{around:?}");
        lab.wan.unblock();
        for (gateway, events) in gateways.iter().zip(&mut events) {
            events.line("lane.recovered", Duration::from_secs(10));
            gateway.wait_peer("the lane itself", Duration::from_secs(5), |peer| {
                peer["lanes"][victim]["via"].is_null() && peer["lanes"][victim]["state"] == "up"
            });
        }
        let again = flows(&lab, &gateways[0]);
        println!("all lanes again: {again:?}");
        assert!(again[victim] > FEW, "{again:?}");
    });
}

#[test]
fn sites_may_have_different_numbers_of_lanes() {
    sandbox::run("sites_may_have_different_numbers_of_lanes", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        for (site, lanes) in [(Site::A, 4), (Site::B, 2)] {
            let _ = lab.configure(site, &with_lanes(lanes));
        }
        let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
        for gateway in &gateways {
            gateway.wait_state("up", START);
        }
        gateways[0].wait_peer("rerouted flows", START, |peer| peer["lanes"][3]["via"] == 1);
        for site in Site::BOTH {
            for address in site.other().host() {
                assert!(lab.lan(site).pings(address));
            }
        }
        let used = flows(&lab, &gateways[0]);
        println!("four lanes here, two there: {used:?}");
        assert!(used[..2].iter().sum::<u64>() >= 8_000 && used[2..] == [0, 0], "{used:?}");
        let human = String::from_utf8(gateways[0].ctl(&["show", "qvpn0"]).stdout).unwrap();
        assert!(human.contains("the peer has fewer lanes; lane 1 carries its flows"), "{human}");
        for gateway in &gateways {
            let peer = gateway.peer();
            assert_eq!(peer["drops"]["no_epoch"], 0, "{peer:#}");
        }
    });
}
