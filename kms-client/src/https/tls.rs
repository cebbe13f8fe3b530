//! TLS to a KME: our certificate and key (in a file or a token), the CAs for the KME's certificate, and the
//! settings of a connection. Changed files are loaded again before the next connection. There is no key log,
//! session cache or ticket.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use qvpn_api::config::ClientKey;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};

use crate::config::KmeConfig;
use crate::https::explain::{CertificateInfo, ExplainingVerifier};
use crate::https::files::{FileError, no_certificate, read_certificates, read_key};
use crate::https::token_signer::{LastTokenError, TokenSigningKey};

/// The metadata of a file when it was read; any difference means that its content may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileVersion {
    modified: (i64, i64),
    length: u64,
    inode: u64,
}

/// The contents of the three files.
pub(crate) struct Credentials {
    verifier: Arc<WebPkiServerVerifier>,
    identity: Arc<SingleCertAndKey>,
    /// Our certificate; `None` if it can't be parsed, in which case the KME decides about it.
    pub(crate) own: Option<CertificateInfo>,
    /// When the last of the CA certificates expires, in seconds since 1970.
    pub(crate) ca_not_after: Option<i64>,
    token_error: LastTokenError,
}

/// The CA, our certificate, and the key's file or token.
struct CredentialPaths {
    ca_file: PathBuf,
    cert_file: PathBuf,
    key: ClientKey,
}

struct Loaded {
    /// The versions at the last attempt to load, so that a bad file is reported once.
    versions: [Option<FileVersion>; 3],
    credentials: Arc<Credentials>,
    problem: Option<String>,
}

/// The loaded certificate files of one KME's config.
pub(crate) struct TlsFiles {
    kme: String,
    paths: CredentialPaths,
    provider: Arc<CryptoProvider>,
    loaded: Mutex<Loaded>,
}

impl TlsFiles {
    /// Loads the files for the first time.
    pub(crate) fn load(config: &KmeConfig) -> Result<Self, FileError> {
        let (ca_file, cert_file) = (config.ca_file.clone(), config.cert_file.clone());
        let paths = CredentialPaths { ca_file, cert_file, key: config.key.clone() };
        let provider = Arc::new(provider());
        let versions = versions(&paths);
        let credentials = Arc::new(read_credentials(&paths, &provider)?);
        let loaded = Mutex::new(Loaded { versions, credentials, problem: None });
        Ok(Self { kme: config.name.clone(), paths, provider, loaded })
    }

    /// Returns the current content of the files. If they changed and can't be used, returns the former
    /// content.
    pub(crate) fn current(&self) -> Arc<Credentials> {
        // Read before the files: a change in between is noticed the next time.
        let versions = versions(&self.paths);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if versions != loaded.versions {
            loaded.versions = versions;
            match read_credentials(&self.paths, &self.provider) {
                Ok(credentials) => {
                    tracing::info!(kme = %self.kme, "certificates loaded again, since their files changed");
                    loaded.credentials = Arc::new(credentials);
                    loaded.problem = None;
                }
                Err(error) => {
                    tracing::warn!(
                        kme = %self.kme,
                        problem = %error.what,
                        advice = %error.advice,
                        "the changed certificates can't be used; the former ones stay in use"
                    );
                    loaded.problem = Some(format!("{}; {}", error.what, error.advice));
                }
            }
        }
        Arc::clone(&loaded.credentials)
    }

    /// Returns why changed files aren't in use.
    pub(crate) fn problem(&self) -> Option<String> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }

    /// Returns why the token's last signature failed.
    pub(crate) fn token_error(&self) -> Option<FileError> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.credentials.token_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the settings for one connection with these protocols inside TLS, and the verifier that
    /// remembers the KME's certificate.
    pub(crate) fn connection(
        &self,
        credentials: &Credentials,
        alpn: &[&[u8]],
    ) -> Result<(Arc<ClientConfig>, Arc<ExplainingVerifier>), rustls::Error> {
        let verifier = Arc::new(ExplainingVerifier::new(Arc::clone(&credentials.verifier)));
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            // webpki's verifier makes the decision; ours only remembers the certificate, to explain a
            // refusal.
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>)
            .with_client_cert_resolver(Arc::clone(&credentials.identity) as Arc<_>);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = rustls::client::Resumption::disabled();
        Ok((Arc::new(config), verifier))
    }
}

