//! Completion of interfaces and peers. The shell runs this program with the words typed so far, so the
//! candidates are those that exist now.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use clap_complete::engine::CompletionCandidate;
use qvpn_api::Config;
use qvpn_api::control::{Reply, Request, SOCKET_DIR};

use crate::client::{self, Client};
use crate::dirs::{CONFIG_DIR, configs};

fn directory(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map_or_else(|| default.into(), PathBuf::from)
}

fn socket_dir() -> PathBuf {
    directory("QVPN_SOCKET_DIR", SOCKET_DIR)
}

fn config_dir() -> PathBuf {
    directory("QVPN_CONFIG_DIR", CONFIG_DIR)
}

/// Returns the interfaces that run or have a config.
fn known_interfaces() -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        client::running(&socket_dir()).unwrap_or_default().into_iter().collect();
    let files = configs(&config_dir()).unwrap_or_default();
    names.extend(files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())));
    names
}

/// Completes an interface.
pub(crate) fn interfaces(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    known_interfaces()
        .into_iter()
        .filter(|name| name.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

/// Completes a peer of the first interface among the preceding words.
pub(crate) fn peers(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let known = known_interfaces();
    // The typed words follow `--`.
    let mut words = std::env::args().skip_while(|word| word != "--").skip(2);
    let Some(interface) = words.find(|word| known.contains(word)) else { return Vec::new() };
    peers_of(&interface)
        .into_iter()
        .filter(|name| name.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

fn peers_of(interface: &str) -> Vec<String> {
    let asked = Client::connect(&socket_dir(), interface).and_then(|mut client| client.ask(&Request::Peers));
    match asked {
        Ok(Reply::Peers(peers)) => peers.into_iter().map(|peer| peer.name).collect(),
        _ => Config::load(&config_dir().join(format!("{interface}.toml")))
            .map(|config| config.peers.into_iter().map(|peer| peer.name).collect())
            .unwrap_or_default(),
    }
}
