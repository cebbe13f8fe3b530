//! The errors of a config: for each its position, what is wrong, and what to write instead.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::source_map::SourceMap;

/// The maximum number of errors that are kept: a file that isn't a config at all has one in each line.
const MAX_ERRORS: usize = 100;
/// The maximum number of errors that are collected before they are sorted.
const MAX_COLLECTED_ERRORS: usize = 10_000;

/// A position in a text. Line and column count from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// One error of a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The config file.
    pub path: PathBuf,
    /// The position of the error; absent if it concerns the file as a whole.
    pub position: Option<Position>,
    /// What is wrong.
    pub what: String,
    /// What to write or do instead.
    pub fix: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}; {}", self.what, self.fix)
    }
}

/// All errors of a config, at least one, in the order of their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    more: usize,
}

impl ConfigErrors {
    /// The errors, at most the first 100.
    #[must_use]
    pub fn list(&self) -> &[ConfigError] {
        &self.errors
    }

    /// The number of errors that were left out.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.more
    }

    /// Returns these errors and those of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.errors.extend(other.errors);
        self.errors.sort_by(|a, b| (&a.path, a.position).cmp(&(&b.path, b.position)));
        self.more += other.more + self.errors.len().saturating_sub(MAX_ERRORS);
        self.errors.truncate(MAX_ERRORS);
        self
    }

    /// An error about the file as a whole.
    pub(super) fn of_file(path: &Path, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            errors: vec![ConfigError {
                path: path.to_owned(),
                position: None,
                what: what.into(),
                fix: fix.into(),
            }],
            more: 0,
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        match self.more {
            0 => Ok(()),
            n => write!(f, "\n… and {n} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects the errors of one config.
pub(super) struct Sink<'t> {
    path: &'t Path,
    /// The included files that the text was joined from.
    files: SourceMap,
    lines: Lines,
    errors: Vec<ConfigError>,
    /// Lines with syntax errors; what was read from them is unreliable.
    broken: BTreeSet<usize>,
    /// The number of errors that were not kept.
    dropped: usize,
    /// The text has syntax errors, so a key that seems to be missing may be in a part that couldn't be read.
    pub(super) incomplete: bool,
}

impl<'t> Sink<'t> {
    pub(super) fn new(path: &'t Path, text: &str) -> Self {
        Self {
            path,
            files: SourceMap::default(),
            lines: Lines::of(text),
            errors: Vec::new(),
            broken: BTreeSet::new(),
            dropped: 0,
            incomplete: false,
        }
    }

    /// As [`new`](Self::new), for a text that was joined from several files.
    pub(super) fn joined(path: &'t Path, text: &str, files: SourceMap) -> Self {
        Self { files, ..Self::new(path, text) }
    }

    /// Names the line of `at`, and its file if it was included.
    pub(super) fn line(&self, at: Position) -> String {
        match self.files.locate(at.line) {
            Some((file, line)) => format!("line {line} of {}", file.display()),
            None => format!("line {}", at.line),
        }
    }

    /// Returns the position of the byte at `offset`.
    pub(super) fn position(&self, text: &str, offset: usize) -> Position {
        self.lines.position(text, offset)
    }

    /// Adds a syntax error; later errors of the same line are ignored.
    pub(super) fn syntax(&mut self, at: Position, what: impl Into<String>, fix: impl Into<String>) {
        self.incomplete = true;
        if self.broken.insert(at.line) {
            self.push(at, &what.into(), &fix.into());
        }
    }

    /// Ignores errors in these lines, because the header of their section could not be read.
    pub(super) fn skip(&mut self, lines: impl Iterator<Item = usize>) {
        self.broken.extend(lines);
    }

    pub(super) fn add(&mut self, at: Position, what: impl Into<String>, fix: impl Into<String>) {
        if !self.broken.contains(&at.line) {
            self.push(at, &what.into(), &fix.into());
        }
    }

    fn push(&mut self, at: Position, what: &str, fix: &str) {
        if self.errors.len() >= MAX_COLLECTED_ERRORS {
            self.dropped += 1;
            return;
        }
        self.errors.push(ConfigError {
            path: self.path.to_owned(),
            position: Some(at),
            what: one_line(what),
            fix: one_line(fix),
        });
    }

    /// Adds an error, unless syntax errors may be its cause.
    pub(super) fn missing(&mut self, at: Position, what: impl Into<String>, fix: impl Into<String>) {
        if !self.incomplete {
            self.add(at, what, fix);
        }
    }

    /// Returns all errors, if there are any.
    pub(super) fn finish(mut self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() {
            return Ok(());
        }
        self.errors.sort_by_key(|e| e.position);
        self.errors.dedup();
        let more = self.dropped + self.errors.len().saturating_sub(MAX_ERRORS);
        self.errors.truncate(MAX_ERRORS);
        for error in &mut self.errors {
            let Some(at) = &mut error.position else { continue };
            if let Some((file, line)) = self.files.locate(at.line) {
                (error.path, at.line) = (file.to_owned(), line);
            }
        }
        Err(ConfigErrors { errors: self.errors, more })
    }
}

/// The offset of the start of each line.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect())
    }

    fn position(&self, text: &str, offset: usize) -> Position {
        let offset = (0..=offset.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let line = self.0.partition_point(|start| *start <= offset);
        let start = self.0.get(line.saturating_sub(1)).copied().unwrap_or(0);
        Position { line, column: text[start..offset].chars().count() + 1 }
    }
}

/// Escapes control characters, since a message quotes the file.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
