//! The daemon's command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const EXIT_CODES: &str = "Exit codes: 0 stopped by a signal, 1 failed, 2 usage, 3 config refused. The unit \
restarts it after 1. qvpn.toml(5) describes the config; qvpn-ctl(1) shows and controls a running daemon.";

/// The qvpn gateway daemon. Runs in the foreground; SIGHUP reloads the config, SIGTERM stops.
///
/// Started by root, it becomes the user `qvpn` and keeps CAP_NET_ADMIN alone before it reads the config.
#[derive(Parser)]
#[command(name = "qvpn-daemon", version, after_help = EXIT_CODES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
    /// The config of the interface, usually /etc/qvpn/IFACE.toml.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// The directory of the control socket [default: $QVPN_SOCKET_DIR or /run/qvpn].
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// The directory of the state file, IFACE.state [default: $QVPN_STATE_DIR or /var/lib/qvpn].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Begin in standby, as one gateway of a pair: nothing is sent and no key is taken until `qvpn-ctl
    /// activate`.
    #[arg(long)]
    pub(crate) standby: bool,
    /// The log level; overrides `log_level` of the config.
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub(crate) log: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Write the man page, from the same text as this help.
    #[command(hide = true)]
    Man {
        /// The directory to write it to.
        dir: PathBuf,
    },
}
