//! TLS towards a KME: which certificates are accepted, how each refusal is explained, and how files are
//! loaded again.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::sync::Arc;
use std::time::Duration;

use kms_client::KmsErrorKind as K;
use kms_client::{KeySource, KmeConfig, KmsClient, KmsError, Operation, Phase, SkipClient, TlsFault};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};
use rustls::pki_types::CertificateDer;
use support::{Ca, Issued, KEY_1, Lab, Server, check, container, ok, sae, status_body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn good_server(lab: &Lab, cert: &Issued) -> Server {
    let config = lab.server_config_with(cert, &lab.ca, rustls::ALL_VERSIONS);
    Server::start(config, |_| ok(&status_body("A", "B"))).await
}

async fn refusal(config: KmeConfig) -> KmsError {
    KmsClient::new(config).unwrap().status(&sae("SITE-B")).await.expect_err("a refusal")
}

#[track_caller]
fn config_error(config: KmeConfig) -> KmsError {
    let error = KmsClient::new(config).err().expect("a refusal");
    check(&error, K::Config, Operation::Configure);
    error
}

#[tokio::test]
async fn each_bad_certificate_of_a_kme_is_explained() {
    let lab = Lab::new();
    let other_ca = Ca::new("Vendor CA");
    let ours = |cn: &str, names: &[&str], change: fn(&mut CertificateParams)| lab.ca.issue(cn, names, change);
    let rows = [
        (
            ours("kme-a1", &["kme-a1", "kme-a1.lab"], |_| {}),
            TlsFault::WrongName,
            "kme-a1, kme-a1.lab",
            "server_name = \"kme-a1\"",
        ),
        (
            ours("localhost", &["127.0.0.1"], |_| {}),
            TlsFault::WrongName,
            "is for 127.0.0.1, not for localhost",
            "server_name",
        ),
        (
            ours("localhost", &[], |_| {}),
            TlsFault::NoSubjectAltName,
            "no subject alternative name",
            "subjectAltName=DNS:localhost",
        ),
        (
            ours("localhost", &["localhost"], |p| p.not_after = date_time_ymd(2021, 3, 4)),
            TlsFault::Expired,
            "2021",
            "renew",
        ),
        (
            ours("localhost", &["localhost"], |p| p.not_before = date_time_ymd(2130, 3, 4)),
            TlsFault::NotYetValid,
            "2130",
            "clock",
        ),
        (other_ca.issue("localhost", &["localhost"], |_| {}), TlsFault::UnknownCa, "Vendor CA", "ca_file"),
        (
            ours("kme-ca", &["localhost"], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            TlsFault::CaAsServer,
            "kme-ca",
            "openssl x509",
        ),
        (
            ours("localhost", &["localhost"], |p| {
                p.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
            }),
            TlsFault::BadCertificate,
            "localhost",
            "openssl x509",
        ),
        (
            version_1(ours("localhost", &[], |_| {})),
            TlsFault::Version1,
            "version 1",
            "subjectAltName=DNS:localhost",
        ),
    ];
    for (cert, fault, words, advice) in rows {
        let server = good_server(&lab, &cert).await;
        let error = refusal(lab.config(server.address)).await;
        check(&error, K::Tls(fault), Operation::Status);
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.advice().contains(advice), "{}", error.advice());
        assert!(server.requests().is_empty(), "nothing is asked of a KME that isn't proven");

        let client = KmsClient::new(lab.config(server.address)).unwrap();
        let error = client.enc_keys(&sae("SITE-B"), 3, 256).await.err().unwrap();
        check(&error, K::Tls(fault), Operation::EncKeys);
        assert_eq!(error.keys_lost(), 0);
    }
}

/// Returns the same certificate as version 1: without a version field and extensions. Its signature is
/// invalid, but its version is checked first.
fn version_1(mut cert: Issued) -> Issued {
    fn contents(der: &[u8]) -> &[u8] {
        let long = usize::from(der[1] & 0x7f);
        if der[1] < 0x80 { &der[2..] } else { &der[2 + long..] }
    }
    fn sequence(contents: &[u8]) -> Vec<u8> {
        let length = u16::try_from(contents.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82, length[0], length[1]], contents].concat()
    }
    fn element(der: &[u8]) -> usize {
        let header = der.len() - contents(der).len();
        let long = usize::from(der[1] & 0x7f);
        let length = match der[1] {
            short @ 0..0x80 => usize::from(short),
            _ => der[2..2 + long].iter().fold(0, |n, b| n << 8 | usize::from(*b)),
        };
        header + length
    }
    let outer = contents(&cert.der);
    let (tbs, rest) = outer.split_at(element(outer));
    let fields = contents(tbs);
    assert_eq!(fields[..5], [0xa0, 3, 2, 1, 2], "the version field");
    let mut kept = Vec::new();
    let mut left = &fields[5..];
    while !left.is_empty() {
        let (one, more) = left.split_at(element(left));
        if one[0] != 0xa3 {
            kept.extend_from_slice(one);
        }
        left = more;
    }
    cert.der = CertificateDer::from(sequence(&[&sequence(&kept), rest].concat()));
    cert
}

