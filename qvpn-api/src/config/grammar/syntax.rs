//! Explains syntax errors of TOML and says what to do.

use crate::config::error::Sink;

pub(in crate::config) fn report_syntax(text: &str, errors: &[toml::de::Error], sink: &mut Sink<'_>) {
    let mut errors: Vec<_> = errors.iter().map(|e| (e.span().map_or(0, |s| s.start), e.message())).collect();
    errors.sort_unstable();
    let lines: Vec<&str> = if errors.is_empty() { Vec::new() } else { text.lines().collect() };
    let is_header = |line: usize| lines.get(line - 1).is_some_and(|l| l.trim_start().starts_with('['));
    for (start, message) in errors {
        let at = sink.position(text, start);
        let rest = text.get(start..).and_then(|t| t.lines().next()).unwrap_or_default();
        let (what, fix) = explain_syntax(message, rest);
        sink.syntax(at, what, fix);
        if is_header(at.line) {
            // The parser assigns the keys below this header to the previous section.
            sink.skip((at.line + 1..=lines.len()).take_while(|line| !is_header(*line)));
        }
    }
}

/// Returns the parser's message and what to do. `rest` is the line after the position of the error.
fn explain_syntax(message: &str, rest: &str) -> (String, String) {
    let first = message.lines().next().unwrap_or("not TOML").trim_end_matches('.');
    let no_value =
        first.contains("must be quoted") && matches!(rest.trim_start().chars().next(), None | Some('#'));
    let first = if no_value { "there is no value" } else { first };
    let missing = first.split_once("expected `").and_then(|(_, rest)| rest.strip_suffix('`'));
    let fix = match (first, missing) {
        ("there is no value", _) => "write one after the equals sign, or remove the line".to_owned(),
        ("duplicate key", _) => "keep one of the lines".to_owned(),
        (_, Some(text)) => format!("write the missing `{text}`"),
        (text, _) if text.contains("string") => "put the text between two quotes (\")".to_owned(),
        _ => "write `key = value` with texts in quotes, and sections in brackets, as in the example config"
            .to_owned(),
    };
    (format!("this is not TOML: {first}"), fix)
}
