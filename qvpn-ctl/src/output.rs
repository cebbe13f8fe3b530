//! Prints text: results to standard output, errors to standard error, colour only on a terminal. Text from
//! other machines is escaped first, so that it can't control the terminal.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::CtlError;
use crate::text::wrap;

pub(crate) fn print(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CtlError::Output)
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<(), CtlError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| CtlError::Output(e.into()))?;
    text.push('\n');
    print(&text)
}

/// Prints an error to standard error.
pub(crate) fn print_error(error: &CtlError) {
    // A config's errors begin with the file, like a compiler's, so that an editor can jump to them.
    let prefix =
        if matches!(error, CtlError::Config(_) | CtlError::Import { .. }) { "" } else { "qvpn-ctl: " };
    note(&format!("{prefix}{error}"));
    for detail in error.details() {
        note(detail);
    }
}

/// Prints a remark to standard error; ignores a closed standard error.
pub(crate) fn note(text: &str) {
    let lines: Vec<String> = text.lines().map(clean).collect();
    let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
}

/// Returns `text` with control and formatting characters escaped.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = c == ' ' || matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
            if plain { vec![c] } else { c.escape_debug().collect() }
        })
        .collect()
}

/// The meaning of a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// A heading.
    Head,
    /// Something that works.
    Good,
    /// Something that needs attention soon.
    Warn,
    /// Something that doesn't work.
    Bad,
    /// Ordinary text.
    Plain,
}

/// The abilities of the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    /// Whether to use colour.
    pub(crate) colour: bool,
    /// A terminal's columns, for alignment and wrapping; text in a pipe is not wrapped.
    pub(crate) width: Option<usize>,
}

impl Paint {
    /// Paints with neither colour nor wrapping.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false, width: None };

    /// Uses colour if standard output is a terminal with colours and NO_COLOR is unset
    /// (<https://no-color.org>), and its width.
    pub(crate) fn for_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        if !io::stdout().is_terminal() {
            return Self { colour: false, width: None };
        }
        // A serial console reports no columns.
        let columns =
            terminal_size::terminal_size_of(io::stdout()).map_or(0, |(width, _)| usize::from(width.0));
        let width = if columns == 0 { 80 } else { columns };
        Self { colour: !set("NO_COLOR") && !dumb, width: Some(width) }
    }

    /// Returns `text`, escaped, in the colour of `tone`.
    pub(crate) fn text(self, tone: Tone, text: &str) -> String {
        let text = clean(text);
        let style = match tone {
            Tone::Head => Style::new().bold(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warn => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Plain => return text,
        };
        if self.colour { format!("{style}{text}{style:#}") } else { text }
    }

    /// Returns `text` in the colour of `tone`. On a terminal its lines are wrapped: the first begins after
    /// `first` columns, the others after `rest` spaces.
    pub(crate) fn wrapped(self, tone: Tone, text: &str, first: usize, rest: usize) -> String {
        let Some(limit) = self.width else { return self.text(tone, text) };
        let lines = wrap(text, limit, first, rest);
        let painted: Vec<String> = lines.iter().map(|line| self.text(tone, line)).collect();
        painted.join(&format!("\n{}", " ".repeat(rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_control_a_terminal() {
        assert_eq!(clean("a\u{1b}[2J\r\n\t\u{202e}b"), "a\\u{1b}[2J\\r\\n\\t\\u{202e}b");
        assert_eq!(clean("büro \"x\" 'y' \\ …"), "büro \"x\" 'y' \\ …");
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        let colour = Paint { colour: true, width: None };
        assert_eq!(Paint::PLAIN.text(Tone::Bad, "x"), "x");
        assert_eq!(colour.text(Tone::Plain, "x"), "x");
        assert_eq!(colour.text(Tone::Head, "x"), "\u{1b}[1mx\u{1b}[0m");
    }
}
