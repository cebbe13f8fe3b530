//! Who can connect: mutual TLS on real sockets, and the SAE ID that follows from a certificate.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Client, Lab, client_config};
use kme_sim::{Config, Simulator, certs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, NamedGroup, ProtocolVersion};
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

const STATUS: &str = "/api/v1/keys/SITE-B/status";

/// Returns the status code that a client with `config` gets at kme-a1, or why there was none.
async fn handshake(lab: &Lab, config: ClientConfig) -> Result<u16, String> {
    let mut client = Client::connect(lab.address("kme-a1"), "kme-a1", config).await?;
    client.send("GET", STATUS, "").await.map(|r| r.status.as_u16()).map_err(|e| format!("{e:?}"))
}

#[tokio::test]
async fn tls_1_3_with_the_hybrid_group_is_preferred_and_1_2_accepted() {
    let lab = Lab::start().await;
    for (versions, agreed) in [
        (vec![&TLS13, &TLS12], ProtocolVersion::TLSv1_3),
        (vec![&TLS13], ProtocolVersion::TLSv1_3),
        (vec![&TLS12], ProtocolVersion::TLSv1_2),
    ] {
        let config = client_config(lab.directory.path(), Some("site-a"), &versions);
        let mut client = Client::connect(lab.address("kme-a1"), "kme-a1", config).await.unwrap();
        assert_eq!(client.tls, agreed);
        let hybrid = client.group == NamedGroup::X25519MLKEM768;
        assert_eq!(hybrid, agreed == ProtocolVersion::TLSv1_3, "{:?}", client.group);
        assert_eq!(client.get(STATUS).await.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_offers_http_1_0_or_no_protocol_is_served() {
    let lab = Lab::start().await;
    for protocols in [&[][..], &[&b"http/1.0"[..]], &[b"h2", b"http/1.1"], &[b"http/1.0", b"http/1.1"]] {
        let mut config = client_config(lab.directory.path(), Some("site-a"), rustls::ALL_VERSIONS);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        assert_eq!(handshake(&lab, config).await, Ok(200), "{protocols:?}");
    }
    let mut config = client_config(lab.directory.path(), Some("site-a"), rustls::ALL_VERSIONS);
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(handshake(&lab, config).await.unwrap_err().contains("NoApplicationProtocol"));
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_no_answer() {
    let lab = Lab::start().await;
    for version in [&TLS13, &TLS12] {
        let refused =
            handshake(&lab, client_config(lab.directory.path(), None, &[version])).await.unwrap_err();
        assert!(refused.contains("CertificateRequired") || refused.contains("HandshakeFailure"), "{refused}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_or_one_that_ended_gets_no_answer() {
    let lab = Lab::start().await;
    let other = TempDir::new().unwrap();
    common::certificates(other.path());
    let ended = certs::Request {
        kmes: BTreeMap::new(),
        saes: BTreeSet::from(["ENDED".to_owned()]),
        days: 0,
        force: false,
    };
    certs::make(lab.directory.path(), &ended).unwrap();
    for name in ["site-a.pem", "site-a.key"] {
        std::fs::copy(other.path().join(name), lab.directory.path().join(format!("other-{name}"))).unwrap();
    }
    for version in [&TLS13, &TLS12] {
        for (sae, alert) in
            [("other-site-a", &["UnknownCA", "DecryptError"][..]), ("ended", &["CertificateExpired"])]
        {
            let refused = handshake(&lab, client_config(lab.directory.path(), Some(sae), &[version]))
                .await
                .unwrap_err();
            assert!(alert.iter().any(|a| refused.contains(a)), "{sae}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_server_certificate_is_no_client_certificate() {
    let lab = Lab::start().await;
    let refused = handshake(&lab, client_config(lab.directory.path(), Some("kme-b1"), rustls::ALL_VERSIONS))
        .await
        .unwrap_err();
    assert!(refused.contains("BadCertificate") || refused.contains("UnsupportedCertificate"), "{refused}");
}

#[tokio::test]
async fn an_sae_of_another_kme_or_of_none_is_401_without_a_body_on_every_operation() {
    let lab = Lab::start().await;
    for sae in ["site-b", "nobody"] {
        let mut client = lab.client("kme-a1", sae).await;
        for path in [STATUS, "/api/v1/keys/SITE-A/enc_keys", "/api/v1/keys/SITE-A/dec_keys?key_ID=x"] {
            let reply = client.get(path).await;
            assert_eq!(reply.status, 401, "{sae} {path}");
            assert!(reply.body.is_empty());
        }
    }
}

/// Each row: SAE A's lines in the config, and the result with site A's own certificate and with that of
/// NOBODY.
#[tokio::test]
async fn an_sae_is_known_by_what_the_config_says_of_its_certificate() {
    let directory = TempDir::new().unwrap();
    common::certificates(directory.path());
    let serial = |name: &str| {
        let der = CertificateDer::from_pem_file(directory.path().join(name)).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        certificate.raw_serial_as_string()
    };
    let (own, other) = (serial("site-a.pem"), serial("nobody.pem"));
    for (lines, own_gets, other_gets) in [
        ("id = \"SITE-A\"\nknown_by = \"name\"".to_owned(), 200u16, 401u16),
        (format!("id = \"1\"\nserial = \"{}\"", own.replace(':', "").to_uppercase()), 200, 401),
        (format!("id = \"SITE-A\"\nserial = \"{other}\""), 401, 200),
        (format!("id = \"SITE-A\"\nserial = \"{own}\"\nknown_by = \"both\""), 200, 401),
        (format!("id = \"SITE-A\"\nserial = \"{other}\"\nknown_by = \"both\""), 401, 401),
        (format!("id = \"1\"\nserial = \"{own}\"\nknown_by = \"both\""), 401, 401),
    ] {
        let config = common::CONFIG.replacen("id = \"SITE-A\"", &lines, 1);
        let config = Config::parse(&config, "test.toml", directory.path()).unwrap();
        let simulator = Simulator::start(&config).await.unwrap();
        for (name, wanted) in [("site-a", own_gets), ("nobody", other_gets)] {
            let tls = client_config(directory.path(), Some(name), rustls::ALL_VERSIONS);
            let mut client = Client::connect(simulator.addresses()["kme-a1"], "kme-a1", tls).await.unwrap();
            let reply = client.get(STATUS).await;
            assert_eq!(reply.status, wanted, "{name}: {lines}");
            if wanted == 200 {
                let id = config.saes[0].id.as_str();
                assert_eq!(reply.json()["master_SAE_ID"], id, "{name}: {lines}");
            }
        }
    }
}

#[tokio::test]
async fn a_kme_proves_its_own_name_and_addresses_only() {
    let lab = Lab::start().await;
    let config = || client_config(lab.directory.path(), Some("site-a"), rustls::ALL_VERSIONS);
    for name in ["kme-a1", "127.0.0.1", "::1"] {
        assert!(Client::connect(lab.address("kme-a1"), name, config()).await.is_ok(), "{name}");
    }
    for name in ["kme-b1", "127.0.0.2"] {
        let refused = Client::connect(lab.address("kme-a1"), name, config()).await.err().unwrap();
        assert!(refused.contains("not valid for name"), "{refused}");
    }
}
