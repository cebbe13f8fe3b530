//! One key in use. [`SealingSession`] counts packets and enforces the limits of its key; [`OpeningSession`]
//! remembers which counters it received. Packets are sealed and opened in place, in WireGuard's transport
//! format.
//!
//! ```text
//! 04 00 00 00 | receiver index u32 LE | counter u64 LE | ciphertext | tag
//! ```

use qvpn_secret::scrub_stack;
use qvpn_types::{LocalEpoch, MAX_PACKETS, PeerNumber, Time};

use crate::cipher::Cipher;
pub use crate::cipher::TAG;
use crate::key::{OpeningKey, SealingKey};

/// Bytes before the ciphertext.
pub const HEADER: usize = 16;
/// The type of a data packet.
pub(crate) const DATA: u32 = 4;

/// Why a packet cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealError {
    /// The key reached its maximum age.
    Expired,
    /// The key reached its packet limit.
    PacketLimit,
}

/// A key that seals packets.
pub struct SealingSession {
    cipher: Cipher,
    /// The epoch of the key.
    pub epoch: LocalEpoch,
    receiver_index: u32,
    /// The key seals nothing from this instant on.
    pub expires_at: Time,
    counter: u64,
    packets: u64,
}

impl SealingSession {
    /// Returns `None` if the cipher refuses the key, which never happens with a key of 32 bytes.
    #[must_use]
    pub fn new(key: &SealingKey) -> Option<Self> {
        Some(Self {
            cipher: Cipher::new(key.suite, &key.key)?,
            epoch: key.epoch,
            receiver_index: key.receiver_index,
            expires_at: key.expires_at,
            counter: 0,
            packets: key.packets.min(MAX_PACKETS),
        })
    }

    /// Seals the `inner` bytes at `HEADER` in `buffer`, padded with zeros to `padded` bytes, and returns the
    /// length of the datagram. Age and packet count are checked before each packet.
    ///
    /// # Errors
    /// [`SealError`] if the key reached one of its limits.
    pub fn seal(
        &mut self,
        buffer: &mut [u8],
        inner: usize,
        padded: usize,
        now: Time,
    ) -> Result<usize, SealError> {
        if now >= self.expires_at {
            return Err(SealError::Expired);
        }
        if self.counter >= self.packets {
            return Err(SealError::PacketLimit);
        }
        let counter = self.counter;
        self.counter += 1;
        buffer[HEADER + inner..HEADER + padded].fill(0);
        let (header, body) = buffer.split_at_mut(HEADER);
        header[..4].copy_from_slice(&DATA.to_le_bytes());
        header[4..8].copy_from_slice(&self.receiver_index.to_le_bytes());
        header[8..16].copy_from_slice(&counter.to_le_bytes());
        let (text, rest) = body.split_at_mut(padded);
        let tag = self.cipher.seal(counter, text).map_err(|_| SealError::PacketLimit)?;
        rest[..TAG].copy_from_slice(&tag);
        Ok(HEADER + padded + TAG)
    }
}

impl Drop for SealingSession {
    fn drop(&mut self) {
        // The cipher's assembly keeps working copies of the key on the stack.
        scrub_stack();
    }
}

/// Why a packet cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The key expired.
    Expired,
    /// The counter was received before, or is older than the window.
    Replay,
    /// The tag is wrong, or the datagram is too short to have one.
    Auth,
}

/// A key that opens packets.
pub struct OpeningSession {
    cipher: Cipher,
    /// The peer of the key.
    pub peer: PeerNumber,
    /// The epoch of the key.
    pub epoch: LocalEpoch,
    /// The key opens nothing from this instant on; a drain brings it forward.
    pub expires_at: Time,
    window: ReplayWindow,
    /// Whether no packet was opened yet.
    pub fresh: bool,
}

impl OpeningSession {
    /// Returns `None` if the cipher refuses the key, which never happens with a key of 32 bytes.
    #[must_use]
    pub fn new(key: &OpeningKey) -> Option<Self> {
        Some(Self {
            cipher: Cipher::new(key.suite, &key.key)?,
            peer: key.peer,
            epoch: key.epoch,
            expires_at: key.expires_at,
            window: ReplayWindow::default(),
            fresh: true,
        })
    }

    /// Opens a whole datagram in place. Returns the plaintext with its padding, and whether its counter is
    /// the highest so far.
    ///
    /// # Errors
    /// [`OpenError`]; the counter is then not marked as received.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8], now: Time) -> Result<(&'a mut [u8], bool), OpenError> {
        if now >= self.expires_at {
            return Err(OpenError::Expired);
        }
        let Some(counter) = datagram.get(8..16).and_then(|c| c.first_chunk()).map(|c| u64::from_le_bytes(*c))
        else {
            return Err(OpenError::Auth);
        };
        if !self.window.is_new(counter) {
            return Err(OpenError::Replay);
        }
        let text = self.cipher.open(counter, &mut datagram[HEADER..]).map_err(|_| OpenError::Auth)?;
        let highest = self.window.accept(counter);
        Ok((text, highest))
    }
}

