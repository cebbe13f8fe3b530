//! A WAN with loss, delay, reordering and outages, and gateways whose addresses and NAT mappings change: each
//! packet that arrives in time opens, rekeys continue, and traffic recovers soon after the WAN does.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{
    Gateway, GatewayOptions, KmeOptions, Lab, Outer, Process, Relay, Site, Stream, binary, sandbox,
    wait_until,
};

const START: Duration = Duration::from_secs(30);

fn rekeys(gateway: &Gateway<'_>) -> u64 {
    gateway.peer()["rekeys"].as_u64().unwrap()
}

/// Checks that no packet was refused: each one that arrived was opened, and nothing was sent without a key.
#[track_caller]
fn nothing_refused(gateways: &[Gateway<'_>; 2]) {
    for gateway in gateways {
        let status = gateway.show();
        let peer = &status["peers"][0];
        for reason in ["no_epoch", "expired", "replay", "auth", "not_allowed_ip", "queue_full"] {
            assert_eq!(peer["drops"][reason].as_u64().unwrap_or(0), 0, "{reason}: {peer:#}");
        }
        for reason in ["unknown_index", "queue_full"] {
            assert_eq!(status["drops"][reason].as_u64().unwrap_or(0), 0, "{reason}: {status:#}");
        }
    }
}

/// Checks that each data packet that the relay forwarded was opened by the peer. Nothing passes the relay
/// afterwards.
fn all_that_passed_was_opened(relay: &mut Relay, gateways: &[Gateway<'_>; 2]) {
    // A few empty packets are always in transit, so the WAN stops here, and those in transit arrive.
    relay.set(1.0, Duration::ZERO, Duration::ZERO);
    for (to, gateway) in [(Site::B, &gateways[1]), (Site::A, &gateways[0])] {
        let (start, mut last) = (Instant::now(), None);
        while last.is_none_or(|(opened, passed)| opened != passed) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "to {}: opened and passed {last:?}",
                to.name()
            );
            let report = relay.report();
            let passed = if to == Site::B { report.from_a.data_passed } else { report.from_b.data_passed };
            last = Some((gateway.peer()["rx_packets"].as_u64().unwrap(), passed));
        }
    }
}

/// Starts a bulk transfer by TCP from one LAN to the other: returns the sender, and the receiver, which
/// checks each byte.
fn transfer(lab: &Lab, from: Site) -> [Process; 2] {
    let (to, limit) = (from.other(), Duration::from_secs(10));
    let address = format!("{}:5201", to.host()[0]);
    let file = lab.lan(to).dir().join("transfer");
    let start = |site: Site, words: &[&str]| {
        let mut process = lab.lan(site).spawn(binary("lab-traffic"), words);
        process.line("ready", limit);
        process.tell("go");
        process
    };
    let receiver = start(to, &["bulk-recv", &address, file.to_str().unwrap()]);
    [start(from, &["bulk-send", &address, "1"]), receiver]
}

/// Sends numbered UDP and TCP in both directions over a lossy WAN, until there were at least `least` rekeys.
/// Returns their number and the time.
fn bad_wan(outer: Outer, seconds: u64, least: u64) -> (u64, Duration) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let mut relay = lab.start_relay(outer, 6);
    relay.set(0.2, Duration::from_millis(180), Duration::from_millis(40));
    let options = GatewayOptions { outer, ..GatewayOptions::default() };
    for site in Site::BOTH {
        let _ = lab.configure(site, &options.through_relay(site));
    }
    let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    for gateway in &gateways {
        gateway.wait_state("up", Duration::from_secs(60));
    }
    let (before, began) = (rekeys(&gateways[0]), Instant::now());
    let mut transfers = Site::BOTH.map(|from| transfer(&lab, from));
    let stream = Stream { count: 200 * seconds, rate: 200, ..Stream::default() }.start(&lab);
    let reports = stream.finish();
    for report in &reports {
        let received = &report.received;
        assert_eq!((report.refused, received.duplicated, received.strange), (0, 0, 0), "{report:?}");
        assert!(received.reordered > 0, "the WAN reorders: {report:?}");
        let share = received.lost as f64 / report.sent as f64;
        assert!((0.1..0.3).contains(&share), "a fifth is lost by the WAN: {report:?}");
    }
    // On such a WAN TCP sometimes waits many seconds before a retransmission.
    for [_, receiver] in &mut transfers {
        receiver.line("moves", Duration::from_secs(60));
    }
    drop(transfers);
    let go_on = |peer: &Value| peer["rekeys"].as_u64() >= Some(before + least);
    let peer = gateways[0].wait_peer("rekeys go on", Duration::from_secs(60), go_on);
    let done = (peer["rekeys"].as_u64().unwrap() - before, began.elapsed());
    all_that_passed_was_opened(&mut relay, &gateways);
    nothing_refused(&gateways);
    println!("{} rekeys in {:.1?}, {:?}, {reports:?}", done.0, done.1, relay.report());
    done
}

