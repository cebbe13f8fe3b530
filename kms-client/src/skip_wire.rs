//! The JSON and the statuses of SKIP (draft-cisco-skip-02). One total parser each; a key's hexadecimal digits are decoded
//! without a branch or a table into locked memory, and no text of an error comes from a body.

use std::borrow::Cow;

use qvpn_secret::SecretBuf;
use serde::Deserialize;
use zeroize::Zeroize;

use crate::client::{MAX_KEY_BITS, MIN_KEY_BITS};
use crate::error::{KmsErrorKind, Operation, Violation};
use crate::key::KeyId;
use crate::wire::{Broken, not_json};

/// Most remote systems that are remembered.
const MAX_REMOTE: usize = 4096;

/// What a key provider says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Capabilities {
    /// Whether it gives keys.
    #[serde(default)]
    pub key: bool,
    /// How it makes them, in its own words.
    #[serde(default)]
    pub algorithm: String,
    /// Its own system ID.
    #[serde(default, rename = "localSystemID")]
    pub local_system_id: String,
    /// The system IDs of the key providers that it shares keys with; `*` stands for any characters.
    #[serde(default, rename = "remoteSystemID")]
    pub remote_system_ids: Vec<String>,
}

impl Capabilities {
    /// Whether it shares keys with the key provider `remote`. One that names none is taken at its word later.
    #[must_use]
    pub fn serves(&self, remote: &str) -> bool {
        self.remote_system_ids.is_empty()
            || self.remote_system_ids.iter().any(|pattern| matches(pattern, remote))
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = pattern.contains('*').then(|| parts.next_back()).flatten() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

pub(crate) fn parse_capabilities(body: &[u8]) -> Result<Capabilities, Broken> {
    must_be_an_object(body)?;
    let mut capabilities: Capabilities = serde_json::from_slice(body).map_err(|e| not_json(body, &e))?;
    capabilities.remote_system_ids.truncate(MAX_REMOTE);
    for name in [&mut capabilities.algorithm, &mut capabilities.local_system_id] {
        *name = crate::excerpt::one_line(name);
    }
    Ok(capabilities)
}

/// serde would read a list as a struct's fields in their order.
fn must_be_an_object(body: &[u8]) -> Result<(), Broken> {
    match body.trim_ascii_start().first() {
        Some(b'{') | None => Ok(()),
        Some(_) => Err(Broken(Violation::Json, "the body isn't a JSON object".to_owned())),
    }
}

/// What the answer is held against.
pub(crate) enum Asked<'a> {
    /// A new key.
    New { size_bits: u32 },
    /// The key of this ID.
    ById(&'a KeyId),
}

/// Hexadecimal digits, erased.
#[derive(Deserialize)]
#[serde(transparent)]
struct Digits<'a>(#[serde(borrow)] Cow<'a, str>);

impl Drop for Digits<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(copy) = &mut self.0 {
            copy.zeroize();
        }
    }
}

#[derive(Deserialize)]
struct Key<'a> {
    #[serde(borrow, rename = "keyId")]
    key_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Digits<'a>>,
}

pub(crate) fn parse_key(body: &[u8], asked: &Asked<'_>) -> Result<(KeyId, SecretBuf), Broken> {
    must_be_an_object(body)?;
    let parsed: Key<'_> = serde_json::from_slice(body).map_err(|e| not_json(body, &e))?;
    let missing = |name: &str| Broken(Violation::Json, format!("the field \"{name}\" is missing"));
    let id = parsed.key_id.ok_or_else(|| missing("keyId"))?;
    let id = KeyId::new(id).map_err(|e| Broken(Violation::KeyId, e.to_string()))?;
    if let Asked::ById(wanted) = asked
        && **wanted != id
    {
        return Err(Broken(Violation::OtherKeyId, format!("key {id} came and wasn't asked for")));
    }
    let digits = parsed.key.ok_or_else(|| missing("key"))?;
    let digits = digits.0.as_bytes();
    let (least, most, wanted) = match asked {
        Asked::New { size_bits } => (*size_bits, *size_bits, format!("{size_bits} bits were asked")),
        Asked::ById(_) => {
            (MIN_KEY_BITS, MAX_KEY_BITS, format!("{MIN_KEY_BITS} to {MAX_KEY_BITS} bits are accepted"))
        }
    };
    let bits = u32::try_from(digits.len().saturating_mul(4)).unwrap_or(u32::MAX);
    if !(least..=most).contains(&bits) {
        let hint = if bits == least * 2 / 3 / 4 * 4 { " (base64 instead of hexadecimal?)" } else { "" };
        return Err(Broken(
            Violation::KeySize,
            format!("key {id} has {} hexadecimal digits, and {wanted}{hint}", digits.len()),
        ));
    }
    let mut secret = SecretBuf::zeroed(digits.len() / 2);
    if !decode(digits, secret.expose_mut()) {
        return Err(Broken(Violation::Base64, format!("key {id} isn't hexadecimal")));
    }
    if secret.expose().iter().fold(0, |all, byte| all | byte) == 0 {
        return Err(Broken(Violation::ZeroKey, format!("key {id} has only zero bytes")));
    }
    Ok((id, secret))
}

/// Decodes pairs of hexadecimal digits into `out`, in a time that depends only on their number.
fn decode(digits: &[u8], out: &mut [u8]) -> bool {
    let mut wrong = u16::from(digits.len() != out.len() * 2);
    for (pair, byte) in digits.chunks_exact(2).zip(out) {
        let value = nibble(pair[0]) << 4 | nibble(pair[1]);
        wrong |= value >> 8;
        *byte = value.to_le_bytes()[0];
    }
    wrong == 0
}

