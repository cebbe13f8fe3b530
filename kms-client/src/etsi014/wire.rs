//! The JSON of ETSI GS QKD 014 (clause 6): requests, status, and key containers, which are checked against
//! the request. Each has one total parser. Keys are decoded into locked memory, and no error quotes a body.

use std::borrow::Cow;

use base64ct::{Base64, Encoding};
use qvpn_secret::SecretBuf;
use qvpn_types::KeyId;
use serde::Deserialize;
use zeroize::Zeroize;

use crate::error::Violation;
use crate::json::{Object, ProtocolViolation, not_json, without_bom};
use crate::key::{MAX_KEY_BITS, MIN_KEY_BITS};
use crate::source::Link;

/// A status answer (ETSI GS QKD 014 clause 6.1). The standard requires all fields, but some servers leave
/// fields out or send numbers as strings. A number that can't be read is `None`, and a name is empty.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// `source_KME_ID`: our KME.
    pub source_kme_id: String,
    /// `target_KME_ID`: the KME of the other SAE.
    pub target_kme_id: String,
    /// `master_SAE_ID`: the KME's name for the caller.
    pub master_sae_id: String,
    /// `slave_SAE_ID`: the other SAE.
    pub slave_sae_id: String,
    /// `key_size`: the default size of a key, in bits.
    pub key_size: Option<u64>,
    /// `stored_key_count`: keys in store by the KME's own count.
    pub stored_key_count: Option<u64>,
    /// `max_key_count`: the capacity of the store.
    pub max_key_count: Option<u64>,
    /// `max_key_per_request`: the most keys that one request may ask for.
    pub max_key_per_request: Option<u64>,
    /// `max_key_size`, in bits.
    pub max_key_size: Option<u64>,
    /// `min_key_size`, in bits.
    pub min_key_size: Option<u64>,
    /// `max_SAE_ID_count`: the most additional slaves of one key.
    pub max_sae_id_count: Option<u64>,
    /// `status_extension`, as it came.
    pub extension: Option<serde_json::Value>,
    /// Required fields that are missing or can't be read.
    pub missing: Vec<&'static str>,
    /// Whether a number came as a string.
    pub numbers_as_text: bool,
    /// Fields that the standard doesn't define; 16 at most.
    pub unknown: Vec<String>,
    /// The answer's `Content-Type`, if it isn't JSON's.
    pub content_type: Option<String>,
}

/// A longer KME or SAE ID in a status is ignored.
pub(crate) const MAX_NAME_BYTES: usize = 256;

/// The fields of clause 6.1.
const STATUS_FIELDS: [&str; 12] = [
    "source_KME_ID",
    "target_KME_ID",
    "master_SAE_ID",
    "slave_SAE_ID",
    "key_size",
    "stored_key_count",
    "max_key_count",
    "max_key_per_request",
    "max_key_size",
    "min_key_size",
    "max_SAE_ID_count",
    "status_extension",
];

impl Status {
    /// Returns the part of it that a [`KeySource`](crate::KeySource) reports.
    #[must_use]
    pub fn link(&self) -> Link {
        let most = self.max_key_per_request.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Link {
            source_kme: self.source_kme_id.clone(),
            target_kme: self.target_kme_id.clone(),
            stored_key_count: self.stored_key_count,
            // Zero would mean that the KME never delivers a key; the server has not filled in the field.
            max_key_per_request: most.filter(|n| *n > 0),
        }
    }
}

/// What the keys of a container must match.
pub(crate) enum ExpectedKeys<'a> {
    /// New keys.
    New { number: u32, size_bits: u32 },
    /// Keys of these IDs.
    ByIds(&'a [KeyId]),
}

/// Returns the body of `enc_keys`. The size is always sent, since a server's default may be 32 bits.
pub(crate) fn enc_keys_body(number: u32, size_bits: u32) -> Vec<u8> {
    serde_json::json!({ "number": number, "size": size_bits }).to_string().into_bytes()
}

