//! A source of keys from a `[[kms.kme]]` of a config, as the daemon opens it.

use kms_client::probe::Probed;
use kms_client::{Certificates, KeyFile, KeySource, KmeConfig, KmsClient, KmsError, SkipClient, TokenKey};
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

    /// When the certificates in its files end.
    pub(crate) fn certificates(&self) -> Certificates {
        match self {
            Self::Etsi014(client) => client.certificates(),
            Self::Other(source) => source.certificates(),
        }
    }
}

/// Opens `kme`; sockets get the mark `mark` if it isn't 0.
pub(crate) fn open(kme: &config::Kme, mark: u32) -> Result<Open, KmsError> {
    let settings = |server: &KmeServer| {
        let KmeServer { url, server_name, ca_file, cert_file, key } = server;
        let mut settings = KmeConfig::new(&kme.name, url, &kme.sae_id, ca_file, cert_file, client_key(key));
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

/// The key of our certificate, in the client's words.
fn client_key(key: &config::ClientKey) -> kms_client::ClientKey {
    match key {
        config::ClientKey::File(path) => kms_client::ClientKey::File(path.clone()),
        config::ClientKey::Token(key) => kms_client::ClientKey::Token(Box::new(TokenKey {
            uri: key.uri.clone(),
            module: key.module.clone(),
            token: key.token.clone(),
            serial: key.serial.clone(),
            object: key.object.clone(),
            id: key.id.clone(),
            pin_file: key.pin_file.clone(),
        })),
    }
}
