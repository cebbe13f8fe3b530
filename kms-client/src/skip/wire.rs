//! The JSON and the HTTP statuses of SKIP (draft-cisco-skip-02). Each format has one total parser. A key's
//! hexadecimal digits are decoded into locked memory without branches or tables, and no error quotes a body.

use std::borrow::Cow;

use qvpn_secret::SecretBuf;
use qvpn_types::KeyId;
use serde::Deserialize;
use zeroize::Zeroize;

use crate::error::{KmsErrorKind, Operation, Violation};
use crate::json::{Object, ProtocolViolation, not_json, without_bom};
use crate::key::{MAX_KEY_BITS, MIN_KEY_BITS};
use crate::source::Link;
use crate::wording;

const MAX_REMOTE_SYSTEMS: usize = 4096;

/// A key provider's capabilities (section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether it delivers keys; `None` if it doesn't say.
    pub key: Option<bool>,
    /// The key provider's name for its method.
    pub algorithm: String,
    /// Its own system ID.
    pub local_system_id: String,
    /// The system IDs, or patterns of them, of the key providers that it shares keys with.
    pub remote_system_ids: Vec<String>,
    /// Required fields that are missing.
    pub missing: Vec<&'static str>,
}

#[derive(Deserialize)]
struct RawCapabilities {
    entropy: Option<serde::de::IgnoredAny>,
    key: Option<bool>,
    algorithm: Option<String>,
    #[serde(rename = "localSystemID")]
    local_system_id: Option<String>,
    #[serde(rename = "remoteSystemID")]
    remote_system_ids: Option<Vec<String>>,
}

impl Capabilities {
    /// Whether it shares keys with the key provider `remote`; true if it names none.
    #[must_use]
    pub fn serves(&self, remote: &str) -> bool {
        self.remote_system_ids.is_empty()
            || self.remote_system_ids.iter().any(|pattern| matches(pattern, remote))
    }

    /// Returns the link to the key provider `remote`.
    pub(crate) fn link(&self, remote: &str) -> Link {
        Link {
            source_kme: self.local_system_id.clone(),
            target_kme: remote.to_owned(),
            stored_key_count: None,
            max_key_per_request: Some(1),
        }
    }
}

/// Whether `text` matches `pattern` (section 4.1.2): `*` matches any characters, `?` one, `[list]` one of
/// the list, and `[!list]` one that isn't in the list.
fn matches(pattern: &str, text: &str) -> bool {
    let (mut left, mut rest) = (pattern, text);
    // The pattern after the last *, and the text from where it may begin.
    let mut star: Option<(&str, &str)> = None;
    loop {
        if let Some(behind) = left.strip_prefix('*') {
            star = Some((behind, rest));
            left = behind;
            continue;
        }
        let mut characters = rest.chars();
        if let Some(behind) = characters.next().and_then(|c| one(left, c)) {
            (left, rest) = (behind, characters.as_str());
            continue;
        }
        if left.is_empty() && rest.is_empty() {
            return true;
        }
        // Let the last `*` match one more character.
        let Some((behind, from)) = star else { return false };
        let mut from = from.chars();
        if from.next().is_none() {
            return false;
        }
        (left, rest) = (behind, from.as_str());
        star = Some((behind, rest));
    }
}

/// Returns the rest of `pattern` after its first element, if that element matches `c`.
fn one(pattern: &str, c: char) -> Option<&str> {
    let mut rest = pattern.chars();
    match rest.next()? {
        '?' => Some(rest.as_str()),
        // Without a closing bracket it is a plain character.
        '[' => match list(rest.as_str(), c) {
            Some((fits, behind)) => fits.then_some(behind),
            None => (c == '[').then_some(rest.as_str()),
        },
        first => (first == c).then_some(rest.as_str()),
    }
}