#[tokio::test]
async fn the_name_in_the_certificate_can_be_set() {
    let lab = Lab::new();
    let server = good_server(&lab, &lab.ca.issue("x", &["kme-a1.vendor"], |_| {})).await;
    let mut config = lab.config(server.address);
    config.url = format!("https://127.0.0.1:{}/qkd/", server.address.port());
    config.server_name = Some("kme-a1.vendor".to_owned());
    KmsClient::new(config).unwrap().status(&sae("SITE-B")).await.unwrap();
    let request = server.requests().remove(0);
    assert_eq!(request.path, "/qkd/api/v1/keys/SITE-B/status");
    let host = format!("host: kme-a1.vendor:{}\r\n", server.address.port());
    assert!(request.head.to_lowercase().contains(&host), "{}", request.head);

    // An address needs no name if the certificate has it.
    let server = good_server(&lab, &lab.ca.issue("x", &["127.0.0.1"], |_| {})).await;
    let mut config = lab.config(server.address);
    config.url = format!("https://{}", server.address);
    KmsClient::new(config).unwrap().status(&sae("SITE-B")).await.unwrap();
}

#[tokio::test]
async fn older_kmes_are_reached_with_the_tls_that_they_have() {
    let lab = Lab::new();
    let cert = lab.ca.issue("kme-a1", &["localhost"], |_| {});
    let config = lab.server_config_with(&cert, &lab.ca, &[&rustls::version::TLS12]);
    let server = Server::start(config, |_| ok(&container(&[("id-1", KEY_1)]))).await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    assert_eq!(client.enc_keys(&sae("SITE-B"), 1, 256).await.unwrap().len(), 1);
    assert!(server.sessions.lock().unwrap()[0].starts_with("Some(TLSv1_2)"));
}

#[tokio::test]
async fn a_kme_that_refuses_our_certificate_names_it() {
    let lab = Lab::new();
    let other_ca = Ca::new("Vendor CA");
    let cert = lab.ca.issue("kme-a1", &["localhost"], |_| {});
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12][..]] {
        let config = lab.server_config_with(&cert, &other_ca, versions);
        let server = Server::start(config, |_| ok("{}")).await;
        let client = KmsClient::new(lab.config(server.address)).unwrap();
        let error = client.enc_keys(&sae("SITE-B"), 4, 256).await.err().unwrap();
        check(&error, K::IdentityRefused, Operation::EncKeys);
        assert!(error.to_string().contains("common name SITE-A, serial number "), "{error}");
        assert!(error.advice().contains("cert.pem"), "{}", error.advice());
        assert_eq!(error.keys_lost(), 0, "it was refused before it was read");
    }

    // An expired certificate of ours.
    let old = lab.ca.issue("OLD-A", &[], |p| p.not_after = date_time_ymd(2021, 3, 4));
    lab.write_identity(&old);
    let server = good_server(&lab, &cert).await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    let error = client.status(&sae("SITE-B")).await.err().unwrap();
    check(&error, K::IdentityRefused, Operation::Status);
    assert!(error.to_string().contains("OLD-A") && error.to_string().contains("2021"), "{error}");
    assert!(KeySource::certificates(&client).own_not_after.unwrap() < 1_700_000_000);
}

