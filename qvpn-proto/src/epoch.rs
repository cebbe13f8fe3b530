//! How long an epoch lasts once its keys are made, and the receiver indices of its lanes. The keys themselves
//! are in the lanes, which enforce the same limits.

use std::time::Duration;

use qvpn_identity::PublicIdentity;

use crate::key_sources::KeySources;
use crate::wire::limits::MAX_PEERS;
use qvpn_types::{EpochNumber, KeyId, LocalEpoch, PeerNumber, Time};

/// The number of wrong confirmations at which an attempt ends.
pub(crate) const MAX_WRONG_CONFIRMATIONS: u8 = 4;

/// Returns how long an epoch may seal: three intervals, at least 10 s.
#[must_use]
pub fn max_age(interval: Duration) -> Duration {
    (interval * 3).max(Duration::from_secs(10))
}

/// Returns how long an older epoch still opens: the larger of 2 s and the smaller of 10 s and 8 intervals.
#[must_use]
pub fn drain(interval: Duration) -> Duration {
    (interval * 8).min(Duration::from_secs(10)).max(Duration::from_secs(2))
}

/// The two keys in an epoch's transcript.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parties {
    /// Ours.
    pub local: PublicIdentity,
    /// The peer's.
    pub remote: PublicIdentity,
}

/// The epoch that seals.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveEpoch {
    /// Its number on the wire.
    pub epoch: EpochNumber,
    /// The number that orders its keys in the lanes of this side.
    pub local_epoch: LocalEpoch,
    /// When it came into force here.
    pub since: Time,
    /// When sealing ends.
    pub sealing_ends: Time,
    pub parties: Parties,
    pub sources: KeySources,
    /// The QKD key that it used.
    pub qkd_key_id: Option<KeyId>,
    /// Whether it lost its chain although neither side restarted.
    pub chain_lost: bool,
}

/// The opening keys of epochs without QKD that lanes may still hold: their local epoch, receiver indices and
/// expiry.
#[derive(Default)]
pub(crate) struct KeysWithoutQkd(Vec<(LocalEpoch, Vec<u32>, Time)>);

impl KeysWithoutQkd {
    pub(crate) fn add(&mut self, local_epoch: LocalEpoch, indices: Vec<u32>, expires_at: Time, now: Time) {
        self.0.retain(|(_, _, end)| *end > now);
        self.0.push((local_epoch, indices, expires_at));
    }

    /// Keys of epochs before `local_epoch` expire no later than `at`, as in the lanes.
    pub(crate) fn close_older(&mut self, local_epoch: LocalEpoch, at: Time) {
        for (_, _, end) in self.0.iter_mut().filter(|(older, ..)| *older < local_epoch) {
            *end = (*end).min(at);
        }
    }

    /// Removes all keys and returns their indices, which the caller must close.
    pub(crate) fn take(&mut self) -> Vec<Vec<u32>> {
        std::mem::take(&mut self.0).into_iter().map(|(_, indices, _)| indices).collect()
    }
}

/// Allocates receiver indices for data sessions: top bit, the peer's number (15 bits), and a counter.
pub struct Indices {
    number: PeerNumber,
    next: u16,
}

impl Indices {
    /// Allocates for the peer with this number. After a restart, a random `first` avoids the indices of the
    /// previous instance.
    #[must_use]
    pub fn new(number: PeerNumber, first: u16) -> Self {
        Self { number: PeerNumber(number.0 % MAX_PEERS), next: first }
    }

    /// Returns one index for each lane. Indices repeat after 65,536, many more than can be open at once.
    pub fn take(&mut self, lanes: u8) -> Vec<u32> {
        (0..lanes)
            .map(|_| {
                self.next = self.next.wrapping_add(1);
                1 << 31 | u32::from(self.number.0) << 16 | u32::from(self.next)
            })
            .collect()
    }
}

/// Returns the peer's number in a data session's receiver index; `None` for a control session's index.
#[must_use]
pub fn peer_of_data_index(index: u32) -> Option<PeerNumber> {
    (index >> 31 == 1).then_some(PeerNumber(u16::try_from(index >> 16 & 0x7fff).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_protocol_md() {
        let s = Duration::from_secs;
        assert_eq!(max_age(s(60)), s(180));
        assert_eq!(max_age(Duration::from_millis(100)), s(10));
        assert_eq!(drain(s(60)), s(10));
        assert_eq!(drain(Duration::from_millis(100)), s(2));
        assert_eq!(drain(s(1)), s(8));
    }

    #[test]
    fn indices_name_their_peer_and_have_the_top_bit() {
        let mut indices = Indices::new(PeerNumber(77), 65_000);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            for index in indices.take(16) {
                assert_eq!(peer_of_data_index(index), Some(PeerNumber(77)));
                assert!(seen.insert(index));
            }
        }
        assert_eq!(peer_of_data_index(77 << 8), None);
    }

    #[test]
    fn keys_without_qkd_are_known_until_they_end() {
        let at = |seconds| Time::default() + Duration::from_secs(seconds);
        let mut keys = KeysWithoutQkd::default();
        for (number, index, end) in [(1, 11, 20), (2, 12, 30), (3, 13, 40)] {
            keys.add(LocalEpoch(number), vec![index], at(end), at(0));
        }
        keys.close_older(LocalEpoch(2), at(15));
        keys.close_older(LocalEpoch(3), at(100));
        keys.add(LocalEpoch(4), vec![14], at(50), at(15));
        assert_eq!(keys.take(), [[12], [13], [14]], "the first one's drain is over, the others last");
        assert!(keys.take().is_empty());
    }
}
