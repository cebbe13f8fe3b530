//! The daemon's command line. `qvpn-ctl man` compiles this file too, so that the man page says the same.

use std::path::PathBuf;

use clap::Parser;

/// The qvpn gateway daemon. Runs in the foreground; SIGHUP reads the config again, SIGTERM stops.
///
/// Started by root it becomes the user `qvpn`, and keeps CAP_NET_ADMIN alone, before it reads the config.
#[derive(Parser)]
#[command(name = "qvpn-daemon", version)]
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
