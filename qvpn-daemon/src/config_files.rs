//! Reads the config and the key files that it names.

use std::path::Path;
use std::sync::Arc;

use qvpn_api::{Config, ConfigErrors};
use qvpn_identity::{Psk, SecretIdentity};

/// The keys that a config names.
pub(crate) struct ConfigKeys {
    pub(crate) local: Arc<SecretIdentity>,
    /// In the order of the config's peers.
    pub(crate) psks: Vec<Option<Arc<Psk>>>,
}

impl ConfigKeys {
    /// # Errors
    /// All key files that can't be used.
    pub(crate) fn read(config: &Config) -> Result<Self, ConfigErrors> {
        Ok(Self { local: Arc::new(config.read_private_key()?), psks: read_psks(config)? })
    }
}

/// Reads the config at `path` and checks all files that it names.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigErrors> {
    check(Config::load(path)?)
}

/// Checks all files that `config` names.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn check(config: Config) -> Result<Config, ConfigErrors> {
    config.check_files()?;
    // The name service may be down, or reachable only through the tunnel, so this is only a warning.
    if let Err(unknown) = config.check_access() {
        tracing::warn!("{unknown}; nobody has access by it");
    }
    // The config of another network namespace may lie in the same directory, so this is only a warning.
    // Within one namespace the kernel refuses what two configs can't share.
    if let Err(shared) = config.check_other_interfaces(&config.other_interfaces()) {
        tracing::warn!("{shared}");
    }
    Ok(config)
}

/// Another config of the host that has some of this config's prefixes.
pub(crate) struct SharedPrefixes {
    /// Its interface.
    pub(crate) interface: String,
    /// The prefixes, as errors of this config.
    pub(crate) errors: ConfigErrors,
}

/// Returns what `config` shares with other configs in its directory. Call it before the sandbox hides them.
pub(crate) fn shared_prefixes(config: &Config) -> Vec<SharedPrefixes> {
    let shared = |other: Config| {
        let errors = config.check_shared_prefixes(&other).err()?;
        Some(SharedPrefixes { interface: other.interface.name, errors })
    };
    config.other_interfaces().into_iter().filter_map(shared).collect()
}

fn read_psks(config: &Config) -> Result<Vec<Option<Arc<Psk>>>, ConfigErrors> {
    let mut psks = Vec::new();
    let mut errors: Option<ConfigErrors> = None;
    for peer in &config.peers {
        match config.read_psk(peer) {
            Ok(psk) => psks.push(psk.map(Arc::new)),
            Err(error) => {
                errors = Some(match errors.take() {
                    Some(before) => before.and(error),
                    None => error,
                })
            }
        }
    }
    errors.map_or(Ok(psks), Err)
}
