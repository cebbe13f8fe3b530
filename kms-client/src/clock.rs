//! Two clocks: `CLOCK_BOOTTIME`, which includes sleep, for ages and delays; and calendar time for
//! certificates.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the nanoseconds of `CLOCK_BOOTTIME`.
pub(crate) fn boottime_ns() -> u64 {
    // Linux has had this clock since 2.6.39. Without it, ages would read as zero.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(t.tv_nsec()).unwrap_or(0))
    })
}

/// Returns the seconds since 1970, UTC.
pub(crate) fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
