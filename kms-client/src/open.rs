//! Opens the source of keys that a `[[kms.kme]]` of a config file describes, for the daemon and for checks.

use qvpn_api::config::{self, KmeAccess};

use crate::config::KmeConfig;
use crate::error::KmsError;
use crate::etsi004::client::Etsi004Client;
use crate::etsi014::client::KmsClient;
use crate::file::KeyFile;
use crate::probe::Probed;
use crate::skip::client::SkipClient;
use crate::source::{Certificates, KeySource};

/// A source of keys of one of the kinds that a config can name.
pub enum Source {
    /// `api = "etsi014"`.
    Etsi014(Box<KmsClient>),
    /// `api = "etsi004"`.
    Etsi004(Box<Etsi004Client>),
    /// `api = "skip"`.
    Skip(Box<SkipClient>),
    /// `api = "file"`.
    File(Box<KeyFile>),
}

impl Source {
    /// Checks the settings of `kme` and loads its certificates; it opens no connection. Sockets get the mark
    /// `fwmark` unless it is 0.
    ///
    /// # Errors
    /// [`KmsErrorKind::Config`](crate::KmsErrorKind::Config), which names the setting or file and what to
    /// write instead.
    pub fn open(kme: &config::Kme, fwmark: u32) -> Result<Self, KmsError> {
        let config = |server| KmeConfig::of_file(kme, server, fwmark);
        Ok(match &kme.access {
            KmeAccess::Etsi014(server) => Self::Etsi014(Box::new(KmsClient::new(config(server))?)),
            KmeAccess::Etsi004(server, options) => {
                Self::Etsi004(Box::new(Etsi004Client::new(config(server), options)?))
            }
            KmeAccess::Skip(server) => Self::Skip(Box::new(SkipClient::new(config(server))?)),
            KmeAccess::File(path) => Self::File(Box::new(KeyFile::new(&kme.name, path))),
        })
    }

    /// Returns the client itself, since a check treats each kind differently.
    #[must_use]
    pub fn probed(&self) -> Probed<'_> {
        match self {
            Self::Etsi014(client) => Probed::Etsi014(client),
            Self::Etsi004(client) => Probed::Etsi004(client),
            Self::Skip(client) => Probed::Skip(client),
            Self::File(file) => Probed::Other(&**file),
        }
    }

    /// Ends what is open at the KME.
    pub async fn close(&self) {
        self.probed().source().close().await;
    }

    /// Returns when the certificates in its files expire.
    #[must_use]
    pub fn certificates(&self) -> Certificates {
        self.probed().source().certificates()
    }
}

impl From<Source> for Box<dyn KeySource> {
    fn from(source: Source) -> Self {
        match source {
            Source::Etsi014(client) => client,
            Source::Etsi004(client) => client,
            Source::Skip(client) => client,
            Source::File(file) => file,
        }
    }
}
