//! What is wrong with an answer that claims success, in words that hold no key material.

use crate::error::Violation;

/// What breaks the document, and words about it that hold no key material.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) Violation, pub(crate) String);

/// Whether a body is HTML or XML, which no JSON can be taken for.
pub(crate) fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// Where the JSON breaks. The parser's own words may quote a value, and a value may be a key, so they aren't used.
pub(crate) fn not_json(body: &[u8], error: &serde_json::Error) -> Broken {
    let what = match error.classify() {
        _ if body.is_empty() => return Broken(Violation::Json, "the body is empty".to_owned()),
        _ if is_page(body) => return Broken(Violation::Page, "the body is a web page, not JSON".to_owned()),
        serde_json::error::Category::Eof => "the JSON ends too early",
        serde_json::error::Category::Data => {
            "a field has another type than the document says, or stands twice"
        }
        _ => "the body isn't JSON",
    };
    Broken(Violation::Json, format!("{what} (line {}, column {})", error.line(), error.column()))
}
