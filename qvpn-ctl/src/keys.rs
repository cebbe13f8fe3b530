//! Keys from and to the standard streams, as `wg` does it: secrets stay in locked memory and are written straight out.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;

use getrandom::SysRng;
use nix::sys::stat::{Mode, fstat};
use qvpn_identity::{IdentityError, Psk, PublicIdentity, SecretIdentity};
use qvpn_secret::SecretBuf;
use rand_core::UnwrapErr;

use crate::Failure;

/// The longest key text, with white space to spare.
const MOST: usize = 4096;

pub(crate) fn genkey() -> Result<(), Failure> {
    warn_if_readable();
    let key = SecretIdentity::generate(&mut UnwrapErr(SysRng));
    print_secret(&key.to_text())
}

pub(crate) fn genpsk() -> Result<(), Failure> {
    warn_if_readable();
    let psk = Psk::generate(&mut UnwrapErr(SysRng));
    print_secret(&psk.to_text())
}

pub(crate) fn pubkey() -> Result<(), Failure> {
    let input = read_input()?;
    let key = SecretIdentity::from_text(text_of(&input)?).map_err(explain)?;
    print(&key.public().to_string())
}

pub(crate) fn fingerprint() -> Result<(), Failure> {
    let input = read_input()?;
    let text = text_of(&input)?;
    let public = match text.parse::<PublicIdentity>() {
        Ok(public) => public,
        Err(IdentityError::WrongKind { found: "secret key", .. }) => {
            *SecretIdentity::from_text(text).map_err(explain)?.public()
        }
        Err(error) => return Err(explain(error)),
    };
    print(&public.fingerprint())
}

fn explain(error: IdentityError) -> Failure {
    Failure::new(format!("qvpn-ctl: standard input: {error}"))
}

fn text_of(input: &SecretBuf) -> Result<&str, Failure> {
    std::str::from_utf8(input.expose())
        .map_err(|_| Failure::new("qvpn-ctl: standard input is not text; give it the key's line"))
}

/// Reads standard input into locked memory.
fn read_input() -> Result<SecretBuf, Failure> {
    let mut buffer = SecretBuf::zeroed(MOST + 1);
    let mut stdin = std::fs::File::from(
        std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Failure::new(format!("qvpn-ctl: standard input: {e}")))?,
    );
    let mut len = 0;
    loop {
        let read = stdin
            .read(&mut buffer.expose_mut()[len..])
            .map_err(|e| Failure::new(format!("qvpn-ctl: standard input: {e}")))?;
        len += read;
        if len > MOST {
            return Err(Failure::new(
                "qvpn-ctl: standard input is longer than any key; give it the key's line alone",
            ));
        }
        if read == 0 {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

/// Writes a secret and a line break past the buffers of the standard library.
fn print_secret(text: &SecretBuf) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("qvpn-ctl: cannot write the key: {e}"));
    let mut stdout = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    stdout.write_all(text.expose()).and_then(|()| stdout.write_all(b"\n")).map_err(failed)
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(format!("qvpn-ctl: cannot write: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// As `wg genkey`: a file that others can read is no place for a key.
fn warn_if_readable() {
    let stdout = std::io::stdout();
    let open = !stdout.is_terminal()
        && fstat(stdout.as_fd()).is_ok_and(|s| {
            let mode = Mode::from_bits_truncate(s.st_mode);
            s.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG && mode.intersects(Mode::S_IRWXO)
        });
    if open {
        eprintln!(
            "Warning: writing a key to a file that others can read; run `umask 077` first, or `chmod 600` the file."
        );
    }
}
