//! Shows the product on one machine, without any input: two sites, two KMEs and a tunnel in network
//! namespaces, real traffic, rekeys, a capture on the WAN, and an outage of the KMEs. It ends with a table of
//! measurements; the exit status is 0 if every step passed.

#![allow(clippy::unwrap_used, reason = "what goes wrong ends its step, and the table says so")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{
    Capture, Gateway, GatewayOptions, INTERFACE, KmeOptions, Kmes, Lab, Outer, Packets, Process, Site,
    Stream, sandbox,
};

const PICTURE: &str = "
     site A                                                               site B
  +-----------+   +---------+          +---------+          +---------+   +-----------+
  |   lan-a   |---|  gw-a   |==========|   wan   |==========|  gw-b   |---|   lan-b   |
  | 10.10.0.2 |   |  qvpn0  |  tunnel  | capture |  tunnel  |  qvpn0  |   | 10.20.0.2 |
  +-----------+   +----+----+          +---------+          +----+----+   +-----------+
                       |        ETSI GS QKD 014, mutual TLS      |
                  +----+----+                               +----+----+
                  | kme-a1  |- - - - - - QKD link - - - - - | kme-b1  |
                  +---------+                               +---------+

  key of an epoch = HKDF-SHA-384( QKD key, ML-KEM-1024, X25519, chain of earlier epochs )
";

/// Seconds between two rekeys: short, so that you see several.
const INTERVAL: u64 = 5;
/// QKD keys held ahead.
const STOCK: u64 = 3;
/// Rekeys to watch.
const REKEYS: usize = 4;
/// A pattern in all user data of the demo, for which the capture is searched.
const MARKER: &str = "TOP-SECRET-OF-THE-DEMO";
/// Size of the copied file.
const FILE_BYTES: usize = 4 << 20;
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    sandbox::main(|| {
        let mut demo = Demo { start: Instant::now(), rows: Vec::new() };
        // A failed step is in the table; if the others depend on it, the demo ends with the results so far.
        let went_through = catch_unwind(AssertUnwindSafe(|| demo.run())).is_ok();
        demo.table(went_through)
    })
}

/// The results so far.
struct Demo {
    start: Instant,
    rows: Vec<Row>,
}

struct Row {
    what: &'static str,
    ok: bool,
    measured: String,
}

/// A step's measurement, or its error.
type Outcome = Result<String, String>;

impl Demo {
    fn run(&mut self) {
        println!("{PICTURE}");
        let lab = Lab::new();
        self.title("Static keys and certificates");
        for site in Site::BOTH {
            let public = lab.identity(site).public;
            println!("  {}  {}…  (X25519 and the hash of an ML-KEM-1024 key)", site.name(), &public[..40]);
        }
        println!("  a lab CA, and certificates of kme-a1, kme-b1, SITE-A, SITE-B");
        let _ = lab.certificates();

        self.title("Two KMEs and two gateways start");
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        let options = GatewayOptions {
            rekey_interval: format!("{INTERVAL}s"),
            kms: Some(format!("stock = {STOCK}")),
            ..GatewayOptions::default()
        };
        let begun = Instant::now();
        let mut gateways = lab.start_both(&options);
        self.step("tunnel comes up", || comes_up(&gateways, begun));
        println!("\n  What `qvpn-ctl show` prints at site A:\n");
        let shown = gateways[0].ctl(&["show", INTERFACE]);
        String::from_utf8_lossy(&shown.stdout).lines().for_each(|line| println!("    {line}"));

        let wan = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        let inside = Capture::start(&lab.gw_a, "lan", Site::A.host()[0]);
        self.title("Real traffic between the LAN hosts");
        self.step("ping, both ways, IPv4 and IPv6", || ping(&lab));
        self.step("file over the tunnel", || copy_file(&lab));
        self.title(&format!("{REKEYS} rekeys as they happen, under a numbered stream in both directions"));
        self.step("rekeys lose nothing", || rekeys(&lab, &gateways[0]));
        self.title("What the WAN saw meanwhile");
        self.step("no inner byte in clear on the WAN", || in_clear(&lab, &inside.stop(), &wan.stop()));
        self.title("iperf3, with rekeys going on");
        self.step("iperf3 A to B", || iperf3(&lab, Site::A));
        self.step("iperf3 B to A", || iperf3(&lab, Site::B));

        self.title("Both KMEs are taken away");
        self.step("blocks when the stock is used up", || taken_away(&lab, &gateways, &mut kmes));
        self.step("nothing is sent while blocked", || silence(&lab));
        self.title("Both KMEs are back");
        let _kmes = lab.start_kmes(&KmeOptions::default());
        self.step("recovers by itself", || recovers(&lab, &gateways));
        self.title("Both gateways stop");
        self.step("stops cleanly, and stays closed", || stops(&lab, &mut gateways));
    }

