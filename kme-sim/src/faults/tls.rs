//! Faults of TLS: server certificates that a client must refuse, made when they are needed, and a verifier
//! that refuses every client certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, Issuer, KeyPair, SanType, SigningKey};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::certs;
use crate::config::KmeConfig;
use crate::der;
use crate::faults::catalog::Misbehaviour;

/// The name in a certificate for another KME.
const OTHER_NAME: &str = "kme-of-another-site";

/// A certificate chain and the key of its first certificate.
type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Returns the chain that `kme` presents under `fault`; `None` if it is the right one.
///
/// # Errors
/// A description: usually the CA's key, which is needed to make a certificate, is missing.
pub(crate) fn chain(
    kme: &KmeConfig,
    right: &CertificateDer<'_>,
    fault: Misbehaviour,
) -> Result<Option<Chain>, String> {
    use Misbehaviour as M;
    if !matches!(
        fault,
        M::CertV1
            | M::CertNoSan
            | M::CertOtherName
            | M::CertExpired
            | M::CertNotYetValid
            | M::CertUnknownCa
            | M::CertIsCa
    ) {
        return Ok(None);
    }
    let wrong = |e: rcgen::Error| format!("cannot make the certificate: {e}");
    let key = KeyPair::generate().map_err(wrong)?;
    let mut params = certs::server_params(&kme.name, &[], 1).map_err(wrong)?;
    params.subject_alt_names = names(right);
    let now = OffsetDateTime::now_utc();
    match fault {
        M::CertV1 | M::CertNoSan => params.subject_alt_names.clear(),
        M::CertOtherName => {
            params.subject_alt_names = vec![SanType::DnsName(OTHER_NAME.try_into().map_err(wrong)?)];
        }
        M::CertExpired => {
            params.not_before = now - Duration::days(30);
            params.not_after = now - Duration::days(1);
        }
        M::CertNotYetValid => {
            params.not_before = now + Duration::days(1);
            params.not_after = now + Duration::days(30);
        }
        _ => {}
    }
    let certificate = match fault {
        M::CertUnknownCa => {
            let issuer = KeyPair::generate().map_err(wrong)?;
            let ca = Issuer::new(certs::ca_params(), issuer);
            sign(&params, &key, &ca)?
        }
        M::CertIsCa => {
            let (ca, key) = ca_files(kme);
            let chain = crate::pem::certificates(&ca, "a CA certificate").map_err(|e| e.to_string())?;
            let key = crate::pem::private_key(&key).map_err(|e| e.to_string())?;
            return Ok(Some((chain, key)));
        }
        M::CertV1 => {
            let ca = issuer(kme)?;
            let certificate = sign(&params, &key, &ca)?;
            der::as_version_1(&certificate, |tbs| ca.key().sign(tbs).ok())
                .map(CertificateDer::from)
                .ok_or("cannot make a certificate of X.509 version 1")?
        }
        _ => sign(&params, &key, &issuer(kme)?)?,
    };
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    Ok(Some((vec![certificate], key)))
}

fn sign(
    params: &CertificateParams,
    key: &KeyPair,
    ca: &Issuer<'_, KeyPair>,
) -> Result<CertificateDer<'static>, String> {
    let certificate = params.signed_by(key, ca).map_err(|e| format!("cannot make the certificate: {e}"))?;
    Ok(certificate.der().clone())
}

/// Returns the CA's certificate and key: `client_ca_file`, and the file of the same name with the suffix
/// `.key`.
fn ca_files(kme: &KmeConfig) -> (PathBuf, PathBuf) {
    (kme.client_ca_file.clone(), kme.client_ca_file.with_extension("key"))
}

fn issuer(kme: &KmeConfig) -> Result<Issuer<'static, KeyPair>, String> {
    let (certificate, key) = ca_files(kme);
    let need = |path: &Path, reason: String| {
        format!(
            "this fault needs the CA's key to make a certificate, in {}: {reason}; `kme-sim certs DIR` \
             puts it there",
            path.display()
        )
    };
    certs::read_ca(&certificate, &key).map_err(|e| need(&key, e.to_string()))
}

/// Returns the DNS names and addresses of a certificate.
fn names(certificate: &CertificateDer<'_>) -> Vec<SanType> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(SanType::DnsName((*name).try_into().ok()?)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(SanType::IpAddress(<[u8; 4]>::try_from(*bytes).ok()?.into())),
            _ => Some(SanType::IpAddress(<[u8; 16]>::try_from(*bytes).ok()?.into())),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// Checks client certificates as `inner` does, and then refuses them.
#[derive(Debug)]
pub(crate) struct Refusing {
    inner: Arc<dyn ClientCertVerifier>,
    reason: CertificateError,
}

/// Returns `inner`, or a verifier that refuses every client under `fault`.
pub(crate) fn verifier(
    inner: Arc<dyn ClientCertVerifier>,
    fault: Misbehaviour,
) -> Arc<dyn ClientCertVerifier> {
    let reason = match fault {
        Misbehaviour::ClientRevoked => CertificateError::Revoked,
        Misbehaviour::ClientUnknownCa => CertificateError::UnknownIssuer,
        Misbehaviour::ClientExpired => CertificateError::Expired,
        _ => return inner,
    };
    Arc::new(Refusing { inner, reason })
}

impl ClientCertVerifier for Refusing {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.inner.verify_client_cert(end_entity, intermediates, now)?;
        Err(Error::InvalidCertificate(self.reason.clone()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
