//! Explains a TLS failure: which certificate it is about, what is in that certificate, and the command that
//! fixes it.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, InvalidMessage, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name, X509Version};

use crate::error::{KmsErrorKind, TlsFault};
use crate::excerpt::one_line;
use crate::source::CertificateFacts;

/// The contents of a certificate. Its texts are foreign input, so they are bounded and on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateInfo {
    version_1: bool,
    /// The common name, or the whole subject if there is none.
    pub(crate) subject: String,
    /// As `openssl x509 -serial` prints it; some KMEs identify us only by it.
    pub(crate) serial: String,
    issuer: String,
    self_signed: bool,
    names: Vec<String>,
    not_before: String,
    not_after_text: String,
    /// In seconds since 1970.
    pub(crate) not_after: i64,
}

impl CertificateInfo {
    pub(crate) fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let names = match cert.subject_alternative_name() {
            Ok(Some(extension)) => {
                extension.value.general_names.iter().take(16).filter_map(name_text).collect()
            }
            _ => Vec::new(),
        };
        Some(Self {
            version_1: cert.version() == X509Version::V1,
            subject: common_name(cert.subject()),
            serial: serial(cert.raw_serial()),
            issuer: common_name(cert.issuer()),
            self_signed: cert.subject() == cert.issuer(),
            names,
            not_before: cert.validity().not_before.to_string(),
            not_after_text: cert.validity().not_after.to_string(),
            not_after: cert.validity().not_after.timestamp(),
        })
    }
}

impl CertificateInfo {
    pub(crate) fn facts(&self) -> CertificateFacts {
        CertificateFacts {
            subject: self.subject.clone(),
            issuer: self.issuer.clone(),
            names: self.names.clone(),
            not_after: self.not_after,
        }
    }
}

fn serial(bytes: &[u8]) -> String {
    // RFC 5280 allows 20 bytes.
    let significant = bytes.iter().skip_while(|byte| **byte == 0).take(20);
    let text: String = significant.map(|byte| format!("{byte:02X}")).collect();
    if text.is_empty() { "00".to_owned() } else { text }
}

fn common_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|cn| cn.as_str().ok().map(str::to_owned));
    one_line(&common.unwrap_or_else(|| name.to_string()))
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some(one_line(dns)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| std::net::Ipv4Addr::from(ip).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// webpki's verifier makes the decision. This wrapper only remembers the certificate.
#[derive(Debug)]
pub(crate) struct ExplainingVerifier {
    inner: Arc<WebPkiServerVerifier>,
    shown: Mutex<Option<CertificateInfo>>,
}

impl ExplainingVerifier {
    pub(crate) fn new(inner: Arc<WebPkiServerVerifier>) -> Self {
        Self { inner, shown: Mutex::new(None) }
    }

    /// Returns the certificate that the KME presented in this connection.
    pub(crate) fn shown(&self) -> Option<CertificateInfo> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for ExplainingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = CertificateInfo::of(end_entity);
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The information that explains a failure.
pub(crate) struct Context<'a> {
    /// The name that the certificate must have.
    pub(crate) expected: &'a str,
    /// The KME's certificate.
    pub(crate) shown: Option<CertificateInfo>,
    /// Our own certificate.
    pub(crate) own: Option<&'a CertificateInfo>,
    /// Whether servers of the interface often accept only TLS with pre-shared keys.
    pub(crate) psk_is_usual: bool,
    /// Our SAE ID.
    pub(crate) sae_id: &'a str,
    pub(crate) ca_file: &'a str,
    pub(crate) cert_file: &'a str,
    /// What the URL's port is called in advice.
    pub(crate) port_name: &'a str,
}

/// A failure with its explanation.
pub(crate) struct Explanation {
    pub(crate) kind: KmsErrorKind,
    pub(crate) detail: String,
    pub(crate) advice: String,
}

/// Returns the command that issues an acceptable certificate: version 3, with the name as subject alternative
/// name.
fn issue_command(expected: &str) -> String {
    let kind = if expected.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "issue a new one for the KME with: printf 'subjectAltName={kind}:{expected}\\n' > san.cnf && \
         openssl x509 -req -in kme.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile san.cnf \
         -out kme.pem"
    )
}

