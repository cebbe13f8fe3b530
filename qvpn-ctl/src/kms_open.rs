//! A source of keys from a `[[kms.kme]]` of a config, as the daemon opens it.

use kms_client::probe::Probed;
use kms_client::{KeyFile, KeySource, KmeConfig, KmsClient, KmsError, SkipClient};
use qvpn_api::config::{self, KmeAccess, KmeServer};

/// An open source.
pub(crate) enum Open {
    Etsi014(Box<KmsClient>),
    Other(Box<dyn KeySource>),
}

impl Open {
    pub(crate) fn probed(&self) -> Probed<'_> {
        match self {
            Self::Etsi014(client) => Probed::Etsi014(client),
            Self::Other(source) => Probed::Other(&**source),
        }
    }
}

/// Opens `kme`; sockets get the mark `mark` if it isn't 0.
pub(crate) fn open(kme: &config::Kme, mark: u32) -> Result<Open, KmsError> {
    let settings = |server: &KmeServer| {
        let KmeServer { url, server_name, ca_file, cert_file, key_file } = server;
        let mut settings = KmeConfig::new(&kme.name, url, &kme.sae_id, ca_file, cert_file, key_file);
        settings.server_name.clone_from(server_name);
        settings.fwmark = (mark != 0).then_some(mark);
        settings
    };
    Ok(match &kme.access {
        KmeAccess::Etsi014(server) => Open::Etsi014(Box::new(KmsClient::new(settings(server))?)),
        KmeAccess::Skip(server) => Open::Other(Box::new(SkipClient::new(settings(server))?)),
        KmeAccess::File(path) => Open::Other(Box::new(KeyFile::new(&kme.name, path))),
    })
}
