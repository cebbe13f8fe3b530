//! `RouteMirror` against a real kernel, in a network namespace of each test's own; `ip` makes the routes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use qvpn_net::{MirrorReport, NextHopRoute, RouteMirror};

use crate::common::{in_namespace, ip};

/// Far more than a change takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs `body` where the device `qvpn0` has an address; see [`in_namespace`].
fn with_tunnel(test: &str, body: impl FnOnce()) {
    in_namespace(test, async || {
        ip("link add qvpn0 type veth peer name far");
        ip("link set far up");
        ip("link set qvpn0 up");
        ip("addr add 10.77.0.1/24 dev qvpn0");
        body();
    });
}

fn batch(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn ip_index() -> u32 {
    ip("-o link show qvpn0").split(':').next().unwrap().trim().parse().unwrap()
}

struct Mirror {
    _mirror: RouteMirror,
    reports: Receiver<MirrorReport>,
}

impl Mirror {
    fn start(table: u32) -> Self {
        let (sender, reports) = channel();
        let mirror = RouteMirror::start(table, ip_index(), move |report| sender.send(report).unwrap());
        Self { _mirror: mirror.unwrap(), reports }
    }

    /// Waits until the routes are these, in the format of `ip route`.
    fn wait(&self, wanted: &[&str]) {
        let mut last = Vec::new();
        let end = Instant::now() + TIMEOUT;
        while let Ok(report) = self.reports.recv_timeout(end.saturating_duration_since(Instant::now())) {
            let MirrorReport::Routes(routes) = report else { panic!("{report:?}") };
            last = routes.iter().filter(|route| is_ours(route)).map(text).collect();
            if last == wanted {
                return;
            }
        }
        panic!("not within {TIMEOUT:?}: {wanted:?}; last: {last:?}");
    }
}

/// Connected routes and link-local ones are always there.
fn is_ours(route: &NextHopRoute) -> bool {
    let prefix = route.prefix.to_string();
    prefix != "10.77.0.0/24" && !prefix.starts_with("fe80:")
}

fn text(route: &NextHopRoute) -> String {
    let hops = route.next_hops.iter().map(|hop| {
        let gateway = hop.gateway.map_or("on-link".to_owned(), |gateway| gateway.to_string());
        format!("{gateway}*{}", hop.weight)
    });
    let hops =
        if route.next_hops.is_empty() { "rejects".to_owned() } else { hops.collect::<Vec<_>>().join(" ") };
    format!("{} {hops} metric {}", route.prefix, route.metric)
}

#[test]
fn the_mirror_follows_every_kind_of_change() {
    with_tunnel("the_mirror_follows_every_kind_of_change", || {
        ip("route add 10.20.0.0/16 via 10.77.0.2");
        let mirror = Mirror::start(254);
        mirror.wait(&["10.20.0.0/16 10.77.0.2*1 metric 0"]);
        ip("route replace 10.20.0.0/16 via 10.77.0.3");
        mirror.wait(&["10.20.0.0/16 10.77.0.3*1 metric 0"]);
        // A route with a worse metric has no effect until the better one is gone.
        ip("route add 10.20.0.0/16 via 10.77.0.4 metric 20");
        ip("route del 10.20.0.0/16 via 10.77.0.3");
        mirror.wait(&["10.20.0.0/16 10.77.0.4*1 metric 20"]);
        ip("route add 10.30.0.0/16 nexthop via 10.77.0.2 weight 1 nexthop via 10.77.0.3 weight 4");
        mirror.wait(&["10.20.0.0/16 10.77.0.4*1 metric 20", "10.30.0.0/16 10.77.0.2*1 10.77.0.3*4 metric 0"]);
        ip("route flush proto boot");
        mirror.wait(&[]);
        // IPv6, IPv4 with an IPv6 next hop, and a route without a next hop.
        ip("-6 route add fd20::/64 via fe80::2 dev qvpn0 metric 30");
        ip("route add 10.20.0.0/16 via inet6 fe80::2 dev qvpn0");
        ip("route add 10.40.0.0/16 dev qvpn0");
        mirror.wait(&[
            "10.20.0.0/16 fe80::2*1 metric 0",
            "10.40.0.0/16 on-link*1 metric 0",
            "fd20::/64 fe80::2*1 metric 30",
        ]);
        ip("-6 route append fd20::/64 via fe80::3 dev qvpn0 metric 30");
        ip("route del 10.40.0.0/16");
        ip("route del 10.20.0.0/16");
        mirror.wait(&["fd20::/64 fe80::2*1 fe80::3*1 metric 30"]);
        ip("-6 route del fd20::/64 via fe80::2 dev qvpn0 metric 30");
        mirror.wait(&["fd20::/64 fe80::3*1 metric 30"]);
        // Other tables and devices are ignored, and our own routes are not followed.
        ip("route add 10.50.0.0/16 via 10.77.0.2 table 100");
        ip("addr add 192.0.2.1/24 dev far");
        ip("route add 10.51.0.0/16 via 192.0.2.2");
        ip("route add 10.52.0.0/16 dev qvpn0 proto 113");
        ip("route add 10.53.0.0/16 via 10.77.0.2");
        mirror.wait(&["10.53.0.0/16 10.77.0.2*1 metric 0", "fd20::/64 fe80::3*1 metric 30"]);
        // The kernel does not report IPv4 routes that disappear with their device.
        ip("link set qvpn0 down");
        mirror.wait(&[]);
    });
}

#[test]
fn routes_that_reject_packets_are_followed() {
    with_tunnel("routes_that_reject_packets_are_followed", || {
        let mirror = Mirror::start(254);
        ip("route add 10.20.0.0/16 via 10.77.0.2");
        ip("route add blackhole 10.20.5.0/24");
        ip("route add unreachable 10.20.6.0/24 metric 7");
        ip("-6 route add prohibit fd20::/64 metric 9");
        let rejecting = [
            "10.20.0.0/16 10.77.0.2*1 metric 0",
            "10.20.5.0/24 rejects metric 0",
            "10.20.6.0/24 rejects metric 7",
            "fd20::/64 rejects metric 9",
        ];
        mirror.wait(&rejecting);
        // A better route through the tunnel wins, as in the kernel. Our own routes don't count.
        ip("route add 10.20.6.0/24 via 10.77.0.3");
        ip("-6 route add fd20::/64 via fe80::2 dev qvpn0 metric 3");
        ip("route add unreachable 10.20.7.0/24 proto 113");
        ip("route add blackhole 10.20.8.0/24 table 100");
        ip("route del blackhole 10.20.5.0/24");
        mirror.wait(&[
            "10.20.0.0/16 10.77.0.2*1 metric 0",
            "10.20.6.0/24 10.77.0.3*1 metric 0",
            "fd20::/64 fe80::2*1 metric 3",
        ]);
    });
}

#[test]
fn a_group_of_next_hops_changes_without_a_message_about_its_routes() {
    with_tunnel("a_group_of_next_hops_changes_without_a_message_about_its_routes", || {
        let mirror = Mirror::start(254);
        for compat in ["1", "0"] {
            // Without the compatible mode the kernel names only the object.
            if fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", compat).is_err() {
                println!("/proc/sys is not writable here: the mode stays");
            }
            ip("nexthop add id 1 via 10.77.0.2 dev qvpn0");
            ip("nexthop add id 2 via 10.77.0.3 dev qvpn0");
            ip("nexthop add id 9 group 1,3/2,1");
            ip("route add 10.20.0.0/16 nhid 9");
            mirror.wait(&["10.20.0.0/16 10.77.0.2*3 10.77.0.3*1 metric 0"]);
            ip("nexthop replace id 9 group 2");
            mirror.wait(&["10.20.0.0/16 10.77.0.3*1 metric 0"]);
            ip("nexthop replace id 2 via 10.77.0.4 dev qvpn0");
            mirror.wait(&["10.20.0.0/16 10.77.0.4*1 metric 0"]);
            ip("nexthop flush");
            mirror.wait(&[]);
        }
    });
}