    fn title(&self, text: &str) {
        println!("\n[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// Runs a step and records its measurement. A panic of the lab counts as a failure; its message is
    /// recorded.
    fn step(&mut self, what: &'static str, step: impl FnOnce() -> Outcome) {
        let (ok, measured) = match catch_unwind(AssertUnwindSafe(step)) {
            Ok(Ok(measured)) => (true, measured),
            Ok(Err(wrong)) => (false, wrong),
            Err(_) => (false, "see the message above".to_owned()),
        };
        println!("  {} {what}: {measured}", if ok { "ok    " } else { "FAILED" });
        self.rows.push(Row { what, ok, measured });
    }

    fn table(&self, went_through: bool) -> ExitCode {
        println!("\nWhat was seen, in {:.0} s:\n", self.start.elapsed().as_secs_f64());
        for Row { what, ok, measured } in &self.rows {
            println!("  {:<6}  {what:<34}  {measured}", if *ok { "ok" } else { "FAILED" });
        }
        if !went_through {
            println!("  FAILED  the demo could not go on; the reason is above");
        }
        let good = went_through && self.rows.iter().all(|row| row.ok);
        println!(
            "\n{}",
            if good { "All of it was as it should be." } else { "Not all was as it should be." }
        );
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn sources(value: &Value) -> String {
    let names: Vec<_> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    names.join("+")
}

fn check(ok: bool, measured: String) -> Outcome {
    if ok { Ok(measured) } else { Err(measured) }
}

fn comes_up(gateways: &[Gateway<'_>; 2], begun: Instant) -> Outcome {
    let peers = gateways.each_ref().map(|gateway| gateway.wait_state("up", LIMIT));
    let made_of = peers.each_ref().map(|peer| sources(&peer["key_sources"]));
    let text = format!("after {:.1} s, key of {}", begun.elapsed().as_secs_f64(), made_of[0]);
    check(made_of.iter().all(|made_of| made_of.starts_with("qkd+mlkem+x25519")), text)
}

fn ping(lab: &Lab) -> Outcome {
    let hex: String = MARKER.bytes().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut slowest = 0.0_f64;
    for site in Site::BOTH {
        for address in site.other().host() {
            let output = lab.lan(site).try_run(&format!("ping -n -c 5 -i 0.1 -W 1 -s 64 -p {hex} {address}"));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if !text.contains(" 0% packet loss") {
                return Err(format!("{} to {address}: {text}", site.name()));
            }
            // rtt min/avg/max/mdev = 0.5/0.6/0.7/0.0 ms
            let average = text.rsplit(" = ").next().and_then(|rtt| rtt.split('/').nth(1)?.parse().ok());
            slowest = slowest.max(average.unwrap_or(f64::NAN));
        }
    }
    Ok(format!("20 of 20 answered, {slowest:.2} ms on average at most"))
}

fn copy_file(lab: &Lab) -> Outcome {
    let dir = lab.lan_b.dir().join("www");
    std::fs::create_dir_all(&dir).unwrap();
    let lines = (0..).map(|n: u32| format!("{MARKER} line {n}\n"));
    let mut content = String::with_capacity(FILE_BYTES + 64);
    lines
        .take_while(|line| {
            content.push_str(line);
            content.len() < FILE_BYTES
        })
        .for_each(drop);
    std::fs::write(dir.join("secret.txt"), &content).unwrap();
    // Not `-m http.server`, which first looks up host names although there is no DNS here.
    let program = format!(
        "import http.server as h, os, socketserver as s\nos.chdir('{}')\n\
         server = s.TCPServer(('{}', 8000), \
         h.SimpleHTTPRequestHandler)\nprint('Serving')\nserver.serve_forever()",
        dir.display(),
        Site::B.host()[0]
    );
    let mut server = lab.lan_b.spawn("python3", &["-u", "-c", &program]);
    server.line("Serving", LIMIT);
    let copy = lab.lan_a.dir().join("copy.txt");
    let begun = Instant::now();
    lab.lan_a.run(&format!(
        "python3 -c 'import urllib.request as u; u.urlretrieve(\"http://{}:8000/secret.txt\", \"{}\")'",
        Site::B.host()[0],
        copy.display()
    ));
    let took = begun.elapsed().as_secs_f64();
    let sum = |node: &tests::Node, file: &std::path::Path| {
        node.run(&format!("sha256sum {}", file.display())).split(' ').next().unwrap_or_default().to_owned()
    };
    let (here, there) = (sum(&lab.lan_a, &copy), sum(&lab.lan_b, &dir.join("secret.txt")));
    let text = format!("{} bytes in {took:.2} s, SHA-256 {}… at both sides", content.len(), &here[..16]);
    check(here == there, if here == there { text } else { format!("{there} became {here}") })
}

/// Prints site A's next `epoch.active` event.
fn next_epoch(events: &mut Process) -> Result<Value, String> {
    let line = events.find_line(LIMIT, |line| line.contains("epoch.active"))?;
    let event: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
    Ok(event)
}

fn rekeys(lab: &Lab, gateway: &Gateway<'_>) -> Outcome {
    let already = gateway.peer()["epoch"].as_u64();
    let mut events = gateway.events();
    let seconds = INTERVAL * u64::try_from(REKEYS).unwrap();
    let stream = Stream { count: 500 * seconds, rate: 500, ..Stream::default() }.start(lab);
    let (mut seen, mut with_qkd) = (0, 0);
    while seen < REKEYS {
        let event = next_epoch(&mut events)?;
        if event["epoch"].as_u64() <= already {
            continue;
        }
        let made_of = sources(&event["sources"]);
        println!(
            "    {}  epoch {:<3} {made_of}  QKD key {}",
            event["time"].as_str().unwrap_or_default(),
            event["epoch"],
            event["qkd_key_id"].as_str().unwrap_or("none")
        );
        seen += 1;
        with_qkd += usize::from(made_of.starts_with("qkd+mlkem+x25519"));
    }
    let reports = stream.finish();
    let sum =
        |of: fn(&tests::Received) -> u64| reports.iter().map(|report| of(&report.received)).sum::<u64>();
    let (arrived, lost, doubled) = (sum(|r| r.distinct), sum(|r| r.lost), sum(|r| r.duplicated));
    let text =
        format!("{seen} rekeys, {with_qkd} with QKD; {arrived} datagrams, {lost} lost, {doubled} doubled");
    check(lost == 0 && doubled == 0 && with_qkd == REKEYS, text)
}

fn in_clear(lab: &Lab, inside: &Packets, wan: &Packets) -> Outcome {
    let mut patterns = lab.inner_patterns();
    patterns.push(MARKER.as_bytes()[..16].to_vec());
    let found = wan.with_any(&patterns).len();
    let expected = inside.with_any(&patterns).len();
    println!(
        "  searched for inner addresses and payload; the same search in the LAN of site A finds {expected} \
         packets"
    );
    let text = format!("{found} of {} packets, {} of them tunnel data", wan.0.len(), wan.data().len());
    check(found == 0 && expected > 1000 && wan.data().len() > 1000, text)
}

fn iperf3(lab: &Lab, from: Site) -> Outcome {
    let mut server = lab.lan(from.other()).spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
    server.line("Server listening", LIMIT);
    let text = lab.lan(from).run(&format!("iperf3 --client {} --time 3 --json", from.other().host()[0]));
    let report: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6;
    check(rate > 1.0, format!("{rate:.0} Mbit/s, TCP (an unoptimised build)"))
}

fn taken_away(lab: &Lab, gateways: &[Gateway<'_>; 2], kmes: &mut Kmes) -> Outcome {
    kmes.process.stop();
    let begun = Instant::now();
    let mut last = (Value::Null, Value::Null, Value::Null);
    let (mut passed_until, mut used) = (Duration::ZERO, 0);
    loop {
        let peers = gateways.each_ref().map(Gateway::peer);
        let peer = &peers[0];
        let now = (peer["state"].clone(), peer["epoch"].clone(), peer["qkd_stock"].clone());
        if now != last {
            let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |n| format!("{n:.0}"));
            println!(
                "    {:4.1} s  {:<8}  epoch {:<3}  stock {:<2}  its key ends in {} s",
                begun.elapsed().as_secs_f64(),
                now.0.as_str().unwrap_or_default(),
                number(&now.1),
                number(&now.2),
                number(&peer["epoch_expires_in_s"]),
            );
            used += u64::from(!last.1.is_null() && now.1.is_u64() && now.1 != last.1);
            last = now;
        }
        if peers.iter().all(|peer| peer["state"] == "blocked") {
            println!("    reason: {}", peer["reason"].as_str().unwrap_or_default());
            break;
        }
        if begun.elapsed() > 3 * LIMIT {
            return Err(format!("still {} after {:?}", peer["state"], begun.elapsed()));
        }
        if lab.lan_a.pings(Site::B.host()[0]) {
            passed_until = begun.elapsed();
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let text = format!(
        "{used} epochs from the stock, traffic for {:.0} s, blocked after {took:.0} s",
        passed_until.as_secs_f64()
    );
    check(used >= STOCK - 1 && passed_until > Duration::from_secs(INTERVAL), text)
}

fn silence(lab: &Lab) -> Outcome {
    let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
    let answered = Site::BOTH.into_iter().filter(|site| lab.lan(*site).pings(site.other().host()[0])).count();
    let seen = capture.stop();
    let (data, clear) = (seen.data().len(), seen.with_any(&lab.inner_patterns()).len());
    let text = format!("{answered} of 2 pings answered, {data} data packets and {clear} in clear on the WAN");
    check((answered, data, clear) == (0, 0, 0), text)
}

fn recovers(lab: &Lab, gateways: &[Gateway<'_>; 2]) -> Outcome {
    let begun = Instant::now();
    let peers = gateways.each_ref().map(|gateway| gateway.wait_state("up", LIMIT));
    let took = begun.elapsed().as_secs_f64();
    let passes = Site::BOTH.iter().all(|site| lab.lan(*site).pings(site.other().host()[0]));
    let made_of = sources(&peers[0]["key_sources"]);
    check(
        passes && made_of.starts_with("qkd"),
        format!("after {took:.1} s, key of {made_of}, traffic passes: {passes}"),
    )
}

fn stops(lab: &Lab, gateways: &mut [Gateway<'_>; 2]) -> Outcome {
    let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
    let ended = gateways.each_mut().map(|gateway| gateway.process.stop());
    let answered = lab.lan_a.pings(Site::B.host()[0]);
    let clear = capture.stop().with_any(&lab.inner_patterns()).len();
    let good = ended.iter().all(std::process::ExitStatus::success);
    check(
        good && !answered && clear == 0,
        format!("{}, {}; {clear} packets in clear after", ended[0], ended[1]),
    )
}
