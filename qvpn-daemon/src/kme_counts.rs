//! Counters of the requests to KMEs, updated by the tasks that make the requests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::histogram::Histogram;

/// Counters by the name of the KME.
#[derive(Debug, Default)]
pub(crate) struct KmeCounts(Mutex<BTreeMap<String, KmeCount>>);

#[derive(Debug, Clone, Default)]
pub(crate) struct KmeCount {
    /// By operation and outcome.
    pub(crate) requests: BTreeMap<(&'static str, &'static str), u64>,
    /// By operation.
    pub(crate) durations: BTreeMap<&'static str, Histogram>,
    /// Keys that the KME may have spent and that never arrived.
    pub(crate) keys_lost: u64,
}

impl KmeCounts {
    pub(crate) fn count(
        &self,
        kme: &str,
        operation: &'static str,
        outcome: &'static str,
        took: Duration,
        keys_lost: u32,
    ) {
        // Each update is complete in itself, so a poisoned lock still holds usable counts.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(kme.to_owned()).or_default();
        *count.requests.entry((operation, outcome)).or_default() += 1;
        count.durations.entry(operation).or_default().observe(took);
        count.keys_lost += u64::from(keys_lost);
    }

    pub(crate) fn snapshot(&self) -> BTreeMap<String, KmeCount> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