#[tokio::test]
async fn certificates_are_loaded_again_when_their_files_change() {
    let lab = Lab::new();
    let next_ca = Ca::new("Next CA");
    let cert = lab.ca.issue("kme-a1", &["localhost"], |p| p.not_after = date_time_ymd(2090, 1, 1));
    let config = lab.server_config_with(&cert, &next_ca, rustls::ALL_VERSIONS);
    let server = Server::start(config, |_| ok(&status_body("A", "B"))).await;
    let client = KmsClient::new(lab.config(server.address)).unwrap();
    assert_eq!(client.status(&sae("SITE-B")).await.err().unwrap().kind(), K::IdentityRefused);

    // Half of a renewal: the former pair stays in use, and the reason is shown.
    let renewed = next_ca.issue("SITE-A", &[], |p| p.not_after = date_time_ymd(2080, 1, 1));
    std::fs::write(lab.path("cert.pem"), &renewed.pem).unwrap();
    assert_eq!(client.status(&sae("SITE-B")).await.err().unwrap().kind(), K::IdentityRefused);
    let problem = KeySource::certificates(&client).problem.unwrap();
    assert!(problem.contains("isn't the key of the certificate"), "{problem}");

    lab.write_identity(&renewed);
    client.status(&sae("SITE-B")).await.unwrap();
    let certificates = KeySource::certificates(&client);
    assert_eq!(certificates.problem, None);
    assert_eq!(certificates.own_not_after, Some(date_time_ymd(2080, 1, 1).unix_timestamp()));
    assert_eq!(certificates.kme_not_after, Some(date_time_ymd(2090, 1, 1).unix_timestamp()));

    // If a file disappears, the loaded content stays in use.
    std::fs::remove_file(lab.path("ca.pem")).unwrap();
    client.status(&sae("SITE-B")).await.unwrap();
    assert!(KeySource::certificates(&client).problem.unwrap().contains("ca.pem"));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_with_the_way_out() {
    let lab = Lab::new();
    let address = "127.0.0.1:1".parse().unwrap();
    let key = std::fs::read_to_string(lab.path("key.pem")).unwrap();

    for mode in [0o644, 0o604, 0o602, 0o620, 0o660] {
        lab.write_key(&key, mode);
        let error = config_error(lab.config(address));
        assert!(error.to_string().contains(&format!("mode {mode:04o}")), "{error}");
        assert!(error.advice().contains("chmod 0600"), "{}", error.advice());
    }
    for mode in [0o600, 0o400, 0o640] {
        lab.write_key(&key, mode);
        KmsClient::new(lab.config(address)).unwrap();
    }

    let secret = key.lines().nth(1).unwrap().to_owned();
    let cases = [
        (lab.ca.issue("x", &[], |_| {}).key_pem, "isn't the key of the certificate"),
        (key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "passphrase"),
        ("no key at all".to_owned(), "holds no private key"),
        (key.replace("-----END", "-----FIN"), "holds no private key"),
        (key.replacen('M', "*", 1), "key.pem"),
    ];
    for (content, words) in cases {
        lab.write_key(&content, 0o600);
        let error = config_error(lab.config(address));
        assert!(error.to_string().contains(words), "{error}");
        assert!(!format!("{error:?}").contains(&secret[..12]), "{error}");
    }
    lab.write_key(&key, 0o600);

    let write = |file: &str, content: &str| std::fs::write(lab.path(file), content).unwrap();
    write("cert.pem", "");
    assert!(config_error(lab.config(address)).to_string().contains("holds no certificate"));
    write("ca.pem", &key);
    assert!(config_error(lab.config(address)).to_string().contains("ca.pem holds no certificate"));
    std::fs::remove_file(lab.path("ca.pem")).unwrap();
    assert!(config_error(lab.config(address)).to_string().contains("ca.pem can't be read"));
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused() {
    let lab = Lab::new();
    let config = lab.config("127.0.0.1:1".parse().unwrap());
    for url in [
        "",
        "kme:8443",
        "http://kme:8443",
        "https://",
        "https://u@kme",
        "https://u:p@kme",
        "https://kme/?a=b",
        "https://kme/#x",
    ] {
        let error = config_error(KmeConfig { url: url.to_owned(), ..config.clone() });
        assert!(error.advice().contains("https://host:port"), "{url}: {}", error.advice());
    }
    config_error(KmeConfig { server_name: Some("not a name".to_owned()), ..config.clone() });
    config_error(KmeConfig { timeout: Duration::ZERO, ..config.clone() });
    for url in ["https://kme", "https://[fd00::1]:8443/prefix", "https://10.0.0.1"] {
        KmsClient::new(KmeConfig { url: url.to_owned(), ..config.clone() }).unwrap();
    }
}

#[tokio::test]
async fn a_kme_that_is_not_there_is_unreachable() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = KmsClient::new(lab.config(address)).unwrap();
    let error = client.enc_keys(&sae("SITE-B"), 1, 256).await.err().unwrap();
    check(&error, K::Unreachable, Operation::EncKeys);
    assert!(
        error.to_string().contains(&format!("localhost:{}, while connecting", address.port())),
        "{error}"
    );
    assert_eq!(error.keys_lost(), 0);
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_left_at_the_deadline() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = lab.config(listener.local_addr().unwrap());
    config.timeout = Duration::from_millis(300);
    let held = tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            all.push(listener.accept().await.unwrap());
        }
    });
    let client = KmsClient::new(config).unwrap();
    let error = client.enc_keys(&sae("SITE-B"), 1, 256).await.err().unwrap();
    check(&error, K::Timeout(Phase::Tls), Operation::EncKeys);
    assert!(error.to_string().contains("in the TLS handshake"), "{error}");
    assert_eq!(error.keys_lost(), 0);
    held.abort();
}