/// Returns the body of `dec_keys`.
pub(crate) fn dec_keys_body(ids: &[KeyId]) -> Vec<u8> {
    let ids: Vec<_> = ids.iter().map(|id| serde_json::json!({ "key_ID": id.as_str() })).collect();
    serde_json::json!({ "key_IDs": ids }).to_string().into_bytes()
}

pub(crate) fn parse_status(body: &[u8]) -> Result<Status, ProtocolViolation> {
    let json: serde_json::Value =
        serde_json::from_slice(without_bom(body)).map_err(|e| not_json(body, &e))?;
    let Some(fields) = json.as_object() else {
        return Err(ProtocolViolation(Violation::Json, "the status isn't a JSON object".to_owned()));
    };
    let mut missing = Vec::new();
    let mut text = |name: &'static str| {
        let value =
            fields.get(name).and_then(|v| v.as_str()).filter(|v| !v.is_empty() && v.len() <= MAX_NAME_BYTES);
        if value.is_none() {
            missing.push(name);
        }
        value.unwrap_or_default().to_owned()
    };
    let (source_kme_id, target_kme_id) = (text("source_KME_ID"), text("target_KME_ID"));
    let (master_sae_id, slave_sae_id) = (text("master_SAE_ID"), text("slave_SAE_ID"));
    let mut numbers_as_text = false;
    let mut number = |name: &'static str| {
        let value = fields.get(name).and_then(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok()));
        numbers_as_text |= value.is_some() && fields.get(name).is_some_and(serde_json::Value::is_string);
        if value.is_none() {
            missing.push(name);
        }
        value
    };
    let unknown = fields.keys().filter(|name| !STATUS_FIELDS.contains(&name.as_str())).take(16);
    let unknown = unknown.map(|name| crate::excerpt::one_line(name)).collect();
    Ok(Status {
        source_kme_id,
        target_kme_id,
        master_sae_id,
        slave_sae_id,
        key_size: number("key_size"),
        stored_key_count: number("stored_key_count"),
        max_key_count: number("max_key_count"),
        max_key_per_request: number("max_key_per_request"),
        max_key_size: number("max_key_size"),
        min_key_size: number("min_key_size"),
        max_sae_id_count: number("max_SAE_ID_count"),
        extension: fields.get("status_extension").cloned(),
        missing,
        numbers_as_text,
        unknown,
        content_type: None,
    })
}

/// A key in base64: borrowed from the body or, where JSON escapes `/`, a copy that is erased.
#[derive(Deserialize)]
#[serde(transparent)]
struct KeyText<'a>(#[serde(borrow)] Cow<'a, str>);

impl Drop for KeyText<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(copy) = &mut self.0 {
            copy.zeroize();
        }
    }
}

#[derive(Deserialize)]
struct Container<'a> {
    // Table 11 of the standard spells it with a capital letter once.
    #[serde(borrow, alias = "Keys")]
    keys: Option<Vec<Object<Item<'a>>>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, rename = "key_ID")]
    key_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<KeyText<'a>>,
}

/// Returns the keys of a container, each checked. The list may be shorter than the request, and even empty.
pub(crate) fn parse_keys(
    body: &[u8],
    expected: &ExpectedKeys<'_>,
) -> Result<Vec<(KeyId, SecretBuf)>, ProtocolViolation> {
    let container: Object<Container<'_>> =
        serde_json::from_slice(without_bom(body)).map_err(|e| not_json(body, &e))?;
    let missing = |name: &str| ProtocolViolation(Violation::Json, format!("the field \"{name}\" is missing"));
    let items = container.0.keys.ok_or_else(|| missing("keys"))?;

    let most = match expected {
        ExpectedKeys::New { number, .. } => usize::try_from(*number).unwrap_or(usize::MAX),
        ExpectedKeys::ByIds(ids) => ids.len(),
    };
    if items.len() > most {
        return Err(ProtocolViolation(
            Violation::TooManyKeys,
            format!("{} keys came and {most} were asked", items.len()),
        ));
    }

    let mut keys: Vec<(KeyId, SecretBuf)> = Vec::with_capacity(items.len());
    for Object(item) in items {
        let id = item.key_id.ok_or_else(|| missing("key_ID"))?;
        let id = KeyId::new(id).map_err(|e| ProtocolViolation(Violation::KeyId, e.to_string()))?;
        if let ExpectedKeys::ByIds(ids) = expected
            && !ids.contains(&id)
        {
            return Err(ProtocolViolation(
                Violation::OtherKeyId,
                format!("key {id} came and wasn't asked for"),
            ));
        }
        let secret = decode(&item.key.ok_or_else(|| missing("key"))?, &id, expected)?;
        for (other, other_secret) in &keys {
            if *other == id {
                return Err(ProtocolViolation(Violation::DuplicateId, format!("key {id} came twice")));
            }
            if secret.ct_eq(other_secret.expose()) {
                let text = format!("the keys {other} and {id} have the same bytes");
                return Err(ProtocolViolation(Violation::DuplicateKey, text));
            }
        }
        keys.push((id, secret));
    }
    Ok(keys)
}

