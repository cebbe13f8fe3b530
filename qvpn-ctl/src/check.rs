//! `check`: a config, the files that it names, and the configs beside it, with all errors at once.

use std::path::Path;

use qvpn_api::config::ConfigErrors;
use qvpn_api::{Config, exit};

use crate::Failure;
use crate::keys::print;

pub(crate) fn check(file: &Path, json: bool) -> Result<(), Failure> {
    let result = load(file);
    if json {
        let errors: Vec<String> = result
            .as_ref()
            .err()
            .map(|e| e.list().iter().map(ToString::to_string).collect())
            .unwrap_or_default();
        print(&serde_json::json!({ "schema": 1, "ok": errors.is_empty(), "errors": errors }).to_string())?;
        return result
            .map(drop)
            .map_err(|_| Failure { code: exit::CONFIG_REFUSED, text: "the config is refused".into() });
    }
    let config = result.map_err(refused)?;
    let peers = config.peers.len();
    print(&format!(
        "{}: in order, interface {} with {peers} peer{}",
        file.display(),
        config.interface.name,
        if peers == 1 { "" } else { "s" }
    ))
}

/// The config, if nothing is wrong with it.
pub(crate) fn load(file: &Path) -> Result<Config, ConfigErrors> {
    let config = Config::load(file)?;
    let files = config.check_files();
    let neighbours = config.check_neighbours(&config.neighbours());
    match (files, neighbours) {
        (Err(a), Err(b)) => Err(a.and(b)),
        (Err(e), Ok(())) | (Ok(()), Err(e)) => Err(e),
        (Ok(()), Ok(())) => Ok(config),
    }
}

pub(crate) fn refused(errors: ConfigErrors) -> Failure {
    Failure { code: exit::CONFIG_REFUSED, text: errors.to_string() }
}
