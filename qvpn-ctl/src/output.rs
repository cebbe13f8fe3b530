//! Where text goes: whole to standard output, complaints to standard error, colour only on a terminal. What other
//! machines said is cleaned first, so that it can't move a terminal's cursor.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::CtlError;
use crate::text::wrap;

/// Prints `text` at once.
pub(crate) fn print(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CtlError::Output)
}

/// Prints `value` as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), CtlError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| CtlError::Output(e.into()))?;
    text.push('\n');
    print(&text)
}

/// Prints an error to standard error.
pub(crate) fn complain(error: &CtlError) {
    // A config's errors begin with their file, as a compiler's do; jumping to them must work.
    let prefix =
        if matches!(error, CtlError::Config(_) | CtlError::Import { .. }) { "" } else { "qvpn-ctl: " };
    note(&format!("{prefix}{error}"));
    for detail in error.details() {
        note(detail);
    }
}

/// Prints a remark to standard error; a closed standard error is no reason to fail.
pub(crate) fn note(text: &str) {
    let lines: Vec<String> = text.lines().map(clean).collect();
    let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
}

/// `text` with control and formatting characters escaped.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = c == ' ' || matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
            if plain { vec![c] } else { c.escape_debug().collect() }
        })
        .collect()
}

/// What a colour means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// A heading.
    Head,
    /// All is well.
    Good,
    /// Look at it soon.
    Warn,
    /// Something doesn't work.
    Bad,
    /// Plain.
    Plain,
}

/// What the output can show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    /// Whether to colour.
    pub(crate) colour: bool,
    /// A terminal's columns, to align and wrap for; text in a pipe stays as it is.
    pub(crate) width: Option<usize>,
}

impl Paint {
    /// Neither colour nor wrapping.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false, width: None };

    /// Colour where standard output is a terminal that shows it and nobody objects (<https://no-color.org>), and its width.
    pub(crate) fn for_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        if !io::stdout().is_terminal() {
            return Self { colour: false, width: None };
        }
        // A serial console says that it has no columns.
        let columns =
            terminal_size::terminal_size_of(io::stdout()).map_or(0, |(width, _)| usize::from(width.0));
        let width = if columns == 0 { 80 } else { columns };
        Self { colour: !set("NO_COLOR") && !dumb, width: Some(width) }
    }

    /// `text`, cleaned, in the colour of `tone`.
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

    /// `text` in the colour of `tone`, on a terminal in lines that fit: the first begins after `first` columns, the others
    /// behind `rest` spaces.
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
    fn what_others_say_cannot_drive_a_terminal() {
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
