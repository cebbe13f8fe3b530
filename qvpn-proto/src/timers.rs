//! All timers of a peer: one enum, one table.

use qvpn_types::Time;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The session's own clockwork, every 250 ms.
    LinkTick,
    /// The next handshake while there is no session.
    Handshake,
    /// The next `Ping`.
    Liveness,
    /// The next retransmission.
    Retransmit,
    /// The next epoch attempt.
    Attempt,
    /// The attempt under way times out.
    AttemptEnd,
    /// `Propose` again.
    ProposeAgain,
    /// `Confirm` again.
    ConfirmAgain,
    /// Something to do for the stock: fetch, retry, age.
    Stock,
    /// The active epoch's sealing ends.
    EpochEnd,
    /// The responder asks for an epoch again.
    AskRekey,
    /// The keys of an unconfirmed epoch expire.
    PendingEnd,
    /// A probe of the path is due, or a round of probes ends.
    PathMtu,
}

impl Timer {
    /// All timers, in the order in which those that are due together are handled.
    pub const ALL: [Self; 13] = [
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
        Self::PathMtu,
    ];
}

const COUNT: usize = Timer::ALL.len();

/// When each timer is due.
#[derive(Default)]
pub struct Timers([Option<Time>; COUNT]);

impl Timers {
    /// Sets a timer, or stops it by `None`.
    pub fn set(&mut self, timer: Timer, at: Option<Time>) {
        self.0[timer as usize] = at;
    }

    /// When a timer is due.
    #[must_use]
    pub fn get(&self, timer: Timer) -> Option<Time> {
        self.0[timer as usize]
    }

    /// Whether a timer is due; if it is, it is stopped.
    pub fn take_due(&mut self, timer: Timer, now: Time) -> bool {
        let due = self.0[timer as usize].is_some_and(|at| at <= now);
        if due {
            self.0[timer as usize] = None;
        }
        due
    }

    /// When the first timer is due.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.0.iter().flatten().min().copied()
    }
}
