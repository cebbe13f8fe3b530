//! All timers of a peer.

use qvpn_types::Time;

/// The purpose of a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The session's own timers, every 250 ms.
    LinkTick,
    /// The next handshake while there is no session.
    Handshake,
    /// The next `Ping`.
    Liveness,
    /// The next retransmission.
    Retransmit,
    /// The next epoch attempt.
    Attempt,
    /// The time limit of the attempt under way.
    AttemptEnd,
    /// The next repetition of `Propose`.
    ProposeAgain,
    /// The next repetition of `Confirm`.
    ConfirmAgain,
    /// The stock's next work: fetch, retry, age.
    Stock,
    /// The end of the active epoch's sealing.
    EpochEnd,
    /// The responder's next request for an epoch.
    AskRekey,
    /// The expiry of an unconfirmed epoch's keys.
    PendingEnd,
    /// The peer had the time to refuse our `Hello` again.
    Refusal,
    /// The next handshake with our new key, or the end of the former one.
    KeyChange,
    /// A path probe is due, or a round of probes ends.
    PathMtu,
}

impl Timer {
    /// All timers, in the order in which timers that are due together are handled.
    pub const ALL: [Self; 15] = [
        Self::LinkTick,
        Self::Handshake,
        Self::Liveness,
        Self::Stock,
        Self::AttemptEnd,
        Self::ProposeAgain,
        Self::ConfirmAgain,
        Self::AskRekey,
        Self::PendingEnd,
        Self::Attempt,
        Self::Retransmit,
        Self::EpochEnd,
        Self::Refusal,
        Self::KeyChange,
        Self::PathMtu,
    ];
}

const COUNT: usize = Timer::ALL.len();

/// The time of each timer.
#[derive(Default)]
pub struct Timers([Option<Time>; COUNT]);

impl Timers {
    /// Sets a timer; `None` stops it.
    pub fn set(&mut self, timer: Timer, at: Option<Time>) {
        self.0[timer as usize] = at;
    }

    /// Returns the time of a timer.
    #[must_use]
    pub fn get(&self, timer: Timer) -> Option<Time> {
        self.0[timer as usize]
    }

    /// Whether a timer is due. A due timer is stopped.
    pub fn take_due(&mut self, timer: Timer, now: Time) -> bool {
        let due = self.0[timer as usize].is_some_and(|at| at <= now);
        if due {
            self.0[timer as usize] = None;
        }
        due
    }

    /// Returns the time of the first timer.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.0.iter().flatten().min().copied()
    }
}
