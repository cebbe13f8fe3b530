//! The qvpn gateway daemon: one process for each interface, in the foreground. It is a thin shell around the
//! libraries: clock, randomness, sockets, routes and the control socket.

mod access;
mod audit;
mod caller;
mod certificates;
mod cli;
mod clock;
mod config_files;
mod context;
mod control_socket;
mod daemon;
mod demux_drops;
mod error;
mod events;
mod histogram;
mod journal;
mod kernel_routes;
mod key_index;
mod key_origins;
mod kme_counts;
mod kms_task;
mod lane_marks;
mod lanes;
mod log;
mod man_page;
mod metrics;
mod metrics_listener;
mod peer_runtime;
mod peers;
mod queues;
mod reload;
mod requests;
mod routes;
mod run;
mod sandbox;
mod settings;
mod snapshot;
mod standby;
mod state_file;
mod status;
mod sys;
mod takeovers;
mod task_result;
mod translate;
mod trial;
mod try_config;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use qvpn_api::control::SOCKET_DIR;
use qvpn_api::exit;
use tracing::level_filters::LevelFilter;

use crate::cli::{Cli, Task};
use crate::control_socket::ControlSocket;
use crate::error::DaemonError;
use crate::run::Start;
use crate::state_file::STATE_DIR;

/// Erases freed memory, since buffers of TLS and HTTP hold keys for a short time.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    let cli = Cli::parse();
    // clap accepts valid levels only.
    log::start(cli.log.as_deref().and_then(|level| level.parse::<LevelFilter>().ok()));
    match run_task(cli) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            log::exit_report(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_task(cli: Cli) -> Result<(), DaemonError> {
    match (cli.task, cli.config) {
        (Some(Task::Man { dir }), _) => {
            man_page::write(&dir).map_err(|error| DaemonError::system("write the man page", error))
        }
        (None, Some(config)) => start(&config, [cli.socket_dir, cli.state_dir], cli.standby),
        // clap has already refused this command line.
        (None, None) => Ok(()),
    }
}

fn start(config: &Path, dirs: [Option<PathBuf>; 2], standby: bool) -> Result<(), DaemonError> {
    let [socket_dir, state_dir] = dirs;
    let from_environment =
        |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let socket_dir =
        socket_dir.or_else(|| from_environment("QVPN_SOCKET_DIR")).unwrap_or_else(|| SOCKET_DIR.into());
    let state_dir =
        state_dir.or_else(|| from_environment("QVPN_STATE_DIR")).unwrap_or_else(|| STATE_DIR.into());
    let dropped = sandbox::enter(&socket_dir, &state_dir)?;
    let config = config_files::load(config)?;
    log::set_interface(&config.interface.name);
    log::configure(config.interface.log_level);
    let shared = config_files::shared_prefixes(&config);
    let socket = ControlSocket::bind(&socket_dir, &config.interface.name, config.access.as_ref())?;
    let confined = sandbox::confine(&config, &socket_dir, &state_dir)?;
    for line in dropped.iter().chain(&confined) {
        tracing::info!("confined: {line}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // These threads serve TLS connections to KMEs and the control socket. The main thread owns the peers.
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| DaemonError::system("start the runtime", error))?;
    let start = Start { dirs: [&socket_dir, &state_dir], standby };
    runtime.block_on(run::run(config, shared, socket, start))
}
