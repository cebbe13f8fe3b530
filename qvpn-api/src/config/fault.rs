//! The error of a value: what is wrong and what to write instead, without the position in the file.

/// What is wrong, and what to write instead.
pub(super) type Fault = (String, String);

pub(super) fn fault<T>(what: impl Into<String>, fix: impl Into<String>) -> Result<T, Fault> {
    Err((what.into(), fix.into()))
}

/// Returns at most 80 characters of the file's text, for a message.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Splits the "what; fix" message of another crate. A message without a fix gets `default_fix`.
pub(super) fn split_advice(message: &str, default_fix: &str) -> Fault {
    match message.split_once("; ") {
        Some((what, fix)) => (what.to_owned(), fix.to_owned()),
        None => (message.to_owned(), default_fix.to_owned()),
    }
}
