//! The measurements. Each uses a running tunnel and returns one or more numbers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use benches::load::Mix;
use benches::search::{self, Step};
use clap::ValueEnum;
use serde_json::Value;
use tests::{Capture, Process, binary};

use crate::vpn::{MTU, OUTER, Running};

/// Time limit for the reply of a helper program.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// A measurement, by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// One TCP flow in each direction, and its CPU time.
    Tcp1,
    /// 4 TCP flows in each direction.
    Tcp4,
    /// 50 TCP flows in each direction.
    Tcp50,
    /// Packets of 64 bytes per second, with a loss of at most 0.1 %.
    Udp64,
    /// The same with IMIX: 28 packets of 64 bytes, 16 of 570, 4 of 1518 reduced to the MTU.
    Udpimix,
    /// The same with packets of 1400 bytes.
    Udp1400,
    /// Round trips, idle and under one TCP flow.
    Rtt,
    /// One TCP flow with 10 new epochs per second, and without.
    Rekey,
    /// One TCP flow with 10,000 protected prefixes, and with none.
    Protect,
    /// One TCP flow under a flood of forged handshake initiations, and with nft dropping the same flood.
    Flood,
    /// Peak memory after all other rows.
    Memory,
}

/// Lengths of the measurements.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Duration of one TCP measurement, in seconds.
    pub tcp: u32,
    /// Duration of one step of the search for the highest UDP load, in seconds.
    pub udp: f64,
    /// Number of pings when idle, and under load.
    pub pings: u32,
}

/// A number, with the name of its metric.
pub type Number = (&'static str, f64);

impl Row {
    /// Runs the measurement. `guess` is the number of the previous round, from which a search may begin.
    ///
    /// # Errors
    /// A description for the notes of the table.
    pub fn measure(self, tunnel: &Running, length: Length, guess: Option<f64>) -> Result<Vec<Number>> {
        match self {
            Row::Tcp1 => {
                let before = tunnel.cpu_seconds()?;
                let there = tcp(tunnel, 0, 1, length.tcp)?;
                let cpu = tunnel.cpu_seconds()? - before;
                let back = tcp(tunnel, 1, 1, length.tcp)?;
                Ok(vec![("tcp1_ab", there.rate), ("tcp1_ba", back.rate), ("cpu", cpu / there.gigabits)])
            }
            Row::Tcp4 => both_ways(tunnel, ["tcp4_ab", "tcp4_ba"], 4, length),
            Row::Tcp50 => both_ways(tunnel, ["tcp50_ab", "tcp50_ba"], 50, length),
            Row::Udp64 => udp(tunnel, "udp64", Mix::Only(64), length, guess),
            Row::Udpimix => udp(tunnel, "udpimix", Mix::Imix, length, guess),
            Row::Udp1400 => udp(tunnel, "udp1400", Mix::Only(1400), length, guess),
            Row::Rtt => round_trips(tunnel, length),
            Row::Rekey => Ok(vec![("rekey", tcp(tunnel, 0, 1, length.tcp)?.rate)]),
            Row::Protect => Ok(vec![("protect", tcp(tunnel, 0, 1, length.tcp)?.rate)]),
            Row::Flood => flood(tunnel, length),
            Row::Memory => Ok(vec![("memory", tunnel.peak_memory()?)]),
        }
    }

    /// Returns whether a metric belongs to this row.
    #[must_use]
    pub fn gives(self, metric: &str) -> bool {
        let name = self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        metric.split('_').next() == Some(&name) || (self == Row::Tcp1 && metric == "cpu")
    }
}

struct Tcp {
    /// Received gigabits per second.
    rate: f64,
    /// Received gigabits.
    gigabits: f64,
}

/// Runs iperf3 from side `from` to the other side.
fn tcp(tunnel: &Running, from: usize, flows: u32, seconds: u32) -> Result<Tcp> {
    let mut server = iperf_server(tunnel, 1 - from)?;
    let line = format!(
        "timeout {} iperf3 --client {} --parallel {flows} --time {seconds} --json",
        seconds + 10,
        tunnel.inner[1 - from]
    );
    let output = tunnel.nodes[from].try_run(&line);
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("iperf3: {error}");
    }
    let end = &report["end"]["sum_received"];
    let rate = end["bits_per_second"].as_f64().context("iperf3's rate")? / 1e9;
    let gigabits = end["bytes"].as_f64().context("iperf3's bytes")? * 8.0 / 1e9;
    ensure!(gigabits > 0.0, "nothing arrived");
    server.wait(REPLY_TIMEOUT);
    Ok(Tcp { rate, gigabits })
}

