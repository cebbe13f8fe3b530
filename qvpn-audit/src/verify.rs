//! Verifies a log: finds the first line that was changed, removed, inserted or moved.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use qvpn_secret::with_scrubbed_stack;

use crate::line::{self, Hash, MAX_LINE, Parsed};
use crate::seal::{SealKey, VerificationKey};

/// A larger jump of line numbers is taken for a changed number; to step over it would take minutes.
const MAX_JUMP: u64 = 50_000_000;

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The line is not as it was written.
    Changed,
    /// It is not the one that was written after the line before. Only a log that is checked without its key
    /// can't say which of the two was changed.
    Unchained,
    /// These lines are not there, the last one included.
    Missing(u64, u64),
    /// The line stands before another one that was written earlier.
    Reordered,
    /// The line was written earlier; here it is a copy.
    Repeated,
    /// The line has no end.
    Cut,
    /// The lines from this number on are not there: the machine's key is at the second number.
    Truncated(u64, u64),
}

/// The first thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The line in the file, from 1.
    pub at: u64,
    /// The line's number in the log, if it can be read.
    pub seq: Option<u64>,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seq = self.seq.map_or_else(String::new, |seq| format!("number {seq} "));
        write!(f, "{}:{}: ", self.file.display(), self.at)?;
        match &self.fault {
            Fault::Changed => write!(f, "changed: line {seq}is not as the daemon wrote it"),
            Fault::Unchained => write!(f, "changed: line {seq}does not belong to the line before it"),
            Fault::Missing(from, to) if from == to => write!(f, "missing: line number {from} is not there"),
            Fault::Missing(from, to) => write!(f, "missing: lines number {from} to {to} are not there"),
            Fault::Reordered => write!(f, "moved: line {seq}stands before an earlier one"),
            Fault::Repeated => {
                write!(f, "repeated: line {seq}is a copy of an earlier one, or was moved here")
            }
            Fault::Cut => write!(f, "cut: the last line has no end"),
            Fault::Truncated(from, next) => {
                write!(f, "truncated: lines number {from} to {} are not there", next.saturating_sub(1))
            }
        }
    }
}

/// Why verification ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The log is not as it was written.
    #[error("{0}")]
    Found(Finding),
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The last line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastLine {
    /// Its number.
    pub seq: u64,
    /// Its time, as it is written there.
    pub time: String,
    /// What it records.
    pub event: String,
}

/// A log in which nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many lines were checked.
    pub lines: u64,
    /// The last of them.
    pub last: Option<LastLine>,
}

/// Verifies the log in `files`, its parts, in any order. Without `key` only the chain of hashes is checked,
/// which anybody can make again. Lines before `first` may be elsewhere. `next` is the number of the next
/// line, if the machine's own key file says it.
///
/// # Errors
/// The first thing that is wrong, or a file that can't be read.
pub fn verify(
    files: &[PathBuf],
    key: Option<&VerificationKey>,
    first: u64,
    next: Option<u64>,
) -> Result<Report, VerifyError> {
    with_scrubbed_stack(|| {
        let parts = in_order(files)?;
        let key = key.map(|key| key.first().after(first));
        let mut check = Check { expected: first, prev: None, key, report: Report { lines: 0, last: None } };
        if first == 0 {
            check.prev = Some([0; 32]);
        }
        for part in &parts {
            check.part(part, &parts)?;
        }
        let end = parts.last().cloned().unwrap_or_default();
        match next {
            Some(next) if next > check.expected => {
                let fault = Fault::Truncated(check.expected, next);
                let at = lines_of(&end).map_or(0, |lines| lines.count() as u64) + 1;
                Err(VerifyError::Found(Finding { file: end, at, seq: None, fault }))
            }
            _ => Ok(check.report),
        }
    })
}

struct Check {
    /// The number of the line that must come next.
    expected: u64,
    /// The hash of the line before; unknown at the start of a later part.
    prev: Option<Hash>,
    /// The key of line `expected`.
    key: Option<SealKey>,
    report: Report,
}

impl Check {
    fn part(&mut self, file: &Path, all: &[PathBuf]) -> Result<(), VerifyError> {
        for (at, bytes) in (1..).zip(lines_of(file)?) {
            let bytes = bytes.map_err(|source| VerifyError::Io { path: file.to_owned(), source })?;
            let found = |seq, fault| {
                let file = file.to_owned();
                VerifyError::Found(Finding { file, at, seq, fault })
            };
            let Some(line) = bytes.strip_suffix(b"\n") else { return Err(found(None, Fault::Cut)) };
            let Some(parsed) = Parsed::of(line) else { return Err(found(None, Fault::Changed)) };
            self.line(line, &parsed, all).map_err(|fault| found(Some(parsed.seq), fault))?;
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], parsed: &Parsed<'_>, all: &[PathBuf]) -> Result<(), Fault> {
        if parsed.seq != self.expected {
            return Err(self.misplaced(parsed, all));
        }
        if let Some(key) = &self.key
            && !parsed.is_sealed_with(key)
        {
            return Err(Fault::Changed);
        }
        if self.prev.is_some_and(|prev| prev != parsed.prev) {
            return Err(Fault::Unchained);
        }
        self.prev = Some(line::hash(line));
        self.key = self.key.take().map(|key| key.next());
        self.expected += 1;
        self.report.lines += 1;
        let last = LastLine { seq: parsed.seq, time: parsed.field("time"), event: parsed.field("event") };
        self.report.last = Some(last);
        Ok(())
    }

    /// Why a line with another number stands where the expected one belongs.
    fn misplaced(&self, parsed: &Parsed<'_>, all: &[PathBuf]) -> Fault {
        let Some(jump) = parsed.seq.checked_sub(self.expected) else { return Fault::Repeated };
        if jump > MAX_JUMP {
            return Fault::Changed;
        }
        if self.key.as_ref().is_some_and(|key| !parsed.is_sealed_with(&key.duplicate().after(jump))) {
            return Fault::Changed;
        }
        let elsewhere = all.iter().filter_map(|file| lines_of(file).ok()).flatten().any(|line| {
            line.is_ok_and(|line| Parsed::of(line.trim_ascii_end()).is_some_and(|l| l.seq == self.expected))
        });
        match elsewhere {
            true => Fault::Reordered,
            false => Fault::Missing(self.expected, parsed.seq - 1),
        }
    }
}

/// The files in the order of their first lines. One whose first line can't be read comes last.
fn in_order(files: &[PathBuf]) -> Result<Vec<PathBuf>, VerifyError> {
    let mut order = Vec::new();
    for file in files {
        let first =
            lines_of(file)?.next().and_then(|line| Some(Parsed::of(line.ok()?.trim_ascii_end())?.seq));
        order.push((first.unwrap_or(u64::MAX), file.clone()));
    }
    order.sort_by_key(|(first, _)| *first);
    Ok(order.into_iter().map(|(_, file)| file).collect())
}

/// The lines of a file with their line feeds. A longer one than [`MAX_LINE`] comes in pieces, which are no
/// lines of a log.
fn lines_of(file: &Path) -> Result<impl Iterator<Item = io::Result<Vec<u8>>> + use<>, VerifyError> {
    let open = File::open(file).map_err(|source| VerifyError::Io { path: file.to_owned(), source })?;
    let mut reader = BufReader::new(open);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        match reader.by_ref().take(most).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    }))
}

#[cfg(test)]
mod tests;
