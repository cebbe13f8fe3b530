//! Faults before any request: a handshake that never continues, no TLS, certificates that a client must
//! refuse, and clients that are refused.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use std::time::Duration;

use common::{Client, Lab, client_config};
use kme_sim::faults::catalog::{Misbehaviour, Ops};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{DigitallySignedStruct, NamedGroup, ProtocolVersion, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

const STATUS: &str = "/api/v1/keys/SITE-B/status";

async fn set(lab: &Lab, how: Misbehaviour) {
    let answer = lab.misbehave("kme-a1", Ops::All, how).await;
    assert!(answer.ok, "{answer:?}");
}

async fn connect(lab: &Lab) -> Result<Client, String> {
    let config = client_config(lab.directory.path(), Some("site-a"), rustls::ALL_VERSIONS);
    Client::connect(lab.address("kme-a1"), "kme-a1", config).await
}

#[tokio::test]
async fn a_certificate_that_a_client_must_refuse_is_shown() {
    let lab = Lab::start().await;
    for (how, error) in [
        (Misbehaviour::CertV1, "UnsupportedCertVersion"),
        (Misbehaviour::CertNoSan, "not valid for name"),
        (Misbehaviour::CertOtherName, "kme-of-another-site"),
        (Misbehaviour::CertExpired, "expired"),
        (Misbehaviour::CertNotYetValid, "not valid yet"),
        (Misbehaviour::CertUnknownCa, "BadSignature"),
        (Misbehaviour::CertIsCa, "CaUsedAsEndEntity"),
    ] {
        set(&lab, how).await;
        let refused = connect(&lab).await.err().unwrap_or_else(|| panic!("{how:?} was accepted"));
        assert!(refused.contains(error), "{how:?}: {refused}");
        // It comes from the CA that the client trusts and has the KME's own names, unless that is the fault.
        let der = shown(&lab).await;
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(certificate.version().0, if how == Misbehaviour::CertV1 { 0 } else { 2 });
        assert!(certificate.issuer().to_string().contains("kme-sim lab CA"));
        let names =
            certificate.subject_alternative_name().unwrap().map_or(0, |n| n.value.general_names.len());
        let expected = match how {
            Misbehaviour::CertV1 | Misbehaviour::CertNoSan | Misbehaviour::CertIsCa => 0,
            Misbehaviour::CertOtherName => 1,
            _ => 3,
        };
        assert_eq!(names, expected, "{how:?}");
        let ca = std::fs::read(lab.directory.path().join("ca.pem")).unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(&ca).unwrap();
        let ca = ca.parse_x509().unwrap();
        let signed = certificate.verify_signature(Some(ca.public_key())).is_ok();
        assert_eq!(signed, how != Misbehaviour::CertUnknownCa, "{how:?}");
    }
    set(&lab, Misbehaviour::None).await;
    connect(&lab).await.unwrap().get(STATUS).await.ok();
}

#[tokio::test]
async fn certificates_cannot_be_made_without_the_ca_key() {
    let lab = Lab::start().await;
    std::fs::remove_file(lab.directory.path().join("ca.key")).unwrap();
    let answer = lab.misbehave("kme-a1", Ops::All, Misbehaviour::CertExpired).await;
    let error = answer.error.unwrap();
    assert!(error.contains("ca.key") && error.contains("kme-sim certs"), "{error}");
    // It works as before.
    connect(&lab).await.unwrap().get(STATUS).await.ok();
}

#[tokio::test]
async fn clients_are_refused_by_the_handshake() {
    let lab = Lab::start().await;
    for (how, alert) in [
        (Misbehaviour::ClientRevoked, "CertificateRevoked"),
        (Misbehaviour::ClientUnknownCa, "UnknownCA"),
        (Misbehaviour::ClientExpired, "CertificateExpired"),
    ] {
        set(&lab, how).await;
        for version in [&TLS13, &TLS12] {
            let config = client_config(lab.directory.path(), Some("site-a"), &[version]);
            let refused = match Client::connect(lab.address("kme-a1"), "kme-a1", config).await {
                Ok(mut client) => format!("{:?}", client.send("GET", STATUS, "").await.unwrap_err()),
                Err(refused) => refused,
            };
            assert!(refused.contains(alert), "{how:?}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_handshake_never_goes_on() {
    let lab = Lab::start().await;
    let mut before = connect(&lab).await.unwrap();
    set(&lab, Misbehaviour::StallTls).await;
    assert!(before.send("GET", STATUS, "").await.is_err(), "connections from before are cut");
    assert!(tokio::time::timeout(Duration::from_millis(200), connect(&lab)).await.is_err());
    set(&lab, Misbehaviour::None).await;
    connect(&lab).await.unwrap().get(STATUS).await.ok();
    // Stopping doesn't wait for it either.
    set(&lab, Misbehaviour::StallTls).await;
    let config = client_config(lab.directory.path(), Some("site-a"), rustls::ALL_VERSIONS);
    let address = lab.address("kme-a1");
    let stalled = tokio::spawn(async move { Client::connect(address, "kme-a1", config).await.err() });
    tokio::time::timeout(Duration::from_secs(5), lab.simulator.stop()).await.unwrap();
    assert!(stalled.await.unwrap().is_some());
}

#[tokio::test]
async fn http_without_tls_answers() {
    let lab = Lab::start().await;
    set(&lab, Misbehaviour::NoTls).await;
    let refused = connect(&lab).await.err().unwrap();
    assert!(refused.contains("InvalidContentType") || refused.contains("corrupt message"), "{refused}");
}

#[tokio::test]
async fn older_tls_and_classical_groups_are_all_there_is() {
    let lab = Lab::start().await;
    set(&lab, Misbehaviour::Tls12Only).await;
    assert_eq!(connect(&lab).await.unwrap().tls, ProtocolVersion::TLSv1_2);
    let config = client_config(lab.directory.path(), Some("site-a"), &[&TLS13]);
    assert!(Client::connect(lab.address("kme-a1"), "kme-a1", config).await.is_err());
    set(&lab, Misbehaviour::NoMlkem).await;
    let mut client = connect(&lab).await.unwrap();
    assert_eq!((client.tls, client.group), (ProtocolVersion::TLSv1_3, NamedGroup::X25519));
    client.get(STATUS).await.ok();
}

/// Returns the certificate that kme-a1 presents.
async fn shown(lab: &Lab) -> Vec<u8> {
    let mut config = client_config(lab.directory.path(), Some("site-a"), &[&TLS13]);
    let (sender, seen) = std::sync::mpsc::channel();
    config.dangerous().set_certificate_verifier(std::sync::Arc::new(Look(sender)));
    // TLS 1.3 may end the connection afterwards; the certificate has been seen.
    let _ = Client::connect(lab.address("kme-a1"), "kme-a1", config).await;
    seen.recv().unwrap()
}

/// Accepts each certificate and passes it on.
#[derive(Debug)]
struct Look(std::sync::mpsc::Sender<Vec<u8>>);

impl rustls::client::danger::ServerCertVerifier for Look {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let _ = self.0.send(end_entity.to_vec());
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