fn iperf_server(tunnel: &Running, end: usize) -> Result<Process> {
    let mut server = tunnel.nodes[end].spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
    wait_for_line(&mut server, "Server listening")?;
    Ok(server)
}

fn both_ways(tunnel: &Running, names: [&'static str; 2], flows: u32, length: Length) -> Result<Vec<Number>> {
    let rate = |from| tcp(tunnel, from, flows, length.tcp).map(|t| t.rate);
    Ok(vec![(names[0], rate(0)?), (names[1], rate(1)?)])
}

/// Returns the next line of a helper program that begins with `start`.
fn wait_for_line(process: &mut Process, start: &str) -> Result<String> {
    process
        .find_line(REPLY_TIMEOUT, |line| line.starts_with(start))
        .map_err(|why| anyhow::anyhow!("no `{start}`: {why}\n{}", process.log()))
}

fn field<T: std::str::FromStr>(line: &str, number: usize) -> Result<T> {
    let word = line.split(' ').nth(number);
    word.and_then(|word| word.parse().ok()).with_context(|| format!("`{line}`"))
}

fn udp(
    tunnel: &Running,
    name: &'static str,
    mix: Mix,
    length: Length,
    guess: Option<f64>,
) -> Result<Vec<Number>> {
    let address = format!("{}:7000", tunnel.inner[1]);
    let mut sink = tunnel.nodes[1].spawn(binary("bench-udp"), &["sink", &address]);
    wait_for_line(&mut sink, "ready")?;
    let mut sender = tunnel.nodes[0].spawn(binary("bench-udp"), &["blast", &address, &MTU.to_string()]);
    wait_for_line(&mut sender, "ready")?;
    let step = |load: f64| -> Result<Step> {
        sink.tell("start");
        wait_for_line(&mut sink, "started")?;
        sender.tell(&format!("{load} {mix} {}", length.udp));
        let line = wait_for_line(&mut sender, "sent ")?;
        let (sent, seconds) = (field(&line, 1)?, field(&line, 2)?);
        sink.tell("stop");
        let line = wait_for_line(&mut sink, "count ")?;
        // Datagrams dropped by the sink's own buffer are not the tunnel's loss.
        let received = field::<u64>(&line, 1)? + field::<u64>(&line, 2)?;
        Ok(Step { sent, received, seconds })
    };
    let found = search::highest(guess.map_or(30_000.0, |thousands| thousands * 900.0), step)?;
    if found.sender_bound {
        eprintln!("    the sender is the limit here");
    }
    Ok(vec![(name, found.rate / 1e3)])
}

fn round_trips(tunnel: &Running, length: Length) -> Result<Vec<Number>> {
    let address = format!("{}:7007", tunnel.inner[1]);
    let mut echo = tunnel.nodes[1].spawn(binary("bench-udp"), &["echo", &address]);
    wait_for_line(&mut echo, "ready")?;
    let mut pinger = tunnel.nodes[0].spawn(binary("bench-udp"), &["ping", &address]);
    wait_for_line(&mut pinger, "ready")?;
    let mut trip = |count: u32| -> Result<[f64; 2]> {
        pinger.tell(&format!("{count} 2000"));
        let line = wait_for_line(&mut pinger, "rtt ")?;
        let answered: u32 = field(&line, 1)?;
        ensure!(answered > count / 2, "{answered} of {count} pings answered");
        Ok([field::<f64>(&line, 2)? / 1e3, field::<f64>(&line, 3)? / 1e3])
    };
    let idle = trip(length.pings)?;
    let mut server = iperf_server(tunnel, 1)?;
    // The flow begins half a second before the pings and outlasts them.
    let seconds = length.pings / 500 + 2;
    let mut flow = tunnel.nodes[0]
        .spawn("iperf3", &["--client", tunnel.inner[1], "--time", &seconds.to_string(), "--forceflush"]);
    wait_for_line(&mut flow, "[ ID]")?;
    std::thread::sleep(Duration::from_millis(500));
    let loaded = trip(length.pings);
    flow.wait(REPLY_TIMEOUT);
    server.wait(REPLY_TIMEOUT);
    let loaded = loaded?;
    Ok(vec![
        ("rtt_idle_p50", idle[0]),
        ("rtt_idle_p99", idle[1]),
        ("rtt_load_p50", loaded[0]),
        ("rtt_load_p99", loaded[1]),
    ])
}

/// Rate of a flood, in datagrams per second.
const FLOOD_RATE: u64 = 100_000;

/// Prefix of the flood's 200 source addresses, which do not belong to the tunnel.
const FLOOD_SOURCES: &str = "198.51.100";

/// The content of each flood, and the metrics with the flood and with nft dropping it.
const FLOOD_KINDS: [(&str, [&str; 2]); 4] = [
    ("starts", ["flood_ours", "flood_nft"]),
    ("replay", ["flood_replay_ours", "flood_replay_nft"]),
    ("data", ["flood_data_ours", "flood_data_nft"]),
    ("session", ["flood_session_ours", "flood_session_nft"]),
];

/// Measures one TCP flow while a flood reaches its receiver (A), and while nft drops the flood before the
/// socket (B), in the order A, B, B, A. The flood's sender uses the same cores each time.
fn flood(tunnel: &Running, length: Length) -> Result<Vec<Number>> {
    let key = tunnel.public.get(1).context("only a daemon has a key to forge starts for")?;
    tunnel.nodes[0].run(&format!("ip route replace local {FLOOD_SOURCES}.0/24 dev lo"));
    tunnel.nodes[1].run(&format!("ip route replace {FLOOD_SOURCES}.0/24 dev wan"));
    let mut numbers = Vec::new();
    for (kind, names) in FLOOD_KINDS {
        let recorded = if kind == "replay" { Some(record(tunnel)?) } else { None };
        let under = |seconds: u32| -> Result<f64> {
            let (rate, time) = (FLOOD_RATE.to_string(), (seconds + 2).to_string());
            let target = format!("{}:51820", OUTER[1]);
            let mut words = vec![kind, &rate, &time, &target, key, FLOOD_SOURCES];
            words.extend(recorded.as_deref());
            let mut sender = tunnel.nodes[0].spawn(binary("lab-flood"), &words);
            wait_for_line(&mut sender, "flooding")?;
            // The tables of unknown sources fill up first.
            std::thread::sleep(Duration::from_millis(500));
            let rate = tcp(tunnel, 0, 1, seconds)?.rate;
            let sent: u64 = field(&wait_for_line(&mut sender, "sent ")?, 1)?;
            let least = FLOOD_RATE * u64::from(seconds + 2) * 9 / 10;
            ensure!(sent > least, "the flood was of {sent} datagrams only");
            Ok(rate)
        };
        let ours = under(length.tcp)?;
        tunnel.nodes[1].run(&format!(
            "nft add table ip flood && nft 'add chain ip flood early {{ type filter hook prerouting priority \
             raw; }}' && nft add rule ip flood early ip saddr {FLOOD_SOURCES}.0/24 drop"
        ));
        let dropped = under(length.tcp).and_then(|first| Ok(first + under(length.tcp)?));
        tunnel.nodes[1].run("nft delete table ip flood");
        let ours = ours + under(length.tcp)?;
        numbers.extend([(names[0], ours / 2.0), (names[1], dropped? / 2.0)]);
    }
    Ok(numbers)
}

/// Records current data packets in a file for `lab-flood`.
fn record(tunnel: &Running) -> Result<String> {
    let capture = Capture::start(&tunnel.nodes[1], "wan", OUTER[0]);
    tunnel.nodes[0].run(&format!("ping -q -c 20 -i 0.01 {}", tunnel.inner[1]));
    let packets = capture.stop();
    let mut bytes = Vec::new();
    for packet in packets.data().iter().filter(|p| p.destination == OUTER[1].parse().ok()) {
        bytes.extend(u16::try_from(packet.payload.len())?.to_be_bytes());
        bytes.extend(&packet.payload);
    }
    ensure!(!bytes.is_empty(), "no data packet to replay was seen");
    let file = tunnel.nodes[0].dir().join("recorded");
    std::fs::write(&file, bytes)?;
    Ok(file.display().to_string())
}
