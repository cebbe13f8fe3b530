//! A load test of a hub: a real `qvpn-daemon` with the real `kme-sim` meets many sites that this process
//! plays. It measures what a rekey and a peer cost the hub, and how long it takes until all sites are up.

#![allow(clippy::unwrap_used, reason = "what goes wrong ends the run, and says where")]
#![allow(clippy::cast_precision_loss, reason = "numbers for people, all small")]

use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use qvpn_identity::SecretIdentity;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use tests::{Gateway, INTERFACE, Node, PORT, Process, Swarm, SwarmOptions, binary, sandbox, swarm_network};

const USAGE: &str = "usage: qvpn-hub [--sites N] [--interval SECONDS] [--seconds S] [--out DIR]

  --sites N            how many sites, 1 to 10000; default 1000
  --interval SECONDS   their rekey interval, 0.1 to 120; default 60
  --seconds S          how long the steady state is measured; default 60
  --out DIR            where hub.md, hub.json and hub.svg are written; default: target/bench

Exit status: 0 measured; 1 something failed; 2 wrong use.";

/// How long all sites may take to come up.
const LIMIT: Duration = Duration::from_secs(300);
const FLOOD: Duration = Duration::from_secs(5);
/// The seed of the QKD link, by which the sites compute its keys.
const LINK_SEED: &str = "0102030405060708";

struct Options {
    sites: usize,
    interval: f64,
    seconds: f64,
    out: PathBuf,
}

fn options() -> Option<Options> {
    let mut options = Options { sites: 1000, interval: 60.0, seconds: 60.0, out: "target/bench".into() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--sites" => options.sites = value.parse().ok().filter(|n| (1..=10_000).contains(n))?,
            "--interval" => {
                options.interval = value.parse().ok().filter(|s| (0.1..=120.0).contains(s))?;
            }
            "--seconds" => options.seconds = value.parse().ok().filter(|s| (1.0..=1e6).contains(s))?,
            "--out" => options.out = value.into(),
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    if std::env::args().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    sandbox::main_as_root(|| {
        // A socket a site.
        let most = getrlimit(Resource::RLIMIT_NOFILE).unwrap().1;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let result = measure(&options);
        fs::create_dir_all(&options.out).unwrap();
        let table = table(&result);
        fs::write(options.out.join("hub.md"), &table).unwrap();
        fs::write(options.out.join("hub.json"), serde_json::to_string_pretty(&result).unwrap()).unwrap();
        fs::write(options.out.join("hub.svg"), plot(&result)).unwrap();
        println!("\n{table}");
        ExitCode::SUCCESS
    })
}

/// The machines and programs of a run.
struct Scene {
    hub: Node,
    sites: Node,
    swarm: Swarm,
    _kme: Process,
}

impl Scene {
    fn new(options: &Options) -> Self {
        let (hub, sites) = (Node::new("hub"), Node::new("sites"));
        hub.join("wan", &sites, "wan");
        hub.run("ip addr add 198.51.100.1/24 dev wan");
        sites.run("ip addr add 198.51.100.2/24 dev wan");
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let own = SecretIdentity::generate(&mut rng);
        let identities: Vec<SecretIdentity> =
            (0..options.sites).map(|_| SecretIdentity::generate(&mut rng)).collect();
        let sockets = sites.udp_sockets("198.51.100.2:0", options.sites);
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        let kme = kmes(&hub, options.sites);
        config(&hub, &own, &identities, &ports, options.interval);
        let swarm = SwarmOptions {
            hub: *own.public(),
            target: format!("198.51.100.1:{PORT}").parse().unwrap(),
            hub_sae: "HUB".to_owned(),
            rekey_interval: Duration::from_secs_f64(options.interval),
            link_seed: (1..=8).collect(),
        };
        Self { swarm: Swarm::start(identities, sockets, swarm), hub, sites, _kme: kme }
    }

    fn start(&self) -> Gateway<'_> {
        Gateway::start(&self.hub, INTERFACE, &binary("qvpn-daemon"), &[])
    }

    /// Waits until each site has an epoch that is younger than `since`; returns the time that took.
    fn all_up(&self, what: &str, since: Instant, count: usize) -> f64 {
        tests::wait_until(what, LIMIT, || (self.swarm.report.active_since(since) == count).then_some(()));
        let took = since.elapsed().as_secs_f64();
        println!("{what}: {took:.2} s");
        took
    }
}

