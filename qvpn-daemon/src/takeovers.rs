//! Whether this gateway of a pair is active, and how often it may become so: each takeover spends up to
//! `stock` QKD keys for each peer, so a pair that changes sides again and again would use up its keys.

use std::time::Duration;

use qvpn_api::status::GatewayStatus;
use qvpn_types::Time;

/// This many takeovers are possible at once, and one more each interval.
const MAX_BURST: u32 = 4;
const TAKEOVER_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Active,
    Standby,
    /// It is to be active, and may be so at this time.
    Waiting(Time),
}

/// Counts and limits takeovers. It starts in standby or, without that being counted, active.
#[derive(Debug)]
pub(crate) struct Takeovers {
    mode: Mode,
    count: u64,
    /// When the takeovers that count against the limit will all be forgotten.
    forgotten_at: Time,
}

impl Takeovers {
    pub(crate) fn new(standby: bool) -> Self {
        let mode = if standby { Mode::Standby } else { Mode::Active };
        Self { mode, count: 0, forgotten_at: Time::default() }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// When it is to be active, if it waits for that.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.mode {
            Mode::Waiting(until) => Some(until),
            Mode::Active | Mode::Standby => None,
        }
    }

    pub(crate) fn stand_by(&mut self) {
        self.mode = Mode::Standby;
    }

    /// Makes it active if the limit permits that, and otherwise lets it wait. Returns the mode then.
    pub(crate) fn activate(&mut self, now: Time) -> Mode {
        if self.mode != Mode::Active {
            let busy = TAKEOVER_INTERVAL * (MAX_BURST - 1);
            let permitted_at = self.forgotten_at.since(now + busy);
            self.mode = match permitted_at {
                Duration::ZERO => {
                    self.count += 1;
                    self.forgotten_at = self.forgotten_at.max(now) + TAKEOVER_INTERVAL;
                    Mode::Active
                }
                wait => Mode::Waiting(now + wait),
            };
        }
        self.mode
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn status(&self, now: Time) -> GatewayStatus {
        let state = match self.mode {
            Mode::Active => "active",
            Mode::Standby => "standby",
            Mode::Waiting(_) => "waiting",
        };
        GatewayStatus {
            state: state.to_owned(),
            takeovers: self.count,
            active_in_s: self.deadline().map(|until| until.since(now).as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(1000 + seconds)
    }

    #[test]
    fn four_takeovers_are_free_and_each_minute_gives_one_more() {
        let mut takeovers = Takeovers::new(true);
        for n in 0..4 {
            assert_eq!(takeovers.activate(at(n)), Mode::Active);
            assert_eq!(takeovers.activate(at(n)), Mode::Active, "asked again");
            takeovers.stand_by();
        }
        // The first is forgotten a minute after it.
        assert_eq!(takeovers.activate(at(10)), Mode::Waiting(at(60)));
        assert_eq!((takeovers.count(), takeovers.status(at(10)).active_in_s), (4, Some(50.0)));
        assert_eq!(takeovers.activate(at(59)), Mode::Waiting(at(60)), "asking again does not put it off");
        assert_eq!(takeovers.activate(at(60)), Mode::Active);
        takeovers.stand_by();
        assert_eq!(takeovers.activate(at(61)), Mode::Waiting(at(120)));
        takeovers.stand_by();
        assert_eq!(takeovers.deadline(), None);
        // An hour later all are forgotten.
        for n in 0..4 {
            assert_eq!(takeovers.activate(at(3600 + n)), Mode::Active);
            takeovers.stand_by();
        }
        assert_eq!((takeovers.count(), takeovers.mode()), (9, Mode::Standby));
    }

    #[test]
    fn the_start_of_an_active_gateway_is_no_takeover() {
        let mut takeovers = Takeovers::new(false);
        assert_eq!((takeovers.activate(at(0)), takeovers.count()), (Mode::Active, 0));
        assert_eq!(takeovers.status(at(0)).state, "active");
    }
}
