//! The settings of one KME, in checked form. The grammar of config files is elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use qvpn_api::config::{self, ClientKey};

/// The time limit of one operation, from name resolution to the last byte of the answer.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of one KME that is reached by HTTPS. Proxy settings of the environment never apply.
#[derive(Debug, Clone)]
pub struct KmeConfig {
    /// Its name, which every error and log line carries.
    pub name: String,
    /// `https://host[:port][/prefix]`; `/api/v1/keys/…` is appended to it.
    pub url: String,
    /// Our own SAE ID at this KME. The KME takes it from the certificate; here it appears in errors and is
    /// compared with the status.
    pub sae_id: String,
    /// PEM file with the CA certificates that may have issued the KME's certificate.
    pub ca_file: PathBuf,
    /// PEM file with our certificate, then any intermediate ones.
    pub cert_file: PathBuf,
    /// Our certificate's private key.
    pub key: ClientKey,
    /// The name in the KME's certificate, if it differs from the URL's host.
    pub server_name: Option<String>,
    /// `SO_MARK` of the TCP socket, so that policy routing keeps it out of the tunnel that needs its keys.
    pub fwmark: Option<u32>,
    /// The deadline of one whole operation.
    pub timeout: Duration,
}

impl KmeConfig {
    /// Returns a config with [`DEFAULT_TIMEOUT`], no mark, and the URL's host as the certificate's name.
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

    /// Returns the settings of `kme` and its `server` in a config file. Sockets get the mark `fwmark` unless
    /// it is 0.
    #[must_use]
    pub fn of_file(kme: &config::Kme, server: &config::KmeServer, fwmark: u32) -> Self {
        let config::KmeServer { url, server_name, ca_file, cert_file, key } = server;
        let mut config = Self::new(&kme.name, url, kme.sae_id.as_str(), ca_file, cert_file, key.clone());
        config.server_name.clone_from(server_name);
        config.fwmark = (fwmark != 0).then_some(fwmark);
        config
    }
}
