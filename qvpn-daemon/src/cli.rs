//! The daemon's command line. `qvpn-ctl man` compiles this file too, so that the man page says the same.

use std::path::PathBuf;

use clap::Parser;

const EXIT_CODES: &str = "Exit codes: 0 stopped by a signal, 1 failed, 2 usage, 3 config refused. The unit starts it again \
after 1. The config is described in qvpn.toml(5); qvpn-ctl(1) asks the daemon.";

/// The qvpn gateway daemon. Runs in the foreground; SIGHUP reads the config again, SIGTERM stops.
///
/// Started by root it becomes the user `qvpn`, and keeps CAP_NET_ADMIN alone, before it reads the config.
#[derive(Parser)]
#[command(name = "qvpn-daemon", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The config of the interface, usually /etc/qvpn/IFACE.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The folder of the control socket [default: $QVPN_SOCKET_DIR or /run/qvpn].
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// How much to log, whatever `log_level` in the config says.
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub(crate) log: Option<String>,
}