/// Explains `error` for this connection.
pub(crate) fn explain(error: &rustls::Error, context: &Context<'_>) -> Explanation {
    use rustls::Error as E;
    let tls = |fault, detail: String, advice: String| Explanation {
        kind: KmsErrorKind::Tls(fault),
        detail,
        advice,
    };
    match error {
        E::InvalidCertificate(problem) => certificate(problem, context),
        E::NoCertificatesPresented => tls(
            TlsFault::BadCertificate,
            "the KME shows no certificate".to_owned(),
            "give the KME a certificate; an anonymous KME is never trusted".to_owned(),
        ),
        E::AlertReceived(alert) => refused_by_kme(*alert, context),
        E::PeerIncompatible(why) => tls(
            TlsFault::NothingInCommon,
            format!("no TLS settings in common ({why:?})"),
            "let the KME offer TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305".to_owned(),
        ),
        E::InvalidMessage(InvalidMessage::InvalidContentType) => tls(
            TlsFault::NotTls,
            "what answers there doesn't speak TLS".to_owned(),
            format!("check the port of url: it must be the KME's {}", context.port_name),
        ),
        E::NoApplicationProtocol => tls(
            TlsFault::NothingInCommon,
            "the KME doesn't offer HTTP/1.1".to_owned(),
            "let the KME's web server offer HTTP/1.1".to_owned(),
        ),
        other => tls(
            TlsFault::Other,
            one_line(&other.to_string()),
            "compare the TLS settings of both sides; openssl s_client -connect HOST:PORT shows the KME's"
                .to_owned(),
        ),
    }
}

fn certificate(problem: &CertificateError, context: &Context<'_>) -> Explanation {
    use CertificateError as C;
    let expected = context.expected;
    let shown = context.shown.as_ref();
    let subject = shown.map_or("?", |cert| cert.subject.as_str());
    let new = |fault, detail: String, advice: String| Explanation {
        kind: KmsErrorKind::Tls(fault),
        detail,
        advice,
    };

    if shown.is_some_and(|cert| cert.version_1) {
        return new(
            TlsFault::Version1,
            format!(
                "the KME's certificate ({subject}) is X.509 version 1, which can't carry the name \
                 {expected} as a subject alternative name"
            ),
            issue_command(expected),
        );
    }
    match problem {
        C::NotValidForName | C::NotValidForNameContext { .. } => wrong_name(expected, shown),
        C::Expired | C::ExpiredContext { .. } => new(
            TlsFault::Expired,
            format!(
                "the KME's certificate ({subject}), or one above it, has expired; its own end is {}",
                shown.map_or("unknown", |cert| cert.not_after_text.as_str())
            ),
            "renew the KME's certificate; if it is in date, check this machine's clock".to_owned(),
        ),
        C::NotValidYet | C::NotValidYetContext { .. } => new(
            TlsFault::NotYetValid,
            format!(
                "the KME's certificate ({subject}) isn't valid before {}",
                shown.map_or("?", |cert| cert.not_before.as_str())
            ),
            "check this machine's clock and that of the CA".to_owned(),
        ),
        C::UnknownIssuer | C::BadSignature => {
            let issuer = match shown {
                Some(cert) if cert.self_signed => "itself".to_owned(),
                Some(cert) => format!("\"{}\"", cert.issuer),
                None => "an unknown CA".to_owned(),
            };
            new(
                TlsFault::UnknownCa,
                format!(
                    "the KME's certificate ({subject}) is issued by {issuer}, and {} holds no such CA, or \
                     one of that name with another key",
                    context.ca_file
                ),
                format!(
                    "put the certificate of the KME's CA into ca_file ({}), or let the KME send the \
                     intermediate certificates",
                    context.ca_file
                ),
            )
        }
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => new(
            TlsFault::CaAsServer,
            format!("the KME uses a CA certificate ({subject}) as its own"),
            issue_command(expected),
        ),
        other => new(
            TlsFault::BadCertificate,
            format!("the KME's certificate ({subject}) is refused: {}", one_line(&other.to_string())),
            issue_command(expected),
        ),
    }
}

