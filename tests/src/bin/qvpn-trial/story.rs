//! The course of the trial, and its record: everything starts; an eavesdropper measures for a while, later
//! returns until traffic is blocked, and leaves; traffic recovers.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Kmes, Lab, Process, Site, binary};

use crate::traffic::{Flows, Traffic};
use crate::watch::{Sample, Watch, now};

/// Simulated seconds in a real one: a rekey interval of 100 ms is a minute.
pub const SCALE: f64 = 600.0;
pub const INTERVAL_MS: u64 = 100;
/// Pulses that the eavesdropper measures, percent.
pub const EAVESDROPPED: u8 = 50;
const LINK: [&str; 2] = ["kme-a1", "kme-b1"];
const LIMIT: Duration = Duration::from_secs(60);

/// The length of each part.
#[derive(Debug, Clone)]
pub struct Plan {
    pub short: bool,
    /// Rekeys until the end, and until each attack.
    pub rekeys: u64,
    pub first_attack: u64,
    pub second_attack: u64,
    /// Keys that a gateway holds ahead, and that the KMEs store for the pair.
    pub stock: u64,
    pub store: u64,
    /// How long traffic stays blocked before the eavesdropper leaves.
    pub blocked_for: Duration,
}

impl Plan {
    pub const FULL: Self = Self {
        short: false,
        rekeys: 7200,
        first_attack: 2163,
        second_attack: 4691,
        stock: 20,
        store: 30,
        blocked_for: Duration::from_secs(6),
    };
    pub const SHORT: Self = Self {
        short: true,
        rekeys: 150,
        first_attack: 30,
        second_attack: 90,
        stock: 5,
        store: 10,
        blocked_for: Duration::from_secs(2),
    };
}

/// An event of a gateway.
#[derive(Debug, Clone)]
pub struct Event {
    /// Seconds since 1970.
    pub at: f64,
    pub kind: String,
    pub fields: Value,
}

/// All observations. Times are seconds since 1970.
pub struct Record {
    pub began: f64,
    pub ended: f64,
    /// Beginning and end of the two attacks.
    pub attacks: [(f64, f64); 2],
    pub samples: Vec<Sample>,
    /// The events of site A and of site B.
    pub events: [Vec<Event>; 2],
    pub flows: Flows,
    /// Datagrams that full queues dropped, by the kernel's counters.
    pub queue_drops: u64,
    /// Packets on the WAN: the tunnel's, and those with an inner address.
    pub tunnel_packets: u64,
    pub clear_packets: u64,
}

/// Runs the trial.
pub fn play(plan: &Plan) -> Record {
    let start = Instant::now();
    let say = |text: &str| println!("[{:6.1} s] {text}", start.elapsed().as_secs_f64());
    let lab = Lab::new();
    let kmes = lab.start_kmes(&KmeOptions {
        top: format!("time_scale = {SCALE}"),
        link: Some(format!("max_keys = {0}\ninitial_keys = {0}\n{1}", plan.store, optics())),
        ..KmeOptions::default()
    });
    let gateways = lab.start_both(&GatewayOptions {
        rekey_interval: format!("{INTERVAL_MS}ms"),
        kms: Some(format!("stock = {}", plan.stock)),
        // It fetches new keys, so it raises the alarm.
        initiator: Some(Site::A),
        ..GatewayOptions::default()
    });
    let full = plan.stock - plan.stock / 4;
    for gateway in &gateways {
        gateway.wait_peer("a full stock", LIMIT, |peer| {
            peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(full)
        });
    }
    assert!(lab.lan_a.pings(Site::B.host()[0]), "the tunnel carries a ping");
    count_on_wan(&lab);
    let drops_before = queue_drops(&lab);
    let mut logs = gateways.each_ref().map(Gateway::events);
    let watch = Watch::start(&gateways, &kmes);
    let traffic = Traffic::start(&lab);
    let began = now();
    let first = wait(&watch, "a first look", |_| true).ends[0].rekeys;
    let rekeys = |sample: &Sample| sample.ends[0].rekeys - first;
    say("traffic begins");

    let until = |wanted: u64| {
        let limit = Duration::from_secs(30) + Duration::from_millis(3 * INTERVAL_MS * wanted);
        wait_for(&watch, &format!("{wanted} rekeys"), limit, |sample| rekeys(sample) >= wanted);
    };
    until(plan.first_attack);
    let first_came = eavesdrop(&kmes, EAVESDROPPED);
    say("an eavesdropper comes: half of the pulses are measured");
    wait_event(&mut logs[..1], "qkd.supply_stopped", first_came);
    say("the alarm is raised");
    std::thread::sleep(Duration::from_millis(500));
    let first_went = eavesdrop(&kmes, 0);
    say("the eavesdropper goes");
    wait_event(&mut logs[..1], "qkd.supply_resumed", first_came);
    say("keys come again");

    until(plan.second_attack);
    let second_came = eavesdrop(&kmes, EAVESDROPPED);
    say("the eavesdropper comes again, and stays");
    wait_event(&mut logs[..1], "qkd.supply_stopped", second_came);
    say("the alarm is raised; traffic rides on the stock");
    wait(&watch, "both gateways blocked", |sample| sample.ends.iter().all(|end| end.state == "blocked"));
    say("the stocks are used up and the last key has ended: blocked");
    std::thread::sleep(plan.blocked_for);
    let second_went = eavesdrop(&kmes, 0);
    say("the eavesdropper goes");
    wait_event(&mut logs, "peer.recovered", second_came);
    say("traffic flows again");
    until(plan.rekeys);
    say(&format!("{} rekeys are done", plan.rekeys));

    let ended = now();
    let samples = watch.stop();
    let flows = traffic.finish();
    let dropped = queue_drops(&lab) - drops_before;
    let [tunnel_packets, clear_packets] = counted_on_wan(&lab);
    Record {
        began,
        ended,
        attacks: [(first_came, first_went), (second_came, second_went)],
        samples,
        events: logs.map(|log| events(&log.log())),
        flows,
        queue_drops: dropped,
        tunnel_packets,
        clear_packets,
    }
}