/// AWS-LC with X25519MLKEM768 first, then the classical groups for KMEs that don't support it.
fn provider() -> CryptoProvider {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

fn versions(paths: &CredentialPaths) -> [Option<FileVersion>; 3] {
    let key = match &paths.key {
        ClientKey::File(path) => Some(path),
        ClientKey::Token(key) => key.pin_file.as_ref(),
    };
    [Some(&paths.ca_file), Some(&paths.cert_file), key].map(|path| {
        let path = path?;
        let meta = std::fs::metadata(path).ok()?;
        Some(FileVersion {
            modified: (meta.mtime(), meta.mtime_nsec()),
            length: meta.len(),
            inode: meta.ino(),
        })
    })
}

fn read_credentials(
    paths: &CredentialPaths,
    provider: &Arc<CryptoProvider>,
) -> Result<Credentials, FileError> {
    let CredentialPaths { ca_file, cert_file, key } = paths;
    let mut roots = RootCertStore::empty();
    let mut ca_not_after = None;
    for ca in read_certificates("ca_file", ca_file)? {
        ca_not_after = ca_not_after.max(CertificateInfo::of(&ca).map(|info| info.not_after));
        roots.add(ca).map_err(|e| FileError {
            what: format!("ca_file {} holds a certificate that can't be a CA: {e}", ca_file.display()),
            advice: "put the CA certificate there that issued the KME's certificate".to_owned(),
        })?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|e| FileError {
            what: format!("ca_file {} can't be used: {e}", ca_file.display()),
            advice: "put the CA certificate there that issued the KME's certificate".to_owned(),
        })?;

    let chain = read_certificates("cert_file", cert_file)?;
    let own = chain.first().and_then(CertificateInfo::of);
    let token_error = LastTokenError::default();
    let identity = match key {
        ClientKey::File(key_file) => identity_of_file(chain, cert_file, key_file, provider)?,
        ClientKey::Token(key) => {
            let Some(certificate) = chain.first() else {
                return Err(no_certificate("cert_file", cert_file));
            };
            let key = TokenSigningKey::open((**key).clone(), certificate, Arc::clone(&token_error))?;
            CertifiedKey::new(chain, Arc::new(key))
        }
    };
    let identity = Arc::new(SingleCertAndKey::from(identity));
    Ok(Credentials { verifier, identity, own, ca_not_after, token_error })
}

/// Returns which certificate of the chain belongs to `key`.
fn position_of_own(chain: &[CertificateDer<'static>], key: &Arc<dyn SigningKey>) -> Option<usize> {
    let belongs = |certificate: &CertificateDer<'static>| {
        let pair = CertifiedKey::new(vec![certificate.clone()], Arc::clone(key));
        pair.keys_match().is_ok()
    };
    chain.iter().position(belongs)
}

fn identity_of_file(
    chain: Vec<CertificateDer<'static>>,
    cert_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, FileError> {
    let key = read_key(key_file)?;
    let unusable = |e: rustls::Error| FileError {
        what: format!("key_file {} can't be used: {e}", key_file.display()),
        advice: "use an ECDSA P-256 or P-384, Ed25519 or RSA (2048 bits or more) key without a passphrase"
            .to_owned(),
    };
    let key = provider.key_provider.load_private_key(key).map_err(unusable)?;
    if let Some(at) = position_of_own(&chain, &key).filter(|at| *at > 0) {
        return Err(FileError {
            what: format!(
                "cert_file {} has the certificates in the wrong order: ours is number {}",
                cert_file.display(),
                at + 1
            ),
            advice: "put our own certificate first, then the one that issued it, and so on".to_owned(),
        });
    }
    let identity = CertifiedKey::new(chain, key);
    // Refuse only a mismatch. The KME decides about other findings, such as an X.509 v1 certificate.
    if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = identity.keys_match() {
        return Err(FileError {
            what: format!(
                "key_file {} isn't the key of the certificate in cert_file {}",
                key_file.display(),
                cert_file.display()
            ),
            advice: "put a certificate and its own private key there".to_owned(),
        });
    }
    Ok(identity)
}
