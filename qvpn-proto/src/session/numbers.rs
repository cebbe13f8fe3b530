//! Numbers for control sessions, which order what arrives in them.
//!
//! Two handshakes that run at the same time, since both sites call or a call goes to two endpoints, make two
//! sessions that each site may complete in another order and use in turn. They share a number, so that
//! neither counts as the older one.

use std::collections::VecDeque;

/// A handshake that begins within this many ticks, about a second, of a number's first use shares that
/// number. The `Tunn` uses sessions of one tick in turn.
const PARALLEL_TICKS: u64 = 4;
/// The number of our initiations of which one may still be answered.
const MAX_INITIATIONS: usize = 4;

/// The numbers of sessions by our receiver index. They begin at one and never fall.
#[derive(Default)]
pub struct SessionNumbers {
    initiated: VecDeque<(u32, u64)>,
    made: VecDeque<(u32, u64)>,
    in_use: u64,
    in_use_since: u64,
    ticks: u64,
}

impl SessionNumbers {
    /// Counts a tick of the sessions' clock.
    pub fn on_tick(&mut self) {
        self.ticks += 1;
    }

    fn next(&self) -> u64 {
        let parallel = self.in_use > 0 && self.ticks - self.in_use_since < PARALLEL_TICKS;
        self.in_use + u64::from(!parallel)
    }

    /// Records an initiation of ours.
    pub fn on_initiated(&mut self, index: u32) {
        if self.initiated.len() == MAX_INITIATIONS {
            self.initiated.pop_front();
        }
        self.initiated.push_back((index, self.next()));
    }

    /// Records a session made by an answer, ours or the peer's. It takes the place of the one whose index is
    /// the same modulo `places`.
    pub fn on_made(&mut self, index: u32, places: u32) {
        let initiated = self.initiated.iter().find(|(other, _)| *other == index);
        let number = initiated.map_or_else(|| self.next(), |(_, number)| *number);
        self.made.retain(|(other, _)| other % places != index % places);
        self.made.push_back((index, number));
    }

    /// Records that a session is in use.
    pub fn on_used(&mut self, index: u32) {
        let number = self.of(index);
        if number > self.in_use {
            (self.in_use, self.in_use_since) = (number, self.ticks);
        }
    }

    /// Returns the number of a session; zero if it is unknown.
    pub fn of(&self, index: u32) -> u64 {
        self.made.iter().rfind(|(other, _)| *other == index).map_or(0, |(_, number)| *number)
    }

    /// Drops all sessions; the numbers continue.
    pub fn reset(&mut self) {
        self.initiated.clear();
        self.made.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a session by an answer of ours and uses it.
    fn answer(numbers: &mut SessionNumbers, index: u32) -> u64 {
        numbers.on_made(index, 8);
        numbers.on_used(index);
        numbers.of(index)
    }

    #[test]
    fn handshakes_one_after_the_other_have_rising_numbers() {
        let mut numbers = SessionNumbers::default();
        for index in 1..=20 {
            assert_eq!(answer(&mut numbers, index), u64::from(index));
            (0..PARALLEL_TICKS).for_each(|_| numbers.on_tick());
        }
        numbers.reset();
        assert_eq!((numbers.of(20), answer(&mut numbers, 1)), (0, 21));
    }

    #[test]
    fn handshakes_at_the_same_time_share_a_number_in_either_order() {
        for order in [[1, 2], [2, 1]] {
            let mut numbers = SessionNumbers::default();
            numbers.on_initiated(1);
            numbers.on_initiated(2);
            for index in order {
                assert_eq!(answer(&mut numbers, index), 1);
                (0..PARALLEL_TICKS).for_each(|_| numbers.on_tick());
            }
            assert_eq!(answer(&mut numbers, 3), 2);
        }
    }

    #[test]
    fn a_handshake_that_begins_within_a_second_of_the_first_use_shares_its_number() {
        let mut numbers = SessionNumbers::default();
        assert_eq!(answer(&mut numbers, 1), 1);
        (1..PARALLEL_TICKS).for_each(|_| numbers.on_tick());
        assert_eq!(answer(&mut numbers, 2), 1);
        numbers.on_tick();
        assert_eq!(answer(&mut numbers, 3), 2);
    }

    #[test]
    fn a_late_answer_belongs_to_the_time_of_its_initiation() {
        let mut numbers = SessionNumbers::default();
        numbers.on_initiated(1);
        for index in 2..=3 {
            answer(&mut numbers, index);
            (0..PARALLEL_TICKS).for_each(|_| numbers.on_tick());
        }
        assert_eq!((numbers.of(3), answer(&mut numbers, 1)), (2, 1));
    }
}
