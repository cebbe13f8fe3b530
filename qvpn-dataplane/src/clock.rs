//! The clock that expires keys: `CLOCK_BOOTTIME`, which also counts while the machine sleeps. Lanes read it
//! through a function, so that tests can replace it.

use std::sync::Arc;

use qvpn_types::Time;
use rustix::time::{ClockId, clock_gettime};

/// A function that returns the current time.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// Returns a clock that reads the machine's `CLOCK_BOOTTIME`.
#[must_use]
pub fn boot_clock() -> Clock {
    Arc::new(|| {
        let time = clock_gettime(ClockId::Boottime);
        let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
        Time::from_nanos(seconds.unwrap_or(0) * 1_000_000_000 + nanos.unwrap_or(0))
    })
}
