//! A QKD key and its ID. The ID is public and opaque; the bytes live in locked memory and have one owner.

use qvpn_secret::SecretBuf;
use qvpn_types::KeyId;

use crate::api::Api;

/// The size of the keys that are asked for, in bits.
pub const KEY_BITS: u32 = 256;

/// The smallest key that is accepted, in bits.
pub const MIN_KEY_BITS: u32 = 256;
/// The largest key that is accepted, in bits.
pub const MAX_KEY_BITS: u32 = 8192;
/// The maximum number of keys that one request asks for.
pub const MAX_KEYS_PER_CALL: u32 = 128;

/// A key as the other site offers it: its ID, and the pair of KMEs that issued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    /// The key's ID.
    pub id: KeyId,
    /// `source_KME_ID` of the master's status, the KME that issued the key; empty if it isn't known.
    pub source_kme: String,
    /// `target_KME_ID` of the master's status, the KME that the slave asks; empty if it isn't known.
    pub target_kme: String,
}

/// One QKD key. It has no `Clone` and no `Debug`: it is moved to its one user.
///
/// ```compile_fail,E0599
/// fn copy(key: &kms_client::QkdKey) -> kms_client::QkdKey { key.clone() }
/// ```
/// ```compile_fail,E0277
/// fn print(key: &kms_client::QkdKey) -> String { format!("{key:?}") }
/// ```
pub struct QkdKey {
    /// The key's ID, which is sent to the other site.
    pub id: KeyId,
    pub secret: SecretBuf,
    /// The master's KME, which issued the key; empty if no status named it.
    pub source_kme: String,
    /// The slave's KME; empty if no status named it.
    pub target_kme: String,
    /// The `name`, in our config, of the KME that delivered the key.
    pub kme: String,
    /// The interface that delivered it; a key of [`Api::File`] is not a QKD key.
    pub api: Api,
}

impl QkdKey {
    /// Returns what the other site needs in order to fetch the same key.
    #[must_use]
    pub fn key_ref(&self) -> KeyRef {
        KeyRef {
            id: self.id.clone(),
            source_kme: self.source_kme.clone(),
            target_kme: self.target_kme.clone(),
        }
    }
}
