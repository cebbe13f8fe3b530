//! Where the log and its key are.

use std::io;
use std::path::{Path, PathBuf};

/// The directory of the logs.
pub const LOG_DIR: &str = "/var/log/qvpn";
/// The directory of the keys that seal them.
pub const KEY_DIR: &str = "/var/lib/qvpn-audit";

/// The directory of the logs: `QVPN_LOG_DIR`, or [`LOG_DIR`].
#[must_use]
pub fn log_dir() -> PathBuf {
    dir("QVPN_LOG_DIR", LOG_DIR)
}

/// The directory of the keys: `QVPN_AUDIT_DIR`, or [`KEY_DIR`].
#[must_use]
pub fn key_dir() -> PathBuf {
    dir("QVPN_AUDIT_DIR", KEY_DIR)
}

fn dir(variable: &str, default: &str) -> PathBuf {
    let set = std::env::var_os(variable).filter(|dir| !dir.is_empty());
    set.map_or_else(|| PathBuf::from(default), PathBuf::from)
}

/// The files of one interface's audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPaths {
    /// The log; older parts of it have the number of their first line behind the name.
    pub log: PathBuf,
    /// The key that seals the next line.
    pub key: PathBuf,
}

impl AuditPaths {
    /// The files of `interface`.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        Self::within(&log_dir(), &key_dir(), interface)
    }

    /// The files of `interface` in these directories.
    #[must_use]
    pub fn within(log_dir: &Path, key_dir: &Path, interface: &str) -> Self {
        Self {
            log: log_dir.join(format!("{interface}.audit")),
            key: key_dir.join(format!("{interface}.key")),
        }
    }

    /// The older parts of the log, by the number of their first line, and the log itself if it is there.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn parts(&self) -> io::Result<Vec<PathBuf>> {
        let (Some(dir), Some(name)) = (self.log.parent(), self.log.file_name().and_then(|n| n.to_str()))
        else {
            return Ok(Vec::new());
        };
        let prefix = format!("{name}.");
        let mut parts = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let number =
                path.file_name().and_then(|n| n.to_str()?.strip_prefix(&prefix)?.parse::<u64>().ok());
            parts.extend(number.map(|number| (number, path)));
        }
        parts.sort();
        let mut parts: Vec<PathBuf> = parts.into_iter().map(|(_, path)| path).collect();
        parts.extend(self.log.exists().then(|| self.log.clone()));
        Ok(parts)
    }

    /// The name under which a full log is kept.
    pub(crate) fn part(&self, first: u64) -> PathBuf {
        let mut name = self.log.clone().into_os_string();
        name.push(format!(".{first}"));
        name.into()
    }
}
