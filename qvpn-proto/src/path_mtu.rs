//! Finds the largest inner packet that passes the path to the other end unfragmented (as RFC 8899 does, by the other end's
//! acknowledgements and nothing else: an ICMP error on the WAN may be forged). Pure: it says which sizes to probe and is told
//! what was acknowledged.
//!
//! A probe is a padded `Ping`, sent with "don't fragment". With each round goes a small one, and a round in which that isn't
//! acknowledged says nothing. What is in use is checked again and again; when it fails all sizes are tried side by side, and
//! what passes is used at once: hosts remember for ten minutes how small a packet they were told to make.

use std::time::Duration;

use crate::wire::MessageId;
use crate::wire::limits::{MAX_LINK_PACKET, MAX_PROBE};
use qvpn_types::Time;

/// The least: with it an outer packet fits 1,280 bytes, which IPv6 requires of each path.
pub const LEAST: u16 = 1200;
/// The most that is looked for: with it an outer IPv6 packet has 1,500 bytes.
pub const MOST: u16 = 1420;
/// Between two sizes: packets are padded to so many bytes.
const STEP: usize = 16;

/// How often the size in use is checked while data flows, and while it doesn't.
const CHECK: Duration = Duration::from_secs(2);
const CHECK_IDLE: Duration = Duration::from_secs(60);
/// How often larger sizes are tried.
const RAISE: Duration = Duration::from_secs(20);
/// Rounds in which a size in use must fail.
const FAILURES: u8 = 5;
/// Rounds in which larger sizes are tried.
const ROUNDS: u8 = 3;
/// How long a round waits: two round trips and a little.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(2);
const MORE: Duration = Duration::from_millis(100);

const _: () = assert!(LEAST as usize == MAX_LINK_PACKET && MOST as usize == MAX_PROBE);

/// What a round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// Whether the size in use still passes.
    Check,
    /// Whether a larger one may pass: the next and the most.
    Peek,
    /// Which of all larger ones passes.
    Raise,
}

#[derive(Debug)]
struct Round {
    aim: Aim,
    /// Rounds of this aim so far that told something.
    told: u8,
    /// Rounds of this aim so far.
    tries: u8,
    /// What is under way; a size of 0 is the small one.
    probes: Vec<(MessageId, u16)>,
    small_passed: bool,
    best: u16,
    ends: Time,
}

/// The search for one peer.
#[derive(Debug)]
pub struct PathMtu {
    mtu: u16,
    round: Option<Round>,
    check_at: Time,
    raise_at: Option<Time>,
    /// Something went out since the last check.
    active: bool,
}

impl PathMtu {
    /// A search that begins as soon as it is asked, with the most as what is in use.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { mtu: MOST, round: None, check_at: now, raise_at: None, active: false }
    }

    /// The size in use: bytes of an inner packet.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The path is another one: what is known must be checked.
    pub fn moved(&mut self, now: Time) {
        self.round = None;
        self.check_at = now;
        self.raise_at = (self.mtu < MOST).then_some(now);
    }

    /// Data went out, so the size matters.
    pub fn sent(&mut self, now: Time) {
        if !std::mem::replace(&mut self.active, true) {
            self.check_at = self.check_at.min(now + CHECK);
        }
    }

    /// When [`due`](Self::due) has something to do next.
    #[must_use]
    pub fn next(&self) -> Time {
        match &self.round {
            Some(round) => round.ends,
            None => self.raise_at.map_or(self.check_at, |at| at.min(self.check_at)),
        }
    }

    /// The sizes to probe now, 0 for a small one. To be called while there is a session, and answered by
    /// [`probed`](Self::probed) for each.
    pub fn due(&mut self, now: Time, round_trip: Option<Duration>) -> Vec<u16> {
        if self.next() > now {
            return Vec::new();
        }
        match self.round.take() {
            Some(round) => self.end(round, now),
            None if self.raise_at.is_some_and(|at| at <= now) => self.begin(Aim::Peek, self.mtu, now),
            None => self.begin(Aim::Check, 0, now),
        }
        let Some(round) = &mut self.round else { return Vec::new() };
        let wait = round_trip.map_or(SHORTEST * 2, |rtt| (rtt * 2 + MORE).clamp(SHORTEST, LONGEST));
        round.ends = now + wait;
        let mut sizes = vec![0];
        match round.aim {
            Aim::Check => sizes.push(self.mtu),
            Aim::Peek => {
                sizes.extend(candidates().find(|size| *size > self.mtu && *size < MOST));
                sizes.push(MOST);
            }
            Aim::Raise => sizes.extend(candidates().filter(|size| *size > round.best)),
        }
        sizes
    }

    /// A probe of `size` went out under this ID.
    pub fn probed(&mut self, id: MessageId, size: u16) {
        if let Some(round) = &mut self.round {
            round.probes.push((id, size));
        }
    }

    /// Whether an acknowledgement of this ID means anything here.
    pub fn acknowledged(&mut self, id: &MessageId, now: Time) {
        let Some(round) = &mut self.round else { return };
        let Some((_, size)) = round.probes.iter().find(|(probe, _)| probe == id) else { return };
        match *size {
            0 => round.small_passed = true,
            size => round.best = round.best.max(size),
        }
        // All that was asked is known.
        let done = match round.aim {
            Aim::Check => round.best >= self.mtu,
            Aim::Peek => round.best > self.mtu,
            Aim::Raise => round.best == MOST,
        };
        if done {
            round.ends = round.ends.min(now);
        }
    }

    /// The first round of an aim, where `best` is known to pass.
    fn begin(&mut self, aim: Aim, best: u16, now: Time) {
        let probes = Vec::new();
        self.round = Some(Round { aim, told: 0, tries: 0, probes, small_passed: false, best, ends: now });
    }

    /// A round ended: what follows from it, which may be another one.
    fn end(&mut self, mut round: Round, now: Time) {
        round.tries += 1;
        round.told += u8::from(round.small_passed);
        round.small_passed = false;
        match round.aim {
            Aim::Check if round.best >= self.mtu => self.rest(now),
            Aim::Check if round.told >= FAILURES && self.mtu > LEAST => self.begin(Aim::Raise, LEAST, now),
            // The least is never given up.
            Aim::Check if round.told >= FAILURES => self.rest(now),
            Aim::Peek if round.best > self.mtu && round.best < MOST => {
                self.mtu = round.best;
                self.begin(Aim::Raise, round.best, now);
            }
            Aim::Peek | Aim::Raise if round.best == MOST || round.told >= ROUNDS => {
                self.mtu = round.best;
                self.raise_at = None;
                self.rest(now);
            }
            // The other end can't be asked just now.
            aim if round.tries >= 2 * FAILURES => {
                if aim != Aim::Check {
                    self.mtu = round.best;
                }
                self.raise_at = None;
                self.rest(now);
            }
            aim => {
                if aim == Aim::Raise && round.told > 0 {
                    self.mtu = round.best;
                }
                self.round = Some(round);
            }
        }
    }

    fn rest(&mut self, now: Time) {
        self.check_at = now + if std::mem::take(&mut self.active) { CHECK } else { CHECK_IDLE };
        if self.mtu == MOST {
            self.raise_at = None;
        } else if self.raise_at.is_none_or(|at| at <= now) {
            self.raise_at = Some(now + RAISE);
        }
    }
}

/// All sizes that are tried.
fn candidates() -> impl Iterator<Item = u16> {
    (LEAST..MOST).step_by(STEP).chain(std::iter::once(MOST))
}

#[cfg(test)]
mod tests;
