//! Nothing leaves in clear after the daemon has ended, on gateways whose default route is the WAN. With
//! `on_stop = "open"` packets do leave, so the check can fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use tests::{
    Capture, Gateway, GatewayOptions, KmeOptions, Lab, Outer, Packet, Packets, Site, Stream, sandbox,
};

const START: Duration = Duration::from_secs(20);

/// How the daemons end.
#[derive(Clone, Copy)]
enum End {
    Killed,
    Stopped,
}

/// Ends both daemons while LAN traffic flows both ways; returns what both gateways sent into the WAN.
fn ended(options: &GatewayOptions, end: End) -> (Vec<Vec<u8>>, Packets) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let mut gateways = lab.start_both(options);
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    for site in Site::BOTH {
        for address in site.other().host() {
            assert!(lab.lan(site).pings(address), "{} reaches {address} first", site.name());
        }
    }
    let captures = Site::BOTH.map(|site| Capture::start(&lab.wan, site.name(), site.wan(Outer::V4)));
    let sent = |gateway: &Gateway<'_>| gateway.peer()["tx_packets"].as_u64().unwrap();
    let before: Vec<u64> = gateways.iter().map(sent).collect();
    let v4 = Stream { count: 6_000, rate: 1_000, ..Stream::default() }.start(&lab);
    let v6 = Stream { count: 6_000, rate: 1_000, ipv6: true, port: 7001, ..Stream::default() }.start(&lab);
    // Check both gateways before either ends: on a slow machine the traffic could be over before the second
    // one is stopped.
    for (gateway, before) in gateways.iter().zip(before) {
        gateway.wait_peer("traffic flows", START, |peer| peer["tx_packets"].as_u64().unwrap() > before + 100);
    }
    for gateway in &mut gateways {
        match end {
            End::Killed => gateway.process.kill(),
            End::Stopped => assert!(gateway.process.stop().success()),
        }
    }
    for reports in [v4.finish(), v6.finish()] {
        for report in reports {
            assert!(report.received.distinct > 0, "it flowed: {report:?}");
            assert!(report.received.lost > 0, "and it ended: {report:?}");
        }
    }
    let mut all: Vec<Packet> = Vec::new();
    for capture in captures {
        all.extend(capture.stop().0);
    }
    let seen = Packets(all);
    assert!(seen.data().len() > 100, "the capture saw the tunnel");
    (lab.inner_patterns(), seen)
}

#[track_caller]
fn nothing_in_clear(options: &GatewayOptions, end: End) {
    let (patterns, seen) = ended(options, end);
    let clear = seen.with_any(&patterns);
    assert!(clear.is_empty(), "{} packets in clear, the first: {:?}", clear.len(), clear[0]);
}

/// Each site's own LAN; the other's has no route through that device.
const LOCAL: &str = "local = [{ prefix = \"10.10.0.0/16\", device = \"lan\" }, { prefix = \"fd10::/64\", \
                     device = \"lan\" }, { prefix = \"10.20.0.0/16\", device = \"lan\" }, { prefix \
                     = \"fd20::/64\", device = \"lan\" }]";

fn everything() -> GatewayOptions {
    GatewayOptions {
        allowed_ips: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        interface: LOCAL.to_owned(),
        ..GatewayOptions::default()
    }
}

fn open(options: GatewayOptions) -> GatewayOptions {
    let interface = format!("on_stop = \"open\"\n{}", options.interface);
    GatewayOptions { interface, ..options }
}

#[test]
fn after_kill_9_nothing_is_in_clear() {
    sandbox::run("after_kill_9_nothing_is_in_clear", || {
        nothing_in_clear(&GatewayOptions::default(), End::Killed);
    });
}

#[test]
fn after_a_stop_nothing_is_in_clear() {
    sandbox::run("after_a_stop_nothing_is_in_clear", || {
        nothing_in_clear(&GatewayOptions::default(), End::Stopped);
    });
}

#[test]
fn a_default_route_leaks_nothing_after_kill_9() {
    sandbox::run("a_default_route_leaks_nothing_after_kill_9", || {
        nothing_in_clear(&everything(), End::Killed);
    });
}

#[test]
fn a_default_route_leaks_nothing_after_a_stop() {
    sandbox::run("a_default_route_leaks_nothing_after_a_stop", || {
        nothing_in_clear(&everything(), End::Stopped);
    });
}

#[test]
fn kill_9_under_on_stop_open_leaks_nothing_either() {
    sandbox::run("kill_9_under_on_stop_open_leaks_nothing_either", || {
        nothing_in_clear(&open(GatewayOptions::default()), End::Killed);
    });
}

#[test]
fn on_stop_open_opens_so_the_check_can_fail() {
    sandbox::run("on_stop_open_opens_so_the_check_can_fail", || {
        for options in [open(GatewayOptions::default()), open(everything())] {
            let (patterns, seen) = ended(&options, End::Stopped);
            for pattern in patterns {
                let clear = seen.with_any(std::slice::from_ref(&pattern));
                assert!(!clear.is_empty(), "no packet with {pattern:?} among {}", seen.0.len());
            }
        }
    });
}
