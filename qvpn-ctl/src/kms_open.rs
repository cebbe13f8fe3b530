//! A source of keys from a `[[kms.kme]]` of a config, as the daemon opens it.

use kms_client::probe::Probed;
use kms_client::{KmeConfig, KmsClient, KmsError};
use qvpn_api::config;

/// An open source.
pub(crate) enum Open {
    Etsi014(KmsClient),
}

impl Open {
    pub(crate) fn probed(&self) -> Probed<'_> {
        match self {
            Self::Etsi014(client) => Probed::Etsi014(client),
        }
    }
}

/// Opens `kme`; sockets get the mark `mark` if it isn't 0.
pub(crate) fn open(kme: &config::Kme, mark: u32) -> Result<Open, KmsError> {
    let mut settings =
        KmeConfig::new(&kme.name, &kme.url, &kme.sae_id, &kme.ca_file, &kme.cert_file, &kme.key_file);
    settings.server_name.clone_from(&kme.server_name);
    settings.fwmark = (mark != 0).then_some(mark);
    Ok(Open::Etsi014(KmsClient::new(settings)?))
}
