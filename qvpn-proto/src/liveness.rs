//! Tracks whether the peer answers: when something was received, when to ping, and when the peer is silent.
//!
//! Only what was received counts. After `liveness` without an authenticated packet a `Ping` is sent, and two
//! more; as long after the third the peer is silent. Between them the last one is repeated, so that a path
//! that loses a third of its packets does not make a peer silent.

use std::collections::VecDeque;
use std::time::Duration;

use qvpn_types::Time;
use rand_core::CryptoRng;

use crate::wire::Ping;

/// The time without a packet after which the peer may have moved: handshakes go to other endpoints too.
pub const LOST_AFTER: Duration = Duration::from_secs(2);
/// The default of `liveness`. It also decides what the peer's reports mean while `liveness` is off.
const DEFAULT_AFTER: Duration = Duration::from_secs(2);
const MAX_SPACING: Duration = Duration::from_secs(1);
/// A peer that does not measure round trips yet, or measures absurd ones, is pinged within this.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(1);
const PINGS: u8 = 3;
/// Added after the third `Ping`, since neither side runs at the exact moment.
const SCHEDULING_ALLOWANCE: Duration = Duration::from_millis(100);
/// The number of datagrams of a repeated `Ping`.
const REPEAT_COPIES: u8 = 2;
/// The number of answers after which a peer is no longer silent.
const ANSWERS: u8 = 2;
/// After a sign of a silent peer, this many `Ping`s follow each other at this interval.
const EAGER_PINGS: u8 = 8;
const EAGER_INTERVAL: Duration = Duration::from_millis(250);
/// The number of sent nonces that are remembered.
const MAX_NONCES: usize = 32;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivenessStep {
    Nothing,
    /// Send a `Ping` this many times.
    Ping(u8),
    /// The peer is silent from now on: call it.
    Silent,
}

/// Why a peer is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Nothing came from it.
    NothingReceived,
    /// Its packets come, and it reports that ours do not.
    NotReceiving,
    /// It said that it stops.
    Bye,
}

/// The `Ping`s since the last received packet.
#[derive(Debug, Clone, Copy)]
struct Round {
    pings: u8,
    /// When the last of the three was sent.
    pinged_at: Time,
    /// When it was last repeated.
    repeated_at: Time,
}

#[derive(Debug, Clone, Copy)]
struct Silent {
    why: Silence,
    since: Time,
    answers: u8,
    /// `Ping`s that follow at once, since the peer may be back, and the time of the last one.
    eager: u8,
    pinged_at: Option<Time>,
}

/// When something was received from a peer, and whether it answers.
pub struct Liveness {
    /// The time without a packet after which it is pinged; `None` is off.
    after: Option<Duration>,
    heard_at: Option<Time>,
    /// The packet before the last one.
    heard_before: Option<Time>,
    started: Time,
    round: Option<Round>,
    silent: Option<Silent>,
    /// Since when the peer receives nothing, and how many of its reports say so.
    not_heard_since: Option<(Time, u8)>,
    nonces: VecDeque<([u8; 8], Time)>,
    round_trip: Option<Duration>,
}

impl Liveness {
    pub fn new(after: Option<Duration>, now: Time) -> Self {
        Self {
            after,
            heard_at: None,
            heard_before: None,
            started: now,
            round: None,
            silent: None,
            not_heard_since: None,
            nonces: VecDeque::new(),
            round_trip: None,
        }
    }

    /// Sets `liveness`. Without it no silence is reported, except of a peer that said `Bye`.
    pub fn set_after(&mut self, after: Option<Duration>) {
        self.after = after;
        self.round = None;
        if after.is_none() && self.silence() != Some(Silence::Bye) {
            self.silent = None;
        }
    }

    fn after(&self) -> Duration {
        self.after.unwrap_or(DEFAULT_AFTER)
    }

