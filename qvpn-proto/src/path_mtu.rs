//! Finds the largest inner packet that passes the path to the peer unfragmented. As in RFC 8899, only the
//! peer's acknowledgements count: an ICMP error on the WAN may be forged. The search does no I/O: it says
//! which sizes to probe, and gets the acknowledgements.
//!
//! A probe is a padded `Ping`, sent with "don't fragment". Each round includes a small probe. If that one
//! isn't acknowledged, the round is void. The size in use is checked regularly. When it fails, all sizes are
//! probed in one round, and the largest that passes is used at once, since hosts remember a smaller MTU for
//! ten minutes.

use std::time::Duration;

use crate::wire::MessageId;
use crate::wire::limits::{MAX_LINK_PACKET, MAX_PROBE};
use qvpn_types::Time;

/// The smallest MTU: its outer packet has at most 1,280 bytes, which IPv6 requires of each path.
pub const MIN_PATH_MTU: u16 = 1200;
/// The largest MTU: its outer IPv6 packet has 1,500 bytes.
pub const MAX_PATH_MTU: u16 = 1420;
/// The step between sizes, in bytes: packets are padded to a multiple of it.
const SIZE_STEP: usize = 16;

/// The interval of checks of the size in use, with traffic and without.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The interval of probes of larger sizes.
const RAISE_INTERVAL: Duration = Duration::from_secs(20);
/// The number of valid rounds after which the size in use has failed.
const MAX_FAILED_ROUNDS: u8 = 5;
/// The number of valid rounds in which larger sizes are probed.
const RAISE_ROUNDS: u8 = 3;
/// A round lasts two round trips and `ROUND_MARGIN`, within these limits.
const MIN_ROUND_DURATION: Duration = Duration::from_millis(250);
const MAX_ROUND_DURATION: Duration = Duration::from_secs(2);
const ROUND_MARGIN: Duration = Duration::from_millis(100);

const _: () = assert!(MIN_PATH_MTU as usize == MAX_LINK_PACKET && MAX_PATH_MTU as usize == MAX_PROBE);

/// The purpose of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbePurpose {
    /// Checks whether the size in use still passes.
    Check,
    /// Checks whether a larger size passes: the next one and the largest are probed.
    Peek,
    /// Finds which of all larger sizes pass.
    Raise,
}

#[derive(Debug)]
struct ProbeRound {
    purpose: ProbePurpose,
    /// Valid rounds with this purpose so far.
    valid: u8,
    /// Rounds with this purpose so far.
    tries: u8,
    /// The probes under way; size 0 is the small probe.
    probes: Vec<(MessageId, u16)>,
    small_passed: bool,
    best: u16,
    ends: Time,
}

/// The search for one peer.
#[derive(Debug)]
pub struct PathMtu {
    mtu: u16,
    round: Option<ProbeRound>,
    check_at: Time,
    raise_at: Option<Time>,
    /// Whether something was sent since the last check.
    active: bool,
}

