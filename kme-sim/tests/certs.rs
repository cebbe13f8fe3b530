//! The lab CA: what is in the certificates, who can read the files, and what is never overwritten.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn certs(directory: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kme-sim")).arg("certs").arg(directory).args(words).output().unwrap()
}

fn made(directory: &Path, words: &[&str]) -> Vec<String> {
    let output = certs(directory, words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let prefix = format!("{}/", directory.display());
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|l| l.strip_prefix(&prefix).unwrap().to_owned())
        .collect()
}

fn refused(directory: &Path, words: &[&str], code: i32) -> String {
    let output = certs(directory, words);
    assert_eq!(output.status.code(), Some(code), "{words:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// Reads a certificate, which names the CA in `directory` as its issuer, and passes it to `look`.
fn look<R>(directory: &Path, name: &str, look: impl FnOnce(&X509Certificate<'_>) -> R) -> R {
    let der = CertificateDer::from_pem_file(directory.join(name)).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let ca = CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap();
    let (_, ca) = X509Certificate::from_der(&ca).unwrap();
    assert_eq!(certificate.issuer(), ca.subject());
    look(&certificate)
}

fn names(directory: &Path, name: &str) -> Vec<String> {
    look(directory, name, |certificate| {
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(dns) => (*dns).to_owned(),
            GeneralName::IPAddress(ip) if ip.len() == 4 => {
                std::net::Ipv4Addr::from(<[u8; 4]>::try_from(*ip).unwrap()).to_string()
            }
            GeneralName::IPAddress(ip) => {
                std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*ip).unwrap()).to_string()
            }
            other => panic!("{other:?}"),
        };
        names.value.general_names.iter().map(text).collect()
    })
}

#[test]
fn a_lab_of_two_sites_is_the_default() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path().join("new/directory");
    let mut files = made(&directory, &["--ip", "kme-a1=10.1.0.5", "--dns", "kme-a1=kme-a1.site-a.example"]);
    files.sort();
    let expected = [
        "ca.key",
        "ca.pem",
        "kme-a1.key",
        "kme-a1.pem",
        "kme-b1.key",
        "kme-b1.pem",
        "site-a.key",
        "site-a.pem",
        "site-b.key",
        "site-b.pem",
    ];
    assert_eq!(files, expected);
    for file in expected {
        let mode = fs::metadata(directory.join(file)).unwrap().permissions().mode() & 0o777;
        assert!(if file.ends_with(".key") { mode == 0o600 } else { mode & 0o133 == 0 }, "{file} {mode:o}");
    }
    assert_eq!(
        names(&directory, "kme-a1.pem"),
        ["kme-a1", "127.0.0.1", "::1", "10.1.0.5", "kme-a1.site-a.example"]
    );
    assert_eq!(names(&directory, "kme-b1.pem"), ["kme-b1", "127.0.0.1", "::1"]);
    look(&directory, "ca.pem", |ca| {
        assert!(ca.is_ca());
        assert_eq!(ca.version, x509_parser::x509::X509Version::V3);
    });
    look(&directory, "site-a.pem", |certificate| {
        let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert_eq!(name, "SITE-A");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert!(!certificate.is_ca());
        assert_eq!(certificate.version, x509_parser::x509::X509Version::V3);
    });
    look(&directory, "kme-a1.pem", |certificate| {
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
    });
}

#[test]
fn names_are_free_and_are_added_under_the_ca_that_is_there() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path();
    let files = made(directory, &["--kme", "kme-x=10.1.0.5,fd00::5,x.example", "--sae", "Büro 2/b"]);
    assert_eq!(files, ["ca.pem", "ca.key", "kme-x.pem", "kme-x.key", "b-ro-2-b.pem", "b-ro-2-b.key"]);
    assert_eq!(
        names(directory, "kme-x.pem"),
        ["kme-x", "127.0.0.1", "::1", "10.1.0.5", "fd00::5", "x.example"]
    );
    let ca = fs::read(directory.join("ca.pem")).unwrap();
    assert_eq!(made(directory, &["--sae", "SITE-C", "--days", "0"]), ["site-c.pem", "site-c.key"]);
    assert_eq!(fs::read(directory.join("ca.pem")).unwrap(), ca);
    look(directory, "site-c.pem", |certificate| assert!(!certificate.validity().is_valid()));
    look(directory, "b-ro-2-b.pem", |certificate| assert!(certificate.validity().is_valid()));
}

#[test]
fn nothing_is_overwritten_without_force() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path();
    made(directory, &[]);
    let read = |name: &str| fs::read(directory.join(name)).unwrap();
    let before = (read("ca.key"), read("site-a.key"));
    let message = refused(directory, &[], 1);
    assert!(message.contains("kme-a1.pem exists"), "{message}");
    // If one of the files exists, none of the others is written.
    refused(directory, &["--sae", "NEW", "--sae", "SITE-A"], 1);
    assert!(!directory.join("new.pem").exists());
    assert_eq!((read("ca.key"), read("site-a.key")), before);
    made(directory, &["--force"]);
    assert_ne!(read("ca.key"), before.0);
    assert_ne!(read("site-a.key"), before.1);

    fs::remove_file(directory.join("ca.key")).unwrap();
    let message = refused(directory, &["--sae", "NEW"], 1);
    assert!(message.contains("ca.pem exists without") && message.contains("ca.key"), "{message}");
}

#[test]
fn names_that_cannot_be_are_refused_before_anything_is_written() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path().join("lab");
    for (words, code, says) in [
        (&["--sae", "SITE-A", "--sae", "site a"][..], 1, "site-a.pem"),
        (&["--sae", "CA"], 1, "ca.pem"),
        (&["--kme", "kmé"], 1, "kmé"),
        (&["--ip", "kme-a1=kme.example"], 2, "--dns"),
        (&["--dns", "kme-a1=10.0.0.1"], 2, "--ip"),
        (&["--ip", "10.0.0.1"], 2, "no \"=\""),
        (&["--ip", "kme-z=10.0.0.1"], 2, "kme-z"),
    ] {
        let message = refused(&directory, words, code);
        assert!(message.contains(says), "{words:?}: {message}");
    }
    assert!(!directory.exists());
}
