//! A response body that is erased when it is dropped and, when it grows, before the old buffer is freed.

use zeroize::Zeroize;

/// Bytes of a response, which may hold keys in base64.
#[derive(Default)]
pub(crate) struct ErasedBody(Vec<u8>);

impl ErasedBody {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// A body of `length` zeros, to read into.
    pub(crate) fn zeroed(length: usize) -> Self {
        Self(vec![0; length])
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Appends `data`. `Vec` would leave a copy behind when it grows, so it is grown here.
    pub(crate) fn push(&mut self, data: &[u8]) {
        let needed = self.0.len() + data.len();
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(2 * self.0.capacity()));
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = larger;
        }
        self.0.extend_from_slice(data);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for ErasedBody {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
#[path = "../../tests/support/copies.rs"]
mod copies;

#[cfg(test)]
mod tests {
    use super::copies::copies;
    use super::*;

    /// This program's allocator erases nothing, so a byte that is found nowhere was wiped by this module. The
    /// sizes are ones that nothing else requests, so that nothing else overwrites what would be left.
    #[test]
    fn nothing_is_left_where_a_body_stood() {
        let secret =
            |i: usize| u32::try_from(i).unwrap().wrapping_mul(0x9e37_79b1).rotate_left(11).to_be_bytes()[0];
        let mut body = ErasedBody::with_capacity(400);
        body.push(&[0; 300]);
        // One at a time, so that there is no other copy.
        (0..44).for_each(|i| body.push(&[secret(i)]));
        body.push(&[0; 100]);
        assert_eq!(copies(secret), 4, "the body's four pieces, and those that it left when it grew");
        drop(body);
        assert_eq!(copies(secret), 0, "the body is left");
    }

    #[test]
    fn growing_keeps_the_bytes() {
        let mut body = ErasedBody::with_capacity(3);
        let mut want = Vec::new();
        for i in 0..100u8 {
            body.push(&[i, i, i]);
            want.extend([i, i, i]);
        }
        assert_eq!(body.bytes(), want);
    }
}
