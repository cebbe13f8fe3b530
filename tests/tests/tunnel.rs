//! Two sites and one tunnel: traffic of all kinds passes, and the tunnel recovers after either gateway was
//! killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Outer, Site, sandbox, wait_until};

/// Time for the first epoch, in a debug build on a busy machine.
const START: Duration = Duration::from_secs(20);

fn sources(peer: &Value) -> Vec<&str> {
    peer["key_sources"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect()
}

/// Sends pings and TCP between the LAN hosts, from each side, in both families.
fn all_traffic_passes(lab: &Lab) {
    for site in Site::BOTH {
        for (address, bind) in site.other().host().into_iter().zip(["-4", "-6"]) {
            assert!(lab.lan(site).pings(address), "{} to {address}", site.name());
            let mut server =
                lab.lan(site.other()).spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
            server.line("Server listening", Duration::from_secs(10));
            let text = lab.lan(site).run(&format!("iperf3 {bind} --client {address} --time 1 --json"));
            let report: Value = serde_json::from_str(&text).unwrap();
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
            assert!(received >= 1_000_000, "{} to {address}: {received} bytes by TCP", site.name());
        }
    }
}

fn carries_both_families(outer: Outer) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let gateways = lab.start_both(&GatewayOptions { outer, ..GatewayOptions::default() });
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    all_traffic_passes(&lab);
    for (site, gateway) in Site::BOTH.into_iter().zip(&gateways) {
        let rested =
            gateway.wait_peer("a chain", START, |peer| sources(peer) == ["qkd", "mlkem", "x25519", "chain"]);
        assert_eq!(rested["state"], "up");
        assert!(rested["qkd_key_id"].is_string(), "{rested:#}");
        let endpoint = rested["endpoint"].as_str().unwrap();
        assert!(endpoint.contains(site.other().wan(outer)), "{endpoint}");
        for counter in ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes"] {
            assert!(rested[counter].as_u64().unwrap() > 0, "{counter}: {rested:#}");
        }
    }
}

#[test]
fn over_ipv4_all_traffic_passes() {
    sandbox::run("over_ipv4_all_traffic_passes", || carries_both_families(Outer::V4));
}

#[test]
fn over_ipv6_all_traffic_passes() {
    sandbox::run("over_ipv6_all_traffic_passes", || carries_both_families(Outer::V6));
}

#[test]
fn one_side_may_learn_the_others_endpoint() {
    sandbox::run("one_side_may_learn_the_others_endpoint", || {
        for silent in Site::BOTH {
            let lab = Lab::new();
            let _kmes = lab.start_kmes(&KmeOptions::default());
            for site in Site::BOTH {
                let options = GatewayOptions { endpoint: site != silent, ..GatewayOptions::default() };
                let _ = lab.configure(site, &options);
            }
            let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
            for gateway in &gateways {
                gateway.wait_state("up", START);
            }
            assert!(lab.lan(silent).pings(silent.other().host()[0]), "{} without an endpoint", silent.name());
        }
    });
}

#[test]
fn a_killed_gateway_is_back_long_before_the_next_rekey() {
    sandbox::run("a_killed_gateway_is_back_long_before_the_next_rekey", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        // At the default interval no rekey is due soon, so the restart itself must be detected.
        let options = GatewayOptions { rekey_interval: "60s".to_owned(), ..GatewayOptions::default() };
        let mut gateways: [Option<Gateway<'_>>; 2] = lab.start_both(&options).map(Some);
        for gateway in gateways.iter().flatten() {
            gateway.wait_state("up", START);
        }
        for (victim, site) in Site::BOTH.into_iter().enumerate() {
            assert!(lab.lan_a.pings(Site::B.host()[0]));
            gateways[victim].as_mut().unwrap().process.kill();
            let start = Instant::now();
            gateways[victim] = Some(lab.start_daemon(site));
            // The bound is a third of the interval; an idle machine needs about two seconds.
            for from in Site::BOTH {
                wait_until(&format!("traffic from {}", from.name()), Duration::from_secs(20), || {
                    lab.lan(from).pings(from.other().host()[0]).then_some(())
                });
            }
            let took = start.elapsed();
            println!("{} killed: traffic passes both ways again after {took:?}", site.name());
        }
    });
}
