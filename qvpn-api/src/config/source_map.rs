//! Which lines of a joined config come from which file.

use std::path::{Path, PathBuf};

/// Begins a line before the text of an included file.
const MARK: &str = "#: included file: ";

/// The files whose texts follow the config's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SourceMap {
    /// Each file with the number of its first line in the joined text.
    files: Vec<(usize, PathBuf)>,
}

impl SourceMap {
    /// The map of a text that was joined before.
    pub(super) fn of(text: &str) -> Self {
        let marks = (2..).zip(text.lines());
        let files = marks.filter_map(|(next, line)| Some((next, line.strip_prefix(MARK)?.into()))).collect();
        Self { files }
    }

    /// Adds the text of a file to `text`.
    pub(super) fn append(&mut self, text: &mut String, file: &Path, included: &str) {
        end_line(text);
        *text += &format!("{MARK}{}\n", file.display());
        self.files.push((text.lines().count() + 1, file.to_owned()));
        text.push_str(included);
        end_line(text);
    }

    /// The included file of a line, and the line's number there; `None` for the config's own lines.
    pub(super) fn locate(&self, line: usize) -> Option<(&Path, usize)> {
        let (first, file) = self.files.iter().rev().find(|(first, _)| *first <= line)?;
        Some((file, line - first + 1))
    }
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}
