//! Writes the log. A line is on the disk before its key is erased, so a crash loses no key that a line needs.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use qvpn_secret::with_scrubbed_stack;

use crate::error::AuditError;
use crate::key_file::{KeyFile, Position};
use crate::line::{self, MAX_LINE, Parsed};
use crate::paths::AuditPaths;
use crate::seal::VerificationKey;

/// A log of this size is kept under another name, and a new one begins.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// The owner and the daemon's group may read it.
const MODE: u32 = 0o640;
/// After a crash at most this many lines are ahead of the key.
const MAX_AHEAD: u64 = 10_000;

/// What was at the end of the log when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The line that was written last.
    Expected,
    /// That line, and after it these bytes of a line that a crash cut. They were removed.
    Cut(u64),
    /// Another line: somebody changed the log. Verification says where.
    Changed,
    /// No line, though there were some. They may be in parts that were moved away.
    Missing,
}

/// The open log.
pub struct AuditLog {
    paths: AuditPaths,
    file: File,
    /// The number of bytes of whole lines.
    len: u64,
    /// The number of the first line in this file, once it has one.
    first: Option<u64>,
    keys: KeyFile,
    position: Position,
    max_bytes: u64,
}

impl AuditLog {
    /// Sets a log up: makes the key and an empty log. Returns also the key that verifies it, which is stored
    /// nowhere.
    ///
    /// # Errors
    /// If there is one already, or the files can't be made.
    pub fn set_up(paths: AuditPaths) -> Result<(Self, VerificationKey), AuditError> {
        with_scrubbed_stack(|| {
            if std::fs::metadata(&paths.log).is_ok_and(|meta| meta.len() > 0) {
                return Err(AuditError::SetUpAlready(paths.log));
            }
            let (keys, position) = KeyFile::create(&paths.key)?;
            let verification = VerificationKey::of(&position.key);
            Ok((Self::with(paths, keys, position)?.0, verification))
        })
    }

    /// Opens the log and locks it, and says what was at its end.
    ///
    /// # Errors
    /// If none was set up, another process writes it, or the files can't be used.
    pub fn open(paths: AuditPaths) -> Result<(Self, Tail), AuditError> {
        with_scrubbed_stack(|| {
            let (keys, position) = KeyFile::open(&paths.key)?;
            Self::with(paths, keys, position)
        })
    }

    fn with(paths: AuditPaths, keys: KeyFile, position: Position) -> Result<(Self, Tail), AuditError> {
        let file = open(&paths.log)?;
        let mut log = Self { paths, file, len: 0, first: None, keys, position, max_bytes: MAX_LOG_BYTES };
        let tail = log.find_end()?;
        Ok((log, tail))
    }

