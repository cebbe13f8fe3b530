//! What is wrong with a config: for each error the place, what is wrong, and what to write instead.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Errors that are kept; a file that isn't a config at all would otherwise give one for each of its lines.
const MOST: usize = 100;
/// Errors that are collected before they are sorted.
const MOST_COLLECTED: usize = 10_000;

/// A place in a text, both from 1; the column counts characters.
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
    /// Where in it; absent when the file as a whole is meant.
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

/// All errors of a config, in the order of their places; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    more: usize,
}

impl ConfigErrors {
    /// The errors; of a file with very many, the first 100.
    #[must_use]
    pub fn list(&self) -> &[ConfigError] {
        &self.errors
    }

    /// How many were left out.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.more
    }

    /// These errors and those of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.errors.extend(other.errors);
        self.errors.sort_by_key(|e| e.position);
        self.more += other.more + self.errors.len().saturating_sub(MOST);
        self.errors.truncate(MOST);
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
    lines: Lines,
    errors: Vec<ConfigError>,
    /// Lines with errors of syntax; what was read of them is guesswork.
    broken: BTreeSet<usize>,
    /// Errors that were not kept.
    dropped: usize,
    /// The text has errors of syntax, so what seems to be missing may stand in a part that couldn't be read.
    pub(super) incomplete: bool,
}

impl<'t> Sink<'t> {
    pub(super) fn new(path: &'t Path, text: &str) -> Self {
        Self {
            path,
            lines: Lines::of(text),
            errors: Vec::new(),
            broken: BTreeSet::new(),
            dropped: 0,
            incomplete: false,
        }
    }

    /// The place of the byte at `offset`.
    pub(super) fn position(&self, text: &str, offset: usize) -> Position {
        self.lines.position(text, offset)
    }

    /// An error of syntax: nothing else is said about its line.
    pub(super) fn syntax(&mut self, at: Position, what: impl Into<String>, fix: impl Into<String>) {
        self.incomplete = true;
        if self.broken.insert(at.line) {
            self.push(at, &what.into(), &fix.into());
        }
    }

    /// Nothing is said about these lines, since their section's header could not be read.
    pub(super) fn skip(&mut self, lines: impl Iterator<Item = usize>) {
        self.broken.extend(lines);
    }

    pub(super) fn add(&mut self, at: Position, what: impl Into<String>, fix: impl Into<String>) {
        if !self.broken.contains(&at.line) {
            self.push(at, &what.into(), &fix.into());
        }
    }

    fn push(&mut self, at: Position, what: &str, fix: &str) {
        if self.errors.len() >= MOST_COLLECTED {
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

    /// An error that a part which couldn't be read might explain.
    pub(super) fn missing(&mut self, at: Position, what: impl Into<String>, fix: impl Into<String>) {
        if !self.incomplete {
            self.add(at, what, fix);
        }
    }

    /// Nothing, or all errors.
    pub(super) fn finish(mut self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() {
            return Ok(());
        }
        self.errors.sort_by_key(|e| e.position);
        self.errors.dedup();
        let more = self.dropped + self.errors.len().saturating_sub(MOST);
        self.errors.truncate(MOST);
        Err(ConfigErrors { errors: self.errors, more })
    }
}

/// Where each line begins.
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

/// A message quotes what the file says, which may hold anything.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