impl PathMtu {
    /// Returns a search that starts at once. Until it ends, the largest MTU is in use.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { mtu: MAX_PATH_MTU, round: None, check_at: now, raise_at: None, active: false }
    }

    /// Returns the size in use: bytes of an inner packet.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Makes checks of the size in use and of larger ones due now, since the path changed.
    pub fn moved(&mut self, now: Time) {
        self.round = None;
        self.check_at = now;
        self.raise_at = (self.mtu < MAX_PATH_MTU).then_some(now);
    }

    /// Records that data was sent: the size in use then matters.
    pub fn sent(&mut self, now: Time) {
        if !std::mem::replace(&mut self.active, true) {
            self.check_at = self.check_at.min(now + CHECK_INTERVAL);
        }
    }

    /// Returns when [`due`](Self::due) must be called next.
    #[must_use]
    pub fn next(&self) -> Time {
        match &self.round {
            Some(round) => round.ends,
            None => self.raise_at.map_or(self.check_at, |at| at.min(self.check_at)),
        }
    }

    /// Returns the sizes to probe now, 0 for a small probe. Call it while there is a session, and then
    /// [`probed`](Self::probed) for each size.
    pub fn due(&mut self, now: Time, round_trip: Option<Duration>) -> Vec<u16> {
        if self.next() > now {
            return Vec::new();
        }
        match self.round.take() {
            Some(round) => self.end(round, now),
            None if self.raise_at.is_some_and(|at| at <= now) => {
                self.begin(ProbePurpose::Peek, self.mtu, now)
            }
            None => self.begin(ProbePurpose::Check, 0, now),
        }
        let Some(round) = &mut self.round else { return Vec::new() };
        let wait = round_trip.map_or(MIN_ROUND_DURATION * 2, |rtt| {
            (rtt * 2 + ROUND_MARGIN).clamp(MIN_ROUND_DURATION, MAX_ROUND_DURATION)
        });
        round.ends = now + wait;
        let mut sizes = vec![0];
        match round.purpose {
            ProbePurpose::Check => sizes.push(self.mtu),
            ProbePurpose::Peek => {
                sizes.extend(candidates().find(|size| *size > self.mtu && *size < MAX_PATH_MTU));
                sizes.push(MAX_PATH_MTU);
            }
            ProbePurpose::Raise => sizes.extend(candidates().filter(|size| *size > round.best)),
        }
        sizes
    }

    /// Records that a probe of `size` was sent under this ID.
    pub fn probed(&mut self, id: MessageId, size: u16) {
        if let Some(round) = &mut self.round {
            round.probes.push((id, size));
        }
    }

    /// Records that the probe with this ID was acknowledged.
    pub fn acknowledged(&mut self, id: &MessageId, now: Time) {
        let Some(round) = &mut self.round else { return };
        let Some((_, size)) = round.probes.iter().find(|(probe, _)| probe == id) else { return };
        match *size {
            0 => round.small_passed = true,
            size => round.best = round.best.max(size),
        }
        // The other probes of this round can no longer change the result.
        let done = match round.purpose {
            ProbePurpose::Check => round.best >= self.mtu,
            ProbePurpose::Peek => round.best > self.mtu,
            ProbePurpose::Raise => round.best == MAX_PATH_MTU,
        };
        if done {
            round.ends = round.ends.min(now);
        }
    }

    /// Starts the first round with this purpose; `best` is known to pass.
    fn begin(&mut self, purpose: ProbePurpose, best: u16, now: Time) {
        let probes = Vec::new();
        self.round =
            Some(ProbeRound { purpose, valid: 0, tries: 0, probes, small_passed: false, best, ends: now });
    }

    /// Ends a round and starts the next one, if another is needed.
    fn end(&mut self, mut round: ProbeRound, now: Time) {
        round.tries += 1;
        round.valid += u8::from(round.small_passed);
        round.small_passed = false;
        match round.purpose {
            ProbePurpose::Check if round.best >= self.mtu => self.rest(now),
            ProbePurpose::Check if round.valid >= MAX_FAILED_ROUNDS && self.mtu > MIN_PATH_MTU => {
                self.begin(ProbePurpose::Raise, MIN_PATH_MTU, now)
            }
            // The smallest size stays in use.
            ProbePurpose::Check if round.valid >= MAX_FAILED_ROUNDS => self.rest(now),
            ProbePurpose::Peek if round.best > self.mtu && round.best < MAX_PATH_MTU => {
                self.mtu = round.best;
                self.begin(ProbePurpose::Raise, round.best, now);
            }
            ProbePurpose::Peek | ProbePurpose::Raise
                if round.best == MAX_PATH_MTU || round.valid >= RAISE_ROUNDS =>
            {
                self.mtu = round.best;
                self.raise_at = None;
                self.rest(now);
            }
            // The peer doesn't answer.
            purpose if round.tries >= 2 * MAX_FAILED_ROUNDS => {
                if purpose != ProbePurpose::Check {
                    self.mtu = round.best;
                }
                self.raise_at = None;
                self.rest(now);
            }
            purpose => {
                if purpose == ProbePurpose::Raise && round.valid > 0 {
                    self.mtu = round.best;
                }
                self.round = Some(round);
            }
        }
    }

    fn rest(&mut self, now: Time) {
        self.check_at =
            now + if std::mem::take(&mut self.active) { CHECK_INTERVAL } else { IDLE_CHECK_INTERVAL };
        if self.mtu == MAX_PATH_MTU {
            self.raise_at = None;
        } else if self.raise_at.is_none_or(|at| at <= now) {
            self.raise_at = Some(now + RAISE_INTERVAL);
        }
    }
}

/// Returns all sizes that may be probed.
fn candidates() -> impl Iterator<Item = u16> {
    (MIN_PATH_MTU..MAX_PATH_MTU).step_by(SIZE_STEP).chain(std::iter::once(MAX_PATH_MTU))
}

#[cfg(test)]
mod tests;