impl Drop for OpeningSession {
    fn drop(&mut self) {
        scrub_stack();
    }
}

/// The number of words in the ring: the window covers 2,048 counters (32 words), the highest one included,
/// and needs one more word while it moves.
const WORDS: usize = 33;

/// The counters that were received: a ring of bits (RFC 6479).
pub(crate) struct ReplayWindow {
    next: u64,
    bits: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, bits: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// The number of counters that the window covers, the highest one included.
    pub(crate) const SIZE: u64 = 2048;

    fn place(counter: u64) -> (usize, u64) {
        let word = usize::try_from(counter / 64 % 33).unwrap_or(0);
        (word, 1 << (counter % 64))
    }

    /// Returns whether a counter was not received before and is not too old.
    pub(crate) fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        let (word, bit) = Self::place(counter);
        self.next - counter <= Self::SIZE && self.bits[word] & bit == 0
    }

    /// Marks a new counter as received; returns whether it is the highest so far.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        let highest = counter >= self.next;
        if highest {
            let first = self.next.div_ceil(64);
            let last = counter / 64;
            for word in first..=last.min(first + 33) {
                self.bits[usize::try_from(word % 33).unwrap_or(0)] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.bits[word] |= bit;
        highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use qvpn_secret::Secret;
    use qvpn_types::Suite;
    use std::collections::BTreeSet;

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    fn pair(suite: Suite, packets: u64) -> (SealingSession, OpeningSession) {
        let key = || Secret::filled(|b| b.fill(7));
        let seal = SealingKey {
            peer: PeerNumber(1),
            epoch: LocalEpoch(1),
            receiver_index: 1 << 31,
            suite,
            key: key(),
            expires_at: at(100),
            packets,
        };
        let open = OpeningKey {
            peer: PeerNumber(1),
            epoch: LocalEpoch(1),
            index: 1 << 31,
            suite,
            key: key(),
            expires_at: at(100),
        };
        (SealingSession::new(&seal).unwrap(), OpeningSession::new(&open).unwrap())
    }

    #[test]
    fn what_is_sealed_opens_once() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let (mut seal, mut open) = pair(suite, 10);
            let mut buffer = [0u8; 128];
            buffer[HEADER..HEADER + 5].copy_from_slice(b"hello");
            let len = seal.seal(&mut buffer, 5, 16, at(1)).unwrap();
            assert_eq!(len, 48);
            assert_eq!(buffer[..4], [4, 0, 0, 0]);
            let mut copy = buffer;
            let (text, highest) = open.open(&mut copy[..len], at(1)).unwrap();
            assert_eq!(text, b"hello\0\0\0\0\0\0\0\0\0\0\0");
            assert!(highest);
            let mut copy = buffer;
            assert_eq!(open.open(&mut copy[..len], at(1)).unwrap_err(), OpenError::Replay);
        }
    }

    #[test]
    fn the_limits_of_a_key_hold() {
        let (mut seal, mut open) = pair(Suite::ChaCha20Poly1305, 2);
        let mut buffer = [0u8; 64];
        assert_eq!(seal.seal(&mut buffer, 0, 0, at(100)).unwrap_err(), SealError::Expired);
        assert!(seal.seal(&mut buffer, 0, 0, at(99)).is_ok());
        assert!(seal.seal(&mut buffer, 0, 0, at(99)).is_ok());
        assert_eq!(seal.seal(&mut buffer, 0, 0, at(99)).unwrap_err(), SealError::PacketLimit);
        assert_eq!(open.open(&mut buffer[..32], at(100)).unwrap_err(), OpenError::Expired);
        buffer[20] ^= 1;
        assert_eq!(open.open(&mut buffer[..32], at(99)).unwrap_err(), OpenError::Auth);
    }

    /// The next expected counter would not fit into 64 bits after it. No honest peer seals that many
    /// packets.
    #[test]
    fn the_last_counter_of_all_never_opens() {
        let mut window = ReplayWindow::default();
        assert!(!window.is_new(u64::MAX));
        assert!(window.is_new(u64::MAX - 1) && window.accept(u64::MAX - 1));
        assert!(!window.is_new(u64::MAX));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(counters in proptest::collection::vec(0u64..6000, 1..400)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            for counter in counters {
                let high = seen.last().copied();
                let in_window = high.is_none_or(|h: u64| counter + ReplayWindow::SIZE > h);
                let new = !seen.contains(&counter) && in_window;
                prop_assert_eq!(window.is_new(counter), new, "counter {} high {:?}", counter, high);
                if new {
                    window.accept(counter);
                    seen.insert(counter);
                }
            }
        }
    }
}