#[test]
fn the_tunnel_adds_no_loss_on_a_bad_wan() {
    sandbox::run("the_tunnel_adds_no_loss_on_a_bad_wan", || {
        bad_wan(Outer::V4, 12, 3);
    });
}

#[test]
#[ignore = "two minutes; `make soak` runs it"]
fn the_tunnel_adds_no_loss_on_a_bad_wan_for_long() {
    sandbox::run("the_tunnel_adds_no_loss_on_a_bad_wan_for_long", || {
        for outer in [Outer::V4, Outer::V6] {
            let (done, time) = bad_wan(outer, 60, 20);
            println!(
                "soak: {done} rekeys in {time:.0?} on a WAN ({outer:?}) that loses a fifth and delays by 200 \
                 ms"
            );
        }
    });
}

/// The NAT in front of site A changes its mapping repeatedly while numbered packets flow.
fn a_mapping_moves(outer: Outer, initiator: Site) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let mut relay = lab.start_relay(outer, 1);
    let options = GatewayOptions { outer, initiator: Some(initiator), ..GatewayOptions::default() };
    let _ = lab.configure(Site::A, &options.through_relay(Site::A));
    // Site B can't know site A's next address.
    let _ = lab.configure(Site::B, &GatewayOptions { endpoint: false, ..options });
    let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    assert!(lab.lan_a.pings(Site::B.host()[0]));
    let before = relay.report();
    let mut events = gateways[1].events();
    let stream = Stream { count: 4_000, rate: 1_000, ..Stream::default() }.start(&lab);
    for _ in 0..4 {
        let old = gateways[1].peer()["endpoint"].clone();
        relay.rebind();
        events.line("peer.roamed", Duration::from_secs(10));
        gateways[1].wait_peer("the new port", Duration::from_secs(5), |peer| peer["endpoint"] != old);
    }
    let [a, b] = stream.finish();
    let report = relay.report();
    println!("{report:?}, {a:?}, {b:?}");
    assert_eq!((b.received.lost, b.received.duplicated), (0, 0), "nothing is lost towards site B: {b:?}");
    // Only the packets in transit to site A's former port are lost.
    let late = report.from_b.data_lost - before.from_b.data_lost;
    assert!(a.received.lost <= late, "{late} came to former ports: {a:?}");
    assert!(a.received.lost < 100, "{a:?}");
    for gateway in &gateways {
        assert_eq!(gateway.peer()["state"], "up");
    }
    nothing_refused(&gateways);
}

#[test]
fn a_nat_mapping_may_move() {
    sandbox::run("a_nat_mapping_may_move", || {
        // The side behind the NAT may be the initiator or the responder.
        a_mapping_moves(Outer::V4, Site::A);
        a_mapping_moves(Outer::V6, Site::B);
    });
}

#[test]
#[ignore = "the other two cases; `make soak` runs it"]
fn a_nat_mapping_may_move_in_all_cases() {
    sandbox::run("a_nat_mapping_may_move_in_all_cases", || {
        a_mapping_moves(Outer::V4, Site::B);
        a_mapping_moves(Outer::V6, Site::A);
    });
}

