//! Tables for people. On a terminal that is too narrow for the columns, each row becomes several lines.

use crate::output::{Paint, Tone};
use crate::text::{pad, width};

/// A cell's text and colour.
pub(crate) type Cell = (String, Tone);

/// The spaces between two columns.
const COLUMN_GAP: usize = 2;

/// A table with a heading; each row has as many cells as the heading.
pub(crate) struct Table<'a> {
    pub(crate) head: &'a [&'a str],
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Table<'_> {
    /// Returns the table's text. The last column is not padded.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let columns: Vec<usize> = (0..self.head.len())
            .map(|i| {
                let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|(text, _)| width(text));
                cells.chain(self.head.get(i).map(|head| width(head))).max().unwrap_or(0)
            })
            .collect();
        let all = columns.iter().sum::<usize>() + COLUMN_GAP * columns.len().saturating_sub(1);
        match paint.width {
            Some(limit) if all > limit => self.stacked(paint),
            _ => self.in_columns(paint, &columns),
        }
    }

    fn in_columns(&self, paint: Paint, columns: &[usize]) -> String {
        let head = self.head.iter().map(|text| ((*text).to_owned(), Tone::Head)).collect();
        let mut lines = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            for (i, (text, tone)) in row.iter().enumerate() {
                let last = i + 1 == row.len();
                let fill = if last {
                    String::new()
                } else {
                    pad(text, columns.get(i).copied().unwrap_or(0) + COLUMN_GAP)
                };
                lines += &format!("{}{fill}", paint.text(*tone, text));
            }
            lines.push('\n');
        }
        lines
    }

    /// Returns each row as several lines: the first cell is the title, and the other cells follow with their
    /// column's name.
    fn stacked(&self, paint: Paint) -> String {
        let mut lines = String::new();
        for row in &self.rows {
            for (i, (text, tone)) in row.iter().enumerate() {
                let (indent, label) = match self.head.get(i) {
                    Some(head) if i > 0 => ("  ", format!("{}: ", head.to_lowercase())),
                    _ => ("", String::new()),
                };
                let tone = if i == 0 { Tone::Head } else { *tone };
                let text = paint.wrapped(tone, text, width(indent) + width(&label), 4);
                lines += &format!("{indent}{label}{text}\n");
            }
        }
        lines
    }
}
