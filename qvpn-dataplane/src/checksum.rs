//! The Internet checksum (RFC 1071): ones' complement sums of 16-bit words.

/// A sum that is not folded yet. Only the last piece may have an odd length. Words are added in the
/// machine's byte order, which RFC 1071 (section 2 B) allows: only the folded result is in network byte
/// order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes.
    #[must_use]
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<32>();
        let mut sum = self.0 + sum_blocks(blocks);
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let (pairs, last) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [byte] = last {
            sum += u64::from(u16::from_ne_bytes([*byte, 0]));
        }
        Self(sum)
    }

    /// Adds a 16-bit number in network byte order.
    #[must_use]
    pub(crate) fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Returns the sum as two bytes of a packet, without the final complement: the value of a partial
    /// checksum.
    #[must_use]
    pub(crate) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap_or(0).to_ne_bytes()
    }

    /// Returns the checksum as two bytes of a packet.
    #[must_use]
    pub(crate) fn checksum(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }

    /// Returns the checksum of a UDP datagram. A result of 0 becomes 0xffff, since 0 means "no checksum"
    /// (RFC 768).
    #[must_use]
    pub(crate) fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Returns whether the checksum within the added bytes is right.
    #[must_use]
    pub(crate) fn is_right(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

/// Returns the sum of a TCP or UDP pseudo-header without the length: the addresses of an IP header and the
/// protocol.
#[must_use]
pub(crate) fn addresses_and_protocol(packet: &[u8], v6: bool, protocol: u8) -> Sum {
    let addresses = if v6 { packet.get(8..40) } else { packet.get(12..20) };
    Sum::default().bytes(addresses.unwrap_or_default()).word(protocol.into())
}

/// Returns the sum of all 32-bit words, in the machine's byte order: the part of a checksum that costs time.
fn sum_blocks(blocks: &[[u8; 32]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "Rust has no safe call of a function for detected features")]
        // SAFETY: the check above proves that the processor has AVX2.
        return unsafe { sum_blocks_avx2(blocks) };
    }
    sum_blocks_portable(blocks)
}

/// [`sum_blocks_portable`], compiled for AVX2: registers of twice the width.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_blocks_avx2(blocks: &[[u8; 32]]) -> u64 {
    sum_blocks_portable(blocks)
}

#[inline(always)]
fn sum_blocks_portable(blocks: &[[u8; 32]]) -> u64 {
    // 64-bit sums of 32-bit words can't overflow here, and the compiler vectorises them.
    let mut sums = [0u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum += u64::from(u32::from_ne_bytes(*word));
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn agrees_with_a_sum_by_the_book(bytes in proptest::collection::vec(any::<u8>(), 0..300), word: u16) {
            let ours = u16::from_be_bytes(Sum::default().bytes(&bytes).folded());
            prop_assert_eq!(ours, plain(&bytes));
            let mut with_word = word.to_be_bytes().to_vec();
            with_word.extend(&bytes);
            let folded = Sum::default().word(word).bytes(&bytes).folded();
            prop_assert_eq!(u16::from_be_bytes(folded), plain(&with_word));
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).folded(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().bytes(&[0; 8]).udp_checksum(), [0xff, 0xff]);
    }
}
