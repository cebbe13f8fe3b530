//! The state of one KME: the keys that its slave SAEs have not fetched yet, and its counters.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tracing::warn;

use crate::api::DeliveredKey;
use crate::config::KmeConfig;
use crate::faults::catalog::Misbehaviour;
use crate::network::report::Counts;

/// One KME.
pub(crate) struct Kme {
    pub(crate) config: KmeConfig,
    pub(crate) stored: HashMap<String, StoredKey>,
    /// The IDs in `stored`, oldest first.
    by_age: BTreeMap<u64, String>,
    next_age: u64,
    /// The slave SAEs of each key that a master SAE took here, by its ID.
    issued: HashMap<String, Vec<String>>,
    /// The IDs in `issued`, oldest first.
    issued_by_age: VecDeque<String>,
    /// The first key since a fault was set that repeats it.
    pub(crate) first: Option<DeliveredKey>,
    pub(crate) counts: Counts,
}

/// A key that stays at a KME until each of its slave SAEs there has fetched it.
pub(crate) struct StoredKey {
    age: u64,
    pub(crate) master: String,
    pub(crate) slaves: Vec<String>,
    pub(crate) not_fetched: BTreeSet<String>,
    pub(crate) available_at: Duration,
    pub(crate) key: DeliveredKey,
}

impl Kme {
    pub(crate) fn new(config: &KmeConfig) -> Self {
        Self {
            config: config.clone(),
            stored: HashMap::new(),
            by_age: BTreeMap::new(),
            next_age: 0,
            issued: HashMap::new(),
            issued_by_age: VecDeque::new(),
            first: None,
            counts: Counts::default(),
        }
    }

    pub(crate) fn store(
        &mut self,
        key: DeliveredKey,
        master: &str,
        slaves: &[String],
        available_at: Duration,
    ) {
        let limit = usize::try_from(self.config.max_waiting_keys).unwrap_or(usize::MAX);
        while self.stored.len() >= limit {
            let Some((_, id)) = self.by_age.pop_first() else { break };
            self.stored.remove(&id);
            warn!(key_id = %id, kme = %self.config.name, "key forgotten: no slave SAE fetched it and the \
                                                          store is full");
        }
        let age = self.next_age;
        self.next_age += 1;
        self.by_age.insert(age, key.id.clone());
        let stored = StoredKey {
            age,
            master: master.to_owned(),
            slaves: slaves.to_vec(),
            not_fetched: slaves.iter().cloned().collect(),
            available_at,
            key,
        };
        self.stored.insert(stored.key.id.clone(), stored);
    }

    /// Remembers for which slave SAEs a master SAE took a key here, for as many keys as the store holds.
    pub(crate) fn note_issued(&mut self, id: &str, slaves: Vec<String>) {
        let limit = usize::try_from(self.config.max_waiting_keys).unwrap_or(usize::MAX);
        if self.issued.insert(id.to_owned(), slaves).is_none() {
            self.issued_by_age.push_back(id.to_owned());
        }
        while self.issued_by_age.len() > limit {
            if let Some(oldest) = self.issued_by_age.pop_front() {
                self.issued.remove(&oldest);
            }
        }
    }

    /// Whether a master SAE took this key here and did not name `sae` as a slave.
    pub(crate) fn is_of_others(&self, id: &str, sae: &str) -> bool {
        self.issued.get(id).is_some_and(|slaves| slaves.iter().all(|slave| slave != sae))
    }

    /// Drops the keys for which `which` holds.
    pub(crate) fn forget(&mut self, which: impl Fn(&StoredKey) -> bool) {
        self.stored.retain(|_, stored| {
            let forgotten = which(stored);
            if forgotten {
                self.by_age.remove(&stored.age);
            }
            !forgotten
        });
    }

    /// Under a fault that repeats a key, remembers the first key or repeats its ID.
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

    /// Returns the key for `sae`. It leaves the store when all its slave SAEs have it.
    pub(crate) fn fetch(&mut self, id: &str, sae: &str, fault: Misbehaviour) -> Option<DeliveredKey> {
        let stored = self.stored.get_mut(id)?;
        if fault == Misbehaviour::DeliverTwice {
            return Some(stored.key.duplicate());
        }
        stored.not_fetched.remove(sae);
        if !stored.not_fetched.is_empty() {
            return Some(stored.key.duplicate());
        }
        let stored = self.stored.remove(id)?;
        self.by_age.remove(&stored.age);
        Some(stored.key)
    }
}