/// Returns the optical parameters of the preset.
fn optics() -> String {
    let preset = Command::new(binary("kme-sim")).args(["preset", "show", "defence-50km"]).output().unwrap();
    let text = String::from_utf8(preset.stdout).unwrap();
    let at = text.find("[link.optics]").expect("the preset has a [link.optics]");
    let block = text.lines().find(|line| line.starts_with("block_bits")).unwrap();
    format!("{block}\n{}", &text[at..])
}

/// Lets the eavesdropper measure this percentage of pulses; returns the time.
fn eavesdrop(kmes: &Kmes, percent: u8) -> f64 {
    kmes.admin(&["eavesdrop", LINK[0], LINK[1], &percent.to_string()]);
    now()
}

/// Waits until these gateways report an event `kind` later than `since`.
fn wait_event(logs: &mut [Process], kind: &str, since: f64) {
    for log in logs {
        let found = log
            .find_line(LIMIT, |line| event(line).is_some_and(|event| event.kind == kind && event.at > since));
        found.unwrap_or_else(|why| panic!("no {kind}: {why}"));
    }
}

fn wait(watch: &Watch, what: &str, wanted: impl Fn(&Sample) -> bool) -> Sample {
    wait_for(watch, what, LIMIT, wanted)
}

fn wait_for(watch: &Watch, what: &str, limit: Duration, wanted: impl Fn(&Sample) -> bool) -> Sample {
    tests::wait_until(what, limit, || watch.latest().filter(&wanted))
}

fn event(line: &str) -> Option<Event> {
    let fields: Value = serde_json::from_str(line).ok()?;
    let at = humantime::parse_rfc3339(fields["time"].as_str()?).ok()?;
    let at = at.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64();
    Some(Event { at, kind: fields["event"].as_str()?.to_owned(), fields })
}

fn events(log: &str) -> Vec<Event> {
    log.lines().filter_map(event).collect()
}

/// Makes the WAN router count packets: the tunnel's, and those with an inner address.
fn count_on_wan(lab: &Lab) {
    let [a4, a6] = Site::A.networks();
    let [b4, b6] = Site::B.networks();
    lab.wan.nft(&format!(
        "table inet trial {{\ncounter tunnel {{\n}}\ncounter clear {{\n}}\nchain pass {{\n\
         type filter hook prerouting priority -300;\nudp dport 51820 counter name tunnel\n\
         ip saddr {{ {a4}, {b4} }} counter name clear\nip daddr {{ {a4}, {b4} }} counter name clear\n\
         ip6 saddr {{ {a6}, {b6} }} counter name clear\nip6 daddr {{ {a6}, {b6} }} counter name \
         clear\n}}\n}}\n"
    ));
}

fn counted_on_wan(lab: &Lab) -> [u64; 2] {
    let text = lab.wan.run("nft -j list counters table inet trial");
    let json: Value = serde_json::from_str(&text).unwrap();
    ["tunnel", "clear"].map(|name| {
        let all = json["nftables"].as_array().unwrap();
        let found = all.iter().find(|item| item["counter"]["name"] == name).unwrap();
        found["counter"]["packets"].as_u64().unwrap()
    })
}

/// Returns the number of datagrams that full queues have dropped so far: those of the tunnel devices, of the
/// links, and of UDP sockets.
fn queue_drops(lab: &Lab) -> u64 {
    let mut sum = 0;
    for node in [&lab.gw_a, &lab.gw_b, &lab.lan_a, &lab.lan_b, &lab.wan] {
        let links: Value = serde_json::from_str(&node.run("ip -s -j link show")).unwrap();
        let dropped = |link: &Value| link["stats64"]["tx"]["dropped"].as_u64().unwrap();
        sum += links.as_array().unwrap().iter().map(dropped).sum::<u64>();
        let snmp = node.run("cat /proc/net/snmp");
        let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
        let column = names.split_whitespace().position(|name| name == "RcvbufErrors").unwrap();
        sum += values.split_whitespace().nth(column).unwrap().parse::<u64>().unwrap();
    }
    sum
}
