//! A rekey costs no packet: numbered streams in both directions at once, over many rekeys, lose no more than
//! a run without.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use tests::{Gateway, GatewayOptions, INTERFACE, KmeOptions, Lab, Site, Stream, StreamReport, sandbox};

/// Packets a second, in each direction.
const RATE: u64 = 5_000;
/// The duration of a stream: 30 rekeys of half a second, or 150 of a tenth, and a little more.
const SECONDS: u64 = 17;

/// Returns the number of packets that the kernel dropped at the gateways because a queue was full: the queue
/// of the tunnel's device, or of UDP sockets.
fn queue_drops(lab: &Lab, site: Site) -> u64 {
    let gateway = lab.gw(site);
    let text = gateway.run(&format!("ip -s -j link show dev {INTERFACE}"));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let device = links[0]["stats64"]["tx"]["dropped"].as_u64().unwrap();
    let snmp = gateway.run("cat /proc/net/snmp /proc/net/snmp6");
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
    let column = names.split_whitespace().position(|name| name == "RcvbufErrors").unwrap();
    device + values.split_whitespace().nth(column).unwrap().parse::<u64>().unwrap()
}

fn run(rekey_interval: &str, seconds: u64) -> (u64, u64, [StreamReport; 2]) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let options = GatewayOptions { rekey_interval: rekey_interval.to_owned(), ..GatewayOptions::default() };
    let gateways = lab.start_both(&options);
    for gateway in &gateways {
        gateway.wait_state("up", Duration::from_secs(20));
    }
    // Neighbours are resolved before the count begins.
    assert!(lab.lan_a.pings(Site::B.host()[0]));
    let rekeys = |gateway: &Gateway<'_>| gateway.peer()["rekeys"].as_u64().unwrap();
    let before = rekeys(&gateways[0]);
    let drops_before: u64 = Site::BOTH.map(|site| queue_drops(&lab, site)).iter().sum();
    let reports = Stream { count: RATE * seconds, rate: RATE, ..Stream::default() }.run(&lab);
    let done = rekeys(&gateways[0]) - before;
    let drops: u64 = Site::BOTH.map(|site| queue_drops(&lab, site)).iter().sum::<u64>() - drops_before;
    println!("{done} rekeys, {drops} dropped in queues of the gateways, {reports:?}");
    for gateway in &gateways {
        let peer = gateway.peer();
        for reason in ["no_epoch", "expired", "replay", "auth", "not_allowed_ip"] {
            assert_eq!(peer["drops"][reason].as_u64().unwrap_or(0), 0, "{reason}: {peer:#}");
        }
    }
    (done, drops, reports)
}

fn nothing_was_lost(queue_drops: u64, reports: &[StreamReport; 2], seconds: u64) {
    let total = RATE * seconds;
    let counted_apart = queue_drops + reports.iter().map(|report| report.kernel_drops).sum::<u64>();
    let lost: u64 = reports.iter().map(|report| report.received.lost).sum();
    for report in reports {
        assert_eq!((report.sent, report.refused), (total, 0), "{report:?}");
        let received = &report.received;
        assert_eq!((received.duplicated, received.reordered, received.strange), (0, 0, 0), "{report:?}");
    }
    assert_eq!(lost.saturating_sub(counted_apart), 0, "beside {counted_apart} in queues: {reports:?}");
}

#[test]
fn rekeys_lose_nothing_alone() {
    sandbox::run("rekeys_lose_nothing_alone", || {
        let (rekeys, drops, reports) = run("60s", SECONDS);
        assert!(rekeys <= 1, "the control run has no rekeys: {rekeys}");
        assert_eq!(drops + reports[0].kernel_drops + reports[1].kernel_drops, 0, "{reports:?}");
        nothing_was_lost(drops, &reports, SECONDS);

        let (rekeys, drops, reports) = run("500ms", SECONDS);
        assert!(rekeys >= 30, "only {rekeys} rekeys");
        nothing_was_lost(drops, &reports, SECONDS);
    });
}

#[test]
fn ten_rekeys_a_second_lose_nothing_alone() {
    sandbox::run("ten_rekeys_a_second_lose_nothing_alone", || {
        let (rekeys, drops, reports) = run("100ms", SECONDS);
        assert!(rekeys >= 150, "only {rekeys} rekeys");
        nothing_was_lost(drops, &reports, SECONDS);
    });
}

#[test]
#[ignore = "a minute; `make soak` runs it"]
fn six_hundred_rekeys_in_a_minute_lose_nothing_alone() {
    sandbox::run("six_hundred_rekeys_in_a_minute_lose_nothing_alone", || {
        let (rekeys, drops, reports) = run("100ms", 61);
        assert!(rekeys >= 600, "only {rekeys} rekeys");
        nothing_was_lost(drops, &reports, 61);
        let sent: u64 = reports.iter().map(|report| report.sent).sum();
        println!(
            "soak: {rekeys} rekeys in 61 s: {sent} datagrams, 0 reordered, none lost but {drops} in full \
             queues"
        );
    });
}
