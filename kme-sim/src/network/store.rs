//! What one KME keeps: the keys that its slave SAEs have not fetched yet, and what it did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tracing::warn;

use crate::api::DeliveredKey;
use crate::config::KmeConfig;
use crate::faults::catalog::Misbehaviour;
use crate::network::report::Counts;

/// One KME's own part.
pub(crate) struct Kme {
    pub(crate) config: KmeConfig,
    pub(crate) waiting: HashMap<String, StoredKey>,
    /// The IDs in `waiting`, oldest first.
    by_age: BTreeMap<u64, String>,
    next_age: u64,
    /// The first key since a fault was set that repeats it.
    pub(crate) first: Option<DeliveredKey>,
    pub(crate) counts: Counts,
}

/// A key that lies at a KME until each of its slave SAEs there has fetched it.
pub(crate) struct StoredKey {
    age: u64,
    pub(crate) master: String,
    pub(crate) named: Vec<String>,
    pub(crate) left: BTreeSet<String>,
    pub(crate) available_at: Duration,
    pub(crate) key: DeliveredKey,
}

impl Kme {
    pub(crate) fn new(config: &KmeConfig) -> Self {
        Self {
            config: config.clone(),
            waiting: HashMap::new(),
            by_age: BTreeMap::new(),
            next_age: 0,
            first: None,
            counts: Counts::default(),
        }
    }

    pub(crate) fn put(&mut self, key: DeliveredKey, master: &str, slaves: &[String], available_at: Duration) {
        let limit = usize::try_from(self.config.max_waiting_keys).unwrap_or(usize::MAX);
        while self.waiting.len() >= limit {
            let Some((_, id)) = self.by_age.pop_first() else { break };
            self.waiting.remove(&id);
            warn!(key_id = %id, kme = %self.config.name, "key forgotten: no slave SAE fetched it and the store is full");
        }
        let age = self.next_age;
        self.next_age += 1;
        self.by_age.insert(age, key.id.clone());
        let waiting = StoredKey {
            age,
            master: master.to_owned(),
            named: slaves.to_vec(),
            left: slaves.iter().cloned().collect(),
            available_at,
            key,
        };
        self.waiting.insert(waiting.key.id.clone(), waiting);
    }

    /// Throws away the keys that `which` names.
    pub(crate) fn forget(&mut self, which: impl Fn(&StoredKey) -> bool) {
        self.waiting.retain(|_, waiting| {
            let forgotten = which(waiting);
            if forgotten {
                self.by_age.remove(&waiting.age);
            }
            !forgotten
        });
    }

    /// Remembers the first key of all under a fault that repeats it, and repeats its ID.
    pub(crate) fn repeat(&mut self, fault: Misbehaviour, keys: &mut [DeliveredKey]) {
        if !matches!(fault, Misbehaviour::RepeatKeys | Misbehaviour::RepeatId) {
            return;
        }
        match (&self.first, keys.first_mut()) {
            (None, key) => self.first = key.map(|k| k.duplicate()),
            (Some(first), Some(key)) if fault == Misbehaviour::RepeatId => key.id.clone_from(&first.id),
            _ => {}
        }
    }

    /// The key for `sae`; it leaves the store when all its slave SAEs have it.
    pub(crate) fn fetch(&mut self, id: &str, sae: &str, fault: Misbehaviour) -> Option<DeliveredKey> {
        let waiting = self.waiting.get_mut(id)?;
        if fault == Misbehaviour::DeliverTwice {
            return Some(waiting.key.duplicate());
        }
        waiting.left.remove(sae);
        if !waiting.left.is_empty() {
            return Some(waiting.key.duplicate());
        }
        let waiting = self.waiting.remove(id)?;
        self.by_age.remove(&waiting.age);
        Some(waiting.key)
    }
}
