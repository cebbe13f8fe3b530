//! Why the daemon doesn't start or ends. Each says what was tried and what to change, and has an exit code.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kms_client::KmsError;
use qvpn_api::{ConfigErrors, exit};
use qvpn_dataplane::{LaneError, TunError};
use qvpn_net::{NetError, PlanError};

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The config file is wrong.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The allowed IPs, table or mark can't be routed.
    #[error("the config's routes can't work: {0}")]
    Plan(#[from] PlanError),
    /// A KME's settings or certificates can't be used.
    #[error("{0}; {advice}", advice = .0.advice())]
    Kms(#[from] KmsError),
    /// No memory for keys.
    #[error(transparent)]
    Memory(qvpn_secret::LockError),
    /// Addresses or routes.
    #[error("network setup: {0}")]
    Net(#[from] NetError),
    /// The data path doesn't start.
    #[error(transparent)]
    Lanes(#[from] LaneError),
    /// The TUN device can't be made.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A lane's UDP port.
    #[error("UDP port {port}: {source}; choose another listen_port, or stop what uses it (`ss -ulpn`)")]
    Port {
        /// The port.
        port: u16,
        /// The system's word.
        source: std::io::Error,
    },
    /// A lane stopped while running.
    #[error("lane {lane} failed, so the daemon ends and the routes block: {error}")]
    LaneFailed {
        /// The lane.
        lane: u8,
        /// Its word.
        error: LaneError,
    },
    /// Another daemon has this interface.
    #[error("another qvpn-daemon answers on {}; stop it first, since there is one daemon an interface", .0.display())]
    AlreadyRunning(PathBuf),
    /// The control socket.
    #[error("control socket {}: {source}; {}, or set --socket-dir", path.display(), folder_advice(path, source))]
    Control {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Where Prometheus shall scrape.
    #[error(
        "metrics_listen = \"{at}\": {source}; write an address of this machine and a port that is free (`ss -tlpn`)"
    )]
    Metrics {
        /// The address.
        at: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// Something else that the system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}

/// What to do about a folder that the socket can't be made in.
fn folder_advice(path: &Path, source: &std::io::Error) -> String {
    // Before root is given up the folder itself is what is made.
    let folder = if path.extension().is_some() { path.parent().unwrap_or(path) } else { path };
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let folder = folder.display();
            format!(
                "the folder must belong to the daemon's user (`mkdir -p {folder} && chown qvpn:qvpn {folder}`)"
            )
        }
        _ => "check the folder and its permissions".to_owned(),
    }
}

impl DaemonError {
    pub(crate) fn system(what: &'static str, source: std::io::Error) -> Self {
        Self::System { what, source }
    }

    /// The exit code of a daemon that ends with it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Plan(_) | Self::Kms(_) => exit::CONFIG_REFUSED,
            _ => exit::FAILED,
        }
    }
}
