//! The `kme-sim` program: runs the KMEs of a config file, makes certificates for a lab, or sends an admin
//! command to a running one. Standard output is for scripts; the log goes to standard error.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use kme_sim::admin::{self, Command};
use kme_sim::certs::{self, SubjectName};
use kme_sim::faults::catalog::{Misbehaviour, Ops};
use kme_sim::presets::{PRESETS, Preset};
use kme_sim::{Config, Simulator};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// Erases freed memory, since TLS and HTTP buffers hold keys for a short time.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// A simulator of QKD key management entities (KMEs) that speak ETSI GS QKD 014.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Run the KMEs of this file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How much to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", requires = "config")]
    log: LevelFilter,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Make a lab CA, server certificates for KMEs and client certificates for SAEs.
    Certs(CertsArgs),
    /// Ready-made configs, each modelled on a published network.
    Preset {
        #[command(subcommand)]
        task: PresetTask,
    },
    /// Write the man pages, from the same texts as this help.
    #[command(hide = true)]
    Man {
        /// The target directory.
        dir: PathBuf,
    },
    /// Send one command to the admin socket of a running kme-sim.
    Admin {
        /// The socket.
        socket: PathBuf,
        #[command(subcommand)]
        command: AdminCommand,
    },
}

#[derive(Subcommand)]
enum PresetTask {
    /// List the presets.
    List,
    /// Print a preset's config, with the source of its numbers.
    Show {
        /// The preset.
        name: String,
    },
}

#[derive(Args)]
struct CertsArgs {
    /// The target directory, created if missing. An existing CA in it is used.
    dir: PathBuf,
    /// A KME, and more addresses or DNS names of it [default: kme-a1 and kme-b1].
    #[arg(long, value_name = "NAME[=ADDR,...]")]
    kme: Vec<String>,
    /// An SAE ID, the common name of a client certificate [default: SITE-A and SITE-B].
    #[arg(long, value_name = "ID")]
    sae: Vec<String>,
    /// One more address of a KME.
    #[arg(long, value_name = "NAME=ADDR")]
    ip: Vec<String>,
    /// One more DNS name of a KME.
    #[arg(long, value_name = "NAME=DNS")]
    dns: Vec<String>,
    /// Days of validity; 0 makes expired certificates, for tests.
    #[arg(long, default_value_t = 825)]
    days: u32,
    /// Make a new CA and overwrite existing files.
    #[arg(long)]
    force: bool,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Set a fault of a KME; "none" clears it.
    Misbehave {
        /// The KME's name.
        kme: String,
        /// The operations.
        op: Ops,
        /// The fault.
        how: Misbehaviour,
    },
    /// Stop the key supply of the link between two KMEs.
    PauseLink {
        /// A KME.
        a: String,
        /// The other.
        b: String,
    },
    /// Resume the key supply of a link.
    ResumeLink {
        /// A KME.
        a: String,
        /// The other.
        b: String,
    },
    /// Simulate an eavesdropper who measures and resends pulses of a link, which raises its error rate.
    Eavesdrop {
        /// A KME or node.
        a: String,
        /// The other.
        b: String,
        /// Share of the pulses, percent; 0 for none.
        percent: u8,
    },
    /// Show the key stores of links and KMEs.
    Stored,
    /// Show rate, error rate and totals of each link, and the counters of each KME.
    Stats,
    /// A command as a line of JSON.
    #[command(external_subcommand)]
    Json(Vec<String>),
}

/// Exit codes: 0 done, 1 failed, 2 usage (clap's own), 3 config refused, 4 no simulator at the admin socket.
enum Failure {
    Failed(String),
    Config(String),
    NotReachable(String),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.task, cli.config) {
        (Some(Task::Certs(args)), _) => make_certs(args),
        (Some(Task::Preset { task }), _) => show_preset(task),
        (Some(Task::Man { dir }), _) => std::fs::create_dir_all(&dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
            .map_err(|error| Failure::Failed(format!("{}: {error}", dir.display()))),
        (Some(Task::Admin { socket, command }), _) => send_admin(&socket, command).await,
        (None, Some(config)) => run(&config, cli.log).await,
        (None, None) => {
            let _ = Cli::command().print_help();
            return ExitCode::from(2);
        }
    };
    let (message, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => (message, 1),
        Err(Failure::Config(message)) => (message, 3),
        Err(Failure::NotReachable(message)) => (message, 4),
    };
    eprintln!("{message}");
    ExitCode::from(code)
}

