//! The clock that expires keys: `CLOCK_BOOTTIME`, which also counts while the machine sleeps. Lanes read it
//! through a function, so that tests can replace it.

use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};
use qvpn_types::Time;

/// A function that returns the current time.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// Returns a clock that reads the machine's `CLOCK_BOOTTIME`.
///
/// It calls the C library, as the daemon's own clock does, so that a test that changes a machine's time
/// changes both.
#[must_use]
pub fn boot_clock() -> Clock {
    Arc::new(|| {
        // Linux has this clock since 2.6.39. Without it, all keys would count as expired.
        let nanos = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(u64::MAX, |time| {
            let (seconds, nanos) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
            seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0))
        });
        Time::from_nanos(nanos)
    })
}
