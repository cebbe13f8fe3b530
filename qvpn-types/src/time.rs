//! The time of the protocol: nanoseconds of `CLOCK_BOOTTIME`, which also counts while the machine sleeps, so
//! that keys expire during sleep. `std::time::Instant` stops during sleep, so it is banned here.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, in nanoseconds since boot, with a range of 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// Makes a time from nanoseconds of `CLOCK_BOOTTIME`.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the time in nanoseconds of `CLOCK_BOOTTIME`.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to `self`; zero if `earlier` is not in the past.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_leaves_its_range() {
        let (early, late) = (Time::from_nanos(5), Time::from_nanos(u64::MAX - 5));
        let ten = Duration::from_nanos(10);
        assert_eq!((early + ten, late - ten), (Time::from_nanos(15), Time::from_nanos(u64::MAX - 15)));
        assert_eq!((early - ten, late + ten), (Time::from_nanos(0), Time::from_nanos(u64::MAX)));
        assert_eq!(((early + ten).since(early), early.since(late)), (ten, Duration::ZERO));
    }
}
