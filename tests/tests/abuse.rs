//! Floods of forged, replayed, reflected and meaningless datagrams from many addresses: traffic and rekeys
//! continue, memory doesn't grow, each datagram is counted, and a gateway that restarts during the flood can
//! connect.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{
    Capture, GatewayOptions, KmeOptions, Lab, Outer, Process, Site, Stream, binary, sandbox, wait_until,
};

const START: Duration = Duration::from_secs(20);
/// The network of the flood's source addresses.
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

/// All kinds of floods, and the share of the rate for each: long datagrams arrive in 41 fragments.
const KINDS: [(&str, u64); 10] = [
    ("starts", 1),
    ("points", 1),
    ("wrong", 1),
    ("data", 1),
    ("session", 1),
    ("short", 1),
    ("long", 100),
    ("replay", 1),
    ("live", 1),
    ("joined", 1),
];

/// Returns every counter of dropped packets at a gateway, of the interface and of the peer.
fn dropped(status: &Value) -> BTreeMap<String, u64> {
    let of = |place: &str, drops: &Value| -> Vec<(String, u64)> {
        let drops = drops.as_object().unwrap().iter();
        drops.map(|(name, n)| (format!("{place}{name}"), n.as_u64().unwrap())).collect()
    };
    of("", &status["drops"]).into_iter().chain(of("peer ", &status["peers"][0]["drops"])).collect()
}

/// Returns the number of datagrams that site B's kernel dropped before the gateway could read them, because
/// the queue of the socket or of the interface was full.
fn kernel_drops(lab: &Lab) -> u64 {
    let text = lab.gw(Site::B).run("cat /proc/net/snmp /proc/net/dev");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let udp: Vec<Vec<String>> = text.lines().filter(|line| line.starts_with("Udp: ")).map(words).collect();
    let column = udp[0].iter().position(|name| name == "RcvbufErrors").unwrap();
    // An interface: bytes, packets, errors, drops.
    let interfaces = text.lines().filter_map(|line| line.split_once(": ")).map(|(_, rest)| words(rest));
    let dropped: u64 =
        interfaces.filter(|words| words.len() == 16).map(|w| w[3].parse::<u64>().unwrap()).sum();
    udp[1][column].parse::<u64>().unwrap() + dropped
}

