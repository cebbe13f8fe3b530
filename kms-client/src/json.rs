//! What is wrong with an answer that claims success, in words that hold no key material.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::Violation;

/// What breaks the rules of the interface, with a description that holds no key material.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation(pub(crate) Violation, pub(crate) String);

/// Whether a body is HTML or XML.
pub(crate) fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// Returns `body` without a byte order mark, which RFC 8259 lets a parser ignore.
pub(crate) fn without_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// Returns the format of a body that isn't JSON, if its first bytes identify it.
fn other_format(body: &[u8]) -> Option<&'static str> {
    match body {
        [0x1f, 0x8b, ..] => Some("the body is compressed with gzip, which was not requested"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, b'{', ..] | [b'{', 0, ..] => {
            Some("the body is UTF-16, and JSON is UTF-8 (RFC 8259)")
        }
        _ => None,
    }
}

/// Parses `T` only from a JSON object: a derived `Deserialize` would also accept an array of the fields'
/// values.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// Describes where the JSON is wrong. The parser's own message is not used: it may quote a value, which may
/// be a key.
pub(crate) fn not_json(body: &[u8], error: &serde_json::Error) -> ProtocolViolation {
    if let Some(format) = other_format(body) {
        return ProtocolViolation(Violation::Json, format.to_owned());
    }
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
