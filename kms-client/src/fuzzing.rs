//! The bodies of this crate's fuzz targets. They exist only with the feature `fuzzing`, which no program
//! enables.
use qvpn_types::KeyId;

use crate::etsi014::wire::{self, ExpectedKeys};
use crate::excerpt;
use crate::skip::wire as skip_wire;

/// The length limit, in bytes, of text from an answer in an error or a log: 200 characters of four bytes and
/// our own words.
const MAX_ERROR_TEXT: usize = 2000;

/// Parses an ETSI GS QKD 014 status.
pub fn status(body: &[u8]) {
    match wire::parse_status(body) {
        Ok(status) => {
            assert!(status.source_kme_id.len() <= wire::MAX_NAME_BYTES && status.unknown.len() <= 16);
            let _ = status.link();
        }
        Err(broken) => assert!(broken.1.len() <= MAX_ERROR_TEXT),
    }
}

/// Parses an ETSI GS QKD 014 key container and checks it against the request: no accepted key breaks a rule.
pub fn keys(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else { return };
    let number = u32::from(how >> 1 & 7) + 1;
    let ids: Vec<KeyId> = (0..number).filter_map(|n| KeyId::new(format!("key-{n}")).ok()).collect();
    let expected =
        if how & 1 == 0 { ExpectedKeys::New { number, size_bits: 256 } } else { ExpectedKeys::ByIds(&ids) };
    match wire::parse_keys(body, &expected) {
        Ok(keys) => {
            assert!(keys.len() <= ids.len());
            for (n, (id, secret)) in keys.iter().enumerate() {
                assert!(secret.len() >= 32 && !secret.ct_eq(&vec![0; secret.len()]));
                assert!(how & 1 == 0 || ids.contains(id));
                assert!(keys[..n].iter().all(|(other, key)| other != id && !key.ct_eq(secret.expose())));
            }
        }
        Err(broken) => assert!(broken.1.len() <= MAX_ERROR_TEXT, "{}", broken.1.len()),
    }
}

/// An ETSI GS QKD 004 answer: a header, a stream, a key, or the name of a key.
pub fn etsi004(bytes: &[u8]) {
    use crate::etsi004::wire as w;
    let Some((how, rest)) = bytes.split_first() else { return };
    let refused = match how % 4 {
        0 => {
            let Some(header) = rest.first_chunk() else { return };
            let length = w::parse_header(*header, w::Service::GetKey);
            length.map(|length| assert!((4..=w::MAX_PAYLOAD).contains(&length))).err()
        }
        1 => {
            let opened = w::parse_open(rest);
            opened.map(|answer| assert!(answer.status > 1 || answer.stream.is_some())).err()
        }
        2 => {
            let chunk = (how & 4 == 0).then_some(32);
            let accept = |answer| match answer {
                w::KeyAnswer::Key(secret, length) => {
                    assert!(secret.len() == 32 && !secret.ct_eq(&[0; 32]));
                    assert!((32..=1024).contains(&length) && chunk.is_none_or(|chunk| chunk == length));
                }
                w::KeyAnswer::MoreMetadata(_) => {}
                w::KeyAnswer::Refused(status) => assert_ne!(status, 0),
            };
            w::parse_key(rest, 7, chunk).map(accept).err()
        }
        _ => {
            let _ = w::parse_close(rest);
            if let Ok(id) = std::str::from_utf8(rest)
                && let Ok(id) = KeyId::new(id)
                && let Some((ksid, index)) = w::Ksid::parse_key_id(&id)
            {
                assert_eq!(ksid.key_id(index), Some(id));
            }
            None
        }
    };
    if let Some(broken) = refused {
        assert!(broken.1.len() <= MAX_ERROR_TEXT, "{}", broken.1.len());
    }
}

/// Parses a SKIP key.
pub fn skip_key(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else { return };
    let Ok(id) = KeyId::new("key-0") else { return };
    let expected = if how & 1 == 0 {
        skip_wire::ExpectedKey::New { size_bits: 256 }
    } else {
        skip_wire::ExpectedKey::ById(&id)
    };
    match skip_wire::parse_key(body, &expected) {
        Ok((got, secret)) => assert!(secret.len() >= 32 && (how & 1 == 0 || got == id)),
        Err(broken) => assert!(broken.1.len() <= MAX_ERROR_TEXT),
    }
}

/// Parses SKIP capabilities, and the patterns of names in them.
pub fn skip_capabilities(body: &[u8]) {
    if let Ok(capabilities) = skip_wire::parse_capabilities(body) {
        let _ = capabilities.serves("SITE-B");
    }
}

/// Parses the body of an error: the result is one bounded line without control characters, in which no run is
/// as long as a key's text.
pub fn error_body(body: &[u8]) {
    if let Some(text) = excerpt::excerpt(body) {
        assert!(text.chars().count() <= excerpt::MAX_EXCERPT + 1, "{text}");
        assert!(!text.chars().any(char::is_control));
        let run =
            text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=_-".contains(c))).map(str::len).max();
        assert!(run.unwrap_or(0) <= 44, "{text}");
    }
}