    /// The time between two of the three `Ping`s: 1 s or half of `liveness`, but two round trips at least.
    fn spacing(&self) -> Duration {
        let two_trips = self.round_trip.unwrap_or_default().min(MAX_ROUND_TRIP) * 2;
        MAX_SPACING.min(self.after() / 2).max(two_trips)
    }

    /// A `Ping` is repeated after this time, when its answer should have come.
    fn repeat_interval(&self) -> Duration {
        let trip = self.round_trip.unwrap_or_default().min(MAX_ROUND_TRIP);
        (self.spacing() / 4).max(trip * 3 / 2)
    }

    /// The time after which a peer from which nothing came is silent.
    fn silent_after(&self) -> Duration {
        self.after() + self.spacing() * PINGS.into() + SCHEDULING_ALLOWANCE
    }

    /// Records the average round trip that the channel measured.
    pub fn set_round_trip(&mut self, round_trip: Option<Duration>) {
        self.round_trip = round_trip;
    }

    /// Records an authenticated packet, control or data.
    pub fn on_received(&mut self, at: Time) {
        if self.heard_at.is_some_and(|heard| heard >= at) {
            return;
        }
        self.heard_before = self.heard_at.replace(at);
        self.round = None;
        if let Some(silent) = &mut self.silent
            && silent.why != Silence::Bye
        {
            silent.eager = EAGER_PINGS;
        }
    }

    /// Records a new session. Packets of both sides made it, so each receives the other. It is no answer,
    /// since its packets may have been late.
    pub fn on_new_session(&mut self) {
        self.not_heard_since = None;
        self.silent = self.silent.filter(|silent| silent.why != Silence::NotReceiving);
        self.ping_now();
    }

    /// Makes the next `Ping` of a silent peer due at once.
    fn ping_now(&mut self) {
        if let Some(silent) = &mut self.silent {
            silent.eager = EAGER_PINGS;
            silent.pinged_at = None;
        }
    }

    fn on_answer(&mut self) {
        let Some(silent) = self.silent.as_mut().filter(|silent| silent.why != Silence::NotReceiving) else {
            return;
        };
        silent.answers += 1;
        if silent.answers >= ANSWERS {
            self.silent = None;
        }
        self.ping_now();
    }

    /// Records a `Pong`. Returns its round trip, if the answer is not late. A late one is no answer: a peer
    /// that needs longer than the time after which it is silent stays silent.
    pub fn on_pong(&mut self, pong: &Ping, now: Time) -> Option<Duration> {
        let at = self.nonces.iter().position(|(nonce, _)| *nonce == pong.nonce)?;
        let (_, sent_at) = self.nonces.remove(at)?;
        let took = now.since(sent_at);
        if took > self.silent_after() {
            return None;
        }
        self.on_answer();
        Some(took)
    }

    /// Records what the peer reports in a `Ping` or `Pong`: when it last received something.
    pub fn on_report(&mut self, heard_ago: Option<Duration>, now: Time) {
        let Some(ago) = heard_ago else { return };
        if ago < self.silent_after() {
            self.not_heard_since = None;
            self.silent = self.silent.filter(|silent| silent.why != Silence::NotReceiving);
            return;
        }
        let since = now - ago;
        let (_, reports) = self.not_heard_since.unwrap_or((since, 0));
        self.not_heard_since = Some((since, reports.saturating_add(1)));
    }

    /// Records that the peer stops. It is silent until it answers again.
    pub fn on_bye(&mut self, now: Time) {
        self.round = None;
        self.silent = Some(Silent { why: Silence::Bye, since: now, answers: 0, eager: 0, pinged_at: None });
    }

    /// Makes a `Ping` to send now.
    pub fn ping(&mut self, now: Time, rng: &mut dyn CryptoRng) -> Ping {
        let mut nonce = [0; 8];
        rng.fill_bytes(&mut nonce);
        self.sent(nonce, now);
        Ping { nonce, path: 0, heard_ago: self.heard_at.map(|at| now.since(at)) }
    }

