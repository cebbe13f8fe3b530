//! Writes to systemd's journal by its native protocol, so that each line has fields, for example
//! `QVPN_PEER=site-b`. A datagram holds `NAME=value` lines; a value with line feeds has its length before it
//! (systemd's "Native Journal Protocol").

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";

pub(crate) struct Journal(UnixDatagram);

impl Journal {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A journal that hangs must not block the daemon.
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Writes one line with its fields.
    ///
    /// # Errors
    /// If the journal accepts nothing at the moment.
    pub(crate) fn write(&self, fields: &[(&str, &str)]) -> io::Result<()> {
        self.0.send(&datagram(fields)).map(drop)
    }
}

fn datagram(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            bytes.push(b'\n');
            bytes.extend_from_slice(&u64::try_from(value.len()).unwrap_or(0).to_le_bytes());
        } else {
            bytes.push(b'=');
        }
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

/// Whether standard error is the journal that `stream`, the value of `$JOURNAL_STREAM`, identifies. The
/// variable alone is not enough: it stays set in programs whose output was redirected.
pub(crate) fn is_stderr(stream: &str) -> bool {
    let Ok(file) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_reach_the_journal_as_it_wants_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal_end = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        journal.write(&[("MESSAGE", "büro: up"), ("QVPN_REASON", "a\nb"), ("PRIORITY", "6")]).unwrap();
        let mut buffer = [0; 256];
        let length = journal_end.recv(&mut buffer).unwrap();
        let expected = "MESSAGE=büro: up\nQVPN_REASON\n\u{3}\0\0\0\0\0\0\0a\nb\nPRIORITY=6\n";
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), expected);
    }

    #[test]
    fn another_stream_is_not_ours() {
        assert!(!is_stderr("1:1") && !is_stderr("") && !is_stderr("x"));
    }
}
