//! The clock that ages keys: `CLOCK_BOOTTIME`, which goes on while the machine sleeps. Lanes read it through a function
//! that tests replace.

use std::sync::Arc;

/// An instant: nanoseconds of `CLOCK_BOOTTIME`.
pub type BootNanos = u64;

/// Reads the clock.
pub type Clock = Arc<dyn Fn() -> BootNanos + Send + Sync>;

/// The machine's own `CLOCK_BOOTTIME`.
#[must_use]
pub fn boot_clock() -> Clock {
    Arc::new(crate::sys::boot_nanos)
}