#[tokio::test]
async fn a_server_without_tls_is_reported_as_such() {
    let lab = Lab::new();
    for (greeting, kind) in [
        (&b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..], K::Tls(TlsFault::NotTls)),
        (b"", K::Unreachable),
        // A TLS alert: handshake_failure, protocol_version.
        (b"\x15\x03\x03\x00\x02\x02\x28", K::Tls(TlsFault::NothingInCommon)),
        (b"\x15\x03\x03\x00\x02\x02\x46", K::Tls(TlsFault::NothingInCommon)),
        (b"\x15\x03\x03\x00\x02\x02\x70", K::Tls(TlsFault::WrongName)),
        (b"\x15\x03\x03\x00\x02\x02\x50", K::Tls(TlsFault::Other)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = lab.config(listener.local_addr().unwrap());
        let plain = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let _ = tcp.read(&mut [0; 4096]).await.unwrap();
            tcp.write_all(greeting).await.unwrap();
            tcp.shutdown().await.unwrap();
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        });
        let error = refusal(config).await;
        check(&error, kind, Operation::Status);
        plain.await.unwrap();
    }
}

#[tokio::test]
async fn a_mark_is_set_or_its_refusal_is_reported() {
    let lab = Lab::new();
    let server = good_server(&lab, &lab.ca.issue("kme-a1", &["localhost"], |_| {})).await;
    let mut config = lab.config(server.address);
    config.fwmark = Some(0x51820);
    // Whether the mark is allowed depends on who runs the test; both cases are checked.
    match KmsClient::new(config).unwrap().status(&sae("SITE-B")).await {
        Ok(status) => assert_eq!(status.source_kme_id, "A"),
        Err(error) => {
            check(&error, K::Config, Operation::Status);
            assert!(error.advice().contains("CAP_NET_ADMIN"), "{}", error.advice());
        }
    }
}

#[tokio::test]
async fn a_dropped_operation_closes_its_connection() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Arc::new(KmsClient::new(lab.config(listener.local_addr().unwrap())).unwrap());
    let asking = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.status(&sae("SITE-B")).await.map(|_| ()) }
    });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut hello = [0; 16];
    tcp.read_exact(&mut hello).await.unwrap();
    asking.abort();
    // The stream ends because the connection is part of the future that was dropped.
    tokio::time::timeout(Duration::from_secs(2), tcp.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
}

/// Passes bytes to `server` and back, and closes both connections when the client has sent `flights` times.
async fn cut_after(server: std::net::SocketAddr, flights: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
        let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
        let mut sent = 0;
        while sent < flights {
            tokio::select! {
                read = client.read(&mut up) => {
                    sent += 1;
                    if sent < flights {
                        server.write_all(&up[..read.unwrap()]).await.unwrap();
                    }
                }
                read = server.read(&mut down) => client.write_all(&down[..read.unwrap()]).await.unwrap(),
            }
        }
    });
    address
}

