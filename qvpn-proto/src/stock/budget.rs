//! Forecasts how long a stock lasts from the recent numbers of received and used keys, and decides when to
//! report that. After the last key is used, traffic continues for the last epoch's age, so the report comes
//! before traffic is affected.

use std::time::Duration;

use super::fault::SupplyFault;
use qvpn_types::Time;

/// A shorter fault is not reported: after a restart, one request for keys of the previous instance fails.
const MIN_FAULT_DURATION: Duration = Duration::from_secs(2);
/// The maximum wait for a KME that lags, or for a source that reports nothing.
const MAX_LAG: Duration = Duration::from_secs(30);
/// A stock that shrinks slowly is reported when it lasts less than this.
const MAX_FORECAST: Duration = Duration::from_secs(3600);
/// The number of intervals after which a rate is measured.
const MIN_RATE_INTERVALS: u32 = 3;

/// The report to make.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has changed.
    Same,
    /// The supply stopped or is too small, with the reason.
    Stopped(String),
    /// Keys arrive again.
    Resumed,
}

/// The supply since the stock was last full.
pub struct Budget {
    full_at: Time,
    gained_at: Time,
    gained: u32,
    held: usize,
    most: usize,
    fault_since: Option<Time>,
    stopped: bool,
}

impl Budget {
    /// Returns a budget without any history.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { full_at: now, gained_at: now, gained: 0, held: 0, most: 0, fault_since: None, stopped: false }
    }

    /// Processes the state of the stock: `held` keys of `target`, one of which is used each `interval`. A
    /// side that does not know the target uses the largest number so far.
    pub fn update(
        &mut self,
        held: usize,
        target: Option<usize>,
        interval: Duration,
        fault: Option<&SupplyFault>,
        now: Time,
    ) -> Verdict {
        self.most = self.most.max(held);
        let target = target.unwrap_or(self.most);
        if held > self.held {
            self.gained_at = now;
            self.gained += u32::try_from(held - self.held).unwrap_or(u32::MAX);
        }
        self.held = held;
        if held >= target {
            (self.full_at, self.gained) = (now, 0);
        }
        match fault {
            Some(_) => _ = self.fault_since.get_or_insert(now),
            None => self.fault_since = None,
        }
        match (self.stopped, self.alarm(target, interval, fault, now)) {
            (false, Some(why)) => {
                self.stopped = true;
                Verdict::Stopped(why)
            }
            // The first key is not enough: a trickle would be reported each time.
            (true, None) if fault.is_none() && held > target / 2 => {
                self.stopped = false;
                Verdict::Resumed
            }
            _ => Verdict::Same,
        }
    }

    /// Ignores missing keys while the peer can't be reached: they say nothing about the supply.
    pub fn pause(&mut self, now: Time) {
        (self.full_at, self.gained_at, self.gained, self.fault_since) = (now, now, 0, None);
    }

    fn alarm(
        &self,
        target: usize,
        interval: Duration,
        fault: Option<&SupplyFault>,
        now: Time,
    ) -> Option<String> {
        if self.held >= target {
            return None;
        }
        let dry = now.since(self.full_at.max(self.gained_at));
        let patience = (self.bare(interval) / 2).clamp(MIN_FAULT_DURATION, MAX_LAG);
        if let Some(fault) = fault {
            let lasted = self.fault_since.map_or(Duration::ZERO, |since| now.since(since));
            let long = if fault.hard { MIN_FAULT_DURATION } else { patience };
            if lasted >= long && dry >= long {
                return Some(fault.text.clone());
            }
        }
        if self.most > 0 && dry >= patience.max(interval * MIN_RATE_INTERVALS) {
            return Some("no new QKD key came, and nobody says why".to_owned());
        }
        let ends = self.lasts(interval, now);
        let low = self.held <= target / 2
            && now.since(self.full_at) >= (interval * MIN_RATE_INTERVALS).max(MIN_FAULT_DURATION);
        (self.most > 0 && low && self.shrinks(interval, now) && ends < MAX_FORECAST).then(|| {
            format!(
                "QKD keys come more slowly than they are used ({} in {} s, one each {} s is needed)",
                self.gained,
                now.since(self.full_at).as_secs(),
                interval.as_secs_f64(),
            )
        })
    }

    /// Returns how long the stock lasts if no more keys arrive.
    fn bare(&self, interval: Duration) -> Duration {
        interval.saturating_mul(u32::try_from(self.held).unwrap_or(u32::MAX))
    }

    /// Whether fewer keys arrived than were used since the stock was last full.
    fn shrinks(&self, interval: Duration, now: Time) -> bool {
        now.since(self.full_at) >= interval * MIN_RATE_INTERVALS
            && interval.saturating_mul(self.gained) < now.since(self.full_at)
    }

    /// Returns how long the stock lasts at the recent supply. While the supply keeps up, returns how long it
    /// would last without it.
    #[must_use]
    pub fn lasts(&self, interval: Duration, now: Time) -> Duration {
        let bare = self.bare(interval);
        if !self.shrinks(interval, now) {
            return bare;
        }
        // Keys are used at 1 / interval and gained at `gained` / seen. The stock falls by the difference.
        let seen = now.since(self.full_at);
        let short = seen.saturating_sub(interval.saturating_mul(self.gained));
        bare.mul_f64((seen.as_secs_f64() / short.as_secs_f64().max(0.001)).min(1e6))
    }

    /// Whether a stop of the supply was reported and its end was not.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const START: Time = Time::from_nanos(1_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn hard() -> SupplyFault {
        SupplyFault { text: "the KME is down".to_owned(), hard: true }
    }

    /// A full stock of five at [`START`].
    fn full() -> Budget {
        let mut budget = Budget::new(START);
        assert_eq!(budget.update(5, Some(5), MINUTE, None, START), Verdict::Same);
        budget
    }

    #[test]
    fn a_kme_that_is_down_is_reported_within_seconds_of_the_first_missing_key() {
        let mut budget = full();
        let at = |s| START + S * s;
        assert_eq!(
            budget.update(5, Some(5), MINUTE, Some(&hard()), at(50)),
            Verdict::Same,
            "none is missing"
        );
        assert_eq!(budget.update(4, Some(5), MINUTE, Some(&hard()), at(60)), Verdict::Stopped(hard().text));
        assert_eq!(budget.lasts(MINUTE, at(60)), MINUTE * 4);
        assert_eq!(budget.update(3, Some(5), MINUTE, Some(&hard()), at(120)), Verdict::Same, "told once");
        assert_eq!(budget.update(5, Some(5), MINUTE, None, at(130)), Verdict::Resumed);
    }

    #[test]
    fn keys_come_again_once_more_than_half_are_there_and_nothing_is_wrong() {
        let at = |s| START + S * s;
        let down = |held: usize| {
            let mut budget = full();
            budget.update(4, Some(5), MINUTE, Some(&hard()), at(60));
            budget.update(held, Some(5), MINUTE, Some(&hard()), at(240));
            assert!(budget.stopped());
            budget
        };
        // The supply is not reported as resumed with the first of several keys, nor with half of them.
        let mut budget = down(0);
        assert_eq!(budget.update(2, Some(5), MINUTE, None, at(241)), Verdict::Same);
        assert_eq!(budget.update(3, Some(5), MINUTE, None, at(242)), Verdict::Resumed);
        let mut budget = down(0);
        assert_eq!(budget.update(3, Some(6), MINUTE, None, at(241)), Verdict::Same);
        assert_eq!(budget.update(4, Some(6), MINUTE, None, at(242)), Verdict::Resumed);
        assert!(!budget.stopped());
        // One key came, and the KME is down again before keys are missing for long.
        let mut budget = down(3);
        assert_eq!(budget.update(4, Some(5), MINUTE, Some(&hard()), at(241)), Verdict::Same);
        assert_eq!(budget.update(4, Some(5), MINUTE, None, at(241)), Verdict::Resumed);
    }

    #[test]
    fn a_path_that_was_down_is_no_fault_of_the_supply() {
        let mut budget = full();
        for minute in 1..30 {
            budget.pause(START + MINUTE * minute);
        }
        let back = START + MINUTE * 29;
        assert_eq!(budget.update(4, Some(5), MINUTE, None, back + S), Verdict::Same);
        assert_eq!(budget.update(5, Some(5), MINUTE, None, back + S * 2), Verdict::Same);
    }

    #[test]
    fn a_kme_that_lags_is_not_reported_while_the_stock_lasts() {
        let mut budget = full();
        let lag = SupplyFault { text: "not found".to_owned(), hard: false };
        for round in 0..20 {
            let at = START + MINUTE * round;
            for second in 0..20 {
                let verdict = budget.update(4, Some(5), MINUTE, Some(&lag), at + S * second);
                assert_eq!(verdict, Verdict::Same, "round {round} second {second}");
            }
            assert_eq!(budget.update(5, Some(5), MINUTE, None, at + S * 20), Verdict::Same);
        }
        // With one second of stock left, the stop is reported early.
        let mut budget = Budget::new(START);
        budget.update(5, Some(5), S, None, START);
        budget.update(1, Some(5), S, Some(&lag), START + S);
        assert!(matches!(budget.update(1, Some(5), S, Some(&lag), START + S * 3), Verdict::Stopped(_)));
    }

    #[test]
    fn a_supply_that_is_too_small_is_reported_with_the_remaining_time() {
        let mut budget = full();
        let (mut held, mut told, mut end) = (5usize, None, 0);
        for second in 1u32..3600 {
            let now = START + S * second;
            // One key is used each minute, and one arrives each 90 s while one is missing.
            held -= usize::from(second % 60 == 0);
            held = (held + usize::from(second % 90 == 45)).min(5);
            if let Verdict::Stopped(why) = budget.update(held, Some(5), MINUTE, None, now) {
                assert!(why.contains("more slowly"), "{why}");
                told = Some((second, held, budget.lasts(MINUTE, now)));
            }
            if held == 0 {
                end = second;
                break;
            }
        }
        let (second, left, lasts) = told.unwrap();
        assert!(left == 2 && lasts > MINUTE * 2, "told at {second} s with {left} keys for {lasts:?}");
        let truly = S * (end - second);
        let off = lasts.abs_diff(truly);
        assert!(off <= MINUTE * 3, "forecast {lasts:?}, true {truly:?}");
    }

    #[test]
    fn a_stock_that_keeps_up_lasts_as_long_as_its_keys_and_so_does_a_new_one() {
        let at = |s| START + S * s;
        // Three keys arrived in three minutes, in which three were used: the stock does not shrink.
        let mut budget = full();
        for (second, held) in [(20, 4), (40, 3), (60, 4), (80, 3), (120, 4), (140, 3), (180, 4)] {
            assert_eq!(budget.update(held, Some(5), MINUTE, None, at(second)), Verdict::Same);
        }
        assert_eq!(budget.lasts(MINUTE, at(180)), MINUTE * 4);
        // A second later, that is slightly too few.
        assert!(budget.lasts(MINUTE, at(181)) > MINUTE * 100);
        // No key arrived in two minutes, which is too short to measure a rate.
        let mut budget = full();
        budget.update(3, Some(5), MINUTE, None, at(120));
        assert_eq!(budget.lasts(MINUTE, at(120)), MINUTE * 3);
    }

    #[test]
    fn a_supply_that_never_began_has_not_stopped() {
        let mut budget = Budget::new(START);
        for minute in 0..60 {
            assert_eq!(budget.update(0, Some(5), MINUTE, None, START + MINUTE * minute), Verdict::Same);
        }
    }

    #[test]
    fn a_silent_source_is_reported_before_the_stock_runs_out() {
        let mut budget = Budget::new(START);
        budget.update(5, None, MINUTE, None, START);
        let mut told = None;
        for second in 1..300u32 {
            let held = 5 - usize::try_from(second / 60).unwrap();
            if let Verdict::Stopped(why) = budget.update(held, None, MINUTE, None, START + S * second) {
                assert!(why.contains("nobody says why"), "{why}");
                told = Some(held);
            }
        }
        assert!(told.is_some_and(|held| held >= 1), "{told:?}");
    }
}
