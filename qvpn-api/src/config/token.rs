//! `key_file = "pkcs11:…"`: a private key that stays in a token (a smart card or an HSM), named by a URI of
//! RFC 7512.

use std::path::{Path, PathBuf};

use super::fault::{Fault, fault, shown};

/// A private key in a PKCS#11 token, with its `object`, its `id` or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKey {
    /// The URI as written; it holds no secret, since `pin-value` is refused.
    pub uri: String,
    /// The PKCS#11 module, a shared library (`module-path`).
    pub module: PathBuf,
    /// The token's label.
    pub token: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The key's label.
    pub object: Option<String>,
    /// The key's ID.
    pub id: Option<Vec<u8>>,
    /// The file with the PIN (`pin-source`); without it there is no login.
    pub pin_file: Option<PathBuf>,
}

const EXAMPLE: &str = "write for example \
 \"pkcs11:token=site-a;object=kme?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/qvpn/kms/pin\"";

/// Whether the value of `key_file` names a token.
pub(super) fn is_token(text: &str) -> bool {
    text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("pkcs11:"))
}

/// Reads a PKCS#11 URI (RFC 7512 section 2.3). Relative paths start from `directory`.
pub(super) fn token_key(text: &str, directory: &Path) -> Result<TokenKey, Fault> {
    let rest = text.get(7..).unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut key = TokenKey {
        uri: text.to_owned(),
        module: PathBuf::new(),
        token: None,
        serial: None,
        object: None,
        id: None,
        pin_file: None,
    };
    let mut module = None;
    let attributes =
        path.split(';').map(|part| (part, true)).chain(query.split('&').map(|part| (part, false)));
    let mut seen: Vec<&str> = Vec::new();
    for (part, in_path) in attributes.filter(|(part, _)| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return fault(format!("`{}` of the PKCS#11 URI has no value", shown(part)), EXAMPLE);
        };
        if seen.contains(&name) {
            return fault(format!("`{name}` is there twice in the PKCS#11 URI"), "keep one of them");
        }
        seen.push(name);
        let Some(bytes) = decode(value) else {
            return fault(
                format!("the value of `{name}` in the PKCS#11 URI has a broken % sequence"),
                "write % and two hexadecimal digits for each special byte, and %25 for % itself",
            );
        };
        let file = |bytes: &[u8]| -> Option<PathBuf> {
            let text = std::str::from_utf8(bytes).ok()?;
            let path =
                text.strip_prefix("file:").map_or(text, |rest| rest.strip_prefix("//").unwrap_or(rest));
            (!path.is_empty() && !path.contains('\0') && !path.starts_with('|')).then(|| directory.join(path))
        };
        let text = || String::from_utf8(bytes.clone()).ok().filter(|text| !text.is_empty());
        let ok = match (name, in_path) {
            ("token", true) => set(&mut key.token, text()),
            ("serial", true) => set(&mut key.serial, text()),
            ("object", true) => set(&mut key.object, text()),
            ("id", true) => set(&mut key.id, (!bytes.is_empty()).then(|| bytes.clone())),
            ("type", true) => bytes == b"private",
            ("module-path", false) => set(&mut module, file(&bytes)),
            ("pin-source", false) => set(&mut key.pin_file, file(&bytes)),
            ("pin-value", false) => {
                return fault(
                    "the PKCS#11 URI holds a PIN, and secrets don't belong in this file",
                    "put the PIN alone into a file of mode 0600, and write `pin-source=/path/of/the/file`",
                );
            }
            _ => {
                return fault(
                    format!("`{}` of the PKCS#11 URI is not supported", shown(name)),
                    "before the ? you can write token, serial, object, id and type; after it module-path \
                     and pin-source",
                );
            }
        };
        if !ok {
            return fault(format!("the value of `{name}` in the PKCS#11 URI can't be used"), EXAMPLE);
        }
    }
    let Some(module) = module else {
        return fault(
            "the PKCS#11 URI doesn't say which module reaches the token",
            "add `?module-path=` and the path of the vendor's PKCS#11 library",
        );
    };
    if key.object.is_none() && key.id.is_none() {
        return fault(
            "the PKCS#11 URI doesn't say which key",
            "add `object=` with its label, or `id=` with its ID",
        );
    }
    Ok(TokenKey { module, ..key })
}

fn set<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    *slot = value;
    slot.is_some()
}

/// Decodes percent encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TokenKey, Fault> {
        assert!(is_token(text), "{text}");
        token_key(text, Path::new("/etc/qvpn"))
    }

    #[test]
    fn what_rfc_7512_writes_is_read() {
        let key = read(
            "pkcs11:token=Site%20A;serial=01;object=kme;id=%01%ff;type=private\
             ?module-path=/usr/lib/p.so&pin-source=file:/etc/pin",
        )
        .unwrap();
        assert_eq!(key.token.as_deref(), Some("Site A"));
        assert_eq!((key.serial.as_deref(), key.object.as_deref()), (Some("01"), Some("kme")));
        assert_eq!(key.id, Some(vec![1, 0xff]));
        assert_eq!((key.module, key.pin_file), ("/usr/lib/p.so".into(), Some("/etc/pin".into())));
        let key = read("PKCS11:object=k?module-path=lib/p.so&pin-source=pin").unwrap();
        assert_eq!((key.module, key.pin_file), ("/etc/qvpn/lib/p.so".into(), Some("/etc/qvpn/pin".into())));
        assert_eq!(
            read("pkcs11:id=%00?pin-source=file:///p&module-path=/m").unwrap().pin_file,
            Some("/p".into())
        );
        assert!(!is_token("pkcs11") && !is_token("/etc/pkcs11:x"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_way_out() {
        for (text, words) in [
            ("pkcs11:", "which module"),
            ("pkcs11:object=k", "which module"),
            ("pkcs11:token=t?module-path=/m", "which key"),
            ("pkcs11:object=k?module-path=/m&pin-value=1234", "holds a PIN"),
            ("pkcs11:object=k;object=j?module-path=/m", "is there twice"),
            ("pkcs11:object=k;slot-id=0?module-path=/m", "`slot-id`"),
            ("pkcs11:object=k?module-path=/m&pin-source=|cat", "`pin-source`"),
            ("pkcs11:object=%zz?module-path=/m", "broken %"),
            ("pkcs11:object=%0?module-path=/m", "broken %"),
            ("pkcs11:object=?module-path=/m", "`object`"),
            ("pkcs11:object=k;type=cert?module-path=/m", "`type`"),
            ("pkcs11:object?module-path=/m", "has no value"),
        ] {
            let (what, fix) = read(text).unwrap_err();
            assert!(what.contains(words), "{text}: {what}");
            assert!(fix.len() > 10 && !what.contains("1234"), "{text}: {fix}");
        }
    }
}