fn kmes(hub: &Node, sites: usize) -> Process {
    let certs = hub.dir().join("certs");
    let mut command = Command::new(binary("kme-sim"));
    command.arg("certs").arg(&certs).args(["--kme", "kme-a1=127.0.0.1", "--kme", "kme-b1=127.0.0.1"]);
    assert!(command.args(["--sae", "HUB"]).output().unwrap().status.success());
    let mut text = String::new();
    for (name, port) in [("kme-a1", 8443), ("kme-b1", 8444)] {
        write!(
            text,
            "[[kme]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\ncert_file = \
             \"{0}/{name}.pem\"\nkey_file = \"{0}/{name}.key\"\nclient_ca_file = \
             \"{0}/ca.pem\"\nmax_waiting_keys = 10000000\n",
            certs.display()
        )
        .unwrap();
    }
    text += "[[sae]]\nid = \"HUB\"\nkme = \"kme-a1\"\n";
    for n in 0..sites {
        write!(text, "[[sae]]\nid = \"SITE-{n}\"\nkme = \"kme-b1\"\n").unwrap();
    }
    write!(
        text,
        "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\nkey_size = 256\nrate_bits_per_s = \
         5000000\ninitial_keys = 100000\nmax_keys = 100000\nseed = \"{LINK_SEED}\"\n"
    )
    .unwrap();
    let file = hub.dir().join("kme-sim.toml");
    fs::write(&file, text).unwrap();
    let mut kme = hub.spawn(binary("kme-sim"), &["--config", &file.display().to_string()]);
    kme.line("listening kme-b1", Duration::from_secs(30));
    kme
}

fn config(hub: &Node, own: &SecretIdentity, sites: &[SecretIdentity], ports: &[u16], interval: f64) {
    let (key, certs) = (hub.dir().join("qvpn0.key"), hub.dir().join("certs"));
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&key).unwrap();
    file.write_all(own.to_text().expose()).unwrap();
    let mut text = format!(
        "[interface]\nprivate_key_file = \"{}\"\nlisten_port = {PORT}\naddress = \
         [\"10.77.0.1/24\"]\nrekey_interval = \"{}ms\"\nmin_rekey_interval = \"100ms\"\n[kms]\nsae_id = \
         \"HUB\"\n[[kms.kme]]\nname = \"kme-a1\"\nurl = \"https://127.0.0.1:8443\"\nca_file = \
         \"{2}/ca.pem\"\ncert_file = \"{2}/hub.pem\"\nkey_file = \"{2}/hub.key\"\n",
        key.display(),
        interval * 1000.0,
        certs.display(),
    );
    for (n, (site, port)) in sites.iter().zip(ports).enumerate() {
        write!(
            text,
            "[[peer]]\nname = \"site-{n}\"\npublic_key = \"{}\"\nendpoint = \
             \"198.51.100.2:{port}\"\nallowed_ips = [\"{}\"]\nsae_id = \"SITE-{n}\"\nrole = \"initiator\"\n",
            site.public(),
            swarm_network(n)
        )
        .unwrap();
    }
    fs::write(hub.dir().join("qvpn0.toml"), text).unwrap();
}

