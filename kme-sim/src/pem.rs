//! Reads the PEM files that a config names.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why a KME's certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file can't be read or holds no object of this kind.
    #[error(
        "cannot read {what} from {path}: {source}; `kme-sim certs DIR` makes a set for a lab",
        path = path.display()
    )]
    Pem {
        /// The kind of object.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// What was wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The files can be read but don't belong together.
    #[error("cannot use the certificate {path}: {reason}", path = path.display())]
    Unusable {
        /// The certificate that was to be used.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

/// Reads the private key in a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Pem {
        what: "a private key",
        path: path.to_owned(),
        source,
    })
}

/// Reads the certificates in a PEM file, at least one.
pub(crate) fn certificates(
    path: &Path,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { what, path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if found.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}