/// Gateway A gets another address on the WAN, and then loses the old one, while numbered packets flow: none
/// is lost.
fn roams(outer: Outer, initiator: Site) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let options = GatewayOptions { outer, initiator: Some(initiator), ..GatewayOptions::default() };
    let gateways = lab.start_both(&options);
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    assert!(lab.lan_a.pings(Site::B.host()[0]));
    let (old, router) = (Site::A.wan(outer), Site::A.router(outer));
    // No route may use an IPv6 source address during duplicate address detection.
    let (ip, length, new_one) = if outer == Outer::V4 { ("ip", 24, "") } else { ("ip -6", 64, "nodad") };
    // Otherwise the kernel removes the second address with the first.
    lab.gw_a.sysctl("net/ipv4/conf/wan/promote_secondaries", "1");
    let stream = Stream { count: 5_000, rate: 1_000, ..Stream::default() }.start(&lab);
    let new = if outer == Outer::V4 { "198.51.100.3" } else { "2001:db8:a::3" };
    // From here on the gateway sends from the new address, while both work; then the old one is removed.
    lab.gw_a.run(&format!(
        "ip addr add {new}/{length} dev wan {new_one} && {ip} route replace default via {router} src {new}"
    ));
    gateways[1].wait_peer("the new address", Duration::from_secs(5), |peer| {
        peer["endpoint"].as_str().is_some_and(|endpoint| endpoint.contains(new))
    });
    wait_until("site B's lane has moved", Duration::from_secs(5), || {
        let lane = &gateways[1].peer()["lanes"][0]["endpoint"];
        lane.as_str().is_some_and(|endpoint| endpoint.contains(new)).then_some(())
    });
    lab.gw_a.run(&format!("ip addr del {old}/{length} dev wan"));
    for report in stream.finish() {
        let received = &report.received;
        assert_eq!((received.lost, received.duplicated, report.refused), (0, 0, 0), "{report:?}");
    }
    // Site A's address in the config no longer exists: the tunnel continues to rekey.
    let before = gateways.each_ref().map(rekeys);
    for (gateway, before) in gateways.iter().zip(before) {
        gateway.wait_peer("rekeys", START, |peer| peer["rekeys"].as_u64() > Some(before + 2));
    }
    nothing_refused(&gateways);
}

#[test]
fn a_gateway_roams_and_loses_nothing() {
    sandbox::run("a_gateway_roams_and_loses_nothing", || {
        roams(Outer::V4, Site::B);
        roams(Outer::V6, Site::A);
    });
}

#[test]
#[ignore = "the other two cases; `make soak` runs it"]
fn a_gateway_roams_and_loses_nothing_in_all_cases() {
    sandbox::run("a_gateway_roams_and_loses_nothing_in_all_cases", || {
        roams(Outer::V4, Site::A);
        roams(Outer::V6, Site::B);
    });
}

