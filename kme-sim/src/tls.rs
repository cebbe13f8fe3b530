//! TLS of a KME: its certificate, mutual authentication against the client CA, and the SAE ID in a client's certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::KmeConfig;

/// Why a KME's certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file can't be read or holds nothing of the kind.
    #[error("cannot read {what} from {path}: {source}; `kme-sim certs DIR` makes a set for a lab", path = path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What was wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The files can be read and don't fit together.
    #[error("cannot use the certificate {path}: {reason}", path = path.display())]
    Unusable {
        /// The certificate that was to be used.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

/// The TLS side of a KME: TLS 1.3 or 1.2, X25519MLKEM768 preferred, and no client without a certificate of its CA.
///
/// # Errors
/// [`TlsError`] if a file can't be read or the key and the certificate don't belong together.
pub fn server_config(kme: &KmeConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&kme.cert_file, "a certificate")?;
    let key = PrivateKeyDer::from_pem_file(&kme.key_file).map_err(|source| TlsError::Pem {
        what: "a private key",
        path: kme.key_file.clone(),
        source,
    })?;
    let unusable = |path: &Path, reason: String| TlsError::Unusable { path: path.to_owned(), reason };

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&kme.client_ca_file, "a CA certificate")? {
        roots.add(certificate).map_err(|e| unusable(&kme.client_ca_file, e.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| unusable(&kme.client_ca_file, e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|e| unusable(&kme.cert_file, e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { what, path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if found.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

/// The SAE ID in a client certificate: the subject's common name, if there is exactly one.
#[must_use]
pub fn sae_id(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}
