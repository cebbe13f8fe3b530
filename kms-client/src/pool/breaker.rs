//! A circuit breaker: it decides when a KME that failed is asked again. It is pure: time is an argument, in
//! nanoseconds of `CLOCK_BOOTTIME`.

/// The delay after the first failure, in nanoseconds.
pub const FIRST_DELAY_NS: u64 = 1_000_000_000;
/// The longest delay, in nanoseconds.
pub const MAX_DELAY_NS: u64 = 30_000_000_000;

/// The class of a failure, which decides the delay until the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing answered. A probe every [`FIRST_DELAY_NS`] costs little, and no key.
    Absent,
    /// It answered wrongly, or keys may be spent: each delay is twice the previous one.
    Faulty,
}

/// What a caller may do with a KME now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Send any request.
    Allow,
    /// Send one request that takes no key, and report its outcome to the breaker. Only one caller gets this
    /// answer.
    Probe,
    /// Send nothing for this number of nanoseconds.
    Wait(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: u64 },
    Probing,
}

/// A circuit breaker: open after a failure, then one probe at a time. After a [`Failure::Faulty`] the delay
/// doubles up to [`MAX_DELAY_NS`] until keys are delivered again; after a [`Failure::Absent`] it stays
/// short.
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
    /// Decides what the caller may do at `now`. After [`Admission::Probe`] the caller must report the
    /// outcome, or that it dropped the probe.
    pub fn admit(&mut self, now: u64) -> Admission {
        match self.state {
            State::Closed => Admission::Allow,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                Admission::Probe
            }
            State::Open { until } => Admission::Wait(until - now),
            State::Probing => Admission::Wait(0),
        }
    }

    /// Records that the KME answered. `delivered` says that it delivered keys; while a KME answers only
    /// status requests, the delay continues to double.
    pub fn on_success(&mut self, delivered: bool) {
        self.state = State::Closed;
        if delivered {
            self.next_delay = FIRST_DELAY_NS;
        }
    }

    /// Records that the KME failed at `now`. Several failures of concurrent requests count once.
    pub fn on_failure(&mut self, now: u64, how: Failure) {
        if matches!(self.state, State::Open { .. }) {
            return;
        }
        let delay = match how {
            Failure::Absent => FIRST_DELAY_NS,
            Failure::Faulty => self.next_delay,
        };
        if how == Failure::Faulty {
            self.next_delay = (self.next_delay * 2).min(MAX_DELAY_NS);
        }
        self.state = State::Open { until: now.saturating_add(delay) };
    }

    /// Whether a probe would be let through at `now`.
    #[must_use]
    pub fn probe_due(&self, now: u64) -> bool {
        matches!(self.state, State::Open { until } if now >= until)
    }

    /// Returns the delay that is left at `now`, in nanoseconds.
    #[must_use]
    pub fn backoff(&self, now: u64) -> u64 {
        if let State::Open { until } = self.state { until.saturating_sub(now) } else { 0 }
    }

    /// Whether it is open or probing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// Makes a probe due at `now`, since the failure is probably over.
    pub fn retry_now(&mut self, now: u64) {
        if let State::Open { until } = &mut self.state {
            *until = (*until).min(now);
        }
    }

    /// Records that the probe was dropped without an outcome: the next caller may probe.
    pub fn on_probe_dropped(&mut self, now: u64) {
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
    fn the_delay_doubles_up_to_half_a_minute() {
        let mut breaker = Breaker::default();
        let mut now = 5 * SECOND;
        assert_eq!(breaker.admit(now), Admission::Allow);
        for delay in [1, 2, 4, 8, 16, 30, 30, 30] {
            breaker.on_failure(now, Failure::Faulty);
            assert_eq!(breaker.admit(now), Admission::Wait(delay * SECOND));
            now += delay * SECOND;
            assert_eq!(breaker.admit(now - 1), Admission::Wait(1));
            assert_eq!(breaker.admit(now), Admission::Probe);
            assert_eq!(breaker.admit(now), Admission::Wait(0), "one probe at a time");
        }
    }

    #[test]
    fn concurrent_failures_count_once() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            breaker.on_failure(0, Failure::Faulty);
        }
        assert_eq!(breaker.admit(0), Admission::Wait(FIRST_DELAY_NS));
        assert_eq!(breaker.admit(FIRST_DELAY_NS), Admission::Probe);
        breaker.on_failure(FIRST_DELAY_NS, Failure::Faulty);
        assert_eq!(breaker.admit(FIRST_DELAY_NS), Admission::Wait(2 * FIRST_DELAY_NS));
    }

    #[test]
    fn only_delivered_keys_reset_the_delay() {
        let mut breaker = Breaker::default();
        breaker.on_failure(0, Failure::Faulty);
        assert_eq!(breaker.admit(SECOND), Admission::Probe);
        breaker.on_success(false);
        assert_eq!(breaker.admit(SECOND), Admission::Allow);
        breaker.on_failure(SECOND, Failure::Faulty);
        assert_eq!(breaker.admit(SECOND), Admission::Wait(2 * SECOND));
        assert_eq!(breaker.admit(3 * SECOND), Admission::Probe);
        breaker.on_success(true);
        breaker.on_failure(4 * SECOND, Failure::Faulty);
        assert_eq!(breaker.admit(4 * SECOND), Admission::Wait(SECOND));
    }

    #[test]
    fn an_absent_kme_is_probed_every_second() {
        let mut breaker = Breaker::default();
        let mut now = 0;
        breaker.on_failure(now, Failure::Faulty);
        for delay in [1, 1, 1, 1, 1] {
            assert!(!breaker.probe_due(now + delay * SECOND - 1));
            now += delay * SECOND;
            assert!(breaker.probe_due(now));
            assert_eq!(breaker.admit(now), Admission::Probe);
            breaker.on_failure(now, Failure::Absent);
        }
        breaker.retry_now(now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.retry_now(now);
        assert_eq!(breaker.admit(now), Admission::Wait(0), "one probe at a time");
        breaker.on_success(false);
        breaker.on_failure(now, Failure::Faulty);
        assert_eq!(breaker.admit(now), Admission::Wait(2 * SECOND), "an absence does not double the delay");
    }

    #[test]
    fn after_a_dropped_probe_the_next_caller_may_probe() {
        let mut breaker = Breaker::default();
        breaker.on_failure(0, Failure::Faulty);
        assert_eq!(breaker.admit(SECOND), Admission::Probe);
        breaker.on_probe_dropped(SECOND);
        assert_eq!(breaker.admit(SECOND), Admission::Probe);
        breaker.on_success(false);
        breaker.on_probe_dropped(SECOND);
        assert_eq!(breaker.admit(SECOND), Admission::Allow, "a probe with an outcome is not dropped");
    }
}
