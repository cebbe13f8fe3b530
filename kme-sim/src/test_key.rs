//! Reproducible keys for tests: key `n` of a link and its ID are derived from the link's `seed`. The seed
//! reveals every key, so use one only in tests that compute the keys themselves.

use qvpn_secret::SecretBuf;
use sha2::{Digest, Sha256};

const KEY_LABEL: &[u8] = b"kme-sim test key";
const ID_LABEL: &[u8] = b"kme-sim test key id";

/// Returns key `n` (counted from 0 since the start, both directions together) of a link with `seed`, `bytes`
/// long.
///
/// Block 0 is `SHA-256("kme-sim test key" ‖ seed ‖ n)`, and block `i` from 1 on is the hash of the same and
/// `i`; `n` is a u64 and `i` a u32, both big-endian. The key is the first `bytes` of the blocks.
#[must_use]
pub fn key(seed: &[u8], n: u64, bytes: usize) -> SecretBuf {
    let mut key = SecretBuf::zeroed(bytes);
    for (i, chunk) in (0u32..).zip(key.expose_mut().chunks_mut(32)) {
        let mut hash = Sha256::new().chain_update(KEY_LABEL).chain_update(seed).chain_update(n.to_be_bytes());
        if i > 0 {
            hash.update(i.to_be_bytes());
        }
        chunk.copy_from_slice(&hash.finalize()[..chunk.len()]);
    }
    key
}

/// Returns the ID of key `n` of a link with `seed`: the first 16 bytes of `SHA-256("kme-sim test key id" ‖
/// seed ‖ n)` as a UUID of version 8 (RFC 9562 section 5.8).
#[must_use]
pub fn key_id(seed: &[u8], n: u64) -> String {
    let hash =
        Sha256::new().chain_update(ID_LABEL).chain_update(seed).chain_update(n.to_be_bytes()).finalize();
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hashlib, from the text above:
    /// `hashlib.sha256(b"kme-sim test key" + bytes.fromhex("0102") + (7).to_bytes(8, "big"))` and so on.
    #[test]
    fn keys_and_ids_follow_the_documented_derivation() {
        let hex = |b: &[u8]| data_encoding::HEXLOWER.encode(b);
        let seed = [1, 2];
        assert_eq!(
            hex(key(&seed, 7, 40).expose()),
            "ddc50737e7ad7cf9035aa00cd1b08bc09c62c5e1f3c025efcc21c00f3bb429b048008aeb74d7096d"
        );
        assert_eq!(
            hex(key(&seed, 7, 32).expose()),
            "ddc50737e7ad7cf9035aa00cd1b08bc09c62c5e1f3c025efcc21c00f3bb429b0"
        );
        assert_eq!(key_id(&seed, 7), "170a1e9c-9a64-8378-b83c-6ea17d15fc26");
        assert_ne!(key_id(&seed, 8), key_id(&seed, 7));
    }
}