/// Decodes one key in constant time (RFC 4648 section 4: standard alphabet, with padding) and checks its
/// length.
fn decode(
    text: &KeyText<'_>,
    id: &KeyId,
    expected: &ExpectedKeys<'_>,
) -> Result<SecretBuf, ProtocolViolation> {
    let text = text.0.as_bytes();
    let longest = usize::try_from(MAX_KEY_BITS / 8).unwrap_or(usize::MAX);
    let wrong_size = |bytes: usize| {
        let (wanted, hint) = match expected {
            ExpectedKeys::New { size_bits, .. } => {
                let in_bytes = usize::try_from(*size_bits).is_ok_and(|bits| bits == bytes);
                let hint = if in_bytes { " (the KME takes sizes for bytes)" } else { "" };
                (format!("{size_bits} bits were asked"), hint)
            }
            ExpectedKeys::ByIds(_) => (format!("{MIN_KEY_BITS} to {MAX_KEY_BITS} bits are accepted"), ""),
        };
        ProtocolViolation(Violation::KeySize, format!("key {id} has {bytes} bytes, and {wanted}{hint}"))
    };
    if text.len() > longest.div_ceil(3) * 4 {
        return Err(wrong_size(text.len() / 4 * 3));
    }

    let mut secret = SecretBuf::zeroed(text.len() / 4 * 3 + 3);
    let Ok(len) = Base64::decode(text, secret.expose_mut()).map(<[u8]>::len) else {
        let detail = format!("key {id} isn't base64 (RFC 4648 section 4, with padding)");
        return Err(ProtocolViolation(Violation::Base64, detail));
    };
    secret.truncate(len);

    let bits = len.saturating_mul(8);
    let fits = match expected {
        ExpectedKeys::New { size_bits, .. } => usize::try_from(*size_bits).is_ok_and(|wanted| wanted == bits),
        ExpectedKeys::ByIds(_) => {
            u32::try_from(bits).is_ok_and(|bits| (MIN_KEY_BITS..=MAX_KEY_BITS).contains(&bits))
        }
    };
    if !fits {
        return Err(wrong_size(len));
    }
    if secret.expose().iter().fold(0, |all, byte| all | byte) == 0 {
        return Err(ProtocolViolation(Violation::ZeroKey, format!("key {id} has only zero bytes")));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_KEYS: ExpectedKeys<'_> = ExpectedKeys::New { number: 2, size_bits: 256 };

    fn key(byte: u8) -> String {
        Base64::encode_string(&[byte; 32])
    }

    fn broken(body: &str, expected: &ExpectedKeys<'_>) -> Violation {
        match parse_keys(body.as_bytes(), expected) {
            Ok(keys) => panic!("{} keys accepted", keys.len()),
            Err(ProtocolViolation(violation, text)) => {
                assert!(!text.is_empty());
                for byte in 0..=255 {
                    assert!(!text.contains(&key(byte)[..10]), "{text}");
                }
                violation
            }
        }
    }

    #[test]
    fn a_container_of_the_standard_is_read_and_unknown_fields_are_ignored() {
        let body = format!(
            r#"{{"keys":[{{"key_ID":"bc49-1","key":"{}","key_ID_extension":{{"x":[1]}},"new":null}},
               {{"key":"{}","key_ID":"other"}}],"key_container_extension":{{}},"more":1}}"#,
            key(255).replace('/', "\\/"),
            key(2)
        );
        let keys = parse_keys(body.as_bytes(), &NEW_KEYS).unwrap();
        assert_eq!(keys[0].0.as_str(), "bc49-1");
        assert_eq!(keys[0].1.expose(), [255; 32]);
        assert_eq!(keys[1].1.expose(), [2; 32]);
    }

    #[test]
    fn only_objects_of_the_standard_are_read() {
        let list = |items: &str| format!(r#"{{"keys":[{items}]}}"#);
        let object = format!(r#"{{"key_ID":"a","key":"{}"}}"#, key(1));
        assert_eq!(broken(&list(&format!(r#"["a","{}"]"#, key(1))), &NEW_KEYS), Violation::Json);
        assert_eq!(broken(&format!("[[{object}]]"), &NEW_KEYS), Violation::Json);
        // With the spelling of table 11.
        let capital = list(&object).replace("keys", "Keys");
        assert_eq!(parse_keys(capital.as_bytes(), &NEW_KEYS).unwrap().len(), 1);
        let both = format!(r#"{{"keys":[],"Keys":[{object}]}}"#);
        assert_eq!(broken(&both, &NEW_KEYS), Violation::Json);
    }

    #[test]
    fn other_encodings_are_named() {
        let good = format!(r#"{{"keys":[{{"key_ID":"a","key":"{}"}}]}}"#, key(1));
        let with_bom = [b"\xef\xbb\xbf", good.as_bytes()].concat();
        assert_eq!(parse_keys(&with_bom, &NEW_KEYS).unwrap().len(), 1);
        let utf16 = |order: fn(u16) -> [u8; 2]| good.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let little = utf16(u16::to_le_bytes);
        let rows = [
            (vec![0x1f, 0x8b, 8, 0], "gzip"),
            ([vec![0xff, 0xfe], little.clone()].concat(), "UTF-16"),
            (little, "UTF-16"),
            (utf16(u16::to_be_bytes), "UTF-16"),
        ];
        for (body, word) in rows {
            let Err(ProtocolViolation(Violation::Json, text)) = parse_keys(&body, &NEW_KEYS) else {
                panic!()
            };
            assert!(text.contains(word), "{text}");
            let Err(ProtocolViolation(Violation::Json, text)) = parse_status(&body) else { panic!() };
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn an_empty_or_short_list_is_no_violation() {
        assert!(parse_keys(br#"{"keys":[]}"#, &NEW_KEYS).unwrap().is_empty());
        let one = format!(r#"{{"keys":[{{"key_ID":"a","key":"{}"}}]}}"#, key(1));
        assert_eq!(parse_keys(one.as_bytes(), &NEW_KEYS).unwrap().len(), 1);
    }

    #[test]
    fn each_violation_has_its_own_kind() {
        let item = |id: &str, key: &str| format!(r#"{{"key_ID":"{id}","key":"{key}"}}"#);
        let list = |items: &[String]| format!(r#"{{"keys":[{}]}}"#, items.join(","));
        let k = |n| key(n);
        let rows = [
            (String::new(), Violation::Json),
            (" <html>".to_owned(), Violation::Page),
            ("{}".to_owned(), Violation::Json),
            ("[]".to_owned(), Violation::Json),
            (format!(r#"{{"keys":"{}"}}"#, k(1)), Violation::Json),
            (format!(r#"{{"keys":[{{"key_ID":7,"key":"{}"}}]}}"#, k(1)), Violation::Json),
            (format!(r#"{{"keys":[{{"key":"{}"}}]}}"#, k(1)), Violation::Json),
            (r#"{"keys":[{"key_ID":"a"}]}"#.to_owned(), Violation::Json),
            (format!(r#"{{"keys":[{{"key_ID":"a","key":"{}"}}"#, k(1)), Violation::Json),
            (format!(r#"{{"keys":[],"keys":[{}]}}"#, item("a", &k(1))), Violation::Json),
            ("[".repeat(100_000), Violation::Json),
            (list(&[item("a", &k(1)), item("b", &k(2)), item("c", &k(3))]), Violation::TooManyKeys),
            (list(&[item("a", &Base64::encode_string(&[1; 31]))]), Violation::KeySize),
            (list(&[item("a", &Base64::encode_string(&[1; 33]))]), Violation::KeySize),
            (list(&[item("a", &Base64::encode_string(&[1; 256]))]), Violation::KeySize),
            (list(&[item("a", &"QUFB".repeat(100_000))]), Violation::KeySize),
            (list(&[item("a", "")]), Violation::KeySize),
            (list(&[item("a", k(1).trim_end_matches('='))]), Violation::Base64),
            (list(&[item("a", &k(1).replace('A', "*"))]), Violation::Base64),
            (list(&[item("a", &k(255).replace('/', "_"))]), Violation::Base64),
            (list(&[item("a", &format!(" {}", k(1)))]), Violation::Base64),
            (list(&[item("a", &k(0))]), Violation::ZeroKey),
            (list(&[item("", &k(1))]), Violation::KeyId),
            (list(&[item(&"x".repeat(qvpn_types::MAX_KEY_ID_BYTES + 1), &k(1))]), Violation::KeyId),
            (list(&[item("a", &k(1)), item("a", &k(2))]), Violation::DuplicateId),
            (list(&[item("a", &k(1)), item("b", &k(1))]), Violation::DuplicateKey),
        ];
        for (body, want) in rows {
            assert_eq!(broken(&body, &NEW_KEYS), want, "{}", &body[..body.len().min(200)]);
        }
    }

    #[test]
    fn keys_by_id_are_exactly_those_asked() {
        let ids = [KeyId::new("a").unwrap(), KeyId::new("b").unwrap()];
        let expected = ExpectedKeys::ByIds(&ids);
        let good = format!(r#"{{"keys":[{{"key_ID":"b","key":"{}"}}]}}"#, key(1));
        assert_eq!(parse_keys(good.as_bytes(), &expected).unwrap()[0].0, ids[1]);
        let other = format!(r#"{{"keys":[{{"key_ID":"B","key":"{}"}}]}}"#, key(1));
        assert_eq!(broken(&other, &expected), Violation::OtherKeyId);
        let short = format!(r#"{{"keys":[{{"key_ID":"b","key":"{}"}}]}}"#, Base64::encode_string(&[1; 31]));
        assert_eq!(broken(&short, &expected), Violation::KeySize);
        let twice =
            format!(r#"{{"keys":[{0},{0}]}}"#, format_args!(r#"{{"key_ID":"b","key":"{}"}}"#, key(1)));
        assert_eq!(broken(&twice, &expected), Violation::DuplicateId);
    }

    #[test]
    fn a_status_with_missing_fields_is_read() {
        let status = parse_status(
            br#"{"source_KME_ID":"A","target_KME_ID":"B","master_SAE_ID":"m","slave_SAE_ID":"s",
                "key_size":256,
               "stored_key_count":"17","max_key_count":100000,"max_key_per_request":-1,"max_key_size":1024,
               "status_extension":{"qber":0.02}}"#,
        )
        .unwrap();
        assert_eq!(status.source_kme_id, "A");
        assert_eq!(status.stored_key_count, Some(17));
        assert_eq!(status.max_key_per_request, None);
        assert_eq!(status.missing, ["max_key_per_request", "min_key_size", "max_SAE_ID_count"]);
        assert_eq!(status.extension.unwrap()["qber"], 0.02);
        assert_eq!(parse_status(b"[1]").unwrap_err().0, Violation::Json);
        assert_eq!(parse_status(b"").unwrap_err().1, "the body is empty");
    }

    #[test]
    fn requests_have_the_form_of_the_standard() {
        assert_eq!(enc_keys_body(3, 256), br#"{"number":3,"size":256}"#);
        let ids = [KeyId::new("a\"b").unwrap(), KeyId::new("c").unwrap()];
        assert_eq!(dec_keys_body(&ids), br#"{"key_IDs":[{"key_ID":"a\"b"},{"key_ID":"c"}]}"#);
    }
}
