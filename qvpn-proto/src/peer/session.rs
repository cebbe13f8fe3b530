//! Keeps the control session alive: starts handshakes, follows the peer's address, asks `Ping` when the other end went
//! silent, and makes the session anew when it does not answer.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::CryptoRng;

use super::Peer;
use crate::config::Role;
use crate::notice::PeerEvent;
use crate::output::{PeerOutput, Transmit};
use crate::session::ControlLink;
use crate::timers::Timer;
use crate::wire::MessageType;
use qvpn_types::Time;

/// How long the responder waits for the initiator to start.
pub(super) const RESPONDER_WAIT: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);
/// Silence after which the other end is asked.
const SILENCE: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(1);
const PINGS: u32 = 3;
/// Handshakes without an answer after which people are told what to compare.
pub(super) const UNANSWERED: u32 = 3;
/// How often this end answers starts with a time set back by a start of its own.
const STALE_AGAIN: Duration = Duration::from_secs(5);
/// How long the last of them is a reason worth telling.
const STALE_LASTS: Duration = Duration::from_secs(60);

/// What people are told then.
pub(super) const CLOCK_SET_BACK: &str = "its handshakes carry a time before that of an earlier one, so they count as repetitions: its clock was set back; set it right (if it is right, somebody repeats old handshakes). Handshakes are started from here instead";

/// What is known of the path to the peer.
pub(super) struct Session {
    pub(super) endpoint: Option<SocketAddr>,
    /// Handshakes started since the last answer.
    pub(super) starts: u32,
    /// Where the last of them went, if not to `endpoint`.
    called: Option<SocketAddr>,
    /// The last authenticated packet, control or data.
    heard_at: Option<Time>,
    /// The first thing that went out since then.
    unanswered_since: Option<Time>,
    pings: u32,
    /// When the last question left, since something was heard.
    asked_at: Option<Time>,
    since: Time,
    /// When a start with a time set back was last answered by one of ours.
    stale_at: Option<Time>,
}

impl Session {
    pub(super) fn new(endpoint: Option<SocketAddr>, now: Time) -> Self {
        Self {
            endpoint,
            starts: 0,
            called: None,
            heard_at: None,
            unanswered_since: None,
            pings: 0,
            asked_at: None,
            since: now,
            stale_at: None,
        }
    }

    pub(super) fn heard(&mut self, now: Time) {
        self.heard_at = Some(self.heard_at.map_or(now, |old| old.max(now)));
        self.unanswered_since = None;
        self.pings = 0;
        self.asked_at = None;
    }

    fn sent(&mut self, at: Time) {
        self.unanswered_since.get_or_insert(at);
    }

    pub(super) fn activity(&mut self, sent_at: Option<Time>, received_at: Option<Time>) {
        if let Some(at) = received_at.filter(|at| self.heard_at.is_none_or(|h| *at > h)) {
            self.heard(at);
        }
        if let Some(at) = sent_at.filter(|at| self.heard_at.is_none_or(|h| *at > h)) {
            self.sent(at);
        }
    }

    /// Each question has its second for an answer, even if this end slept and asks late.
    pub(super) fn liveness_due(&self) -> Option<Time> {
        let since = self.unanswered_since?;
        Some(self.asked_at.map_or(since + SILENCE, |asked| asked + PING_EVERY))
    }

    /// Whether the other end's starts are refused since its clock was set back.
    pub(super) fn is_stale(&self, now: Time) -> bool {
        self.stale_at.is_some_and(|at| now.since(at) < STALE_LASTS)
    }

    /// Since when nothing was heard.
    pub(super) fn silent_since(&self) -> Time {
        self.heard_at.unwrap_or(self.since)
    }
}

impl<L: ControlLink> Peer<L> {
    /// Passes a datagram through the session and gives the packets that came out, with the number of the session.
    pub(super) fn link_datagram(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Time,
    ) -> (u64, Vec<Vec<u8>>) {
        let out = self.link.receive(from.ip(), datagram);
        let lost = now.since(self.session.silent_since()) >= SILENCE && self.session.endpoint != Some(from);
        self.drops.control += u64::from(out.dropped);
        if out.authenticated {
            self.session.heard(now);
            self.session.starts = 0;
            if self.session.endpoint != Some(from) {
                self.session.endpoint = Some(from);
                self.path_moved(now);
                self.emit(PeerEvent::Roamed { endpoint: from });
            }
        }
        // A reply goes back to where the datagram came from, even a cookie to somebody who proved nothing yet.
        self.transmits.extend(out.datagrams.into_iter().map(|datagram| Transmit { to: from, datagram }));
        if out.stale_start {
            self.answer_stale_start(now);
        }
        if out.new_session {
            self.channel.session_started(now);
            self.timers.set(Timer::Handshake, None);
            self.path_used(now);
            // Whoever was called and calls us meanwhile is where that came from, which need not be there.
            if let Some(called) = self.session.called.take().filter(|_| lost && out.answered) {
                self.events.push_back(PeerOutput::LanesTo(called));
            }
            if self.active.as_ref().is_none_or(|a| a.sealing_ends <= now) {
                // Earlier attempts failed because there was no path; now there is one.
                self.attempt_due(now);
            }
        }
        (out.session, out.packets)
    }