#[tokio::test]
async fn a_close_without_an_alert_is_probably_about_our_certificate_once_the_kme_showed_its_own() {
    let lab = Lab::new();
    let cert = lab.ca.issue("localhost", &["localhost"], |_| {});
    let config = || lab.server_config_with(&cert, &lab.ca, &[&rustls::version::TLS12]);
    let server = Server::start(config(), |_| ok(&status_body("A", "B"))).await;
    let error = refusal(lab.config(cut_after(server.address, 2).await)).await;
    check(&error, K::IdentityRefused, Operation::Status);
    assert!(!error.is_certain(), "{error}");
    for words in ["without an alert", "common name SITE-A", "probably the KME refuses our identity"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(error.advice().contains("trusts its CA"), "{}", error.advice());

    let server = Server::start(config(), |_| ok(&status_body("A", "B"))).await;
    let error = refusal(lab.config(cut_after(server.address, 1).await)).await;
    check(&error, K::Unreachable, Operation::Status);
    assert!(error.advice().contains("HTTPS port"), "{}", error.advice());
}

#[tokio::test]
async fn an_address_as_a_dns_name_gets_an_advice_that_helps() {
    let lab = Lab::new();
    let dns_name = |p: &mut CertificateParams| {
        p.subject_alt_names = vec![rcgen::SanType::DnsName("127.0.0.1".try_into().unwrap())];
    };
    let config = |server: &Server| KmeConfig {
        url: format!("https://127.0.0.1:{}", server.address.port()),
        ..lab.config(server.address)
    };
    let server = good_server(&lab, &lab.ca.issue("kme-a1", &[], dns_name)).await;
    let error = refusal(config(&server)).await;
    check(&error, K::Tls(TlsFault::WrongName), Operation::Status);
    assert!(error.to_string().contains("has 127.0.0.1 as a DNS name"), "{error}");
    assert!(error.advice().contains("subjectAltName=IP:127.0.0.1"), "{}", error.advice());
    // What the advice says.
    let server = good_server(&lab, &lab.ca.issue("kme-a1", &["127.0.0.1"], |_| {})).await;
    KmsClient::new(config(&server)).unwrap().status(&sae("SITE-B")).await.unwrap();
}

#[tokio::test]
async fn der_files_and_chains_in_the_wrong_order_are_named_as_such() {
    let lab = Lab::new();
    let server = good_server(&lab, &lab.ca.issue("localhost", &["localhost"], |_| {})).await;
    let own = lab.ca.issue("SITE-A", &[], |_| {});
    lab.write_identity(&own);
    std::fs::write(lab.path("cert.pem"), &own.der).unwrap();
    let error = config_error(lab.config(server.address));
    assert!(error.to_string().contains("is in DER form, not PEM"), "{error}");
    assert!(error.advice().contains("openssl x509 -inform DER"), "{}", error.advice());

    std::fs::write(lab.path("cert.pem"), format!("{}{}", lab.ca.pem, own.pem)).unwrap();
    let error = config_error(lab.config(server.address));
    assert!(error.to_string().contains("in the wrong order: ours is number 2"), "{error}");
    assert!(error.advice().contains("our own certificate first"), "{}", error.advice());
    // What the advice says.
    std::fs::write(lab.path("cert.pem"), format!("{}{}", own.pem, lab.ca.pem)).unwrap();
    KmsClient::new(lab.config(server.address)).unwrap().status(&sae("SITE-B")).await.unwrap();
}

#[tokio::test]
async fn a_key_provider_with_pre_shared_keys_only_is_explained() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 4096];
            let _ = stream.read(&mut hello).await;
            // A fatal alert, handshake_failure (RFC 8446 section 6.2).
            let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]).await;
            let _ = stream.shutdown().await;
        }
    });
    let error = SkipClient::new(lab.config(address)).unwrap().capabilities(&sae("Bob")).await.err().unwrap();
    check(&error, K::Tls(TlsFault::NothingInCommon), Operation::Status);
    assert!(error.advice().contains("pre-shared keys (PSK)"), "{}", error.advice());
    // KMEs of ETSI GS QKD 014 don't use them.
    let error = refusal(lab.config(address)).await;
    assert!(!error.advice().contains("PSK") && error.advice().contains("TLS 1.3"), "{}", error.advice());
}