/// Returns whether `c` matches the list that follows `[`, and the pattern after its `]`. As in POSIX, a list
/// may hold ranges, and a `]` that comes first is part of the list.
fn list(text: &str, c: char) -> Option<(bool, &str)> {
    let (negated, text) = text.strip_prefix('!').map_or((false, text), |text| (true, text));
    let (end, _) = text.char_indices().skip(1).find(|(_, c)| *c == ']')?;
    let (mut members, behind) = (text[..end].chars(), &text[end + 1..]);
    let mut found = false;
    while let Some(low) = members.next() {
        let mut ahead = members.clone();
        let high = ahead.next().filter(|c| *c == '-').and_then(|_| ahead.next());
        if high.is_some() {
            members = ahead;
        }
        found |= (low..=high.unwrap_or(low)).contains(&c);
    }
    Some((found != negated, behind))
}

pub(crate) fn parse_capabilities(body: &[u8]) -> Result<Capabilities, ProtocolViolation> {
    let Object(raw): Object<RawCapabilities> =
        serde_json::from_slice(without_bom(body)).map_err(|e| not_json(body, &e))?;
    let came = [
        ("entropy", raw.entropy.is_some()),
        ("key", raw.key.is_some()),
        ("algorithm", raw.algorithm.is_some()),
        ("localSystemID", raw.local_system_id.is_some()),
        ("remoteSystemID", raw.remote_system_ids.is_some()),
    ];
    let mut remote_system_ids = raw.remote_system_ids.unwrap_or_default();
    remote_system_ids.truncate(MAX_REMOTE_SYSTEMS);
    let line = |text: Option<String>| crate::excerpt::one_line(&text.unwrap_or_default());
    Ok(Capabilities {
        key: raw.key,
        algorithm: line(raw.algorithm),
        local_system_id: line(raw.local_system_id),
        remote_system_ids,
        missing: came.into_iter().filter(|(_, came)| !came).map(|(name, _)| name).collect(),
    })
}

/// What the key of an answer must match.
pub(crate) enum ExpectedKey<'a> {
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

pub(crate) fn parse_key(
    body: &[u8],
    expected: &ExpectedKey<'_>,
) -> Result<(KeyId, SecretBuf), ProtocolViolation> {
    let Object(parsed): Object<Key<'_>> =
        serde_json::from_slice(without_bom(body)).map_err(|e| not_json(body, &e))?;
    let missing = |name: &str| ProtocolViolation(Violation::Json, format!("the field \"{name}\" is missing"));
    let id = parsed.key_id.ok_or_else(|| missing("keyId"))?;
    let id = KeyId::new(id).map_err(|e| ProtocolViolation(Violation::KeyId, e.to_string()))?;
    let id = match expected {
        ExpectedKey::ById(wanted) if same(wanted, &id) => (*wanted).clone(),
        ExpectedKey::ById(_) => {
            return Err(ProtocolViolation(
                Violation::OtherKeyId,
                format!("key {id} came and wasn't asked for"),
            ));
        }
        ExpectedKey::New { .. } => id,
    };
    let digits = parsed.key.ok_or_else(|| missing("key"))?;
    let digits = digits.0.as_bytes();
    let (least, most, wanted) = match expected {
        ExpectedKey::New { size_bits } => (*size_bits, *size_bits, format!("{size_bits} bits were asked")),
        ExpectedKey::ById(_) => {
            (MIN_KEY_BITS, MAX_KEY_BITS, format!("{MIN_KEY_BITS} to {MAX_KEY_BITS} bits are accepted"))
        }
    };
    let bits = u32::try_from(digits.len().saturating_mul(4)).unwrap_or(u32::MAX);
    if !(least..=most).contains(&bits) {
        let hint = if bits == least * 2 / 3 / 4 * 4 { " (base64 instead of hexadecimal?)" } else { "" };
        return Err(ProtocolViolation(
            Violation::KeySize,
            format!("key {id} has {} hexadecimal digits, and {wanted}{hint}", digits.len()),
        ));
    }
    let mut secret = SecretBuf::zeroed(digits.len() / 2);
    if !decode(digits, secret.expose_mut()) {
        return Err(ProtocolViolation(Violation::Base64, format!("key {id} isn't hexadecimal")));
    }
    if secret.expose().iter().fold(0, |all, byte| all | byte) == 0 {
        return Err(ProtocolViolation(Violation::ZeroKey, format!("key {id} has only zero bytes")));
    }
    Ok((id, secret))
}

