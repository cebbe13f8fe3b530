//! What the fuzz targets of this crate do with bytes: what a KME may answer, right or not. They exist only with the feature
//! `fuzzing`, which no program asks for.

use crate::etsi014::wire::{self, Asked};
use crate::excerpt;
use crate::key::KeyId;
use crate::key::MAX_KEY_ID_LEN;
use crate::skip::wire as skip_wire;

/// The longest text that an answer may put into an error or a log, in bytes: 200 characters of four bytes, and our words.
const LONGEST: usize = 2000;

/// An ETSI GS QKD 014 status.
pub fn status(body: &[u8]) {
    match wire::parse_status(body) {
        Ok(status) => {
            assert!(status.source_kme_id.len() <= MAX_KEY_ID_LEN && status.unknown.len() <= 16);
            let _ = status.link();
        }
        Err(broken) => assert!(broken.1.len() <= LONGEST),
    }
}

/// An ETSI GS QKD 014 key container, held against what was asked: no key that comes out breaks a rule, and no error has a
/// byte of one.
pub fn keys(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else { return };
    let number = u32::from(how >> 1 & 7) + 1;
    let ids: Vec<KeyId> = (0..number).filter_map(|n| KeyId::new(format!("key-{n}")).ok()).collect();
    let asked = if how & 1 == 0 { Asked::New { number, size_bits: 256 } } else { Asked::ByIds(&ids) };
    match wire::parse_keys(body, &asked) {
        Ok(keys) => {
            assert!(keys.len() <= ids.len());
            for (n, (id, secret)) in keys.iter().enumerate() {
                assert!(secret.len() >= 32 && !secret.ct_eq(&vec![0; secret.len()]));
                assert!(how & 1 == 0 || ids.contains(id));
                assert!(keys[..n].iter().all(|(other, key)| other != id && !key.ct_eq(secret.expose())));
            }
        }
        Err(broken) => assert!(broken.1.len() <= LONGEST, "{}", broken.1.len()),
    }
}

/// A SKIP key.
pub fn skip_key(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else { return };
    let Ok(id) = KeyId::new("key-0") else { return };
    let asked =
        if how & 1 == 0 { skip_wire::Asked::New { size_bits: 256 } } else { skip_wire::Asked::ById(&id) };
    match skip_wire::parse_key(body, &asked) {
        Ok((got, secret)) => assert!(secret.len() >= 32 && (how & 1 == 0 || got == id)),
        Err(broken) => assert!(broken.1.len() <= LONGEST),
    }
}

/// SKIP capabilities, and the patterns of names in them.
pub fn skip_capabilities(body: &[u8]) {
    if let Ok(capabilities) = skip_wire::parse_capabilities(body) {
        let _ = capabilities.serves("SITE-B");
    }
}

/// The body of an error: one bounded line without control characters, in which no run is as long as a key's text.
pub fn error_body(body: &[u8]) {
    if let Some(text) = excerpt::excerpt(body) {
        assert!(text.chars().count() <= excerpt::MAX_EXCERPT + 1, "{text}");
        assert!(!text.chars().any(char::is_control));
        let run =
            text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=_-".contains(c))).map(str::len).max();
        assert!(run.unwrap_or(0) <= 44, "{text}");
    }
}