    /// The number of the next line.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.position.seq
    }

    /// Whether the key is still the one at its path. After a new log was set up, this one is not.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.keys.is_at_its_path()
    }

    /// The number of the next line of a log that another process may write, from its key's file; `None` if
    /// that has no whole key at the moment.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn next_seq_of(paths: &AuditPaths) -> io::Result<Option<u64>> {
        KeyFile::next_seq(&paths.key)
    }

    /// Writes a line with the fields of `record`, a JSON object, and waits until it is on the disk.
    ///
    /// # Errors
    /// If it can't be written, as on a full disk. The log is as before then.
    pub fn append(&mut self, record: &str) -> Result<(), AuditError> {
        with_scrubbed_stack(|| self.append_line(record))
    }

    fn append_line(&mut self, record: &str) -> Result<(), AuditError> {
        self.follow_rotation()?;
        let seq = self.position.seq;
        let line = line::sealed(seq, &self.position.prev, record, &self.position.key);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What stays of it would be taken for a line that a crash cut.
            let _ = self.file.set_len(self.len);
            return Err(AuditError::io(&self.paths.log)(error));
        }
        self.len += line.len() as u64;
        self.first.get_or_insert(seq);
        let prev = line::hash(line.trim_end_matches('\n').as_bytes());
        self.position = Position { seq: seq + 1, prev, key: self.position.key.next() };
        self.keys.advance(&self.position)
    }

    /// Continues in a new file if the log is full, or somebody moved it away.
    fn follow_rotation(&mut self) -> Result<(), AuditError> {
        let failed = AuditError::io(&self.paths.log);
        let ours = self.file.metadata().map_err(&failed)?;
        let mut same = std::fs::metadata(&self.paths.log)
            .is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev());
        // Another program may have written to the file or cut it. What it did stays, so that it is found.
        self.len = ours.len();
        if same
            && self.len >= self.max_bytes
            && let Some(first) = self.first
        {
            std::fs::rename(&self.paths.log, self.paths.part(first)).map_err(&failed)?;
            same = false;
        }
        if !same {
            self.file = open(&self.paths.log)?;
            self.len = self.file.metadata().map_err(&failed)?.len();
            self.first = None;
        }
        Ok(())
    }

    /// Finds the last whole line, removes what a crash left behind it, and takes note of lines that are ahead
    /// of the key.
    fn find_end(&mut self) -> Result<Tail, AuditError> {
        let failed = AuditError::io(&self.paths.log);
        let size = self.file.metadata().map_err(&failed)?.len();
        let end = read_end(&mut self.file, size).map_err(&failed)?;
        let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let cut = (end.len() - whole) as u64;
        self.len = size - cut;
        if cut > 0 {
            self.file.set_len(self.len).and_then(|()| self.file.sync_data()).map_err(&failed)?;
        }
        let lines = &end[..whole];
        let last = lines.strip_suffix(b"\n").and_then(|rest| rest.rsplit(|byte| *byte == b'\n').next());
        let as_expected = if cut > 0 { Tail::Cut(cut) } else { Tail::Expected };
        let Some(last) = last else {
            // The crash may have come right after the former file was renamed.
            let rotated = self.paths.parts().is_ok_and(|parts| parts.iter().any(|p| *p != self.paths.log));
            return Ok(if self.position.seq == 0 || rotated { as_expected } else { Tail::Missing });
        };
        self.first = first_line(&self.paths.log).ok().flatten();
        if line::hash(last) == self.position.prev {
            return Ok(as_expected);
        }
        let Some(parsed) = Parsed::of(last) else { return Ok(Tail::Changed) };
        let ahead = parsed.seq.checked_sub(self.position.seq).filter(|n| *n <= MAX_AHEAD);
        let Some(ahead) = ahead else { return Ok(Tail::Changed) };
        // Lines that were written while the key could not be.
        let key = self.position.key.duplicate().after(ahead);
        if !parsed.is_sealed_with(&key) {
            return Ok(Tail::Changed);
        }
        self.position = Position { seq: parsed.seq + 1, prev: line::hash(last), key: key.next() };
        self.keys.advance(&self.position)?;
        Ok(as_expected)
    }
}

fn open(path: &Path) -> Result<File, AuditError> {
    let failed = AuditError::io(path);
    let new = !path.exists();
    let mut options = OpenOptions::new();
    let file = options.read(true).append(true).create(true).mode(MODE).open(path).map_err(&failed)?;
    if new {
        // The umask may have cut the mode.
        file.set_permissions(Permissions::from_mode(MODE)).map_err(&failed)?;
    }
    Ok(file)
}

/// The end of the file, with at least one whole line in it.
fn read_end(file: &mut File, size: u64) -> io::Result<Vec<u8>> {
    let from = size.saturating_sub(MAX_LINE as u64);
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut end)?;
    Ok(end)
}

/// The number of the first line of a log.
fn first_line(path: &Path) -> io::Result<Option<u64>> {
    let mut head = vec![0; 64];
    let n = File::open(path)?.read(&mut head)?;
    let text = String::from_utf8_lossy(&head[..n]).into_owned();
    let number = text.strip_prefix("{\"seq\":").and_then(|rest| rest.split(',').next()?.parse().ok());
    Ok(number)
}

#[cfg(test)]
mod tests;
