//! The highest load that a tunnel carries with next to no loss: the load is raised until a step fails, and then the gap
//! between the highest that passed and the lowest that failed is halved until it is small.

/// The share of datagrams that may be lost.
pub const LOSS: f64 = 0.001;

/// The search ends when the lowest failure is no further above the highest success.
const FINE: f64 = 1.03;

/// Growth of the load while nothing failed yet.
const GROWTH: f64 = 1.4;

/// Below this many datagrams a second nothing is looked for.
const FLOOR: f64 = 500.0;

/// What one step saw, in datagrams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Handed to the kernel.
    pub sent: u64,
    /// Arrived.
    pub received: u64,
    /// How long the sender was at it.
    pub seconds: f64,
}

impl Step {
    fn passes(&self) -> bool {
        self.sent > 0 && (self.sent.saturating_sub(self.received)) as f64 <= LOSS * self.sent as f64
    }

    /// Datagrams a second that arrived.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.received.min(self.sent) as f64 / self.seconds
    }
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Datagrams a second with a loss of at most [`LOSS`]; 0 if none was found.
    pub rate: f64,
    /// The sender did not reach the next load: the tunnel may carry more.
    pub sender_bound: bool,
}

/// Looks for it, from `guess` on. A step that fails is given a second chance, since a moment's noise is not the tunnel's.
///
/// # Errors
/// Those of `step`.
pub fn highest<E>(guess: f64, mut step: impl FnMut(f64) -> Result<Step, E>) -> Result<Found, E> {
    let mut attempt = |load: f64| -> Result<Option<Step>, E> {
        let first = step(load)?;
        if first.passes() {
            return Ok(Some(first));
        }
        let second = step(load)?;
        Ok(second.passes().then_some(second))
    };
    let (mut passed, mut failed): (Option<(f64, f64)>, Option<f64>) = (None, None);
    loop {
        let load = match (passed, failed) {
            (None, None) => guess,
            (Some((low, _)), None) => low * GROWTH,
            (None, Some(high)) if high / GROWTH < FLOOR => {
                return Ok(Found { rate: 0.0, sender_bound: false });
            }
            (None, Some(high)) => high / GROWTH,
            (Some((low, rate)), Some(high)) if high / low <= FINE => {
                return Ok(Found { rate, sender_bound: false });
            }
            (Some((low, _)), Some(high)) => (low * high).sqrt(),
        };
        match attempt(load)? {
            Some(seen) => {
                if (seen.sent as f64) < 0.95 * load * seen.seconds {
                    let rate = passed.map_or(0.0, |p| p.1).max(seen.rate());
                    return Ok(Found { rate, sender_bound: true });
                }
                passed = Some((load, seen.rate()));
            }
            None => failed = Some(load),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tunnel that carries `capacity` a second, under a sender that offers at most `most`.
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
        assert!((49_000.0..=50_000.0).contains(&found.rate), "{found:?}");
    }

    #[test]
    fn nothing_is_found_where_nothing_passes() {
        assert_eq!(highest(1_000.0, tunnel(0.0, 1e9)), Ok(Found { rate: 0.0, sender_bound: false }));
    }

    #[test]
    fn one_bad_moment_does_not_count() {
        let mut calls = 0;
        let mut steady = tunnel(100_000.0, 1e9);
        let found = highest(50_000.0, |load| {
            calls += 1;
            if calls == 1 { Ok(Step { sent: 10, received: 1, seconds: 1.0 }) } else { steady(load) }
        });
        assert!(found.unwrap().rate > 97_000.0);
    }
}
