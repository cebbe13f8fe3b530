//! `make bench`: measures qvpn and other VPNs alternately between two namespaces on one machine, and writes
//! tables of ratios and a plot. All tunnels are up all the time. Each round measures them one after the
//! other, so that both numbers of a ratio are from the same few seconds.

mod plot;
mod report;
mod rows;
mod vpn;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use tests::sandbox;

use crate::report::{METRICS, Results};
use crate::rows::{Length, Row};
use crate::vpn::{Kind, Running, Vpn};

/// Compares qvpn with other VPNs on this machine; writes a table and a plot.
#[derive(Parser)]
#[command(name = "bench")]
struct Options {
    /// A few minutes instead of half an hour: fewer rounds, shorter measurements
    #[arg(long)]
    quick: bool,
    /// Only these rows, separated by commas
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Only these VPNs, separated by commas; `--list` names them
    #[arg(long, value_delimiter = ',')]
    vpns: Vec<String>,
    /// Number of rounds
    #[arg(long)]
    rounds: Option<u32>,
    /// Length of one TCP measurement in seconds
    #[arg(long)]
    seconds: Option<u32>,
    /// Lanes of qvpn
    #[arg(long, default_value_t = 1)]
    lanes: u8,
    /// Records a `perf` profile of the machine during one TCP flow through each VPN, and measures nothing
    #[arg(long)]
    profile: bool,
    /// Replaces these rows in the numbers that are in `--out`
    #[arg(long)]
    add: bool,
    /// Lists the VPNs
    #[arg(long)]
    list: bool,
    /// Directory for the table, the plot and the numbers
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Directory of the other VPNs' programs
    #[arg(long, default_value = "target/bench-peers/bin")]
    peers: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for vpn in vpn::ALL {
            println!("{}", vpn.name);
        }
        return ExitCode::SUCCESS;
    }
    // The sandbox runs this program again inside its namespaces.
    sandbox::main_as_root(|| match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn run(options: &Options) -> Result<()> {
    for name in &options.vpns {
        ensure!(vpn::ALL.iter().any(|vpn| vpn.name == name), "there is no VPN `{name}`: --list names them");
    }
    let rows = if options.rows.is_empty() { Row::value_variants().to_vec() } else { options.rows.clone() };
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 3 });
    let length = Length {
        tcp: options.seconds.unwrap_or(if options.quick { 2 } else { 4 }),
        udp: if options.quick { 0.3 } else { 0.5 },
        pings: if options.quick { 1000 } else { 2000 },
    };
    fs::create_dir_all("/run/wireguard")?;
    let numbers = options.out.join("numbers.json");
    let mut results = if options.add && numbers.exists() {
        Results::read(&serde_json::from_slice(&fs::read(&numbers)?)?, &rows)
    } else {
        Results::default()
    };
    let mut tunnels = start(options, &rows, &mut results)?;
    if options.profile {
        return profile(options, &tunnels);
    }
    let begun = Instant::now();
    // Memory is measured last, because it is a peak; the other rows in order.
    for row in rows.iter().copied().filter(|row| *row != Row::Memory) {
        for round in 1..=rounds {
            // The order alternates between forward and backward: otherwise, on a machine that slows down,
            // the last VPN would always have the worst numbers.
            if round > 1 {
                tunnels.reverse();
            }
            for tunnel in tunnels.iter_mut().filter(|tunnel| supports(tunnel.vpn, row)) {
                measure(row, round, tunnel, length, &mut results);
            }
        }
    }
    if rows.contains(&Row::Memory) {
        for tunnel in tunnels.iter_mut().filter(|t| t.vpn.kind != Kind::Plain && t.vpn.everywhere) {
            measure(Row::Memory, 1, tunnel, length, &mut results);
        }
    }
    write(options, &results, rounds, begun)
}

/// Returns whether a VPN is measured in a row.
fn supports(vpn: Vpn, row: Row) -> bool {
    match row {
        Row::Rekey => {
            let protecting = matches!(vpn.kind, Kind::Protecting(..));
            vpn.name == "qvpn-chacha" || (!vpn.everywhere && !protecting)
        }
        Row::Protect => vpn.name == "qvpn-chacha" || matches!(vpn.kind, Kind::Protecting(..)),
        Row::Flood => vpn.name == "qvpn-chacha",
        _ => vpn.everywhere,
    }
}

/// Starts the VPNs that the rows need. A VPN that doesn't start is reported in the notes.
fn start(options: &Options, rows: &[Row], results: &mut Results) -> Result<Vec<Running>> {
    let mut tunnels = Vec::new();
    // Entering a node changes the working directory.
    let peers = std::path::absolute(&options.peers)?;
    for vpn in vpn::ALL {
        let wanted = options.vpns.is_empty() || options.vpns.iter().any(|name| name == vpn.name);
        if !wanted || !rows.iter().any(|row| supports(*vpn, *row)) {
            continue;
        }
        match guarded(|| vpn.start(&peers, options.lanes)) {
            Ok(tunnel) => {
                eprintln!("started  {}", vpn.name);
                tunnels.push(tunnel);
            }
            Err(error) => note(results, format!("{}: not measured: {error:#}", vpn.name)),
        }
    }
    ensure!(!tunnels.is_empty(), "nothing could be started");
    Ok(tunnels)
}