/// Both gateways roam, and later both return to their old address while the WAN is down, so each knows only
/// an address of the peer that no longer exists.
#[test]
fn gateways_that_lost_each_other_meet_at_the_configured_endpoint() {
    sandbox::run("gateways_that_lost_each_other_meet_at_the_configured_endpoint", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let options = GatewayOptions { interface: "lanes = 2".to_owned(), ..GatewayOptions::default() };
        let gateways = lab.start_both(&options);
        for gateway in &gateways {
            gateway.wait_state("up", START);
        }
        let home = Site::BOTH.map(|site| site.wan(Outer::V4));
        let away = ["198.51.100.3", "203.0.113.3"];
        let moves = |site: Site, from: &str, to: &str| {
            let router = site.router(Outer::V4);
            lab.gw(site).sysctl("net/ipv4/conf/wan/promote_secondaries", "1");
            lab.gw(site).run(&format!(
                "ip addr add {to}/24 dev wan && ip route replace default via {router} src {to} && ip addr \
                 del {from}/24 dev wan"
            ));
        };
        // Returns the destinations of a gateway's messages and of both lanes' packets.
        let sends_to = |gateway: &Gateway<'_>, address: &str| {
            wait_until(&format!("all goes to {address}"), START, || {
                let peer = gateway.peer();
                let places =
                    [&peer["endpoint"], &peer["lanes"][0]["endpoint"], &peer["lanes"][1]["endpoint"]];
                let there = |place: &&Value| place.as_str().is_some_and(|place| place.starts_with(address));
                places.iter().all(there).then_some(())
            });
        };
        for (n, site) in Site::BOTH.into_iter().enumerate() {
            moves(site, home[n], away[n]);
            sends_to(&gateways[1 - n], away[n]);
        }
        lab.wan.block("forward", "meta l4proto udp");
        for (n, site) in Site::BOTH.into_iter().enumerate() {
            moves(site, away[n], home[n]);
        }
        lab.wan.unblock();
        let back = Instant::now();
        for from in Site::BOTH {
            wait_until(&format!("traffic from {}", from.name()), Duration::from_secs(40), || {
                lab.lan(from).pings(from.other().host()[0]).then_some(())
            });
        }
        println!("traffic passes both ways {:?} after both gateways went back", back.elapsed());
        for n in [0, 1] {
            sends_to(&gateways[1 - n], home[n]);
        }
        for report in (Stream { count: 3_000, rate: 1_000, ..Stream::default() }).run(&lab) {
            assert_eq!(report.received.lost, 0, "{report:?}");
        }
    });
}

/// Uses the kernel's NAT between the sites, with these rules in `table inet nat` on the WAN router.
fn behind_nat(options: [GatewayOptions; 2], rules: &[&str], seen_by_b: &str) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    lab.wan.nft(
        "table ip nat {\nchain pre {\ntype nat hook prerouting priority dstnat;\n}\n\
         chain post {\ntype nat hook postrouting priority srcnat;\n}\n}\n",
    );
    for rule in rules {
        lab.wan.nft(&format!("add rule ip nat {rule}\n"));
    }
    for (site, options) in Site::BOTH.into_iter().zip(&options) {
        let _ = lab.configure(site, options);
    }
    let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    for from in Site::BOTH {
        assert!(lab.lan(from).pings(from.other().host()[0]), "from {}", from.name());
    }
    let endpoint = gateways[1].peer()["endpoint"].as_str().unwrap().to_owned();
    assert!(endpoint.starts_with(seen_by_b), "site B sees site A at {endpoint}");
    for report in (Stream { count: 3_000, rate: 1_000, ..Stream::default() }).run(&lab) {
        assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
    }
    let before = rekeys(&gateways[1]);
    gateways[1].wait_peer("rekeys", START, |peer| peer["rekeys"].as_u64() > Some(before + 1));
    nothing_refused(&gateways);
}

#[test]
fn each_side_may_be_behind_nat_and_both() {
    sandbox::run("each_side_may_be_behind_nat_and_both", || {
        let default = GatewayOptions::default;
        let unknown = || GatewayOptions { endpoint: false, ..default() };
        let at = |address: &str| GatewayOptions {
            endpoint: false,
            peer: format!("endpoint = \"{address}\"\npersistent_keepalive = \"5s\""),
            ..default()
        };
        // Site A is hidden behind the router's address and another port.
        let hide_a =
            "post oifname site-b ip saddr 198.51.100.1 udp sport 51820 snat to 203.0.113.2:40000-40999";
        behind_nat([default(), unknown()], &[hide_a], "203.0.113.2:40");
        // Site B is hidden, so it must know site A's address.
        let hide_b =
            "post oifname site-a ip saddr 203.0.113.1 udp sport 51820 snat to 198.51.100.2:40000-40999";
        behind_nat([unknown(), default()], &[hide_b], "198.51.100.1:51820");
        // Both are hidden: one needs a forwarded port, and is reached at its router's address.
        let forward_b = "pre iifname site-a ip daddr 198.51.100.2 udp dport 51820 dnat to 203.0.113.1:51820";
        behind_nat([at("198.51.100.2:51820"), unknown()], &[forward_b, hide_a], "203.0.113.2:40");
    });
}

