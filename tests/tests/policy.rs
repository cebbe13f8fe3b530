//! The three QKD policies during an outage of both KMEs: `required` blocks, `preferred` continues and
//! reports it, `off` never uses a KME.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Capture, Gateway, GatewayOptions, KmeOptions, Lab, Outer, Site, Stream, sandbox};

const START: Duration = Duration::from_secs(20);
/// The time limit for the daemons to detect that the KMEs are back; the time between attempts grows during
/// the outage.
const BACK: Duration = Duration::from_secs(40);

/// Site A requests new keys from its KME, and site B the same ones.
fn options(qkd: &str, site: Site) -> GatewayOptions {
    let role = if site == Site::A { "initiator" } else { "responder" };
    GatewayOptions {
        qkd: qkd.to_owned(),
        kms: Some("stock = 2".to_owned()),
        peer: format!("role = \"{role}\""),
        ..GatewayOptions::default()
    }
}

fn start<'a>(lab: &'a Lab, qkd: &str) -> [Gateway<'a>; 2] {
    for site in Site::BOTH {
        let _ = lab.configure(site, &options(qkd, site));
    }
    Site::BOTH.map(|site| lab.start_daemon(site))
}

fn has_qkd(peer: &Value) -> bool {
    peer["key_sources"].as_array().is_some_and(|all| all.iter().any(|source| source == "qkd"))
}

fn both_reach(lab: &Lab) -> [bool; 2] {
    Site::BOTH.map(|site| lab.lan(site).pings(site.other().host()[0]))
}

fn wait_all(gateways: &[Gateway<'_>; 2], state: &str, limit: Duration) -> [Value; 2] {
    gateways.each_ref().map(|gateway| gateway.wait_state(state, limit))
}

#[test]
fn required_blocks_without_qkd_and_recovers() {
    sandbox::run("required_blocks_without_qkd_and_recovers", || {
        let lab = Lab::new();
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, "required");
        wait_all(&gateways, "up", START);
        let mut events = gateways[0].events();
        kmes.process.stop();
        let stopped = Instant::now();
        while stopped.elapsed() < Duration::from_secs(6) {
            let peer = gateways[0].peer();
            assert!(has_qkd(&peer) && peer["state"] == "up", "under the last key with QKD: {peer:#}");
            assert_eq!(both_reach(&lab), [true; 2], "traffic goes on under the stock");
        }
        events.line("qkd.supply_stopped", Duration::from_secs(20));
        let blocked = wait_all(&gateways, "blocked", Duration::from_secs(30));
        let took = stopped.elapsed();
        println!("blocked {took:?} after the KMEs went");
        // The last key of the stock is used at most two intervals after the stop, and each key is valid for
        // 10 s.
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(18), "blocked after {took:?}");
        events.line("peer.blocked", Duration::from_secs(5));
        assert!(blocked[0]["reason"].as_str().unwrap_or_default().contains("kme-a1"), "{:#}", blocked[0]);
        for peer in &blocked {
            println!("{}", peer["reason"]);
            assert!(!peer["reason"].as_str().unwrap_or_default().is_empty(), "it says why: {peer:#}");
            assert!(peer["key_sources"].as_array().unwrap().is_empty(), "{peer:#}");
        }

        let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        assert_eq!(both_reach(&lab), [false; 2]);
        let reports = Stream { count: 500, rate: 500, ..Stream::default() }.run(&lab);
        let seen = capture.stop();
        assert_eq!(reports.map(|report| report.received.distinct), [0, 0]);
        assert!(seen.data().is_empty(), "sent while blocked: {:?}", seen.data());
        assert!(seen.with_any(&lab.inner_patterns()).is_empty(), "in clear: {seen:?}");
        assert!(!seen.0.is_empty(), "the control session goes on, so the capture worked");

        let _kmes = lab.start_kmes(&KmeOptions::default());
        let up = wait_all(&gateways, "up", BACK);
        assert!(up.iter().all(has_qkd), "{up:?}");
        events.line("peer.recovered", Duration::from_secs(5));
        assert_eq!(both_reach(&lab), [true; 2]);
    });
}

#[test]
fn preferred_continues_degraded_and_recovers() {
    sandbox::run("preferred_continues_degraded_and_recovers", || {
        let lab = Lab::new();
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, "preferred");
        for gateway in &gateways {
            gateway.wait_peer("QKD first", START, |peer| peer["state"] == "up" && has_qkd(peer));
        }
        assert_eq!(both_reach(&lab), [true; 2]);
        let stream = Stream { count: 10_000, rate: 500, ..Stream::default() }.start(&lab);
        kmes.process.stop();
        for peer in wait_all(&gateways, "degraded", Duration::from_secs(18)) {
            assert!(!has_qkd(&peer), "{peer:#}");
            assert!(!peer["reason"].as_str().unwrap_or_default().is_empty(), "it says why: {peer:#}");
        }
        assert_eq!(both_reach(&lab), [true; 2]);
        for report in stream.finish() {
            assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
        }
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let up = wait_all(&gateways, "up", BACK);
        assert!(up.iter().all(has_qkd), "{up:?}");
    });
}

#[test]
fn off_needs_no_kme() {
    sandbox::run("off_needs_no_kme", || {
        let lab = Lab::new();
        let gateways =
            lab.start_both(&GatewayOptions { qkd: "off".to_owned(), kms: None, ..GatewayOptions::default() });
        for gateway in &gateways {
            let peer = gateway.wait_peer("a chain", START, |peer| {
                peer["key_sources"].as_array().is_some_and(|all| all.len() == 3)
            });
            assert_eq!(peer["key_sources"], serde_json::json!(["mlkem", "x25519", "chain"]));
            assert_eq!(peer["state"], "up", "{peer:#}");
            assert!(peer["qkd_key_id"].is_null(), "{peer:#}");
        }
        assert_eq!(both_reach(&lab), [true; 2]);
    });
}

/// A wrong `role`, reloaded at either site and corrected a few seconds later: the supply of QKD keys and the
/// rekeys continue, and no packet is lost.
#[test]
fn a_typo_that_is_reloaded_and_corrected_stops_no_supply_alone() {
    sandbox::run("a_typo_that_is_reloaded_and_corrected_stops_no_supply_alone", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = start(&lab, "required");
        wait_all(&gateways, "up", START);
        assert_eq!(both_reach(&lab), [true; 2]);
        for (site, gateway) in Site::BOTH.into_iter().zip(&gateways) {
            let stream = Stream { count: 500 * 15, rate: 500, ..Stream::default() }.start(&lab);
            let right = options("required", site);
            let wrong = options("required", site.other());
            let _ = lab.configure(site, &GatewayOptions { peer: wrong.peer, ..options("required", site) });
            assert!(gateway.ctl(&["reload", "qvpn0"]).status.success());
            gateway.wait_peer("the typo is refused", Duration::from_secs(5), |peer| {
                peer["reason"].as_str().is_some_and(|why| why.contains("role"))
            });
            let _ = lab.configure(site, &right);
            assert!(gateway.ctl(&["reload", "qvpn0"]).status.success());
            let rekeys = gateway.peer()["rekeys"].as_u64().unwrap();
            let more = |peer: &Value| peer["rekeys"].as_u64() >= Some(rekeys + 8) && has_qkd(peer);
            gateway.wait_peer("rekeys with QKD go on", Duration::from_secs(20), more);
            for report in stream.finish() {
                assert_eq!((report.received.lost, report.refused), (0, 0), "{}: {report:?}", site.name());
            }
        }
    });
}
