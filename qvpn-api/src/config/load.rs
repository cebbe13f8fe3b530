//! Reads a config file: all of it, or the readable part of a refused one.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::error::ConfigErrors;
use super::include::ConfigFiles;
use super::model::{Config, Interface};
use super::source_map::SourceMap;
use super::{files, grammar};

/// Returns the path of a config on trial, beside the config `path`: `qvpn-ctl reload --confirm` writes it,
/// and the daemon reads it.
#[must_use]
pub fn unconfirmed_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unconfirmed");
    PathBuf::from(name)
}

/// The readable part of a refused config, which is enough to block its prefixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialConfig {
    /// The interface, if its section has no error.
    pub interface: Option<Interface>,
    /// Every allowed IP that can be read, without host bits. A prefix can be there twice.
    pub allowed_ips: Vec<IpNet>,
}

impl Config {
    /// Reads a config from `text`. `path` names it in errors and gives the interface its default name;
    /// relative paths in the config start from its directory.
    ///
    /// # Errors
    /// All errors of the file, in its order.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        grammar::parse(path, text, SourceMap::of(text))
    }

    /// Reads the config file at `path`. A relative `path` starts from the working directory.
    ///
    /// # Errors
    /// If it can't be read, is larger than [`MAX_SIZE`](super::files::MAX_SIZE) or isn't UTF-8, else as
    /// [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let mut config = ConfigFiles::read(path)?.parse()?;
        config.recall();
        Ok(config)
    }

    /// Reads `file` as if it were the config `path`, which names it in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_as(path: &Path, file: &Path) -> Result<Self, ConfigErrors> {
        ConfigFiles::with_main(path, files::read_config(file)?)?.parse()
    }

    /// Reads what is readable of a refused config, so that a typo in it doesn't open prefixes that the config
    /// should block. Only the fail-closed block uses it.
    #[must_use]
    pub fn load_partial(path: &Path) -> PartialConfig {
        let text = files::read_config(path).unwrap_or_default();
        let (files, _) = ConfigFiles::readable(path, text);
        let (interface, allowed_ips) = files.parse_partial();
        PartialConfig { interface, allowed_ips }
    }
}
