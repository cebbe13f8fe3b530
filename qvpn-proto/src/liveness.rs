//! Tracks whether the peer answers: when something was received, what was sent since, and when to ping.

use std::time::Duration;

use qvpn_types::Time;

/// The silence after which a `Ping` is sent.
pub const PING_AFTER: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_secs(1);
const MAX_PINGS: u32 = 3;

/// The action for a peer that does not answer.
#[derive(Debug, PartialEq, Eq)]
pub enum LivenessStep {
    Nothing,
    Ping,
    /// Reset the control session and start a handshake.
    Reconnect,
}

/// When something was received from a peer, and what was sent since.
pub struct Liveness {
    /// When the last authenticated packet arrived, control or data.
    heard_at: Option<Time>,
    /// When the first packet was sent since then.
    unanswered_since: Option<Time>,
    pings: u32,
    /// When the last `Ping` was sent since then.
    pinged_at: Option<Time>,
    started: Time,
}

impl Liveness {
    pub fn new(now: Time) -> Self {
        Self { heard_at: None, unanswered_since: None, pings: 0, pinged_at: None, started: now }
    }

    pub fn on_received(&mut self, at: Time) {
        self.heard_at = Some(self.heard_at.map_or(at, |old| old.max(at)));
        self.forget_unanswered();
        self.pings = 0;
    }

    pub fn on_sent(&mut self, at: Time) {
        self.unanswered_since.get_or_insert(at);
    }

    /// Records the newest data packets in both directions.
    pub fn on_activity(&mut self, sent_at: Option<Time>, received_at: Option<Time>) {
        if let Some(at) = received_at.filter(|at| self.heard_at.is_none_or(|heard| *at > heard)) {
            self.on_received(at);
        }
        if let Some(at) = sent_at.filter(|at| self.heard_at.is_none_or(|heard| *at > heard)) {
            self.on_sent(at);
        }
    }

    fn forget_unanswered(&mut self) {
        self.unanswered_since = None;
        self.pinged_at = None;
    }

    /// Returns the time of the next `Ping`. The peer has a second to answer each one, even if this machine
    /// slept and sent it late.
    pub fn due(&self) -> Option<Time> {
        let since = self.unanswered_since?;
        Some(self.pinged_at.map_or(since + PING_AFTER, |pinged| pinged + PING_INTERVAL))
    }

    /// Decides what is due. After three unanswered `Ping`s it resets the control session.
    pub fn poll(&mut self, session_up: bool, now: Time) -> LivenessStep {
        if self.due().is_none_or(|due| due > now) {
            return LivenessStep::Nothing;
        }
        if !session_up {
            // A handshake is under way already, and no `Ping` can be sent without a session.
            self.forget_unanswered();
            return LivenessStep::Nothing;
        }
        if self.pings < MAX_PINGS {
            self.pings += 1;
            self.pinged_at = Some(now);
            return LivenessStep::Ping;
        }
        self.pings = 0;
        self.forget_unanswered();
        LivenessStep::Reconnect
    }

    /// Returns the time since which nothing was received.
    pub fn silent_since(&self) -> Time {
        self.heard_at.unwrap_or(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_counted_from_what_was_sent_after_the_last_received_packet() {
        let mut session = Liveness::new(at(1));
        assert_eq!((session.silent_since(), session.due()), (at(1), None));
        session.on_sent(at(2));
        session.on_sent(at(3));
        assert_eq!(session.due(), Some(at(4)), "two seconds after the first of both");
        session.on_activity(Some(at(6)), Some(at(5)));
        assert_eq!((session.silent_since(), session.due()), (at(5), Some(at(8))));
        session.on_activity(None, Some(at(5)));
        assert_eq!(session.due(), Some(at(8)), "nothing new");
        session.pinged_at = Some(at(20));
        assert_eq!(session.due(), Some(at(21)), "each ping has its second");
        session.on_received(at(4));
        assert_eq!((session.silent_since(), session.due()), (at(5), None), "time only rises");
        session.on_activity(Some(at(5)), None);
        assert_eq!(session.due(), None, "it was sent before the last received packet");
    }
}
