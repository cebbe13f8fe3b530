//! The form of a line: `{"seq":7,"prev":"…",` then the record's own fields, then `,"seal":"…"}`.

use data_encoding::HEXLOWER;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::seal::SealKey;

/// The longest line that is read, in bytes. A record of one key of a config is shorter.
pub(crate) const MAX_LINE: usize = 8 << 20;

/// Between the sealed part of a line and its seal.
const SEAL: &str = ",\"seal\":\"";
const END: &str = "\"}";

/// The hash of a line without its line feed; of the line before the first one, zeros.
pub(crate) type Hash = [u8; 32];

pub(crate) fn hash(line: &[u8]) -> Hash {
    Sha256::digest(line).into()
}

/// Returns line number `seq` with the fields of `record`, a JSON object, sealed with `key`, and a line
/// feed.
pub(crate) fn sealed(seq: u64, prev: &Hash, record: &str, key: &SealKey) -> String {
    let fields = record.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or("");
    let comma = if fields.is_empty() { "" } else { "," };
    let mut line = format!("{{\"seq\":{seq},\"prev\":\"{}\"{comma}{fields}", HEXLOWER.encode(prev));
    let seal = key.seal(line.as_bytes());
    line += &format!("{SEAL}{}{END}\n", HEXLOWER.encode(&seal));
    line
}

/// A line that was read.
pub(crate) struct Parsed<'a> {
    pub(crate) seq: u64,
    pub(crate) prev: Hash,
    pub(crate) fields: Map<String, Value>,
    /// The part under the seal.
    content: &'a [u8],
    seal: [u8; 32],
}

impl<'a> Parsed<'a> {
    /// Reads a line without its line feed; `None` if it isn't one of an audit log.
    pub(crate) fn of(line: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let (content, seal) = text.strip_suffix(END)?.rsplit_once(SEAL)?;
        let fields: Map<String, Value> = serde_json::from_str(text).ok()?;
        let bytes = |hex: &str| <[u8; 32]>::try_from(HEXLOWER.decode(hex.as_bytes()).ok()?).ok();
        let (seq, prev) = (fields.get("seq")?.as_u64()?, bytes(fields.get("prev")?.as_str()?)?);
        Some(Self { seq, prev, content: content.as_bytes(), seal: bytes(seal)?, fields })
    }

    /// Whether its seal was made with `key`.
    pub(crate) fn is_sealed_with(&self, key: &SealKey) -> bool {
        qvpn_secret::ct_eq(&key.seal(self.content), &self.seal)
    }

    /// A field as text.
    pub(crate) fn field(&self, name: &str) -> String {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use qvpn_secret::Secret;

    use super::*;

    #[test]
    fn a_line_is_read_back_and_a_changed_byte_breaks_its_seal() {
        let key = SealKey(Secret::filled(|b| b.fill(1)));
        let line = sealed(7, &[9; 32], "{\"event\":\"x\",\"by\":\"a\\\",\\\"seal\\\":\\\"\"}", &key);
        let line = line.trim_end();
        let parsed = Parsed::of(line.as_bytes()).unwrap();
        assert_eq!((parsed.seq, parsed.prev, parsed.field("event").as_str()), (7, [9; 32], "x"));
        assert!(parsed.is_sealed_with(&key) && !parsed.is_sealed_with(&key.next()));
        for at in 0..line.len() {
            let mut bytes = line.as_bytes().to_vec();
            bytes[at] ^= 1;
            assert!(!Parsed::of(&bytes).is_some_and(|line| line.is_sealed_with(&key)), "byte {at}");
        }
        let empty = sealed(0, &[0; 32], "{}", &key);
        assert!(Parsed::of(empty.trim_end().as_bytes()).unwrap().is_sealed_with(&key));
        assert!(Parsed::of(b"{}").is_none() && Parsed::of(b"").is_none());
    }
}