/// Returns the number of datagrams sent, the growth of the memory of site B's gateway in kB, and the time of
/// a restart during the flood.
fn floods(rate: u64, seconds: u64) -> (u64, u64, Duration) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    // The router has all addresses of the network, so that answers to them also return to it.
    lab.wan.run(&format!("ip route add local {NETWORK}.0/24 dev lo"));
    let mut gateways = lab.start_both(&GatewayOptions::default());
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    assert!(lab.lan_a.pings(Site::B.host()[0]));

    // Records site B's datagrams, to be replayed.
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
    let file = lab.wan.dir().join("recorded");
    fs::write(&file, recorded).unwrap();
    let file = file.display().to_string();

    let before = gateways[1].process.memory();
    let (mut all, mut lost) = (0, 0);
    for (kind, share) in KINDS {
        let rate = rate / share;
        let (old, before) = (gateways[1].show(), kernel_drops(&lab));
        let rekeys = old["peers"][0]["rekeys"].as_u64().unwrap();
        let source = match kind {
            "replay" => Some(file.as_str()),
            "live" | "joined" => Some(Site::B.name()),
            _ => None,
        };
        let mut running = flood(&lab, kind, rate, seconds, source);
        let reports = Stream { count: 500 * seconds, rate: 500, ..Stream::default() }.run(&lab);
        let sent = running.line("sent", Duration::from_secs(30));
        let sent: u64 = sent["sent ".len()..].parse().unwrap();
        all += sent;
        let earlier = dropped(&old);
        let count = || {
            let new = gateways[1].show();
            let kernel = kernel_drops(&lab) - before;
            let more = |(name, n): (String, u64)| {
                let n = n - earlier.get(&name).copied().unwrap_or(0);
                (name, n)
            };
            let counted: BTreeMap<String, u64> =
                dropped(&new).into_iter().map(more).filter(|(_, n)| *n > 0).collect();
            let sum = counted.values().sum::<u64>() + kernel;
            (new, counted, kernel, sum)
        };
        // The last datagrams are still in queues.
        let end = Instant::now() + Duration::from_secs(5);
        let (new, counted, kernel, sum) = loop {
            let now = count();
            if now.3 >= sent || Instant::now() > end {
                break now;
            }
        };
        let done = new["peers"][0]["rekeys"].as_u64().unwrap() - rekeys;
        let more = |of: &str| counted.get(of).copied().unwrap_or(0);
        let words: Vec<String> = counted.iter().map(|(name, n)| format!("{name} {n}")).collect();
        println!(
            "{kind}: {sent} sent, {sum} counted: {}, by the kernel {kernel}; {done} rekeys in {seconds} s",
            words.join(", ")
        );
        for report in &reports {
            // If the machine is too slow for the flood, its kernel drops datagrams of any source.
            let most = if kernel == 0 { 0 } else { report.sent / 50 };
            assert!(report.received.lost <= most, "{kind}: {report:?}, {kernel} by the kernel");
            assert_eq!(report.refused, 0, "{kind}: {report:?}");
            lost += report.received.lost;
        }
        assert!(done >= seconds - 1 - seconds / 10, "{kind}: rekeys go on: {done} in {seconds} s");
        // Each is counted; a few more are the gateways' own, such as a late retransmission.
        assert!(
            (sent..=sent + sent / 50 + 100).contains(&sum),
            "{kind}: {sent} sent, {sum} counted: {counted:?}"
        );
        let count = sent / 2;
        match kind {
            "wrong" | "short" => {
                assert!(more("malformed") >= count, "{kind}: dropped in the lane: {counted:?}")
            }
            "data" => assert!(more("unknown_index") >= count, "{kind}: {counted:?}"),
            // Recorded data packets are replays while their epoch drains; later their session is unknown.
            "replay" => {
                assert!(more("unknown_index") + more("peer replay") > count / 2, "{kind}: {counted:?}")
            }
            "live" | "joined" => {
                for name in ["peer auth", "peer replay", "unknown_index"] {
                    assert!(more(name) >= count / 40, "{kind}: {name}: {counted:?}");
                }
            }
            _ => {}
        }
        assert_eq!(new["peers"][0]["state"], "up", "{kind}");
    }
    let after = gateways[1].process.memory();
    println!(
        "memory: {before} kB before, {after} kB after {all} hostile datagrams; {lost} packets of the pair \
         lost"
    );
    assert!(after < before + 20_000, "memory is bounded: {before} kB before, {after} kB after");

    // During a flood of initiations a source must prove its address with a cookie.
    let mut running = flood(&lab, "starts", rate.min(10_000), 30, None);
    gateways[0].process.kill();
    let start = Instant::now();
    gateways[0] = lab.start_daemon(Site::A);
    gateways[0].wait_state("up", Duration::from_secs(25));
    wait_until("traffic", Duration::from_secs(5), || lab.lan_a.pings(Site::B.host()[0]).then_some(()));
    let took = start.elapsed();
    println!("a gateway that restarts during the flood is connected after {took:?}");
    assert!(running.is_running(), "the flood was still going on");
    (all, after.saturating_sub(before), took)
}

#[test]
fn floods_cost_no_packet_and_no_rekey_alone() {
    sandbox::run("floods_cost_no_packet_and_no_rekey_alone", || {
        floods(4_000, 3);
    });
}

#[test]
#[ignore = "some minutes; `make soak` runs it"]
fn long_floods_cost_no_packet_and_no_rekey_alone() {
    sandbox::run("long_floods_cost_no_packet_and_no_rekey_alone", || {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let rate = number("QVPN_FLOOD_RATE").unwrap_or(10_000);
        let seconds = number("QVPN_FLOOD_SECONDS").unwrap_or(30);
        let (sent, more, took) = floods(rate, seconds);
        println!(
            "soak: {} floods of {seconds} s, {rate} a second: {sent} datagrams, {more} kB more memory",
            KINDS.len()
        );
        println!("soak: a gateway that restarted during a flood was connected after {took:.1?}");
    });
}
