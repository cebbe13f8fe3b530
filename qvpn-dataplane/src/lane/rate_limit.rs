//! A token bucket for packets that a lane sends by itself.

use std::time::Duration;

use qvpn_types::Time;

/// Allows a burst, and then a steady rate (the generic cell rate algorithm).
pub(super) struct RateLimit {
    interval: Duration,
    burst: u32,
    /// When the bucket will be full again.
    full_at: Time,
}

impl RateLimit {
    /// `per_second` and `burst` are at least 1.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), burst, full_at: Time::default() }
    }

    /// Takes a token if there is one.
    pub(super) fn allows(&mut self, now: Time) -> bool {
        let full_at = self.full_at.max(now) + self.interval;
        let allowed = full_at.since(now) <= self.interval * self.burst;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut limit = RateLimit::new(100, 5);
        let start = Time::from_nanos(1_000_000_000);
        let taken = |limit: &mut RateLimit, now| (0..50).filter(|_| limit.allows(now)).count();
        assert_eq!(taken(&mut limit, start), 5);
        assert_eq!(taken(&mut limit, start + Duration::from_millis(9)), 0);
        assert_eq!(taken(&mut limit, start + Duration::from_millis(30)), 3);
        assert_eq!(taken(&mut limit, start + Duration::from_secs(60)), 5, "no more than a burst is saved");
    }
}
