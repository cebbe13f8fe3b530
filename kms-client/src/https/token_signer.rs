//! A key in a PKCS #11 token as a rustls signing key.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use qvpn_api::config::TokenKey;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use tokio::runtime::{Handle, RuntimeFlavor};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::https::files::FileError;
use crate::https::signature::Algorithm;
use crate::https::token::{SharedToken, Token};

/// Signed once when the token is opened, to check that the key belongs to the certificate.
const TEST_MESSAGE: &[u8] = b"qvpn kms-client: is this the key of the certificate?";

/// The algorithm of the certificate's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyAlgorithm {
    P256,
    P384,
    Rsa,
}

impl KeyAlgorithm {
    fn algorithms(self) -> &'static [Algorithm] {
        match self {
            Self::P256 => &[Algorithm::EcdsaP256],
            Self::P384 => &[Algorithm::EcdsaP384],
            Self::Rsa => &[Algorithm::RsaPssSha256, Algorithm::RsaPssSha384, Algorithm::RsaPkcs1Sha256],
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1,
            Self::P384 => &ECDSA_P384_SHA384_ASN1,
            Self::Rsa => &RSA_PSS_2048_8192_SHA256,
        }
    }
}

/// Why the last signature failed. rustls passes on only one line.
pub(crate) type LastTokenError = Arc<Mutex<Option<FileError>>>;

/// A key in a token.
#[derive(Debug)]
pub(crate) struct TokenSigningKey {
    token: SharedToken,
    kind: KeyAlgorithm,
    public: SubjectPublicKeyInfoDer<'static>,
    problem: LastTokenError,
}

impl TokenSigningKey {
    /// Opens the token and makes it sign once, to check that its key belongs to `certificate`.
    pub(crate) fn open(
        key: TokenKey,
        certificate: &CertificateDer<'_>,
        problem: LastTokenError,
    ) -> Result<Self, FileError> {
        let unusable = || FileError {
            what: "the certificate's public key is of a kind that isn't used with tokens here".to_owned(),
            advice: "use a key of ECDSA P-256, ECDSA P-384 or RSA (2048 bits or more) in the token"
                .to_owned(),
        };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unusable())?;
        let info = parsed.public_key();
        let bits = &info.subject_public_key.data;
        let kind = match info.parsed() {
            Ok(PublicKey::EC(point)) if point.key_size() == 256 => KeyAlgorithm::P256,
            Ok(PublicKey::EC(point)) if point.key_size() == 384 => KeyAlgorithm::P384,
            Ok(PublicKey::RSA(_)) => KeyAlgorithm::Rsa,
            _ => return Err(unusable()),
        };
        let uri = key.uri.clone();
        let token = Token::open(key)?;
        let algorithm = kind.algorithms().first().copied().unwrap_or(Algorithm::EcdsaP256);
        let signature = token.sign(algorithm, TEST_MESSAGE)?;
        UnparsedPublicKey::new(kind.verification(), bits).verify(TEST_MESSAGE, &signature).map_err(|_| {
            FileError {
                what: format!("the key of {uri} isn't the key of the certificate in cert_file"),
                advice:
                    "name the certificate's own key with `object=` or `id=`, or have a certificate made for \
                     this one"
                        .to_owned(),
            }
        })?;
        let public = SubjectPublicKeyInfoDer::from(info.raw.to_vec());
        Ok(Self { token: Arc::new(token), kind, public, problem })
    }
}

impl SigningKey for TokenSigningKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let algorithm = self.kind.algorithms().iter().find(|a| offered.contains(&a.scheme()))?;
        Some(Box::new(TokenSigner {
            token: Arc::clone(&self.token),
            algorithm: *algorithm,
            problem: Arc::clone(&self.problem),
        }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.clone())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.kind {
            KeyAlgorithm::P256 | KeyAlgorithm::P384 => SignatureAlgorithm::ECDSA,
            KeyAlgorithm::Rsa => SignatureAlgorithm::RSA,
        }
    }
}

#[derive(Debug)]
struct TokenSigner {
    token: SharedToken,
    algorithm: Algorithm,
    problem: LastTokenError,
}

impl Signer for TokenSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let sign = || self.token.sign(self.algorithm, message);
        // A token may block; a multi-threaded runtime moves this thread's other tasks elsewhere.
        let result = match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(sign),
            _ => sign(),
        };
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().cloned();
        result.map_err(|error| rustls::Error::General(error.what))
    }

    fn scheme(&self) -> SignatureScheme {
        self.algorithm.scheme()
    }
}
