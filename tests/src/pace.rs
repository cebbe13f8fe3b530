//! An even pace for a stream. Time in which the machine stalled is not made up for, because the burst would
//! overflow queues that the stream alone never fills.

use std::time::{Duration, Instant};

/// Counts how many events of a fixed rate are due.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    rate: u64,
}

impl Pace {
    /// Starts now, with `rate` events a second.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self { start: Instant::now(), rate: rate.max(1) }
    }

    /// Returns the number of events due by now after `gone` events; at most as many as fit into 20 ms.
    pub fn due(&mut self, gone: u64) -> u64 {
        self.due_at(Instant::now(), gone)
    }

    fn due_at(&mut self, now: Instant, gone: u64) -> u64 {
        let elapsed = u64::try_from((now - self.start).as_micros()).unwrap_or(u64::MAX);
        let (due, most) = (elapsed * self.rate / 1_000_000 + 1, gone + (self.rate / 50).max(1));
        if due <= most {
            return due;
        }
        self.start += Duration::from_micros((due - most) * 1_000_000 / self.rate);
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nothing_went_is_not_made_up_for() {
        let mut pace = Pace::new(1_000);
        let at = |ms| pace.start + Duration::from_millis(ms);
        let times = [at(0), at(5), at(1_005), at(1_006), at(1_016)];
        let mut gone = 0;
        let due = times.map(|now| {
            gone = pace.due_at(now, gone);
            gone
        });
        assert_eq!(due, [1, 6, 26, 27, 37]);
        assert_eq!(Pace::new(3).due(7), 1, "fewer than one in 20 ms");
    }
}