    /// Remembers the nonce of a `Ping` that was sent.
    pub fn sent(&mut self, nonce: [u8; 8], now: Time) {
        if self.nonces.len() == MAX_NONCES {
            self.nonces.pop_front();
        }
        self.nonces.push_back((nonce, now));
    }

    /// Makes the `Pong` to a `Ping`, which has been recorded as received.
    pub fn pong(&self, ping: &Ping, now: Time) -> Ping {
        Ping { heard_ago: self.heard_before.map(|at| now.since(at)), ..*ping }
    }

    /// Returns when [`poll`](Self::poll) must be called next.
    pub fn due(&self, session_up: bool) -> Option<Time> {
        if let Some(silent) = &self.silent {
            let eager = session_up && silent.eager > 0;
            let interval = EAGER_INTERVAL.max(self.round_trip.unwrap_or_default());
            return eager.then(|| silent.pinged_at.map_or(silent.since, |at| at + interval));
        }
        let after = self.after?;
        if self.peer_receives_nothing() {
            return Some(self.started);
        }
        let since = self.heard_at?;
        match self.round {
            _ if !session_up => Some(since + self.silent_after()),
            None => Some(since + after),
            Some(round) => Some(self.next_ping(&round).min(round.repeated_at + self.repeat_interval())),
        }
    }

    fn next_ping(&self, round: &Round) -> Time {
        let allowance = if round.pings < PINGS { Duration::ZERO } else { SCHEDULING_ALLOWANCE };
        round.pinged_at + self.spacing() + allowance
    }

    /// Whether the peer reported twice that it receives nothing: the first report may tell of the time in
    /// which it slept.
    fn peer_receives_nothing(&self) -> bool {
        self.not_heard_since.is_some_and(|(_, reports)| reports >= 2)
    }

    /// Decides what is due.
    pub fn poll(&mut self, session_up: bool, now: Time) -> LivenessStep {
        if self.due(session_up).is_none_or(|due| due > now) {
            return LivenessStep::Nothing;
        }
        if let Some(silent) = &mut self.silent {
            silent.eager = silent.eager.saturating_sub(1);
            silent.pinged_at = Some(now);
            return LivenessStep::Ping(1);
        }
        if self.peer_receives_nothing() {
            return self.begin_silence(Silence::NotReceiving, now);
        }
        match self.round {
            _ if !session_up => self.begin_silence(Silence::NothingReceived, now),
            None => self.begin_ping(1, now),
            Some(round) if self.next_ping(&round) > now => {
                self.round = Some(Round { repeated_at: now, ..round });
                LivenessStep::Ping(REPEAT_COPIES)
            }
            Some(round) if round.pings < PINGS => self.begin_ping(round.pings + 1, now),
            Some(_) => self.begin_silence(Silence::NothingReceived, now),
        }
    }

    fn begin_ping(&mut self, pings: u8, now: Time) -> LivenessStep {
        self.round = Some(Round { pings, pinged_at: now, repeated_at: now });
        LivenessStep::Ping(1)
    }

    fn begin_silence(&mut self, why: Silence, now: Time) -> LivenessStep {
        self.round = None;
        self.silent = Some(Silent { why, since: now, answers: 0, eager: 0, pinged_at: None });
        LivenessStep::Silent
    }

    /// Why the peer is silent, if it is.
    pub fn silence(&self) -> Option<Silence> {
        self.silent.map(|silent| silent.why)
    }

    /// Since when the peer is silent.
    pub fn silent_since(&self) -> Option<Time> {
        self.silent.map(|silent| silent.since)
    }

    /// Since when the peer receives nothing, by its own report.
    pub fn not_heard_since(&self) -> Option<Time> {
        self.not_heard_since.map(|(since, _)| since)
    }

    /// When the last authenticated packet came.
    pub fn heard_at(&self) -> Option<Time> {
        self.heard_at
    }

    /// Returns the time since which nothing was received.
    pub fn quiet_since(&self) -> Time {
        self.heard_at.unwrap_or(self.started)
    }
}

#[cfg(test)]
mod tests;