/// Explains that the certificate is for another name, or for none.
fn wrong_name(expected: &str, shown: Option<&CertificateInfo>) -> Explanation {
    let subject = shown.map_or("?", |cert| cert.subject.as_str());
    let new = |fault, detail: String, advice: String| Explanation {
        kind: KmsErrorKind::Tls(fault),
        detail,
        advice,
    };
    let names = shown.map(|cert| cert.names.join(", ")).unwrap_or_default();
    if names.is_empty() {
        return new(
            TlsFault::NoSubjectAltName,
            format!(
                "the KME's certificate ({subject}) has no subject alternative name, and the common \
                 name doesn't count"
            ),
            issue_command(expected),
        );
    }
    if shown.is_some_and(|cert| cert.names.iter().any(|name| name == expected)) {
        return new(
            TlsFault::WrongName,
            format!(
                "the KME's certificate has {expected} as a DNS name, and an address needs an entry of type IP"
            ),
            issue_command(expected),
        );
    }
    let first = names.split(", ").next().unwrap_or_default();
    new(
        TlsFault::WrongName,
        format!("the KME's certificate is for {names}, not for {expected}"),
        format!("if this is the right KME, set server_name = \"{first}\" in its config, or correct url"),
    )
}

/// Explains that the KME closed the connection after it got our certificate.
pub(crate) fn refused_without_alert(context: &Context<'_>) -> Explanation {
    let advice = certificate_advice(context);
    Explanation { kind: KmsErrorKind::IdentityRefused, detail: own_certificate(context), advice }
}

/// Explains that the KME ended the handshake. Most alerts are about our certificate.
fn refused_by_kme(alert: AlertDescription, context: &Context<'_>) -> Explanation {
    use AlertDescription as A;
    let own = context.own.map_or("?", |cert| cert.subject.as_str());
    match alert {
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::DecryptError
        | A::CertificateRequired => Explanation {
            kind: KmsErrorKind::IdentityRefused,
            detail: format!(
                "the KME refuses our certificate ({}) with the TLS alert {alert:?}",
                own_certificate(context)
            ),
            advice: certificate_advice(context),
        },
        A::HandshakeFailure if context.psk_is_usual => Explanation {
            kind: KmsErrorKind::Tls(TlsFault::NothingInCommon),
            detail: format!("the key provider ends the handshake with the TLS alert {alert:?}"),
            advice: "key providers of SKIP often accept TLS with pre-shared keys (PSK) only, which qvpn \
                     doesn't support: have the key provider accept client certificates, with TLS 1.3, or \
                     TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305"
                .to_owned(),
        },
        A::ProtocolVersion | A::HandshakeFailure | A::InsufficientSecurity | A::NoApplicationProtocol => {
            Explanation {
                kind: KmsErrorKind::Tls(TlsFault::NothingInCommon),
                detail: format!("the KME ends the handshake with the TLS alert {alert:?}"),
                advice: format!(
                    "let the KME offer TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, \
                     and HTTP/1.1; some servers say this too when they refuse our certificate ({own})"
                ),
            }
        }
        A::UnrecognisedName => Explanation {
            kind: KmsErrorKind::Tls(TlsFault::WrongName),
            detail: format!("the KME doesn't know the name {}", context.expected),
            advice: "set server_name to the name in the KME's certificate".to_owned(),
        },
        other => Explanation {
            kind: KmsErrorKind::Tls(TlsFault::Other),
            detail: format!("the KME ends the connection with the TLS alert {other:?}"),
            advice: "look into the KME's log".to_owned(),
        },
    }
}

/// Describes how the KME identifies us.
fn own_certificate(context: &Context<'_>) -> String {
    let (name, serial, end) = context.own.map_or(("?", "?", "?"), |own| {
        (own.subject.as_str(), own.serial.as_str(), own.not_after_text.as_str())
    });
    format!("common name {name}, serial number {serial}, SAE {}, valid until {end}", context.sae_id)
}

fn certificate_advice(context: &Context<'_>) -> String {
    format!(
        "check that {} is the certificate that the KME's operator registered for SAE {}, that it hasn't \
         expired or been revoked, and that the KME trusts its CA",
        context.cert_file, context.sae_id
    )
}
