//! The qvpn gateway daemon: one process an interface, in the foreground. It is a thin shell around the libraries: clock,
//! randomness, sockets, routes, and the control socket.

mod certificates;
mod clock;
mod control_socket;
mod error;
mod events;
mod kms_task;
mod lanes;
mod peers;
mod queues;
mod reload;
mod routes;
mod run;
mod sandbox;
mod slot;
mod snapshot;
mod status;
mod translate;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use qvpn_api::control::SOCKET_DIR;
use qvpn_api::exit;
use tracing::level_filters::LevelFilter;

use crate::error::DaemonError;

/// Erases what is freed: TLS and HTTP buffers hold keys in passing.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// The qvpn gateway daemon. Runs in the foreground; SIGHUP reads the config again, SIGTERM stops.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The config of the interface, usually /etc/qvpn/IFACE.toml.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The folder of the control socket [default: $QVPN_SOCKET_DIR or /run/qvpn].
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// How much to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: LevelFilter,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log);
    match start(cli) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(cli: Cli) -> Result<(), DaemonError> {
    sandbox::enter()?;
    let from_environment =
        || std::env::var_os("QVPN_SOCKET_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let socket_dir = cli.socket_dir.or_else(from_environment).unwrap_or_else(|| SOCKET_DIR.into());
    let config = reload::load(&cli.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One for the KMEs' TLS and the control socket beside the main thread, which owns the peers.
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| DaemonError::system("start the runtime", error))?;
    runtime.block_on(run::run(config, &socket_dir))
}

fn start_log(level: LevelFilter) {
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_target(false);
    // The journal has its own clock and no colours.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.with_ansi(false).without_time().init();
    } else {
        log.with_ansi(io::stderr().is_terminal()).init();
    }
}
