//! The config file `/etc/qvpn/<iface>.toml`: its grammar, read into types that can't hold a wrong value, with all errors
//! of a file at once. Parsing touches no file; what must be looked up on the machine is in [`Config::check_files`] and
//! [`Config::check_neighbours`].

mod edit;
mod error;
mod files;
mod grammar;
mod model;
mod neighbours;
mod reader;
mod reference;
mod rules;
mod token;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lookup::{self, LookupError};

pub use edit::{EditError, PeerEdit, edit_peer};
pub use error::{ConfigError, ConfigErrors, Position};
pub use files::NamedFile;
pub use ipnet::IpNet;
pub use model::{
    ClientKey, Dscp, Endpoint, Interface, Kme, KmeAccess, KmeApi, KmeServer, Kms, LogLevel, Mtu, OnStop,
    Peer, QkdPolicy, Role, Suite, Table,
};

pub use reference::{KeyHelp, REFERENCE, SectionHelp};
pub use token::TokenKey;

/// Bytes of the largest config that is read: several ten thousand peers.
pub const MAX_SIZE: usize = 16 * 1024 * 1024;

/// What is left of a refused config: enough to keep its traffic from leaving in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salvaged {
    /// The interface, if there is nothing wrong with its section.
    pub interface: Option<Interface>,
    /// Every allowed IP that can be read, with no host bits, perhaps some of them twice.
    pub allowed_ips: Vec<IpNet>,
}

/// A config file whose every value was checked.
///
/// ```
/// use qvpn_api::Config;
/// let error = Config::parse("/etc/qvpn/qvpn0.toml".as_ref(), "[interface]\nlisten_prt = 51820\n").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "/etc/qvpn/qvpn0.toml:2:1: [interface] has no key `listen_prt`; did you mean `listen_port`?"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read.
    pub path: PathBuf,
    /// The section `[interface]`.
    pub interface: Interface,
    /// The section `[kms]`, if there is one; then with at least one KME.
    pub kms: Option<Kms>,
    /// The sections `[[peer]]`, in their order; names and public keys are unique.
    pub peers: Vec<Peer>,
    /// The text that it was read from.
    pub text: Arc<str>,
    /// Where values stand, for checks that come after parsing.
    marks: model::Marks,
}

impl Config {
    /// Reads a config from `text`; `path` names it in errors, gives the interface its default name, and its folder is
    /// what relative paths in it start from.
    ///
    /// # Errors
    /// All errors of the file, in its order.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        grammar::parse(path, text)
    }

    /// Reads the config file at `path`. A relative path is taken from the working folder.
    ///
    /// # Errors
    /// If it can't be read, is larger than [`MAX_SIZE`] or isn't UTF-8, else as [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::parse(path, &files::read_config(path)?)
    }

    /// Reads what can be read of a config that was refused, so that a slip of the pen in it can't open what it should
    /// close. It is for the fail-closed routes, and for nothing else.
    #[must_use]
    pub fn salvage(path: &Path) -> Salvaged {
        let text = files::read_config(path).unwrap_or_default();
        let (interface, allowed_ips) = grammar::salvage(path, &text);
        Salvaged { interface, allowed_ips }
    }

    /// The peer with this name or public key.
    #[must_use]
    pub fn peer(&self, name_or_key: &str) -> Option<&Peer> {
        let key = name_or_key.parse().ok();
        self.peers.iter().find(|p| p.name == name_or_key || Some(p.public_key) == key)
    }

    /// The peer that `text` means: a name, public key or fingerprint, or the beginning of one.
    ///
    /// # Errors
    /// If none or several are meant.
    pub fn find_peer(&self, text: &str) -> Result<&Peer, LookupError> {
        match self.peer(text) {
            Some(peer) => Ok(peer),
            None => lookup::find(self.peers.iter(), text, |p| {
                (p.name.clone(), p.public_key.to_string(), p.public_key.fingerprint())
            }),
        }
    }

    /// The KMEs that `peer` may use, in its order of preference; none where its `qkd` is `off`.
    #[must_use]
    pub fn kmes_of(&self, peer: &Peer) -> Vec<&Kme> {
        let kmes = self.kms.as_ref().map_or(&[][..], |kms| &kms.kmes);
        peer.kmes.iter().filter_map(|name| kmes.iter().find(|k| k.name == *name)).collect()
    }
}