    /// A silent peer that starts handshakes with a time set back can't get in by itself: only a start of ours, which carries
    /// our time, helps. Where the peer is heard the start was a repetition. Whoever repeats old ones makes us start one in
    /// five seconds, towards the place that we know, and that harms nobody.
    fn answer_stale_start(&mut self, now: Time) {
        let silent = now.since(self.session.silent_since()) >= SILENCE;
        let recently = self.session.stale_at.is_some_and(|at| now.since(at) < STALE_AGAIN);
        if !silent || recently {
            return;
        }
        self.session.stale_at = Some(now);
        self.emit(PeerEvent::ClockSetBack { detail: CLOCK_SET_BACK.to_owned() });
        if let Some(to) = self.session.endpoint
            && let Some(datagram) = self.link.start()
        {
            self.transmits.push_back(Transmit { to, datagram });
        }
    }

    pub(super) fn link_tick(&mut self, now: Time) {
        let out = self.link.tick();
        if let Some(to) = self.session.endpoint {
            self.transmits.extend(out.datagrams.into_iter().map(|datagram| Transmit { to, datagram }));
        }
        let down = self.link.session_age().is_none();
        if down && self.timers.get(Timer::Handshake).is_none() {
            let wait = if self.config.role == Role::Initiator { Duration::ZERO } else { RESPONDER_WAIT };
            self.timers.set(Timer::Handshake, Some(now + wait));
        }
        self.timers.set(Timer::LinkTick, Some(now + TICK));
    }

    /// Where the other end was last may be gone for good, as when its NAT and ours forgot each other: where the config says is called in
    /// turn.
    fn next_call(&self) -> Option<SocketAddr> {
        let last = self.session.endpoint?;
        Some(self.config.endpoint.filter(|_| self.session.starts % 2 == 1).unwrap_or(last))
    }

    /// Starts a handshake unless a session is up, and again after 1, 2, 4 and then every 5 s.
    pub(super) fn start_handshake(&mut self, now: Time) {
        if self.link.session_age().is_some() {
            return;
        }
        if let Some(to) = self.next_call()
            && let Some(datagram) = self.link.start()
        {
            self.transmits.push_back(Transmit { to, datagram });
            self.session.called = Some(to).filter(|_| self.session.endpoint != Some(to));
            self.session.starts += 1;
        }
        let wait = Duration::from_secs(1 << self.session.starts.saturating_sub(1).min(3))
            .min(Duration::from_secs(5));
        self.timers.set(Timer::Handshake, Some(now + wait));
    }

    /// The other end is silent though something went out: ask, and after three questions make the session anew.
    pub(super) fn check_liveness(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        if self.session.liveness_due().is_none_or(|due| due > now) {
            return;
        }
        if self.link.session_age().is_none() {
            // A handshake is tried already, and there is nothing to ask through.
            self.session.unanswered_since = None;
            self.session.asked_at = None;
            return;
        }
        if self.session.pings < PINGS {
            self.session.pings += 1;
            self.session.asked_at = Some(now);
            self.channel.send_once(MessageType::Ping, &[], rng);
            return;
        }
        self.session.pings = 0;
        self.session.asked_at = None;
        self.session.unanswered_since = None;
        if self.session.endpoint.is_some() {
            self.link.reset();
            self.start_handshake(now);
        }
    }

    /// Sends what is due through the session.
    pub(super) fn pump(&mut self, now: Time) {
        let Some(to) = self.session.endpoint else { return };
        if self.link.session_age().is_none() {
            return;
        }
        self.channel.flush(now);
        while let Some(packet) = self.channel.next_packet() {
            if let Some(datagram) = self.link.send(&packet) {
                self.session.sent(now);
                self.transmits.push_back(Transmit { to, datagram });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_counted_from_what_went_out_after_the_last_word() {
        let mut session = Session::new(None, at(1));
        assert_eq!((session.silent_since(), session.liveness_due()), (at(1), None));
        session.sent(at(2));
        session.sent(at(3));
        assert_eq!(session.liveness_due(), Some(at(4)), "two seconds after the first of both");
        session.activity(Some(at(6)), Some(at(5)));
        assert_eq!((session.silent_since(), session.liveness_due()), (at(5), Some(at(8))));
        session.activity(None, Some(at(5)));
        assert_eq!(session.liveness_due(), Some(at(8)), "no news");
        session.asked_at = Some(at(20));
        assert_eq!(session.liveness_due(), Some(at(21)), "each question has its second");
        session.heard(at(4));
        assert_eq!((session.silent_since(), session.liveness_due()), (at(5), None), "time goes on only");
        session.activity(Some(at(5)), None);
        assert_eq!(session.liveness_due(), None, "it went out before the last word");
    }

    #[test]
    fn a_clock_that_was_set_back_is_told_of_for_a_minute() {
        let mut session = Session::new(None, at(1));
        assert!(!session.is_stale(at(1)));
        session.stale_at = Some(at(10));
        assert!(session.is_stale(at(69)) && !session.is_stale(at(70)));
    }
}