/// Makes the WAN drop everything for a while.
fn wan_down(rekey_interval: &str, down: Duration) -> Duration {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let options = GatewayOptions { rekey_interval: rekey_interval.to_owned(), ..GatewayOptions::default() };
    let gateways = lab.start_both(&options);
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    let mut events = gateways[0].events();
    lab.wan.block("forward", "meta l4proto udp");
    let start = Instant::now();
    for gateway in &gateways {
        let peer = gateway.wait_state("blocked", Duration::from_secs(20));
        let reason = peer["reason"].as_str().unwrap_or_default();
        println!("blocked after {:?}: {reason}", start.elapsed());
        assert!(!reason.is_empty(), "it says why: {peer:#}");
    }
    std::thread::sleep(down.saturating_sub(start.elapsed()));
    lab.wan.unblock();
    let back = Instant::now();
    for from in Site::BOTH {
        wait_until(&format!("traffic from {}", from.name()), Duration::from_secs(40), || {
            lab.lan(from).pings(from.other().host()[0]).then_some(())
        });
    }
    let took = back.elapsed();
    println!("traffic passes both ways {took:?} after a WAN that was down for {down:?} came back");
    // Handshakes are tried every 5 s and attempts every 10 s at the slowest.
    assert!(took < Duration::from_secs(20), "{took:?}");
    events.line("peer.recovered", Duration::from_secs(5));
    for report in (Stream { count: 3_000, rate: 1_000, ..Stream::default() }).run(&lab) {
        assert_eq!(report.received.lost, 0, "{report:?}");
    }
    took
}

#[test]
fn a_wan_that_was_down_comes_back() {
    sandbox::run("a_wan_that_was_down_comes_back", || {
        wan_down("1s", Duration::from_secs(15));
    });
}

#[test]
#[ignore = "three minutes; `make soak` runs it"]
fn a_wan_that_was_down_for_minutes_comes_back() {
    sandbox::run("a_wan_that_was_down_for_minutes_comes_back", || {
        let took = wan_down("1s", Duration::from_secs(180));
        println!("soak: traffic {took:.1?} after a WAN that was down for three minutes came back");
    });
}

/// A second path: site A's packets leave by one, and site B's come back by the other.
#[test]
fn the_two_directions_may_go_different_ways() {
    sandbox::run("the_two_directions_may_go_different_ways", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        lab.gw_a.join("wan2", &lab.wan, "site-a2");
        lab.gw_a.run("ip addr add 192.0.2.1/24 dev wan2");
        lab.wan.run("ip addr add 192.0.2.2/24 dev site-a2");
        let own = Site::A.wan(Outer::V4);
        lab.gw_a.run(&format!("ip route add 203.0.113.0/24 via 192.0.2.2 src {own}"));
        let gateways = lab.start_both(&GatewayOptions::default());
        for gateway in &gateways {
            gateway.wait_state("up", START);
        }
        let count = |interface: &str, way: &str| {
            let text = lab.wan.run(&format!("ip -s -j link show dev {interface}"));
            let links: Value = serde_json::from_str(&text).unwrap();
            links[0]["stats64"][way]["bytes"].as_u64().unwrap()
        };
        let before =
            [count("site-a2", "rx"), count("site-a", "rx"), count("site-a", "tx"), count("site-a2", "tx")];
        for report in (Stream { count: 3_000, rate: 1_000, ..Stream::default() }).run(&lab) {
            assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
        }
        let after =
            [count("site-a2", "rx"), count("site-a", "rx"), count("site-a", "tx"), count("site-a2", "tx")];
        let more = |i: usize| after[i] - before[i];
        // Counted in bytes, since several datagrams may share one buffer. Each has at least 80 bytes.
        let (all, few) = (3_000 * 80, 20_000);
        assert!(more(0) >= all && more(1) < few, "out by the second path: {before:?} {after:?}");
        assert!(more(2) >= all && more(3) < few, "back by the first: {before:?} {after:?}");
        nothing_refused(&gateways);
    });
}