#[test]
fn another_table_and_the_end() {
    with_tunnel("another_table_and_the_end", || {
        // The table does not exist yet.
        let mirror = Mirror::start(4711);
        mirror.wait(&[]);
        ip("route add 10.20.0.0/16 via 10.77.0.2 table 4711");
        mirror.wait(&["10.20.0.0/16 10.77.0.2*1 metric 0"]);
        let Mirror { _mirror, reports } = mirror;
        drop(_mirror);
        let end = Instant::now() + TIMEOUT;
        loop {
            assert!(Instant::now() < end, "the mirror's thread still runs");
            match reports.recv_timeout(Duration::from_millis(100)) {
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    });
}

#[test]
fn twenty_thousand_routes_that_flap_end_right() {
    with_tunnel("twenty_thousand_routes_that_flap_end_right", || {
        let mirror = Mirror::start(254);
        let routes = |gateway: u8| -> String {
            (0..20_000u32)
                .map(|n| {
                    let net = 0x0a80_0000 + n * 16;
                    let [a, b, c, d] = net.to_be_bytes();
                    format!("route replace {a}.{b}.{c}.{d}/28 via 10.77.0.{gateway}\n")
                })
                .collect()
        };
        let counted = |gateway: &str| {
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                let report = mirror.reports.recv_timeout(end.saturating_duration_since(Instant::now()));
                let MirrorReport::Routes(routes) = report.unwrap() else { panic!() };
                let of = |route: &&NextHopRoute| {
                    route.next_hops[0].gateway.is_some_and(|ip| ip.to_string() == gateway)
                };
                if routes.iter().filter(of).count() == 20_000 {
                    return;
                }
            }
        };
        for gateway in [2, 3, 2, 4] {
            batch(&routes(gateway));
        }
        counted("10.77.0.4");
    });
}
