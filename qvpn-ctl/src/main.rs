//! The qvpn command line: keys, checks, and what a running daemon tells. Each command is a function that gives an exit
//! code or a [`Failure`], which says what was tried and what to do.

mod check;
mod client;
mod events;
mod keys;
mod routes;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qvpn_api::control::{ErrorReply, Request, SOCKET_DIR};
use qvpn_api::exit;

/// TLS is not used here, but key texts pass through buffers of the standard library.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// Manages qvpn gateways: keys, configs, and running tunnels.
#[derive(Parser)]
#[command(
    name = "qvpn-ctl",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 config refused, 4 daemon not reachable, 5 KME check failed."
)]
struct Cli {
    /// The folder of the control sockets.
    #[arg(long, global = true, env = "QVPN_SOCKET_DIR", default_value = SOCKET_DIR, value_name = "DIR")]
    socket_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a secret key and prints it; redirect it into a file that only root can read.
    Genkey,
    /// Reads a secret key and prints its public key.
    Pubkey,
    /// Makes a pre-shared key and prints it.
    Genpsk,
    /// Reads a secret or a public key and prints the fingerprint, short enough to read over a phone.
    Fingerprint,
    /// Checks a config file and the files that it names; prints all errors.
    Check {
        /// The config file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows tunnels: state, what the key is made of, stock, KMEs, drops.
    Show {
        /// The interface; all that run when absent.
        interface: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Makes a fresh epoch now.
    Rekey {
        /// The interface.
        interface: String,
        /// The peer's name or public key; all peers when absent.
        peer: Option<String>,
    },
    /// Reads the config again; a config with errors changes nothing.
    Reload {
        /// The interface.
        interface: String,
    },
    /// The configured peers.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Prints what happened.
    Events {
        /// The interface.
        interface: String,
        /// Wait for more.
        #[arg(long, short)]
        follow: bool,
        /// Print JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Puts the fail-closed routes of a config in place, without a daemon.
    Block {
        /// The config file.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        file: Option<PathBuf>,
        /// All configs in /etc/qvpn.
        #[arg(long)]
        all: bool,
    },
    /// Takes fail-closed routes away: from then on the traffic of these networks may leave in clear.
    Unblock {
        /// The config file whose routes go; those of all tunnels when absent.
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum PeerCommand {
    /// Lists the peers of an interface.
    List {
        /// The interface.
        interface: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Why a command failed: an exit code and a text for people.
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self { code: exit::FAILED, text: text.into() }
    }
}

impl From<ErrorReply> for Failure {
    fn from(error: ErrorReply) -> Self {
        let mut text = error.message.clone();
        for line in &error.details {
            text.push('\n');
            text.push_str(line);
        }
        Self { code: error.exit_code(), text }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => {
            eprintln!("{}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let sockets = cli.socket_dir;
    match cli.command {
        Command::Genkey => keys::genkey(),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk => keys::genpsk(),
        Command::Fingerprint => keys::fingerprint(),
        Command::Check { file, json } => check::check(&file, json),
        Command::Show { interface, json } => show::show(&sockets, interface.as_deref(), json),
        Command::Rekey { interface, peer } => client::rekey(&sockets, &interface, peer),
        Command::Reload { interface } => client::reload(&sockets, &interface),
        Command::Peer(PeerCommand::List { interface, json }) => client::peers(&sockets, &interface, json),
        Command::Events { interface, follow, json } => {
            events::events(&sockets, &interface, &Request::Events { follow }, json)
        }
        Command::Block { file, .. } => routes::block(file.as_deref()),
        Command::Unblock { file } => routes::unblock(file.as_deref()),
    }
}
