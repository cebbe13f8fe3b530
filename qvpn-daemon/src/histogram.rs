//! Durations in buckets, as in Prometheus.

use std::time::Duration;

/// Upper bounds of the buckets, in seconds.
pub(crate) const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    /// Each duration is counted in the bucket of the first bound that is not below it; the last bucket has no
    /// bound.
    buckets: [u64; BOUNDS.len() + 1],
    sum_seconds: f64,
}

impl Histogram {
    pub(crate) fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.sum_seconds += seconds;
    }

    /// Returns the buckets in the order of [`BOUNDS`], then the one without a bound. They are not cumulative.
    pub(crate) fn buckets(&self) -> [u64; BOUNDS.len() + 1] {
        self.buckets
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_seconds
    }
}
