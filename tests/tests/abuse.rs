//! Floods of forged, replayed and senseless datagrams from many addresses: traffic and rekeys go on, memory doesn't grow,
//! and a gateway that restarts amid the flood gets in.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{
    Capture, Gateway, GatewayOptions, KmeOptions, Lab, Outer, Process, Site, Stream, binary, sandbox,
    wait_until,
};

const START: Duration = Duration::from_secs(20);
/// Where the flood comes from.
const NETWORK: &str = "192.0.2";

/// Starts a flood of site B's gateway from the WAN router.
fn flood(lab: &Lab, kind: &str, rate: u64, seconds: u64, file: Option<&str>) -> Process {
    let target = format!("{}:51820", Site::B.wan(Outer::V4));
    let (rate, seconds, key) = (rate.to_string(), seconds.to_string(), lab.identity(Site::B).public);
    let mut args = vec![kind, rate.as_str(), seconds.as_str(), target.as_str(), key.as_str(), NETWORK];
    args.extend(file);
    let mut process = lab.wan.spawn(binary("lab-flood"), &args);
    process.line("flooding", Duration::from_secs(10));
    process
}

/// A number of `/proc/PID/status` in kB.
fn memory(gateway: &Gateway<'_>, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn drops(status: &Value, of: &str) -> u64 {
    status["drops"][of].as_u64().unwrap()
}

/// How much memory site B's gateway took more, in kB, and how long a restart amid the flood took.
fn floods(rate: u64, seconds: u64) -> (u64, Duration) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    // All of the network is at the router, so that its answers go back there, too.
    lab.wan.run(&format!("ip route add local {NETWORK}.0/24 dev lo"));
    let mut gateways = lab.start_both(&GatewayOptions::default());
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    assert!(lab.lan_a.pings(Site::B.host()[0]));

    // What site B gets for a while, to be replayed.
    let capture = Capture::start(&lab.wan, Site::B.name(), Site::B.wan(Outer::V4));
    let _ = Stream { count: 1_000, rate: 500, ..Stream::default() }.run(&lab);
    let b = Site::B.wan(Outer::V4).parse().ok();
    let mut recorded = Vec::new();
    for packet in
        capture.stop().0.iter().filter(|p| p.destination == b && p.udp.is_some_and(|(_, to)| to == 51820))
    {
        recorded.extend(u16::try_from(packet.payload.len()).unwrap().to_be_bytes());
        recorded.extend(&packet.payload);
    }
    let file = lab.wan.folder().join("recorded");
    fs::write(&file, recorded).unwrap();
    let file = file.display().to_string();

    let before = memory(&gateways[1], "VmRSS");
    for kind in ["starts", "wrong", "data", "session", "replay"] {
        let old = gateways[1].show();
        let rekeys = old["peers"][0]["rekeys"].as_u64().unwrap();
        let mut running = flood(&lab, kind, rate, seconds, (kind == "replay").then_some(file.as_str()));
        let reports = Stream { count: 500 * seconds, rate: 500, ..Stream::default() }.run(&lab);
        let sent = running.line("sent", Duration::from_secs(30));
        let new = gateways[1].show();
        let done = new["peers"][0]["rekeys"].as_u64().unwrap() - rekeys;
        let more = |of: &str| drops(&new, of) - drops(&old, of);
        let peer = |of: &str| drops(&new["peers"][0], of) - drops(&old["peers"][0], of);
        println!(
            "{kind}: {sent}; {done} rekeys; malformed {}, unknown_index {}, queue_full {}, replay {}, auth {}",
            more("malformed"),
            more("unknown_index"),
            more("queue_full"),
            peer("replay"),
            peer("auth")
        );
        for report in &reports {
            assert_eq!((report.received.lost, report.refused), (0, 0), "{kind}: {report:?}");
        }
        assert!(done >= seconds - 1, "{kind}: rekeys go on: {done} in {seconds} s");
        let count = rate * seconds / 2;
        match kind {
            "wrong" => assert!(more("malformed") >= count, "{kind}: dropped in the lane: {new:#}"),
            "data" => assert!(more("unknown_index") >= count, "{kind}: {new:#}"),
            // Recorded data packets are replays while their epoch drains, and of no session after.
            "replay" => assert!(more("unknown_index") + peer("replay") > count / 2, "{kind}: {new:#}"),
            _ => {}
        }
        assert_eq!(new["peers"][0]["state"], "up", "{kind}");
    }
    let after = memory(&gateways[1], "VmRSS");
    println!("memory: {before} kB before, {after} kB after");
    assert!(after < before + 20_000, "memory is bounded: {before} kB before, {after} kB after");

    // Amid a flood of starts nobody is let in without showing that they are where they say: the cookie does it.
    let mut running = flood(&lab, "starts", rate, 30, None);
    gateways[0].process.kill();
    let start = Instant::now();
    gateways[0] = lab.start_daemon(Site::A);
    gateways[0].wait_state("up", Duration::from_secs(25));
    wait_until("traffic", Duration::from_secs(5), || lab.lan_a.pings(Site::B.host()[0]).then_some(()));
    let took = start.elapsed();
    println!("a gateway that restarts amid the flood is in after {took:?}");
    assert!(running.is_running(), "the flood was still going on");
    (after.saturating_sub(before), took)
}

#[test]
fn floods_cost_no_packet_and_no_rekey_alone() {
    sandbox::run("floods_cost_no_packet_and_no_rekey_alone", || {
        floods(4_000, 4);
    });
}

#[test]
#[ignore = "some minutes; `make soak` runs it"]
fn long_floods_cost_no_packet_and_no_rekey_alone() {
    sandbox::run("long_floods_cost_no_packet_and_no_rekey_alone", || {
        let (more, took) = floods(10_000, 30);
        println!("soak: five floods of 10,000 a second for 30 s each: no packet lost, {more} kB more memory");
        println!("soak: a gateway that restarted amid a flood was in after {took:.1?}");
    });
}
