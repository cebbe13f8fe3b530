//! Reads fields from a fuzzer's input.

/// The rest of an input. Reads return zeros once it is used up.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    pub(super) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head.to_vec()
    }

    /// Changes a byte or cuts the message short, in one case of four.
    pub(super) fn damage(&mut self, mut message: Vec<u8>) -> Vec<u8> {
        let how = self.u8();
        if how & 3 == 3 && !message.is_empty() {
            let at = (usize::from(self.u8()) << 8 | usize::from(self.u8())) % message.len();
            if how & 4 == 0 { message[at] ^= self.u8() | 1 } else { message.truncate(at) }
        }
        message
    }
}
