//! What is wrong with an answer that claims success, in words that hold no key material.

use crate::error::Violation;

/// What breaks the rules of the interface, with a description that holds no key material.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation(pub(crate) Violation, pub(crate) String);

/// Whether a body is HTML or XML.
pub(crate) fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// Describes where the JSON is wrong. The parser's own message is not used: it may quote a value, which may
/// be a key.
pub(crate) fn not_json(body: &[u8], error: &serde_json::Error) -> ProtocolViolation {
    let what = match error.classify() {
        _ if body.is_empty() => return ProtocolViolation(Violation::Json, "the body is empty".to_owned()),
        _ if is_page(body) => {
            return ProtocolViolation(Violation::Page, "the body is a web page, not JSON".to_owned());
        }
        serde_json::error::Category::Eof => "the JSON ends too early",
        serde_json::error::Category::Data => {
            "a field has another type than the document says, or stands twice"
        }
        _ => "the body isn't JSON",
    };
    ProtocolViolation(Violation::Json, format!("{what} (line {}, column {})", error.line(), error.column()))
}
