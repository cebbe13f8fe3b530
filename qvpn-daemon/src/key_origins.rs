//! Which KME delivered which QKD key, for the record of epochs.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use qvpn_types::KeyId;

/// More keys than a peer's stock has; of older ones the KME is forgotten.
const MAX_KEYS: usize = 256;

/// The keys of one peer that were delivered last.
#[derive(Default)]
pub(crate) struct KeyOrigins(Mutex<VecDeque<(KeyId, String)>>);

impl KeyOrigins {
    /// The KME, by its name in the config, delivered this key.
    pub(crate) fn note(&self, id: &KeyId, kme: &str) {
        // Each change is whole, so a poisoned lock is still consistent.
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() == MAX_KEYS {
            keys.pop_front();
        }
        keys.push_back((id.clone(), kme.to_owned()));
    }

    /// The KME that delivered this key.
    pub(crate) fn kme(&self, id: &KeyId) -> Option<String> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().rev().find(|(known, _)| known == id).map(|(_, kme)| kme.clone())
    }
}
