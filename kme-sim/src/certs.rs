//! `kme-sim certs`: a certificate authority for a lab, server certificates for KMEs and client certificates
//! for SAEs. It is not a CA for production: its key is in a file beside the certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

const CA_VALIDITY_DAYS: u32 = 3650;

/// The certificates to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The KMEs that get a server certificate, by name. The certificate has the name, `127.0.0.1` and `::1`,
    /// and these names.
    pub kmes: BTreeMap<String, Vec<SubjectName>>,
    /// The SAE IDs that get a client certificate.
    pub saes: BTreeSet<String>,
    /// Days of validity from now; 0 makes expired certificates.
    pub days: u32,
    /// Make a new CA even if there is one.
    pub force: bool,
}

/// One more name of a KME in its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectName {
    /// An IP address.
    Ip(IpAddr),
    /// A DNS name.
    Dns(String),
}

impl From<&str> for SubjectName {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }
}

/// Why certificates were not made. Nothing was written, unless the disk failed.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file or directory can't be read or written.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file to be written exists already.
    #[error(
        "{path} exists; remove it to make it again, or use --force for a new CA and new certificates",
        path = path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Two names need the same file.
    #[error(
        "two of the names would be written to {file}; choose names that differ in more than case and \
         punctuation"
    )]
    SameFile {
        /// Its name.
        file: String,
    },
    /// There is half of a CA.
    #[error(
        "{found} exists without {missing}; restore the missing file, or use --force for a new CA",
        found = found.display(),
        missing = missing.display()
    )]
    HalfCa {
        /// The existing file.
        found: PathBuf,
        /// The missing file.
        missing: PathBuf,
    },
    /// A name or address does not fit a certificate, or the CA in the directory isn't ours.
    #[error("cannot make the certificate of {name}: {source}")]
    Certificate {
        /// The name of the certificate.
        name: String,
        /// What was wrong.
        source: rcgen::Error,
    },
}

/// Makes the certificates of `request` in `directory`, with the existing CA or a new one. Returns the written
/// files.
///
/// # Errors
/// [`CertsError`]; no existing file is changed unless `force` is set.
pub fn make(directory: &Path, request: &Request) -> Result<Vec<PathBuf>, CertsError> {
    let stems = file_stems(request)?;
    let (ca_cert, ca_key) = (directory.join("ca.pem"), directory.join("ca.key"));
    let reuse = !request.force
        && match (ca_cert.exists(), ca_key.exists()) {
            (true, true) => true,
            (false, false) => false,
            (true, false) => return Err(CertsError::HalfCa { found: ca_cert, missing: ca_key }),
            (false, true) => return Err(CertsError::HalfCa { found: ca_key, missing: ca_cert }),
        };
    if !request.force {
        for path in stems.values().flat_map(|stem| pair(directory, stem)) {
            if path.exists() {
                return Err(CertsError::Exists { path });
            }
        }
    }

    let mut files = Files::default();
    let ca = if reuse { read_ca(&ca_cert, &ca_key)? } else { new_ca(&ca_cert, &ca_key, &mut files)? };
    for (subject, stem) in &stems {
        let params = match subject {
            Subject::Kme(name) => server_params(name, &request.kmes[*name], request.days),
            Subject::Sae(id) => Ok(client_params(id, request.days)),
        };
        let made = params.and_then(|params| {
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &ca)?, key))
        });
        let (certificate, key) =
            made.map_err(|source| CertsError::Certificate { name: subject.name().to_owned(), source })?;
        let [cert_file, key_file] = pair(directory, stem);
        files.add(cert_file, 0o644, certificate.pem());
        files.add(key_file, 0o600, key.serialize_pem());
    }
    files.write(directory)
}

/// The subject of a certificate.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Subject<'a> {
    Kme(&'a str),
    Sae(&'a str),
}

impl Subject<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Kme(name) | Self::Sae(name) => name,
        }
    }
}

