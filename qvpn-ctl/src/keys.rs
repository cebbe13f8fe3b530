//! Key commands, from standard input to standard output like those of `wg`. Secrets pass directly between
//! locked memory and the file descriptors, not through the buffers of the standard library, which are not
//! erased.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use getrandom::SysRng;
use getrandom::rand_core::UnwrapErr;
use qvpn_identity::{Psk, PublicIdentity, SecretIdentity};
use qvpn_secret::SecretBuf;

use crate::error::CtlError;
use crate::output;

/// The longest input in bytes; a key has less than 200.
const MAX_INPUT: usize = 4096;

pub(crate) fn genkey() -> Result<(), CtlError> {
    warn_who_can_read("/etc/qvpn/qvpn0.key", "genkey");
    write_secret(&SecretIdentity::generate(&mut randomness()?).to_text())
}

pub(crate) fn genpsk() -> Result<(), CtlError> {
    warn_who_can_read("/etc/qvpn/site-b.psk", "genpsk");
    write_secret(&Psk::generate(&mut randomness()?).to_text())
}

pub(crate) fn pubkey() -> Result<(), CtlError> {
    let input = read_input()?;
    let identity = SecretIdentity::from_text(as_text(&input))?;
    output::print(&format!("{}\n", identity.public()))
}

pub(crate) fn fingerprint() -> Result<(), CtlError> {
    let input = read_input()?;
    let text = as_text(&input);
    let public: PublicIdentity = match SecretIdentity::from_text(text) {
        Ok(identity) => *identity.public(),
        // The error is about a public key, because that is the usual input.
        Err(error) if text.trim_start().starts_with("qvpn1-secret-") => return Err(error.into()),
        Err(_) => text.parse()?,
    };
    output::print(&format!("{}\n", public.fingerprint()))
}

/// Returns the system's random source, after a test that it works.
fn randomness() -> Result<UnwrapErr<SysRng>, CtlError> {
    getrandom::fill(&mut [0u8; 1]).map_err(CtlError::Randomness)?;
    Ok(UnwrapErr(SysRng))
}

pub(crate) fn write_secret(text: &SecretBuf) -> Result<(), CtlError> {
    let out = io::stdout().as_fd().try_clone_to_owned().map_err(CtlError::Output)?;
    let mut out = File::from(out);
    out.write_all(text.expose()).and_then(|()| out.write_all(b"\n")).map_err(CtlError::Output)
}

pub(crate) fn read_input() -> Result<SecretBuf, CtlError> {
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(CtlError::Input)?;
    read_secret(File::from(input))
}

/// Reads a key's text into locked memory.
pub(crate) fn read_secret(mut input: File) -> Result<SecretBuf, CtlError> {
    let mut bytes = SecretBuf::zeroed(MAX_INPUT + 1);
    let mut len = 0;
    while len < bytes.len() {
        match input.read(&mut bytes.expose_mut()[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(CtlError::Input(e)),
        }
    }
    if len > MAX_INPUT {
        return Err(CtlError::InputTooLong);
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Returns the input as text; anything else is refused as a malformed key.
pub(crate) fn as_text(input: &SecretBuf) -> &str {
    std::str::from_utf8(input.expose()).unwrap_or("not text")
}

/// Warns if a secret goes to a screen or to a file that everybody can read.
fn warn_who_can_read(file: &str, command: &str) {
    let advice = format!("better: install -m 0640 -g qvpn /dev/null {file} && qvpn-ctl {command} > {file}");
    if io::stdout().is_terminal() {
        output::note(&format!("qvpn-ctl: warning: the secret is printed on your screen; {advice}"));
        return;
    }
    let meta = io::stdout().as_fd().try_clone_to_owned().and_then(|out| File::from(out).metadata());
    if let Ok(meta) = meta
        && meta.is_file()
        && meta.mode() & 0o007 != 0
    {
        let mode = meta.mode() & 0o777;
        output::note(&format!(
            "qvpn-ctl: warning: the secret is written to a file that everybody can access (mode \
             {mode:04o}); {advice}"
        ));
    }
}
