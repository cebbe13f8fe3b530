//! Searches for the highest load that a tunnel carries with almost no loss. The load is raised until a step
//! fails; then the gap between the highest success and the lowest failure is halved until it is small.

/// The tolerated share of lost datagrams.
pub const LOSS: f64 = 0.001;

/// The search ends when the lowest failure is at most this many times the highest success.
const MAX_BRACKET_RATIO: f64 = 1.03;

/// Attempts with a load before it counts as too high, since a shared machine may stall.
const RUNS_PER_LOAD: usize = 4;

/// A sender that sent less than this share of the load was too slow itself.
const MIN_SENT_SHARE: f64 = 0.95;

/// Factor by which the load grows until the first failure.
const LOAD_FACTOR: f64 = 1.4;

/// The search does not go below this load, in datagrams per second.
const MIN_LOAD: f64 = 500.0;

/// The result of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received.
    pub received: u64,
    /// Duration of the sending, in seconds.
    pub seconds: f64,
}

impl Step {
    fn passes(&self) -> bool {
        self.sent > 0 && (self.sent.saturating_sub(self.received)) as f64 <= LOSS * self.sent as f64
    }

    /// Returns the rate of received datagrams, per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.received.min(self.sent) as f64 / self.seconds
    }
}

/// The result of the search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Datagrams per second with a loss of at most [`LOSS`]; 0 if no load passed.
    pub rate: f64,
    /// Whether the sender never reached the next load, so that the tunnel may carry more.
    pub sender_bound: bool,
}

/// A load that was too high.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TooMuch {
    load: f64,
    /// Whether it was too high for the sender, not for the tunnel, in each attempt.
    for_sender: bool,
}

/// Searches from `guess`, in datagrams per second. A load passes if one of four attempts passes.
///
/// # Errors
/// The errors of `step`.
pub fn highest<E>(guess: f64, mut step: impl FnMut(f64) -> Result<Step, E>) -> Result<Found, E> {
    let mut attempt = |load: f64| -> Result<Result<f64, TooMuch>, E> {
        let mut for_sender = true;
        for _ in 0..RUNS_PER_LOAD {
            let seen = step(load)?;
            let full = seen.sent as f64 >= MIN_SENT_SHARE * load * seen.seconds;
            if full && seen.passes() {
                return Ok(Ok(seen.rate()));
            }
            for_sender &= !full;
        }
        Ok(Err(TooMuch { load, for_sender }))
    };
    let (mut passed, mut failed): (Option<(f64, f64)>, Option<TooMuch>) = (None, None);
    loop {
        let load = match (passed, failed) {
            (None, None) => guess,
            (Some((low, _)), None) => low * LOAD_FACTOR,
            (None, Some(high)) if high.load / LOAD_FACTOR < MIN_LOAD => {
                return Ok(Found { rate: 0.0, sender_bound: high.for_sender });
            }
            (None, Some(high)) => high.load / LOAD_FACTOR,
            (Some((low, rate)), Some(high)) if high.load / low <= MAX_BRACKET_RATIO => {
                return Ok(Found { rate, sender_bound: high.for_sender });
            }
            (Some((low, _)), Some(high)) => (low * high.load).sqrt(),
        };
        match attempt(load)? {
            Ok(rate) => passed = Some((load, rate)),
            Err(too_much) => failed = Some(too_much),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tunnel that carries `capacity` datagrams per second, and a sender that sends at most `most`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn tunnel(capacity: f64, most: f64) -> impl FnMut(f64) -> Result<Step, ()> {
        move |load| {
            let sent = load.min(most);
            Ok(Step { sent: sent as u64, received: sent.min(capacity) as u64, seconds: 1.0 })
        }
    }

    #[test]
    fn the_capacity_is_found_from_above_and_from_below() {
        for guess in [1_000.0, 123_456.0, 9_000_000.0] {
            let found = highest(guess, tunnel(100_000.0, 1e9)).unwrap();
            assert!(!found.sender_bound);
            assert!((97_000.0..=100_100.0).contains(&found.rate), "{found:?} from {guess}");
        }
    }

    #[test]
    fn a_slow_sender_is_called_so() {
        let found = highest(1_000.0, tunnel(1e9, 50_000.0)).unwrap();
        assert!(found.sender_bound);
        assert!((48_500.0..=50_000.0).contains(&found.rate), "{found:?}");
    }

    #[test]
    fn nothing_is_found_where_nothing_passes() {
        assert_eq!(highest(1_000.0, tunnel(0.0, 1e9)), Ok(Found { rate: 0.0, sender_bound: false }));
    }

    /// Two of three steps fail, by loss or by a sender that stalled.
    #[test]
    fn bad_moments_do_not_count() {
        for spoilt in
            [Step { sent: 60_000, received: 1, seconds: 1.0 }, Step { sent: 10, received: 10, seconds: 1.0 }]
        {
            let mut calls = 0;
            let mut steady = tunnel(100_000.0, 1e9);
            let found = highest(50_000.0, |load| {
                calls += 1;
                if calls % 3 == 0 { steady(load) } else { Ok::<_, ()>(spoilt) }
            });
            assert!((97_000.0..=100_100.0).contains(&found.unwrap().rate), "{found:?}");
        }
    }
}
