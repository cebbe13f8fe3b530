//! The forecast of a stock: from the keys that came and went lately, when the last is used up, and whether people must hear
//! of it now. Traffic goes on until then and for the last epoch's age after, so they hear of it before it is hurt.

use std::time::Duration;

use super::fault::SupplyFault;
use qvpn_types::Time;

/// SupplyFault that is shorter is no news: after a restart, keys of the life before are asked for once in vain.
const SHORT: Duration = Duration::from_secs(2);
/// A KME that lags, or a source that says nothing, is waited for so long at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// A stock that shrinks slowly is told of when it ends sooner than this.
const HORIZON: Duration = Duration::from_secs(3600);
/// So many intervals are looked at before a rate counts.
const SEEN: u32 = 3;

/// What follows for people.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Same,
    /// The supply stopped or is too small, and why.
    Stopped(String),
    /// Keys come again.
    Resumed,
}

/// What was seen of the supply since the stock was last full.
pub struct Budget {
    full_at: Time,
    gained_at: Time,
    gained: u32,
    held: usize,
    most: usize,
    trouble_since: Option<Time>,
    stopped: bool,
}

impl Budget {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            full_at: now,
            gained_at: now,
            gained: 0,
            held: 0,
            most: 0,
            trouble_since: None,
            stopped: false,
        }
    }

    /// Looks at the stock: `held` keys of `target` (an end that does not know how many there are to be takes the most that it
    /// saw), one of which is used each `interval`.
    pub fn look(
        &mut self,
        held: usize,
        target: Option<usize>,
        interval: Duration,
        trouble: Option<&SupplyFault>,
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
        match trouble {
            Some(_) => _ = self.trouble_since.get_or_insert(now),
            None => self.trouble_since = None,
        }
        match (self.stopped, self.alarm(target, interval, trouble, now)) {
            (false, Some(why)) => {
                self.stopped = true;
                Verdict::Stopped(why)
            }
            // Not at the first key, or a trickle would be news each time.
            (true, None) if trouble.is_none() && held > target / 2 => {
                self.stopped = false;
                Verdict::Resumed
            }
            _ => Verdict::Same,
        }
    }

    /// The other end can't be talked to: what is not seen meanwhile says nothing about the supply.
    pub fn pause(&mut self, now: Time) {
        (self.full_at, self.gained_at, self.gained, self.trouble_since) = (now, now, 0, None);
    }

    fn alarm(
        &self,
        target: usize,
        interval: Duration,
        trouble: Option<&SupplyFault>,
        now: Time,
    ) -> Option<String> {
        if self.held >= target {
            return None;
        }
        let dry = now.since(self.full_at.max(self.gained_at));
        let patience = (self.bare(interval) / 2).clamp(SHORT, PATIENCE);
        if let Some(trouble) = trouble {
            let lasted = self.trouble_since.map_or(Duration::ZERO, |since| now.since(since));
            let long = if trouble.hard { SHORT } else { patience };
            if lasted >= long && dry >= long {
                return Some(trouble.text.clone());
            }
        }
        if self.most > 0 && dry >= patience.max(interval * SEEN) {
            return Some("no new QKD key came, and nobody says why".to_owned());
        }
        let ends = self.lasts(interval, now);
        let low = self.held <= target / 2 && now.since(self.full_at) >= (interval * SEEN).max(SHORT);
        (self.most > 0 && low && self.shrinks(interval, now) && ends < HORIZON).then(|| {
            format!(
                "QKD keys come more slowly than they are used ({} in {} s, one each {} s is needed)",
                self.gained,
                now.since(self.full_at).as_secs(),
                interval.as_secs_f64(),
            )
        })
    }

    /// How long the stock lasts if no key comes any more.
    fn bare(&self, interval: Duration) -> Duration {
        interval.saturating_mul(u32::try_from(self.held).unwrap_or(u32::MAX))
    }

    /// Since the stock was last full, fewer keys came than are used.
    fn shrinks(&self, interval: Duration, now: Time) -> bool {
        now.since(self.full_at) >= interval * SEEN
            && interval.saturating_mul(self.gained) < now.since(self.full_at)
    }

    /// How long the stock lasts at the supply seen; while that keeps up, how long it would last without.
    #[must_use]
    pub fn lasts(&self, interval: Duration, now: Time) -> Duration {
        let bare = self.bare(interval);
        if !self.shrinks(interval, now) {
            return bare;
        }
        // Used at 1 / interval, gained at `gained` / seen: the stock falls by the difference.
        let seen = now.since(self.full_at);
        let short = seen.saturating_sub(interval.saturating_mul(self.gained));
        bare.mul_f64((seen.as_secs_f64() / short.as_secs_f64().max(0.001)).min(1e6))
    }

    /// Whether people were told that the supply stopped, and not yet that it came back.
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
        assert_eq!(budget.look(5, Some(5), MINUTE, None, START), Verdict::Same);
        budget
    }

    #[test]
    fn a_kme_that_is_down_is_told_of_within_seconds_of_the_first_missing_key() {
        let mut budget = full();
        let at = |s| START + S * s;
        assert_eq!(budget.look(5, Some(5), MINUTE, Some(&hard()), at(50)), Verdict::Same, "none is missing");
        assert_eq!(budget.look(4, Some(5), MINUTE, Some(&hard()), at(60)), Verdict::Stopped(hard().text));
        assert_eq!(budget.lasts(MINUTE, at(60)), MINUTE * 4);
        assert_eq!(budget.look(3, Some(5), MINUTE, Some(&hard()), at(120)), Verdict::Same, "told once");
        assert_eq!(budget.look(5, Some(5), MINUTE, None, at(130)), Verdict::Resumed);
    }

    #[test]
    fn keys_come_again_once_more_than_half_are_there_and_nothing_is_wrong() {
        let at = |s| START + S * s;
        let down = |held: usize| {
            let mut budget = full();
            budget.look(4, Some(5), MINUTE, Some(&hard()), at(60));
            budget.look(held, Some(5), MINUTE, Some(&hard()), at(240));
            assert!(budget.stopped());
            budget
        };
        // The first keys of many are no news yet, nor is half of them.
        let mut budget = down(0);
        assert_eq!(budget.look(2, Some(5), MINUTE, None, at(241)), Verdict::Same);
        assert_eq!(budget.look(3, Some(5), MINUTE, None, at(242)), Verdict::Resumed);
        let mut budget = down(0);
        assert_eq!(budget.look(3, Some(6), MINUTE, None, at(241)), Verdict::Same);
        assert_eq!(budget.look(4, Some(6), MINUTE, None, at(242)), Verdict::Resumed);
        assert!(!budget.stopped());
        // One came, and the KME is down again before anything is missing for long.
        let mut budget = down(3);
        assert_eq!(budget.look(4, Some(5), MINUTE, Some(&hard()), at(241)), Verdict::Same);
        assert_eq!(budget.look(4, Some(5), MINUTE, None, at(241)), Verdict::Resumed);
    }

    #[test]
    fn a_path_that_was_down_is_no_trouble_of_the_supply() {
        let mut budget = full();
        for minute in 1..30 {
            budget.pause(START + MINUTE * minute);
        }
        let back = START + MINUTE * 29;
        assert_eq!(budget.look(4, Some(5), MINUTE, None, back + S), Verdict::Same);
        assert_eq!(budget.look(5, Some(5), MINUTE, None, back + S * 2), Verdict::Same);
    }

    #[test]
    fn a_kme_that_lags_is_no_news_while_the_stock_bears_it() {
        let mut budget = full();
        let lag = SupplyFault { text: "not found".to_owned(), hard: false };
        for round in 0..20 {
            let at = START + MINUTE * round;
            for second in 0..20 {
                let look = budget.look(4, Some(5), MINUTE, Some(&lag), at + S * second);
                assert_eq!(look, Verdict::Same, "round {round} second {second}");
            }
            assert_eq!(budget.look(5, Some(5), MINUTE, None, at + S * 20), Verdict::Same);
        }
        // With a second of stock left there is no patience.
        let mut budget = Budget::new(START);
        budget.look(5, Some(5), S, None, START);
        budget.look(1, Some(5), S, Some(&lag), START + S);
        assert!(matches!(budget.look(1, Some(5), S, Some(&lag), START + S * 3), Verdict::Stopped(_)));
    }

    #[test]
    fn a_supply_that_is_too_small_is_told_of_with_the_end_in_sight() {
        let mut budget = full();
        let (mut held, mut told, mut end) = (5usize, None, 0);
        for second in 1u32..3600 {
            let now = START + S * second;
            // One key is used each minute, and one comes each 90 s while one is missing.
            held -= usize::from(second % 60 == 0);
            held = (held + usize::from(second % 90 == 45)).min(5);
            if let Verdict::Stopped(why) = budget.look(held, Some(5), MINUTE, None, now) {
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
    fn a_stock_that_keeps_up_lasts_as_long_as_its_keys_and_so_does_one_just_seen() {
        let at = |s| START + S * s;
        // Three came in three minutes, in which three were used.
        let mut budget = full();
        for (second, held) in [(20, 4), (40, 3), (60, 4), (80, 3), (120, 4), (140, 3), (180, 4)] {
            assert_eq!(budget.look(held, Some(5), MINUTE, None, at(second)), Verdict::Same);
        }
        assert_eq!(budget.lasts(MINUTE, at(180)), MINUTE * 4);
        // A second later that is too few, by little.
        assert!(budget.lasts(MINUTE, at(181)) > MINUTE * 100);
        // None came in two minutes, which says nothing yet.
        let mut budget = full();
        budget.look(3, Some(5), MINUTE, None, at(120));
        assert_eq!(budget.lasts(MINUTE, at(120)), MINUTE * 3);
    }

    #[test]
    fn a_supply_that_never_began_has_not_stopped() {
        let mut budget = Budget::new(START);
        for minute in 0..60 {
            assert_eq!(budget.look(0, Some(5), MINUTE, None, START + MINUTE * minute), Verdict::Same);
        }
    }

    #[test]
    fn a_source_that_says_nothing_is_told_of_before_the_stock_ends() {
        let mut budget = Budget::new(START);
        budget.look(5, None, MINUTE, None, START);
        let mut told = None;
        for second in 1..300u32 {
            let held = 5 - usize::try_from(second / 60).unwrap();
            if let Verdict::Stopped(why) = budget.look(held, None, MINUTE, None, START + S * second) {
                assert!(why.contains("nobody says why"), "{why}");
                told = Some(held);
            }
        }
        assert!(told.is_some_and(|held| held >= 1), "{told:?}");
    }
}
