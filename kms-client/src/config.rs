//! What is to be known about one KME before it can be asked. The file grammar is elsewhere; this is its checked form.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::token::TokenKey;

/// How long one operation may take, from name resolution to the last byte of the answer.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where our certificate's private key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientKey {
    /// In a PEM file (PKCS #8, PKCS #1 or SEC 1), readable by its owner and group only.
    File(PathBuf),
    /// In a PKCS#11 token, which it never leaves.
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

/// One KME that speaks ETSI GS QKD 014. Proxy settings of the environment never apply.
#[derive(Debug, Clone)]
pub struct KmeConfig {
    /// Our name for it, which every error and log line carries.
    pub name: String,
    /// `https://host[:port][/prefix]`; `/api/v1/keys/…` is put behind it.
    pub url: String,
    /// Our own SAE ID at this KME. The KME takes it from the certificate; it is named in errors and compared with status.
    pub sae_id: String,
    /// PEM file with the CA certificates that may issue the KME's certificate.
    pub ca_file: PathBuf,
    /// PEM file with our certificate, then any intermediate ones.
    pub cert_file: PathBuf,
    /// Our certificate's private key.
    pub key: ClientKey,
    /// The name in the KME's certificate, where it isn't the URL's host.
    pub server_name: Option<String>,
    /// `SO_MARK` of the TCP socket, so that policy routing keeps it out of the tunnel that needs its keys.
    pub fwmark: Option<u32>,
    /// The deadline of one whole operation.
    pub timeout: Duration,
}

impl KmeConfig {
    /// A config with [`DEFAULT_TIMEOUT`], no mark, and the URL's host as the certificate's name.
    pub fn new(
        name: impl Into<String>,
        url: impl Into<String>,
        sae_id: impl Into<String>,
        ca_file: impl Into<PathBuf>,
        cert_file: impl Into<PathBuf>,
        key: impl Into<ClientKey>,
    ) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            sae_id: sae_id.into(),
            ca_file: ca_file.into(),
            cert_file: cert_file.into(),
            key: key.into(),
            server_name: None,
            fwmark: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }
}