/// Converts a panic of the lab into an error: the failure of one VPN must not end the measurements of the
/// others.
fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err(anyhow::anyhow!("the lab failed; see above")))
}

fn note(results: &mut Results, note: String) {
    eprintln!("{note}");
    results.notes.push(note);
}

fn measure(row: Row, round: u32, tunnel: &mut Running, length: Length, results: &mut Results) {
    let vpn = tunnel.vpn.name;
    let name = row.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
    let guess = METRICS.iter().find(|m| m.id == name).and_then(|m| results.last(m.id, vpn));
    match guarded(|| row.measure(tunnel, length, guess)) {
        Ok(numbers) => {
            let shown: Vec<String> = numbers.iter().map(|(id, n)| format!("{id} {n:.3}")).collect();
            eprintln!("{name:<8} {round}  {vpn:<13} {}", shown.join("  "));
            for (id, number) in numbers {
                // The plain link has no processes.
                if id != "cpu" || tunnel.vpn.kind != Kind::Plain {
                    results.push(id, vpn, number);
                }
            }
        }
        Err(error) => {
            let end = tunnel.exit_report().map_or_else(String::new, |log| format!("; it has ended: {log}"));
            note(results, format!("{vpn}, {name}, round {round}: {error:#}{end}"));
            for metric in METRICS.iter().filter(|m| m.id.starts_with(&name)) {
                results.push(metric.id, vpn, f64::NAN);
            }
        }
    }
}

fn write(options: &Options, results: &Results, rounds: u32, begun: Instant) -> Result<()> {
    let head = format!(
        "{}\n{rounds} rounds{} in {} min. One machine for both gateways, the sender and the receiver: only \
         ratios mean something.",
        about(&options.peers),
        if options.add { " of what was measured last" } else { "" },
        begun.elapsed().as_secs() / 60
    );
    fs::create_dir_all(&options.out)?;
    let text = results.markdown(&head);
    fs::write(options.out.join("table.md"), &text)?;
    fs::write(options.out.join("numbers.json"), format!("{:#}\n", results.json(&head)))?;
    let bars = results.bars();
    if !bars.is_empty() {
        fs::write(
            options.out.join("ratios.svg"),
            plot::svg("qvpn, compared on one machine in one run", &bars),
        )?;
    }
    println!("{text}");
    eprintln!("written to {}", options.out.display());
    Ok(())
}

/// Returns the date, the machine, and the version of each program.
fn about(peers: &Path) -> String {
    let output = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).output();
        output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    let mut text = format!(
        "{}, {} cores of {}, Linux {}, qvpn {}",
        output("date -u +%Y-%m-%d"),
        output("nproc"),
        output("sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1"),
        output("uname -r"),
        output("git describe --always --dirty 2>/dev/null"),
    );
    for name in ["wireguard-go", "boringtun-cli", "gotatun"] {
        let version = fs::read_to_string(peers.join(format!("{name}.version")));
        text += &version.map_or_else(|_| format!(", no {name}"), |v| format!(", {name} {}", v.trim()));
    }
    text + "."
}

/// Writes a profile of the whole machine during one TCP flow through each tunnel.
fn profile(options: &Options, tunnels: &[Running]) -> Result<()> {
    fs::create_dir_all(&options.out)?;
    for tunnel in tunnels {
        let data = options.out.join(format!("profile-{}.data", tunnel.vpn.name));
        let mut recorder = Command::new("perf")
            .args(["record", "--quiet", "--all-cpus", "--call-graph", "fp", "--freq", "1999", "--output"])
            .arg(&data)
            .args(["--", "sleep", "4"])
            .spawn()
            .context("`perf` is missing (Debian: linux-perf)")?;
        let length = Length { tcp: 5, udp: 0.0, pings: 0 };
        let numbers = guarded(|| Row::Tcp1.measure(tunnel, length, None))?;
        ensure!(recorder.wait()?.success(), "perf could not record");
        let mut text = format!("{}: {numbers:?}\n", tunnel.vpn.name);
        for fields in ["overhead,comm", "overhead,comm,dso", "overhead,comm,symbol"] {
            let output = Command::new("perf")
                .args([
                    "report",
                    "--stdio",
                    "--no-children",
                    "--call-graph",
                    "none",
                    "--percent-limit",
                    "0.4",
                ])
                .args(["--fields", fields, "--input"])
                .arg(&data)
                .output()?;
            let lines = String::from_utf8_lossy(&output.stdout);
            for line in lines.lines().map(str::trim_end).filter(|l| !l.is_empty() && !l.starts_with('#')) {
                text += &format!("{line}\n");
            }
            text += "\n";
        }
        let file = options.out.join(format!("profile-{}.txt", tunnel.vpn.name));
        fs::write(&file, text)?;
        eprintln!("written to {}", file.display());
    }
    Ok(())
}