/// The value of a digit; all ones above for what is none. Each range adds its value where the character is inside it.
fn nibble(character: u8) -> u16 {
    let c = i16::from(character);
    // (low - c) & (c - high) is negative only inside the range, so its sign spreads to a mask.
    let inside = |low: i16, high: i16| ((low - c) & (c - high)) >> 8;
    let value = -1
        + (inside(0x2f, 0x3a) & (c - 0x2f))
        + (inside(0x40, 0x47) & (c - 0x36))
        + (inside(0x60, 0x67) & (c - 0x56));
    value.cast_unsigned()
}

/// What an HTTP status means. SKIP says 400 for a request or a key ID that is wrong, 404 for a path, 500 for a failure.
pub(crate) fn classify(operation: Operation, status: u16) -> KmsErrorKind {
    use KmsErrorKind as K;
    match (operation, status) {
        (_, 300..400) => K::ProtocolViolation(Violation::Redirect),
        (_, 0..300 | 600..) => K::ProtocolViolation(Violation::Status),
        (_, 401 | 403) => K::IdentityRefused,
        (Operation::DecKeys, 400 | 404 | 409 | 410) => K::KeyNotFound,
        (Operation::EncKeys, 409 | 410 | 429 | 503) => K::Exhausted,
        (_, 408 | 429) => K::ServerFault,
        (_, 400..500 | 501 | 505) => K::BadRequest,
        (_, 500..600) => K::ServerFault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_has_its_value_and_nothing_else_has_one() {
        for c in 0..=255u8 {
            let want = char::from(c).to_digit(16).and_then(|d| u16::try_from(d).ok());
            match want {
                Some(value) => assert_eq!(nibble(c), value, "{c}"),
                None => assert_eq!(nibble(c), 0xffff, "{c}"),
            }
        }
        let mut out = [0; 3];
        assert!(decode(b"00fFa9", &mut out));
        assert_eq!(out, [0, 0xff, 0xa9]);
        assert!(!decode(b"00ffg9", &mut out));
        assert!(!decode(b"00f", &mut out[..1]));
    }

    #[test]
    fn a_key_is_held_against_what_was_asked() {
        let digits = "ab".repeat(32);
        let id = KeyId::new("0123").unwrap();
        let body = format!(r#"{{"keyId":"0123","key":"{digits}","more":[1]}}"#);
        let (got, secret) = parse_key(body.as_bytes(), &Asked::New { size_bits: 256 }).unwrap();
        assert_eq!((got.as_str(), secret.expose()), ("0123", &[0xab; 32][..]));
        assert!(parse_key(body.as_bytes(), &Asked::ById(&id)).is_ok());
        let rows = [
            (String::new(), Violation::Json),
            ("<html>".to_owned(), Violation::Json),
            (r#"{"keyId":"0123"}"#.to_owned(), Violation::Json),
            (format!(r#"{{"key":"{digits}"}}"#), Violation::Json),
            (body.replace("0123", "4567"), Violation::OtherKeyId),
            (body.replace("0123", ""), Violation::KeyId),
            (format!(r#"{{"keyId":"0123","key":"{}"}}"#, &digits[2..]), Violation::KeySize),
            (body.replacen("ab", "xb", 1), Violation::Base64),
            (body.replace("ab", "00"), Violation::ZeroKey),
        ];
        for (body, violation) in rows {
            let Err(Broken(got, text)) = parse_key(body.as_bytes(), &Asked::ById(&id)) else {
                panic!("{body}")
            };
            assert_eq!(got, violation, "{body}");
            assert!(!text.contains(&digits[..8]), "{text}");
        }
        let long = format!(r#"{{"keyId":"0123","key":"{digits}{digits}"}}"#);
        let Err(Broken(got, _)) = parse_key(long.as_bytes(), &Asked::New { size_bits: 256 }) else {
            panic!()
        };
        assert_eq!(got, Violation::KeySize);
    }

    #[test]
    fn remote_systems_may_be_patterns() {
        for (pattern, text, yes) in [
            ("KP-B", "KP-B", true),
            ("KP-B", "KP-BB", false),
            ("KP-*", "KP-B", true),
            ("*", "anything", true),
            ("*-B", "KP-B", true),
            ("K*-*B", "KP-xB", true),
            ("K*-*B", "KPxB", false),
            ("ab*ba", "aba", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
        let capabilities = parse_capabilities(
            br#"{"entropy":true,"key":true,"algorithm":"QKD","localSystemID":"KP-A","remoteSystemID":["KP-*"]}"#,
        )
        .unwrap();
        assert!(capabilities.key && capabilities.serves("KP-B") && !capabilities.serves("B"));
        assert_eq!(capabilities.local_system_id, "KP-A");
        assert!(parse_capabilities(b"[]").is_err());
    }

    #[test]
    fn statuses_mean_what_the_draft_says() {
        use KmsErrorKind as K;
        use Operation::{DecKeys, EncKeys, Status};
        for (code, status, enc, dec) in [
            (400, K::BadRequest, K::BadRequest, K::KeyNotFound),
            (401, K::IdentityRefused, K::IdentityRefused, K::IdentityRefused),
            (404, K::BadRequest, K::BadRequest, K::KeyNotFound),
            (500, K::ServerFault, K::ServerFault, K::ServerFault),
            (503, K::ServerFault, K::Exhausted, K::ServerFault),
        ] {
            assert_eq!(classify(Status, code), status, "{code}");
            assert_eq!(classify(EncKeys, code), enc, "{code}");
            assert_eq!(classify(DecKeys, code), dec, "{code}");
        }
    }
}
