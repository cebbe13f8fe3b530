//! Why the audit log can't be used. Each message says what to do.

use std::io;
use std::path::PathBuf;

/// Why the log can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is no key, so nothing is recorded.
    #[error("no audit log is set up: {} is not there; `qvpn-ctl audit setup` makes it", .0.display())]
    NotSetUp(PathBuf),
    /// There is a key already.
    #[error(
        "the audit log is set up already: {} is there; to start a new one, stop the daemon, and move this \
         file and the log away",
        .0.display()
    )]
    SetUpAlready(PathBuf),
    /// Another process writes the log.
    #[error("another process writes the audit log: it holds {}", .0.display())]
    Locked(PathBuf),
    /// Others can read the key.
    #[error(
        "others can use the audit log's key {} (mode {mode:04o}), so what it seals proves nothing; run \
         `chmod 0600` on it, and start a new log with `qvpn-ctl audit setup`",
        path.display()
    )]
    WideKey {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file of the key has no valid one.
    #[error(
        "{} holds no key of an audit log; move it and the log away, and start a new log with `qvpn-ctl audit \
         setup`",
        .0.display()
    )]
    BrokenKey(PathBuf),
    /// The text isn't a verification key.
    #[error(
        "this is no verification key; it is the line `qvpn1-audit-…` that `qvpn-ctl audit setup` printed"
    )]
    NoVerificationKey,
    /// The system has no random bytes.
    #[error("the system provides no randomness ({0}), so no key was made")]
    Randomness(getrandom::Error),
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl AuditError {
    pub(crate) fn io(path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