/// Whether two IDs are equal. IDs are hexadecimal by the draft, so a key provider may change the case of
/// letters.
fn same(a: &KeyId, b: &KeyId) -> bool {
    let hexadecimal = |id: &KeyId| id.as_str().bytes().all(|c| c.is_ascii_hexdigit());
    a == b || (hexadecimal(a) && hexadecimal(b) && a.as_str().eq_ignore_ascii_case(b.as_str()))
}

/// Decodes hexadecimal digits into `out`, in a time that depends only on their number.
fn decode(digits: &[u8], out: &mut [u8]) -> bool {
    let mut wrong = u16::from(digits.len() != out.len() * 2);
    for (pair, byte) in digits.chunks_exact(2).zip(out) {
        let value = nibble(pair[0]) << 4 | nibble(pair[1]);
        wrong |= value >> 8;
        *byte = value.to_le_bytes()[0];
    }
    wrong == 0
}

/// Returns the value of a digit, or all ones for another character. Each range adds its value if the
/// character is inside it.
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

/// Returns the meaning of an HTTP status with the key provider's `message`. Tables 3 and 7 have 400 for a key
/// ID that is malformed or unknown, 404 for an unknown path, 405 for a wrong method, 500 for a failure to
/// read or erase a key, and no status for "no key now", which is recognised by the message or by statuses
/// that other servers use.
pub(crate) fn classify(operation: Operation, status: u16, message: &str) -> KmsErrorKind {
    use KmsErrorKind as K;
    let no_key = || {
        let message = message.to_lowercase();
        wording::no_key_now(&message) || wording::no_such_key(&message)
    };
    match (operation, status) {
        (_, 300..400) => K::ProtocolViolation(Violation::Redirect),
        (_, 0..300 | 600..) => K::ProtocolViolation(Violation::Status),
        (_, 500..600) if wording::peer_kme_down(&message.to_lowercase()) => K::PeerKmeDown,
        (_, 401 | 403) => K::IdentityRefused,
        (Operation::DecKeys, 400 | 404 | 409 | 410) => K::KeyNotFound,
        (Operation::EncKeys, 409 | 410 | 429 | 503) => K::Exhausted,
        (Operation::EncKeys, 400 | 404 | 422 | 500) if no_key() => K::Exhausted,
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
    fn a_key_must_match_the_request() {
        let digits = "ab".repeat(32);
        let id = KeyId::new("0123").unwrap();
        let body = format!(r#"{{"keyId":"0123","key":"{digits}","more":[1]}}"#);
        let (got, secret) = parse_key(body.as_bytes(), &ExpectedKey::New { size_bits: 256 }).unwrap();
        assert_eq!((got.as_str(), secret.expose()), ("0123", &[0xab; 32][..]));
        assert!(parse_key(body.as_bytes(), &ExpectedKey::ById(&id)).is_ok());
        let rows = [
            (String::new(), Violation::Json),
            ("<html>".to_owned(), Violation::Page),
            (r#"{"keyId":"0123"}"#.to_owned(), Violation::Json),
            (format!(r#"{{"key":"{digits}"}}"#), Violation::Json),
            (body.replace("0123", "4567"), Violation::OtherKeyId),
            (body.replace("0123", ""), Violation::KeyId),
            (format!(r#"{{"keyId":"0123","key":"{}"}}"#, &digits[2..]), Violation::KeySize),
            (body.replacen("ab", "xb", 1), Violation::Base64),
            (body.replace("ab", "00"), Violation::ZeroKey),
        ];
        for (body, violation) in rows {
            let Err(ProtocolViolation(got, text)) = parse_key(body.as_bytes(), &ExpectedKey::ById(&id))
            else {
                panic!("{body}")
            };
            assert_eq!(got, violation, "{body}");
            assert!(!text.contains(&digits[..8]), "{text}");
        }
        let long = format!(r#"{{"keyId":"0123","key":"{digits}{digits}"}}"#);
        let Err(ProtocolViolation(got, _)) = parse_key(long.as_bytes(), &ExpectedKey::New { size_bits: 256 })
        else {
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
            ("*ab", "aab", true),
            ("*a*b*c", "xaybzbc", true),
            ("*a*b*c", "xaybzbcx", false),
            ("KP_?_LOC1", "KP_ü_LOC1", true),
            ("KP_?_LOC1", "KP__LOC1", false),
            ("KP-[AB]", "KP-B", true),
            ("KP-[AB]", "KP-C", false),
            ("KP-[!AB]", "KP-C", true),
            ("KP-[!AB]", "KP-A", false),
            ("KP-[A-C]*", "KP-B7", true),
            ("KP-[A-C]*", "KP-D7", false),
            ("KP-[0-9-]", "KP--", true),
            ("KP-[]x]", "KP-]", true),
            ("KP-[]", "KP-[]", true),
            ("KP-[x", "KP-[x", true),
            ("[", "", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
        let capabilities = parse_capabilities(
            br#"{"entropy":true,"key":true,"algorithm":"QKD","localSystemID":"KP-A",
                "remoteSystemID":["KP-*"]}"#,
        )
        .unwrap();
        assert!(capabilities.serves("KP-B") && !capabilities.serves("B"));
        assert_eq!((capabilities.key, capabilities.local_system_id.as_str()), (Some(true), "KP-A"));
        assert!(capabilities.missing.is_empty());
        let few = parse_capabilities(br#"{"localSystemID":"KP-A","entropy":null}"#).unwrap();
        assert_eq!(few.missing, ["entropy", "key", "algorithm", "remoteSystemID"]);
        assert!(few.key.is_none() && few.serves("anybody"));
        assert!(parse_capabilities(b"[]").is_err());
    }

    #[test]
    fn statuses_mean_what_the_draft_says() {
        use KmsErrorKind as K;
        use Operation::{DecKeys, EncKeys, Status};
        for (code, message, status, enc, dec) in [
            (400, "", K::BadRequest, K::BadRequest, K::KeyNotFound),
            (400, "the key was not found", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (400, "no key is available", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (400, "a malformed keyId was requested", K::BadRequest, K::BadRequest, K::KeyNotFound),
            (401, "", K::IdentityRefused, K::IdentityRefused, K::IdentityRefused),
            (404, "", K::BadRequest, K::BadRequest, K::KeyNotFound),
            (405, "", K::BadRequest, K::BadRequest, K::BadRequest),
            (500, "", K::ServerFault, K::ServerFault, K::ServerFault),
            (500, "the key store is empty", K::ServerFault, K::Exhausted, K::ServerFault),
            (503, "", K::ServerFault, K::Exhausted, K::ServerFault),
        ] {
            assert_eq!(classify(Status, code, message), status, "{code} {message}");
            assert_eq!(classify(EncKeys, code, message), enc, "{code} {message}");
            assert_eq!(classify(DecKeys, code, message), dec, "{code} {message}");
        }
    }

    #[test]
    fn an_id_may_come_back_in_the_other_case_and_is_kept_as_requested() {
        let digits = "ab".repeat(32);
        let expected = |wanted: &str, came: &str| {
            let id = KeyId::new(wanted).unwrap();
            let body = format!(r#"{{"keyId":"{came}","key":"{digits}"}}"#);
            match parse_key(body.as_bytes(), &ExpectedKey::ById(&id)) {
                Ok((id, _)) => Ok(id.as_str().to_owned()),
                Err(ProtocolViolation(violation, _)) => Err(violation),
            }
        };
        assert_eq!(expected("1726e9AE", "1726E9ae").unwrap(), "1726e9AE");
        assert_eq!(expected("key-A", "key-a"), Err(Violation::OtherKeyId), "no hexadecimal");
        assert_eq!(expected("1726e9AE", "1726e9AF"), Err(Violation::OtherKeyId));
    }
}
