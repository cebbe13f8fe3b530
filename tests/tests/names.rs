//! Gateways with several addresses: host names with addresses that lead nowhere, and gateways that are called
//! at an address which is not the first of their device.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use tests::{Gateway, GatewayOptions, Lab, Outer, Site, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
const NAME: &str = "gw-b.example";

/// Makes gateway A look the name up in a file, and returns a function that writes addresses there.
fn lookup(lab: &Lab) -> impl Fn(&[&str]) + use<> {
    let hosts = lab.gw_a.dir().join("hosts");
    fs::write(&hosts, "").unwrap();
    lab.gw_a.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
    move |addresses| {
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for address in addresses {
            writeln!(text, "{address} {NAME}").unwrap();
        }
        fs::write(&hosts, text).unwrap();
    }
}

/// Starts both gateways: A calls B by its name, and B waits.
fn start(lab: &Lab) -> [Gateway<'_>; 2] {
    let options = |peer: String| GatewayOptions {
        qkd: "off".to_owned(),
        kms: None,
        endpoint: false,
        peer,
        ..GatewayOptions::default()
    };
    let _ = lab.configure(Site::A, &options(format!("endpoint = \"{NAME}:51820\"\n")));
    let _ = lab.configure(Site::B, &options(String::new()));
    let b = lab.start_daemon(Site::B);
    [lab.start_daemon(Site::A), b]
}

/// Another address in the network of site B's WAN.
fn neighbour(last: &str) -> String {
    format!("{}.{last}", Site::B.wan(Outer::V4).rsplit_once('.').unwrap().0)
}

#[test]
fn a_name_whose_first_address_is_dead_is_reached_at_the_next() {
    sandbox::run("a_name_whose_first_address_is_dead_is_reached_at_the_next", || {
        let dead = neighbour("66");
        let alive = [Site::B.wan(Outer::V4), Site::B.wan(Outer::V6)];
        // The second family is broken: its packets are lost on the way.
        for (addresses, broken) in [
            ([dead.as_str(), alive[0]], None),
            ([alive[1], alive[0]], Some("meta nfproto ipv6 udp dport 51820")),
            ([alive[0], alive[1]], Some("meta nfproto ipv4 udp dport 51820")),
        ] {
            let lab = Lab::new();
            if let Some(broken) = broken {
                lab.wan.block("forward", broken);
            }
            let write = lookup(&lab);
            write(&addresses);
            let begun = Instant::now();
            let [a, _b] = start(&lab);
            a.wait_state("up", START);
            println!("{addresses:?}, {broken:?}: up {:?} after the start of the daemons", begun.elapsed());
            wait_until("traffic", START, || lab.lan_a.pings(Site::B.host()[0]).then_some(()));
        }
    });
}

#[test]
fn an_address_that_dies_later_is_left_for_another_of_the_name() {
    sandbox::run("an_address_that_dies_later_is_left_for_another_of_the_name", || {
        let lab = Lab::new();
        let second = neighbour("77");
        lab.gw_b.run(&format!("ip addr add {second}/24 dev wan"));
        let write = lookup(&lab);
        write(&[Site::B.wan(Outer::V4), &second]);
        let [a, _b] = start(&lab);
        let used = a.wait_state("up", START)["endpoint"].as_str().unwrap().to_owned();
        let first = Site::B.wan(Outer::V4);
        let (dead, other) =
            if used.starts_with(first) { (first, second.as_str()) } else { (second.as_str(), first) };
        for direction in ["daddr", "saddr"] {
            lab.wan.block("forward", &format!("ip {direction} {dead}"));
        }
        let other = format!("{other}:51820");
        let begun = Instant::now();
        a.wait_peer("up at the other address", START, |p| {
            p["endpoint"] == other.as_str() && p["state"] == "up"
        });
        println!("up at {other} {:?} after {dead} died", begun.elapsed());
        wait_until("traffic", START, || lab.lan_a.pings(Site::B.host()[0]).then_some(()));
    });
}

/// The firewall of the caller lets in only answers, as `ct state` does in most rule sets.
fn answers_only(lab: &Lab) {
    lab.gw_a.run(
        "nft 'table inet fw { chain answers { type filter hook input priority 0; \
         iifname wan udp dport 51820 ct state new counter drop; }; }'",
    );
}

#[test]
fn a_gateway_answers_from_the_address_that_was_called() {
    sandbox::run("a_gateway_answers_from_the_address_that_was_called", || {
        for (outer, second) in [(Outer::V4, neighbour("77")), (Outer::V6, "2001:db8:b::77".to_owned())] {
            let lab = Lab::new();
            let length = if outer == Outer::V4 { "24" } else { "64 nodad" };
            lab.gw_b.run(&format!("ip addr add {second}/{length} dev wan"));
            answers_only(&lab);
            let write = lookup(&lab);
            write(&[&second]);
            let [a, b] = start(&lab);
            a.wait_state("up", START);
            b.wait_state("up", START);
            for site in Site::BOTH {
                wait_until("traffic", START, || lab.lan(site).pings(site.other().host()[0]).then_some(()));
            }
            let counted = lab.gw_a.run("nft list table inet fw");
            assert!(counted.contains("packets 0 "), "no answer came from another address: {counted}");
        }
    });
}
