//! The directories of control sockets and configs.

use std::path::{Path, PathBuf};

use clap::Args;
use qvpn_api::control::SOCKET_DIR;

use crate::error::CtlError;

/// The directory of the configs.
pub(crate) const CONFIG_DIR: &str = "/etc/qvpn";

/// Directories that only tests and unusual installations change.
#[derive(Args)]
pub(crate) struct Dirs {
    /// The directory of the daemons' control sockets.
    #[arg(long, global = true, value_name = "DIR", env = "QVPN_SOCKET_DIR", default_value = SOCKET_DIR, hide = true)]
    pub(crate) socket_dir: PathBuf,
    /// The directory of the configs.
    #[arg(long, global = true, value_name = "DIR", env = "QVPN_CONFIG_DIR", default_value = CONFIG_DIR, hide = true)]
    pub(crate) config_dir: PathBuf,
}

/// Every config in `dir`, in the order of their names.
pub(crate) fn configs(dir: &Path) -> Result<Vec<PathBuf>, CtlError> {
    let entries =
        std::fs::read_dir(dir).map_err(|source| CtlError::Directory { dir: dir.to_owned(), source })?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    Ok(files)
}
