//! The clock of each site, with its own start value and drift.

use std::time::Duration;

use qvpn_types::Time;

pub const MS: Duration = Duration::from_millis(1);
pub const S: Duration = Duration::from_secs(1);

/// The start of a simulation, in true time.
pub const BEGIN: Time = Time::from_nanos(1_000_000_000_000);

#[derive(Clone, Copy)]
pub struct Clock {
    /// The clock's value at [`BEGIN`].
    pub at_begin: u64,
    /// Its drift: parts per million that it is fast.
    pub drift: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { at_begin: BEGIN.as_nanos(), drift: 0 }
    }
}

impl Clock {
    /// Returns the clock's value at a true time.
    pub fn read(&self, now: Time) -> Time {
        let passed = i128::from(now.as_nanos() - BEGIN.as_nanos());
        let shown = i128::from(self.at_begin) + passed + passed * i128::from(self.drift) / 1_000_000;
        Time::from_nanos(u64::try_from(shown).unwrap())
    }

    /// Returns the first true time at which the clock shows `shown` or more.
    pub fn when(&self, shown: Time) -> Time {
        let passed = i128::from(shown.as_nanos()) - i128::from(self.at_begin);
        let near = passed * 1_000_000 / (1_000_000 + i128::from(self.drift));
        let near = u64::try_from(near.max(0)).unwrap();
        let mut at = Time::from_nanos((BEGIN.as_nanos() + near).saturating_sub(2).max(BEGIN.as_nanos()));
        while self.read(at) < shown {
            at = at + Duration::from_nanos(1);
        }
        at
    }
}
