//! TLS of a KME: its certificate, mutual authentication against the client CA, and the SAE ID in a client's
//! certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{NamedGroup, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{KmeConfig, KnownBy, SaeConfig};
use crate::faults::catalog::Misbehaviour;
use crate::faults::tls as tls_faults;
use crate::pem::{TlsError, certificates, private_key};

/// Returns the TLS settings of a KME with `fault`: TLS 1.3 or 1.2, X25519MLKEM768 preferred, client
/// certificates of its CA only.
///
/// # Errors
/// `TlsError` if a file can't be read, the key doesn't belong to the certificate, or the certificate of a
/// fault can't be made.
pub fn server_config(kme: &KmeConfig, fault: Misbehaviour) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&kme.cert_file, "a certificate")?;
    let key = private_key(&kme.key_file)?;
    let unusable = |path: &Path, reason: String| TlsError::Unusable { path: path.to_owned(), reason };

    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if fault == Misbehaviour::NoMlkem {
        provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    }
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&kme.client_ca_file, "a CA certificate")? {
        roots.add(certificate).map_err(|e| unusable(&kme.client_ca_file, e.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| unusable(&kme.client_ca_file, e.to_string()))?;
    let versions: &[_] = match fault {
        Misbehaviour::Tls12Only => &[&rustls::version::TLS12],
        _ => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let failed = |e: rustls::Error| unusable(&kme.cert_file, e.to_string());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(failed)?
        .with_client_cert_verifier(tls_faults::verifier(verifier, fault));
    // It is never empty, since `certificates` returned it.
    let bad = chain.first().map(|right| tls_faults::chain(kme, right, fault)).transpose();
    let mut config = match bad.map_err(|reason| unusable(&kme.cert_file, reason))?.flatten() {
        Some((chain, key)) => {
            // The two are not checked against each other, since rustls would refuse some of these.
            let key = provider.key_provider.load_private_key(key).map_err(failed)?;
            builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
        }
        None => builder.with_single_cert(chain, key).map_err(failed)?,
    };
    // A client that offers only an unsupported protocol is refused.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    Ok(Arc::new(config))
}

/// The identity in a client certificate.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// The subject's common name, if there is exactly one.
    pub(crate) common_name: Option<String>,
    /// The serial number, without leading zeros.
    serial: Vec<u8>,
}

impl Client {
    /// Reads `certificate` (DER); empty if it can't be parsed.
    pub(crate) fn of(certificate: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Self::default() };
        let mut names = certificate.subject().iter_common_name();
        let first = names.next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        let common_name = first.filter(|_| names.next().is_none());
        let serial = certificate.raw_serial().iter().copied().skip_while(|byte| *byte == 0).collect();
        Self { common_name, serial }
    }

    /// Whether this identity belongs to `sae`.
    pub(crate) fn is(&self, sae: &SaeConfig) -> bool {
        let named = self.common_name.as_ref() == Some(&sae.id);
        match &sae.known_by {
            KnownBy::Name => named,
            KnownBy::Serial(serial) => *serial == self.serial,
            KnownBy::Both(serial) => named && *serial == self.serial,
        }
    }

    /// Returns the serial number in the form of the config.
    pub(crate) fn serial(&self) -> String {
        data_encoding::HEXUPPER.encode(&self.serial)
    }
}
