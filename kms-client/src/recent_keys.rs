//! The keys that one KME delivered recently, to detect a key that comes again under another ID and an ID
//! that comes again with another key. It keeps fingerprints (HMAC-SHA-256 under a key of this process, cut
//! to 128 bits), no keys.

use std::collections::{HashMap, HashSet, VecDeque};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use qvpn_secret::{SecretBuf, with_scrubbed_stack};
use qvpn_types::KeyId;

use crate::error::Violation;
use crate::json::ProtocolViolation;

/// At one rekey a second these cover more than an hour, the longest time that a key is kept.
const MAX_REMEMBERED_KEYS: usize = 4096;

type Tag = [u8; 16];

/// Fingerprints of the keys that a KME delivered recently.
pub(crate) struct RecentKeys {
    /// `None` if the system returned no random bytes; then nothing is remembered.
    key: Option<hmac::Key>,
    /// Fingerprints of ID and key, oldest first.
    order: VecDeque<(Tag, Tag)>,
    ids: HashSet<Tag>,
    /// Key to ID.
    keys: HashMap<Tag, Tag>,
}

impl Default for RecentKeys {
    fn default() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok();
        Self { key, order: VecDeque::new(), ids: HashSet::new(), keys: HashMap::new() }
    }
}

impl RecentKeys {
    /// Checks `keys` against the former ones and remembers them. The same key may arrive again if it was
    /// fetched by ID, since some KMEs deliver a key twice; a new key may not.
    pub(crate) fn note(
        &mut self,
        keys: &[(KeyId, SecretBuf)],
        by_ids: bool,
    ) -> Result<(), ProtocolViolation> {
        let Some(mac) = &self.key else { return Ok(()) };
        for (id, secret) in keys {
            let tags = (tag(mac, id.as_str().as_bytes()), with_scrubbed_stack(|| tag(mac, secret.expose())));
            match self.keys.get(&tags.1) {
                Some(before) if by_ids && *before == tags.0 => continue,
                Some(_) => {
                    let text = format!("the key with the ID {id} was delivered before");
                    return Err(ProtocolViolation(Violation::DuplicateKey, text));
                }
                None if self.ids.contains(&tags.0) => {
                    let text = format!("the ID {id} stood over another key before");
                    return Err(ProtocolViolation(Violation::DuplicateId, text));
                }
                None => {}
            }
            if self.order.len() >= MAX_REMEMBERED_KEYS
                && let Some((id, key)) = self.order.pop_front()
            {
                self.ids.remove(&id);
                self.keys.remove(&key);
            }
            self.order.push_back(tags);
            self.ids.insert(tags.0);
            self.keys.insert(tags.1, tags.0);
        }
        Ok(())
    }
}

fn tag(key: &hmac::Key, bytes: &[u8]) -> Tag {
    let whole = hmac::sign(key, bytes);
    let mut tag = Tag::default();
    tag.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, byte: u8) -> Vec<(KeyId, SecretBuf)> {
        vec![(KeyId::new(id).unwrap(), SecretBuf::take(&mut [byte; 32]))]
    }

    #[test]
    fn a_new_key_is_new() {
        let mut delivered = RecentKeys::default();
        assert!(delivered.note(&key("a", 1), false).is_ok());
        assert!(delivered.note(&key("b", 2), false).is_ok());
        assert_eq!(delivered.note(&key("a", 1), false).unwrap_err().0, Violation::DuplicateKey);
        assert_eq!(delivered.note(&key("c", 1), false).unwrap_err().0, Violation::DuplicateKey);
        assert_eq!(delivered.note(&key("a", 3), false).unwrap_err().0, Violation::DuplicateId);
        assert!(delivered.note(&key("a", 1), true).is_ok(), "delivered twice by its ID");
        assert_eq!(delivered.note(&key("a", 4), true).unwrap_err().0, Violation::DuplicateId);
        assert_eq!(delivered.note(&key("d", 2), true).unwrap_err().0, Violation::DuplicateKey);
    }

    #[test]
    fn memory_is_bounded() {
        let mut delivered = RecentKeys::default();
        for n in 0..MAX_REMEMBERED_KEYS + 10 {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            let one = vec![(KeyId::new(n.to_string()).unwrap(), SecretBuf::take(&mut bytes))];
            assert!(delivered.note(&one, false).is_ok());
        }
        let sizes = (delivered.order.len(), delivered.ids.len(), delivered.keys.len());
        assert_eq!(sizes, (MAX_REMEMBERED_KEYS, MAX_REMEMBERED_KEYS, MAX_REMEMBERED_KEYS));
        // A key that has been forgotten may arrive again.
        let mut first = [0; 32];
        first[..8].copy_from_slice(&0usize.to_le_bytes());
        let again = vec![(KeyId::new("0").unwrap(), SecretBuf::take(&mut first))];
        assert!(delivered.note(&again, false).is_ok());
    }
}
