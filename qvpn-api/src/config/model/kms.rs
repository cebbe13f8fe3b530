//! The sections `[kms]` and `[[kms.kme]]`: the sources of keys and how each is reached.

use std::path::{Path, PathBuf};

use qvpn_types::SaeId;

use super::{Dialect, KmeApi};
use crate::config::token::TokenKey;

/// The section `[kms]`: this site's side of the QKD network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kms {
    /// Our SAE ID.
    pub sae_id: SaeId,
    /// Keys held ahead for each peer, 1 to 100.
    pub stock: u32,
    /// The KMEs in their order; at least one, with unique names.
    pub kmes: Vec<Kme>,
}

/// A section `[[kms.kme]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kme {
    /// Its name, unique.
    pub name: String,
    /// The SAE ID by which it knows us; by default that of `[kms]`.
    pub sae_id: SaeId,
    /// Its kind, and how it is reached.
    pub access: KmeAccess,
}

/// Where the private key of our client certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientKey {
    /// A PEM file.
    File(PathBuf),
    /// A key in a PKCS#11 token; it never leaves the token.
    Token(Box<TokenKey>),
}

impl From<PathBuf> for ClientKey {
    fn from(file: PathBuf) -> Self {
        Self::File(file)
    }
}

impl From<&Path> for ClientKey {
    fn from(file: &Path) -> Self {
        Self::File(file.to_owned())
    }
}

/// The kind of a `[[kms.kme]]`, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KmeAccess {
    /// `api = "etsi014"`.
    Etsi014(KmeServer),
    /// `api = "etsi004"`.
    Etsi004(KmeServer, StreamOptions),
    /// `api = "skip"`.
    Skip(KmeServer),
    /// `api = "file"`: keys for one peer in a file. They don't count as QKD keys.
    File(PathBuf),
}

impl Kme {
    /// Returns the `api` value in config and status.
    #[must_use]
    pub fn api(&self) -> KmeApi {
        match &self.access {
            KmeAccess::Etsi014(_) => KmeApi::Etsi014,
            KmeAccess::Etsi004(..) => KmeApi::Etsi004,
            KmeAccess::Skip(_) => KmeApi::Skip,
            KmeAccess::File(_) => KmeApi::File,
        }
    }

    /// Returns the server; `None` for a file of keys.
    #[must_use]
    pub fn server(&self) -> Option<&KmeServer> {
        match &self.access {
            KmeAccess::Etsi014(server) | KmeAccess::Etsi004(server, _) | KmeAccess::Skip(server) => {
                Some(server)
            }
            KmeAccess::File(_) => None,
        }
    }

    /// Returns its URL; a file of keys has the scheme `file`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.access {
            KmeAccess::Etsi014(server) | KmeAccess::Etsi004(server, _) | KmeAccess::Skip(server) => {
                server.url.clone()
            }
            KmeAccess::File(path) => format!("file:{}", path.display()),
        }
    }
}

/// The settings that only ETSI GS QKD 004 has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// The server's byte format.
    pub dialect: Dialect,
    /// The link's name, the same at both sites: it tells a peer's KMEs apart.
    pub link: Option<String>,
}

/// A KME that is reached over mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmeServer {
    /// Its base URL: `https` (`tls` for ETSI GS QKD 004), a host, no query, no slash at its end.
    pub url: String,
    /// The name in its certificate, if it isn't the URL's host.
    pub server_name: Option<String>,
    /// The CA that its certificate must chain to, PEM.
    pub ca_file: PathBuf,
    /// Our client certificate, PEM.
    pub cert_file: PathBuf,
    /// Its private key, from `key_file`.
    pub key: ClientKey,
}
