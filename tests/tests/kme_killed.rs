//! A KME that is down for ten seconds of every thirty, with one rekey a second: no packet is lost, and keys
//! come again within seconds. It runs for 75 s in `make test`; set QVPN_SOAK_SECONDS=600 for ten minutes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Stream, sandbox};

const OUTAGE: Duration = Duration::from_secs(10);
const PERIOD: Duration = Duration::from_secs(30);
/// Time from the KME's return until both sides hold keys again.
const BACK: Duration = Duration::from_secs(5);

fn stock(gateway: &Gateway<'_>) -> u64 {
    gateway.peer()["qkd_stock"].as_u64().unwrap_or(0)
}

#[test]
fn alone_a_kme_killed_for_ten_seconds_of_thirty_costs_no_packet() {
    sandbox::run("alone_a_kme_killed_for_ten_seconds_of_thirty_costs_no_packet", || {
        let seconds = std::env::var("QVPN_SOAK_SECONDS").map_or(75, |s| s.parse().unwrap());
        let lab = Lab::new();
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&GatewayOptions::default());
        for gateway in &gateways {
            gateway.wait_peer("a full stock", Duration::from_secs(20), |peer| {
                peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(4)
            });
        }
        let rate = 500;
        let stream = Stream { count: seconds * rate, rate, ..Stream::default() }.start(&lab);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut outages = 0;
        loop {
            let next = Instant::now() + PERIOD;
            // In turn: one KME's port, the other's, and then the whole process, which loses all keys of both
            // KMEs.
            match outages % 3 {
                0 | 1 => {
                    let kme = ["kme-a1", "kme-b1"][outages % 3];
                    kmes.admin(&["misbehave", kme, "all", "refuse_tcp"]);
                    std::thread::sleep(OUTAGE);
                    kmes.admin(&["misbehave", kme, "all", "none"]);
                }
                _ => {
                    kmes.process.signal(Signal::SIGKILL);
                    let _ = kmes.process.wait(Duration::from_secs(5));
                    std::thread::sleep(OUTAGE);
                    kmes = lab.start_kmes(&KmeOptions::default());
                }
            }
            let back = Instant::now();
            outages += 1;
            for gateway in &gateways {
                gateway.wait_peer("keys come again", BACK, |peer| peer["qkd_stock"].as_u64() >= Some(1));
            }
            println!(
                "outage {outages}: keys again after {:?}; stock {:?}",
                back.elapsed(),
                gateways.each_ref().map(stock)
            );
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()).min(left));
            if Instant::now() >= end {
                break;
            }
        }
        let reports = stream.finish();
        println!("soak: {outages} outages in {seconds} s at a rekey each second");
        for report in reports {
            println!("soak: {report:?}");
            assert_eq!((report.refused, report.received.lost, report.received.duplicated), (0, 0, 0));
        }
        for gateway in &gateways {
            let peer = gateway.peer();
            println!("soak: rekeys {}, failures {}", peer["rekeys"], peer["rekey_failures"]);
            assert_eq!(peer["state"], "up");
            assert!(peer["rekeys"].as_u64().unwrap() >= seconds / 3, "epochs went on: {peer:#}");
        }
    });
}
