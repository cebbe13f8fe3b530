//! Reads certificates, keys and PINs from files, and says what is wrong with one that can't be used.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// In bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// What is wrong with a file or token, and what to do.
#[derive(Debug, Clone)]
pub(crate) struct FileError {
    pub(crate) what: String,
    pub(crate) advice: String,
}

pub(crate) fn read_certificates(role: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = read_file(role, path, false, "a PEM file")?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|e| FileError {
            what: format!("{role} {} isn't a readable PEM file: {e}", path.display()),
            advice: "convert it: openssl x509 -in FILE -inform DER -out FILE.pem".to_owned(),
        })?;
    match certificates.is_empty() {
        true if bytes.starts_with(&[0x30, 0x82]) => Err(FileError {
            what: format!("{role} {} is in DER form, not PEM", path.display()),
            advice: format!(
                "convert it: openssl x509 -inform DER -in {} -out FILE.pem, and name that file",
                path.display()
            ),
        }),
        true => Err(no_certificate(role, path)),
        false => Ok(certificates),
    }
}

pub(crate) fn no_certificate(role: &str, path: &Path) -> FileError {
    FileError {
        what: format!("{role} {} holds no certificate", path.display()),
        advice: "it needs a PEM block that begins with -----BEGIN CERTIFICATE-----".to_owned(),
    }
}

pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let bytes = read_file("key_file", path, true, "a PEM file")?;
    if bytes.windows(10).any(|w| w == b" ENCRYPTED") || bytes.windows(10).any(|w| w == b",ENCRYPTED") {
        return Err(FileError {
            what: format!("key_file {} is protected by a passphrase", path.display()),
            advice: "remove it with: openssl pkey -in FILE -out FILE.new, and keep the file's mode at 0600"
                .to_owned(),
        });
    }
    // The parser's error is not used, since it could quote the secret file.
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| FileError {
        what: format!("key_file {} holds no private key in PEM", path.display()),
        advice: "it needs a PEM block that begins with -----BEGIN PRIVATE KEY-----".to_owned(),
    })
}

/// Reads a whole file into memory that is erased when dropped. A secret file must not be accessible to
/// others. `wanted` says what the file should be.
pub(crate) fn read_file(
    role: &str,
    path: &Path,
    secret: bool,
    wanted: &str,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let failed = |e: std::io::Error| FileError {
        what: format!("{role} {} can't be read: {e}", path.display()),
        advice: "check the path, and that the user of the daemon may read it".to_owned(),
    };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(FileError {
            what: format!("{role} {} isn't a regular file of at most {MAX_FILE} bytes", path.display()),
            advice: format!("name {wanted}"),
        });
    }
    if secret && meta.mode() & 0o027 != 0 {
        return Err(FileError {
            what: format!(
                "{role} {} has mode {:04o}, so that others can reach it",
                path.display(),
                meta.mode() & 0o7777
            ),
            advice: format!(
                "run: chmod 0600 {} (0640 if the daemon reads it as a member of its group)",
                path.display()
            ),
        });
    }
    // Allocate the whole size at once: a buffer that grows leaves copies behind.
    let room = usize::try_from(meta.len()).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