/// The processor time of a process, in seconds.
fn processor_time(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    // After the name, which may contain spaces: user and system time are fields 14 and 15, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// RSS and PSS in kB.
fn memory(process: &Process) -> [f64; 2] {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.id())).unwrap();
    ["Rss:", "Pss:"].map(|name| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

/// What `qvpn-ctl` took, in seconds.
fn timed(gateway: &Gateway<'_>, words: &[&str]) -> f64 {
    let began = Instant::now();
    let output = gateway.ctl(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    began.elapsed().as_secs_f64()
}

fn received(gateway: &Gateway<'_>) -> u64 {
    let status = gateway.show();
    status["peers"].as_array().unwrap().iter().filter_map(|peer| peer["rx_packets"].as_u64()).sum()
}

fn measure(options: &Options) -> Value {
    let n = options.sites;
    println!("{n} sites, a rekey each {} s, {} s", options.interval, options.seconds);
    let scene = Scene::new(options);
    let config = fs::read_to_string(scene.hub.dir().join("qvpn0.toml")).unwrap();
    let began = Instant::now();
    let mut hub = scene.start();
    let all_up = scene.all_up("all up", began, n);
    let (steady, samples) = steady(&scene, &hub, options);
    let [rss, pss] = memory(&hub.process);

    let show = timed(&hub, &["show", INTERFACE, "--json"]);
    let changed =
        config.replacen("name = \"site-0\"", "name = \"site-0\"\npersistent_keepalive = \"25s\"", 1);
    fs::write(scene.hub.dir().join("qvpn0.toml"), changed).unwrap();
    let reload = timed(&hub, &["reload", INTERFACE]);

    let [before, sent] = [received(&hub), scene.swarm.report.flood(true)];
    let cpu = processor_time(&hub.process);
    std::thread::sleep(FLOOD);
    let sent = scene.swarm.report.flood(false) - sent;
    let cpu = processor_time(&hub.process) - cpu;
    let packets = received(&hub) - before;

    let killed = Instant::now();
    hub.process.kill();
    drop(hub);
    let hub = scene.start();
    let restart = scene.all_up("all back after kill -9", killed, n);
    assert!(scene.sites.pings("198.51.100.1"), "the link is still there");
    drop(hub);
    json!({
        "sites": n, "interval_s": options.interval, "build": build(), "all_up_s": all_up,
        "restart_s": restart, "show_s": show, "reload_s": reload, "rss_kb": rss, "pss_kb": pss,
        "steady": steady, "samples": samples,
        "small": {
            "sent": sent, "received": packets, "seconds": FLOOD.as_secs_f64(), "processor_s": cpu
        },
    })
}

/// Where the programs come from.
fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// The steady state: what the hub takes for its rekeys, and a sample for each second.
fn steady(scene: &Scene, hub: &Gateway<'_>, options: &Options) -> (Value, Vec<Value>) {
    let report = &scene.swarm.report;
    let (began, cpu, epochs, failed) =
        (Instant::now(), processor_time(&hub.process), report.epochs(), report.failed());
    let mut samples = Vec::new();
    let mut last = cpu;
    while began.elapsed().as_secs_f64() < options.seconds {
        std::thread::sleep(Duration::from_secs(1));
        let now = processor_time(&hub.process);
        samples.push(json!({ "core": now - last, "rekeys": report.epochs() - epochs }));
        last = now;
    }
    let seconds = began.elapsed().as_secs_f64();
    let rekeys = report.epochs() - epochs;
    assert!(rekeys > 0, "no rekey in {seconds:.0} s: measure for longer than the interval");
    let cpu = last - cpu;
    let steady = json!({
        "seconds": seconds, "processor_s": cpu, "rekeys": rekeys, "failed": report.failed() - failed,
        "ms_a_rekey": cpu * 1000.0 / rekeys as f64, "core_share": cpu / seconds,
    });
    (steady, samples)
}

fn table(r: &Value) -> String {
    let f = |value: &Value| value.as_f64().unwrap();
    let (steady, small, sites) = (&r["steady"], &r["small"], f(&r["sites"]));
    let rate = |key: &str| f(&small[key]) / f(&small["seconds"]) / 1000.0;
    let rows = [
        ("processor time a rekey, all included", format!("{:.2} ms", f(&steady["ms_a_rekey"]))),
        ("share of a core", format!("{:.1} %", f(&steady["core_share"]) * 100.0)),
        ("rekeys · failed attempts", format!("{} · {}", steady["rekeys"], steady["failed"])),
        ("memory: RSS · PSS", format!("{:.1} · {:.1} MB", f(&r["rss_kb"]) / 1e3, f(&r["pss_kb"]) / 1e3)),
        ("PSS a peer", format!("{:.1} kB", f(&r["pss_kb"]) / sites)),
        ("start to all up", format!("{:.2} s", f(&r["all_up_s"]))),
        ("kill -9 to all back", format!("{:.2} s", f(&r["restart_s"]))),
        ("`show --json`", format!("{:.0} ms", f(&r["show_s"]) * 1e3)),
        ("`reload` of one changed peer", format!("{:.0} ms", f(&r["reload_s"]) * 1e3)),
        (
            "64-byte packets from all sites in turn: sent · received",
            format!("{:.0} · {:.0} thousand/s", rate("sent"), rate("received")),
        ),
    ];
    let mut text = format!(
        "{} sites, one rekey each {} s, {} build, {:.0} s\n\n| figure | |\n|---|---:|\n",
        r["sites"],
        r["interval_s"],
        r["build"].as_str().unwrap(),
        f(&steady["seconds"])
    );
    for (name, value) in rows {
        writeln!(text, "| {name} | {value} |").unwrap();
    }
    text
}

/// The share of a core over the seconds of the steady state.
fn plot(r: &Value) -> String {
    let samples: Vec<f64> =
        r["samples"].as_array().unwrap().iter().map(|s| s["core"].as_f64().unwrap()).collect();
    let most = samples.iter().copied().fold(0.1, f64::max);
    let step = 560.0 / samples.len().max(1) as f64;
    let mut line = String::new();
    for (i, core) in samples.iter().enumerate() {
        write!(line, "{:.1},{:.1} ", 50.0 + step * i as f64, 220.0 - 180.0 * core / most).unwrap();
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 260\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"640\" height=\"260\" fill=\"white\"/>\n<text x=\"50\" \
         y=\"20\">Processor time of a hub with {} sites, a rekey each {} s</text>\n<path d=\"M50 \
         40V220H610\" fill=\"none\" stroke=\"gray\"/>\n<text x=\"5\" y=\"45\">{:.0} \
         %</text>\n<text x=\"5\" y=\"220\">0 %</text>\n<text x=\"560\" y=\"240\">{} s</text>\n<polyline \
         points=\"{line}\" fill=\"none\" stroke=\"steelblue\" stroke-width=\"2\"/>\n</svg>\n",
        r["sites"],
        r["interval_s"],
        most * 100.0,
        samples.len()
    )
}