/// Returns the file name, without its suffix, of each subject.
fn file_stems(request: &Request) -> Result<BTreeMap<Subject<'_>, String>, CertsError> {
    let kmes = request.kmes.keys().map(|k| Subject::Kme(k));
    let saes = request.saes.iter().map(|s| Subject::Sae(s));
    let mut taken = BTreeSet::from(["ca".to_owned()]);
    let mut stems = BTreeMap::new();
    for subject in kmes.chain(saes) {
        let stem = file_stem(subject.name());
        if !taken.insert(stem.clone()) {
            return Err(CertsError::SameFile { file: format!("{stem}.pem") });
        }
        stems.insert(subject, stem);
    }
    Ok(stems)
}

/// Converts a name to a file name: `SITE-A` becomes `site-a`. Characters that are special to a shell or a
/// file system become dashes.
fn file_stem(name: &str) -> String {
    let keep =
        |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c.to_ascii_lowercase() } else { '-' };
    let stem: String = name.chars().map(keep).collect();
    stem.trim_start_matches('.').to_owned()
}

fn pair(directory: &Path, stem: &str) -> [PathBuf; 2] {
    [directory.join(format!("{stem}.pem")), directory.join(format!("{stem}.key"))]
}

fn new_ca(
    cert_file: &Path,
    key_file: &Path,
    files: &mut Files,
) -> Result<Issuer<'static, KeyPair>, CertsError> {
    let failed = |source| CertsError::Certificate { name: "the CA".to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let params = ca_params();
    files.add(cert_file.to_owned(), 0o644, params.self_signed(&key).map_err(failed)?.pem());
    files.add(key_file.to_owned(), 0o600, key.serialize_pem());
    Ok(Issuer::new(params, key))
}

/// Returns the parameters of a CA's own certificate.
pub(crate) fn ca_params() -> CertificateParams {
    let mut params = params("kme-sim lab CA", CA_VALIDITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    params
}

/// Reads the CA in these two files.
pub(crate) fn read_ca(cert_file: &Path, key_file: &Path) -> Result<Issuer<'static, KeyPair>, CertsError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| CertsError::File {
            what: "read",
            path: path.to_owned(),
            source,
        })
    };
    let failed =
        |source| CertsError::Certificate { name: format!("the CA in {}", cert_file.display()), source };
    let certificate = read(cert_file)?;
    let key = KeyPair::from_pem(&Zeroizing::new(read(key_file)?)).map_err(failed)?;
    Issuer::from_ca_cert_pem(&certificate, key).map_err(failed)
}

pub(crate) fn server_params(
    name: &str,
    names: &[SubjectName],
    days: u32,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(name, days);
    params.subject_alt_names = vec![
        SanType::DnsName(name.try_into()?),
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
    ];
    for name in names {
        params.subject_alt_names.push(match name {
            SubjectName::Ip(ip) => SanType::IpAddress(*ip),
            SubjectName::Dns(dns) => SanType::DnsName(dns.as_str().try_into()?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client_params(id: &str, days: u32) -> CertificateParams {
    let mut params = params(id, days);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn params(common_name: &str, days: u32) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Valid from a day before, for clocks that differ.
    params.not_before = now - Duration::days(1);
    // A second less, so that 0 days means expired.
    params.not_after = now + Duration::days(i64::from(days)) - Duration::SECOND;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Files to be written after all certificates are made.
#[derive(Default)]
struct Files(Vec<(PathBuf, u32, Zeroizing<String>)>);

impl Files {
    fn add(&mut self, path: PathBuf, mode: u32, text: String) {
        self.0.push((path, mode, Zeroizing::new(text)));
    }

    /// Writes each file to a temporary file first, so that no reader sees half a file.
    fn write(self, directory: &Path) -> Result<Vec<PathBuf>, CertsError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| CertsError::File { what, path, source }
        };
        fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
        let mut written = Vec::new();
        for (path, mode, text) in self.0 {
            let mut part = path.clone().into_os_string();
            part.push(".part");
            let part = PathBuf::from(part);
            let _ = fs::remove_file(&part); // of an interrupted run
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part);
            file.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
                .and_then(|()| fs::rename(&part, &path))
                .map_err(failed("write", &path))?;
            written.push(path);
        }
        Ok(written)
    }
}
