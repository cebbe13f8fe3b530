//! Endpoints that are host names: names with several addresses, some of which lead nowhere.

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
