//! The directories of control sockets and configs.

use std::path::{Path, PathBuf};

use clap::Args;
use qvpn_api::control::SOCKET_DIR;

use crate::client;
use crate::error::CtlError;

/// The directory of the configs.
pub(crate) const CONFIG_DIR: &str = "/etc/qvpn";

/// Directories that only tests and unusual installations change.
#[derive(Args)]
pub(crate) struct Dirs {
    /// The directory of the daemons' control sockets.
    #[arg(long, global = true, value_name = "DIR", env = "QVPN_SOCKET_DIR")]
    #[arg(default_value = SOCKET_DIR, hide = true)]
    pub(crate) socket_dir: PathBuf,
    /// The directory of the configs.
    #[arg(long, global = true, value_name = "DIR", env = "QVPN_CONFIG_DIR")]
    #[arg(default_value = CONFIG_DIR, hide = true)]
    pub(crate) config_dir: PathBuf,
}

/// Returns every config in `dir`, in the order of their names.
pub(crate) fn configs(dir: &Path) -> Result<Vec<PathBuf>, CtlError> {
    let entries =
        std::fs::read_dir(dir).map_err(|source| CtlError::Directory { dir: dir.to_owned(), source })?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    Ok(files)
}

impl Dirs {
    /// Returns the interfaces that run or have a config, sorted.
    pub(crate) fn known_interfaces(&self) -> Vec<String> {
        let mut names = client::running(&self.socket_dir).unwrap_or_default();
        let files = configs(&self.config_dir).unwrap_or_default();
        names.extend(files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())));
        names.sort();
        names.dedup();
        names
    }

    /// Returns the named interface, or the only one of this host.
    pub(crate) fn interface(&self, named: Option<String>) -> Result<String, CtlError> {
        if let Some(name) = named {
            return Ok(name);
        }
        let mut known = self.known_interfaces();
        match known.len() {
            0 => Err(CtlError::NoneRunning(self.socket_dir.clone())),
            1 => Ok(known.remove(0)),
            _ => Err(CtlError::WhichInterface(known)),
        }
    }

    /// Reads `[IFACE] [PEER]`. A single argument is a peer if this host has one interface with another name.
    pub(crate) fn interface_and_peer(
        &self,
        first: Option<String>,
        second: Option<String>,
    ) -> Result<(String, Option<String>), CtlError> {
        match (first, second) {
            (Some(first), None) => match &self.known_interfaces()[..] {
                [only] if *only != first => Ok((only.clone(), Some(first))),
                _ => Ok((checked(first)?, None)),
            },
            (Some(first), second) => Ok((checked(first)?, second)),
            (None, _) => Ok((self.interface(None)?, None)),
        }
    }
}

/// Refuses a name that could point to another directory.
fn checked(name: String) -> Result<String, CtlError> {
    match name.is_empty() || name.len() > 15 || name.contains(['/', '\0']) || name == "." || name == ".." {
        true => Err(CtlError::NotAnInterface(name)),
        false => Ok(name),
    }
}
