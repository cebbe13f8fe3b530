//! The time limit of a change of our key, and the calls with the new one.

use std::time::Duration;

use qvpn_types::Time;

/// A former key is erased after this time, also if a peer has not answered the new one.
pub const MAX_KEY_CHANGE: Duration = Duration::from_secs(60);
const MIN_CALL_INTERVAL: Duration = Duration::from_millis(500);
const MAX_CALL_INTERVAL: Duration = Duration::from_secs(5);

/// A change of our key that a peer has not followed yet.
pub struct KeyChange {
    pub until: Time,
    calls: u32,
}

impl KeyChange {
    pub fn new(now: Time) -> Self {
        Self { until: now + MAX_KEY_CHANGE, calls: 0 }
    }

    /// Counts a call. Returns the time of the next one, or of the end.
    pub fn next_call(&mut self, now: Time) -> Time {
        let interval = (MIN_CALL_INTERVAL * (1 << self.calls.min(4))).min(MAX_CALL_INTERVAL);
        self.calls += 1;
        self.until.min(now + interval)
    }
}