async fn run(config: &Path, level: LevelFilter) -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_max_level(level).init();
    let config = Config::load(config).map_err(|e| Failure::Config(e.to_string()))?;
    // Before the sockets, so that a signal right after "listening" is handled.
    let no_signals = |e: io::Error| Failure::Failed(format!("cannot listen for signals: {e}"));
    let mut term = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(no_signals)?;

    let simulator = Simulator::start(&config).await.map_err(|e| Failure::Failed(e.to_string()))?;
    let mut lines = String::new();
    for (name, address) in simulator.addresses() {
        lines.push_str(&format!("listening {name} {address}\n"));
    }
    if let Some(path) = &config.admin {
        lines.push_str(&format!("listening admin {}\n", path.display()));
    }
    let mut out = io::stdout();
    // Serve even if standard output is closed.
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());

    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    simulator.stop().await;
    Ok(())
}

fn make_certs(args: CertsArgs) -> Result<(), Failure> {
    let usage = |message: String| -> ! {
        Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit();
    };
    let defaults = args.kme.is_empty() && args.sae.is_empty();
    let mut kmes: BTreeMap<String, Vec<SubjectName>> = BTreeMap::new();
    let mut saes: BTreeSet<String> = args.sae.into_iter().collect();
    if defaults {
        kmes.extend([("kme-a1".to_owned(), Vec::new()), ("kme-b1".to_owned(), Vec::new())]);
        saes.extend(["SITE-A".to_owned(), "SITE-B".to_owned()]);
    }
    for kme in args.kme {
        let (name, more) = kme.split_once('=').unwrap_or((&kme, ""));
        let more = more.split(',').filter(|n| !n.is_empty()).map(SubjectName::from);
        kmes.entry(name.to_owned()).or_default().extend(more);
    }
    for (entry, is_ip) in args.ip.iter().map(|e| (e, true)).chain(args.dns.iter().map(|e| (e, false))) {
        let Some((name, value)) = entry.split_once('=') else {
            usage(format!("{entry:?} has no \"=\"; write the KME's name, \"=\" and its address or DNS name"));
        };
        let name_of = SubjectName::from(value);
        if is_ip != matches!(name_of, SubjectName::Ip(_)) {
            usage(format!(
                "{value:?} is {}an IP address; --ip is for addresses, --dns for names",
                if is_ip { "not " } else { "" }
            ));
        }
        let Some(names) = kmes.get_mut(name) else {
            usage(format!("{entry:?} names the KME {name:?}, for which no certificate is made"));
        };
        names.push(name_of);
    }
    let request = certs::Request { kmes, saes, days: args.days, force: args.force };
    let files = certs::make(&args.dir, &request).map_err(|e| Failure::Failed(e.to_string()))?;
    for file in files {
        println!("{}", file.display());
    }
    Ok(())
}

fn show_preset(task: PresetTask) -> Result<(), Failure> {
    let text = match task {
        PresetTask::List => PRESETS.iter().map(|p| format!("{:16} {}\n", p.name, p.about())).collect(),
        PresetTask::Show { name } => match Preset::named(&name) {
            Some(preset) => preset.toml.to_owned(),
            None => {
                let names: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
                let message = format!("there is no preset {name:?}; there are: {}", names.join(", "));
                Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit();
            }
        },
    };
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).map_err(|e| Failure::Failed(format!("cannot write: {e}")))
}

async fn send_admin(socket: &Path, command: AdminCommand) -> Result<(), Failure> {
    let line = match command {
        AdminCommand::Misbehave { kme, op, how } => json(&Command::Misbehave { kme, op, how })?,
        AdminCommand::PauseLink { a, b } => json(&Command::PauseLink { kmes: [a, b] })?,
        AdminCommand::ResumeLink { a, b } => json(&Command::ResumeLink { kmes: [a, b] })?,
        AdminCommand::Eavesdrop { a, b, percent } => json(&Command::Eavesdrop { kmes: [a, b], percent })?,
        AdminCommand::Stored => json(&Command::Stored {})?,
        AdminCommand::Stats => json(&Command::Stats {})?,
        AdminCommand::Json(words) => words.join(" ").replace('\n', " "),
    };
    let answer = admin::send(socket, &line).await.map_err(|e| {
        Failure::NotReachable(format!(
            "no answer from {}: {e}; is kme-sim running, with this admin socket?",
            socket.display()
        ))
    })?;
    print!("{answer}");
    let done = serde_json::from_str::<serde_json::Value>(&answer).is_ok_and(|a| a["ok"] == true);
    if done { Ok(()) } else { Err(Failure::Failed("the command was refused".to_owned())) }
}

fn json(command: &Command) -> Result<String, Failure> {
    serde_json::to_string(command).map_err(|e| Failure::Failed(e.to_string()))
}
