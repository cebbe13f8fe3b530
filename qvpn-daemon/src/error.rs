//! The errors that end the daemon. Each says what failed and what to change, and has an exit code.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kms_client::KmsError;
use nix::errno::Errno;
use qvpn_api::{ConfigErrors, exit};
use qvpn_dataplane::{LaneError, TunError};
use qvpn_net::{NetError, PlanError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The config file is wrong.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The routes, the table or the mark of the config can't work.
    #[error("the config's routes can't work: {0}")]
    Plan(#[from] PlanError),
    /// A KME's settings or certificates can't be used.
    #[error("{0}; {advice}", advice = .0.advice())]
    Kms(#[from] KmsError),
    /// The memory for keys can't be locked.
    #[error(transparent)]
    Memory(qvpn_secret::LockError),
    /// Addresses or routes can't be set.
    #[error("network setup: {0}")]
    Net(#[from] NetError),
    /// The data path can't start.
    #[error(transparent)]
    Lanes(#[from] LaneError),
    /// The TUN device can't be created.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The UDP port of a lane can't be bound.
    #[error("UDP port {port}: {source}; choose another listen_port, or stop what uses it (`ss -ulpn`)")]
    Port { port: u16, source: std::io::Error },
    /// A lane stopped while running.
    #[error("lane {lane} failed, so the daemon ends and the routes block: {error}")]
    LaneFailed { lane: u8, error: LaneError },
    /// Another daemon runs this interface.
    #[error(
        "another qvpn-daemon answers on {}; stop it first, since each interface has one daemon",
        .0.display()
    )]
    AlreadyRunning(PathBuf),
    /// The control socket can't be created.
    #[error(
        "control socket {}: {source}; {}, or set --socket-dir",
        path.display(),
        directory_advice(path, source)
    )]
    Control { path: PathBuf, source: std::io::Error },
    /// The metrics listener can't be opened.
    #[error(
        "metrics_listen = \"{at}\": {source}; write an address of this machine and a port that is free (`ss \
         -tlpn`)"
    )]
    Metrics { at: SocketAddr, source: std::io::Error },
    /// Another system call failed.
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
}

/// Returns what to do about a directory in which the socket can't be created.
fn directory_advice(path: &Path, source: &std::io::Error) -> String {
    // Before the daemon gives up root, `path` is the directory itself.
    let directory = if path.extension().is_some() { path.parent().unwrap_or(path) } else { path };
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let directory = directory.display();
            format!(
                "the directory must belong to the daemon's user (`mkdir -p {directory} && chown qvpn:qvpn \
                 {directory}`)"
            )
        }
        _ => "check the directory and its permissions".to_owned(),
    }
}

impl DaemonError {
    pub(crate) fn system(what: &'static str, source: std::io::Error) -> Self {
        Self::System { what, source }
    }

    /// Turns the error code of a system call into [`Self::System`].
    pub(crate) fn errno(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::system(what, errno.into())
    }

    /// Returns the exit code of a daemon that ends with this error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Plan(_) | Self::Kms(_) => exit::CONFIG_REFUSED,
            _ => exit::FAILED,
        }
    }
}
