//! When a KME that failed is asked again. Pure: time is an argument, in nanoseconds of `CLOCK_BOOTTIME`.

/// How long a KME rests after its first failure, in nanoseconds.
pub const FIRST_DELAY_NS: u64 = 1_000_000_000;
/// The longest rest, in nanoseconds.
pub const MAX_DELAY_NS: u64 = 30_000_000_000;

/// What a failure says about the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was there to answer. Looking again after [`FIRST_DELAY_NS`] costs neither side much, and no key.
    Gone,
    /// It answered, and badly, or keys may have been spent: it is left alone longer and longer.
    Bad,
}

/// What may be done with a KME now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Ask it.
    Ask,
    /// Probe it with something that takes no key, and tell the breaker how that went. Only one caller is told so.
    Probe,
    /// Leave it alone for this many nanoseconds.
    Rest(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: u64 },
    Probing,
}

/// A circuit breaker: open after a failure, then one probe at a time. After a [`Failure::Bad`] the delay doubles up to
/// [`MAX_DELAY_NS`] until keys were really delivered again; after a [`Failure::Gone`] it stays short.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    next_delay: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, next_delay: FIRST_DELAY_NS }
    }
}

impl Breaker {
    /// Asks for leave at `now`. After [`Admission::Probe`] one of the three methods below must follow.
    pub fn admit(&mut self, now: u64) -> Admission {
        match self.state {
            State::Closed => Admission::Ask,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                Admission::Probe
            }
            State::Open { until } => Admission::Rest(until - now),
            State::Probing => Admission::Rest(0),
        }
    }

    /// The KME answered. `delivered` says that it gave keys, and not only that it is there: a KME that answers status and
    /// hangs on keys goes on to rest longer and longer.
    pub fn succeeded(&mut self, delivered: bool) {
        self.state = State::Closed;
        if delivered {
            self.next_delay = FIRST_DELAY_NS;
        }
    }

    /// The KME failed at `now`. Failures of requests that were under way when it was found broken count once.
    pub fn failed(&mut self, now: u64, how: Failure) {
        if matches!(self.state, State::Open { .. }) {
            return;
        }
        let delay = match how {
            Failure::Gone => FIRST_DELAY_NS,
            Failure::Bad => self.next_delay,
        };
        if how == Failure::Bad {
            self.next_delay = (self.next_delay * 2).min(MAX_DELAY_NS);
        }
        self.state = State::Open { until: now.saturating_add(delay) };
    }

    /// Whether a probe would be let through at `now`.
    #[must_use]
    pub fn probe_due(&self, now: u64) -> bool {
        matches!(self.state, State::Open { until } if now >= until)
    }

    /// How long it still rests at `now`, in nanoseconds.
    #[must_use]
    pub fn rests_for(&self, now: u64) -> u64 {
        if let State::Open { until } = self.state { until.saturating_sub(now) } else { 0 }
    }

    /// Whether it is anything but closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// Ends a rest early: there is reason to think that the failure is over.
    pub fn cut_short(&mut self, now: u64) {
        if let State::Open { until } = &mut self.state {
            *until = (*until).min(now);
        }
    }

    /// The probe was given up before it told anything: the next caller may probe.
    pub fn probe_dropped(&mut self, now: u64) {
        if self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn rests_longer_and_longer_up_to_half_a_minute() {
        let mut breaker = Breaker::default();
        let mut now = 5 * SECOND;
        assert_eq!(breaker.admit(now), Admission::Ask);
        for delay in [1, 2, 4, 8, 16, 30, 30, 30] {
            breaker.failed(now, Failure::Bad);
            assert_eq!(breaker.admit(now), Admission::Rest(delay * SECOND));
            now += delay * SECOND;
            assert_eq!(breaker.admit(now - 1), Admission::Rest(1));
            assert_eq!(breaker.admit(now), Admission::Probe);
            assert_eq!(breaker.admit(now), Admission::Rest(0), "one probe at a time");
        }
    }

    #[test]
    fn failures_under_way_count_once() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            breaker.failed(0, Failure::Bad);
        }
        assert_eq!(breaker.admit(0), Admission::Rest(FIRST_DELAY_NS));
        assert_eq!(breaker.admit(FIRST_DELAY_NS), Admission::Probe);
        breaker.failed(FIRST_DELAY_NS, Failure::Bad);
        assert_eq!(breaker.admit(FIRST_DELAY_NS), Admission::Rest(2 * FIRST_DELAY_NS));
    }

    #[test]
    fn only_delivered_keys_reset_the_delay() {
        let mut breaker = Breaker::default();
        breaker.failed(0, Failure::Bad);
        assert_eq!(breaker.admit(SECOND), Admission::Probe);
        breaker.succeeded(false);
        assert_eq!(breaker.admit(SECOND), Admission::Ask);
        breaker.failed(SECOND, Failure::Bad);
        assert_eq!(breaker.admit(SECOND), Admission::Rest(2 * SECOND));
        assert_eq!(breaker.admit(3 * SECOND), Admission::Probe);
        breaker.succeeded(true);
        breaker.failed(4 * SECOND, Failure::Bad);
        assert_eq!(breaker.admit(4 * SECOND), Admission::Rest(SECOND));
    }

    #[test]
    fn what_is_gone_is_looked_for_every_second() {
        let mut breaker = Breaker::default();
        let mut now = 0;
        breaker.failed(now, Failure::Bad);
        for delay in [1, 1, 1, 1, 1] {
            assert!(!breaker.probe_due(now + delay * SECOND - 1));
            now += delay * SECOND;
            assert!(breaker.probe_due(now));
            assert_eq!(breaker.admit(now), Admission::Probe);
            breaker.failed(now, Failure::Gone);
        }
        breaker.cut_short(now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.cut_short(now);
        assert_eq!(breaker.admit(now), Admission::Rest(0), "a probe under way goes on alone");
        breaker.succeeded(false);
        breaker.failed(now, Failure::Bad);
        assert_eq!(breaker.admit(now), Admission::Rest(2 * SECOND), "what is gone counts not as bad");
    }

    #[test]
    fn a_dropped_probe_leaves_the_way_free() {
        let mut breaker = Breaker::default();
        breaker.failed(0, Failure::Bad);
        assert_eq!(breaker.admit(SECOND), Admission::Probe);
        breaker.probe_dropped(SECOND);
        assert_eq!(breaker.admit(SECOND), Admission::Probe);
        breaker.succeeded(false);
        breaker.probe_dropped(SECOND);
        assert_eq!(breaker.admit(SECOND), Admission::Ask, "a probe that ended isn't dropped");
    }
}
